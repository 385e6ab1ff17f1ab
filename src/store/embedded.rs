//! The embedded store: one redb file, or the same in memory.
//!
//! One thread writes. It takes all appends that wait for it into one transaction (group commit), so
//! that many callers share one fsync, and answers them after it. Readers use snapshots beside it.
//!
//! After an I/O error (a full disk, a lost volume) redb refuses everything, so the file is opened
//! again, at most once a second, until a write succeeds; meanwhile the store is down and says so to
//! `health`. redb has panicked on malformed pages and full disks (its issues 1333 and 620), so every
//! use of it is guarded: a panic there is an error here.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, RwLock},
    thread::JoinHandle,
    time::Duration,
};

use prometheus_client::{
    metrics::{
        counter::Counter,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use redb::{
    Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, StorageError,
    TableDefinition, backends::InMemoryBackend,
};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot, watch},
};
use tracing::{error, info, warn};

use super::{Error, KnowledgeLog};
use crate::{
    config::StoreUrl,
    domain::{Change, Revision},
    health::Dependency,
};

/// Facts about the file: `format`, `knowledge_revision`.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Changes as JSON, by revision.
const KNOWLEDGE_LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("knowledge_log");
/// Each entry's last revision, by answer id. Only that change stays in the log.
const KNOWLEDGE_LATEST: TableDefinition<'_, i32, u64> = TableDefinition::new("knowledge_latest");

/// The layout of the tables. A newer one is refused, never guessed at.
const FORMAT: u64 = 1;
/// Appends that wait for the writer; more wait in their callers.
const QUEUE: usize = 256;
/// Appends that share a commit at most.
const GROUP: usize = 128;
/// Time for a commit. A disk that hangs gives no error.
const COMMIT: Duration = Duration::from_secs(10);
/// How often a store that is down is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The store of one machine.
#[derive(Debug)]
pub struct Embedded {
    /// `None` once it is closed; dropping the sender ends the writer.
    appends: Option<mpsc::Sender<Append>>,
    file: Arc<File>,
    revision: watch::Sender<Revision>,
    writer: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Append {
    changes: Vec<Change>,
    done: oneshot::Sender<Result<Revision, Error>>,
}

impl Embedded {
    /// Opens the store, creating it where it is missing, and starts its writer. With `set_aside` a
    /// file that cannot be opened because it is damaged is renamed and a new one begun. Must be
    /// called inside a runtime. Blocks while the file is opened, and repaired after a crash.
    pub fn open(
        url: &StoreUrl,
        set_aside: bool,
        dependency: Dependency,
        registry: &mut Registry,
    ) -> Result<Self, Error> {
        let (path, database) = match url {
            StoreUrl::Memory => (None, in_memory()?),
            StoreUrl::File(path) => (Some(path.clone()), open_file(path, set_aside)?),
            StoreUrl::Redis(_) => {
                return Err(Error::Down("this version does not open it yet".to_owned()));
            }
        };
        let newest = guarded(|| prepare(&database))?;
        let (revision, _) = watch::channel(newest);
        let file = Arc::new(File { path, database: RwLock::new(Some(database)) });
        let (appends, queue) = mpsc::channel(QUEUE);
        dependency.up();
        let writer = Writer {
            file: Arc::clone(&file),
            queue,
            revision: revision.clone(),
            dependency,
            metrics: Metrics::new(registry),
            runtime: Handle::current(),
        };
        let writer = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(|error| Error::Down(format!("no thread for the writer: {error}")))?;
        Ok(Self { appends: Some(appends), file, revision, writer: Some(writer) })
    }
}

impl Drop for Embedded {
    /// Commits what was accepted and closes the file.
    fn drop(&mut self) {
        self.appends = None;
        if self.writer.take().is_some_and(|writer| writer.join().is_err()) {
            error!("the store's writer panicked");
        }
    }
}

#[async_trait::async_trait]
impl KnowledgeLog for Embedded {
    async fn append_knowledge(&self, changes: Vec<Change>) -> Result<Revision, Error> {
        let stopped = || Error::Down("it is being closed".to_owned());
        let (done, outcome) = oneshot::channel();
        let appends = self.appends.as_ref().ok_or_else(stopped)?;
        appends.send(Append { changes, done }).await.map_err(|_| stopped())?;
        match tokio::time::timeout(COMMIT, outcome).await {
            Ok(outcome) => outcome.map_err(|_| stopped())?,
            // It may be kept all the same; changes are upserts, so they can be sent again.
            Err(_) => Err(Error::Down("a commit takes too long, its disk may hang".to_owned())),
        }
    }

    async fn read_knowledge(
        &self,
        after: Revision,
        most: usize,
    ) -> Result<Vec<(Revision, Change)>, Error> {
        let file = Arc::clone(&self.file);
        let read = move || file.with(|database| read_knowledge(database, after, most));
        tokio::task::spawn_blocking(read)
            .await
            .map_err(|error| Error::Down(format!("a read was lost: {error}")))?
    }

