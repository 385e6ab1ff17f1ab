//! Latency of one search, on 1,000, 100,000 and (with `--million`) 1,000,000 synthetic entries.
//!
//! ```text
//! cargo bench --bench search [-- --million]
//! ```
//!
//! Entries and queries are made from a vocabulary whose words occur as in natural text (the nth most
//! frequent word 1/n as often as the first), Korean and English by turns, three questions and an
//! answer each; queries have 3 to 8 words. A mean hides what users feel, so percentiles are printed.
//! Absolute times depend on the machine; the percentiles' ratios do not.

#![expect(clippy::print_stdout, clippy::expect_used, reason = "a program for a terminal")]

use std::time::{Duration, Instant};

use chatbot::{
    domain::{AnswerId, Entry},
    knowledge::{Knowledge, Query},
};

const QUERIES: usize = 20_000;
const WORDS: usize = 50_000;

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
    let mut random = Random(0x5EED);
    let entries: Vec<Entry> = (1..).take(size).map(|id| entry(id, &mut random)).collect();
    let start = Instant::now();
    let knowledge = Knowledge::of_entries(&entries).expect("an index");
    let build = start.elapsed();
    let queries: Vec<String> = (0..QUERIES)
        .map(|n| {
            let words = 3 + random.below(6);
            text(words, n % 2 == 0, &mut random)
        })
        .collect();
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

/// A small generator, so that every run measures the same (`SplitMix64`).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).expect("fits")
    }

    /// A rank between 0 and `WORDS`, by Zipf's law.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank needs no precision"
    )]
    fn rank(&mut self) -> usize {
        let unit = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        ((WORDS as f64).powf(unit) - 1.0) as usize
    }
}

fn entry(id: i32, random: &mut Random) -> Entry {
    let korean = id % 2 == 0;
    Entry {
        answer_id: AnswerId(id),
        questions: (0..3).map(|_| text(6, korean, random)).collect(),
        answer: text(25, korean, random),
        language_code: if korean { "ko" } else { "en" }.to_owned(),
    }
}

fn text(words: usize, korean: bool, random: &mut Random) -> String {
    let words: Vec<String> = (0..words).map(|_| word(random.rank(), korean)).collect();
    words.join(" ")
}

/// The word of a rank: two or three syllables.
fn word(rank: usize, korean: bool) -> String {
    let mut random = Random(rank as u64);
    (0..2 + random.below(2))
        .map(|_| {
            if korean {
                let syllable = u32::try_from(random.below(1_200)).expect("fits") * 9;
                char::from_u32(0xAC00 + syllable).expect("a syllable").to_string()
            } else {
                let letter = |of: &[u8], at: usize| char::from(of[at % of.len()]);
                let (consonant, vowel) = (random.below(16), random.below(5));
                format!("{}{}", letter(b"bcdfghklmnprstvz", consonant), letter(b"aeiou", vowel))
            }
        })
        .collect()
}
