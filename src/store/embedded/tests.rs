//! What the embedded store promises beyond the contract: files.

use std::{fs, path::PathBuf, time::SystemTime};

use redb::{ReadableDatabase as _, ReadableTableMetadata as _, backends::InMemoryBackend};
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

fn key() -> ConversationKey {
    ConversationKey::new("alice", ConversationId(Uuid::new_v4()))
}

fn says(text: &str) -> Begin {
    let request = RequestId(Uuid::new_v4());
    let message = Message { participant: "alice".to_owned(), text: text.to_owned(), request };
    Begin { message, options: TurnOptions::default(), existing: false }
}

fn delta(text: &str) -> EventBody {
    EventBody::Delta(text.to_owned())
}

fn interrupted(partial_text: &str) -> EventBody {
    let partial_text = partial_text.to_owned();
    EventBody::Failed(Failure { reason: FailureReason::Interrupted, partial_text })
}

async fn begin(store: &Embedded, key: &ConversationKey, begin: &Begin) -> Owner {
    match store.begin(key, begin).await.expect("a begin") {
        Begun::New { owner, .. } => owner,
        other => panic!("not new: {other:?}"),
    }
}

async fn read(store: &Embedded, key: &ConversationKey) -> Page {
    store.read(key, After::Sequence(Sequence(0)), 10_000, false).await.expect("a read")
}

/// Rows of the tables of conversations: conversations, events, requests, and what sweeps look at.
fn rows(store: &Embedded) -> [u64; 5] {
    let count = |database: &Database| {
        let transaction = database.begin_read().map_err(file::down)?;
        let open = |error: redb::TableError| file::down(error);
        Ok([
            transaction.open_table(CONVERSATIONS).map_err(open)?.len().map_err(file::down)?,
            transaction.open_table(EVENTS).map_err(open)?.len().map_err(file::down)?,
            transaction.open_table(REQUESTS).map_err(open)?.len().map_err(file::down)?,
            transaction.open_table(IDLE).map_err(open)?.len().map_err(file::down)?,
            transaction.open_table(ENDED).map_err(open)?.len().map_err(file::down)?,
        ])
    };
    store.file.with(count).expect("a count")
}

/// Sweeps as if it were so much later, until there is nothing more to do.
async fn swept_after(store: &Embedded, later: Duration) -> u64 {
    let mut conversations = 0;
    loop {
        let now = SystemTime::now() + later;
        let swept = store.change(move |tables| sweep(tables, RETENTION, now)).await;
        let Swept { conversations: gone, more } = swept.expect("a sweep");
        conversations += gone;
        if !more {
            return conversations;
        }
    }
}

#[tokio::test]
async fn a_restart_ends_what_was_open_and_keeps_the_text() {
    let folder = folder();
    let (_, url) = file(&folder);
    let store = open(&url).expect("a new store");
    let (open_key, open_begin, over_key, over_begin) = (key(), says("open"), key(), says("over"));
    let owner = begin(&store, &open_key, &open_begin).await;
    store.append(&owner, 1, &[delta("half "), delta("an ")]).await.expect("an append");
    store.post(&open_key, &says("me too")).await.expect("a post");
    let over = begin(&store, &over_key, &over_begin).await;
    store.append(&over, 1, &[interrupted("")]).await.expect("an append");
    let (open_before, over_before) = (read(&store, &open_key).await, read(&store, &over_key).await);
    assert!(open_before.active.is_some());
    drop(store);

    let store = open(&url).expect("the same store");
    assert_eq!(read(&store, &over_key).await, over_before);
    let mut page = read(&store, &open_key).await;
    assert_eq!(page.active, None);
    let end = page.events.pop().expect("events");
    assert_eq!((&end.body, end.turn), (&interrupted("half an "), Some(owner.turn)));
    assert_eq!(page.events, open_before.events);
    let again = store.begin(&open_key, &open_begin).await.expect("a begin");
    let (start, end) = (page.events[0].position.sequence, Some(end.position.sequence));
    assert_eq!(again, Begun::Known { start, end });
    let late = store.append(&owner, 3, &[delta("answer")]).await.expect("an append");
    assert_eq!(late, Appended::Fenced);
    begin(&store, &open_key, &says("more")).await;
}

