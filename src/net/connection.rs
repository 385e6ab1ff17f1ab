//! The life of one connection: one state machine for everything that can end it.
//!
//! speaking → serving → leaving → saying goodbye → gone
//!
//! A connection leaves for one of four reasons: it is idle, it is too old, it has to make room, or the
//! server stops. It always goes the same way: GOAWAY, so that the peer sends new calls elsewhere; a
//! grace for the calls that run; then every call that is left ends with a status of its own, never
//! with a bare reset; then the connection is dropped. No step waits for the peer without a deadline,
//! since hyper's graceful end does: for ever on a peer that does not answer its PING (hyper issue
//! 4170).

use std::{pin::pin, sync::Arc, time::Duration};

use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, sleep, sleep_until},
};
use tracing::debug;

use super::{
    call::{Calls, Executor, Routes, Service, Serving},
    coalesce::{Coalesce, Writes},
    governor::Activity,
    wire::{Heard, Wire},
};
use crate::{config::Connections, lifecycle::Lifecycle};

/// Calls at a time on one connection. Each can pin a message and a send buffer, so this times
/// (256 KiB + 64 KiB), and what is gathered of writes (32 KiB), is the worst that a connection can cost:
/// 32 MiB, and a message of each call more where it teaches or converses (README).
const STREAMS: u32 = 100;
/// Bytes of a call's headers.
const HEADER_BYTES: u32 = 16 * 1024;
/// Bytes of a head or a body that are read at once over HTTP/1.1.
const HTTP1_BUFFER: usize = 32 * 1024;
/// Bytes that the peer may send ahead, on one call and on all.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 256 * 1024;
/// Bytes that wait to be sent, on one call.
const SEND_BUFFER: usize = 64 * 1024;
/// Resets that the peer provokes before it is told to calm down (the class of RUSTSEC-2024-0003).
const PROVOKED_RESETS: usize = 1024;
/// Calls that the peer resets before they are looked at (CVE-2023-44487).
const UNSEEN_RESETS: usize = 20;

/// Time for the last words of calls that are told to end.
const GOODBYE: Duration = Duration::from_millis(500);
/// How long a connection that leaves waits for a call that has crossed its GOAWAY.
const NO_CALLS: Duration = Duration::from_secs(1);

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Reason {
    /// The peer closed it, or broke it.
    Peer,
    /// The peer said nothing in time, or stopped in the middle of its greeting.
    Silent,
    /// Its TLS handshake failed, or took too long.
    Handshake,
    /// It was idle.
    Idle,
    /// It was too old.
    Age,
    /// It had to make room.
    Evicted,
    /// The server stops.
    Drain,
}

impl Reason {
    /// Every reason.
    pub(super) const ALL: [Self; 7] = [
        Self::Peer,
        Self::Silent,
        Self::Handshake,
        Self::Idle,
        Self::Age,
        Self::Evicted,
        Self::Drain,
    ];

    /// The name, as metrics have it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Silent => "silent",
            Self::Handshake => "handshake",
            Self::Idle => "idle",
            Self::Age => "age",
            Self::Evicted => "evicted",
            Self::Drain => "drain",
        }
    }
}

/// How connections live.
#[derive(Debug)]
pub(super) struct Terms {
    pub(super) limits: Connections,
    /// Whether HTTP/1.1 is spoken too, for gRPC-Web.
    pub(super) http1: bool,
    pub(super) life: Lifecycle,
    pub(super) writes: Writes,
}

