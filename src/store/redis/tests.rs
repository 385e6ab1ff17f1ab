//! What the store of many replicas promises beyond the contract, against real servers: what happens
//! when they end, hang, come back, or fail over and forget.

mod server;

use std::time::Instant;

use redis::Value;
use server::{LONG, Server, installed};

use super::*;
use crate::{
    config::{Config, Sources, StoreUrl},
    domain::{ConversationId, EventBody, Failure, FailureReason, Message, RequestId, Sequence},
    health::{Health, Service},
    store::{
        After, Appended, Begin, Begun, ConversationLog as _, Owner, Store, TurnOptions,
        contract::{self, Replicas},
    },
};

const LEASE: Duration = Duration::from_millis(500);

/// An open store, whose tasks end with it.
struct Opened {
    store: Arc<Redis>,
    health: Health,
    life: Lifecycle,
}

impl Drop for Opened {
    fn drop(&mut self) {
        assert_eq!(self.life.crash(), None);
        self.life.closed().cancel();
    }
}

impl Opened {
    async fn ready(&self, ready: bool) {
        let mut state = self.health.watch();
        let reached = state.wait_for(|state| state.serving(Service::Readiness) == ready);
        tokio::time::timeout(LONG, reached).await.expect("in time").expect("a state");
    }
}

fn config(settings: &[&str]) -> config::Store {
    let mut overrides = vec!["store.lease=500ms".to_owned()];
    overrides.extend(settings.iter().map(|setting| (*setting).to_owned()));
    Config::load(&Sources { overrides, ..Sources::default() }).expect("good settings").store
}

async fn try_open(settings: &[&str]) -> Result<Opened, Error> {
    let config = config(settings);
    let StoreUrl::Redis(url) = &config.url else { panic!("{config:?}") };
    let mut registry = Registry::default();
    let health = Health::new(&mut registry);
    let dependency = health.dependency("store");
    health.started();
    let life = Lifecycle::new();
    let patience = Duration::from_secs(1);
    let store =
        Redis::open_within(patience, url, &config, dependency, &life, &mut registry).await?;
    Ok(Opened { store, health, life })
}

async fn open(url: &str, settings: &[&str]) -> Opened {
    let url = format!("store.url={url}");
    let settings: Vec<_> = [url.as_str()].into_iter().chain(settings.iter().copied()).collect();
    try_open(&settings).await.expect("a store")
}

/// Why the store could not be opened.
async fn refusal(settings: &[&str]) -> String {
    match try_open(settings).await {
        Ok(_) => panic!("it opened"),
        Err(error) => error.to_string(),
    }
}

async fn the_contract_holds(url: &str, settings: &[&str]) {
    let (here, there) = (open(url, settings).await, open(url, settings).await);
    let replicas = Replicas {
        here: Arc::clone(&here.store) as Arc<dyn Store>,
        there: Arc::clone(&there.store) as Arc<dyn Store>,
        lease: LEASE,
        new: true,
    };
    contract::holds(&replicas).await;
    contract::histories(&replicas, 50, 1).await;
}

fn fresh() -> ConversationKey {
    ConversationKey::new("alice", ConversationId(Uuid::new_v4()))
}

fn says(text: &str) -> Begin {
    let request = RequestId(Uuid::new_v4());
    Begin {
        message: Message { participant: "alice".to_owned(), text: text.to_owned(), request },
        options: TurnOptions::default(),
        existing: false,
    }
}

fn delta(text: &str) -> EventBody {
    EventBody::Delta(text.to_owned())
}

fn failed() -> EventBody {
    let (reason, partial_text) = (FailureReason::Internal, String::new());
    EventBody::Failed(Failure { reason, partial_text })
}

async fn owner(store: &Redis, key: &ConversationKey) -> Owner {
    match store.begin(key, &says("hello")).await.expect("a begin") {
        Begun::New { owner, .. } => owner,
        other => panic!("not new: {other:?}"),
    }
}

async fn stored(store: &Redis, owner: &Owner, number: u64, text: &str) -> Sequence {
    match store.append(owner, number, &[delta(text)]).await.expect("an append") {
        Appended::Stored { last, .. } => last,
        other => panic!("not stored: {other:?}"),
    }
}

