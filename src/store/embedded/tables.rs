//! The tables of the file, and what a transaction of the writer does with them.
//!
//! Values are JSON: they are read far less often than written, are small, and can be looked at. Keys
//! are of fixed size and in the order in which they are read.

use std::collections::HashMap;

use redb::{
    Database, ReadableDatabase as _, ReadableTable as _, StorageError, Table, TableDefinition,
    WriteTransaction,
};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    super::{Error, place},
    file::down,
    journal::{Draft, Journal},
    records::{Conversation, Request},
};
use crate::domain::{Change, ConversationDigest, Event, Revision};

/// The digest of a conversation, or the id of a request.
pub(super) type Id = [u8; 16];
/// A definition whose keys and values are borrowed.
type Definition<K, V> = TableDefinition<'static, K, V>;

/// Facts about the file: `format`, `knowledge_revision`.
pub(super) const META: Definition<&str, u64> = TableDefinition::new("meta");
/// Changes by revision.
pub(super) const KNOWLEDGE_LOG: Definition<u64, &[u8]> = TableDefinition::new("knowledge_log");
/// Each entry's last revision, by answer id. Only that change stays in the log.
pub(super) const KNOWLEDGE_LATEST: Definition<i32, u64> = TableDefinition::new("knowledge_latest");
/// [`Conversation`] by digest.
pub(super) const CONVERSATIONS: Definition<&Id, &[u8]> = TableDefinition::new("conversations");
/// [`Event`] by digest and sequence.
pub(super) const EVENTS: Definition<(&Id, u64), &[u8]> = TableDefinition::new("events");
/// [`Request`] by digest and request id.
pub(super) const REQUESTS: Definition<(&Id, &Id), &[u8]> = TableDefinition::new("requests");
/// Deltas of turns that run, by number of commit: digest, length of 4 bytes and [`Event`] for each.
pub(super) const JOURNAL: Definition<u64, &[u8]> = TableDefinition::new("journal");
/// One row for each conversation: a time, in milliseconds, before which it is not forgotten, and its
/// digest. Not moved with every event, only when that time has come.
pub(super) const IDLE: Definition<(u64, &Id), ()> = TableDefinition::new("idle");
/// Turns whose deltas have not expired: when the turn ended, its digest and its start; its end.
pub(super) const ENDED: Definition<(u64, &Id, u64), u64> = TableDefinition::new("ended");

/// The layout of the tables. A newer one is refused, never guessed at. 1 had no conversations, 2 no journal.
pub(super) const FORMAT: u64 = 3;

/// Why a job has failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// This job alone; it has changed nothing.
    Refused(Error),
    /// The database, and with it everything in the transaction. [`Error::Corrupt`] is this job's alone,
    /// in the middle of which the transaction is given up.
    Database(Error),
}

impl Fault {
    /// Where there is one job only, it does not matter which.
    pub(super) fn into_error(self) -> Error {
        match self {
            Self::Refused(error) | Self::Database(error) => error,
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl From<StorageError> for Fault {
    fn from(error: StorageError) -> Self {
        Self::Database(down(error))
    }
}

/// The tables, open in one transaction.
pub(super) struct Tables<'t> {
    pub(super) meta: Table<'t, &'static str, u64>,
    pub(super) knowledge_log: Table<'t, u64, &'static [u8]>,
    pub(super) knowledge_latest: Table<'t, i32, u64>,
    pub(super) conversations: Table<'t, &'static Id, &'static [u8]>,
    pub(super) events: Table<'t, (&'static Id, u64), &'static [u8]>,
    pub(super) requests: Table<'t, (&'static Id, &'static Id), &'static [u8]>,
    pub(super) idle: Table<'t, (u64, &'static Id), ()>,
    pub(super) ended: Table<'t, (u64, &'static Id, u64), u64>,
    /// The rows of the journal, what is held of them, and what this transaction changes of that.
    pub(super) rows: Table<'t, u64, &'static [u8]>,
    pub(super) journal: &'t Journal,
    pub(super) drafts: HashMap<ConversationDigest, Draft>,
    pub(super) effects: Effects,
}

/// What has to be told after the commit, if there is something to commit.
#[derive(Debug, Default)]
pub(super) struct Effects {
    pub(super) changed: bool,
    pub(super) revision: Option<Revision>,
    pub(super) grown: Vec<ConversationDigest>,
    pub(super) cancelled: Vec<ConversationDigest>,
    /// Their owners have waited for the commit.
    pub(super) owned: Vec<ConversationDigest>,
}

