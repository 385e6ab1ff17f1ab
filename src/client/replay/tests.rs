//! Against peers that speak HTTP/2 and do one thing each: the errors are those that a real channel gives,
//! since nobody else can make them.

use std::net::SocketAddr;

use h2::{Reason, server::SendResponse};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tonic::transport::{Channel, Endpoint};

use super::*;
use crate::pb::chatbot::v1::{AskRequest, RankAnswersRequest, chatbot_client::ChatbotClient};

type Connection = h2::server::Connection<TcpStream, bytes::Bytes>;
type Answer = SendResponse<bytes::Bytes>;

/// A peer that does `deed` with the first request of its first connection.
struct Peer {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Peer {
    async fn new<F: Future<Output = ()> + Send + 'static>(
        deed: impl FnOnce(Connection, Answer) -> F + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (socket, _) = listener.accept().await.expect("a connection");
            let mut builder = h2::server::Builder::new();
            builder.max_concurrent_streams(1);
            let mut connection = builder.handshake(socket).await.expect("HTTP/2");
            let (_, answer) = connection.accept().await.expect("a request").expect("a request");
            deed(connection, answer).await;
        });
        Self { address, _tasks: tasks }
    }

    fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address));
        endpoint.expect("an address").connect_lazy()
    }
}

async fn drive(mut connection: Connection) {
    // Until the client goes.
    while connection.accept().await.is_some() {}
}

async fn ask(channel: Channel) -> Status {
    ChatbotClient::new(channel).ask(AskRequest::default()).await.expect_err("no answer")
}

/// The fate of a call to a peer that does `deed`.
async fn fate<F: Future<Output = ()> + Send + 'static>(
    deed: impl FnOnce(Connection, Answer) -> F + Send + 'static,
) -> Fate {
    let peer = Peer::new(deed).await;
    let status = ask(peer.channel()).await;
    let fate = Fate::of(&status);
    assert!(status.source().is_some() || fate == Fate::Answered, "{status:?}");
    fate
}

#[tokio::test]
async fn nobody_there_is_not_connected() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    let status = ask(endpoint.connect_lazy()).await;
    assert_eq!((Fate::of(&status), status.code()), (Fate::NotConnected, Code::Unavailable));
}

#[tokio::test]
async fn a_refused_stream_was_not_processed() {
    let refused = fate(|connection, mut answer| async move {
        answer.send_reset(Reason::REFUSED_STREAM);
        drive(connection).await;
    });
    assert_eq!(refused.await, Fate::NotProcessed);
}

#[tokio::test]
async fn a_goaway_that_leaves_the_request_out_is_not_processed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let peer = async {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (mut socket, _) = listener.accept().await.expect("a connection");
        // SETTINGS; then, once the request is there, GOAWAY with the last stream 0.
        socket.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.expect("written");
        let mut seen = Vec::new();
        // The preface, then frames; that of the headers has type 1.
        while !has_headers(&seen) {
            let read = socket.read_buf(&mut seen).await.expect("bytes");
            assert!(read > 0);
        }
        let goaway = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        socket.write_all(&goaway).await.expect("written");
        let _ = socket.read_to_end(&mut seen).await;
    };
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    let (status, ()) = tokio::join!(ask(endpoint.connect_lazy()), peer);
    assert_eq!(Fate::of(&status), Fate::NotProcessed, "{status:?}");
}

fn has_headers(seen: &[u8]) -> bool {
    let mut frames = seen.get(24..).unwrap_or_default();
    while let [a, b, c, kind, ..] = frames {
        if *kind == 1 {
            return true;
        }
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        frames = frames.get(9 + length..).unwrap_or_default();
    }
    false
}

#[tokio::test]
async fn other_resets_and_lost_connections_are_ambiguous() {
    for reason in [Reason::INTERNAL_ERROR, Reason::CANCEL, Reason::ENHANCE_YOUR_CALM] {
        let reset = fate(move |connection, mut answer| async move {
            answer.send_reset(reason);
            drive(connection).await;
        });
        assert_eq!(reset.await, Fate::Ambiguous, "{reason}");
    }
    assert_eq!(fate(|connection, _| async move { drop(connection) }).await, Fate::Ambiguous);
}

