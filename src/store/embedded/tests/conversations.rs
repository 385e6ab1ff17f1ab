//! Conversations in a file: restarts, damage, and what is forgotten with time.

use super::*;

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

#[test]
fn records_of_before_turns_were_traced_are_read() {
    let id = "67e55044-10b1-426f-9247-bb680e5fe0c8";
    let conversation = format!(
        r#"{{"principal":"alice","id":"{id}","counter":2,"epoch":1,"turn":{{"request":"{id}","start":1,"attempt":1,"visible":true,"cancelled":false,"over":false,"number":1,"last":2}},"previous":0,"touched":7}}"#
    );
    let what = || "a record".to_owned();
    let read: records::Conversation =
        tables::decode(conversation.as_bytes(), what).expect("a conversation");
    assert_eq!(read.active().expect("a turn").taken, None);
    let request = r#"{"fingerprint":"f","start":1,"end":null,"options":{"engine":"augmented","language":"ko"}}"#;
    let read: records::Request = tables::decode(request.as_bytes(), what).expect("a request");
    assert_eq!(read.options.as_ref().expect("options").trace, None);
    // What is not traced is written as it was, so that an older version reads it too.
    assert_eq!(tables::encode(&read).expect("JSON"), request.as_bytes());
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
async fn an_unreadable_record_is_refused_at_the_start_and_harms_nobody_else_before() {
    let folder = folder();
    let (path, url) = file(&folder);
    let store = open(&url).expect("a new store");
    let (bad, good) = (key(), key());
    begin(&store, &bad, &says("hello")).await;
    let digest = bad.digest();
    let spoil = store.change(move |tables| {
        let record = br#"{"principal": ["my secret"]}"#;
        tables.conversations.insert(&digest.0, record.as_slice())?;
        tables.effects.changed = true;
        Ok(())
    });
    spoil.await.expect("an insert");
    let (one, two) = (says("hello"), says("hello"));
    let (refused, begun) = tokio::join!(store.begin(&bad, &one), store.begin(&good, &two));
    assert!(matches!(refused, Err(Error::Corrupt(_))), "{refused:?}");
    let why = refused.expect_err("it is refused").to_string();
    assert!(why.contains(&digest.to_string()) && why.contains("line 1, column"), "{why}");
    assert!(!why.contains("secret"), "{why}");
    assert!(matches!(begun, Ok(Begun::New { .. })), "{begun:?}");
    drop(store);
    let error = open(&url).expect_err("it is damaged").to_string();
    assert!(error.contains("--set-aside-damaged-store"), "{error}");
    assert!(!error.contains("secret"), "{error}");
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
    // The turn that is active keeps its own, in the journal.
    assert_eq!(rows(&store), [2, 1_205, 3, 2, 2]);
    assert_eq!(swept_after(&store, DELTAS + Duration::from_secs(10)).await, 0);
    assert_eq!(rows(&store), [2, 5, 3, 2, 0]);
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
