//! Cuts text into search terms, by script.
//!
//! Runs of Hangul, Han and Kana become bigrams that reach across one space, because Korean is
//! written with and without spaces between the same words; a syllable that stands alone is a term by
//! itself, else one-syllable words could not be found. Words of other scripts are lower-cased and
//! stemmed as English. No dictionary: the Korean ones fetch their data in build scripts, and won one
//! point of MRR at most (measured on `KorQuAD`). Bigrams over everything would ruin English.
//!
//! Text is normalised first (NFKC): file systems and input methods deliver Hangul in pieces.

use std::vec;

use tantivy::tokenizer::{Language, Stemmer, TextAnalyzer, Token, TokenStream, Tokenizer};
use unicode_normalization::UnicodeNormalization as _;

/// English words that say nothing about a subject. They are left out: in a small knowledge base of
/// two languages they look rare, and "what time is it" would seem to be about something.
const FUNCTION_WORDS: [&str; 74] = [
    "a", "about", "am", "an", "and", "any", "are", "as", "at", "be", "been", "but", "by", "can",
    "could", "did", "do", "does", "for", "from", "had", "has", "have", "how", "i", "if", "in",
    "into", "is", "it", "its", "just", "me", "my", "of", "on", "or", "our", "please", "s",
    "should", "so", "some", "such", "t", "tell", "than", "that", "the", "their", "them", "then",
    "there", "these", "they", "this", "to", "us", "was", "we", "were", "what", "when", "where",
    "which", "who", "why", "will", "with", "would", "you", "your", "ve", "re",
];

/// The whole analyzer: [`ScriptAware`] and the stemmer.
pub fn analyzer() -> TextAnalyzer {
    TextAnalyzer::builder(ScriptAware).filter(Stemmer::new(Language::English)).build()
}

/// Cuts by script; does not stem.
#[derive(Debug, Clone, Copy)]
pub struct ScriptAware;

impl Tokenizer for ScriptAware {
    type TokenStream<'a> = Tokens;

    fn token_stream<'a>(&'a mut self, text: &'a str) -> Tokens {
        Tokens { rest: terms(text).into_iter(), token: Token::default() }
    }
}

/// The terms of one text. Offsets are not kept: nothing is highlighted, and normalisation moves them.
#[derive(Debug)]
pub struct Tokens {
    rest: vec::IntoIter<String>,
    token: Token,
}

impl TokenStream for Tokens {
    fn advance(&mut self) -> bool {
        let Some(term) = self.rest.next() else {
            return false;
        };
        self.token.text = term;
        self.token.position = self.token.position.wrapping_add(1);
        true
    }

    fn token(&self) -> &Token {
        &self.token
    }