#[tokio::test]
async fn the_contract_holds_on_one_server() {
    if !installed() {
        return;
    }
    let server = Server::start(&[]).await;
    the_contract_holds(&server.url(), &[]).await;
}

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
async fn switch(to: Arc<std::sync::atomic::AtomicU16>, life: &Lifecycle) -> u16 {
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
            let to = to.load(std::sync::atomic::Ordering::SeqCst);
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
    primary.until(&["INFO", "replication"], "state=online").await;
    let (life, to) = (Lifecycle::new(), Arc::new(std::sync::atomic::AtomicU16::new(primary.port)));
    let port = switch(Arc::clone(&to), &life).await;
    let opened = open(&format!("redis://127.0.0.1:{port}"), &[]).await;
    let (store, key) = (&*opened.store, fresh());
    let owner = owner(store, &key).await;
    for number in 1..=20 {
        stored(store, &owner, number, "kept").await;
    }
    primary.until(&["WAIT", "1", "1000"], "int(1)").await;
    replica.ask(&["REPLICAOF", "NO", "ONE"]).await;
    for number in 21..=40 {
        stored(store, &owner, number, "lost").await;
    }
    let page = store.read(&key, After::Sequence(Sequence(0)), 100, false).await.expect("a read");
    let (last_kept, last) = (page.events[20].position, page.events[40].position);
    assert_eq!(page.events[21].body, delta("lost"));

    to.store(replica.port, std::sync::atomic::Ordering::SeqCst);
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

#[tokio::test]
async fn a_server_that_will_not_do_is_refused_with_a_reason_and_without_the_password() {
    if !installed() {
        return;
    }
    let server = Server::start(&["--requirepass", "right", "--maxmemory", "100mb"]).await;
    let address = format!("127.0.0.1:{}", server.port);
    let refused = |why: String, expected: &str| {
        assert!(why.contains(expected), "{why}");
        assert!(why.contains(&address), "{why}");
        assert!(!why.contains("secret") && !why.contains("right"), "{why}");
    };
    let with = |credentials: &str| format!("store.url=redis://{credentials}{address}");
    refused(refusal(&[&with(":secret@")]).await, "does not take the user and password");
    refused(refusal(&[&with("")]).await, "does not take the user and password");

    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "right\n").expect("a file");
    let file = format!("store.password_file={}", file.path().display());
    let opened = try_open(&[&with(":secret@"), &file]).await.expect("the file's password");
    let set = |name: &'static str, value: &'static str| {
        let mut connection =
            opened.store.links.of_slot(0).expect("a link").connection().expect("up");
        async move {
            redis::cmd("CONFIG")
                .arg(&["SET", name, value])
                .exec_async(&mut connection)
                .await
                .expect("a setting");
        }
    };
    set("maxmemory-policy", "allkeys-lru").await;
    refused(refusal(&[&with(":right@")]).await, "maxmemory-policy is allkeys-lru");
    set("maxmemory-policy", "noeviction").await;
    // A full server says so, and is not down for that.
    set("maxmemory", "1").await;
    let full = opened.store.begin(&fresh(), &says("hello")).await.expect_err("full").to_string();
    assert!(full.contains("maxmemory") && full.contains("noeviction"), "{full}");
    opened.ready(true).await;

    let why = refusal(&[&format!("store.url=redis+cluster://:right@{address}")]).await;
    assert!(why.contains("not a node of a cluster"), "{why}");
    let replica = Server::start(&["--replicaof", "127.0.0.1", "1"]).await;
    let why = refusal(&[&format!("store.url={}", replica.url())]).await;
    assert!(why.contains("is a replica, which takes no writes"), "{why}");
    let nobody = format!("127.0.0.1:{}", server::free_port());
    let why = refusal(&[&format!("store.url=redis://:secret@{nobody}")]).await;
    assert!(why.contains(&nobody) && why.contains("tried for 1 s"), "{why}");
    assert!(!why.contains("secret"), "{why}");
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
    primary.until(&["INFO", "replication"], "state=online").await;
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
    primary.until(&["INFO", "replication"], "state=online").await;
    primary.until(&["WAIT", "1", "1000"], "int(1)").await;
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

#[tokio::test]
async fn tls_takes_the_authority_that_is_named_and_no_other() {
    if !installed() {
        return;
    }
    let signed =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let (cert, key) = (signed.cert.pem(), signed.signing_key.serialize_pem());
    let server = Server::start_with(
        |folder| {
            let file = |name: &str, text: &str| {
                let path = folder.join(name);
                std::fs::write(&path, text).expect("a file");
                path.display().to_string()
            };
            let (cert, key) = (file("cert.pem", &cert), file("key.pem", &key));
            let args =
                ["--tls-cert-file", &cert, "--tls-key-file", &key, "--tls-auth-clients", "no"];
            args.map(str::to_owned).to_vec()
        },
        true,
    )
    .await;
    let folder = tempfile::tempdir().expect("a folder");
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, &cert).expect("a file");
    let ca = format!("store.ca_file={}", ca.display());
    let url = format!("rediss://localhost:{}", server.port);
    the_contract_holds(&url, &[&ca]).await;

    let other =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    std::fs::write(folder.path().join("other.pem"), other.cert.pem()).expect("a file");
    let other = format!("store.ca_file={}", folder.path().join("other.pem").display());
    let why = refusal(&[&format!("store.url={url}"), &other]).await;
    assert!(why.contains("is store.ca_file right?"), "{why}");
}

