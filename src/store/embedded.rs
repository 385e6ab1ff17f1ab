//! The embedded store: one redb file, or the same in memory.
//!
//! One thread writes, in transactions that many callers share; readers use snapshots beside it. What
//! the file holds survives a power loss once it is acknowledged. Leases do not outlive the process: a
//! turn that is open when the file is opened has lost its owner, and is ended at once.

mod conversations;
mod dump;
mod file;
mod journal;
mod knowledge;
mod leases;
mod memory;
mod records;
mod sweep;
mod tables;
mod turns;
mod writer;

use std::{
    sync::{Arc, RwLock},
    thread::JoinHandle,
    time::Duration,
};

use prometheus_client::registry::Registry;
use redb::Database;
use tokio::sync::{mpsc, watch};
use tracing::error;

pub use self::dump::{Selection, dump};
use self::{
    file::{File, guarded, in_memory, open_file},
    journal::Journal,
    leases::Leases,
    tables::{Fault, Tables, prepare},
    writer::{GROUP, Job, Metrics, Writer, job},
};
use super::{Error, hints::Hints};
use crate::{
    config::{self, StoreUrl},
    domain::Revision,
    health::Dependency,
};

/// Time for a read or a commit, its wait for others included. A disk that hangs gives no error.
const DEADLINE: Duration = Duration::from_secs(10);

/// The store of one machine.
#[derive(Debug)]
pub struct Embedded {
    /// `None` once it is closed; dropping the sender ends the writer.
    jobs: Option<mpsc::Sender<Job>>,
    file: Arc<File>,
    revision: watch::Sender<Revision>,
    hints: Hints,
    leases: Arc<Leases>,
    writer: Option<JoinHandle<()>>,
    deadline: Duration,
}

impl Embedded {
    /// Opens the store, creating it where it is missing, and starts its writer. With `set_aside` a
    /// file that cannot be opened because it is damaged is renamed and a new one begun. Blocks while
    /// the file is opened, read, and repaired after a crash.
    pub fn open(
        config: &config::Store,
        set_aside: bool,
        dependency: Dependency,
        registry: &mut Registry,
    ) -> Result<Self, Error> {
        let (path, database) = match &config.url {
            StoreUrl::Memory => (None, in_memory()?),
            StoreUrl::File(path) => (Some(path.clone()), open_file(path, set_aside)?),
            StoreUrl::Redis(_) => {
                return Err(Error::Refused("its URL names no file".to_owned()));
            }
        };
        let newest = guarded(|| prepare(&database))?;
        let (revision, _) = watch::channel(newest);
        let (database, journal) = (RwLock::new(Some(database)), Journal::default());
        let file = Arc::new(File { path, database, journal });
        let (jobs, queue) = mpsc::channel(GROUP);
        let (hints, leases) = (Hints::default(), Arc::new(Leases::new(config.lease)));
        dependency.up();
        let writer = Writer {
            file: Arc::clone(&file),
            queue,
            revision: revision.clone(),
            hints: hints.clone(),
            leases: Arc::clone(&leases),
            retention: config.retention,
            dependency,
            metrics: Metrics::new(registry),
        };
        let writer = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(|error| Error::Down(format!("no thread for the writer: {error}")))?;
        Ok(Self {
            jobs: Some(jobs),
            file,
            revision,
            hints,
            leases,
            writer: Some(writer),
            deadline: DEADLINE,
        })
    }

    /// Has the writer do something; returns once that is on the disk. It is done again where somebody
    /// else's change, in the same transaction, has spoilt that.
    async fn change<T: Send + 'static>(
        &self,
        change: impl FnMut(&mut Tables<'_>) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Error> {
        let lost = || Error::Down("a write failed, or it is being closed".to_owned());
        let (job, outcome) = job(change);
        let jobs = self.jobs.as_ref().ok_or_else(lost)?;
        let changed = async {
            jobs.send(job).await.map_err(|_| lost())?;
            self.wake();
            outcome.await.map_err(|_| lost())?
        };
        // It may be kept all the same; everything can be sent again.
        let slow = |_| Error::Down("a commit takes too long, its disk may hang".to_owned());
        tokio::time::timeout(self.deadline, changed).await.map_err(slow)?
    }

    /// Reads a snapshot.
    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Database) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let file = Arc::clone(&self.file);
        let mut read = tokio::task::spawn_blocking(move || file.with(look));
        if let Ok(read) = tokio::time::timeout(self.deadline, &mut read).await {
            return read.map_err(|error| Error::Down(format!("a read was lost: {error}")))?;
        }
        // One that has not begun need not begin any more.
        read.abort();
        Err(Error::Down("a read takes too long, its disk may hang".to_owned()))
    }

    fn wake(&self) {
        if let Some(writer) = &self.writer {
            writer.thread().unpark();
        }
    }
}

impl Drop for Embedded {
    /// Commits what was accepted and closes the file.
    fn drop(&mut self) {
        self.jobs = None;
        self.wake();
        if self.writer.take().is_some_and(|writer| writer.join().is_err()) {
            error!("the store's writer panicked");
        }
    }
}

#[cfg(test)]
mod tests;
