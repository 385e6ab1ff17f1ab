//! The knowledge base: cutting text into terms, searching, making the index anew, fitting confidence.

use chatbot::{
    domain::Entry,
    knowledge::{Base, Knowledge, Query, analyzer::analyzer, evaluation},
};
use divan::{
    Bencher, black_box,
    counter::{BytesCount, ItemsCount},
};

use super::corpus;

const MILLION: usize = 1_000_000;
/// Queries, asked one after the other and over again.
const QUERIES: u32 = 4_096;

/// The questions and answers of the sample in one language.
#[divan::bench(args = ["ko", "en"])]
fn analyze(bencher: Bencher<'_, '_>, language: &str) {
    let entries = Base::Sample.load().expect("the sample");
    let of_language = entries.iter().filter(|entry| entry.language_code == language);
    let texts: Vec<&str> = of_language.flat_map(texts).collect();
    let bytes: usize = texts.iter().map(|text| text.len()).sum();
    let mut analyzer = analyzer();
    bencher.counter(BytesCount::new(bytes)).bench_local(|| {
        for text in &texts {
            analyzer.token_stream(text).process(&mut |token| {
                black_box(token);
            });
        }
    });
}

fn texts(entry: &Entry) -> impl Iterator<Item = &str> {
    entry.questions.iter().chain([&entry.answer]).map(String::as_str)
}

/// One search, its confidence included.
#[divan::bench(args = [1_000, 100_000], sample_count = QUERIES)]
fn search(bencher: Bencher<'_, '_>, entries: usize) {
    searches(bencher, entries);
}

/// The same, of a million entries.
#[divan::bench(ignore, sample_count = QUERIES)]
fn search_million(bencher: Bencher<'_, '_>) {
    searches(bencher, MILLION);
}

fn searches(bencher: Bencher<'_, '_>, entries: usize) {
    let knowledge = Knowledge::of_entries(&corpus::entries(entries)).expect("an index");
    let queries = corpus::queries(QUERIES as usize);
    let mut queries = queries.iter().cycle();
    bencher.bench_local(|| {
        let text = queries.next().expect("it goes round");
        knowledge.search(&Query { text, language: None, excluded: &[], most: 10 })
    });
}

/// The index and what confidence needs, as at a start or when the base changes.
#[divan::bench(args = [1_000, 100_000], sample_count = 5, sample_size = 1)]
fn rebuild(bencher: Bencher<'_, '_>, entries: usize) {
    rebuilds(bencher, entries);
}

/// The same, of a million entries.
#[divan::bench(ignore, sample_count = 1, sample_size = 1)]
fn rebuild_million(bencher: Bencher<'_, '_>) {
    rebuilds(bencher, MILLION);
}

fn rebuilds(bencher: Bencher<'_, '_>, entries: usize) {
    let entries = corpus::entries(entries);
    bencher
        .counter(ItemsCount::new(entries.len()))
        .bench_local(|| Knowledge::of_entries(&entries).expect("an index"));
}

/// The questions that are left out and asked, which confidence is fitted on.
#[divan::bench(args = [1_000, 100_000], sample_count = 5, sample_size = 1)]
fn confidence_trials(bencher: Bencher<'_, '_>, entries: usize) {
    let entries = corpus::entries(entries);
    bencher.bench_local(|| evaluation::trials(&entries).expect("trials"));
}

/// The fit on them, and a judgement of each.
#[divan::bench(args = [1_000, 100_000])]
fn confidence_fit(bencher: Bencher<'_, '_>, entries: usize) {
    let trials = evaluation::trials(&corpus::entries(entries)).expect("trials");
    bencher
        .counter(ItemsCount::new(trials.len()))
        .bench_local(|| evaluation::judgement(&trials, 0.5));
}