    fn knowledge_revision(&self) -> watch::Receiver<Revision> {
        self.revision.subscribe()
    }
}

/// The open database; `None` while it is down.
#[derive(Debug)]
struct File {
    /// `None` for a store in memory.
    path: Option<PathBuf>,
    database: RwLock<Option<Database>>,
}

impl File {
    fn with<T>(&self, use_it: impl FnOnce(&Database) -> Result<T, Error>) -> Result<T, Error> {
        let guard = self.database.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let database = guard.as_ref().ok_or_else(|| Error::Down("it is not open".to_owned()))?;
        guarded(|| use_it(database))
    }

    /// Closes the database and opens it again. A store in memory has nothing to open.
    fn reopen(&self) -> Result<(), Error> {
        let Some(path) = &self.path else {
            return Err(Error::Down("a store in memory cannot be opened again".to_owned()));
        };
        let mut guard = self.database.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        // The file's lock is held until the old one is gone.
        let _ = guarded(|| {
            drop(guard.take());
            Ok(())
        });
        let database = open_file(path, false)?;
        *guard = Some(database);
        Ok(())
    }
}

/// Turns a panic of the database into an error.
fn guarded<T>(use_it: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(use_it)).unwrap_or_else(|panic| {
        let what = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Err(Error::Down(format!("the database panicked: {what}")))
    })
}

fn down(error: impl Into<redb::Error>) -> Error {
    match error.into() {
        redb::Error::Corrupted(what) => Error::Corrupt(what),
        other => Error::Down(other.to_string()),
    }
}

fn in_memory() -> Result<Database, Error> {
    Database::builder()
        .create_with_backend(InMemoryBackend::new())
        .map_err(|error| Error::Down(error.to_string()))
}

fn open_file(path: &Path, set_aside: bool) -> Result<Database, Error> {
    let refuse = |why: String| Error::Open { path: path.to_owned(), why };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(|error| {
            refuse(format!("its folder cannot be made ({error}); make it, or set store.url"))
        })?;
    }
    let opened = catch_unwind(|| Database::create(path));
    let damage = match opened {
        Ok(Ok(database)) => match guarded(|| sound(&database)) {
            Ok(()) => return Ok(database),
            Err(Error::Corrupt(what)) => what,
            Err(error) => return Err(error),
        },
        Ok(Err(DatabaseError::DatabaseAlreadyOpen)) => {
            return Err(refuse(
                "another process has it open; one file serves one server".to_owned(),
            ));
        }
        Ok(Err(DatabaseError::UpgradeRequired(version))) => {
            return Err(refuse(format!("it has the older file format {version}")));
        }
        // A file that cannot be reached is not damaged: setting it aside would lose it for nothing.
        Ok(Err(DatabaseError::Storage(StorageError::Io(error))))
            if error.kind() != std::io::ErrorKind::InvalidData
                && error.kind() != std::io::ErrorKind::UnexpectedEof =>
        {
            return Err(refuse(error.to_string()));
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the database panicked on it".to_owned(),
    };
    if !set_aside {
        return Err(refuse(format!(
            "it is damaged ({damage}); restore a copy, or start once with --set-aside-damaged-store \
             to keep it under another name and begin anew"
        )));
    }
    let aside = free_name(path);
    fs::rename(path, &aside).map_err(|error| {
        refuse(format!("it is damaged and cannot be renamed to {} ({error})", aside.display()))
    })?;
    warn!(path = %path.display(), aside = %aside.display(), damage, "damaged store set aside");
    catch_unwind(|| Database::create(path))
        .map_err(|_| refuse("the database panicked on a new file".to_owned()))?
        .map_err(|error| refuse(error.to_string()))
}

/// Reads all of it once, which an open alone does not: damage must show at the start, not in the first
/// question.
fn sound(database: &Database) -> Result<(), Error> {
    prepare(database)?;
    let mut after = Revision(0);
    loop {
        let rows = read_knowledge(database, after, 1_000)?;
        let Some((newest, _)) = rows.last() else { return Ok(()) };
        after = *newest;
    }
}

/// `x.redb.damaged-1`, or the next number that is free.
fn free_name(path: &Path) -> PathBuf {
    let name = |number: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".damaged-{number}"));
        PathBuf::from(name)
    };
    (1..1000).map(name).find(|name| !name.exists()).unwrap_or_else(|| name(0))
}

/// Makes the tables where they are missing, and checks the format by a write that reaches the disk.
fn prepare(database: &Database) -> Result<Revision, Error> {
    let transaction = database.begin_write().map_err(down)?;
    let newest = {
        let mut meta = transaction.open_table(META).map_err(down)?;
        let format = meta.get("format").map_err(down)?.map(|format| format.value());
        if let Some(newer) = format.filter(|format| *format > FORMAT) {
            return Err(Error::Newer { format: newer, known: FORMAT });
        }
        meta.insert("format", FORMAT).map_err(down)?;
        transaction.open_table(KNOWLEDGE_LOG).map_err(down)?;
        transaction.open_table(KNOWLEDGE_LATEST).map_err(down)?;
        meta.get("knowledge_revision").map_err(down)?.map_or(0, |revision| revision.value())
    };
    transaction.commit().map_err(down)?;
    Ok(Revision(newest))
}

