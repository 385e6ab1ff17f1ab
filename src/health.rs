//! Health: one registry, seen by the kubelet over gRPC, by people over HTTP, and by itself over
//! time.
//!
//! Readiness is computed from named dependencies that report their own state when it changes; no
//! probe ever pings anything, so a probe is cheap and cannot make an overload worse. Liveness is the
//! main runtime's heartbeat and nothing else: restarting a pod does not bring its database back.

mod grpc;
mod ops;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use prometheus_client::{
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use self::{
    grpc::service,
    ops::{Ops, Scrape},
};
use crate::pb;

/// Without a heartbeat for this long the main runtime is stuck. The kubelet adds its own threshold.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(10);
/// How often the heart beats, and how often it is looked at.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// A name that can be asked for, as the comments of `health.proto` explain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// The server as a whole; the same as readiness.
    Server,
    /// `chatbot.v1.Chatbot`; the same as readiness.
    Chatbot,
    /// The main runtime makes progress.
    Liveness,
    /// Every dependency is there and no stop has begun.
    Readiness,
    /// Start-up is over.
    Startup,
}

impl Service {
    /// Every service.
    pub const ALL: [Self; 5] =
        [Self::Server, Self::Chatbot, Self::Liveness, Self::Readiness, Self::Startup];

    /// The name as the protocol has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Server => "",
            Self::Chatbot => pb::CHATBOT_SERVICE,
            Self::Liveness => "liveness",
            Self::Readiness => "readiness",
            Self::Startup => "startup",
        }
    }

    /// The service of this name.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|service| service.name() == name)
    }
}

/// What is known about the server's health; clones share it.
#[derive(Debug, Clone)]
pub struct Health(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: watch::Sender<State>,
    /// When the heart last beat, in milliseconds since `born`.
    heartbeat: AtomicU64,
    born: Instant,
    ready_gauge: Gauge,
    dependency_gauges: Family<[(&'static str, &'static str); 1], Gauge>,
}

/// The state that all statuses are computed from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    started: bool,
    stopping: bool,
    live: bool,
    missing: BTreeSet<&'static str>,
}

impl State {
    /// Whether `service` is SERVING.
    pub fn serving(&self, service: Service) -> bool {
        match service {
            Service::Liveness => self.live,
            Service::Startup => self.started,
            Service::Server | Service::Chatbot | Service::Readiness => {
                self.waiting_for().is_empty()
            }
        }
    }

    /// What stands between the server and readiness, by name; empty if it is ready.
    pub fn waiting_for(&self) -> Vec<&'static str> {
        let phase = if self.stopping {
            Some("stopping")
        } else if !self.started {
            Some("starting")
        } else {
            None
        };
        phase.into_iter().chain(self.missing.iter().copied()).collect()
    }
}

impl Health {
    /// A server that is starting and knows of no dependency yet.
    pub fn new(registry: &mut Registry) -> Self {
        let state = State { started: false, stopping: false, live: true, missing: BTreeSet::new() };
        let ready_gauge = Gauge::default();
        let dependency_gauges = Family::default();
        let registry = registry.sub_registry_with_prefix("health");
        registry.register("ready", "1 if readiness is SERVING", ready_gauge.clone());
        registry.register(
            "dependency_up",
            "1 if the dependency is there",
            dependency_gauges.clone(),
        );
        Self(Arc::new(Inner {
            state: watch::Sender::new(state),
            heartbeat: AtomicU64::new(0),
            born: Instant::now(),
            ready_gauge,
            dependency_gauges,
        }))
    }

    /// Adds a dependency that is missing until it says otherwise.
    pub fn dependency(&self, name: &'static str) -> Dependency {
        let dependency = Dependency { health: self.clone(), name };
        self.change(|state| {
            state.missing.insert(name);
        });
        self.0.dependency_gauges.get_or_create(&[("dependency", name)]).set(0);
        dependency
    }

    /// Start-up is over.
    pub fn started(&self) {
        self.change(|state| state.started = true);
    }

    /// A stop has begun: not ready any more, for good.
    pub fn stopping(&self) {
        self.change(|state| state.stopping = true);
    }

    /// The state now.
    pub fn state(&self) -> State {
        self.0.state.borrow().clone()
    }

    /// The state now and every change of it.
    pub fn watch(&self) -> watch::Receiver<State> {
        self.0.state.subscribe()
    }

