//! What a store does with conversations: steps that are atomic, and reads.
//!
//! A conversation has at most one active turn, and an active turn has at most one owner: whoever holds
//! its newest **epoch**. An owner that was killed, frozen or cut off loses its **lease**; whoever
//! notices reaps the turn under the next epoch, and the old owner can append nothing any more. That
//! is all the coordination there is: no replica knows of another.
//!
//! Whatever a reader was shown was in the log first. The log is the messages and the terminal events,
//! kept for `store.retention`; deltas are kept until the next turn but one begins, or some minutes
//! after their turn's end, since the terminal event repeats the whole text.

use std::{fmt, sync::Arc, time::SystemTime};

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use super::{Error, Hint};
use crate::{
    domain::{
        ConversationKey, EngineKind, Event, EventBody, Message, Position, RequestId, Sequence,
    },
    telemetry::TurnTrace,
};

/// Conversations, in a store. Clones of an `Arc` share it; every method may be called at any time,
/// and once more with the same arguments where its outcome is unknown ([`Error::Down`]).
///
/// A request is known for at least `store.retention` after it came and after its turn's end, and a day
/// where the store is Redis. A conversation that goes on outlives that: after it, a repetition of an old
/// request may be a new one. It is known longer where it costs nothing, as in the embedded store, which
/// forgets a request with its conversation.
#[async_trait::async_trait]
pub trait ConversationLog: Send + Sync + fmt::Debug {
    /// Claims a request and begins its turn: one atomic step, so that of many equal requests, at
    /// whichever replicas, exactly one is [`Begun::New`]. Its message is logged, the turn active and
    /// owned under the next epoch, with a lease. [`Error::NotFound`] if the conversation has to exist
    /// and does not; [`Error::Reused`] if the request is known with another payload.
    async fn begin(&self, key: &ConversationKey, begin: &Begin) -> Result<Begun, Error> {
        self.begin_with(key, begin, &[]).await
    }

    /// As `begin`, and in the same step as an `append` of `answer`, whose last event has to be terminal:
    /// for a turn whose answer is there at once. Such a turn is over when it is new; nobody can take it
    /// over, and what its owner appends beyond it is fenced. Without events it is `begin`.
    async fn begin_with(
        &self,
        key: &ConversationKey,
        begin: &Begin,
        answer: &[EventBody],
    ) -> Result<Begun, Error>;

    /// Appends events to the owner's turn, all or none, and renews its lease; without events it only
    /// renews it. `number` counts the turn's events in this epoch from 1 and is that of the first
    /// event given, so that a call whose outcome is unknown can be repeated: what is stored already is
    /// not stored twice. A terminal event, which must be the last, ends the turn.
    async fn append(
        &self,
        owner: &Owner,
        number: u64,
        events: &[EventBody],
    ) -> Result<Appended, Error>;

    /// Logs a message that wants no answer. A request that is known is not logged again; errors as in
    /// `begin`. Returns where it is.
    async fn post(&self, key: &ConversationKey, begin: &Begin) -> Result<Sequence, Error>;

    /// Asks the turn's owner to stop; it learns so by a hint, and at the latest when it next appends
    /// or renews. A turn that is over stays as it is. [`Error::NotFound`] if there is no such turn.
    async fn cancel(&self, key: &ConversationKey, turn: RequestId) -> Result<(), Error>;

    /// Takes over the active turn if its lease is over: the caller owns it under the next epoch, and
    /// has to run it again or to end it. `None` if there is nothing to take over.
    async fn reap(&self, key: &ConversationKey) -> Result<Option<Reaped>, Error>;

    /// The events after a position, oldest first: at most `most` events, and not much more than
    /// [`PAGE_BYTES`], but one if there is one. With `watching`, the active turn counts as watched for
    /// [`WATCHED`]. [`Error::NotFound`] if there is no such conversation,
    /// [`Error::PositionUnknown`] if it has no event of that sequence and tag (any more).
    async fn read(
        &self,
        key: &ConversationKey,
        after: After,
        most: usize,
        watching: bool,
    ) -> Result<Page, Error>;

    /// Looks for a request. Changes nothing.
    async fn find(&self, key: &ConversationKey, request: RequestId)
    -> Result<Option<Found>, Error>;

    /// The last messages and terminal events before a place, oldest first: at most `most`, and not much
    /// more than [`PAGE_BYTES`], but one if there is one. No deltas: what was said, not how.
    async fn history(
        &self,
        key: &ConversationKey,
        before: Sequence,
        most: usize,
    ) -> Result<Vec<Event>, Error>;

    /// Wakes up whenever the conversation may have grown, or its turn was asked to stop. Of deltas that
    /// another replica appends it may tell only as long as the turn counts as watched. Hints can be lost: a
    /// reader looks at least once a second.
    fn hint(&self, key: &ConversationKey) -> Hint;
}

