//! The log: what was said and what was taught, kept before it is acknowledged.
//!
//! [`Store`] is the seam between the service and where its log lives: [`ConversationLog`], what was
//! said, and [`KnowledgeLog`], a sequence of changes over the knowledge base.

#[cfg(test)]
mod contract;
mod conversations;
mod embedded;
mod hints;
mod knowledge;
mod redis;

use std::{path::PathBuf, sync::Arc};

use prometheus_client::registry::Registry;

pub use self::{
    conversations::{
        Active, After, Appended, Begin, Begun, ConversationLog, Found, Owner, PAGE_BYTES, Page,
        Reaped, TurnOptions, WATCHED,
    },
    embedded::{Embedded, Selection, dump},
    hints::{Hint, Hints},
    knowledge::KnowledgeLog,
    redis::Redis,
};
use crate::{
    config::{self, StoreUrl},
    error::Kind,
    health::Dependency,
    lifecycle::Lifecycle,
};

/// Where everything lives that has to outlive a connection, a client and a server.
pub trait Store: KnowledgeLog + ConversationLog {}

impl<T: KnowledgeLog + ConversationLog> Store for T {}

/// Opens the store that the settings name. With `set_aside` a file that is damaged is renamed and a
/// new one begun. A server that cannot be reached is waited for half a minute.
pub async fn open(
    config: &config::Store,
    set_aside: bool,
    dependency: Dependency,
    life: &Lifecycle,
    registry: &mut Registry,
) -> Result<Arc<dyn Store>, Error> {
    match &config.url {
        StoreUrl::Redis(url) => Ok(Redis::open(url, config, dependency, life, registry).await?),
        StoreUrl::File(_) | StoreUrl::Memory => {
            Ok(Arc::new(Embedded::open(config, set_aside, dependency, registry)?))
        }
    }
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
    /// It cannot be used as it is; the server must not start.
    #[error("cannot use the store: {0}")]
    Refused(String),
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
    /// There is no such conversation or turn (any more), or it is somebody else's.
    #[error("there is no such conversation or turn")]
    NotFound,
    /// The request is known with another payload.
    #[error("the request_id was used for another request")]
    Reused,
    /// The conversation does not have that event (any more).
    #[error("the conversation does not have that position (any more)")]
    PositionUnknown,
}

/// Where in a record something is wrong. Never what is there: it may be what somebody has said.
fn place(error: &serde_json::Error) -> String {
    let (line, column) = (error.line(), error.column());
    format!("{:?} error at line {line}, column {column}", error.classify())
}

impl Error {
    /// What the caller can do about it.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Open { .. } | Self::Refused(_) | Self::Newer { .. } | Self::Down(_) => {
                Kind::DependencyDown
            }
            Self::Corrupt(_) => Kind::Internal,
            Self::NotFound => Kind::NotFound,
            Self::Reused => Kind::Conflict,
            Self::PositionUnknown => Kind::PositionLost,
        }
    }
}