fn read_knowledge(
    database: &Database,
    after: Revision,
    most: usize,
) -> Result<Vec<(Revision, Change)>, Error> {
    let transaction = database.begin_read().map_err(down)?;
    let log = transaction.open_table(KNOWLEDGE_LOG).map_err(down)?;
    let from = after.0.saturating_add(1);
    log.range(from..)
        .map_err(down)?
        .take(most)
        .map(|row| {
            let (revision, change) = row.map_err(down)?;
            let change = serde_json::from_slice(change.value()).map_err(|error| {
                Error::Corrupt(format!("knowledge revision {}: {error}", revision.value()))
            })?;
            Ok((Revision(revision.value()), change))
        })
        .collect()
}

/// The thread that writes.
struct Writer {
    file: Arc<File>,
    queue: mpsc::Receiver<Append>,
    revision: watch::Sender<Revision>,
    dependency: Dependency,
    metrics: Metrics,
    runtime: Handle,
}

impl Writer {
    fn run(mut self) {
        let mut group = Vec::with_capacity(GROUP);
        while self.queue.blocking_recv_many(&mut group, GROUP) > 0 {
            let outcome = self.commit(&group);
            match outcome {
                Ok(revisions) => {
                    if let Some(newest) = revisions.last() {
                        self.revision.send_replace(*newest);
                    }
                    for (append, revision) in group.drain(..).zip(revisions) {
                        let _ = append.done.send(Ok(revision));
                    }
                }
                Err(error) => {
                    error!(%error, "the store failed, it is down until a write succeeds");
                    self.metrics.failures.inc();
                    self.dependency.down();
                    refuse(&mut group, &error);
                    if !self.recover() {
                        return;
                    }
                }
            }
        }
    }

    /// Tries to open the file again until that works, refusing appends meanwhile. False if the store
    /// is closed before that.
    fn recover(&mut self) -> bool {
        let down = Error::Down("a write failed, the file is being opened again".to_owned());
        loop {
            let deadline = tokio::time::Instant::now() + RETRY;
            loop {
                let next = self.queue.recv();
                let waited =
                    self.runtime.block_on(async { tokio::time::timeout_at(deadline, next).await });
                match waited {
                    Ok(Some(append)) => refuse(&mut vec![append], &down),
                    Ok(None) => return false,
                    Err(_) => break,
                }
            }
            match guarded(|| self.file.reopen()) {
                Ok(()) => {
                    info!("the store is open again");
                    self.dependency.up();
                    return true;
                }
                Err(error) => warn!(%error, "the store is still down"),
            }
        }
    }

    /// Writes a group in one transaction; the result has one revision per append.
    fn commit(&self, group: &[Append]) -> Result<Vec<Revision>, Error> {
        let start = std::time::Instant::now();
        let revisions = self.file.with(|database| {
            let transaction = database.begin_write().map_err(down)?;
            let revisions = {
                let mut meta = transaction.open_table(META).map_err(down)?;
                let mut log = transaction.open_table(KNOWLEDGE_LOG).map_err(down)?;
                let mut latest = transaction.open_table(KNOWLEDGE_LATEST).map_err(down)?;
                let mut newest =
                    meta.get("knowledge_revision").map_err(down)?.map_or(0, |value| value.value());
                let mut revisions = Vec::with_capacity(group.len());
                for append in group {
                    for change in &append.changes {
                        newest += 1;
                        let bytes = serde_json::to_vec(change)
                            .map_err(|error| Error::Corrupt(error.to_string()))?;
                        log.insert(newest, bytes.as_slice()).map_err(down)?;
                        let before = latest.insert(change.answer_id().0, newest).map_err(down)?;
                        if let Some(before) = before {
                            log.remove(before.value()).map_err(down)?;
                        }
                    }
                    revisions.push(Revision(newest));
                }
                meta.insert("knowledge_revision", newest).map_err(down)?;
                revisions
            };
            // The default durability: returns after the fsync.
            transaction.commit().map_err(down)?;
            Ok(revisions)
        })?;
        self.metrics.commits.observe(start.elapsed().as_secs_f64());
        Ok(revisions)
    }
}

fn refuse(group: &mut Vec<Append>, error: &Error) {
    for append in group.drain(..) {
        let _ = append.done.send(Err(Error::Down(error.to_string())));
    }
}

struct Metrics {
    commits: Histogram,
    failures: Counter,
}

impl Metrics {
    fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            commits: Histogram::new(exponential_buckets(0.000_25, 2.0, 14)),
            failures: Counter::default(),
        };
        let registry = registry.sub_registry_with_prefix("store");
        registry.register_with_unit(
            "commit",
            "Duration of group commits, fsync included",
            Unit::Seconds,
            metrics.commits.clone(),
        );
        registry.register("failures", "Group commits that failed", metrics.failures.clone());
        metrics
    }
}

#[cfg(test)]
mod tests;
