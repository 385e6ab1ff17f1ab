//! Latency of one search, on 1,000, 100,000 and (with `--million`) 1,000,000 synthetic entries.
//!
//! ```text
//! cargo bench --bench search [-- --million]
//! ```
//!
//! A mean hides what users feel, so percentiles are printed (`benches/parts` has the means). Absolute times
//! depend on the machine; the percentiles' ratios do not.

#![expect(clippy::print_stdout, clippy::expect_used, reason = "a program for a terminal")]

#[path = "shared/corpus.rs"]
mod corpus;

use std::time::{Duration, Instant};

use chatbot::knowledge::{Knowledge, Query};

const QUERIES: usize = 20_000;

fn main() {
    let million = std::env::args().any(|argument| argument == "--million");
    let sizes = [1_000, 100_000].into_iter().chain(million.then_some(1_000_000));
    println!(
        "{:>9} {:>10} {:>9} {:>9} {:>9} {:>9}",
        "entries", "build", "p50", "p90", "p99", "max"
    );
    for size in sizes {
        measure(size);
    }
}

fn measure(size: usize) {
    let entries = corpus::entries(size);
    let start = Instant::now();
    let knowledge = Knowledge::of_entries(&entries).expect("an index");
    let build = start.elapsed();
    let queries = corpus::queries(QUERIES);
    for language in [None, Some("ko")] {
        percentiles(&knowledge, size, build, language, &queries);
    }
}

fn percentiles(
    knowledge: &Knowledge,
    size: usize,
    build: Duration,
    language: Option<&str>,
    queries: &[String],
) {
    let ask = |text: &str| {
        let query = Query { text, language, excluded: &[], most: 10 };
        std::hint::black_box(knowledge.search(&query).expect("a search"));
    };
    queries.iter().take(QUERIES / 10).for_each(|query| ask(query));
    let mut times: Vec<Duration> = queries
        .iter()
        .map(|query| {
            let start = Instant::now();
            ask(query);
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    let at = |percent: usize| format!("{:.2?}", times[(times.len() - 1) * percent / 100]);
    println!(
        "{size:>9} {:>10} {:>8} {:>9} {:>9} {:>9} {:>9}",
        format!("{build:.1?}"),
        language.unwrap_or("any"),
        at(50),
        at(90),
        at(99),
        at(100)
    );
}
