//! The steps of a conversation, each by its script.

use std::time::{Duration, SystemTime};

use redis::{Value, from_redis_value_ref};
use uuid::Uuid;

use super::{
    Error, Hint, Redis,
    calls::{Reply, Worth},
    json, place,
    scripts::{Keys, Operation},
    subscriber::Said,
};
use crate::{
    domain::{ConversationKey, Event, EventBody, Position, RequestId, Sequence},
    store::{
        Active, After, Appended, Begin, Begun, ConversationLog, Found, Owner, PAGE_BYTES, Page,
        Reaped, TurnOptions, WATCHED,
    },
};

/// How long deltas are kept after their turn's end.
const LATE: Duration = Duration::from_mins(10);
/// Epochs grow by 1 to this, at random: see `begin.lua`.
const STEP: u64 = 1 << 20;

#[async_trait::async_trait]
impl ConversationLog for Redis {
    async fn begin_with(
        &self,
        key: &ConversationKey,
        begin: &Begin,
        answer: &[EventBody],
    ) -> Result<Begun, Error> {
        let keys = self.conversation_keys(key);
        let turn = begin.message.request;
        let names = with_request(&keys, ["conv", "lease", "log", "deltas"], turn);
        let message = EventBody::Posted(begin.message.clone());
        let mut tags = vec![random_tag()];
        let mut args = vec![
            begin.fingerprint(true),
            turn.to_string(),
            hexadecimal(tags[0]),
            json(&message)?,
            json(&begin.options)?,
            flag(begin.existing),
            step(),
            millis(self.kept.lease),
            millis(self.kept.retention),
            millis(self.kept.requests),
            key.principal().to_owned(),
            key.id().to_string(),
            keys.channel(),
            self.said(Said::Grown),
            millis(LATE),
        ];
        add_events(&mut args, &mut tags, answer)?;
        let reply = self.call(Operation::Begin, &keys, &names, &args, Worth::Much).await;
        // Whoever is told that another turn is running waits for a hint, which this must not be.
        let reply = if reply.is_err() { self.wake(key, reply)? } else { reply? };
        match reply.word()?.as_str() {
            "new" => {
                self.hints.grown(key.digest());
                let start = Sequence(reply.number(1)?);
                let bodies = std::iter::once(&message).chain(answer);
                Ok(Begun::New {
                    owner: Owner { key: key.clone(), turn, epoch: reply.number(2)? },
                    start,
                    logged: logged(turn, start, reply.number(3)?, tags.into_iter().zip(bodies)),
                })
            }
            "known" => {
                let end = if reply.text(2)?.is_empty() { None } else { Some(reply.number(2)?) };
                Ok(Begun::Known { start: Sequence(reply.number(1)?), end: end.map(Sequence) })
            }
            "busy" => Ok(Begun::Busy { turn: request(&reply, 1)?, orphaned: reply.flag(2)? }),
            _ => Err(refusal(&reply)),
        }
    }

    async fn append(
        &self,
        owner: &Owner,
        number: u64,
        events: &[EventBody],
    ) -> Result<Appended, Error> {
        let keys = self.conversation_keys(&owner.key);
        let names: Vec<_> = ["conv", "lease", "log", "deltas"]
            .map(|name| keys.named(name))
            .into_iter()
            .chain([keys.request(owner.turn), keys.named("watched")])
            .collect();
        let terminal = events.last().is_some_and(EventBody::is_terminal);
        let mut args = vec![
            owner.turn.to_string(),
            owner.epoch.to_string(),
            number.to_string(),
            flag(terminal),
            millis(self.kept.lease),
            millis(self.kept.retention),
            millis(self.kept.requests),
            millis(LATE),
            keys.channel(),
            self.said(Said::Grown),
        ];
        let mut tags = Vec::new();
        add_events(&mut args, &mut tags, events)?;
        let worth = match events {
            [] => Worth::Little,
            _ if terminal => Worth::Much,
            _ => Worth::Usual,
        };
        let reply = self.call(Operation::Append, &keys, &names, &args, worth).await;
        // A renewal is nothing that a reader could see.
        let reply = if events.is_empty() { reply? } else { self.wake(&owner.key, reply)? };
        match reply.word()?.as_str() {
            "stored" => {
                let (last, new) = (Sequence(reply.number(1)?), reply.number(3)?);
                let known = events.len() - usize::try_from(new).unwrap_or(0).min(events.len());
                let first = Sequence((last.0 + 1).saturating_sub(new));
                let added = tags.into_iter().zip(events).skip(known);
                let logged = logged(owner.turn, first, reply.number(4)?, added);
                Ok(Appended::Stored { last, logged, watched: reply.flag(2)? })
            }
            "cancelled" => Ok(Appended::Cancelled),
            "fenced" => Ok(Appended::Fenced),
            _ => Err(refusal(&reply)),
        }
    }

