//! The places that a URL can name, and those that will not do.

use super::*;

#[tokio::test]
async fn the_contract_holds_on_one_server() {
    if !installed() {
        return;
    }
    let server = Server::start(&[]).await;
    the_contract_holds(&server.url(), &[]).await;
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
    replica.has_all_of(&primary).await;
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
    replica.has_all_of(&primary).await;
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
