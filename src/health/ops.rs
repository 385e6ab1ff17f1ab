//! The ops listener: probes and scrapes on a port, a thread and a runtime of their own.
//!
//! A server whose worker threads are all busy must still answer the kubelet within its one second,
//! or it is restarted for being popular. So nothing here touches the main runtime: the answers come
//! from the registry, the metrics from atomics. HTTP/1.1 (people, scrapers) and gRPC over HTTP/2 with
//! prior knowledge (the kubelet) share the port. No TLS, no credentials, no access log.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
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
    let mut silent = Silent::default();
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
        let slot = match Arc::clone(&slots).try_acquire_owned() {
            Ok(slot) => slot,
            Err(_) if silent.end_oldest() => {
                // Its task gives the slot back when it runs next.
                match Arc::clone(&slots).acquire_owned().await {
                    Ok(slot) => slot,
                    Err(_) => return,
                }
            }
            Err(_) => {
                warn!(%peer, slots = most, "ops port has no slot left, dropping the new connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (routes, asked) = (routes.clone(), Arc::new(AtomicBool::new(false)));
        let connection = connections.spawn({
            let asked = Arc::clone(&asked);
            async move {
                serve_connection(stream, peer, routes, asked).await;
                drop(slot);
            }
        });
        silent.add(asked, connection);
    }
}

/// Connections that have not asked for anything yet, oldest first. When there is no slot left the
/// oldest has to go: a probe asks at once, and must not wait for those who never do.
#[derive(Debug, Default)]
struct Silent(VecDeque<(Arc<AtomicBool>, AbortHandle)>);

impl Silent {
    fn add(&mut self, asked: Arc<AtomicBool>, connection: AbortHandle) {
        self.0.retain(|(asked, connection)| {
            !asked.load(Ordering::Relaxed) && !connection.is_finished()
        });
        self.0.push_back((asked, connection));
    }

    /// Ends the oldest; false if there is none.
    fn end_oldest(&mut self) -> bool {
        while let Some((asked, connection)) = self.0.pop_front() {
            if !asked.load(Ordering::Relaxed) && !connection.is_finished() {
                connection.abort();
                return true;
            }
        }
        false
    }
}

async fn serve_connection(
    stream: TcpStream,
    peer: SocketAddr,
    routes: Router,
    asked: Arc<AtomicBool>,
) {
    let _ = stream.set_nodelay(true);
    let service = tower::service_fn({
        let asked = Arc::clone(&asked);
        move |request: http::Request<hyper::body::Incoming>| {
            asked.store(true, Ordering::Relaxed);
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
        while asked.load(Ordering::Relaxed) {
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
