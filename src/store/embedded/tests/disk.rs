//! A disk that is full for a while.

use redb::ReadableTable as _;

use super::{tables::write, *};

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

#[tokio::test]
async fn nobody_waits_for_ever_on_a_disk_that_hangs() {
    let mut store = open(&StoreUrl::Memory).expect("a store");
    store.deadline = Duration::from_millis(300);
    let key = key();
    begin(&store, &key, &says("hello")).await;

    // Whoever uses the database waits as on a disk.
    let (mend, mended) = std::sync::mpsc::sync_channel::<()>(1);
    let (hangs, hung) = tokio::sync::oneshot::channel();
    let file = Arc::clone(&store.file);
    let disk = std::thread::spawn(move || {
        let _disk = file.database.write();
        hangs.send(()).expect("somebody waits");
        let _ = mended.recv();
    });
    hung.await.expect("a thread");
    // More than the queue takes.
    let writes = (0..GROUP + 200).map(|_| store.change(|_| Ok(())));
    let before = std::time::Instant::now();
    let (read, writes) = tokio::join!(
        store.read(&key, After::Sequence(Sequence(0)), 10, false),
        futures_util::future::join_all(writes)
    );
    assert!(before.elapsed() < Duration::from_secs(5), "{:?}", before.elapsed());
    assert!(matches!(read, Err(Error::Down(_))), "{read:?}");
    assert!(writes.iter().all(|write| matches!(write, Err(Error::Down(_)))), "{writes:?}");

    drop(mend);
    disk.join().expect("a thread");
    store.deadline = DEADLINE;
    assert_eq!(super::read(&store, &key).await.events.len(), 1);
    begin(&store, &super::key(), &says("hello")).await;
}

/// Both ways in which one change can spoil a transaction.
pub(super) fn spoil(tables: &mut Tables<'_>, panics: bool) -> Result<(), Fault> {
    tables.meta.insert("half", 1)?;
    tables.effects.changed = true;
    assert!(!panics, "on purpose");
    Err(redb::StorageError::Corrupted("a page".to_owned()).into())
}

#[tokio::test]
async fn one_change_that_meets_damage_or_panics_harms_no_other() {
    let folder = folder();
    for url in [StoreUrl::Memory, file(&folder).1] {
        let (health, dependency) = dependency();
        let store =
            Embedded::open(&config(&url, LEASE), false, dependency, &mut Registry::default());
        let store = store.expect("a store");
        let (one, two) = (says("hello"), says("hello"));
        let (here, there) = (key(), key());
        for panics in [false, true, true] {
            let (go, going) = std::sync::mpsc::sync_channel(1);
            let (held, begun, spoilt, also, ()) = tokio::join!(
                // The writer waits here, so that the others share a transaction.
                store.change(move |_| Ok(going.recv().is_ok())),
                store.begin(&here, &one),
                store.change(move |tables| spoil(tables, panics)),
                store.begin(&there, &two),
                async move { go.send(()).expect("the writer waits") }
            );
            assert!(held.is_ok() && begun.is_ok() && also.is_ok(), "{begun:?} {also:?}");
            assert!(matches!(spoilt, Err(Error::Corrupt(_))), "{spoilt:?}");
            assert!(health.watch().borrow().waiting_for().is_empty());
        }
        let half = store.change(|tables| Ok(tables.meta.get("half")?.map(|half| half.value())));
        assert_eq!(half.await.expect("a look"), None);
        assert_eq!(super::read(&store, &here).await.events.len(), 1);
        assert_eq!(super::read(&store, &there).await.events.len(), 1);
    }
}

#[tokio::test]
async fn an_owner_keeps_its_turn_however_long_its_commit_takes() {
    let store = open(&StoreUrl::Memory).expect("a store");
    let (key, events) = (key(), [delta("a")]);
    let owner = begin(&store, &key, &says("hello")).await;
    let (go, going) = std::sync::mpsc::sync_channel(1);
    let (alone, waiting) = tokio::sync::oneshot::channel();
    let (slow, slowing) = tokio::sync::oneshot::channel();
    let (mut alone, mut slow) = (Some(alone), Some(slow));
    let slow = store.change(move |tables| {
        let _ = slow.take().map(|slow| slow.send(()));
        tables.effects.changed = true;
        std::thread::sleep(LEASE * 2);
        Ok(())
    });
    let (held, (appended, slowed, ()), reaped) = tokio::join!(
        // The writer waits here, alone, so that the next two share a transaction.
        store.change(move |_| {
            let _ = alone.take().map(|alone| alone.send(()));
            Ok(going.recv().is_ok())
        }),
        async {
            waiting.await.expect("a transaction that waits");
            let go = async { go.send(()).expect("the writer waits") };
            tokio::join!(store.append(&owner, 1, &events), slow, go)
        },
        async {
            slowing.await.expect("a slow transaction");
            store.reap(&key).await
        }
    );
    held.expect("a change");
    slowed.expect("a change");
    assert!(matches!(appended, Ok(Appended::Stored { .. })), "{appended:?}");
    assert_eq!(reaped.expect("a reap"), None);
    let next = store.append(&owner, 2, &events).await.expect("an append");
    assert!(matches!(next, Appended::Stored { .. }), "{next:?}");
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
    let copied = write(to, &Journal::default(), |tables| {
        tables.conversations.insert(&digest.0, record.as_slice()).map_err(file::down)?;
        tables.effects.changed = true;
        Ok(())
    });
    copied.expect("a copy");
}
