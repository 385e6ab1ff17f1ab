//! Conversations as data: what was said, by whom, in which order, and where a reader is.
//!
//! A **turn** is one request and its answer; its id is the id of the request that began it, so that a
//! client can name its turn before it has heard anything. A **conversation** is an ordered log of
//! events.

use std::{cell::Cell, fmt, str::FromStr, sync::Arc, time::SystemTime};

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use uuid::{Builder, Uuid};

use super::AnswerId;

/// The id of a request, made by the client, and of the turn that the request begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(pub Uuid);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The id of a conversation, as its principal sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ConversationId(pub Uuid);

impl ConversationId {
    /// The conversation that `request` of `principal` opens where it names none. Derived, so that a
    /// client that heard nothing and asks again lands in the same one.
    pub fn derived(principal: &str, request: RequestId) -> Self {
        let digest = digest(b"chatbot conversation id", principal, request.0);
        Self(Builder::from_custom_bytes(digest).into_uuid())
    }
}

impl fmt::Display for ConversationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which conversation, of whom. The principal is part of the key, so that an id in other hands opens
/// nothing. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConversationKey {
    principal: Arc<str>,
    id: ConversationId,
    digest: ConversationDigest,
}

impl ConversationKey {
    /// The conversation `id` of `principal`.
    pub fn new(principal: impl Into<Arc<str>>, id: ConversationId) -> Self {
        let principal = principal.into();
        let digest = ConversationDigest(digest(b"chatbot conversation key", &principal, id.0));
        Self { principal, id, digest }
    }

    /// Whose it is.
    pub fn principal(&self) -> &str {
        &self.principal
    }

    /// Its id.
    pub fn id(&self) -> ConversationId {
        self.id
    }

    /// What stores file it under.
    pub fn digest(&self) -> ConversationDigest {
        self.digest
    }
}

/// A conversation's name in a store: of fixed size, whatever the principal is called.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConversationDigest(pub [u8; 16]);

impl fmt::Display for ConversationDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for ConversationDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Half of a SHA-256 over parts that cannot run into each other: the id has a fixed length, and the
/// purpose ends in a zero byte.
fn digest(purpose: &[u8], principal: &str, id: Uuid) -> [u8; 16] {
    let mut context = Context::new(&SHA256);
    for part in [purpose, &[0], id.as_bytes(), principal.as_bytes()] {
        context.update(part);
    }
    let mut half = [0; 16];
    half.copy_from_slice(&context.finish().as_ref()[..16]);
    half
}

/// An event's place in its conversation: from 1, strictly increasing, with gaps where deltas have
/// expired.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Sequence(pub u64);

/// The position after an event: its place and a random tag of it. A store that has lost its newest
/// events gives their numbers to other events, and a number alone would then point into another text
/// without anybody noticing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The event's place.
    pub sequence: Sequence,
    /// The event's tag.
    pub tag: u64,
}

impl Position {
    /// The position after a new event.
    pub fn random(sequence: Sequence) -> Self {
        Self { sequence, tag: random() }
    }
}

/// A number that no other event has, in all likelihood. A tag has to differ and is no secret, and the
/// system's own random numbers cost more than all else that is done for an event: `SplitMix64` (Steele, Lea
/// and Flood, 2014), for each thread from a random number of the system.
fn random() -> u64 {
    thread_local! {
        static STATE: Cell<u64> = Cell::new({
            let (high, low) = Uuid::new_v4().as_u64_pair();
            // Some of the bits of either say that it is a random UUID.
            high ^ low.rotate_left(32)
        });
    }
    let state = STATE.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
    STATE.set(state);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// As the contract's `resume_token` has it: 32 hexadecimal digits.
impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Each event has one, and the formatter would take longer for it than for the rest.
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let number = u128::from(self.sequence.0) << 64 | u128::from(self.tag);
        let mut text = [0; 32];
        for (place, digit) in text.iter_mut().rev().enumerate() {
            *digit = DIGITS[(number >> (4 * place)) as usize & 0xf];
        }
        f.write_str(str::from_utf8(&text).unwrap_or_default())
    }
}

/// Not the text of a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a position")]
pub struct NoPosition;

impl FromStr for Position {
    type Err = NoPosition;

