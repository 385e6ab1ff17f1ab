//! The deltas of turns that run, in the order of time.
//!
//! A thousand turns that log a few words each would have every commit change two pages for each of them: the
//! one that their events are on, and the one of their record. So a commit writes all their deltas as one row
//! of a table, one after the other, and keeps them in memory for readers. A turn's deltas go to where they
//! belong, and its record with them, once something else happens to the conversation, such as the turn's
//! end, or when they are the oldest and there are many: by then they fill pages. After a crash those in the
//! table are put there at the start. (The memory and the log of a log-structured merge tree, for one table.)

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    super::Error,
    records::Conversation,
    tables::{Fault, Tables, decode, named},
};
use crate::domain::{ConversationDigest, Event, Sequence};

/// Bytes of rows from which on the oldest deltas are moved. Half as much again may be read after a crash, and
/// about that is held in memory. Small in tests, which would never come to it.
const MOST: usize = if cfg!(test) { 2 * 1024 } else { 8 * 1024 * 1024 };
/// Bytes that a commit moves then, beside twice what it adds: as little as will do, since others wait for it.
const EXTRA: usize = 4 * 1024;

/// JSON of an event.
type Json = Arc<[u8]>;

/// What was committed and is in no other table yet.
#[derive(Debug, Default)]
pub(super) struct Journal(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    held: HashMap<ConversationDigest, Held>,
    /// Conversations by the row that their first delta is in. One that was settled meanwhile is held no
    /// more, or from a later row on.
    order: VecDeque<(u64, ConversationDigest)>,
    /// The rows there are, and the bytes of each.
    rows: VecDeque<(u64, usize)>,
    bytes: usize,
    next: u64,
}

/// What is held of a conversation: its record as it would be, and the deltas that are its newest events.
#[derive(Debug)]
struct Held {
    first: u64,
    conversation: Conversation,
    events: Vec<(Sequence, Json)>,
}

/// What a transaction does to a conversation.
#[derive(Debug, Default)]
pub(super) struct Draft {
    /// What was held before is in its tables.
    settled: bool,
    conversation: Option<Conversation>,
    added: Vec<(Sequence, Json)>,
}

/// What a transaction has written, to be known once it is committed.
#[derive(Debug)]
pub(super) struct Written {
    row: u64,
    size: usize,
    /// Older rows are gone.
    oldest: u64,
    drafts: HashMap<ConversationDigest, Draft>,
}

impl Journal {
    /// What is held of a conversation's events, from one on.
    pub(super) fn events(
        &self,
        digest: ConversationDigest,
        from: Sequence,
    ) -> Vec<(Sequence, Json)> {
        let state = self.lock();
        let Some(held) = state.held.get(&digest) else { return Vec::new() };
        let before = held.events.partition_point(|(sequence, _)| *sequence < from);
        held.events[before..].to_vec()
    }

    /// A transaction is committed.
    pub(super) fn committed(&self, written: Written) {
        let Written { row, size, oldest, drafts } = written;
        let mut state = self.lock();
        let State { held, order, rows, bytes, next } = &mut *state;
        for (digest, Draft { settled, conversation, added }) in drafts {
            if settled {
                held.remove(&digest);
            }
            let (Some(conversation), false) = (conversation, added.is_empty()) else { continue };
            match held.entry(digest) {
                Entry::Occupied(mut held) => {
                    held.get_mut().conversation = conversation;
                    held.get_mut().events.extend(added);
                }
                Entry::Vacant(new) => {
                    new.insert(Held { first: row, conversation, events: added });
                    order.push_back((row, digest));
                }
            }
        }
        while let Some((_, size)) = rows.pop_front_if(|(row, _)| *row < oldest) {
            *bytes -= size;
        }
        if size > 0 {
            rows.push_back((row, size));
            *bytes += size;
            *next = row + 1;
        }
        while let Some((first, digest)) = order.front()
            && held.get(digest).is_none_or(|held| held.first != *first)
        {
            order.pop_front();
        }
    }

    /// All of it was put where it belongs.
    pub(super) fn clear(&self) {
        *self.lock() = State::default();
    }

    fn conversation(&self, digest: ConversationDigest) -> Option<Conversation> {
        self.lock().held.get(&digest).map(|held| held.conversation.clone())
    }

    /// The conversation at a place of the order, and the row that its first delta is in.
    fn at(&self, place: usize) -> Option<(u64, ConversationDigest)> {
        self.lock().order.get(place).copied()
    }

    fn is_held_since(&self, digest: ConversationDigest, row: u64) -> bool {
        self.lock().held.get(&digest).is_some_and(|held| held.first == row)
    }

    fn next(&self) -> u64 {
        self.lock().next
    }

    fn size(&self) -> usize {
        self.lock().bytes
    }

