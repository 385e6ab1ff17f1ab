//! The `chatbot` binary. Everything is in the library; see `chatbot::cli` for the commands.

use std::process::ExitCode;

/// The C library's malloc keeps what 5,000 idle connections had after they are closed, for good: 141
/// of 141 MiB. jemalloc's background thread (a feature of the crate) returns pages that nobody has
/// used for ten seconds, also while nothing is allocated: 112 MiB, and 11 half a minute after the last
/// one has closed. A connection costs 22.3 KB instead of 26.4 (`benches/idle.rs`), and calls are as
/// fast as with mimalloc, which needs 1.7 times the memory. It is set here and not in the library, so
/// that whoever uses that, such as the baseline of the benchmark, has its own.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    chatbot::cli::run()
}
