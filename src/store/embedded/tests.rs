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
    tables::{CONVERSATIONS, ENDED, EVENTS, IDLE, JOURNAL, KNOWLEDGE_LOG, META, REQUESTS},
    *,
};
use crate::{
    domain::{
        AnswerId, Change, ConversationId, ConversationKey, EventBody, Failure, FailureReason,
        Message, RequestId, Sequence,
    },
    health::Health,
};

mod conversations;
mod disk;
mod journal;

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

#[tokio::test]
async fn a_file_of_before_the_journal_is_taken_over() {
    let folder = folder();
    let (path, url) = file(&folder);
    let store = open(&url).expect("a new store");
    let key = key();
    let owner = begin(&store, &key, &says("hello")).await;
    store.append(&owner, 1, &[delta("a")]).await.expect("an append");
    drop(store);
    let database = Database::create(&path).expect("the database");
    let transaction = database.begin_write().expect("a transaction");
    transaction.open_table(META).expect("a table").insert("format", 2).expect("an insert");
    assert!(transaction.delete_table(JOURNAL).expect("a table"));
    transaction.commit().expect("a commit");
    drop(database);
    let store = open(&url).expect("the store");
    let ends = read(&store, &key).await.events.pop().map(|event| event.body);
    assert_eq!(ends, Some(interrupted("a")));
    let owner = begin(&store, &key, &says("more")).await;
    store.append(&owner, 1, &[delta("b")]).await.expect("an append");
    assert_eq!(read(&store, &key).await.events.len(), 5);
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

fn key() -> ConversationKey {
    ConversationKey::new("alice", ConversationId(Uuid::new_v4()))
}

fn says(text: &str) -> Begin {
    let request = RequestId(Uuid::new_v4());
    let message = Message { participant: "alice".into(), text: text.to_owned(), request }.into();
    Begin { message, options: TurnOptions::default(), existing: false }
}

fn delta(text: &str) -> EventBody {
    EventBody::Delta(text.into())
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