    fn rows_before(&self, oldest: u64) -> Vec<u64> {
        let state = self.lock();
        state.rows.iter().map(|(row, _)| *row).take_while(|row| *row < oldest).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables<'_> {
    /// The record of a conversation that is held.
    pub(super) fn held(&self, digest: ConversationDigest) -> Option<Conversation> {
        match self.drafts.get(&digest) {
            Some(Draft { conversation: Some(conversation), .. }) => Some(conversation.clone()),
            Some(Draft { settled: true, .. }) => None,
            _ => self.journal.conversation(digest),
        }
    }

    /// Adds a delta. The conversation's record has to follow, by [`Self::hold`] or into its table.
    pub(super) fn add(&mut self, digest: ConversationDigest, sequence: Sequence, event: &[u8]) {
        self.drafts.entry(digest).or_default().added.push((sequence, event.into()));
    }

    /// Holds the record of a conversation to which nothing but deltas was added.
    pub(super) fn hold(&mut self, digest: ConversationDigest, conversation: Conversation) {
        self.drafts.entry(digest).or_default().conversation = Some(conversation);
    }

    /// Puts the deltas of a conversation where they belong; its record has to follow. Tells how many bytes
    /// they have.
    pub(super) fn settle_events(&mut self, digest: ConversationDigest) -> Result<usize, Fault> {
        let draft = self.drafts.entry(digest).or_default();
        draft.conversation = None;
        let before =
            if draft.settled { Vec::new() } else { self.journal.events(digest, Sequence(0)) };
        draft.settled = true;
        let mut bytes = 0;
        for (sequence, event) in before.into_iter().chain(std::mem::take(&mut draft.added)) {
            self.events.insert((&digest.0, sequence.0), &*event)?;
            self.effects.changed = true;
            bytes += event.len();
        }
        Ok(bytes)
    }

    /// Puts a conversation that is held where it belongs. Tells how many bytes its deltas have.
    pub(super) fn settle(&mut self, digest: ConversationDigest) -> Result<usize, Fault> {
        let Some(conversation) = self.held(digest) else { return Ok(0) };
        let bytes = self.settle_events(digest)?;
        self.put_record(digest, &conversation)?;
        Ok(bytes)
    }

    /// Settles all that is held.
    pub(super) fn settle_all(&mut self) -> Result<(), Fault> {
        for place in 0.. {
            let Some((_, digest)) = self.journal.at(place) else { break };
            self.settle(digest)?;
        }
        Ok(())
    }

    /// Writes what was added as a row, moves what is the oldest if there is much, and removes the rows that
    /// nobody needs any more.
    pub(super) fn write_journal(&mut self) -> Result<Written, Fault> {
        let row = self.journal.next();
        let added = |draft: &Draft| draft.added.iter().map(|(_, event)| event.len()).sum::<usize>();
        let adds: usize = self.drafts.values().map(added).sum();
        let many = adds > 0 && self.journal.size() + adds > MOST;
        let mut to_move = if many { 2 * adds + EXTRA } else { 0 };
        let mut place = 0;
        let oldest = loop {
            let Some((first, digest)) = self.journal.at(place) else { break row };
            let settled = self.drafts.get(&digest).is_some_and(|draft| draft.settled);
            if !settled && self.journal.is_held_since(digest, first) {
                if to_move == 0 {
                    break first;
                }
                to_move = to_move.saturating_sub(self.settle(digest)?.max(1));
            }
            place += 1;
        };
        for old in self.journal.rows_before(oldest) {
            self.rows.remove(old)?;
        }
        let mut frames = Vec::new();
        for (digest, draft) in &self.drafts {
            for (_, event) in &draft.added {
                let length = u32::try_from(event.len());
                let length =
                    length.map_err(|_| Error::Refused("an event is too large".to_owned()))?;
                frames.extend_from_slice(&digest.0);
                frames.extend_from_slice(&length.to_be_bytes());
                frames.extend_from_slice(event);
            }
        }
        if !frames.is_empty() {
            self.rows.insert(row, frames.as_slice())?;
        }
        let drafts = std::mem::take(&mut self.drafts);
        Ok(Written { row, size: frames.len(), oldest, drafts })
    }

    /// Puts what is in the rows where it belongs, as at the start, when nothing is held: what no record
    /// counts yet. Unless `all` is asked for, what belongs to a record that cannot be read is left out.
    pub(super) fn replay(&mut self, all: bool) -> Result<(), Fault> {
        while let Some((row, frames)) = self.first_row()? {
            self.effects.changed = true;
            let mut rest = frames.as_slice();
            while !rest.is_empty() {
                let damaged = || Error::Corrupt(format!("row {row} of the journal is damaged"));
                let (digest, length);
                (digest, rest) = rest.split_first_chunk().ok_or_else(damaged)?;
                (length, rest) = rest.split_first_chunk().ok_or_else(damaged)?;
                let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| damaged())?;
                let event = rest.get(..length).ok_or_else(damaged)?;
                rest = &rest[length..];
                self.replay_event(ConversationDigest(*digest), event, all)?;
            }
        }
        Ok(())
    }

    fn first_row(&mut self) -> Result<Option<(u64, Vec<u8>)>, Fault> {
        let row = self.rows.pop_first()?;
        Ok(row.map(|(row, frames)| (row.value(), frames.value().to_vec())))
    }

    fn replay_event(
        &mut self,
        digest: ConversationDigest,
        bytes: &[u8],
        all: bool,
    ) -> Result<(), Fault> {
        let event: Event = decode(bytes, || format!("{}, journal", named(&digest.0)))?;
        let mut conversation = match self.conversation(digest) {
            Ok(Some(conversation)) => conversation,
            Ok(None) => return Ok(()),
            Err(Fault::Refused(_)) if !all => return Ok(()),
            Err(fault) => return Err(fault),
        };
        let running = conversation.turn.as_mut();
        let running = running.filter(|turn| !turn.over && event.turn == Some(turn.request));
        let Some(turn) = running else { return Ok(()) };
        let sequence = event.position.sequence;
        // Rows outlive what was settled from them.
        if sequence <= conversation.counter {
            return Ok(());
        }
        if sequence.0 != conversation.counter.0 + 1 {
            let why = format!("{}: no event before {}", named(&digest.0), sequence.0);
            return Err(Error::Corrupt(why).into());
        }
        turn.visible = true;
        turn.number += 1;
        turn.last = sequence;
        conversation.counter = sequence;
        self.events.insert((&digest.0, sequence.0), bytes)?;
        self.put_conversation(digest, &mut conversation, event.time)
    }
}