    async fn post(&self, key: &ConversationKey, begin: &Begin) -> Result<Sequence, Error> {
        let keys = self.conversation_keys(key);
        let names = with_request(&keys, ["conv", "log", "deltas"], begin.message.request);
        let args = [
            begin.fingerprint(false),
            hexadecimal(random_tag()),
            json(&EventBody::Posted(begin.message.clone()))?,
            flag(begin.existing),
            millis(self.kept.retention),
            millis(self.kept.requests),
            key.principal().to_owned(),
            key.id().to_string(),
            keys.channel(),
            self.said(Said::Grown),
        ];
        let reply = self.call(Operation::Post, &keys, &names, &args, Worth::Usual).await;
        let reply = self.wake(key, reply)?;
        match reply.word()?.as_str() {
            "posted" => Ok(Sequence(reply.number(1)?)),
            _ => Err(refusal(&reply)),
        }
    }

    async fn cancel(&self, key: &ConversationKey, turn: RequestId) -> Result<(), Error> {
        let keys = self.conversation_keys(key);
        let names = with_request(&keys, ["conv"], turn);
        let args = [turn.to_string(), keys.channel(), self.said(Said::Cancelled)];
        let reply = self.call(Operation::Cancel, &keys, &names, &args, Worth::Usual).await?;
        match reply.word()?.as_str() {
            "asked" => {
                self.hints.cancelled(key.digest());
                Ok(())
            }
            "over" => Ok(()),
            _ => Err(refusal(&reply)),
        }
    }

    async fn reap(&self, key: &ConversationKey) -> Result<Option<Reaped>, Error> {
        let keys = self.conversation_keys(key);
        let names = ["conv", "lease"].map(|name| keys.named(name));
        let args = [step(), millis(self.kept.lease)];
        let reply = self.call(Operation::Reap, &keys, &names, &args, Worth::Usual).await?;
        if reply.word()? == "none" {
            return Ok(None);
        }
        let since = if reply.text(8)?.is_empty() { None } else { Some(reply.number(8)?) };
        let turn = request(&reply, 1)?;
        Ok(Some(Reaped {
            owner: Owner { key: key.clone(), turn, epoch: reply.number(2)? },
            start: Sequence(reply.number(3)?),
            attempt: u32::try_from(reply.number(4)?).unwrap_or(u32::MAX),
            since: since.map(|since| SystemTime::UNIX_EPOCH + Duration::from_millis(since)),
            visible: reply.flag(5)?,
            cancelled: reply.flag(6)?,
            options: options(&reply.text(7)?)?,
        }))
    }

    async fn read(
        &self,
        key: &ConversationKey,
        after: After,
        most: usize,
        watching: bool,
    ) -> Result<Page, Error> {
        let keys = self.conversation_keys(key);
        let names = ["conv", "log", "deltas", "lease", "watched"].map(|name| keys.named(name));
        let (sequence, tag) = match after {
            After::Sequence(sequence) => (sequence, String::new()),
            After::Position(Position { sequence, tag }) => (sequence, format!("{tag:016x}")),
        };
        let most = i32::try_from(most).unwrap_or(i32::MAX);
        let args = [
            sequence.0.to_string(),
            tag,
            most.to_string(),
            flag(watching),
            millis(WATCHED),
            PAGE_BYTES.to_string(),
        ];
        let reply = self.call(Operation::Read, &keys, &names, &args, Worth::Usual).await?;
        if reply.word()? != "page" {
            return Err(refusal(&reply));
        }
        let active = if reply.text(1)?.is_empty() {
            None
        } else {
            Some(Active { turn: request(&reply, 1)?, orphaned: reply.flag(2)? })
        };
        Ok(Page { events: entries(reply.value(4)?)?, active, more: reply.flag(3)? })
    }

    async fn find(
        &self,
        key: &ConversationKey,
        request: RequestId,
    ) -> Result<Option<Found>, Error> {
        let keys = self.conversation_keys(key);
        let names = [keys.request(request)];
        let reply = self.call(Operation::Find, &keys, &names, &[], Worth::Usual).await?;
        if reply.text(1)?.is_empty() {
            return Ok(None);
        }
        let kept = reply.text(2)?;
        // A message that wants no answer has none, and those of a later version, which may not be readable
        // here, are not worth a failed call.
        let trace = options(&kept).ok().and_then(|options| options.trace);
        Ok(Some(Found { start: Sequence(reply.number(1)?), trace }))
    }

