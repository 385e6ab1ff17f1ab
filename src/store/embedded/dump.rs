//! What a file holds, one JSON object for each thing, for people.
//!
//! The file is opened without a write, so a dump shows what a server would find and changes nothing.

use std::path::Path;

use redb::{
    Key, ReadOnlyTable, ReadTransaction, ReadableDatabase as _, ReadableTable as _,
    ReadableTableMetadata as _, TableDefinition, TableError, Value as Stored,
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    super::Error,
    file::{down, open_to_look},
    records::{Conversation, Request},
    tables::{
        CONVERSATIONS, EVENTS, FORMAT, Id, JOURNAL, KNOWLEDGE_LOG, META, REQUESTS, decode, named,
    },
};
use crate::domain::{Change, ConversationId, Event};

/// What to dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Selection {
    /// The changes of the knowledge base.
    pub knowledge: bool,
    /// The conversations.
    pub conversations: bool,
    /// Of the conversations, only those with this id: every principal may have one.
    pub conversation: Option<ConversationId>,
}

/// Gives every object in the file at `path` to `line`.
pub fn dump<E: From<Error>>(
    path: &Path,
    selection: Selection,
    mut line: impl FnMut(Value) -> Result<(), E>,
) -> Result<(), E> {
    let database = open_to_look(path)?;
    let transaction = database.begin_read().map_err(down)?;
    check_format(&transaction)?;
    if selection.knowledge {
        dump_knowledge(&transaction, &mut line)?;
    }
    if selection.conversations {
        check_journal(path, &transaction)?;
        dump_conversations(&transaction, selection.conversation, &mut line)?;
    }
    Ok(())
}

fn check_format(transaction: &ReadTransaction) -> Result<(), Error> {
    let Some(meta) = table(transaction, META)? else { return Ok(()) };
    let format = meta.get("format").map_err(down)?.map_or(0, |format| format.value());
    if format > FORMAT {
        return Err(Error::Newer { format, known: FORMAT });
    }
    Ok(())
}

/// Whether all events are in their place.
fn check_journal(path: &Path, transaction: &ReadTransaction) -> Result<(), Error> {
    match table(transaction, JOURNAL)? {
        Some(journal) if !journal.is_empty().map_err(down)? => Err(Error::Open {
            path: path.to_owned(),
            why:
                "its last deltas are not in their place; start the server with it once, which puts \
                  them there"
                    .to_owned(),
        }),
        _ => Ok(()),
    }
}

/// A table of a file that an older version wrote may be missing.
fn table<K: Key + 'static, V: Stored + 'static>(
    transaction: &ReadTransaction,
    definition: TableDefinition<'static, K, V>,
) -> Result<Option<ReadOnlyTable<K, V>>, Error> {
    match transaction.open_table(definition) {
        Ok(table) => Ok(Some(table)),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(down(error)),
    }
}

fn dump_knowledge<E: From<Error>>(
    transaction: &ReadTransaction,
    line: &mut impl FnMut(Value) -> Result<(), E>,
) -> Result<(), E> {
    let Some(log) = table(transaction, KNOWLEDGE_LOG)? else { return Ok(()) };
    for row in log.iter().map_err(down)? {
        let (revision, change) = row.map_err(down)?;
        let revision = revision.value();
        let what = || format!("knowledge revision {revision}");
        let change: Change = decode(change.value(), what)?;
        line(json!({ "type": "knowledge", "revision": revision, "change": change }))?;
    }
    Ok(())
}

fn dump_conversations<E: From<Error>>(
    transaction: &ReadTransaction,
    only: Option<ConversationId>,
    line: &mut impl FnMut(Value) -> Result<(), E>,
) -> Result<(), E> {
    let (Some(conversations), Some(requests), Some(events)) = (
        table(transaction, CONVERSATIONS)?,
        table(transaction, REQUESTS)?,
        table(transaction, EVENTS)?,
    ) else {
        return Ok(());
    };
    for row in conversations.iter().map_err(down)? {
        let (digest, conversation) = row.map_err(down)?;
        let digest = digest.value();
        let conversation: Conversation = decode(conversation.value(), || named(digest))?;
        let id = conversation.id;
        if only.is_some_and(|only| only != id) {
            continue;
        }
        line(json!({ "type": "conversation", "id": id, "conversation": conversation }))?;
        let of_it = (digest, &[u8::MIN; 16])..=(digest, &[u8::MAX; 16]);
        for row in requests.range::<(&Id, &Id)>(of_it).map_err(down)? {
            let (key, request) = row.map_err(down)?;
            let name = Uuid::from_bytes(*key.value().1);
            let request: Request = decode(request.value(), || named(digest))?;
            let turn = request.options.is_some();
            line(json!({
                "type": if turn { "turn" } else { "post" },
                "conversation": id,
                "request": name,
                "state": request,
            }))?;
        }
        for row in events.range((digest, 0)..=(digest, u64::MAX)).map_err(down)? {
            let event: Event = decode(row.map_err(down)?.1.value(), || named(digest))?;
            line(json!({
                "type": "event",
                "conversation": id,
                "sequence": event.position.sequence,
                "resume_token": event.position.to_string(),
                "time": humantime::format_rfc3339_millis(event.time).to_string(),
                "turn": event.turn,
                "event": event.body,
            }))?;
        }
    }
    Ok(())
}
