//! Deltas between their commit and their place.

use redb::ReadableTable as _;

use super::*;
use crate::domain::Event;

/// The rows of the journal, and the bytes in them.
fn journal(store: &Embedded) -> (usize, usize) {
    let look = |database: &Database| {
        let transaction = database.begin_read().map_err(file::down)?;
        let table = transaction.open_table(JOURNAL).map_err(file::down)?;
        let mut found = (0, 0);
        for row in table.iter().map_err(file::down)? {
            found.0 += 1;
            found.1 += row.map_err(file::down)?.1.value().len();
        }
        Ok(found)
    };
    store.file.with(look).expect("a look")
}

/// The events that are where they belong.
fn placed(store: &Embedded) -> u64 {
    let look = |database: &Database| {
        let transaction = database.begin_read().map_err(file::down)?;
        transaction.open_table(EVENTS).map_err(file::down)?.len().map_err(file::down)
    };
    store.file.with(look).expect("a look")
}

async fn say(store: &Embedded, owner: &Owner, number: u64, text: &str) {
    let stored = store.append(owner, number, &[delta(text)]).await.expect("an append");
    assert!(matches!(stored, Appended::Stored { .. }), "{stored:?}");
}

/// A conversation whose turn has said something.
async fn spoken(store: &Embedded) -> (ConversationKey, Owner) {
    let key = key();
    let owner = begin(store, &key, &says("hello")).await;
    say(store, &owner, 1, "a").await;
    (key, owner)
}

fn bodies(page: &Page) -> Vec<&EventBody> {
    page.events.iter().map(|event| &event.body).collect()
}

/// A copy of the file as it is, as after a crash.
fn crashed(folder: &TempDir, path: &PathBuf) -> StoreUrl {
    let copy = folder.path().join("crashed.redb");
    fs::copy(path, &copy).expect("a copy");
    StoreUrl::File(copy)
}

#[tokio::test]
async fn deltas_are_read_from_any_place_wherever_they_are() {
    let store = open(&StoreUrl::Memory).expect("a store");
    let (key, owner) = spoken(&store).await;
    say(&store, &owner, 2, "b").await;
    // The message alone, and after it what puts the deltas in their place.
    assert_eq!(placed(&store), 1);
    store.post(&key, &says("me too")).await.expect("a post");
    assert_eq!(placed(&store), 4);
    say(&store, &owner, 3, "c").await;
    say(&store, &owner, 4, "d").await;
    assert_eq!(placed(&store), 4);

    let all = read(&store, &key).await.events;
    let places: Vec<_> = all.iter().map(|event| event.position.sequence.0).collect();
    assert_eq!(places, [1, 2, 3, 4, 5, 6]);
    for (index, event) in all.iter().enumerate() {
        let rest = &all[index + 1..];
        for after in [After::Position(event.position), After::Sequence(event.position.sequence)] {
            let page = store.read(&key, after, 10, false).await.expect("a read");
            assert_eq!((page.events.as_slice(), page.more), (rest, false));
            for most in 1..rest.len() {
                let page = store.read(&key, after, most, false).await.expect("a read");
                assert_eq!((page.events.as_slice(), page.more), (&rest[..most], true));
            }
        }
        let mut unknown = event.position;
        unknown.tag ^= 1;
        let refused = store.read(&key, After::Position(unknown), 10, false).await;
        assert!(matches!(refused, Err(Error::PositionUnknown)), "{refused:?}");
    }
}

#[tokio::test]
async fn an_append_that_is_repeated_is_found_in_the_journal() {
    let store = open(&StoreUrl::Memory).expect("a store");
    let key = key();
    let owner = begin(&store, &key, &says("hello")).await;
    for (number, text) in (1..).zip(["a", "b", "c"]) {
        say(&store, &owner, number, text).await;
    }
    for number in [1, 3] {
        let again = store.append(&owner, number, &[delta("x")]).await.expect("an append");
        let Appended::Stored { last, .. } = again else { panic!("{again:?}") };
        assert_eq!(last.0, number + 1);
    }
    assert_eq!(read(&store, &key).await.events.len(), 4);
}