    async fn history(
        &self,
        key: &ConversationKey,
        before: Sequence,
        most: usize,
    ) -> Result<Vec<Event>, Error> {
        // A place without one before it, and a count that the server would take for none.
        if before.0 == 0 || most == 0 {
            return Ok(Vec::new());
        }
        let keys = self.conversation_keys(key);
        let most = i32::try_from(most).unwrap_or(i32::MAX);
        let args = [before.0.to_string(), most.to_string(), PAGE_BYTES.to_string()];
        let names = [keys.named("log")];
        let reply = self.call(Operation::History, &keys, &names, &args, Worth::Usual).await?;
        let mut events = entries(reply.value(1)?)?;
        events.reverse();
        Ok(events)
    }

    fn hint(&self, key: &ConversationKey) -> Hint {
        self.hints.subscribe(key.digest())
    }
}

impl Redis {
    /// Wakes the readers here without the way round, also where it is unknown whether there is
    /// something to read.
    fn wake(&self, key: &ConversationKey, reply: Result<Reply, Error>) -> Result<Reply, Error> {
        if !matches!(reply, Err(Error::Corrupt(_))) {
            self.hints.grown(key.digest());
        }
        reply
    }
}

fn with_request<const N: usize>(keys: &Keys, names: [&str; N], request: RequestId) -> Vec<String> {
    names.map(|name| keys.named(name)).into_iter().chain([keys.request(request)]).collect()
}

/// A new event's tag. The server's first one wins where a call is repeated.
fn random_tag() -> u64 {
    Position::random(Sequence(0)).tag
}

fn hexadecimal(tag: u64) -> String {
    format!("{tag:016x}")
}

/// Adds what a script wants to know of each new event.
fn add_events(
    args: &mut Vec<String>,
    tags: &mut Vec<u64>,
    events: &[EventBody],
) -> Result<(), Error> {
    for event in events {
        let (is_delta, tag) = (matches!(event, EventBody::Delta(_)), random_tag());
        args.extend([flag(is_delta), hexadecimal(tag), json(event)?]);
        tags.push(tag);
    }
    Ok(())
}

/// The events that a script has just logged from place `first` on: nothing comes between them.
fn logged<'a>(
    turn: RequestId,
    first: Sequence,
    millis: u64,
    events: impl Iterator<Item = (u64, &'a EventBody)>,
) -> Vec<Event> {
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
    let places = (first.0..).map(Sequence);
    let event = |(sequence, (tag, body)): (_, (_, &EventBody))| Event {
        position: Position { sequence, tag },
        turn: Some(turn),
        time,
        body: body.clone(),
    };
    places.zip(events).map(event).collect()
}

fn step() -> String {
    (1 + Uuid::new_v4().as_u64_pair().1 % STEP).to_string()
}

fn flag(set: bool) -> String {
    if set { "1" } else { "0" }.to_owned()
}

fn millis(duration: Duration) -> String {
    // Redis refuses more than it can add to its clock.
    const MOST: u64 = 1 << 50;
    u64::try_from(duration.as_millis()).unwrap_or(MOST).clamp(1, MOST).to_string()
}

fn request(reply: &Reply, index: usize) -> Result<RequestId, Error> {
    let id = reply.text(index)?.parse().map_err(|_| reply.unexpected(index))?;
    Ok(RequestId(id))
}

fn options(kept: &str) -> Result<TurnOptions, Error> {
    serde_json::from_str(kept)
        .map_err(|error| Error::Corrupt(format!("a turn's options: {}", place(&error))))
}

fn refusal(reply: &Reply) -> Error {
    match reply.word().as_deref() {
        Ok("reused") => Error::Reused,
        Ok("missing") => Error::NotFound,
        Ok("unknown") => Error::PositionUnknown,
        _ => reply.unexpected(0),
    }
}

/// A stream's entries, `[[id, [field, value, …]], …]`, as events.
fn entries(stream: &Value) -> Result<Vec<Event>, Error> {
    let unreadable = || Error::Corrupt("an entry of a stream".to_owned());
    let entries: Vec<(String, Vec<String>)> =
        from_redis_value_ref(stream).map_err(|_| unreadable())?;
    entries.iter().map(|(id, fields)| event(id, fields).ok_or_else(unreadable)).collect()
}

fn event(id: &str, fields: &[String]) -> Option<Event> {
    let value = |name: &str| {
        fields.chunks_exact(2).find(|field| field[0] == name).map(|field| field[1].as_str())
    };
    let sequence = Sequence(id.split_once('-')?.0.parse().ok()?);
    let turn = match value("turn")? {
        "" => None,
        turn => Some(RequestId(turn.parse().ok()?)),
    };
    Some(Event {
        position: Position { sequence, tag: u64::from_str_radix(value("tag")?, 16).ok()? },
        turn,
        time: SystemTime::UNIX_EPOCH + Duration::from_millis(value("time")?.parse().ok()?),
        body: serde_json::from_str(value("body")?).ok()?,
    })
}
