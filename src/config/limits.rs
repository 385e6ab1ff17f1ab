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
}

impl Limits {
    pub(super) fn check(settings: &mut Settings) -> Self {
        let query_bytes = settings.take("limits.query_bytes", ByteSize::kib(8)).as_u64();
        if !(1..=QUERY_BYTES_CEILING).contains(&query_bytes) {
            settings.problem("limits.query_bytes", "must be between 1B and 128KiB");
        }
        Self { query_bytes: usize::try_from(query_bytes).unwrap_or(usize::MAX) }
    }
}