    fn from_str(text: &str) -> Result<Self, NoPosition> {
        let hex = |half: Option<&str>| {
            let half = half.filter(|half| half.bytes().all(|byte| byte.is_ascii_hexdigit()));
            half.and_then(|half| u64::from_str_radix(half, 16).ok()).ok_or(NoPosition)
        };
        if text.len() != 32 {
            return Err(NoPosition);
        }
        Ok(Self { sequence: Sequence(hex(text.get(..16))?), tag: hex(text.get(16..))? })
    }
}

/// Something that happened in a conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// The position after it.
    pub position: Position,
    /// The turn that it belongs to; `None` for a message that wants no answer.
    pub turn: Option<RequestId>,
    /// When it was logged, by the store's clock.
    pub time: SystemTime,
    /// What happened.
    pub body: EventBody,
}

/// What happened. Cheap to clone: what is large is shared by all who keep or show it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventBody {
    /// A participant said something.
    Posted(Arc<Message>),
    /// The next piece of the answer's text.
    Delta(Arc<str>),
    /// The turn is over and has an answer, whose text replaces all deltas.
    Completed(Arc<Completion>),
    /// The turn is over and has failed.
    Failed(Failure),
}

impl EventBody {
    /// Whether it ends its turn.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Completed(_) | Self::Failed(_))
    }
}

/// A participant's message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who said it, as the server knows the caller.
    pub participant: Arc<str>,
    /// What was said.
    pub text: String,
    /// The request that said it.
    pub request: RequestId,
}

/// How an answer is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineKind {
    /// The best entry's text.
    Retrieval,
    /// A model alone.
    Generative,
    /// A model, grounded in the best entries.
    Augmented,
}

impl EngineKind {
    /// Its name in settings, records and spans.
    pub fn name(self) -> &'static str {
        match self {
            Self::Retrieval => "retrieval",
            Self::Generative => "generative",
            Self::Augmented => "augmented",
        }
    }
}

/// The end of a turn that has an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    /// The whole answer, or a sentence that says that there is none.
    pub text: String,
    /// Whether it is an answer.
    pub answered: bool,
    /// How likely it is right, 0 to 1.
    pub confidence: f64,
    /// What it rests on, best first; the near misses where there is no answer.
    pub sources: Vec<Source>,
    /// What a model used; `None` where none was asked.
    pub usage: Option<Usage>,
    /// Why it ended.
    pub finish: FinishReason,
    /// The model was not available: this is the knowledge base's own answer.
    #[serde(default)]
    pub degraded: bool,
}

/// An entry that an answer rests on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// The entry.
    pub answer_id: AnswerId,
    /// Raw BM25.
    pub score: f64,
    /// The entry's first question.
    pub title: String,
}

/// Tokens, as the model's server counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens that were sent.
    pub input_tokens: u32,
    /// Tokens that were generated.
    pub output_tokens: u32,
}

/// Why a completed turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The answer is complete.
    Stop,
    /// A limit on its length was reached.
    MaxTokens,
    /// The model withheld it.
    ContentFilter,
    /// `CancelTurn`, a newer message, or nobody left to read.
    Cancelled,
}

/// The end of a turn that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Why.
    pub reason: FailureReason,
    /// What had been generated until then.
    pub partial_text: String,
}

/// Why a turn failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureReason {
    /// Its replica died or was cut off after a part of the answer was shown.
    Interrupted,
    /// The turn's own limit.
    Timeout,
    /// The model cannot be reached.
    UpstreamUnavailable,
    /// The model's answer broke off.
    UpstreamTruncated,
    /// A fault of the server.
    Internal,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_a_position_and_nothing_else_is() {
        let position = Position::random(Sequence(17));
        assert_eq!(position.to_string().parse(), Ok(position));
        let good = position.to_string();
        for bad in ["", "17", &good[1..], &format!("{good}0"), &format!("+{}", &good[1..])] {
            assert_eq!(bad.parse::<Position>(), Err(NoPosition), "{bad}");
        }
        let wide: String = std::iter::repeat_n('한', 11).collect();
        assert_eq!(wide[..].parse::<Position>(), Err(NoPosition));
    }

    #[test]
    fn a_conversation_is_its_principals() {
        let request = RequestId(Uuid::new_v4());
        let id = ConversationId::derived("alice", request);
        assert_eq!(id, ConversationId::derived("alice", request));
        assert_ne!(id, ConversationId::derived("bob", request));
        assert_ne!(
            ConversationKey::new("alice", id).digest(),
            ConversationKey::new("bob", id).digest()
        );
        assert_eq!(ConversationKey::new("alice", id).digest().to_string().len(), 32);
    }
}
