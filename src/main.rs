//! The `chatbot` binary. Everything is in the library; see `chatbot::cli` for the commands.

use std::process::ExitCode;

/// The C library's malloc keeps for good what idle connections had. jemalloc's background thread (a feature
/// of the crate) returns pages that nobody has used for a while, also while nothing is allocated, and a
/// connection costs less (`benches/idle`, figures in `BENCHMARKS.md`). It is set here and not in the
/// library: whoever else uses that, such as the benchmark's baseline, keeps its own.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What jemalloc reads before the first allocation; `_RJEM_MALLOC_CONF` in the environment comes after it.
/// Unused pages go back within three seconds. With the ten that it has by itself, 1 to 4 MiB of what 5,000
/// connections had were still there ten seconds after their end; with three, nothing to speak of.
#[cfg(feature = "jemalloc")]
#[expect(
    unsafe_code,
    reason = "a symbol by the name that jemalloc looks for, and a C string there"
)]
#[unsafe(export_name = "_rjem_malloc_conf")]
static MALLOC_CONF: Option<&[u8; 20]> = Some(b"dirty_decay_ms:3000\0");

fn main() -> ExitCode {
    chatbot::cli::run()
}
