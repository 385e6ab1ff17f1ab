//! The real binary: its exit codes, signals, limits, reload, and its last trace.

use std::{net::TcpStream, process::Command};

use chatbot::pb::{
    chatbot::v1::{AskRequest, chatbot_client::ChatbotClient},
    health::v1::{HealthCheckRequest, health_client::HealthClient},
};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use tonic::Request;

use crate::{
    collector::{Collector, attribute, hex},
    support::{LONG, Process, binary, channel, folder, metric, serve},
};

struct Finished {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn run(command: &mut Command) -> Finished {
    let output = command.output().expect("the binary runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Finished {
        code: output.status.code(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

#[test]
fn bad_settings_end_with_64_and_every_problem() {
    let command = &mut binary();
    command.args(["serve", "--set", "server.drain_grace=25", "--set", "sever.address=x"]);
    let finished = run(command);
    assert_eq!(finished.code, Some(64));
    assert!(finished.stderr.contains("has 2 problems"), "{}", finished.stderr);
    assert!(
        finished.stderr.contains("server.drain_grace: must be a duration"),
        "{}",
        finished.stderr
    );
    assert!(finished.stderr.contains("did you mean server.address?"), "{}", finished.stderr);
    assert_eq!(run(binary().args(["config", "check", "--set", "x=1"])).code, Some(64));
    assert_eq!(run(binary().arg("fly")).code, Some(64));
}

#[test]
fn good_settings_can_be_checked_and_dumped() {
    let checked = run(binary().args(["config", "check"]));
    assert_eq!((checked.code, checked.stdout.as_str()), (Some(0), "the configuration is good\n"));
    let dumped = run(binary().args(["config", "dump"]).env("CHATBOT__SERVER__DRAIN_DELAY", "7s"));
    assert_eq!(dumped.code, Some(0));
    let line = dumped.stdout.lines().find(|line| line.starts_with("drain_delay")).expect("a line");
    assert!(line.starts_with("drain_delay = \"7s\""), "{line}");
    assert!(line.ends_with("# CHATBOT__SERVER__DRAIN_DELAY"), "{line}");
}

#[test]
fn a_port_that_is_taken_ends_the_start_with_1_and_its_name() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address");
    for key in ["server.address", "ops.address"] {
        let finished = run(&mut serve(&folder(), &[&format!("{key}={address}")]));
        assert_eq!(finished.code, Some(1), "{}", finished.stderr);
        assert!(
            finished.stderr.contains(&format!("cannot listen on {key}")),
            "{}",
            finished.stderr
        );
    }
}

#[test]
fn bad_knowledge_ends_the_start_with_its_lines() {
    let folder = folder();
    std::fs::write(folder.path().join("faq.jsonl"), "{}\n").expect("a file");
    let finished = run(&mut serve(&folder, &[]));
    assert_eq!(finished.code, Some(1));
    assert!(finished.stderr.contains("line 1: missing field"), "{}", finished.stderr);
}

#[test]
fn the_soft_limit_is_raised_to_the_hard_one() {
    let folder = folder();
    let inner = serve(&folder, &[]);
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -S -n 64; ulimit -H -n 4096; exec \"$0\" \"$@\""]);
    command.arg(inner.get_program()).args(inner.get_args());
    let mut process = Process::start(&mut command);
    let ops = process.wait_for_address(&["ops port is open"]);
    process.wait_for(&["serving"]);
    assert_eq!(metric(ops, "chatbot_net_fds_limit_initial"), Some(64.0));
    assert_eq!(metric(ops, "chatbot_net_fds_limit_soft"), Some(4096.0));
    assert_eq!(metric(ops, "chatbot_net_fds_limit_hard"), Some(4096.0));
    assert!(metric(ops, "chatbot_net_fds_open").expect("a number") > 5.0);
}

#[test]
fn health_and_ask_have_the_exit_codes_of_probes() {
    let folder = folder();
    let mut process = Process::start(&mut serve(&folder, &["server.drain_delay=1h"]));
    let ops = process.wait_for_address(&["ops port is open"]).to_string();
    let server = process.wait_for_address(&["serving"]).to_string();
    let health = |arguments: &[&str]| run(binary().arg("health").args(arguments));
    let ask = |arguments: &[&str]| run(binary().arg("ask").args(arguments));

    let serving = health(&["--addr", &ops]);
    assert_eq!((serving.code, serving.stdout.as_str()), (Some(0), "SERVING\n"));
    assert_eq!(health(&["--addr", &server, "--service", "liveness"]).code, Some(0));
    // The address comes from the settings where none is given.
    let setting = format!("ops.address={ops}");
    assert_eq!(health(&["--set", &setting]).code, Some(0));
    let unknown = health(&["--addr", &ops, "--service", "nobody"]);
    assert_eq!(unknown.code, Some(3));
    assert!(unknown.stdout.contains("unknown service \"nobody\""), "{}", unknown.stdout);
    assert_eq!(health(&["--addr", "127.0.0.1:1"]).code, Some(2));
    assert_eq!(health(&["--addr", "not an address"]).code, Some(64));
    assert_eq!(health(&["--timeout", "soon"]).code, Some(64));

    let known = ask(&["--addr", &server, "연결이 왜 자꾸 끊기나요?"]);
    let answer = "서버가 연결의 나이를 제한하기 때문입니다.\n";
    assert_eq!((known.code, known.stdout.as_str()), (Some(0), answer));
    assert_eq!(ask(&["--addr", &server, "pizza"]).code, Some(4));
    assert_eq!(ask(&["--addr", &server, ""]).code, Some(3));

    process.signal("TERM");
    process.wait_for(&["stopping"]);
    let deadline = std::time::Instant::now() + LONG;
    let stopping = loop {
        let stopping = health(&["--addr", &ops]);
        if stopping.code != Some(0) || std::time::Instant::now() > deadline {
            break stopping;
        }
    };
    assert_eq!((stopping.code, stopping.stdout.as_str()), (Some(4), "NOT_SERVING\n"));
    assert_eq!(health(&["--addr", &ops, "--service", "liveness"]).code, Some(0));

    // The delay is an hour; a second signal ends it.
    process.signal("TERM");
    let (status, _, _) = process.wait();
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn a_stop_ends_on_time_whoever_is_connected() {
    let folder = folder();
    let mut process = Process::start(&mut serve(&folder, &[]));
    let ops = process.wait_for_address(&["ops port is open"]);
    let server = process.wait_for_address(&["serving"]);
    let _silent = (
        TcpStream::connect(server).expect("a connection"),
        TcpStream::connect(ops).expect("a connection"),
    );
    let mut health = HealthClient::new(channel(server).await);
    let watch = health.watch(HealthCheckRequest::default()).await.expect("a stream");
    process.signal("TERM");
    // The grace is a second; a hang would be told by `wait`.
    let (status, lines, _) = process.wait();
    assert_eq!(status.code(), Some(0), "{lines:#?}");
    assert!(lines.iter().any(|line| line.contains("stopped")), "{lines:#?}");
    drop(watch);
}

#[tokio::test]
async fn a_changed_file_and_a_hangup_reload_what_can_be() {
    let folder = folder();
    let settings = folder.path().join("chatbot.toml");
    std::fs::write(&settings, "[telemetry]\nlog_filter = \"info\"\n").expect("a file");
    let mut command = serve(&folder, &[]);
    command.arg("--config").arg(&settings);
    let mut process = Process::start(&mut command);
    let server = process.wait_for_address(&["serving"]);
    let mut client = ChatbotClient::new(channel(server).await);
    let faq = folder.path().join("faq.jsonl");
    let entry = r#"{"answer_id":1,"questions":["When does the quokka smile?"],"answer":"Always."}"#;

    // By itself, within seconds.
    std::fs::write(&faq, format!("{entry}\n")).expect("a file");
    process.wait_for(&["knowledge reloaded", "entries=1"]);
    let request =
        AskRequest { query: "when does the quokka smile".to_owned(), ..Default::default() };
    let answer = client.ask(request.clone()).await.expect("an answer").into_inner().answer;
    assert_eq!(answer.expect("an answer").text, "Always.");

    // A bad file keeps the last good one.
    std::fs::write(&faq, "{\n").expect("a file");
    process.signal("HUP");
    process.wait_for(&["line 1: EOF"]);
    let answer = client.ask(request).await.expect("an answer").into_inner().answer;
    assert_eq!(answer.expect("an answer").text, "Always.");
    std::fs::write(&faq, format!("{entry}\n")).expect("a file");

    // Settings: one that can change, one that cannot, a bad one.
    std::fs::write(
        &settings,
        "[telemetry]\nlog_filter = \"info,chatbot=debug\"\n[server]\nreflection = false\n",
    )
    .expect("a file");
    process.signal("HUP");
    process.wait_for(&["changed, needs a restart", "server.reflection"]);
    process.wait_for(&["log filter changed", "chatbot=debug"]);
    std::fs::write(&settings, "[telemetry]\nlog_filter = 7\nx = 1\n").expect("a file");
    process.signal("HUP");
    process.wait_for(&["not reloaded, the old settings stay"]);
}

#[tokio::test]
async fn credentials_are_reloaded_and_never_logged() {
    let folder = folder();
    let tokens = folder.path().join("tokens");
    let (hash, other) = (
        // `printf %s hunter-one | sha256sum`, and of hunter-two.
        "c7819ee560ff7169f348782b7d7be0bc0360f98bb81bbc51e70cbb2d3c2fcf0c",
        "0802d80a03a2985f0007931dc89c7fc7c3b5f01a77b4699f621158e1f9412900",
    );
    std::fs::write(&tokens, format!("sha256:{hash} quokka chat\n")).expect("a file");
    let setting = format!("auth.tokens_file={}", tokens.display());
    let mut process =
        Process::start(&mut serve(&folder, &[&setting, "telemetry.log_filter=trace"]));
    process.wait_for(&["credentials are required", "tokens=1", "keys=0"]);
    let server = process.wait_for_address(&["serving"]);
    let mut client = ChatbotClient::new(channel(server).await);
    let with = |token: &str| {
        let message = AskRequest { query: "deadline".to_owned(), ..Default::default() };
        let mut request = Request::new(message);
        let value = format!("Bearer {token}").parse().expect("a value");
        request.metadata_mut().insert("authorization", value);
        request
    };
    client.ask(with("hunter-one")).await.expect("an answer");
    client.ask(with("hunter-two")).await.expect_err("not known yet");
    process.wait_for(&["credential refused", "reason=\"invalid\""]);

    // By itself, within seconds.
    std::fs::write(&tokens, format!("sha256:{other} quokka chat,teach\n")).expect("a file");
    process.wait_for(&["credentials reloaded", "tokens=1"]);
    client.ask(with("hunter-one")).await.expect_err("gone");
    client.ask(with("hunter-two")).await.expect("an answer");

    std::fs::write(&tokens, "hunter-three quokka chat\n").expect("a file");
    process.signal("HUP");
    process.wait_for(&["credentials not reloaded, the old stay"]);
    process.wait_for(&["tokens: line 1: the hash must be"]);
    client.ask(with("hunter-two")).await.expect("an answer");
    process.signal("TERM");
    let (_, lines, stderr) = process.wait();
    for secret in ["hunter", hash, other] {
        let told = lines.iter().find(|line| line.contains(secret));
        assert!(told.is_none() && !stderr.contains(secret), "{told:?} {stderr}");
    }
}

#[test]
fn json_logs_are_one_object_a_line() {
    let folder = folder();
    let mut process = Process::start(&mut serve(&folder, &["telemetry.log_format=json"]));
    process.wait_for(&["\"message\":\"serving\""]);
    process.signal("TERM");
    let (_, lines, _) = process.wait();
    assert!(lines.len() > 5);
    for line in lines {
        let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert!(value["timestamp"].is_string() && value["level"].is_string(), "{line}");
    }
}

// Two threads: the test blocks on the process while its collector has to answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_call_before_a_stop_is_traced_to_the_end() {
    let (mut collector, setting) = Collector::start().await;
    let folder = folder();
    let mut process = Process::start(&mut serve(&folder, &[&setting]));
    let server = process.wait_for_address(&["serving"]);
    let mut client = ChatbotClient::new(channel(server).await);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let call = |query: &str, flags: &str| {
        let mut request =
            Request::new(AskRequest { query: query.to_owned(), ..Default::default() });
        let parent = format!("00-{trace}-00f067aa0ba902b7-{flags}");
        request.metadata_mut().insert("traceparent", parent.parse().expect("a value"));
        request
    };
    client.ask(call("deadline", "00")).await.expect("not sampled by its caller");
    client.ask(call("deadline", "01")).await.expect("an answer");
    client.ask(call("", "01")).await.expect_err("refused");
    process.signal("TERM");
    let (status, lines, _) = process.wait();
    assert_eq!(status.code(), Some(0), "{lines:#?}");

    let mut spans = collector.spans().await;
    let turns = spans.extract_if(.., |span| span.kind() == SpanKind::Internal).count();
    assert_eq!(turns, 2, "the turn of the one that was answered, and its attempt: {lines:#?}");
    assert_eq!(spans.len(), 2, "only calls, and only sampled ones: {spans:#?} {lines:#?}");
    spans.sort_by_key(|span| span.start_time_unix_nano);
    for (span, code) in spans.iter().zip(["OK", "INVALID_ARGUMENT"]) {
        assert_eq!(span.name, "chatbot.v1.Chatbot/Ask");
        assert_eq!(span.kind(), SpanKind::Server);
        assert_eq!(hex(&span.trace_id), trace);
        assert_eq!(hex(&span.parent_span_id), "00f067aa0ba902b7");
        assert!(span.end_time_unix_nano > span.start_time_unix_nano);
        assert_eq!(attribute(span, "rpc.system.name").as_deref(), Some("grpc"));
        assert_eq!(attribute(span, "rpc.method").as_deref(), Some("chatbot.v1.Chatbot/Ask"));
        assert_eq!(attribute(span, "rpc.response.status_code").as_deref(), Some(code));
    }
}
