//! Synthetic entries and queries, the same in every run.
//!
//! They are made from a vocabulary whose words occur as in natural text (the nth most frequent word 1/n as
//! often as the first), Korean and English by turns, three questions and an answer each; queries have 3
//! to 8 words.

use chatbot::domain::{AnswerId, Entry};

const WORDS: usize = 50_000;

/// So many entries.
pub(crate) fn entries(count: usize) -> Vec<Entry> {
    let mut random = Random(0x5EED);
    (1..).take(count).map(|id| entry(id, &mut random)).collect()
}

/// So many queries, of words that the entries have too.
pub(crate) fn queries(count: usize) -> Vec<String> {
    let mut random = Random(0xA5C);
    (0..count)
        .map(|n| {
            let words = 3 + random.below(6);
            text(words, n % 2 == 0, &mut random)
        })
        .collect()
}

/// A small generator, so that every run measures the same (`SplitMix64`).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
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

/// So many words of Korean or English.
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
