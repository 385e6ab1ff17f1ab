//! Engines: how a question becomes an answer.
//!
//! [`Engine`] is the seam. Retrieval needs no model and shares nothing with one, so the bot still
//! answers from its knowledge base when a model is saturated. The others ask a model's server
//! ([`openai`]), alone or grounded in the knowledge base.

mod augmented;
mod generative;
pub mod openai;
mod prompt;
mod retrieval;

use std::{fmt, pin::Pin, sync::Arc, time::Duration};

use futures_util::Stream;

pub use self::{augmented::Augmented, generative::Generative, retrieval::Retrieval};
use crate::{
    domain::{EngineKind, FailureReason, FinishReason, RequestId, Source, Usage},
    knowledge,
};

/// Something that answers questions.
pub trait Engine: Send + Sync + fmt::Debug {
    /// Answers: the pieces of the text as they come, then [`Piece::End`], or an error and nothing
    /// more. What is ready is given at once, without waiting in between. Dropping the stream stops
    /// the work, here and wherever else it is done.
    fn answer(&self, question: Question) -> Pieces;

    /// The whole answer, from an engine that waits for nothing and needs no history: the text and what
    /// there is to say about it. Such a turn is begun and ended in one step. `None` from all others.
    fn at_once(&self, question: &Question) -> Option<Result<(String, End), Error>> {
        let _ = question;
        None
    }
}

/// An answer while it is made.
pub type Pieces = Pin<Box<dyn Stream<Item = Result<Piece, Error>> + Send>>;

/// A question to an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The request that asks, for those that have to tell requests apart.
    pub request: RequestId,
    /// The question.
    pub text: String,
    /// Its primary language, where the caller says so.
    pub language: Option<String>,
    /// What was asked and answered before in the conversation, oldest first. An engine takes as much of
    /// it as it can use.
    pub history: Vec<Exchange>,
}

/// A question of before, and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// The question.
    pub question: String,
    /// The answer.
    pub answer: String,
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// The next piece of the text.
    Text(String),
    /// The answer is complete.
    End(End),
}

/// What there is to say about an answer, besides its text.
#[derive(Debug, Clone, PartialEq)]
pub struct End {
    /// Whether the text is an answer, or a sentence that says that there is none.
    pub answered: bool,
    /// How likely it is right, 0 to 1.
    pub confidence: f64,
    /// What it rests on, best first; the near misses where there is no answer.
    pub sources: Vec<Source>,
    /// What a model used.
    pub usage: Option<Usage>,
    /// Why it ended.
    pub finish: FinishReason,
    /// The model was not available: this is the knowledge base's own answer.
    pub degraded: bool,
}

/// Why there is no answer, or no more of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The search failed.
    #[error(transparent)]
    Knowledge(#[from] knowledge::Error),
    /// The model cannot be had for now. The turn tries again, as long as nothing was said.
    #[error("the model is not available: {why}")]
    Unavailable {
        /// What is wrong.
        why: String,
        /// When to try again, where the model's server says so.
        retry_after: Option<Duration>,
    },
    /// The model's server refuses the request, and would again: a wrong key, an unknown model, a
    /// question that is too long. For the operator to mend.
    #[error("the model's server refuses: {0}")]
    Refused(String),
    /// The model's answer broke off.
    #[error("the model's answer broke off: {0}")]
    Truncated(String),
}

impl Error {
    /// What the turn is told to have failed for.
    pub fn reason(&self) -> FailureReason {
        match self {
            Self::Knowledge(_) => FailureReason::Internal,
            Self::Unavailable { .. } | Self::Refused(_) => FailureReason::UpstreamUnavailable,
            Self::Truncated(_) => FailureReason::UpstreamTruncated,
        }
    }
}

/// The engines that a server offers.
#[derive(Debug, Clone)]
pub struct Engines {
    /// What answers a request that does not choose; one of those below.
    pub default: EngineKind,
    /// The knowledge base alone.
    pub retrieval: Arc<dyn Engine>,
    /// A model alone.
    pub generative: Option<Arc<dyn Engine>>,
    /// A model, grounded in the knowledge base.
    pub augmented: Option<Arc<dyn Engine>>,
}

impl Engines {
    /// The engine of this kind, if it is offered.
    pub fn get(&self, kind: EngineKind) -> Option<&Arc<dyn Engine>> {
        match kind {
            EngineKind::Retrieval => Some(&self.retrieval),
            EngineKind::Generative => self.generative.as_ref(),
            EngineKind::Augmented => self.augmented.as_ref(),
        }
    }
}
