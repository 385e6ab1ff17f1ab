//! Knowledge in the file.

use redb::{Database, ReadableDatabase as _, ReadableTable as _};
use tokio::sync::watch;

use super::{
    super::{Error, KnowledgeLog},
    Embedded,
    file::down,
    tables::{Fault, KNOWLEDGE_LOG, Tables, decode, encode},
};
use crate::domain::{Change, Revision};

#[async_trait::async_trait]
impl KnowledgeLog for Embedded {
    async fn append_knowledge(&self, changes: Vec<Change>) -> Result<Revision, Error> {
        self.change(move |tables| append(tables, &changes)).await
    }

    async fn read_knowledge(
        &self,
        after: Revision,
        most: usize,
    ) -> Result<Vec<(Revision, Change)>, Error> {
        self.look(move |database| read(database, after, most)).await
    }

    fn knowledge_revision(&self) -> watch::Receiver<Revision> {
        self.revision.subscribe()
    }
}

fn append(tables: &mut Tables<'_>, changes: &[Change]) -> Result<Revision, Fault> {
    let rows = changes.iter().map(encode).collect::<Result<Vec<_>, _>>()?;
    let mut newest = tables.meta.get("knowledge_revision")?.map_or(0, |value| value.value());
    for (change, bytes) in changes.iter().zip(rows) {
        newest += 1;
        tables.knowledge_log.insert(newest, bytes.as_slice())?;
        if let Some(before) = tables.knowledge_latest.insert(change.answer_id().0, newest)? {
            tables.knowledge_log.remove(before.value())?;
        }
    }
    if !changes.is_empty() {
        tables.meta.insert("knowledge_revision", newest)?;
        tables.effects.changed = true;
        tables.effects.revision = Some(Revision(newest));
    }
    Ok(Revision(newest))
}

fn read(
    database: &Database,
    after: Revision,
    most: usize,
) -> Result<Vec<(Revision, Change)>, Error> {
    let transaction = database.begin_read().map_err(down)?;
    let log = transaction.open_table(KNOWLEDGE_LOG).map_err(down)?;
    // Nothing comes after the greatest number.
    let Some(from) = after.0.checked_add(1) else { return Ok(Vec::new()) };
    log.range(from..)
        .map_err(down)?
        .take(most)
        .map(|row| {
            let (revision, change) = row.map_err(down)?;
            let what = || format!("knowledge revision {}", revision.value());
            Ok((Revision(revision.value()), decode(change.value(), what)?))
        })
        .collect()
}
