//! `limits`: what a request may cost.

use bytesize::ByteSize;

use super::settings::Settings;

/// Most that `limits.query_bytes` can be: a query has to fit into a message.
const QUERY_BYTES_CEILING: u64 = 128 * 1024;

/// Limits on requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Most bytes of a query.
    pub query_bytes: usize,
    /// Most `Converse` streams at a time.
    pub joined_streams: usize,
    /// Turns that a principal may begin in a second, on average; `None`: as many as it likes.
    pub turns_per_second: Option<f64>,
    /// Turns that a principal may begin at once.
    pub burst: u32,
}

impl Limits {
    pub(super) fn check(settings: &mut Settings) -> Self {
        let query_bytes = settings.take("limits.query_bytes", ByteSize::kib(8)).as_u64();
        if !(1..=QUERY_BYTES_CEILING).contains(&query_bytes) {
            settings.problem("limits.query_bytes", "must be between 1B and 128KiB");
        }
        let joined_streams: u32 = settings.take("limits.joined_streams", 10_000);
        if joined_streams == 0 {
            settings.problem("limits.joined_streams", "must be at least 1");
        }
        let turns_per_second = settings.take("limits.turns_per_second", 0.0);
        if !(0.0..=1e6).contains(&turns_per_second) {
            settings.problem("limits.turns_per_second", "must be 0 (no limit) to 1000000");
        }
        let burst = settings.take("limits.burst", 10);
        if burst == 0 {
            settings.problem("limits.burst", "must be at least 1");
        }
        let number = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        Self {
            query_bytes: number(query_bytes),
            joined_streams: number(joined_streams.into()),
            turns_per_second: (turns_per_second > 0.0).then_some(turns_per_second),
            burst,
        }
    }
}
