//! Drives the connections of the main port until the drain has ended.

use std::net::TcpListener;

use tokio::net::TcpListener as Listener;
use tokio_stream::{StreamExt as _, wrappers::TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::Server};
use tracing::{error, warn};

/// Most calls at a time on one connection. Unlimited is the library's default, and each open call
/// can pin a message and a send buffer.
const STREAMS_PER_CONNECTION: u32 = 100;
/// Most bytes of a call's headers.
const HEADER_BYTES: u32 = 16 * 1024;

/// Serves `routes` on `listener`. After `draining` nothing new is accepted, open connections get a
/// GOAWAY and their calls may finish; `closing` drops what is left, because a graceful end alone
/// waits for ever on a peer that says nothing (hyper issue 4170).
pub async fn serve(
    listener: TcpListener,
    routes: Routes,
    draining: CancellationToken,
    closing: CancellationToken,
) {
    let listener = match Listener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return error!(%error, "cannot listen"),
    };
    let incoming = TcpListenerStream::new(listener).map(|accepted| {
        let stream = accepted?;
        // Without it a small message waits for the peer's delayed acknowledgement.
        stream.set_nodelay(true)?;
        Ok::<_, std::io::Error>(stream)
    });
    let server = Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .http2_max_header_list_size(HEADER_BYTES)
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, draining.cancelled());
    tokio::select! {
        ended = server => if let Err(error) = ended {
            error!(%error, "the server ended");
        },
        () = closing.cancelled() => warn!("dropping connections that did not end by themselves"),
    }
}