#[tokio::test]
async fn a_crash_loses_nothing_that_was_acknowledged() {
    let folder = folder();
    let (path, url) = file(&folder);
    let store = open(&url).expect("a new store");
    let (held, settled, ended) = (key(), key(), key());
    let owners = [
        begin(&store, &held, &says("held")).await,
        begin(&store, &settled, &says("settled")).await,
        begin(&store, &ended, &says("ended")).await,
    ];
    for (number, text) in (1..).zip(["a", "b", "c"]) {
        for owner in &owners {
            say(&store, owner, number, text).await;
        }
    }
    // Their rows stay for the first turn's sake, and must not be put in their place again.
    store.post(&settled, &says("me too")).await.expect("a post");
    say(&store, &owners[1], 4, "d").await;
    let end = interrupted("abc");
    store.append(&owners[2], 4, std::slice::from_ref(&end)).await.expect("an append");
    let keys = [&held, &settled, &ended];
    let mut before = Vec::new();
    for key in keys {
        before.push(read(&store, key).await.events);
    }
    assert!(journal(&store).0 > 0);

    let again = open(&crashed(&folder, &path)).expect("what the crash has left");
    for (key, (before, text)) in keys.into_iter().zip(before.iter().zip(["abc", "abcd", ""])) {
        let page = read(&again, key).await;
        let (old, new) = page.events.split_at(before.len());
        assert_eq!(old, before.as_slice());
        let end = interrupted(text);
        let ends: &[&EventBody] = if text.is_empty() { &[] } else { &[&end] };
        assert_eq!(new.iter().map(|event| &event.body).collect::<Vec<_>>(), ends);
    }
    assert_eq!(journal(&again), (0, 0));
    // Positions are given once: what was seen after the crash is not given to anything else.
    begin(&again, &held, &says("more")).await;
    assert_eq!(read(&again, &held).await.events.len(), before[0].len() + 2);
}

#[tokio::test]
async fn a_journal_that_is_damaged_is_refused_at_the_start() {
    let event = |place: u64| {
        let position = crate::domain::Position { sequence: Sequence(place), tag: 7 };
        let turn = Some(RequestId(Uuid::from_u128(7)));
        Event { position, turn, time: SystemTime::UNIX_EPOCH, body: delta("x") }
    };
    let frame = |key: &ConversationKey, json: &[u8], length: usize| {
        let length = u32::try_from(length).expect("it fits");
        [key.digest().0.as_slice(), &length.to_be_bytes(), json].concat()
    };
    let key = key();
    let message = Message {
        participant: "alice".into(),
        text: "hello".to_owned(),
        request: RequestId(Uuid::from_u128(7)),
    };
    let begin_it =
        Begin { message: message.into(), options: TurnOptions::default(), existing: false };
    let json = tables::encode(&event(2)).expect("JSON");
    let gap = tables::encode(&event(3)).expect("JSON");
    for (row, why) in [
        (frame(&key, &json, json.len() + 1), "row 5 of the journal"),
        (frame(&key, &json, json.len())[..19].to_vec(), "row 5 of the journal"),
        (frame(&key, b"{}", 2), "journal: Data error at line 1"),
        (frame(&key, &gap, gap.len()), "no event before 3"),
    ] {
        let folder = folder();
        let (path, url) = file(&folder);
        let store = open(&url).expect("a new store");
        begin(&store, &key, &begin_it).await;
        let put = store.change(move |tables| {
            tables.rows.insert(5, row.as_slice())?;
            tables.effects.changed = true;
            Ok(())
        });
        put.await.expect("an insert");
        let copy = crashed(&folder, &path);
        let error = open(&copy).expect_err("it is damaged").to_string();
        assert!(error.contains(why) && error.contains("--set-aside-damaged-store"), "{error}");
    }
}

#[tokio::test]
async fn a_turn_that_was_taken_over_is_whole_after_a_crash() {
    let folder = folder();
    let (path, url) = file(&folder);
    // Every lease is over at once.
    let config = config(&url, Duration::ZERO);
    let store = Embedded::open(&config, false, dependency().1, &mut Registry::default());
    let store = store.expect("a new store");
    let (key, owner) = spoken(&store).await;
    let reaped = store.reap(&key).await.expect("a reap").expect("it has no owner");
    let late = store.append(&owner, 2, &[delta("lost")]).await.expect("an append");
    assert_eq!(late, Appended::Fenced);
    say(&store, &reaped.owner, 1, "b").await;
    let again = open(&crashed(&folder, &path)).expect("what the crash has left");
    let page = read(&again, &key).await;
    assert_eq!(bodies(&page)[1..], [&delta("a"), &delta("b"), &interrupted("ab")]);
}

#[tokio::test]
async fn a_conversation_that_is_held_is_forgotten_with_all_it_has() {
    let store = open(&StoreUrl::Memory).expect("a store");
    let (key, owner) = spoken(&store).await;
    let now = SystemTime::now() + RETENTION * 2;
    let swept = store.change(move |tables| sweep(tables, RETENTION, now)).await;
    assert_eq!(swept.expect("a sweep").conversations, 1);
    let gone = store.read(&key, After::Sequence(Sequence(0)), 10, false).await;
    assert!(matches!(gone, Err(Error::NotFound)), "{gone:?}");
    let fenced = store.append(&owner, 2, &[delta("x")]).await.expect("an append");
    assert_eq!(fenced, Appended::Fenced);
    begin(&store, &key, &says("hello again")).await;
    assert_eq!((placed(&store), journal(&store)), (1, (0, 0)));
}

