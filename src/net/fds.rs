//! File descriptors: the limit, raised and told.
//!
//! One HTTP/2 client is one descriptor. Container runtimes start processes with a soft limit of 1024
//! since containerd 2.0 dropped its own (containerd issue 8924), which caps clients near a thousand;
//! there is no pod field for it (Kubernetes issue 3595). Go's runtime raises the soft limit by
//! itself, Rust's does not, so it is done here, first thing.

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::gauge::ConstGauge,
    registry::Registry,
};
use rlimit::Resource;
use tracing::{info, warn};

/// Most descriptors that are asked for. The hard limit can be a thousand million, and the kernel's
/// table grows with what is used; half a million connections are more than one process will serve.
const CEILING: u64 = 524_288;

/// The error number of "too many open files", as on every Linux.
const EMFILE: i32 = 24;

/// What became of the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// The soft limit that the process was started with.
    pub initial: u64,
    /// The soft limit now.
    pub soft: u64,
    /// The hard limit.
    pub hard: u64,
}

/// Raises the soft limit to the hard one. A refusal is logged, never fatal: fewer connections are
/// better than none.
pub fn raise() -> Limit {
    let (initial, hard) = match Resource::NOFILE.get() {
        Ok(limits) => limits,
        Err(error) => {
            warn!(%error, "cannot read RLIMIT_NOFILE");
            (0, 0)
        }
    };
    let wanted = hard.min(CEILING);
    if wanted > initial
        && let Err(error) = Resource::NOFILE.set(wanted, hard)
    {
        warn!(%error, initial, wanted, "cannot raise RLIMIT_NOFILE");
    }
    let soft = Resource::NOFILE.get_soft().unwrap_or(initial);
    let limit = Limit { initial, soft, hard };
    info!(initial, soft, hard, open = open(), "file descriptor limit");
    limit
}

/// How many descriptors are open now; 0 where `/proc` is missing.
pub fn open() -> u64 {
    match std::fs::read_dir("/proc/self/fd") {
        // Listing the folder opens a descriptor too, which is gone afterwards.
        Ok(entries) => entries.count().saturating_sub(1) as u64,
        // None is left for it: all that the limit allows are open.
        Err(error) if error.raw_os_error() == Some(EMFILE) => {
            Resource::NOFILE.get_soft().unwrap_or(0)
        }
        Err(_) => 0,
    }
}

/// Exports the limit and the open descriptors, both looked at at each scrape: an operator can change the
/// limit of a running process, and then what was true at the start says nothing.
pub fn register(limit: Limit, registry: &mut Registry) {
    registry.register_collector(Box::new(Descriptors(limit)));
}

#[derive(Debug)]
struct Descriptors(Limit);

impl Collector for Descriptors {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Limit { initial, soft, hard } = self.0;
        let (soft, hard) = Resource::NOFILE.get().unwrap_or((soft, hard));
        for (name, help, value) in [
            ("net_fds_limit_initial", "Soft RLIMIT_NOFILE at start", initial),
            ("net_fds_limit_soft", "Soft RLIMIT_NOFILE now", soft),
            ("net_fds_limit_hard", "Hard RLIMIT_NOFILE now", hard),
            ("net_fds_open", "Open file descriptors", open()),
        ] {
            let gauge = ConstGauge::new(value);
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_ends_up_at_the_hard_one() {
        let limit = raise();
        assert_eq!(limit.soft, limit.hard.min(CEILING).max(limit.initial));
        assert_eq!(Resource::NOFILE.get_soft().expect("a limit"), limit.soft);
    }

    #[test]
    fn open_descriptors_are_counted() {
        let before = open();
        let held: Vec<_> =
            (0..50).map(|_| std::fs::File::open("/dev/null").expect("/dev/null")).collect();
        assert!(open() >= before + 40, "{} after {before}", open());
        drop(held);
    }
}