    fn change(&self, apply: impl FnOnce(&mut State)) {
        self.0.state.send_if_modified(|state| {
            let before = state.clone();
            apply(state);
            self.0.ready_gauge.set(state.serving(Service::Readiness).into());
            *state != before
        });
    }

    /// Beats until `closing` is cancelled; run it on the main runtime, whose progress it proves.
    pub async fn beat(self, closing: CancellationToken) {
        let mut ticks = tokio::time::interval(HEARTBEAT);
        loop {
            tokio::select! {
                () = closing.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let now = u64::try_from(self.0.born.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.0.heartbeat.store(now, Ordering::Relaxed);
        }
    }

    /// Looks after the heart; run it anywhere but on the main runtime.
    async fn watch_heart(self) {
        let mut ticks = tokio::time::interval(HEARTBEAT);
        loop {
            ticks.tick().await;
            self.examine(self.0.born.elapsed());
        }
    }

    fn examine(&self, now: Duration) {
        let beat = Duration::from_millis(self.0.heartbeat.load(Ordering::Relaxed));
        let silence = now.saturating_sub(beat);
        let live = silence < HEARTBEAT_LIMIT;
        if live != self.state().live {
            let silence_seconds = silence.as_secs_f64();
            if live {
                info!("the main runtime makes progress again");
            } else {
                warn!(
                    silence_seconds,
                    "the main runtime makes no progress, liveness is NOT_SERVING"
                );
            }
            self.change(|state| state.live = live);
        }
    }
}

/// Something that the server cannot do without. It reports its own state.
#[derive(Debug, Clone)]
pub struct Dependency {
    health: Health,
    name: &'static str,
}

impl Dependency {
    /// It is there.
    pub fn up(&self) {
        self.set(true);
    }

    /// It is missing.
    pub fn down(&self) {
        self.set(false);
    }

    fn set(&self, up: bool) {
        let was_up = !self.health.state().missing.contains(self.name);
        self.health.change(|state| {
            if up {
                state.missing.remove(self.name);
            } else {
                state.missing.insert(self.name);
            }
        });
        self.health.0.dependency_gauges.get_or_create(&[("dependency", self.name)]).set(up.into());
        if up != was_up {
            let waiting_for = self.health.state().waiting_for().join(", ");
            if up {
                info!(dependency = self.name, waiting_for, "dependency is up");
            } else {
                warn!(dependency = self.name, waiting_for, "dependency is down");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health() -> Health {
        Health::new(&mut Registry::default())
    }

    #[test]
    fn readiness_names_what_is_missing() {
        let health = health();
        let (store, knowledge) = (health.dependency("store"), health.dependency("knowledge"));
        assert_eq!(health.state().waiting_for(), ["starting", "knowledge", "store"]);
        store.up();
        health.started();
        assert_eq!(health.state().waiting_for(), ["knowledge"]);
        assert!(!health.state().serving(Service::Readiness));
        knowledge.up();
        for service in Service::ALL {
            assert!(health.state().serving(service), "{service:?}");
        }
    }

    #[test]
    fn a_dependency_that_is_lost_takes_readiness_but_not_liveness() {
        let health = health();
        let store = health.dependency("store");
        store.up();
        health.started();
        store.down();
        let state = health.state();
        assert!(!state.serving(Service::Server));
        assert!(!state.serving(Service::Chatbot));
        assert!(state.serving(Service::Liveness));
        assert!(state.serving(Service::Startup));
    }

    #[test]
    fn a_stop_takes_readiness_but_not_liveness() {
        let health = health();
        health.started();
        health.stopping();
        assert_eq!(health.state().waiting_for(), ["stopping"]);
        assert!(health.state().serving(Service::Liveness));
        assert!(health.state().serving(Service::Startup));
    }

    #[test]
    fn a_heart_that_stops_takes_liveness_and_one_that_beats_again_returns_it() {
        let health = health();
        health.examine(Duration::from_millis(9_999));
        assert!(health.state().serving(Service::Liveness));
        health.examine(HEARTBEAT_LIMIT);
        assert!(!health.state().serving(Service::Liveness));
        health.0.heartbeat.store(9_000, Ordering::Relaxed);
        health.examine(HEARTBEAT_LIMIT);
        assert!(health.state().serving(Service::Liveness));
    }
}