#[tokio::test]
async fn a_transaction_that_is_given_up_and_done_again_logs_everything_once() {
    let store = open(&StoreUrl::Memory).expect("a store");
    let (key, owner) = spoken(&store).await;
    let (go, going) = std::sync::mpsc::sync_channel(1);
    let (b, c, post) = ([delta("b")], [delta("c")], says("me too"));
    let (held, b, posted, spoilt, c, ()) = tokio::join!(
        // The writer waits here, so that the others share a transaction.
        store.change(move |_| Ok(going.recv().is_ok())),
        store.append(&owner, 2, &b),
        store.post(&key, &post),
        store.change(|tables| disk::spoil(tables, false)),
        store.append(&owner, 3, &c),
        async move { go.send(()).expect("the writer waits") }
    );
    assert!(held.is_ok() && b.is_ok() && posted.is_ok() && c.is_ok(), "{b:?} {posted:?} {c:?}");
    assert!(matches!(spoilt, Err(Error::Corrupt(_))), "{spoilt:?}");
    let page = read(&store, &key).await;
    let mut deltas = bodies(&page);
    assert_eq!(deltas.len(), 5);
    deltas.retain(|body| matches!(body, EventBody::Delta(_)));
    assert_eq!(deltas, [&delta("a"), &delta("b"), &delta("c")]);
}

#[tokio::test]
async fn a_store_that_was_down_comes_back_without_what_cannot_be_read() {
    let folder = folder();
    let (_, url) = file(&folder);
    let (health, dependency) = dependency();
    let store = Embedded::open(&config(&url, LEASE), false, dependency, &mut Registry::default());
    let store = store.expect("a store");
    let (bad, good) = (key(), key());
    for key in [&bad, &good] {
        let owner = begin(&store, key, &says("hello")).await;
        say(&store, &owner, 1, "a").await;
    }
    let digest = bad.digest();
    let spoil = store.change(move |tables| {
        tables.conversations.insert(&digest.0, br#"{"principal":7}"#.as_slice())?;
        tables.effects.changed = true;
        Ok(())
    });
    spoil.await.expect("an insert");
    // A commit that fails, after which the file is opened again.
    let mut states = health.watch();
    let down = store.change(|_| Err::<(), _>(Fault::Database(Error::Down("a test".to_owned()))));
    assert!(matches!(down.await, Err(Error::Down(_))));
    states.wait_for(|state| state.waiting_for() == ["store"]).await.expect("not ready");
    states.wait_for(|state| state.waiting_for().is_empty()).await.expect("ready");
    assert_eq!(bodies(&read(&store, &good).await)[1..], [&delta("a")]);
    let refused = store.read(&bad, After::Sequence(Sequence(0)), 10, false).await;
    assert!(matches!(refused, Err(Error::Corrupt(_))), "{refused:?}");
}

#[tokio::test]
async fn what_is_closed_has_an_empty_journal() {
    let folder = folder();
    let (path, url) = file(&folder);
    let store = open(&url).expect("a new store");
    spoken(&store).await;
    assert_eq!(journal(&store).0, 1);
    drop(store);
    let mut events = Vec::new();
    let selection = Selection { knowledge: false, conversations: true, conversation: None };
    dump(&path, selection, |line| {
        events.extend((line["type"] == "event").then_some(line));
        Ok::<_, Error>(())
    })
    .expect("a dump");
    assert_eq!(events.len(), 2, "{events:?}");

    let database = Database::create(&path).expect("the database");
    let transaction = database.begin_write().expect("a transaction");
    transaction.open_table(JOURNAL).expect("a table").insert(1, [].as_slice()).expect("a row");
    transaction.commit().expect("a commit");
    drop(database);
    let refused = dump(&path, selection, |_| Ok::<_, Error>(())).expect_err("it is not whole");
    assert!(refused.to_string().contains("start the server with it once"), "{refused}");
}

#[tokio::test]
async fn it_stays_small_and_a_turn_that_says_nothing_more_does_not_keep_it() {
    let store = open(&StoreUrl::Memory).expect("a store");
    let (silent, loud) = (key(), key());
    let quiet = begin(&store, &silent, &says("hello")).await;
    say(&store, &quiet, 1, "a").await;
    let owner = begin(&store, &loud, &says("hello")).await;
    let mut most = 0;
    for number in 1..=200 {
        say(&store, &owner, number, "some words").await;
        most = most.max(journal(&store).1);
    }
    // What there may be, and what one commit adds.
    assert!(most > 1024 && most < 4096, "{most}");
    assert_eq!(bodies(&read(&store, &silent).await)[1..], [&delta("a")]);
    let page = read(&store, &loud).await;
    assert_eq!(page.events.len(), 201);
    assert!(page.events.iter().zip(1..).all(|(event, place)| event.position.sequence.0 == place));
    // With its last turn ended it is empty at the next commit.
    for (owner, number) in [(&quiet, 2), (&owner, 201)] {
        store.append(owner, number, &[interrupted("")]).await.expect("an append");
    }
    begin(&store, &key(), &says("hello")).await;
    assert_eq!(journal(&store), (0, 0));
}
