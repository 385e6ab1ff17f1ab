//! The descriptor budget: how many connections the limit leaves room for.
//!
//! Running into EMFILE hurts more than the next connection: a store that reopens its file, a
//! certificate that is reloaded, a name that is looked up all need a descriptor. So the number of
//! connections is planned from what is left, every term of the plan is exported, and a limit that
//! leaves too little room ends the start with an explanation.

use prometheus_client::{metrics::gauge::Gauge, registry::Registry};

/// Descriptors that the store opens beyond those that are open at the start: its file, once more.
const STORE: u64 = 2;
/// The fewest connections that are worth a start.
const FLOOR: u64 = 8;

/// The plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// The soft limit.
    pub limit: u64,
    /// Open at the start.
    pub open: u64,
    /// For the store.
    pub store: u64,
    /// For the model's server: a connection for each generation.
    pub upstream: u64,
    /// For probes and scrapers.
    pub ops: u64,
    /// For everything else: files that are read again, names that are looked up, spans that leave.
    pub reserve: u64,
    /// What is left for connections, or less if less is configured.
    pub connections: u64,
}

/// The limit is too low.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "the file descriptor limit of {limit} leaves room for {left} connections ({open} are open, \
     {kept} are kept for other uses), which is fewer than {FLOOR}; raise the hard limit (ulimit -Hn)"
)]
pub struct TooLow {
    limit: u64,
    open: u64,
    kept: u64,
    left: u64,
}

impl Budget {
    /// Plans with `limit` descriptors, of which `open` are open, and of which the ops port takes at most
    /// `ops` and the model's server at most `upstream`.
    pub fn plan(
        limit: u64,
        open: u64,
        ops: u64,
        upstream: u64,
        configured: Option<u32>,
    ) -> Result<Self, TooLow> {
        // An eighth, within bounds: a small limit is small for a reason, a large one needs no more.
        let reserve = (limit / 8).clamp(8, 64);
        let kept = STORE + ops + upstream + reserve;
        let left = limit.saturating_sub(open + kept);
        if left < FLOOR {
            return Err(TooLow { limit, open, kept, left });
        }
        let connections = configured.map_or(left, |configured| left.min(configured.into()));
        Ok(Self { limit, open, store: STORE, upstream, ops, reserve, connections })
    }

    /// Exports every term.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("net_fds_budget");
        for (name, help, value) in [
            ("open", "Descriptors open at start", self.open),
            ("store", "Descriptors kept for the store", self.store),
            ("upstream", "Descriptors kept for the model's server", self.upstream),
            ("ops", "Descriptors kept for the ops port", self.ops),
            ("reserve", "Descriptors kept for other uses", self.reserve),
            ("connections", "Connections that there may be", self.connections),
        ] {
            let gauge: Gauge = Gauge::default();
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
            registry.register(name, help, gauge);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_for_connections() {
        let budget = Budget::plan(1024, 20, 64, 0, None).expect("enough");
        assert_eq!(budget.connections, 1024 - 20 - 64 - 64 - 2);
        let spent = budget.open + budget.store + budget.ops + budget.reserve + budget.connections;
        assert_eq!(spent, budget.limit);
    }

    #[test]
    fn the_setting_lowers_the_number_and_cannot_raise_it() {
        let planned =
            |configured| Budget::plan(1024, 20, 64, 0, configured).expect("enough").connections;
        assert_eq!(planned(Some(100)), 100);
        assert_eq!(planned(Some(1_000_000)), planned(None));
    }

    #[test]
    fn a_small_limit_is_enough_and_a_tiny_one_is_refused_with_its_terms() {
        assert!(Budget::plan(64, 20, 8, 0, None).expect("enough").connections >= FLOOR);
        let refused = Budget::plan(40, 20, 8, 0, None).expect_err("too low").to_string();
        assert!(
            refused.contains("limit of 40 leaves room for 2 connections (20 are open"),
            "{refused}"
        );
    }
}
