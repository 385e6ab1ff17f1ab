//! Engines: how a question becomes an answer.
//!
//! This version has one, retrieval. It needs no model and shares nothing with one, so the bot will
//! still answer from its knowledge base when a model is saturated.

mod retrieval;

pub use self::retrieval::Retrieval;
use crate::knowledge::Hit;

/// A question to an engine.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The question.
    pub text: &'a str,
    /// Its primary language, where the caller says so.
    pub language: Option<&'a str>,
}

/// What an engine says.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The answer, or a sentence that says that there is none.
    pub text: String,
    /// Whether it is an answer.
    pub answered: bool,
    /// How likely it is right, 0 to 1.
    pub confidence: f64,
    /// What it rests on, best first; the near misses where there is no answer.
    pub sources: Vec<Hit>,
}