/// What one call reads, as JSON, so that no reader holds megabytes. It is a size of events as a store
/// keeps them, so the last bytes may differ between stores.
pub const PAGE_BYTES: usize = 256 * 1024;

/// How long a turn counts as watched after a reader has read.
pub const WATCHED: std::time::Duration = std::time::Duration::from_secs(3);

/// A request that wants to be part of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begin {
    /// Who says what; its request is the turn's id.
    pub message: Arc<Message>,
    /// How it wants to be answered. Kept with the turn, so that another replica can run it.
    pub options: TurnOptions,
    /// Whether the conversation has to exist already.
    pub existing: bool,
}

impl Begin {
    /// What makes a repetition the same request: a digest of everything but its id and its way here.
    /// A post and the beginning of a turn differ.
    pub fn fingerprint(&self, wants_answer: bool) -> String {
        let engine = match self.options.engine {
            None => 0,
            Some(EngineKind::Retrieval) => 1,
            Some(EngineKind::Generative) => 2,
            Some(EngineKind::Augmented) => 3,
        };
        let mut context = Context::new(&SHA256);
        context.update(&[u8::from(wants_answer), engine]);
        // The language tag holds no zero byte, so the two texts cannot run into each other.
        context.update(self.options.language.as_deref().unwrap_or_default().as_bytes());
        context.update(&[0]);
        context.update(self.message.text.as_bytes());
        let mut half = [0; 16];
        half.copy_from_slice(&context.finish().as_ref()[..16]);
        format!("{:032x}", u128::from_be_bytes(half))
    }
}

/// How a turn wants to be answered, and seen.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TurnOptions {
    /// Which engine; `None`: the server's default.
    pub engine: Option<EngineKind>,
    /// The primary language, where the caller says so.
    pub language: Option<String>,
    /// The trace that it is part of, if it is traced. No part of what makes a request the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<TurnTrace>,
}

/// What became of a `begin`.
#[derive(Debug, Clone, PartialEq)]
pub enum Begun {
    /// The turn is new, and the caller's to run. Its message is the event at `start`.
    New {
        /// What the caller appends with.
        owner: Owner,
        /// Where the message is.
        start: Sequence,
        /// The message, and the answer that was logged with it: one after the other, without a gap.
        logged: Vec<Event>,
    },
    /// The request is known.
    Known {
        /// Where its message is.
        start: Sequence,
        /// Where its terminal event is, if it is over.
        end: Option<Sequence>,
    },
    /// Another turn is active.
    Busy {
        /// Which one.
        turn: RequestId,
        /// Whether its lease is over, so that it can be reaped.
        orphaned: bool,
    },
}

/// A request that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where its message is.
    pub start: Sequence,
    /// The trace of its turn, if it has one that is traced.
    pub trace: Option<TurnTrace>,
}

/// The right to append to a turn, as long as nobody has reaped it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The conversation.
    pub key: ConversationKey,
    /// The turn.
    pub turn: RequestId,
    /// Grows with every owner that a conversation has.
    pub epoch: u64,
}

/// What became of an append.
#[derive(Debug, Clone, PartialEq)]
pub enum Appended {
    /// It is in the log, and the lease is renewed.
    Stored {
        /// The place of the last event given; of the turn's newest one if none was given.
        last: Sequence,
        /// What this call has added to the log: one after the other, without a gap. Less than what was
        /// given, or nothing, where that was stored before.
        logged: Vec<Event>,
        /// Whether a reader somewhere has read with `watching` in the last [`WATCHED`].
        watched: bool,
    },
    /// The turn was asked to stop: nothing was stored, the lease is renewed, and the owner has to end
    /// the turn. A terminal event is stored all the same.
    Cancelled,
    /// The caller does not own the turn any more, or the store has lost what it had appended. Nothing
    /// was stored, and nothing can be.
    Fenced,
}

/// A turn that was taken over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reaped {
    /// The caller's right to append, from number 1.
    pub owner: Owner,
    /// Where the turn's message is.
    pub start: Sequence,
    /// Owners that the turn has had, this one included.
    pub attempt: u32,
    /// Since when the owner before had it; `None` if that had begun it, or if it is not known.
    pub since: Option<SystemTime>,
    /// Whether a delta was logged, so that somebody may have seen it.
    pub visible: bool,
    /// Whether the turn was asked to stop.
    pub cancelled: bool,
    /// How it wants to be answered.
    pub options: TurnOptions,
}

/// Where to read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// After this place, which the store has told; 0 is the beginning.
    Sequence(Sequence),
    /// After this event, which a client claims to have seen.
    Position(Position),
}

/// A part of a conversation.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Page {
    /// The events, oldest first.
    pub events: Vec<Event>,
    /// The turn that is active now.
    pub active: Option<Active>,
    /// Whether there was more when it was read. A page may be short all the same.
    pub more: bool,
}

/// The turn that is active.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Active {
    /// The turn.
    pub turn: RequestId,
    /// Whether its lease is over, so that it can be reaped.
    pub orphaned: bool,
}
