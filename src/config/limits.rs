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
        let number = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        Self { query_bytes: number(query_bytes), joined_streams: number(joined_streams.into()) }
    }
}
