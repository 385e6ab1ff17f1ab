//! The composition root: puts the service together, runs it, takes it down.
//!
//! [`App::bind`] opens and binds everything, so that whatever can fail does so before anybody is
//! served; [`App::run`] serves until a stop and winds down in order. Probes are answered from the
//! first moment to the last.

mod reload;

use std::{
    fmt,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::Context as _;
use prometheus_client::{metrics::info::Info, registry::Registry};
use tokio::sync::Semaphore;
use tracing::{error, info};

pub use self::reload::{Files, Reload};
use crate::{
    auth::{Authenticator, Loaded},
    config::{Config, DefaultEngine},
    domain::EngineKind,
    engine::{Augmented, Engine, Engines, Generative, Retrieval, openai},
    health::{self, Health},
    knowledge::{Base, Feed, Knowledge, Reloader},
    lifecycle::{Lifecycle, Timeline},
    net, rpc,
    store::{self, KnowledgeLog, Store},
    telemetry::{self, CallSpans},
    turn::{self, Turns},
};

/// Time for the store's last commit.
const STORE_CLOSES: Duration = Duration::from_secs(2);

/// How to start.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Keep a store file that is damaged under another name, and begin a new one.
    pub set_aside_damaged_store: bool,
    /// What answers `ENGINE_GENERATIVE`. Tests script one; without it the engine is not offered.
    pub generative: Option<Arc<dyn Engine>>,
    /// What answers `ENGINE_RETRIEVAL` in place of the knowledge base: benchmarks of everything else
    /// bring a constant.
    pub retrieval: Option<Arc<dyn Engine>>,
    /// The store, in place of the one that the settings name; for the same benchmarks.
    pub store: Option<Arc<dyn Store>>,
}

/// The service, bound and open, not yet serving.
#[derive(Debug)]
pub struct App {
    addresses: Addresses,
    life: Lifecycle,
    timeline: Timeline,
    health: Health,
    ops: health::Ops,
    store: Arc<dyn Store>,
    serving: Serving,
    tls: Option<net::Tls>,
    reloader: Reloader,
    authenticator: Authenticator,
    model_key: Option<openai::Key>,
}

/// The main port's server at work.
struct Serving(Pin<Box<dyn Future<Output = ()> + Send>>);

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serving").finish_non_exhaustive()
    }
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
        let limit = net::fds::raise();
        let mut registry = registry(limit);

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
        let store = open_store(&config, &options, store, &life, &mut registry).await?;
        let base = Base::of_path(config.knowledge.path.as_deref());
        let log: Arc<dyn KnowledgeLog> = Arc::clone(&store) as _;
        let (search, feed, reloader) = Feed::open(base, log, &mut registry).await?;
        life.spawn_support("knowledge", feed.run(life.closing().clone()));
        knowledge.up();

        // The main port.
        let listener = net::listen(config.server.address).with_context(|| {
            format!("cannot listen on server.address {}", config.server.address)
        })?;
        let http1 = !config.web.allowed_origins.is_empty();
        let tls = config.tls.as_ref().map(|files| net::Tls::load(files, http1)).transpose()?;
        let limits = &config.server.connections;
        let upstream = config.upstream.as_ref().map_or(0, |_| config.engine.max_generations);
        let budget = net::Budget::plan(
            limit.soft,
            net::fds::open(),
            ops_slots,
            u64::try_from(upstream)?,
            limits.max,
        )?;
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
        let model = config.upstream.as_ref();
        let model = model.map(|config| openai::Client::new(config, &mut registry)).transpose()?;
        let model_key = model.as_ref().and_then(openai::Client::key);
        let engines = engines(&config, options, model, &search);
        let chatbot = chatbot(&config, engines, &store, search, &life, &mut registry);
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
            serving: Serving(Box::pin(server.run(routes))),
            tls,
            reloader,
            authenticator,
            model_key,
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

    /// The key of the model's server, to be read again.
    pub fn model_key(&self) -> Option<openai::Key> {
        self.model_key.clone()
    }

    /// Serves until a stop is asked for, then ends: not ready, drain, close the store, close the ops
    /// port. Takes at most the drain's delay and grace and a few seconds.
    pub async fn run(self) {
        self.life.spawn_service("server", self.serving.0);
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

/// The metrics of the process itself, to which all others are added.
fn registry(limit: net::fds::Limit) -> Registry {
    let mut registry = Registry::with_prefix("chatbot");
    let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("build", "The version that runs", build);
    net::fds::register(limit, &mut registry);
    telemetry::process::register(&mut registry);
    registry
}

/// The store of the settings, or the one that was given.
async fn open_store(
    config: &Config,
    options: &Options,
    dependency: health::Dependency,
    life: &Lifecycle,
    registry: &mut Registry,
) -> Result<Arc<dyn Store>, store::Error> {
    if let Some(given) = &options.store {
        dependency.up();
        return Ok(Arc::clone(given));
    }
    let set_aside = options.set_aside_damaged_store;
    store::open(&config.store, set_aside, dependency, life, registry).await
}

/// The engines: retrieval in any case, those with a model where there is one, or a test plays it.
fn engines(
    config: &Config,
    options: Options,
    model: Option<openai::Client>,
    knowledge: &Knowledge,
) -> Engines {
    let min_confidence = config.knowledge.min_confidence;
    let generative = model.clone().map(|model| {
        let engine = Generative::new(model, config.engine.system_prompt.clone());
        Arc::new(engine) as Arc<dyn Engine>
    });
    let augmented = model.map(|model| {
        let engine =
            Augmented::new(model, knowledge.clone(), min_confidence, config.engine.clone());
        Arc::new(engine) as Arc<dyn Engine>
    });
    Engines {
        default: match config.engine.default {
            DefaultEngine::Retrieval => EngineKind::Retrieval,
            DefaultEngine::Generative => EngineKind::Generative,
            DefaultEngine::Augmented => EngineKind::Augmented,
        },
        retrieval: options
            .retrieval
            .unwrap_or_else(|| Arc::new(Retrieval::new(knowledge.clone(), min_confidence))),
        generative: options.generative.or(generative),
        augmented,
    }
}

/// What the RPCs are made of.
fn chatbot(
    config: &Config,
    engines: Engines,
    store: &Arc<dyn Store>,
    knowledge: Knowledge,
    life: &Lifecycle,
    registry: &mut Registry,
) -> rpc::Chatbot {
    let terms = turn::Terms {
        lease: config.store.lease,
        detach_grace: config.store.detach_grace,
        max_turn_time: config.engine.max_turn_time,
        quota: turn::Quota {
            slots: config.engine.max_generations,
            queue_time: config.engine.queue_time,
            turns_per_second: config.limits.turns_per_second,
            burst: config.limits.burst,
        },
    };
    let turns = Turns::new(Arc::clone(store) as _, engines, terms, life.clone(), registry);
    rpc::Chatbot {
        turns,
        knowledge,
        store: Arc::clone(store) as _,
        join_timeout: config.server.connections.receive_timeout,
        heartbeat_interval: config.server.heartbeat_interval,
        joined_streams: Arc::new(Semaphore::new(config.limits.joined_streams)),
        limits: config.limits.clone(),
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
