//! What the store measures, as `store_redis_…`.

use prometheus_client::{
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use super::scripts::Operation;

/// Handles; clones share them.
#[derive(Debug, Clone)]
pub(super) struct Metrics {
    /// By operation, in the order of [`Operation::ALL`].
    commands: [Histogram; Operation::ALL.len()],
    pub(super) reconnects: Counter,
    pub(super) unacknowledged: Counter,
    pub(super) hints: Counter,
    pub(super) subscriptions: Gauge,
}

impl Metrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let commands =
            Family::<[(&'static str, &'static str); 1], Histogram>::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.000_1, 2.0, 15))
            });
        let handles = Operation::ALL
            .map(|operation| commands.get_or_create(&[("operation", operation.name())]).clone());
        let metrics = Self {
            commands: handles,
            reconnects: Counter::default(),
            unacknowledged: Counter::default(),
            hints: Counter::default(),
            subscriptions: Gauge::default(),
        };
        let registry = registry.sub_registry_with_prefix("store_redis");
        registry.register_with_unit(
            "command",
            "Duration of commands, replicas' acknowledgements and failures included",
            Unit::Seconds,
            commands,
        );
        registry.register(
            "reconnects",
            "Connections that replaced a lost one",
            metrics.reconnects.clone(),
        );
        registry.register(
            "unacknowledged",
            "Writes that too few replicas acknowledged in time",
            metrics.unacknowledged.clone(),
        );
        registry.register("hints", "Wake-ups received from other replicas", metrics.hints.clone());
        registry.register(
            "subscriptions",
            "Conversations whose wake-ups this replica receives",
            metrics.subscriptions.clone(),
        );
        metrics
    }

    pub(super) fn command(&self, operation: Operation) -> &Histogram {
        &self.commands[operation as usize]
    }
}
