//! The steps of a conversation, each a job of the writer.
//!
//! A step looks first and writes then: one that is refused has changed nothing that can be seen, so that the
//! others of its transaction can be kept.

use std::time::SystemTime;

use redb::ReadableTable as _;

use super::{
    super::{Appended, Begin, Begun, Error, Owner, Reaped},
    leases::Leases,
    records::{Conversation, Request, Turn, millis},
    tables::{Fault, Id, Tables, decode, named},
};
use crate::{
    domain::{
        ConversationDigest, ConversationKey, Event, EventBody, Failure, FailureReason, RequestId,
        Sequence,
    },
    telemetry::{Attempt, Subject},
};

/// A request that may be part of a conversation: either it is known, or there is a conversation, old
/// or new, to add it to.
enum Claim {
    Known(Request),
    New(Conversation),
}

fn claim(
    tables: &Tables<'_>,
    key: &ConversationKey,
    begin: &Begin,
    wants_answer: bool,
) -> Result<Claim, Fault> {
    let Some(conversation) = tables.conversation(key.digest())? else {
        if begin.existing {
            return Err(Error::NotFound.into());
        }
        return Ok(Claim::New(Conversation::new(key)));
    };
    match tables.request(key.digest(), begin.message.request)? {
        None => Ok(Claim::New(conversation)),
        Some(known) if known.fingerprint == begin.fingerprint(wants_answer) => {
            Ok(Claim::Known(known))
        }
        Some(_) => Err(Error::Reused.into()),
    }
}

pub(super) fn begin(
    tables: &mut Tables<'_>,
    leases: &Leases,
    key: &ConversationKey,
    begin: &Begin,
    answer: &[EventBody],
) -> Result<Begun, Fault> {
    let digest = key.digest();
    let mut conversation = match claim(tables, key, begin, true)? {
        Claim::Known(Request { start, end, .. }) => return Ok(Begun::Known { start, end }),
        Claim::New(conversation) => conversation,
    };
    if let Some(turn) = conversation.active() {
        return Ok(Begun::Busy { turn: turn.request, orphaned: leases.over(digest) });
    }
    let now = SystemTime::now();
    if let Some(last) = conversation.turn.take() {
        tables.forget_deltas(digest, conversation.previous, last.start)?;
        conversation.previous = last.start;
    }
    let (message, request) = add(tables, &mut conversation, digest, begin, true, now)?;
    let start = message.position.sequence;
    conversation.epoch += 1;
    let mut turn = Turn {
        request: begin.message.request,
        start,
        attempt: 1,
        taken: None,
        visible: false,
        cancelled: false,
        over: false,
        number: 0,
        last: start,
    };
    let mut logged = vec![message];
    if answer.is_empty() {
        leases.begin(digest);
        tables.effects.owned.push(digest);
    } else {
        extend(tables, &mut conversation, digest, &mut turn, answer, now, &mut logged)?;
        tables.end_turn(digest, &mut turn, request, now)?;
    }
    conversation.turn = Some(turn);
    tables.put_conversation(digest, &mut conversation, now)?;
    let owner = Owner { key: key.clone(), turn: begin.message.request, epoch: conversation.epoch };
    Ok(Begun::New { owner, start, logged })
}

pub(super) fn post(
    tables: &mut Tables<'_>,
    key: &ConversationKey,
    begin: &Begin,
) -> Result<Sequence, Fault> {
    let mut conversation = match claim(tables, key, begin, false)? {
        Claim::Known(Request { start, .. }) => return Ok(start),
        Claim::New(conversation) => conversation,
    };
    let now = SystemTime::now();
    let (message, _) = add(tables, &mut conversation, key.digest(), begin, false, now)?;
    tables.put_conversation(key.digest(), &mut conversation, now)?;
    Ok(message.position.sequence)
}

/// Logs a new request's message.
fn add(
    tables: &mut Tables<'_>,
    conversation: &mut Conversation,
    digest: ConversationDigest,
    begin: &Begin,
    wants_answer: bool,
    now: SystemTime,
) -> Result<(Event, Request), Fault> {
    let id = begin.message.request;
    let turn = wants_answer.then_some(id);
    let body = EventBody::Posted(begin.message.clone());
    let message = tables.log(digest, conversation, turn, body, now)?;
    let request = Request {
        fingerprint: begin.fingerprint(wants_answer),
        start: message.position.sequence,
        end: None,
        options: wants_answer.then(|| begin.options.clone()),
    };
    tables.put_request(digest, id, &request)?;
    tables.effects.grown.push(digest);
    Ok((message, request))
}

