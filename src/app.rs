//! The composition root: puts the service together, runs it, takes it down.
//!
//! [`App::bind`] opens and binds everything, so that whatever can fail does so before anybody is
//! served; [`App::run`] serves until a stop and winds down in order. Probes are answered from the
//! first moment to the last.

mod reload;

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::Context as _;
use prometheus_client::{metrics::info::Info, registry::Registry};
use tracing::{error, info};

pub use self::reload::{Files, Reload};
use crate::{
    auth::{Authenticator, Loaded},
    config::Config,
    engine::Retrieval,
    health::{self, Health},
    knowledge::{Base, Feed, Reloader},
    lifecycle::{Lifecycle, Timeline},
    net, rpc,
    store::{self, KnowledgeLog},
    telemetry::CallSpans,
};

/// Time for the store's last commit.
const STORE_CLOSES: Duration = Duration::from_secs(2);

/// How to start.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Keep a store file that is damaged under another name, and begin a new one.
    pub set_aside_damaged_store: bool,
}

/// The service, bound and open, not yet serving.
#[derive(Debug)]
pub struct App {
    addresses: Addresses,
    life: Lifecycle,
    timeline: Timeline,
    health: Health,
    ops: health::Ops,
    store: Arc<dyn KnowledgeLog>,
    server: net::Server,
    routes: axum::Router,
    tls: Option<net::Tls>,
    reloader: Reloader,
    authenticator: Authenticator,
}

/// Where it listens; with port 0 in the configuration, where that turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// The main port.
    pub server: SocketAddr,
    /// The ops port.
    pub ops: SocketAddr,
}

impl App {
    /// Opens and binds everything. The ops port answers before anything that may take long.
    pub async fn bind(config: Config, life: Lifecycle, options: Options) -> anyhow::Result<Self> {
        let mut registry = Registry::with_prefix("chatbot");
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The version that runs", build);
        let limit = net::fds::raise();
        net::fds::register(limit, &mut registry);

        // Probes first. The metrics are whole once everything is registered. A small limit leaves few
        // descriptors for probes, but some.
        let ops_slots = (limit.soft / 8).clamp(8, 64);
        let health = Health::new(&mut registry);
        let registered: Arc<OnceLock<Registry>> = Arc::default();
        let ops = health::Ops::spawn(
            net::listen(config.ops.address)
                .with_context(|| format!("cannot listen on ops.address {}", config.ops.address))?,
            usize::try_from(ops_slots)?,
            health.clone(),
            scrape(Arc::clone(&registered)),
            life.draining().clone(),
        )
        .context("cannot serve the ops port")?;
        info!(address = %ops.address(), "ops port is open");
        let closing = life.closing().clone();
        life.spawn_support("heartbeat", health.clone().beat(closing));

        // Before anything that takes long, so that a bad file ends the start at once.
        let authenticator = Authenticator::load(&config.auth)?;
        if let Some(Loaded { tokens, keys }) = authenticator.loaded() {
            info!(tokens, keys, "credentials are required");
        } else {
            info!("no credentials are required");
        }

        // Dependencies.
        let (store, knowledge) = (health.dependency("store"), health.dependency("knowledge"));
        let set_aside = options.set_aside_damaged_store;
        let store: Arc<dyn KnowledgeLog> =
            store::open(&config.store, set_aside, store, &life, &mut registry).await?;
        let base = Base::of_path(config.knowledge.path.as_deref());
        let (search, feed, reloader) = Feed::open(base, Arc::clone(&store), &mut registry).await?;
        life.spawn_support("knowledge", feed.run(life.closing().clone()));
        knowledge.up();

        // The main port.
        let listener = net::listen(config.server.address).with_context(|| {
            format!("cannot listen on server.address {}", config.server.address)
        })?;
        let http1 = !config.web.allowed_origins.is_empty();
        let tls = config.tls.as_ref().map(|files| net::Tls::load(files, http1)).transpose()?;
        let limits = &config.server.connections;
        let budget = net::Budget::plan(limit.soft, net::fds::open(), ops_slots, limits.max)?;
        budget.register(&mut registry);
        info!(?budget, "descriptor budget");
        let server = net::Server::new(
            listener,
            budget.connections,
            limits,
            tls.clone(),
            http1,
            &life,
            &mut registry,
        );
        let addresses = Addresses { server: server.address()?, ops: ops.address() };
        let sampled =
            config.telemetry.otlp_endpoint.as_ref().map(|_| config.telemetry.sample_ratio);
        let chatbot = rpc::Chatbot {
            retrieval: Retrieval::new(search.clone(), config.knowledge.min_confidence),
            knowledge: search,
            store: Arc::clone(&store),
            limits: config.limits,
        };
        let layers = rpc::Layers {
            authenticator: authenticator.clone(),
            spans: CallSpans::new(sampled.unwrap_or(0.0)),
            receive_timeout: limits.receive_timeout,
            web: config.web,
        };
        let routes = rpc::routes(
            chatbot,
            health.clone(),
            life.draining().clone(),
            config.server.reflection,
            layers,
            &mut registry,
        )?;
        let _ = registered.set(registry);
        let timeline =
            Timeline { delay: config.server.drain_delay, grace: config.server.drain_grace };
        Ok(Self {
            addresses,
            life,
            timeline,
            health,
            ops,
            store,
            server,
            routes,
            tls,
            reloader,
            authenticator,
        })
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// What can be changed while it runs.
    pub fn reloader(&self) -> Reloader {
        self.reloader.clone()
    }

    /// The certificate that can be replaced while it runs.
    pub fn tls(&self) -> Option<net::Tls> {
        self.tls.clone()
    }

    /// Who may call the main port, to be read again.
    pub fn authenticator(&self) -> Authenticator {
        self.authenticator.clone()
    }

    /// Serves until a stop is asked for, then ends: not ready, drain, close the store, close the ops
    /// port. Takes at most the drain's delay and grace and a few seconds.
    pub async fn run(self) {
        self.life.spawn_service("server", self.server.run(self.routes));
        self.health.started();
        info!(address = %self.addresses.server, "serving");

        self.life.stopping().await;
        self.health.stopping();
        self.life.wind_down(self.timeline).await;
        // Joins the writer's thread after its last commit; a disk that hangs is not waited for.
        let store = self.store;
        let closed = tokio::task::spawn_blocking(move || drop(store));
        if tokio::time::timeout(STORE_CLOSES, closed).await.is_err() {
            error!("the store does not close, its disk hangs");
        }
        let ops = self.ops;
        let _ = tokio::task::spawn_blocking(move || drop(ops)).await;
        info!("stopped");
    }
}

fn scrape(registered: Arc<OnceLock<Registry>>) -> health::Scrape {
    Arc::new(move || {
        let mut text = String::new();
        match registered.get() {
            // Writing to a String cannot fail; a collector that does leaves a short text.
            Some(registry) => drop(prometheus_client::encoding::text::encode(&mut text, registry)),
            None => text.push_str("# EOF\n"),
        }
        text
    })
}