impl<'t> Tables<'t> {
    fn open(transaction: &'t WriteTransaction, journal: &'t Journal) -> Result<Self, Error> {
        Ok(Self {
            meta: transaction.open_table(META).map_err(down)?,
            knowledge_log: transaction.open_table(KNOWLEDGE_LOG).map_err(down)?,
            knowledge_latest: transaction.open_table(KNOWLEDGE_LATEST).map_err(down)?,
            conversations: transaction.open_table(CONVERSATIONS).map_err(down)?,
            events: transaction.open_table(EVENTS).map_err(down)?,
            requests: transaction.open_table(REQUESTS).map_err(down)?,
            idle: transaction.open_table(IDLE).map_err(down)?,
            ended: transaction.open_table(ENDED).map_err(down)?,
            rows: transaction.open_table(JOURNAL).map_err(down)?,
            journal,
            drafts: HashMap::new(),
            effects: Effects::default(),
        })
    }
}

/// Runs `change` in a transaction of its own, and commits it if it has changed something.
pub(super) fn write<T>(
    database: &Database,
    journal: &Journal,
    change: impl FnOnce(&mut Tables<'_>) -> Result<T, Error>,
) -> Result<(T, Effects), Error> {
    let transaction = database.begin_write().map_err(down)?;
    let (outcome, written, effects) = {
        let mut tables = Tables::open(&transaction, journal)?;
        let outcome = change(&mut tables)?;
        let written = tables.effects.changed.then(|| tables.write_journal());
        let written = written.transpose().map_err(Fault::into_error)?;
        (outcome, written, std::mem::take(&mut tables.effects))
    };
    if let Some(written) = written {
        // The default durability: returns after the fsync.
        transaction.commit().map_err(down)?;
        journal.committed(written);
    } else {
        transaction.abort().map_err(down)?;
    }
    Ok((outcome, effects))
}

pub(super) fn encode(value: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|error| Error::Corrupt(place(&error)))
}

pub(super) fn decode<T: DeserializeOwned>(
    bytes: &[u8],
    what: impl FnOnce() -> String,
) -> Result<T, Error> {
    serde_json::from_slice(bytes)
        .map_err(|error| Error::Corrupt(format!("{}: {}", what(), place(&error))))
}

/// Makes the tables where they are missing, checks the format by a write that reaches the disk, and puts
/// what is in the journal where it belongs.
pub(super) fn prepare(database: &Database) -> Result<Revision, Error> {
    put_in_order(database, true)
}

/// The same after a failure. What cannot be read is refused at the next start; a store that was down for
/// something else need not stay so for it.
pub(super) fn prepare_again(database: &Database) -> Result<Revision, Error> {
    put_in_order(database, false)
}

fn put_in_order(database: &Database, all: bool) -> Result<Revision, Error> {
    let (newest, _) = write(database, &Journal::default(), |tables| {
        let format = tables.meta.get("format").map_err(down)?.map(|format| format.value());
        if let Some(newer) = format.filter(|format| *format > FORMAT) {
            return Err(Error::Newer { format: newer, known: FORMAT });
        }
        tables.meta.insert("format", FORMAT).map_err(down)?;
        tables.effects.changed = true;
        tables.replay(all).map_err(Fault::into_error)?;
        let newest = tables.meta.get("knowledge_revision").map_err(down)?;
        Ok(newest.map_or(0, |revision| revision.value()))
    })?;
    Ok(Revision(newest))
}

/// Reads all of it once, which an open alone does not: damage must show at the start, not in the first
/// question.
pub(super) fn sound(database: &Database) -> Result<(), Error> {
    prepare(database)?;
    let transaction = database.begin_read().map_err(down)?;
    for row in transaction.open_table(KNOWLEDGE_LOG).map_err(down)?.iter().map_err(down)? {
        let (revision, change) = row.map_err(down)?;
        let what = || format!("knowledge revision {}", revision.value());
        decode::<Change>(change.value(), what)?;
    }
    for row in transaction.open_table(CONVERSATIONS).map_err(down)?.iter().map_err(down)? {
        let (digest, conversation) = row.map_err(down)?;
        decode::<Conversation>(conversation.value(), || named(digest.value()))?;
    }
    for row in transaction.open_table(EVENTS).map_err(down)?.iter().map_err(down)? {
        let (key, event) = row.map_err(down)?;
        let (digest, sequence) = key.value();
        decode::<Event>(event.value(), || format!("{}, event {sequence}", named(digest)))?;
    }
    for row in transaction.open_table(REQUESTS).map_err(down)?.iter().map_err(down)? {
        let (key, request) = row.map_err(down)?;
        let what = || {
            let (digest, request) = key.value();
            format!("{}, request {}", named(digest), uuid::Uuid::from_bytes(*request))
        };
        decode::<Request>(request.value(), what)?;
    }
    for row in transaction.open_table(IDLE).map_err(down)?.iter().map_err(down)? {
        row.map_err(down)?;
    }
    for row in transaction.open_table(ENDED).map_err(down)?.iter().map_err(down)? {
        row.map_err(down)?;
    }
    Ok(())
}

/// How a conversation is called where something is wrong with it.
pub(super) fn named(digest: &Id) -> String {
    format!("conversation {}", ConversationDigest(*digest))
}
