//! The program with its real parts: a search, and a log that is kept. No ratio to an empty server says
//! anything here; what a call costs and how long it takes does.

use std::{
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use chatbot::pb::chatbot::v1::RankAnswersRequest;
use prost::Message as _;

use super::{
    ask, chat,
    load::{Load, Pace, Request},
    request,
    servers::Server,
};

const TIME: Duration = Duration::from_secs(2);
const QUERY: &str = "My server says too many open files. What should I do?";

/// Measures and prints them.
pub(crate) fn rows(settings: &[String], folder: &Path) {
    println!("\nthe program, 8 connections with 16 calls each; Chat: with one each");
    println!(
        "{:<12} {:<12} {:>9} {:>9} {:>9} {:>9} {:>7}",
        "store", "call", "/s", "p50 us", "p99 us", "us CPU", "errors"
    );
    let redis = Redis::start(folder);
    let mut stores = vec![
        ("memory", "memory:".to_owned()),
        ("file", format!("redb:{}", folder.join("log.redb").display())),
    ];
    match &redis {
        Some(redis) => stores.push(("Redis", format!("redis://127.0.0.1:{}/0", redis.port))),
        None => println!("Redis is left out: there is no redis-server"),
    }
    for (name, url) in stores {
        let mut settings = settings.to_vec();
        settings.push(format!("store.url={url}"));
        let server = Server::program("chatbot", &settings);
        row(&server, name, "RankAnswers", 16, &rank());
        row(&server, name, "Ask", 16, &ask(QUERY));
        row(&server, name, "Chat", 1, &chat(QUERY, None, None));
    }
}

fn rank() -> Request {
    let message = RankAnswersRequest { query: QUERY.to_owned(), ..RankAnswersRequest::default() };
    request("/chatbot.v1.Chatbot/RankAnswers", message.encode_to_vec(), None)
}

fn row(server: &Server, store: &str, call: &str, each: usize, request: &Request) {
    // Numbers that no run before has used: a log that is kept knows them.
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("after 1970");
    let mut number = now.as_secs() * 100_000;
    let load = Load::connect(server.address, 8, request, true, &mut number);
    let load = load.unwrap_or_else(|error| panic!("{store}: {call}: {error}"));
    let before = server.used();
    let mut used = Duration::ZERO;
    let ran = load.run(each, Pace::Closed(TIME), || used = server.used().since(&before), || ());
    let (mut outcome, ()) = ran.unwrap_or_else(|error| panic!("{store}: {call}: {error}"));
    outcome.latencies.sort_unstable();
    let at = |percent: usize| {
        let index = outcome.latencies.len().saturating_sub(1) * percent / 100;
        outcome.latencies.get(index).copied().unwrap_or_default().as_micros()
    };
    println!(
        "{store:<12} {call:<12} {:>9.0} {:>9} {:>9} {:>9.1} {:>7}",
        outcome.calls as f64 / outcome.elapsed.as_secs_f64(),
        at(50),
        at(99),
        used.as_secs_f64() * 1e6 / outcome.calls as f64,
        outcome.errors,
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
