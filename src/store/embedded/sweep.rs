//! What is forgotten with time: deltas soon after their turn's end, conversations long after their last
//! event.
//!
//! Two tables are in the order of time, so a sweep looks at what is due and at nothing else, and at not
//! too much of it in one transaction: appends wait meanwhile.

use std::time::{Duration, SystemTime};

use redb::ReadableTable as _;

use super::{
    records::millis,
    tables::{Fault, Id, Tables},
};
use crate::domain::{ConversationDigest, Sequence};

/// How long deltas are kept after their turn's end, for readers that are still there or come back.
pub(super) const DELTAS: Duration = Duration::from_mins(10);
/// Rows that one sweep removes, more or less.
const ROWS: usize = 1_000;
/// No digest comes after it.
const LAST: Id = [u8::MAX; 16];

/// What a sweep did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Swept {
    /// Conversations that are gone.
    pub(super) conversations: u64,
    /// There may be more to do.
    pub(super) more: bool,
}

/// Removes what is over at `now`.
pub(super) fn sweep(
    tables: &mut Tables<'_>,
    retention: Duration,
    now: SystemTime,
) -> Result<Swept, Fault> {
    let mut left = ROWS;
    let before = |age: Duration| now.checked_sub(age).map_or(0, millis);
    sweep_deltas(tables, before(DELTAS), &mut left)?;
    let conversations = sweep_conversations(tables, before(retention), &mut left)?;
    Ok(Swept { conversations, more: left == 0 })
}

fn sweep_deltas(tables: &mut Tables<'_>, until: u64, left: &mut usize) -> Result<(), Fault> {
    while *left > 0 {
        let due = tables.ended.first()?.map(|(key, end)| {
            let (ended, digest, start) = key.value();
            (ended, *digest, start, end.value())
        });
        let Some((ended, digest, start, end)) = due.filter(|due| due.0 <= until) else { break };
        tables.forget_deltas(ConversationDigest(digest), Sequence(start), Sequence(end))?;
        tables.ended.remove((ended, &digest, start))?;
        tables.effects.changed = true;
        let rows = usize::try_from(end.saturating_sub(start)).unwrap_or(usize::MAX);
        *left = left.saturating_sub(rows.max(1));
    }
    Ok(())
}

fn sweep_conversations(
    tables: &mut Tables<'_>,
    until: u64,
    left: &mut usize,
) -> Result<u64, Fault> {
    let mut gone = 0;
    while *left > 0 {
        let due = tables.idle.first()?.map(|(key, _)| (key.value().0, *key.value().1));
        let Some((since, digest)) = due.filter(|due| due.0 <= until) else { break };
        *left -= 1;
        tables.effects.changed = true;
        // What cannot be read cannot be in use either.
        let conversation = tables.conversation(ConversationDigest(digest)).or_else(refused)?;
        let touched = conversation.map_or(0, |conversation| conversation.touched);
        if touched > until {
            tables.idle.remove((since, &digest))?;
            tables.idle.insert((touched, &digest), ())?;
            continue;
        }
        tables.settle(ConversationDigest(digest))?;
        // The record is last: as long as it is there, the conversation cannot begin anew.
        if !remove_rows(tables, &digest, left)? {
            break;
        }
        tables.conversations.remove(&digest)?;
        tables.idle.remove((since, &digest))?;
        gone += 1;
    }
    Ok(gone)
}

fn refused<T>(fault: Fault) -> Result<Option<T>, Fault> {
    match fault {
        Fault::Refused(_) => Ok(None),
        database @ Fault::Database(_) => Err(database),
    }
}

/// Removes a conversation's events and requests. False if there are more than may be removed now.
fn remove_rows(tables: &mut Tables<'_>, digest: &Id, left: &mut usize) -> Result<bool, Fault> {
    let mut events = Vec::new();
    for row in tables.events.range((digest, 0)..=(digest, u64::MAX))?.take(*left) {
        events.push(row?.0.value().1);
    }
    for sequence in &events {
        tables.events.remove((digest, *sequence))?;
    }
    *left -= events.len();
    let mut requests = Vec::new();
    for row in tables.requests.range((digest, &[0; 16])..=(digest, &LAST))?.take(*left) {
        requests.push(*row?.0.value().1);
    }
    for request in &requests {
        tables.requests.remove((digest, request))?;
    }
    *left -= requests.len();
    Ok(*left > 0)
}
