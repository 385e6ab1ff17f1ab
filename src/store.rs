//! The log: what the server was told, kept before it is acknowledged.
//!
//! [`Store`] is the seam between the service and where its log lives. This version keeps the
//! knowledge log in it, a sequence of changes over the base; conversations follow.

#[cfg(test)]
mod contract;
mod embedded;

use std::{fmt, path::PathBuf};

use tokio::sync::watch;

pub use self::embedded::Embedded;
use crate::{
    domain::{Change, Revision},
    error::Kind,
};

/// Where the log lives. Clones of an `Arc` share it; every method may be called at any time.
#[async_trait::async_trait]
pub trait Store: Send + Sync + fmt::Debug {
    /// Adds `changes` to the knowledge log, all or none, and returns the revision that holds them.
    /// Returns only when they would survive a power loss, as far as the store can tell.
    async fn append_knowledge(&self, changes: Vec<Change>) -> Result<Revision, Error>;

    /// The changes after `after`, oldest first, at most `most`, with their revisions. Of several
    /// changes of one entry only the last is kept, so revisions have gaps; applying all of them in
    /// order gives the knowledge base as it is.
    async fn read_knowledge(
        &self,
        after: Revision,
        most: usize,
    ) -> Result<Vec<(Revision, Change)>, Error>;

    /// The newest revision, and a wake-up whenever it grows. A hint: a reader that misses one still
    /// has to look from time to time.
    fn knowledge_revision(&self) -> watch::Receiver<Revision>;
}

/// Why the store could not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be opened; the server must not start.
    #[error("cannot open the store {path}: {why}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do about it.
        why: String,
    },
    /// It is down for now; nothing of the call was kept, or it is unknown whether it was.
    #[error("the store is down: {0}")]
    Down(String),
    /// A newer version has written it.
    #[error("the store has format {format}, this version knows {known}; run the newer version")]
    Newer {
        /// Its format.
        format: u64,
        /// The newest that is known.
        known: u64,
    },
    /// What it holds cannot be read.
    #[error("the store holds something unreadable: {0}")]
    Corrupt(String),
}

impl Error {
    /// What the caller can do about it.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Open { .. } | Self::Newer { .. } | Self::Down(_) => Kind::DependencyDown,
            Self::Corrupt(_) => Kind::Internal,
        }
    }
}
