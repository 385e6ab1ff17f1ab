//! Wake-ups across replicas, and what they cost.

use std::time::Instant;

use super::*;

/// Connections of clients, not counting the one that asks.
async fn connections(server: &Server) -> usize {
    let Value::BulkString(list) = server.ask(&["CLIENT", "LIST", "TYPE", "normal"]).await else {
        panic!("no list");
    };
    let Value::BulkString(listeners) = server.ask(&["CLIENT", "LIST", "TYPE", "pubsub"]).await
    else {
        panic!("no list");
    };
    let lines = |list: &[u8]| String::from_utf8_lossy(list).lines().count();
    lines(&list) - 1 + lines(&listeners)
}

#[tokio::test]
async fn a_thousand_readers_take_two_connections() {
    if !installed() {
        return;
    }
    let server = Server::start(&[]).await;
    let opened = open(&server.url(), &[]).await;
    let store = &*opened.store;
    let keys: Vec<_> = (0..1_000).map(|_| fresh()).collect();
    let mut hints: Vec<_> = keys.iter().map(|key| store.hint(key)).collect();
    // Each is woken once it is subscribed.
    let woken = async {
        for hint in &mut hints {
            hint.changed().await;
        }
    };
    tokio::time::timeout(LONG, woken).await.expect("subscriptions");
    assert_eq!(store.metrics.subscriptions.get(), 1_000);
    assert_eq!(connections(&server).await, 2);
    // One of another replica's wake-ups is one here.
    let there = open(&server.url(), &[]).await;
    there.store.post(&keys[7], &says("hello")).await.expect("a post");
    tokio::time::timeout(LONG, hints[7].changed()).await.expect("a wake-up");
    assert_eq!(store.metrics.hints.get(), 1);
    drop(there);
    drop(hints);
    let left = async {
        while store.metrics.subscriptions.get() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LONG, left).await.expect("no subscriptions");
    server
        .until(&["PUBSUB", "CHANNELS"], "array([bulk-string('\"chatbot:{knowledge}:hint\"')])")
        .await;
}

#[tokio::test]
async fn what_is_taught_elsewhere_is_heard_of() {
    if !installed() {
        return;
    }
    let server = Server::start(&[]).await;
    let (here, there) = (open(&server.url(), &[]).await, open(&server.url(), &[]).await);
    let mut revision = there.store.knowledge_revision();
    let before = Instant::now();
    let taught = vec![contract::upsert(1, "one"), contract::upsert(2, "two")];
    here.store.append_knowledge(taught).await.expect("an append");
    let heard = revision.wait_for(|revision| *revision == Revision(2));
    tokio::time::timeout(LONG, heard).await.expect("in time").expect("a revision");
    assert!(before.elapsed() < LOOK, "it was told and not looked up");
}
