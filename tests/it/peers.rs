//! Clients and tools that are not ours: grpcio, grpc-health-probe, h2spec, a full disk.

use std::{collections::BTreeSet, fs, process::Command};

use chatbot::pb::chatbot::v1::{
    KnowledgeEntry, TeachRequest, chatbot_client::ChatbotClient, teach_request::Change,
};
use tempfile::TempDir;
use tonic::Code;

use crate::{
    support::{Process, SmallDisk, binary, channel, folder, serve, skip, succeeds},
    tls::{Authority, settings},
};

/// A Python that has `modules`, or none, and then it says so.
fn python(modules: &str) -> Option<String> {
    let python = std::env::var("CHATBOT_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let there = succeeds(Command::new(&python).args(["-c", &format!("import {modules}")]));
    if !there {
        skip("python3 with grpcio", "pip install -r tests/python/requirements.txt");
    }
    there.then_some(python)
}

/// What a program prints, of whatever exit code.
fn output(command: &mut Command) -> String {
    let output = command.output().expect("it runs");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn grpcio_gets_its_answers() {
    let Some(python) = python("grpc, grpc_tools") else { return };
    let mut command = binary();
    for setting in [
        "server.address=127.0.0.1:0",
        "ops.address=127.0.0.1:0",
        "store.url=memory:",
        "server.drain_delay=0s",
    ] {
        command.args(["--set", setting]);
    }
    let mut process = Process::start(&mut command);
    let ops = process.wait_for_address(&["ops port is open"]).to_string();
    let server = process.wait_for_address(&["serving"]).to_string();
    let output = Command::new(python)
        .args(["tests/python/ask.py", "proto", &server, &ops])
        .output()
        .expect("python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A server over TLS, to look at from outside.
struct Watched {
    process: Process,
    folder: TempDir,
    server: String,
    ops: String,
}

fn watched(more: &[&str]) -> Watched {
    let folder = folder();
    let authority = Authority::new();
    authority.write_server(folder.path());
    fs::write(folder.path().join("ca.crt"), authority.pem()).expect("a file");
    let all = settings(folder.path());
    let all: Vec<&str> = all.iter().map(String::as_str).chain(more.iter().copied()).collect();
    let mut process = Process::start(&mut serve(&folder, &all));
    let ops = process.wait_for_address(&["ops port is open"]).to_string();
    let server = process.wait_for_address(&["serving"]).to_string();
    Watched { process, folder, server, ops }
}

impl Watched {
    fn health(&self, python: &str, over_tls: bool, verb: &str, name: &str) -> Command {
        let mut command = Command::new(python);
        let address = if over_tls { &self.server } else { &self.ops };
        command.args(["tests/python/health.py", address, verb, name]);
        if over_tls {
            command.arg(self.folder.path().join("ca.crt")).arg("chatbot.test");
        }
        command
    }
}

#[test]
fn grpcio_health_checking_sees_what_the_protocol_says_on_both_ports() {
    let Some(python) = python("grpc_health") else { return };
    let watched = watched(&["server.drain_delay=3s"]);
    for over_tls in [true, false] {
        let ask = |verb, name| output(&mut watched.health(&python, over_tls, verb, name));
        for name in ["", "chatbot.v1.Chatbot", "liveness", "readiness", "startup"] {
            assert_eq!(ask("check", name), "SERVING\n", "{name}");
        }
        assert_eq!(ask("check", "nobody"), "NOT_FOUND\n");
        let all = "server SERVING\nchatbot.v1.Chatbot SERVING\nliveness SERVING\n\
                   readiness SERVING\nstartup SERVING\n";
        assert_eq!(ask("list", ""), all);
    }
    let mut watchers: Vec<(bool, Process, Process, Process)> = [true, false]
        .into_iter()
        .map(|over_tls| {
            let watch =
                |name| Process::start(&mut watched.health(&python, over_tls, "watch", name));
            (over_tls, watch("readiness"), watch("liveness"), watch("nobody"))
        })
        .collect();
    for (_, readiness, liveness, nobody) in &mut watchers {
        readiness.wait_for(&["SERVING"]);
        liveness.wait_for(&["SERVING"]);
        nobody.wait_for(&["SERVICE_UNKNOWN"]);
    }
    watched.process.signal("TERM");
    for (_, readiness, ..) in &mut watchers {
        readiness.wait_for(&["NOT_SERVING"]);
    }
    for over_tls in [true, false] {
        let ask = |name| output(&mut watched.health(&python, over_tls, "check", name));
        assert_eq!(ask("readiness"), "NOT_SERVING\n");
        assert_eq!(ask("liveness"), "SERVING\n");
    }
    // Changes only, then an end with a status, and nothing that was not said before.
    for (over_tls, readiness, liveness, nobody) in watchers {
        let said = |process: Process| process.wait().1.join(" ");
        assert_eq!(said(readiness), "SERVING NOT_SERVING UNAVAILABLE", "{over_tls}");
        assert_eq!(said(liveness), "SERVING UNAVAILABLE", "{over_tls}");
        assert_eq!(said(nobody), "SERVICE_UNKNOWN UNAVAILABLE", "{over_tls}");
    }
}

#[test]
fn at_the_start_probes_are_told_to_wait_and_not_to_restart() {
    let Some(python) = python("grpc_health") else { return };
    let folder = folder();
    // Large enough that a client can ask while it is read.
    let entry = |id: i32| {
        format!(
            "{{\"answer_id\":{id},\"questions\":[\"question {id}\"],\"answer\":\"answer {id}\"}}\n"
        )
    };
    let entries: String = (1..=60_000).map(entry).collect();
    fs::write(folder.path().join("faq.jsonl"), entries).expect("a file");
    let mut process = Process::start(&mut serve(&folder, &[]));
    let ops = process.wait_for_address(&["ops port is open"]).to_string();
    let list = || output(Command::new(&python).args(["tests/python/health.py", &ops, "list", ""]));
    let starting = "server NOT_SERVING\nchatbot.v1.Chatbot NOT_SERVING\nliveness SERVING\n\
                    readiness NOT_SERVING\nstartup NOT_SERVING\n";
    assert_eq!(list(), starting);
    process.wait_for(&["serving"]);
    let ready = "server SERVING\nchatbot.v1.Chatbot SERVING\nliveness SERVING\n\
                 readiness SERVING\nstartup SERVING\n";
    assert_eq!(list(), ready);
}

#[test]
fn grpc_health_probe_agrees() {
    if !succeeds(Command::new("grpc-health-probe").arg("-version")) {
        return skip(
            "grpc-health-probe",
            "go install github.com/grpc-ecosystem/grpc-health-probe@latest",
        );
    }
    let watched = watched(&[]);
    let probe = |address: &str, name: &str, tls: bool| {
        let mut command = Command::new("grpc-health-probe");
        command.args(["-addr", address, "-service", name, "-connect-timeout", "10s"]);
        if tls {
            command.args(["-tls", "-tls-server-name", "chatbot.test", "-tls-ca-cert"]);
            command.arg(watched.folder.path().join("ca.crt"));
        }
        command.output().expect("it runs").status.code()
    };
    for (address, tls) in [(&watched.server, true), (&watched.ops, false)] {
        assert_eq!(probe(address, "readiness", tls), Some(0));
        assert_eq!(probe(address, "nobody", tls), Some(3));
    }
    assert_eq!(probe(&watched.server, "", false), Some(2), "plaintext on a TLS port");
}

#[test]
fn h2spec_finds_no_fault_of_ours() {
    // What it finds at any server that answers like a gRPC server, and why that is right.
    const EXPLAINED: [&str; 4] = [
        // Both want a DATA frame in the answer; ours has a head and no body.
        "2: Sends a WINDOW_UPDATE frame on half-closed (remote) stream",
        "3: Sends a PRIORITY frame on half-closed (remote) stream",
        // The connection is closed, but with bytes unread: the kernel makes a reset of it.
        "2: Sends invalid connection preface",
        // Its calls end at once, so that it never has more than the limit open.
        "1: Sends HEADERS frames that causes their advertised concurrent stream limit to be exceeded",
    ];
    // Its requests are no gRPC and are answered (415) by their heads, as RFC 9113 (8.1) allows. A case
    // that goes on with such a request then meets a stream that has ended, or not yet: what it finds
    // differs from run to run, while a fault of the server is found in each.
    const RUNS: usize = 3;
    if !succeeds(Command::new("h2spec").arg("--version")) {
        return skip("h2spec", "go install github.com/summerwind/h2spec/cmd/h2spec@v2.2.1");
    }
    let folder = folder();
    let mut process = Process::start(&mut serve(&folder, &[]));
    let port = process.wait_for_address(&["serving"]).port().to_string();
    let mut faults: Option<BTreeSet<String>> = None;
    for _ in 0..RUNS {
        let report =
            output(Command::new("h2spec").args(["-h", "127.0.0.1", "-p", &port, "-o", "2"]));
        assert!(report.contains("145 tests"), "{report}");
        let found = report.lines().filter_map(|line| line.trim().strip_prefix("× "));
        let found: BTreeSet<String> = found.map(ToOwned::to_owned).collect();
        faults = Some(match faults {
            None => found,
            Some(before) => &before & &found,
        });
    }
    let ours: Vec<_> =
        faults.into_iter().flatten().filter(|fault| !EXPLAINED.contains(&fault.as_str())).collect();
    assert_eq!(ours, [""; 0]);
}

fn upsert(id: i32) -> TeachRequest {
    let entry = KnowledgeEntry {
        answer_id: id,
        questions: vec![format!("question {id}")],
        answer: "x".repeat(60_000),
        language_code: String::new(),
    };
    TeachRequest { change: Some(Change::Upsert(entry)) }
}

// Two threads: the test waits for the process while its client speaks to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_told_to_teachers_and_probes_and_loses_nothing() {
    let Some(disk) = SmallDisk::mount() else { return };
    let folder = folder();
    let url = format!("store.url=redb:{}", disk.path().join("chatbot.redb").display());
    let mut process = Process::start(&mut serve(&folder, &[&url]));
    let ops = process.wait_for_address(&["ops port is open"]);
    let mut watch = python("grpc_health").map(|python| {
        let arguments = ["tests/python/health.py", &ops.to_string(), "watch", "readiness"];
        Process::start(Command::new(python).args(arguments))
    });
    let mut client = ChatbotClient::new(channel(process.wait_for_address(&["serving"])).await);

    let mut told = |status: &str| watch.as_mut().map(|watch| watch.wait_for(&[status]));
    told("SERVING");
    let mut kept = 0;
    let refused = loop {
        match client.teach(tokio_stream::iter([upsert(100 + kept)])).await {
            Ok(_) => kept += 1,
            Err(status) => break status,
        }
        assert!(kept < 500, "the disk does not fill");
    };
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    process.wait_for(&["dependency is down", "store"]);
    told("NOT_SERVING");
    let readyz = crate::support::http_get(ops, "/readyz");
    assert!(readyz.contains("503") && readyz.contains("waiting for: store"), "{readyz}");
    assert!(crate::support::http_get(ops, "/livez").contains("200 OK"));

    disk.grow();
    process.wait_for(&["dependency is up", "store"]);
    told("SERVING");
    client.teach(tokio_stream::iter([upsert(100 + kept)])).await.expect("there is room again");
    process.signal("TERM");
    assert_eq!(process.wait().0.code(), Some(0));

    let mut process = Process::start(&mut serve(&folder, &[&url]));
    let line = process.wait_for(&["knowledge is loaded"]);
    assert!(line.contains(&format!("entries={}", 6 + kept + 1)), "{line}");
}
