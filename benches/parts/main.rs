//! The parts, each alone: what one operation costs.
//!
//! ```text
//! cargo bench --bench parts [-- [NAME] [--ignored]]
//! ```
//!
//! divan tells the fastest, slowest, median and mean sample. A search of a million entries is ignored unless
//! asked for: it takes minutes and 2 GiB. What needs percentiles or many at once has a program of its own:
//! `search`, `log` (every step of a turn on every store), `start`.

#![expect(clippy::expect_used, reason = "a program for a terminal")]

mod config;
#[path = "../shared/corpus.rs"]
mod corpus;
mod knowledge;
mod sse;

fn main() {
    divan::main();
}