/// Logs events of a turn, and gives them to `logged`.
fn extend(
    tables: &mut Tables<'_>,
    conversation: &mut Conversation,
    digest: ConversationDigest,
    turn: &mut Turn,
    events: &[EventBody],
    now: SystemTime,
    logged: &mut Vec<Event>,
) -> Result<(), Fault> {
    for body in events {
        turn.visible |= matches!(body, EventBody::Delta(_));
        let event = tables.log(digest, conversation, Some(turn.request), body.clone(), now)?;
        turn.last = event.position.sequence;
        logged.push(event);
    }
    turn.number += events.len() as u64;
    Ok(())
}

pub(super) fn append(
    tables: &mut Tables<'_>,
    leases: &Leases,
    owner: &Owner,
    number: u64,
    events: &[EventBody],
) -> Result<Appended, Fault> {
    let digest = owner.key.digest();
    let Some(mut conversation) = tables.conversation(digest)? else { return Ok(Appended::Fenced) };
    let Some(mut turn) = conversation.turn.clone() else { return Ok(Appended::Fenced) };
    let Some(before) = number.checked_sub(1) else { return Ok(Appended::Fenced) };
    if (turn.request, conversation.epoch) != (owner.turn, owner.epoch) || before > turn.number {
        return Ok(Appended::Fenced);
    }
    let ends = events.last().is_some_and(EventBody::is_terminal);
    let after = before + events.len() as u64;
    let watched = || leases.watched(digest);
    let stored = |last| Appended::Stored { last, logged: Vec::new(), watched: watched() };
    if turn.over {
        let repeated = ends && after == turn.number;
        return Ok(if repeated { stored(turn.last) } else { Appended::Fenced });
    }
    if !events.is_empty() && after <= turn.number {
        // What is stored has not ended the turn, so this is something else under the same number.
        if ends {
            return Ok(Appended::Fenced);
        }
        leases.renew(digest);
        return Ok(stored(place(tables, digest, &turn, after)?));
    }
    if turn.cancelled && !ends {
        leases.renew(digest);
        return Ok(Appended::Cancelled);
    }
    if events.is_empty() {
        leases.renew(digest);
        return Ok(stored(turn.last));
    }

    let request = if ends { Some(tables.request_of(digest, &turn)?) } else { None };
    let now = SystemTime::now();
    // Of a call that overlaps what is stored, the rest is new.
    let known = usize::try_from(turn.number - before).unwrap_or(usize::MAX);
    let new = events.get(known..).unwrap_or_default();
    let mut logged = Vec::with_capacity(new.len());
    extend(tables, &mut conversation, digest, &mut turn, new, now, &mut logged)?;
    if let Some(request) = request {
        tables.end_turn(digest, &mut turn, request, now)?;
    }
    let last = turn.last;
    conversation.turn = Some(turn);
    if ends {
        tables.put_conversation(digest, &mut conversation, now)?;
    } else {
        conversation.touched = millis(now);
        tables.hold(digest, conversation);
    }
    tables.effects.grown.push(digest);
    tables.effects.owned.push(digest);
    leases.renew(digest);
    Ok(Appended::Stored { last, logged, watched: watched() })
}

/// Where the turn's event of that number is, which is not its newest where an old append is repeated.
fn place(
    tables: &mut Tables<'_>,
    digest: ConversationDigest,
    turn: &Turn,
    number: u64,
) -> Result<Sequence, Fault> {
    let mut newer = turn.number - number;
    if newer == 0 {
        return Ok(turn.last);
    }
    tables.settle(digest)?;
    let range = (&digest.0, turn.start.0)..=(&digest.0, turn.last.0);
    for row in tables.events.range(range)?.rev() {
        let event: Event = decode(row?.1.value(), || named(&digest.0))?;
        if event.turn != Some(turn.request) {
            continue;
        }
        if newer == 0 {
            return Ok(event.position.sequence);
        }
        newer -= 1;
    }
    Err(Error::Corrupt(format!("{}: events of a turn are missing", named(&digest.0))).into())
}

