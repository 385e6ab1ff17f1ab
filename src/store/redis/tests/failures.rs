//! Servers that end, hang, come back, forget, or keep their replicas waiting.

use std::{
    sync::atomic::{AtomicU16, Ordering},
    time::Instant,
};

use super::*;

#[tokio::test]
async fn a_server_that_restarts_with_its_data_goes_unnoticed_but_for_the_pause() {
    if !installed() {
        return;
    }
    let mut server = Server::start(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let opened = open(&server.url(), &[]).await;
    let (store, key) = (&*opened.store, fresh());
    let owner = owner(store, &key).await;
    stored(store, &owner, 1, "a").await;
    store.append_knowledge(vec![contract::upsert(1, "one")]).await.expect("an append");

    server.kill();
    let before = Instant::now();
    let down = store.append(&owner, 2, &[delta("b")]).await;
    assert!(matches!(down, Err(Error::Down(_))), "{down:?}");
    assert!(before.elapsed() < Duration::from_secs(2), "{:?}", before.elapsed());
    opened.ready(false).await;
    let down = store.read(&key, After::Sequence(Sequence(0)), 10, false).await;
    assert!(matches!(down, Err(Error::Down(_))), "{down:?}");

    server.start_again().await;
    opened.ready(true).await;
    // It has forgotten the scripts, and nothing else.
    stored(store, &owner, 2, "b").await;
    let page = store.read(&key, After::Sequence(Sequence(0)), 10, false).await.expect("a read");
    assert_eq!(page.events.len(), 3);
    let known = store.read_knowledge(Revision(0), 10).await.expect("a read");
    assert_eq!(known, [(Revision(1), contract::upsert(1, "one"))]);
    // Wake-ups come again, also for those who waited all along.
    let mut hint = store.hint(&key);
    let there = open(&server.url(), &[]).await;
    let woken = async {
        for number in 3.. {
            stored(&there.store, &owner, number, "c").await;
            if tokio::time::timeout(Duration::from_millis(100), hint.changed()).await.is_ok() {
                break;
            }
        }
    };
    tokio::time::timeout(LONG, woken).await.expect("a wake-up");
}

#[tokio::test]
async fn a_server_that_hangs_is_down_within_seconds_and_comes_back() {
    if !installed() {
        return;
    }
    let server = Server::start(&[]).await;
    let opened = open(&server.url(), &[]).await;
    let (store, key) = (&*opened.store, fresh());
    let owner = owner(store, &key).await;
    server.signal("-STOP");
    let before = Instant::now();
    let down = store.append(&owner, 1, &[delta("a")]).await;
    assert!(matches!(down, Err(Error::Down(_))), "{down:?}");
    assert!(before.elapsed() < Duration::from_secs(3), "{:?}", before.elapsed());
    opened.ready(false).await;
    server.signal("-CONT");
    opened.ready(true).await;
    // The append that timed out may have been stored all the same; its repetition is not stored again.
    stored(store, &owner, 1, "a").await;
    let page = store.read(&key, After::Sequence(Sequence(0)), 10, false).await.expect("a read");
    assert_eq!(page.events.len(), 2);
}

/// A TCP port whose other end can be chosen anew, as a Kubernetes service has it.
async fn switch(to: Arc<AtomicU16>, life: &Lifecycle) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let this = life.clone();
    life.spawn_support("switch", async move {
        loop {
            let accepted = tokio::select! {
                () = this.closing().cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let (mut near, _) = accepted.expect("a connection");
            let to = to.load(Ordering::SeqCst);
            this.spawn_work(async move {
                if let Ok(mut far) = tokio::net::TcpStream::connect(("127.0.0.1", to)).await {
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                }
            });
        }
    });
    port
}

#[tokio::test]
async fn a_promoted_replica_that_lost_its_tail_fences_the_owner_and_refuses_lost_positions() {
    if !installed() {
        return;
    }
    let mut primary = Server::start(&[]).await;
    let port = primary.port.to_string();
    let replica = Server::start(&["--replicaof", "127.0.0.1", &port]).await;
    replica.has_all_of(&primary).await;
    let (life, to) = (Lifecycle::new(), Arc::new(AtomicU16::new(primary.port)));
    let port = switch(Arc::clone(&to), &life).await;
    let opened = open(&format!("redis://127.0.0.1:{port}"), &[]).await;
    let (store, key) = (&*opened.store, fresh());
    let owner = owner(store, &key).await;
    for number in 1..=20 {
        stored(store, &owner, number, "kept").await;
    }
    replica.has_all_of(&primary).await;
    replica.ask(&["REPLICAOF", "NO", "ONE"]).await;
    for number in 21..=40 {
        stored(store, &owner, number, "lost").await;
    }
    let page = store.read(&key, After::Sequence(Sequence(0)), 100, false).await.expect("a read");
    let (last_kept, last) = (page.events[20].position, page.events[40].position);
    assert_eq!(page.events[21].body, delta("lost"));

    to.store(replica.port, Ordering::SeqCst);
    primary.kill();
    opened.ready(false).await;
    opened.ready(true).await;
    let fenced = store.append(&owner, 41, &[delta("late")]).await.expect("an append");
    assert_eq!(fenced, Appended::Fenced);
    let fenced = store.append(&owner, 41, &[]).await.expect("an append");
    assert_eq!(fenced, Appended::Fenced, "a renewal tells it too");
    let unknown = store.read(&key, After::Position(last), 10, false).await;
    assert!(matches!(unknown, Err(Error::PositionUnknown)), "{unknown:?}");

    // Whoever takes over gives the lost places to other events, and the old positions are not theirs.
    let taken = async {
        loop {
            if let Some(taken) = store.reap(&key).await.expect("a reap") {
                return taken;
            }
            tokio::time::sleep(LEASE / 10).await;
        }
    };
    let taken = tokio::time::timeout(LONG, taken).await.expect("an orphan");
    for number in 1..=20 {
        stored(store, &taken.owner, number, "other").await;
    }
    let unknown = store.read(&key, After::Position(last), 10, false).await;
    assert!(matches!(unknown, Err(Error::PositionUnknown)), "{unknown:?}");
    let page = store.read(&key, After::Position(last_kept), 100, false).await.expect("a read");
    assert_eq!(page.events.len(), 20);
    life.closing().cancel();
}

#[tokio::test]
async fn a_write_waits_for_the_replicas_that_it_has_to() {
    if !installed() {
        return;
    }
    let primary = Server::start(&[]).await;
    let opened = open(&primary.url(), &["store.wait_replicas=1"]).await;
    let (store, key, begin) = (&*opened.store, fresh(), says("hello"));
    let alone = store.begin(&key, &begin).await.expect_err("there is no replica").to_string();
    assert!(alone.contains("0 of 1 replicas"), "{alone}");
    opened.ready(true).await;
    let port = primary.port.to_string();
    let replica = Server::start(&["--replicaof", "127.0.0.1", &port]).await;
    replica.has_all_of(&primary).await;
    // Its outcome was unknown, so it is asked for again.
    let known = store.begin(&key, &begin).await.expect("a begin");
    assert!(matches!(known, Begun::Known { end: None, .. }), "{known:?}");
    let owner = owner(store, &fresh()).await;
    stored(store, &owner, 1, "a").await;
    drop(replica);
}

#[tokio::test]
async fn without_the_setting_a_slow_replica_is_waited_for_once() {
    if !installed() {
        return;
    }
    let primary = Server::start(&[]).await;
    let port = primary.port.to_string();
    let replica = Server::start(&["--replicaof", "127.0.0.1", &port]).await;
    replica.has_all_of(&primary).await;
    let opened = open(&primary.url(), &[]).await;
    let store = &*opened.store;
    // On a machine that is busy a healthy replica may be late too, and is not waited for until the next
    // look at the server.
    let link = store.links.of_slot(0).expect("one server");
    let acknowledged = async {
        loop {
            let before = store.metrics.unacknowledged.get();
            owner(store, &fresh()).await;
            if link.has_replica() && store.metrics.unacknowledged.get() == before {
                return before;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let before = tokio::time::timeout(Duration::from_mins(1), acknowledged).await.expect("in time");
    replica.signal("-STOP");
    let owners = [owner(store, &fresh()).await, owner(store, &fresh()).await];
    for owner in owners {
        let ended = store.append(&owner, 1, &[failed()]).await.expect("an append");
        assert!(matches!(ended, Appended::Stored { .. }), "{ended:?}");
    }
    assert_eq!(store.metrics.unacknowledged.get(), before + 1);
}