/// Drives one connection to its end. `spread` is a number from -1 to 1 that moves its age by a tenth,
/// so that connections which came together do not leave together.
pub(super) async fn drive<I, S>(
    stream: I,
    routes: S,
    activity: Arc<Activity>,
    mut extensions: http::Extensions,
    terms: Arc<Terms>,
    spread: f64,
) -> Reason
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Routes,
{
    let Terms { limits, http1, life, writes } = &*terms;
    let (draining, closing) = (life.draining(), life.closing());
    let heard = Arc::new(Heard::default());
    let calls = Arc::new(Calls::new(
        life.clone(),
        Arc::clone(&activity),
        Arc::clone(&heard),
        limits.stall_timeout,
    ));
    extensions.insert(calls.ending.clone());
    let builder = builder(&calls, limits, *http1);
    let service = Service::new(routes, Arc::clone(&calls), extensions);
    let stream = Coalesce::new(stream, writes.clone());
    let stream = TokioIo::new(Wire::new(stream, Arc::clone(&heard)));
    let connection = builder.serve_connection(stream, service);
    let mut connection = pin!(Serving::new(connection, Arc::clone(&calls)));
    let old = Instant::now() + limits.max_age.mul_f64(1.0 + spread / 10.0);

    // Speaking. Nothing is lost by dropping a peer that has not said what it wants.
    tokio::select! {
        biased;
        ended = connection.as_mut() => return by_peer(ended),
        () = heard.spoken() => {}
        () = draining.cancelled() => return Reason::Drain,
        () = activity.evicted() => return Reason::Evicted,
        () = sleep(limits.preface_timeout) => return Reason::Silent,
    }

    // Serving.
    let reason = tokio::select! {
        biased;
        ended = connection.as_mut() => return by_peer(ended),
        () = draining.cancelled() => Reason::Drain,
        () = activity.evicted() => Reason::Evicted,
        () = sleep_until(old) => Reason::Age,
        () = idle(&activity, limits.idle_timeout) => Reason::Idle,
    };

    // Leaving. A call may have crossed the GOAWAY, so even an idle connection has a grace; but one
    // without a call, such as that of a peer which answers nothing, is not waited for.
    connection.as_mut().connection().graceful_shutdown();
    let (grace, announced) = match reason {
        // The lifecycle ends this grace, for all connections together.
        Reason::Drain => (Duration::MAX, life.time_left().unwrap_or_default()),
        _ => (limits.age_grace, limits.age_grace),
    };
    calls.ending.announce(announced);
    tokio::select! {
        biased;
        _ = connection.as_mut() => return reason,
        () = closing.cancelled() => {}
        () = without_calls(&activity, NO_CALLS) => {}
        () = sleep(grace) => {}
    }

    // Saying goodbye.
    calls.ending.end();
    tokio::select! {
        biased;
        _ = connection.as_mut() => {}
        () = sleep(GOODBYE) => {}
    }
    reason
}

/// The peer has ended it, or broken a rule of HTTP/2, which hyper has told it.
fn by_peer(ended: Result<(), Box<dyn std::error::Error + Send + Sync>>) -> Reason {
    if let Err(error) = ended {
        debug!(error, "connection broken");
    }
    Reason::Peer
}

/// Ends when the connection has no call, `pause` from now or whenever it is looked at later.
async fn without_calls(activity: &Activity, pause: Duration) {
    loop {
        sleep(pause).await;
        if activity.idle().is_some() {
            return;
        }
    }
}

/// Ends when the connection has had no call for `limit`.
async fn idle(activity: &Activity, limit: Duration) {
    loop {
        let wait = match activity.idle() {
            Some(idle) if idle >= limit => return,
            Some(idle) => limit.saturating_sub(idle),
            // Looked at again later: nobody tells when a call ends, since most end long before it
            // would matter.
            None => limit / 10,
        };
        sleep(wait).await;
    }
}

fn builder(calls: &Arc<Calls>, limits: &Connections, http1: bool) -> auto::Builder<Executor> {
    let mut builder = auto::Builder::new(Executor(Arc::clone(calls)));
    // Every limit by its number: what is not set is often no limit at all.
    builder
        .http2()
        .timer(calls.clock.clone())
        // gRPC has no use for it, and each second of it stays in the table of compressed headers, where
        // every answer is compared with all of them.
        .auto_date_header(false)
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(HEADER_BYTES)
        .max_local_error_reset_streams(PROVOKED_RESETS)
        .max_pending_accept_reset_streams(UNSEEN_RESETS)
        .keep_alive_interval(limits.keepalive_interval)
        .keep_alive_timeout(limits.keepalive_timeout);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.preface_timeout)
        .max_buf_size(HTTP1_BUFFER);
    if http1 { builder } else { builder.http2_only() }
}
