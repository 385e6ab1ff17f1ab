//! Entries of the knowledge base and their changes.
//!
//! The rules of an entry stand here once, because it enters by two doors, a file and the `Teach`
//! RPC.

use std::fmt;

use oxilangtag::LanguageTag;
use serde::{Deserialize, Serialize};

use crate::error::Violation;

/// Most bytes of an entry's questions and answer together.
pub const ENTRY_BYTES: usize = 64 * 1024;
/// Most bytes of one question.
pub const QUESTION_BYTES: usize = 8 * 1024;
/// Most alternative questions of one entry.
pub const QUESTIONS: usize = 100;

/// The identity of an entry of the knowledge base: positive, chosen by whoever teaches it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AnswerId(pub i32);

impl fmt::Display for AnswerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A position in the knowledge log: the number of changes ever accepted. 0 is the base, the file or
/// the built-in sample, before any change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

/// A question in all its alternatives, and its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The entry's identity.
    pub answer_id: AnswerId,
    /// Ways to ask for it; the first serves as its title.
    pub questions: Vec<String>,
    /// The answer.
    pub answer: String,
    /// BCP 47 tag; empty: found in every language.
    #[serde(default)]
    pub language_code: String,
}

impl Entry {
    /// Bytes of all its texts.
    pub fn bytes(&self) -> usize {
        let questions: usize = self.questions.iter().map(String::len).sum();
        questions + self.answer.len() + self.language_code.len()
    }

    /// Every rule that the entry breaks, with the field's path; empty if it is good.
    pub fn violations(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        if self.answer_id.0 <= 0 {
            found.push(Violation::new(
                "answer_id",
                format!("must be positive, is {}", self.answer_id),
            ));
        }
        if self.questions.is_empty() || self.questions.len() > QUESTIONS {
            found.push(Violation::new(
                "questions",
                format!("must be 1 to {QUESTIONS} questions, are {}", self.questions.len()),
            ));
        }
        for (index, question) in self.questions.iter().take(QUESTIONS).enumerate() {
            if let Some(wrong) = text_violation(question, QUESTION_BYTES) {
                found.push(Violation::new(format!("questions[{index}]"), wrong));
            }
        }
        if let Some(wrong) = text_violation(&self.answer, ENTRY_BYTES) {
            found.push(Violation::new("answer", wrong));
        }
        let bytes = self.bytes();
        if bytes > ENTRY_BYTES {
            found.push(Violation::new(
                "questions",
                format!(
                    "the entry's texts must be at most {ENTRY_BYTES} bytes together, are {bytes}"
                ),
            ));
        }
        if let Err(wrong) = primary_language(&self.language_code) {
            found.push(Violation::new("language_code", wrong));
        }
        found
    }
}

/// What is wrong with a text that people wrote, if anything: it must hold more than white space and
/// at most `most` bytes.
pub fn text_violation(text: &str, most: usize) -> Option<String> {
    if text.trim().is_empty() {
        return Some("must not be empty".to_owned());
    }
    (text.len() > most).then(|| format!("must be at most {most} bytes, is {}", text.len()))
}

/// The primary language of a BCP 47 tag in lower case, such as `ko` of `ko-KR`; `None` for an empty
/// tag, which means any language. The error says what is wrong with a malformed tag.
pub fn primary_language(tag: &str) -> Result<Option<String>, String> {
    if tag.is_empty() {
        return Ok(None);
    }
    // The parser would take private-use tags such as `x-klingon`, which name no language.
    match LanguageTag::parse(tag) {
        Ok(parsed)
            if !parsed.primary_language().is_empty() && !tag.starts_with(['x', 'X', 'i']) =>
        {
            Ok(Some(parsed.primary_language().to_ascii_lowercase()))
        }
        _ => Err(format!(
            "must be a BCP 47 language tag such as \"ko\" or \"en-US\", is {}",
            shown(tag)
        )),
    }
}

/// What was received, for a message: quoted, and cut, since messages must not grow with input.
pub fn shown(text: &str) -> String {
    const MOST: usize = 40;
    match text.char_indices().nth(MOST) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}...", &text[..end]),
    }
}

/// One change of the knowledge base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// The entry is added, or replaces the one of the same id.
    Upsert(Entry),
    /// The entry of this id is gone.
    Delete(AnswerId),
}

impl Change {
    /// Bytes of all its texts.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Upsert(entry) => entry.bytes(),
            Self::Delete(_) => 0,
        }
    }

    /// The entry that changes.
    pub fn answer_id(&self) -> AnswerId {
        match self {
            Self::Upsert(entry) => entry.answer_id,
            Self::Delete(id) => *id,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry {
            answer_id: AnswerId(7),
            questions: vec!["why?".to_owned()],
            answer: "because".to_owned(),
            language_code: "en".to_owned(),
        }
    }

    fn fields(entry: &Entry) -> Vec<String> {
        entry.violations().into_iter().map(|violation| violation.field).collect()
    }

    #[test]
    fn a_good_entry_breaks_no_rule() {
        assert_eq!(fields(&entry()), [""; 0]);
        assert_eq!(fields(&Entry { language_code: String::new(), ..entry() }), [""; 0]);
    }

    #[test]
    fn every_broken_rule_is_named_with_its_field() {
        let bad = Entry {
            answer_id: AnswerId(0),
            questions: vec!["ok".to_owned(), " \n".to_owned(), "x".repeat(QUESTION_BYTES + 1)],
            answer: String::new(),
            language_code: "korean!".to_owned(),
        };
        assert_eq!(
            fields(&bad),
            ["answer_id", "questions[1]", "questions[2]", "answer", "language_code"]
        );
    }

    #[test]
    fn an_entry_has_one_to_a_hundred_questions_and_64_kib() {
        assert_eq!(fields(&Entry { questions: vec![], ..entry() }), ["questions"]);
        let many = vec!["q".to_owned(); QUESTIONS + 1];
        assert_eq!(fields(&Entry { questions: many, ..entry() }), ["questions"]);
        let long = "a".repeat(ENTRY_BYTES - 5);
        assert_eq!(fields(&Entry { answer: long, ..entry() }), ["questions"]);
    }

    #[test]
    fn messages_do_not_grow_with_what_was_received() {
        let endless = "x".repeat(100_000);
        let bad = Entry {
            questions: vec![String::new(); 100_000],
            language_code: endless.clone(),
            ..entry()
        };
        let text: usize = bad.violations().iter().map(|wrong| wrong.to_string().len()).sum();
        assert!(text < 8_000, "{text}");
        assert_eq!(shown("ko"), "\"ko\"");
        assert!(shown(&endless).len() < 50);
    }

    #[test]
    fn language_tags_are_compared_by_their_primary_language() {
        assert_eq!(primary_language("ko-KR"), Ok(Some("ko".to_owned())));
        assert_eq!(primary_language("EN"), Ok(Some("en".to_owned())));
        assert_eq!(primary_language("zh-Hant-TW"), Ok(Some("zh".to_owned())));
        assert_eq!(primary_language(""), Ok(None));
        for malformed in ["korean!", "e", "ko_KR", "-", "ko-", "x-private", "한국어"] {
            assert!(primary_language(malformed).is_err(), "{malformed}");
        }
    }
}