#[tokio::test]
async fn what_never_left_is_unsent() {
    let (seen, was_seen) = tokio::sync::oneshot::channel::<()>();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let peer = Peer::new(|connection, answer| async move {
        // Dropped, it would be a reset.
        let _held = answer;
        let _ = seen.send(());
        // One stream at a time, so that further requests stay with the client.
        tokio::select! {
            () = drive(connection) => {}
            _ = ended => {}
        }
    });
    let channel = peer.await;
    let client = channel.channel();
    let mut calls = JoinSet::new();
    let first = client.clone();
    calls.spawn(async move { ask(first).await });
    was_seen.await.expect("the first request");
    for _ in 0..5 {
        let client = client.clone();
        calls.spawn(async move { ask(client).await });
    }
    // Until they are all in the queue.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    end.send(()).expect("a peer");
    let fates: Vec<_> = calls.join_all().await.iter().map(Fate::of).collect();
    let count = |fate| fates.iter().filter(|other| **other == fate).count();
    assert!(count(Fate::Unsent) >= 1, "{fates:?}");
    assert!(count(Fate::Ambiguous) >= 1, "the first was sent: {fates:?}");
    assert_eq!(count(Fate::Answered), 0, "{fates:?}");
}

#[tokio::test]
async fn a_stream_that_is_cut_in_the_middle_is_ambiguous() {
    let (cut, to_cut) = tokio::sync::oneshot::channel::<()>();
    let peer = Peer::new(|mut connection, mut answer| async move {
        let response = http::Response::builder().header("content-type", "application/grpc");
        let response = response.body(()).expect("a response");
        let _body = answer.send_response(response, false).expect("headers");
        tokio::select! {
            _ = connection.accept() => {}
            _ = to_cut => {}
        }
    });
    let peer = peer.await;
    let mut client = ChatbotClient::new(peer.channel());
    let stream = client.rank_answers(RankAnswersRequest::default()).await.expect("a stream");
    cut.send(()).expect("a peer");
    let status = stream.into_inner().message().await.expect_err("cut");
    assert_eq!(Fate::of(&status), Fate::Ambiguous, "{status:?}");
}

#[tokio::test]
async fn what_the_server_says_was_answered() {
    // A response of nothing but trailers.
    let answered = fate(|connection, mut answer| async move {
        let response = http::Response::builder()
            .header("content-type", "application/grpc")
            .header("grpc-status", "14")
            .body(());
        answer.send_response(response.expect("a response"), true).expect("sent");
        drive(connection).await;
    });
    assert_eq!(answered.await, Fate::Answered);
    // A cancellation that the server tells is not a request that was never written.
    assert_eq!(Fate::of(&Status::cancelled("by the server")), Fate::Answered);
    assert_eq!(Fate::of(&Status::unknown("by the server")), Fate::Answered);
}

#[tokio::test]
async fn the_callers_own_limit_is_no_loss() {
    let (_end, ended) = tokio::sync::oneshot::channel::<()>();
    let peer = Peer::new(|connection, answer| async move {
        let _held = answer;
        tokio::select! {
            () = drive(connection) => {}
            _ = ended => {}
        }
    });
    let peer = peer.await;
    let mut request = tonic::Request::new(AskRequest::default());
    request.set_timeout(std::time::Duration::from_millis(50));
    let status = ChatbotClient::new(peer.channel()).ask(request).await.expect_err("too late");
    assert!(!Fate::of(&status).allows_replay(true), "{status:?}");
}

#[test]
fn only_what_was_not_seen_is_replayed_without_a_promise() {
    for (fate, blind, idempotent) in [
        (Fate::NotConnected, true, true),
        (Fate::Unsent, true, true),
        (Fate::NotProcessed, true, true),
        (Fate::Ambiguous, false, true),
        (Fate::Answered, false, false),
    ] {
        assert_eq!((fate.allows_replay(false), fate.allows_replay(true)), (blind, idempotent));
    }
}
