//! The file itself: opened with care, opened again after a failure, guarded against panics.
//!
//! redb has panicked on malformed pages and full disks (its issues 1333 and 620), so every use of it is
//! guarded: a panic there is an error here.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock},
};

use redb::{Builder, Database, DatabaseError, ReadOnlyDatabase, StorageError};
use tracing::{info, warn};

use super::{
    super::Error,
    journal::Journal,
    memory::Memory,
    tables::{Fault, prepare_again, sound, write},
    turns::{Interrupted, interrupt_all},
};

/// Bytes of pages that the database keeps, of a file and of a store that is in memory anyway. By itself it
/// keeps up to a GiB, which is twice what a pod of the chart may have.
const CACHE: usize = 64 * 1024 * 1024;
const CACHE_IN_MEMORY: usize = 16 * 1024 * 1024;

/// The open database; `None` while it is down.
#[derive(Debug)]
pub(super) struct File {
    /// `None` for a store in memory.
    pub(super) path: Option<PathBuf>,
    pub(super) database: RwLock<Option<Database>>,
    /// What it holds outside of its tables.
    pub(super) journal: Journal,
}

impl File {
    pub(super) fn with<T>(
        &self,
        use_it: impl FnOnce(&Database) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let guard = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let database = guard.as_ref().ok_or_else(|| Error::Down("it is not open".to_owned()))?;
        guarded(|| use_it(database))
    }

    /// Closes the database and opens it again, with a write that reaches the disk. A store in memory
    /// has nothing to open: either it still takes writes or it is gone.
    pub(super) fn reopen(&self) -> Result<(), Error> {
        let Some(path) = &self.path else {
            self.with(prepare_again)?;
            self.journal.clear();
            return Ok(());
        };
        let mut guard = self.database.write().unwrap_or_else(PoisonError::into_inner);
        // The file's lock is held until the old one is gone.
        let _ = guarded(|| {
            drop(guard.take());
            Ok(())
        });
        let database = guarded(|| {
            let database = create(path).map_err(down)?;
            prepare_again(&database)?;
            Ok(database)
        })?;
        self.journal.clear();
        *guard = Some(database);
        Ok(())
    }
}

/// Turns a panic of the database into an error.
pub(super) fn guarded<T>(use_it: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    caught(use_it).unwrap_or_else(|panic| Err(Error::Down(panic)))
}

/// What came of it, or how it panicked.
pub(super) fn caught<T>(use_it: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(use_it)).map_err(|panic| {
        let what = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        format!("the database panicked: {what}")
    })
}

pub(super) fn down(error: impl Into<redb::Error>) -> Error {
    match error.into() {
        redb::Error::Corrupted(what) => Error::Corrupt(what),
        other => Error::Down(other.to_string()),
    }
}

/// Opens a file that nobody else has open, and changes nothing in it.
pub(super) fn open_to_look(path: &Path) -> Result<ReadOnlyDatabase, Error> {
    let refuse = |why: &str| Error::Open { path: path.to_owned(), why: why.to_owned() };
    match guarded(|| Ok(cached().open_read_only(path)))? {
        Ok(database) => Ok(database),
        Err(DatabaseError::DatabaseAlreadyOpen) => {
            Err(refuse("another process has it open; stop that first, or look at a copy"))
        }
        Err(DatabaseError::RepairAborted) => Err(refuse(
            "it was not closed cleanly; start the server with it once, which repairs it",
        )),
        Err(error) => Err(refuse(&error.to_string())),
    }
}

fn create(path: &Path) -> Result<Database, DatabaseError> {
    cached().create(path)
}

fn cached() -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE);
    builder
}

pub(super) fn in_memory() -> Result<Database, Error> {
    Database::builder()
        .set_cache_size(CACHE_IN_MEMORY)
        .create_with_backend(Memory::default())
        .map_err(|error| Error::Down(error.to_string()))
}

/// Opens the file, creating it where it is missing.
pub(super) fn open_file(path: &Path, set_aside: bool) -> Result<Database, Error> {
    let refuse = |why: String| Error::Open { path: path.to_owned(), why };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(|error| {
            refuse(format!("its folder cannot be made ({error}); make it, or set store.url"))
        })?;
    }
    let opened = catch_unwind(|| create(path));
    let damage = match opened {
        Ok(Ok(database)) => match guarded(|| take_over(&database)) {
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
    catch_unwind(|| create(path))
        .map_err(|_| refuse("the database panicked on a new file".to_owned()))?
        .map_err(|error| refuse(error.to_string()))
}

/// Checks what another process has left, and ends the turns that it had open.
fn take_over(database: &Database) -> Result<(), Error> {
    sound(database)?;
    let (interrupted, _) = write(database, &Journal::default(), |tables| {
        interrupt_all(tables).map_err(Fault::into_error)
    })?;
    let Interrupted { turns, traced } = interrupted;
    if turns > 0 {
        info!(turns, "turns that were open are ended as interrupted");
    }
    for attempt in traced {
        attempt.ended("interrupted", true);
    }
    Ok(())
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
