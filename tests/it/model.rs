//! A server that speaks `/v1/chat/completions` as the test plays it: over real HTTP, call by call.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    response::Response,
    routing::post,
};
use http::{HeaderMap, Request, StatusCode, Version};
use http_body_util::BodyExt as _;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, rustls};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};

use crate::support::LONG;

/// The server.
pub(crate) struct Model {
    pub(crate) address: SocketAddr,
    scheme: &'static str,
    calls: mpsc::Receiver<Call>,
    count: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

/// A request that waits for its answer.
pub(crate) struct Call {
    pub(crate) headers: HeaderMap,
    pub(crate) version: Version,
    pub(crate) body: Value,
    respond: oneshot::Sender<Response>,
}

/// A stream of events that is played.
pub(crate) struct Played(mpsc::Sender<io::Result<Bytes>>);

#[derive(Clone)]
struct Shared {
    calls: mpsc::Sender<Call>,
    count: Arc<AtomicUsize>,
}

async fn completions(State(shared): State<Shared>, request: Request<Body>) -> Response {
    shared.count.fetch_add(1, Ordering::SeqCst);
    let (parts, body) = request.into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    let (respond, response) = oneshot::channel();
    let call = Call {
        headers: parts.headers,
        version: parts.version,
        body: serde_json::from_slice(&body).expect("JSON"),
        respond,
    };
    shared.calls.try_send(call).expect("room for a call");
    // One that is never played is never answered.
    match response.await {
        Ok(response) => response,
        Err(_) => std::future::pending().await,
    }
}

impl Model {
    pub(crate) async fn start() -> Self {
        Self::start_with(None).await
    }

    /// A server with a certificate of its own for `localhost`, and the file that makes it trusted.
    pub(crate) async fn start_tls(folder: &Path) -> (Self, PathBuf) {
        let names = vec!["localhost".to_owned()];
        let pair = rcgen::generate_simple_self_signed(names).expect("a certificate");
        let file = folder.join("model.pem");
        std::fs::write(&file, pair.cert.pem()).expect("a file");
        let key = rustls::pki_types::PrivateKeyDer::try_from(pair.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![pair.cert.der().clone()], key.expect("a key"))
            .expect("a pair");
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        (Self::start_with(Some(TlsAcceptor::from(Arc::new(config)))).await, file)
    }

    async fn start_with(tls: Option<TlsAcceptor>) -> Self {
        let (sender, calls) = mpsc::channel(1_000);
        let count = Arc::<AtomicUsize>::default();
        let shared = Shared { calls: sender, count: Arc::clone(&count) };
        let routes =
            Router::new().route("/v1/chat/completions", post(completions)).with_state(shared);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let scheme = if tls.is_some() { "https" } else { "http" };
        let opened = Arc::<AtomicUsize>::default();
        let connections = Arc::clone(&opened);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                opened.fetch_add(1, Ordering::SeqCst);
                let (routes, tls) = (routes.clone(), tls.clone());
                connections.spawn(async move {
                    let service = TowerToHyperService::new(routes);
                    let server = auto::Builder::new(TokioExecutor::new());
                    let _ = match tls {
                        None => server.serve_connection(TokioIo::new(stream), service).await,
                        Some(tls) => {
                            let Ok(stream) = tls.accept(stream).await else { return };
                            server.serve_connection(TokioIo::new(stream), service).await
                        }
                    };
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, scheme, calls, count, connections, _tasks: tasks }
    }

    /// The settings that point an app to it.
    pub(crate) fn settings(&self, more: &[&str]) -> Vec<String> {
        let url = format!("upstream.base_url={}://localhost:{}", self.scheme, self.address.port());
        let more = more.iter().map(|setting| (*setting).to_owned());
        [url, "upstream.model=tiny".to_owned()].into_iter().chain(more).collect()
    }

    pub(crate) async fn next(&mut self) -> Call {
        let next = tokio::time::timeout(LONG, self.calls.recv()).await;
        next.expect("a call in time").expect("a server")
    }

    /// How many connections were opened to it.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// How often it was called.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }
}

impl Call {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// What the messages say, in order.
    pub(crate) fn messages(&self) -> Vec<String> {
        let messages = self.body["messages"].as_array().expect("messages");
        messages
            .iter()
            .map(|message| message["content"].as_str().expect("text").to_owned())
            .collect()
    }

    /// Answers by a status, with what else is in `headers`.
    pub(crate) fn refuse(self, status: u16, headers: &[(&str, &str)], body: &str) {
        let mut response = Response::builder().status(StatusCode::from_u16(status).expect("one"));
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        let _ = self.respond.send(response.body(Body::from(body.to_owned())).expect("a response"));
    }

    /// Answers by a stream of events.
    pub(crate) fn stream(self) -> Played {
        let (sender, frames) = mpsc::channel(1_000);
        let response = Response::builder()
            .header("content-type", "text/event-stream; charset=utf-8")
            .body(Body::from_stream(ReceiverStream::new(frames).then(flushed)));
        let _ = self.respond.send(response.expect("a response"));
        Played(sender)
    }

    /// Does not answer at all; returns when the caller has gone.
    pub(crate) async fn keep_silent(mut self) {
        tokio::time::timeout(LONG, self.respond.closed()).await.expect("it goes");
    }
}

/// A cut takes what has not been written with it, so what was said before goes out first.
async fn flushed(frame: io::Result<Bytes>) -> io::Result<Bytes> {
    if frame.is_err() {
        tokio::task::yield_now().await;
    }
    frame
}

impl Played {
    /// Bytes as they are. The caller may have gone.
    pub(crate) async fn raw(&self, bytes: impl Into<Bytes>) {
        let _ = self.0.send(Ok(bytes.into())).await;
    }

    pub(crate) async fn event(&self, data: &Value) {
        self.raw(format!("data: {data}\n\n")).await;
    }

    pub(crate) async fn say(&self, text: &str) {
        self.event(&json!({"choices": [{"index": 0, "delta": {"content": text}}]})).await;
    }

    pub(crate) async fn finish(&self, reason: &str) {
        let choice = json!({"index": 0, "delta": {}, "finish_reason": reason});
        self.event(&json!({"model": "tiny-2", "choices": [choice]})).await;
    }

    pub(crate) async fn usage(&self, input: u32, output: u32) {
        let usage = json!({"prompt_tokens": input, "completion_tokens": output});
        self.event(&json!({"choices": [], "usage": usage})).await;
    }

    pub(crate) async fn done(self) {
        self.raw("data: [DONE]\n\n").await;
    }

    /// Breaks the connection off.
    pub(crate) async fn cut(self) {
        let _ = self.0.send(Err(io::Error::other("cut"))).await;
    }

    /// Waits until the caller has gone.
    pub(crate) async fn closed(&self) {
        tokio::time::timeout(LONG, self.0.closed()).await.expect("closed in time");
    }

    /// A whole answer.
    pub(crate) async fn answer(self, text: &str) {
        self.say(text).await;
        self.finish("stop").await;
        self.usage(7, 3).await;
        self.done().await;
    }
}
