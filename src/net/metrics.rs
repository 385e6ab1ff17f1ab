//! What the network exports.

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{
        MetricType,
        counter::Counter,
        family::Family,
        gauge::{ConstGauge, Gauge},
    },
    registry::Registry,
};

use super::{
    coalesce::Writes,
    connection::Reason,
    governor::{Crowd, Governor, Refusal},
};

/// Peers that are told apart: those with the most connections. More labels would grow with the world.
const TOP: usize = 10;

type Labels = [(&'static str, &'static str); 1];

/// Counts connections; clones share it.
#[derive(Debug, Clone)]
pub(super) struct Metrics {
    pub(super) opened: Counter,
    closed: Family<Labels, Counter>,
    refused: Family<Labels, Counter>,
    pub(super) handshakes_failed: Counter,
    pub(super) shortages: Counter,
    pub(super) writes: Writes,
}

impl Metrics {
    pub(super) fn new(governor: Governor, registry: &mut Registry) -> Self {
        let metrics = Self {
            opened: Counter::default(),
            closed: Family::default(),
            refused: Family::default(),
            handshakes_failed: Counter::default(),
            shortages: Counter::default(),
            writes: Writes::default(),
        };
        // A counter that begins with its first event hides that event: a rate needs a value before it.
        for reason in Reason::ALL {
            drop(metrics.closed.get_or_create(&[("reason", reason.name())]));
        }
        for refusal in [Refusal::Total, Refusal::Peer] {
            drop(metrics.refused.get_or_create(&[("reason", refusal.name())]));
        }
        let net = registry.sub_registry_with_prefix("net");
        net.register("opened", "Connections that were taken", metrics.opened.clone());
        net.register("closed", "Connections that ended, by reason", metrics.closed.clone());
        net.register("refused", "Connections that were reset, by cap", metrics.refused.clone());
        net.register(
            "tls_handshakes_failed",
            "TLS handshakes that failed or took too long",
            metrics.handshakes_failed.clone(),
        );
        net.register(
            "accept_shortages",
            "Accepts that failed for want of descriptors or memory",
            metrics.shortages.clone(),
        );
        let Writes { written, flushed, put_off } = &metrics.writes;
        net.register("writes", "Writes to connections", written.clone());
        net.register("flushes", "Flushes that had something to write", flushed.clone());
        net.register(
            "flushes_put_off",
            "Turns of the scheduler that flushes were put off by",
            put_off.clone(),
        );
        registry.register_collector(Box::new(Connections(governor)));
        metrics
    }

    pub(super) fn closed(&self, reason: Reason) {
        self.closed.get_or_create(&[("reason", reason.name())]).inc();
    }

    pub(super) fn refused(&self, refusal: Refusal) {
        self.refused.get_or_create(&[("reason", refusal.name())]).inc();
    }
}

impl Refusal {
    /// The name, as metrics have it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::Peer => "peer",
        }
    }
}

/// Looks at the governor at each scrape.
#[derive(Debug)]
struct Connections(Governor);

impl Collector for Connections {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        for (name, help, value) in [
            ("net_connections", "Connections that are open", self.0.connections()),
            (
                "net_peer_connections_limit",
                "Connections that one peer may have, unless it is exempt",
                self.0.most_per_peer(),
            ),
        ] {
            let gauge = ConstGauge::new(value as u64);
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        let help = "Connections of the peers that have the most";
        let mut peers =
            encoder.encode_descriptor("net_peer_connections", help, None, MetricType::Gauge)?;
        for Crowd { peer, connections, exempt } in self.0.top(TOP) {
            let gauge: Gauge = Gauge::default();
            gauge.set(i64::try_from(connections).unwrap_or(i64::MAX));
            let exempt = if exempt { "true" } else { "false" };
            let labels = [("peer", peer.to_string()), ("exempt", exempt.to_owned())];
            gauge.encode(peers.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