#[tokio::test]
async fn a_file_of_the_first_format_is_taken_over() {
    let folder = folder();
    let (path, url) = file(&folder);
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    let database = Database::create(&path).expect("a database");
    let transaction = database.begin_write().expect("a transaction");
    {
        let mut meta = transaction.open_table(META).expect("a table");
        meta.insert("format", 1).expect("an insert");
        meta.insert("knowledge_revision", 1).expect("an insert");
        let change = tables::encode(&contract::upsert(1, "old")).expect("JSON");
        let mut log = transaction.open_table(KNOWLEDGE_LOG).expect("a table");
        log.insert(1, change.as_slice()).expect("an insert");
    }
    transaction.commit().expect("a commit");
    drop(database);
    let store = open(&url).expect("the store");
    let changes = store.read_knowledge(Revision(0), 10).await.expect("a read");
    assert_eq!(changes, [(Revision(1), contract::upsert(1, "old"))]);
    begin(&store, &key(), &says("hello")).await;
}

#[tokio::test]
async fn an_unreadable_record_is_refused_at_the_start_and_harms_nobody_else_before() {
    let folder = folder();
    let (path, url) = file(&folder);
    let store = open(&url).expect("a new store");
    let (bad, good) = (key(), key());
    begin(&store, &bad, &says("hello")).await;
    let digest = bad.digest();
    let spoil = store.change(move |tables| {
        tables.conversations.insert(&digest.0, b"{".as_slice())?;
        tables.effects.changed = true;
        Ok(())
    });
    spoil.await.expect("an insert");
    let (one, two) = (says("hello"), says("hello"));
    let (refused, begun) = tokio::join!(store.begin(&bad, &one), store.begin(&good, &two));
    assert!(matches!(refused, Err(Error::Corrupt(_))), "{refused:?}");
    assert!(matches!(begun, Ok(Begun::New { .. })), "{begun:?}");
    drop(store);
    let error = open(&url).expect_err("it is damaged").to_string();
    assert!(error.contains("--set-aside-damaged-store"), "{error}");
    assert!(path.exists());
}

#[tokio::test]
async fn deltas_expire_and_conversations_after_them() {
    let store = open(&StoreUrl::Memory).expect("a store");
    let (old, active) = (key(), key());
    for turn in 0..2 {
        let owner = begin(&store, &old, &says(&format!("turn {turn}"))).await;
        let mut events = vec![delta("x"); 600];
        events.push(interrupted(&"x".repeat(600)));
        store.append(&owner, 1, &events).await.expect("an append");
    }
    let owner = begin(&store, &active, &says("hello")).await;
    store.append(&owner, 1, &[delta("x")]).await.expect("an append");

    assert_eq!(swept_after(&store, DELTAS / 2).await, 0);
    assert_eq!(rows(&store), [2, 1_206, 3, 2, 2]);
    // The turn that is active keeps its own.
    assert_eq!(swept_after(&store, DELTAS + Duration::from_secs(10)).await, 0);
    assert_eq!(rows(&store), [2, 6, 3, 2, 0]);
    assert_eq!(read(&store, &old).await.events.len(), 4);

    // What has gone on is kept from then on.
    let kept = store.change(move |tables| {
        let digest = active.digest();
        let mut conversation = tables.conversation(digest)?.expect("a conversation");
        tables.put_conversation(digest, &mut conversation, SystemTime::now() + RETENTION)
    });
    kept.await.expect("a change");
    let later = RETENTION + Duration::from_secs(10);
    assert_eq!(swept_after(&store, later).await, 1);
    assert_eq!(rows(&store), [1, 2, 1, 1, 0]);
    let gone = store.read(&old, After::Sequence(Sequence(0)), 10, false).await;
    assert!(matches!(gone, Err(Error::NotFound)), "{gone:?}");
    assert_eq!(swept_after(&store, RETENTION + later).await, 1);
    assert_eq!(rows(&store), [0; 5]);
    let fenced = store.append(&owner, 2, &[delta("x")]).await.expect("an append");
    assert_eq!(fenced, Appended::Fenced);
}