    fn token_mut(&mut self) -> &mut Token {
        &mut self.token
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Written without reliable spaces: bigrams.
    Dense,
    /// Part of a word that is a term.
    Word,
    Space,
    Other,
}

fn class(character: char) -> Class {
    match character {
        // Hangul jamo (what NFKC leaves of them) and syllables; Kana; Han and its extensions.
        '\u{1100}'..='\u{11FF}'
        | '\u{3005}'..='\u{3007}'
        | '\u{3040}'..='\u{30FF}'
        | '\u{3130}'..='\u{318F}'
        | '\u{31F0}'..='\u{31FF}'
        | '\u{3400}'..='\u{4DBF}'
        | '\u{4E00}'..='\u{9FFF}'
        | '\u{A960}'..='\u{A97F}'
        | '\u{AC00}'..='\u{D7FF}'
        | '\u{F900}'..='\u{FAFF}'
        | '\u{20000}'..='\u{323AF}' => Class::Dense,
        _ if character.is_whitespace() => Class::Space,
        _ if character.is_alphanumeric() => Class::Word,
        _ => Class::Other,
    }
}

/// The terms of `text` in order, repetitions included.
fn terms(text: &str) -> Vec<String> {
    let mut terms = Vec::new();
    let mut word = String::new();
    // The run of dense characters that is being read, and the one just before it if only one space
    // lies between them.
    let mut run: Vec<char> = Vec::new();
    let mut before: Option<char> = None;
    let mut spaces = 0;
    for character in text.nfkc().chain([' ', ' ']) {
        let class = class(character);
        if class != Class::Word && !word.is_empty() {
            if FUNCTION_WORDS.contains(&word.as_str()) {
                word.clear();
            } else {
                terms.push(std::mem::take(&mut word));
            }
        }
        if class != Class::Dense && !run.is_empty() {
            before = run.last().copied();
            spaces = 0;
            finish_run(&run, &mut terms);
            run.clear();
        }
        match class {
            Class::Dense => {
                if run.is_empty()
                    && let Some(before) = before.take()
                {
                    terms.push(String::from_iter([before, character]));
                }
                run.push(character);
            }
            Class::Word => {
                before = None;
                word.extend(character.to_lowercase());
            }
            Class::Space => {
                spaces += 1;
                if spaces > 1 {
                    before = None;
                }
            }
            Class::Other => before = None,
        }
    }
    terms
}

fn finish_run(run: &[char], terms: &mut Vec<String>) {
    match run {
        [alone] => terms.push(alone.to_string()),
        _ => terms.extend(run.windows(2).map(String::from_iter)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn analyzed(text: &str) -> Vec<String> {
        let mut terms = Vec::new();
        analyzer().token_stream(text).process(&mut |token| terms.push(token.text.clone()));
        terms
    }

    #[test]
    fn hangul_becomes_bigrams_that_reach_across_one_space() {
        assert_eq!(analyzed("연결 끊김"), ["연결", "결끊", "끊김"]);
        assert_eq!(analyzed("연결끊김"), ["연결", "결끊", "끊김"]);
    }

    #[test]
    fn bigrams_do_not_reach_across_more_than_a_space() {
        for apart in ["연결  끊김", "연결, 끊김", "연결.끊김", "연결 - 끊김", "연결 x 끊김"]
        {
            assert!(!analyzed(apart).contains(&"결끊".to_owned()), "{apart}");
        }
    }

    #[test]
    fn a_syllable_that_stands_alone_is_a_term() {
        assert_eq!(analyzed("왜?"), ["왜"]);
        assert_eq!(analyzed("왜 끊겨"), ["왜", "왜끊", "끊겨"]);
    }

    #[test]
    fn words_are_lower_cased_and_stemmed() {
        assert_eq!(analyzed("Closing Connections"), ["close", "connect"]);
        assert_eq!(analyzed("RLIMIT_NOFILE"), ["rlimit", "nofil"]);
        assert_eq!(analyzed("HTTP/2"), ["http", "2"]);
        assert_eq!(analyzed("Größe"), ["größe"]);
    }

    #[test]
    fn function_words_are_no_terms() {
        assert_eq!(analyzed("What is it about?"), [""; 0]);
        assert_eq!(analyzed("wait_for_ready"), ["wait", "readi"]);
    }

    #[test]
    fn scripts_are_told_apart_inside_a_word() {
        assert_eq!(analyzed("gRPC서버"), ["grpc", "서버"]);
        assert_eq!(analyzed("서버gRPC"), ["서버", "grpc"]);
    }

    #[test]
    fn decomposed_hangul_and_wide_letters_are_normalised() {
        let decomposed =
            "연결".chars().flat_map(|syllable| syllable.to_string().nfd().collect::<Vec<_>>());
        assert_eq!(analyzed(&decomposed.collect::<String>()), ["연결"]);
        assert_eq!(analyzed("ＧＲＰＣ"), ["grpc"]);
    }

    #[test]
    fn han_and_kana_are_bigrams_too() {
        assert_eq!(analyzed("接続断"), ["接続", "続断"]);
        assert_eq!(analyzed("コネクション"), ["コネ", "ネク", "クシ", "ショ", "ョン"]);
    }

    #[test]
    fn nothing_is_found_in_nothing() {
        assert_eq!(analyzed(""), [""; 0]);
        assert_eq!(analyzed(" \n?!… 🙂"), [""; 0]);
    }
}