pub(super) fn cancel(
    tables: &mut Tables<'_>,
    digest: ConversationDigest,
    turn: RequestId,
) -> Result<(), Fault> {
    let mut conversation = tables.conversation(digest)?.ok_or(Error::NotFound)?;
    let active = conversation.turn.as_mut().filter(|newest| !newest.over && newest.request == turn);
    let Some(active) = active else {
        let known = tables.request(digest, turn)?;
        known.filter(|known| known.options.is_some()).ok_or(Error::NotFound)?;
        return Ok(());
    };
    tables.effects.cancelled.push(digest);
    if !active.cancelled {
        active.cancelled = true;
        tables.put_conversation(digest, &mut conversation, SystemTime::now())?;
    }
    Ok(())
}

pub(super) fn reap(
    tables: &mut Tables<'_>,
    leases: &Leases,
    key: &ConversationKey,
) -> Result<Option<Reaped>, Fault> {
    let digest = key.digest();
    let Some(mut conversation) = tables.conversation(digest)? else { return Ok(None) };
    let Some(turn) = conversation.turn.as_mut().filter(|turn| !turn.over && leases.over(digest))
    else {
        return Ok(None);
    };
    let request = tables.request_of(digest, turn)?;
    let now = SystemTime::now();
    conversation.epoch += 1;
    turn.attempt += 1;
    let since = turn.taken.replace(now);
    turn.number = 0;
    let reaped = Reaped {
        owner: Owner { key: key.clone(), turn: turn.request, epoch: conversation.epoch },
        start: turn.start,
        attempt: turn.attempt,
        since,
        visible: turn.visible,
        cancelled: turn.cancelled,
        options: request.options.unwrap_or_default(),
    };
    tables.put_conversation(digest, &mut conversation, now)?;
    tables.effects.owned.push(digest);
    leases.renew(digest);
    Ok(Some(reaped))
}

/// The turns that were ended at the start.
#[derive(Debug, Default)]
pub(super) struct Interrupted {
    pub(super) turns: usize,
    /// The last attempts of those that are traced.
    pub(super) traced: Vec<Attempt>,
}

/// Ends every turn that is open: the process that owned it is gone.
pub(super) fn interrupt_all(tables: &mut Tables<'_>) -> Result<Interrupted, Fault> {
    let mut open: Vec<Id> = Vec::new();
    for row in tables.conversations.iter()? {
        let (digest, conversation) = row?;
        let digest = digest.value();
        let conversation: Conversation = decode(conversation.value(), || named(digest))?;
        if conversation.active().is_some() {
            open.push(*digest);
        }
    }
    let mut interrupted = Interrupted { turns: open.len(), traced: Vec::new() };
    for digest in &open {
        interrupted.traced.extend(interrupt(tables, ConversationDigest(*digest))?);
    }
    Ok(interrupted)
}

fn interrupt(
    tables: &mut Tables<'_>,
    digest: ConversationDigest,
) -> Result<Option<Attempt>, Fault> {
    let Some(mut conversation) = tables.conversation(digest)? else { return Ok(None) };
    let Some(mut turn) = conversation.turn.take() else { return Ok(None) };
    let request = tables.request_of(digest, &turn)?;
    let attempt = request.options.as_ref().and_then(|options| {
        let (conversation, engine) = (conversation.id, options.engine);
        let subject = Subject { conversation, turn: turn.request, engine };
        Attempt::new(options.trace.as_ref()?, subject, turn.attempt, turn.taken)
    });
    let mut partial_text = String::new();
    for row in tables.events.range((&digest.0, turn.start.0)..=(&digest.0, turn.last.0))? {
        let event: Event = decode(row?.1.value(), || named(&digest.0))?;
        if let (EventBody::Delta(text), true) = (event.body, event.turn == Some(turn.request)) {
            partial_text.push_str(&text);
        }
    }
    let now = SystemTime::now();
    let body = EventBody::Failed(Failure { reason: FailureReason::Interrupted, partial_text });
    turn.last =
        tables.log(digest, &mut conversation, Some(turn.request), body, now)?.position.sequence;
    tables.end_turn(digest, &mut turn, request, now)?;
    conversation.turn = Some(turn);
    tables.put_conversation(digest, &mut conversation, now)?;
    Ok(attempt)
}
