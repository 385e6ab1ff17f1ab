//! What the embedded store promises beyond the contract: files.

use std::{
    fs,
    path::PathBuf,
    time::{Instant, SystemTime},
};

use redb::{
    ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _,
    backends::InMemoryBackend,
};
use tempfile::TempDir;
use uuid::Uuid;

use super::{
    super::{
        After, Appended, Begin, Begun, ConversationLog as _, KnowledgeLog as _, Owner, Page,
        TurnOptions,
        contract::{self, Replicas},
    },
    sweep::{DELTAS, Swept, sweep},
    tables::{CONVERSATIONS, ENDED, EVENTS, IDLE, KNOWLEDGE_LOG, META, REQUESTS},
    *,
};
use crate::{
    domain::{
        AnswerId, Change, ConversationId, ConversationKey, EventBody, Failure, FailureReason,
        Message, RequestId, Sequence,
    },
    health::Health,
};

const LEASE: Duration = Duration::from_millis(500);
const RETENTION: Duration = Duration::from_hours(1);

fn dependency() -> (Health, Dependency) {
    let health = Health::new(&mut Registry::default());
    let dependency = health.dependency("store");
    health.started();
    (health, dependency)
}

fn config(url: &StoreUrl, lease: Duration) -> config::Store {
    config::Store { url: url.clone(), retention: RETENTION, lease, detach_grace: Duration::ZERO }
}

fn open(url: &StoreUrl) -> Result<Embedded, Error> {
    Embedded::open(&config(url, LEASE), false, dependency().1, &mut Registry::default())
}

/// Two servers cannot have one file, so both replicas are the same one.
fn replicas(url: &StoreUrl, lease: Duration) -> Replicas {
    let (config, mut registry) = (config(url, lease), Registry::default());
    let store = Embedded::open(&config, false, dependency().1, &mut registry).expect("a store");
    let here = Arc::new(store);
    Replicas { there: Arc::clone(&here) as _, here, lease, new: true }
}

