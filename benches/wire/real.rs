//! The program with its real parts: a search, and a log that is kept. No ratio to an empty server says
//! anything here; what a call costs and how long it takes does.

use std::{
    fs,
    io::{BufWriter, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use chatbot::pb::chatbot::v1::RankAnswersRequest;
use prost::Message as _;

use super::{
    ask, chat, corpus,
    load::{Load, Pace, Request},
    request,
    servers::Server,
};

/// Of each query.
const TIME: Duration = Duration::from_millis(500);
/// Queries, since they cost more or less.
const QUERIES: usize = 8;
const ENTRIES: usize = 100_000;
const QUERY: &str = "My server says too many open files. What should I do?";

/// What is measured of one program.
struct Rows {
    store: &'static str,
    url: String,
    entries: &'static str,
    /// Its knowledge, unless it is the sample.
    file: Option<PathBuf>,
    queries: Vec<String>,
    calls: &'static [Call],
}

#[derive(Debug, Clone, Copy)]
enum Call {
    Rank,
    Ask,
    Chat,
}

/// Measures and prints them.
pub(crate) fn rows(settings: &[String], folder: &Path) {
    println!("\nthe program: 8 connections with 16 calls each, Chat with one each");
    println!(
        "{:<8} {:>8} {:<12} {:>9} {:>9} {:>9} {:>9} {:>7}",
        "store", "entries", "call", "/s", "p50 us", "p99 us", "us CPU", "errors"
    );
    let many = folder.join("many.jsonl");
    write_entries(&many);
    let redis = Redis::start(folder);
    let sample = |store, url, calls| Rows {
        store,
        url,
        entries: "sample",
        file: None,
        queries: vec![QUERY.to_owned(); QUERIES],
        calls,
    };
    let file = format!("redb:{}", folder.join("log.redb").display());
    let mut programs = vec![
        sample("memory", "memory:".to_owned(), &[Call::Rank, Call::Ask, Call::Chat]),
        Rows {
            store: "memory",
            url: "memory:".to_owned(),
            entries: "100,000",
            file: Some(many),
            queries: corpus::queries(QUERIES),
            calls: &[Call::Rank, Call::Ask],
        },
        sample("file", file, &[Call::Ask, Call::Chat]),
    ];
    match &redis {
        Some(redis) => {
            let url = format!("redis://127.0.0.1:{}/0", redis.port);
            programs.push(sample("Redis", url, &[Call::Ask, Call::Chat]));
        }
        None => println!("Redis is left out: there is no redis-server"),
    }
    for rows in programs {
        let mut settings = settings.to_vec();
        settings.push(format!("store.url={}", rows.url));
        settings.extend(rows.file.iter().map(|file| format!("knowledge.path={}", file.display())));
        let server = Server::program("chatbot", &settings);
        for call in rows.calls {
            row(&server, &rows, *call);
        }
    }
}

fn write_entries(file: &Path) {
    let mut lines = BufWriter::new(fs::File::create(file).expect("a file"));
    for entry in corpus::entries(ENTRIES) {
        serde_json::to_writer(&mut lines, &entry).expect("written");
        lines.write_all(b"\n").expect("written");
    }
    lines.flush().expect("written");
}

fn rank(query: &str) -> Request {
    let message = RankAnswersRequest { query: query.to_owned(), ..RankAnswersRequest::default() };
    request("/chatbot.v1.Chatbot/RankAnswers", message.encode_to_vec(), None)
}

fn row(server: &Server, rows: &Rows, call: Call) {
    // Numbers that no run before has used: a log that is kept knows them.
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("after 1970");
    let mut number = now.as_secs() * 100_000;
    let (mut calls, mut errors) = (0, 0);
    let (mut elapsed, mut used, mut latencies) = (Duration::ZERO, Duration::ZERO, Vec::new());
    for query in &rows.queries {
        let (request, each) = match call {
            Call::Rank => (rank(query), 16),
            Call::Ask => (ask(query), 16),
            Call::Chat => (chat(query, None, None), 1),
        };
        let load = Load::connect(server.address, 8, &request, true, &mut number);
        let load = load.unwrap_or_else(|error| panic!("{}: {call:?}: {error}", rows.store));
        let before = server.used();
        let in_time = || used += server.used().since(&before);
        let ran = load.run(each, Pace::Closed(TIME), in_time, || ());
        let (outcome, ()) = ran.unwrap_or_else(|error| panic!("{}: {call:?}: {error}", rows.store));
        calls += outcome.calls;
        errors += outcome.errors;
        elapsed += outcome.elapsed;
        latencies.extend(outcome.latencies);
    }
    latencies.sort_unstable();
    let at = |percent: usize| {
        let index = latencies.len().saturating_sub(1) * percent / 100;
        latencies.get(index).copied().unwrap_or_default().as_micros()
    };
    println!(
        "{:<8} {:>8} {:<12} {:>9.0} {:>9} {:>9} {:>9.1} {errors:>7}",
        rows.store,
        rows.entries,
        format!("{call:?}"),
        calls as f64 / elapsed.as_secs_f64(),
        at(50),
        at(99),
        used.as_secs_f64() * 1e6 / calls as f64,
    );
}

/// A redis-server that writes its log every second.
struct Redis {
    child: Child,
    port: u16,
}

impl Redis {
    fn start(folder: &Path) -> Option<Self> {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
        let port = free.expect("a free port").port();
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", ""])
            .args(["--appendonly", "yes", "--appendfsync", "everysec", "--dir"])
            .arg(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .ok()?;
        let redis = Self { child, port };
        let until = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < until, "redis-server does not come up");
            thread::sleep(Duration::from_millis(50));
        }
        Some(redis)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
