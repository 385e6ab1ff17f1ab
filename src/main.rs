//! The `chatbot` binary. Everything is in the library; see `chatbot::cli` for the commands.

use std::process::ExitCode;

/// The C library's malloc keeps for good what idle connections had: 141 MiB with 5,000 of them, and 141
/// half a minute after all were closed. jemalloc's background thread (a feature of the crate) returns
/// pages that nobody has used for ten seconds, also while nothing is allocated: 112 MiB, then 11. A
/// connection costs 22.3 KB instead of 26.4, and an idle server 18 MiB instead of 56, since the rest of
/// the start goes back too (`benches/idle.rs`; bare tonic on glibc: 24.9 KB a connection). It is set
/// here and not in the library: whoever else uses that, such as the benchmark's baseline, keeps its own.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    chatbot::cli::run()
}