fn file(folder: &TempDir) -> (PathBuf, StoreUrl) {
    let path = folder.path().join("data/chatbot.redb");
    (path.clone(), StoreUrl::File(path))
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

#[tokio::test]
async fn the_contract_holds_in_memory() {
    contract::holds(&replicas(&StoreUrl::Memory, LEASE)).await;
}

#[tokio::test]
async fn the_contract_holds_in_a_file() {
    let folder = folder();
    contract::holds(&replicas(&file(&folder).1, LEASE)).await;
}

#[tokio::test]
async fn random_histories_hold_in_memory() {
    let replicas = replicas(&StoreUrl::Memory, Duration::from_millis(20));
    contract::histories(&replicas, 400, Uuid::new_v4().as_u64_pair().0).await;
}

#[tokio::test]
async fn random_histories_hold_in_a_file() {
    let folder = folder();
    let replicas = replicas(&file(&folder).1, Duration::from_millis(50));
    contract::histories(&replicas, 32, Uuid::new_v4().as_u64_pair().0).await;
}

#[tokio::test]
async fn a_restart_finds_what_was_acknowledged() {
    let folder = folder();
    let (_, url) = file(&folder);
    let store = open(&url).expect("a new store");
    store.append_knowledge(vec![contract::upsert(1, "kept")]).await.expect("an append");
    drop(store);
    let store = open(&url).expect("the same store");
    assert_eq!(*store.knowledge_revision().borrow(), Revision(1));
    let changes = store.read_knowledge(Revision(0), 10).await.expect("a read");
    assert_eq!(changes, [(Revision(1), contract::upsert(1, "kept"))]);
    let next = store.append_knowledge(vec![Change::Delete(AnswerId(1))]).await;
    assert_eq!(next.expect("an append"), Revision(2));
}

#[tokio::test]
async fn a_second_server_on_one_file_is_refused() {
    let folder = folder();
    let (_, url) = file(&folder);
    let _first = open(&url).expect("a new store");
    let error = open(&url).expect_err("it is open").to_string();
    assert!(error.contains("another process has it open"), "{error}");
}

#[tokio::test]
async fn a_damaged_file_is_refused_and_set_aside_on_request() {
    let folder = folder();
    let (path, url) = file(&folder);
    let store = open(&url).expect("a new store");
    store.append_knowledge(vec![contract::upsert(1, "lost")]).await.expect("an append");
    drop(store);
    let mut bytes = fs::read(&path).expect("the file");
    bytes[..512].fill(0xAA);
    fs::write(&path, &bytes).expect("the file");

    let error = open(&url).expect_err("it is damaged").to_string();
    assert!(error.contains("--set-aside-damaged-store"), "{error}");
    assert_eq!(fs::read(&path).expect("the file"), bytes, "a refusal changes nothing");

    let store =
        Embedded::open(&config(&url, LEASE), true, dependency().1, &mut Registry::default());
    let store = store.expect("a new store");
    assert_eq!(*store.knowledge_revision().borrow(), Revision(0));
    let aside = path.with_file_name("chatbot.redb.damaged-1");
    assert_eq!(fs::read(aside).expect("the old file"), bytes);
}

#[tokio::test]
async fn a_path_that_cannot_be_had_is_refused_and_never_set_aside() {
    let folder = folder();
    let blocked = folder.path().join("file");
    fs::write(&blocked, "not a folder").expect("a file");
    let url = StoreUrl::File(blocked.join("chatbot.redb"));
    let opened =
        Embedded::open(&config(&url, LEASE), true, dependency().1, &mut Registry::default());
    assert!(matches!(opened, Err(Error::Open { .. })));
    assert_eq!(fs::read_to_string(&blocked).expect("the file"), "not a folder");
}

#[tokio::test]
async fn a_newer_format_is_refused() {
    let folder = folder();
    let (path, url) = file(&folder);
    drop(open(&url).expect("a new store"));
    let database = Database::create(&path).expect("the database");
    let transaction = database.begin_write().expect("a transaction");
    transaction.open_table(META).expect("a table").insert("format", 99).expect("an insert");
    transaction.commit().expect("a commit");
    drop(database);
    let error = open(&url).expect_err("it is newer").to_string();
    assert!(error.contains("format 99"), "{error}");
}

/// A disk that is full while `full` holds, at the database's own seam.
#[derive(Debug)]
struct Disk {
    backend: InMemoryBackend,
    full: Arc<std::sync::atomic::AtomicBool>,
}

impl Disk {
    fn check(&self) -> Result<(), std::io::Error> {
        let full = self.full.load(std::sync::atomic::Ordering::SeqCst);
        if full { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl redb::StorageBackend for Disk {
    fn len(&self) -> Result<u64, std::io::Error> {
        self.backend.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), std::io::Error> {
        self.backend.read(offset, out)
    }
    fn set_len(&self, len: u64) -> Result<(), std::io::Error> {
        self.check()?;
        self.backend.set_len(len)
    }
    fn sync_data(&self) -> Result<(), std::io::Error> {
        self.check()?;
        self.backend.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), std::io::Error> {
        self.check()?;
        self.backend.write(offset, data)
    }
}

#[tokio::test]
async fn a_full_disk_takes_readiness_and_a_working_one_returns_it() {
    let folder = folder();
    let (path, url) = file(&folder);
    drop(open(&url).expect("a new store"));
    let (health, dependency) = dependency();
    let store = Embedded::open(&config(&url, LEASE), false, dependency, &mut Registry::default());
    let store = store.expect("a store");

    // The same store, on a disk that is full.
    let full = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let disk = Disk { backend: InMemoryBackend::new(), full: Arc::clone(&full) };
    let database = Database::builder().create_with_backend(disk).expect("a database");
    prepare(&database).expect("tables");
    *store.file.database.write().expect("the lock") = Some(database);
    full.store(true, std::sync::atomic::Ordering::SeqCst);

    let mut states = health.watch();
    let error = store.append_knowledge(vec![contract::upsert(1, "x")]).await;
    assert!(matches!(error, Err(Error::Down(_))), "{error:?}");
    states.wait_for(|state| state.waiting_for() == ["store"]).await.expect("not ready");

    // The writer opens the path again, which works.
    states.wait_for(|state| state.waiting_for().is_empty()).await.expect("ready");
    store.append_knowledge(vec![contract::upsert(1, "x")]).await.expect("an append");
    drop(store);
    let store = open(&StoreUrl::File(path)).expect("the store");
    assert_eq!(*store.knowledge_revision().borrow(), Revision(1));
}
