//! What the file holds of conversations beside their events, and how records and events are put there.

use std::time::{Duration, SystemTime};

use redb::ReadableTable as _;
use serde::{Deserialize, Serialize};

use super::{
    super::{Error, TurnOptions},
    tables::{Fault, Tables, decode, encode, named},
};
use crate::domain::{
    ConversationDigest, ConversationId, ConversationKey, Event, EventBody, Position, RequestId,
    Sequence,
};

/// A conversation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Conversation {
    pub(super) principal: String,
    pub(super) id: ConversationId,
    /// The last sequence that was given.
    pub(super) counter: Sequence,
    /// The last epoch that was given.
    pub(super) epoch: u64,
    /// The newest turn. It stays when it is over: the append that ended it may be repeated.
    pub(super) turn: Option<Turn>,
    /// Where the turn before that began; 0 if there was none.
    pub(super) previous: Sequence,
    /// When something happened last, in milliseconds since 1970.
    pub(super) touched: u64,
}

/// The newest turn of a conversation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Turn {
    pub(super) request: RequestId,
    pub(super) start: Sequence,
    /// Owners so far.
    pub(super) attempt: u32,
    /// When the last of them took it over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) taken: Option<SystemTime>,
    /// A delta was logged.
    pub(super) visible: bool,
    pub(super) cancelled: bool,
    pub(super) over: bool,
    /// Events of the newest epoch.
    pub(super) number: u64,
    /// Its newest event.
    pub(super) last: Sequence,
}

/// A request that is known.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) fingerprint: String,
    pub(super) start: Sequence,
    /// Its terminal event.
    pub(super) end: Option<Sequence>,
    /// `None` for a message that wants no answer.
    pub(super) options: Option<TurnOptions>,
}

impl Conversation {
    pub(super) fn new(key: &ConversationKey) -> Self {
        Self {
            principal: key.principal().to_owned(),
            id: key.id(),
            counter: Sequence(0),
            epoch: 0,
            turn: None,
            previous: Sequence(0),
            touched: 0,
        }
    }

    /// The turn that is not over.
    pub(super) fn active(&self) -> Option<&Turn> {
        self.turn.as_ref().filter(|turn| !turn.over)
    }
}

impl Tables<'_> {
    pub(super) fn conversation(
        &self,
        digest: ConversationDigest,
    ) -> Result<Option<Conversation>, Fault> {
        if let Some(held) = self.held(digest) {
            return Ok(Some(held));
        }
        let Some(bytes) = self.conversations.get(&digest.0)? else { return Ok(None) };
        Ok(Some(decode(bytes.value(), || named(&digest.0))?))
    }

    /// Writes a conversation that was touched now, and the deltas that were held.
    pub(super) fn put_conversation(
        &mut self,
        digest: ConversationDigest,
        conversation: &mut Conversation,
        now: SystemTime,
    ) -> Result<(), Fault> {
        conversation.touched = millis(now);
        self.settle_events(digest)?;
        self.put_record(digest, conversation)
    }

    /// Writes a conversation's record. A new one is looked at again once its time is over.
    pub(super) fn put_record(
        &mut self,
        digest: ConversationDigest,
        conversation: &Conversation,
    ) -> Result<(), Fault> {
        let bytes = encode(conversation)?;
        self.effects.changed = true;
        let before = self.conversations.insert(&digest.0, bytes.as_slice())?;
        if before.is_none() {
            self.idle.insert((conversation.touched, &digest.0), ())?;
        }
        Ok(())
    }

    pub(super) fn request(
        &self,
        digest: ConversationDigest,
        request: RequestId,
    ) -> Result<Option<Request>, Fault> {
        let Some(bytes) = self.requests.get((&digest.0, request.0.as_bytes()))? else {
            return Ok(None);
        };
        Ok(Some(decode(bytes.value(), || format!("{}, request {request}", named(&digest.0)))?))
    }

    pub(super) fn put_request(
        &mut self,
        digest: ConversationDigest,
        id: RequestId,
        request: &Request,
    ) -> Result<(), Fault> {
        let bytes = encode(request)?;
        self.effects.changed = true;
        self.requests.insert((&digest.0, id.0.as_bytes()), bytes.as_slice())?;
        Ok(())
    }

    /// Logs an event at the conversation's next place, and returns it. The conversation has to be written
    /// or held after it; a delta is held until then.
    pub(super) fn log(
        &mut self,
        digest: ConversationDigest,
        conversation: &mut Conversation,
        turn: Option<RequestId>,
        body: EventBody,
        now: SystemTime,
    ) -> Result<Event, Fault> {
        let sequence = Sequence(conversation.counter.0 + 1);
        let event = Event { position: Position::random(sequence), turn, time: now, body };
        let bytes = encode(&event)?;
        self.effects.changed = true;
        if let EventBody::Delta(_) = event.body {
            self.add(digest, sequence, &bytes);
        } else {
            self.events.insert((&digest.0, sequence.0), bytes.as_slice())?;
        }
        conversation.counter = sequence;
        Ok(event)
    }

    /// Ends the turn with the event that was just logged.
    pub(super) fn end_turn(
        &mut self,
        digest: ConversationDigest,
        turn: &mut Turn,
        mut request: Request,
        now: SystemTime,
    ) -> Result<(), Fault> {
        turn.over = true;
        request.end = Some(turn.last);
        self.put_request(digest, turn.request, &request)?;
        self.ended.insert((millis(now), &digest.0, turn.start.0), turn.last.0)?;
        Ok(())
    }

    /// The request of a turn, which has to be there.
    pub(super) fn request_of(
        &self,
        digest: ConversationDigest,
        turn: &Turn,
    ) -> Result<Request, Fault> {
        self.request(digest, turn.request)?.ok_or_else(|| {
            Error::Corrupt(format!("{}: no request {}", named(&digest.0), turn.request)).into()
        })
    }

    /// Removes the deltas from `from` to before `to`. What cannot be read stays.
    pub(super) fn forget_deltas(
        &mut self,
        digest: ConversationDigest,
        from: Sequence,
        to: Sequence,
    ) -> Result<(), Fault> {
        if from >= to {
            return Ok(());
        }
        let mut removed = false;
        self.events.retain_in((&digest.0, from.0)..(&digest.0, to.0), |_, bytes| {
            let event = serde_json::from_slice::<Event>(bytes);
            let delta = event.is_ok_and(|event| matches!(event.body, EventBody::Delta(_)));
            removed |= delta;
            !delta
        })?;
        self.effects.changed |= removed;
        Ok(())
    }
}

/// Since 1970; a clock before that is one at it.
pub(super) fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