#[tokio::test]
async fn sentinels_lead_to_the_primary_and_to_the_next_one() {
    if !installed() {
        return;
    }
    let mut primary = Server::start(&[]).await;
    let port = primary.port.to_string();
    let replica = Server::start(&["--replicaof", "127.0.0.1", &port]).await;
    primary.until(&["INFO", "replication"], "state=online").await;
    let sentinel = Server::start(&["--sentinel"]).await;
    sentinel.ask(&["SENTINEL", "MONITOR", "main", "127.0.0.1", &port, "1"]).await;
    for (name, value) in [("down-after-milliseconds", "300"), ("failover-timeout", "3000")] {
        sentinel.ask(&["SENTINEL", "SET", "main", name, value]).await;
    }
    let url = format!("redis+sentinel://127.0.0.1:{}/main", sentinel.port);
    the_contract_holds(&url, &[]).await;

    let why = refusal(&[&format!("store.url={url}x")]).await;
    assert!(why.contains("knows no primary \"mainx\""), "{why}");
    let opened = open(&url, &[]).await;
    let owner = owner(&opened.store, &fresh()).await;
    stored(&opened.store, &owner, 1, "a").await;
    sentinel.until(&["SENTINEL", "REPLICAS", "main"], &replica.port.to_string()).await;
    primary.until(&["WAIT", "1", "1000"], "int(1)").await;
    primary.kill();
    opened.ready(false).await;
    opened.ready(true).await;
    stored(&opened.store, &owner, 2, "b").await;
}

#[tokio::test]
async fn a_cluster_holds_the_contract_and_may_move_slots_and_lose_a_node() {
    if !installed() {
        return;
    }
    let mut nodes = Vec::new();
    for _ in 0..3 {
        let bus = |_: &std::path::Path| {
            let port = server::free_port().to_string();
            ["--cluster-enabled", "yes", "--cluster-port", &port].map(str::to_owned).to_vec()
        };
        nodes.push(Server::start_with(bus, false).await);
    }
    for (node, (first, last)) in nodes.iter().zip([(0, 5460), (5461, 10922), (10923, 16383)]) {
        let range = [first, last].map(|slot: u32| slot.to_string());
        node.ask(&["CLUSTER", "ADDSLOTSRANGE", &range[0], &range[1]]).await;
    }
    for node in &nodes[1..] {
        let (port, bus) = (node.port.to_string(), node.bus_port());
        nodes[0].ask(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]).await;
    }
    for node in &nodes {
        node.until(&["CLUSTER", "INFO"], "cluster_state:ok").await;
    }
    let url = format!("redis+cluster://127.0.0.1:{}", nodes[1].port);
    the_contract_holds(&url, &[]).await;

    let why = refusal(&[&format!("store.url={}", nodes[0].url())]).await;
    assert!(why.contains("it is a node of a cluster"), "{why}");

    // A slot goes to another node, which nobody has told the store.
    let opened = open(&url, &[]).await;
    let (store, key) = (&*opened.store, fresh());
    let slot = store.conversation_keys(&key).slot;
    let from = usize::from(slot > 5460) + usize::from(slot > 10922);
    let to = (from + 1) % 3;
    let Value::BulkString(id) = nodes[to].ask(&["CLUSTER", "MYID"]).await else { panic!("no id") };
    let (id, slot) = (String::from_utf8(id).expect("an id"), slot.to_string());
    for node in [to, from] {
        nodes[node].ask(&["CLUSTER", "SETSLOT", &slot, "NODE", &id]).await;
    }
    let owner = owner(store, &key).await;
    stored(store, &owner, 1, "a").await;
    // A node that is gone takes its conversations with it, and brings them back.
    nodes[to].kill();
    let down = store.append(&owner, 2, &[delta("b")]).await;
    assert!(matches!(down, Err(Error::Down(_))), "{down:?}");
    opened.ready(false).await;
    nodes[to].start_again().await;
    opened.ready(true).await;
    for node in &nodes {
        node.until(&["CLUSTER", "INFO"], "cluster_state:ok").await;
    }
    // It kept nothing on a disk.
    let fenced = store.append(&owner, 2, &[delta("b")]).await.expect("an append");
    assert_eq!(fenced, Appended::Fenced);
}