#[tokio::test]
async fn a_large_conversation_is_forgotten_in_steps() {
    let store = open(&StoreUrl::Memory).expect("a store");
    let key = key();
    for _ in 0..3 {
        let posts: Vec<_> = (0..400).map(|n| says(&format!("post {n}"))).collect();
        let posted = posts.iter().map(|post| store.post(&key, post));
        futures_util::future::try_join_all(posted).await.expect("posts");
    }
    let now = SystemTime::now() + RETENTION * 2;
    let first = store.change(move |tables| sweep(tables, RETENTION, now)).await;
    assert_eq!(first.expect("a sweep"), Swept { conversations: 0, more: true });
    assert_eq!(swept_after(&store, RETENTION * 2).await, 1);
    assert_eq!(rows(&store), [0; 5]);
}

#[tokio::test]
async fn what_changes_nothing_is_not_committed() {
    let mut registry = Registry::default();
    let config = config(&StoreUrl::Memory, LEASE);
    let store = Embedded::open(&config, false, dependency().1, &mut registry).expect("a store");
    let commits = |registry: &Registry| {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).expect("metrics");
        let line = text.lines().find(|line| line.starts_with("store_commit_seconds_count"));
        line.expect("a metric").to_owned()
    };
    let (key, begin_it) = (key(), says("hello"));
    let owner = begin(&store, &key, &begin_it).await;
    store.append(&owner, 1, &[delta("x")]).await.expect("an append");
    let before = commits(&registry);
    store.append(&owner, 2, &[]).await.expect("a renewal");
    store.append(&owner, 1, &[delta("x")]).await.expect("a repetition");
    store.begin(&key, &begin_it).await.expect("a begin");
    store.reap(&key).await.expect("a reap");
    store.begin(&key, &says("x".repeat(3).as_str())).await.expect("busy");
    assert_eq!(commits(&registry), before);
    store.append(&owner, 2, &[delta("x")]).await.expect("an append");
    assert_ne!(commits(&registry), before);
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

#[tokio::test]
async fn an_append_that_a_full_disk_refused_is_stored_once_after_it() {
    let folder = folder();
    let (_, url) = file(&folder);
    let (health, dependency) = dependency();
    let config = config(&url, LEASE);
    let store = Embedded::open(&config, false, dependency, &mut Registry::default());
    let store = store.expect("a store");
    let key = key();
    let owner = begin(&store, &key, &says("hello")).await;
    store.append(&owner, 1, &[delta("a")]).await.expect("an append");

    // The same conversation, on a disk that is full. The file keeps what it has, and is opened again.
    let full = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let disk = Disk { backend: InMemoryBackend::new(), full: Arc::clone(&full) };
    let database = Database::builder().create_with_backend(disk).expect("a database");
    prepare(&database).expect("tables");
    copy_conversation(&store, &database, &key);
    *store.file.database.write().expect("the lock") = Some(database);
    full.store(true, std::sync::atomic::Ordering::SeqCst);
    let mut states = health.watch();
    let lost = store.append(&owner, 2, &[delta("b")]).await;
    assert!(matches!(lost, Err(Error::Down(_))), "{lost:?}");
    states.wait_for(|state| state.waiting_for() == ["store"]).await.expect("not ready");
    states.wait_for(|state| state.waiting_for().is_empty()).await.expect("ready");

    // The turn is still open, and its owner still owns it.
    for _ in 0..2 {
        let stored = store.append(&owner, 2, &[delta("b")]).await.expect("an append");
        assert!(matches!(stored, Appended::Stored { .. }), "{stored:?}");
    }
    let bodies: Vec<_> = read(&store, &key).await.events.into_iter().map(|it| it.body).collect();
    assert_eq!(bodies[1..], [delta("a"), delta("b")]);
}

fn copy_conversation(store: &Embedded, to: &Database, key: &ConversationKey) {
    let digest = key.digest();
    let read = |database: &Database| {
        let transaction = database.begin_read().map_err(file::down)?;
        let table = transaction.open_table(CONVERSATIONS).map_err(file::down)?;
        let row = table.get(&digest.0).map_err(file::down)?.expect("the conversation");
        Ok(row.value().to_vec())
    };
    let record = store.file.with(read).expect("a read");
    let copied = write(to, |tables| {
        tables.conversations.insert(&digest.0, record.as_slice()).map_err(file::down)?;
        tables.effects.changed = true;
        Ok(())
    });
    copied.expect("a copy");
}
