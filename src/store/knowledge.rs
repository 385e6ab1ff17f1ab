//! What a store does with knowledge: a log of changes that every replica follows.

use std::fmt;

use tokio::sync::watch;

use super::Error;
use crate::domain::{Change, Revision};

/// The knowledge log, in a store. Clones of an `Arc` share it; every method may be called at any
/// time.
#[async_trait::async_trait]
pub trait KnowledgeLog: Send + Sync + fmt::Debug {
    /// Adds `changes`, all or none, and returns the revision that holds them. Returns only when they
    /// are as safe as the store makes them.
    async fn append_knowledge(&self, changes: Vec<Change>) -> Result<Revision, Error>;

    /// The changes after `after`, oldest first, at most `most`, with their revisions. Of several
    /// changes of one entry only the last is kept, so revisions have gaps; applying all of them in
    /// order gives the knowledge base as it is.
    async fn read_knowledge(
        &self,
        after: Revision,
        most: usize,
    ) -> Result<Vec<(Revision, Change)>, Error>;

    /// The newest revision that this replica knows of, and a wake-up whenever it grows. A hint: a
    /// reader that misses one still has to look from time to time.
    fn knowledge_revision(&self) -> watch::Receiver<Revision>;
}
