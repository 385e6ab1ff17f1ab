//! The ops listener: probes and scrapes on a port, a thread and a runtime of their own.
//!
//! A server whose worker threads are all busy must still answer the kubelet within its one second,
//! or it is restarted for being popular. So nothing here touches the main runtime: the answers come
//! from the registry, the metrics from atomics. HTTP/1.1 (people, scrapers) and gRPC over HTTP/2 with
//! prior knowledge (the kubelet) share the port. No TLS, no credentials, no access log.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use axum::{Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::{AbortHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tower::{Service as _, ServiceExt as _};
use tracing::{debug, error, warn};

use super::{Health, Service, grpc};

/// Time for a new connection to send its first request; a silent peer gives its slot back after it.
const FIRST_REQUEST: Duration = Duration::from_secs(5);
/// A connection's longest life. Probes need milliseconds; a scraper just connects again.
const LONGEST: Duration = Duration::from_hours(1);
/// Pause after a failed accept, such as one for want of descriptors: without it the loop would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Writes all metrics in the OpenMetrics text format.
pub type Scrape = Arc<dyn Fn() -> String + Send + Sync>;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The running listener. It serves until it is dropped or closed, that is past the drain.
#[derive(Debug)]
pub struct Ops {
    address: SocketAddr,
    closing: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Ops {
    /// Starts the thread that serves `listener`, with at most `slots` connections at a time: a kubelet
    /// and a few scrapers need a handful, and a flood must not take more descriptors than the budget
    /// has for this port. `draining` ends open Watch streams only.
    pub fn spawn(
        listener: std::net::TcpListener,
        slots: usize,
        health: Health,
        scrape: Scrape,
        draining: CancellationToken,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _context = runtime.enter();
            TcpListener::from_std(listener)?
        };
        let closing = CancellationToken::new();
        let closed = closing.clone();
        let run = async move {
            tokio::select! {
                () = serve(listener, slots, health.clone(), scrape, draining) => {}
                () = health.watch_heart() => {}
                () = closed.cancelled() => {}
            }
        };
        let thread = std::thread::Builder::new().name("ops".to_owned()).spawn(move || {
            runtime.block_on(run);
            runtime.shutdown_background();
        })?;
        Ok(Self { address, closing, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Ops {
    fn drop(&mut self) {
        self.closing.cancel();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            error!("the ops thread panicked");
        }
    }
}

async fn serve(
    listener: TcpListener,
    most: usize,
    health: Health,
    scrape: Scrape,
    draining: CancellationToken,
) {
    let routes = routes(health, scrape, draining);
    let slots = Arc::new(Semaphore::new(most));
    let mut connections = JoinSet::new();
    let mut open = Open::default();
    loop {
        while connections.try_join_next().is_some() {}
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "ops port cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let slot = if let Ok(slot) = Arc::clone(&slots).try_acquire_owned() {
            slot
        } else {
            open.end_longest_quiet();
            // The task of the one that has to go gives its slot back when it runs next.
            match Arc::clone(&slots).acquire_owned().await {
                Ok(slot) => slot,
                Err(_) => return,
            }
        };
        let (routes, asked) = (routes.clone(), Asked::never());
        let connection = connections.spawn({
            let asked = asked.clone();
            async move {
                serve_connection(stream, peer, routes, asked).await;
                drop(slot);
            }
        });
        open.add(asked, connection);
    }
}

/// When a connection was last asked something, in milliseconds since it was accepted; it begins with
/// nothing.
#[derive(Debug, Clone)]
struct Asked {
    accepted: Instant,
    last: Arc<AtomicU64>,
}

impl Asked {
    fn never() -> Self {
        Self { accepted: Instant::now(), last: Arc::default() }
    }

    fn now(&self) {
        let since = u64::try_from(self.accepted.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(since.max(1), Ordering::Relaxed);
    }

    fn has_been(&self) -> bool {
        self.last.load(Ordering::Relaxed) > 0
    }

    fn last(&self) -> Instant {
        self.accepted + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }
}

/// The open connections. When there is no slot left, the one that has asked nothing for the longest
/// time has to go: a probe is a new connection that asks at once, and must not wait for those who
/// never ask, or asked once and stay.
#[derive(Debug, Default)]
struct Open(Vec<(Asked, AbortHandle)>);

impl Open {
    fn add(&mut self, asked: Asked, connection: AbortHandle) {
        self.0.retain(|(_, connection)| !connection.is_finished());
        self.0.push((asked, connection));
    }

    fn end_longest_quiet(&mut self) {
        self.0.retain(|(_, connection)| !connection.is_finished());
        let quiet = self.0.iter().enumerate().min_by_key(|(_, (asked, _))| asked.last());
        if let Some(index) = quiet.map(|(index, _)| index) {
            let (_, connection) = self.0.swap_remove(index);
            debug!("ops port has no slot left, ending the longest quiet connection");
            connection.abort();
        }
    }
}

async fn serve_connection(stream: TcpStream, peer: SocketAddr, routes: Router, asked: Asked) {
    let _ = stream.set_nodelay(true);
    let service = tower::service_fn({
        let asked = asked.clone();
        move |request: http::Request<hyper::body::Incoming>| {
            asked.now();
            let mut routes = routes.clone();
            async move { routes.as_service().ready().await?.call(request).await }
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(FIRST_REQUEST);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(16)
        .max_header_list_size(16 * 1024)
        .max_local_error_reset_streams(64)
        .max_pending_accept_reset_streams(20)
        .keep_alive_interval(Duration::from_secs(20));
    let connection =
        builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    let silent = async {
        tokio::time::sleep(FIRST_REQUEST).await;
        while asked.has_been() {
            std::future::pending::<()>().await;
        }
    };
    // Probers close abruptly; that is no event.
    tokio::select! {
        ended = connection => debug!(%peer, error = ended.err(), "ops connection ended"),
        () = silent => debug!(%peer, "ops connection was silent"),
        () = tokio::time::sleep(LONGEST) => debug!(%peer, "ops connection is old"),
    }
}

fn routes(health: Health, scrape: Scrape, draining: CancellationToken) -> Router {
    let http = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(health.clone())
        .merge(Router::new().route("/metrics", get(metrics)).with_state(scrape));
    let grpc = Routes::new(grpc::service(health, draining)).into_axum_router();
    // People get a 404; a gRPC client takes that for UNIMPLEMENTED, as it should.
    grpc.merge(http).fallback(|| std::future::ready(StatusCode::NOT_FOUND))
}

/// Answers whether the main runtime makes progress.
async fn livez(State(health): State<Health>) -> impl IntoResponse {
    if health.state().serving(Service::Liveness) {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the main runtime makes no progress\n")
    }
}

/// Answers whether requests are welcome, and names what is missing.
async fn readyz(State(health): State<Health>) -> impl IntoResponse {
    let waiting_for = health.state().waiting_for();
    if waiting_for.is_empty() {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for: {}\n", waiting_for.join(", ")))
    }
}

async fn metrics(State(scrape): State<Scrape>) -> impl IntoResponse {
    ([(http::header::CONTENT_TYPE, OPENMETRICS)], scrape())
}
