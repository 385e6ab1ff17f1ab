//! The service on the wire, against a bare tonic server and a bare grpc-go server of the same contract.
//!
//! ```text
//! cargo bench --features jemalloc --bench wire [-- --rounds 20] [--only NAME] [--chart FILE]
//! cargo bench --features jemalloc --bench wire -- --gates
//! ```
//!
//! All servers are up, on one core, and the load comes from another. Bursts of 0.4 s go to each of them
//! in random order, round after round; the first round is dropped. Only ratios within a round count,
//! since other work on the machine comes and goes. The bare server has the profile and the allocator
//! that it would have without us. `--chart` writes a picture of the table as SVG. `BENCHMARKS.md` has the
//! table, and what it does not cover.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::expect_used,
    clippy::cast_precision_loss,
    reason = "a program for a terminal, whose figures need no precision"
)]

#[path = "../shared/bare.rs"]
mod bare;
mod chart;
mod constant;
#[path = "../shared/corpus.rs"]
mod corpus;
#[path = "../shared/environment.rs"]
mod environment;
mod frames;
mod gates;
mod load;
#[path = "../shared/locked.rs"]
mod locked;
mod memory;
mod real;
mod servers;
mod service;
mod table;
mod traces;
#[path = "../shared/used.rs"]
mod used;

use std::time::Duration;

use chatbot::pb::{
    self,
    chatbot::v1::{AskRequest, ChatRequest},
};
use prost::Message as _;

use self::{
    chart::{Figure, Group},
    corpus::Random,
    frames::Headers,
    load::{Load, Outcome, Pace, Request},
    servers::Server,
    service::{Kind, LIVE_QUERY, READY, READY_QUERY, TOKEN},
    table::{Sample, Table},
};

/// The allocator of the image.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const SERVE_SERVICE: &str = "--serve-service";
const SERVE_LAYERS: &str = "--serve-layers";

const BURST: Duration = Duration::from_millis(400);
/// Rounds of the live streams, which take seconds.
const LIVE_ROUNDS: usize = 6;
/// From one message of a live stream to the next: the streams are spread over it.
const GAP: Duration = Duration::from_millis(20);

/// A load.
struct Case {
    name: &'static str,
    connections: usize,
    /// Calls at a time, on each.
    each: usize,
    request: Request,
    pace: Pace,
    /// Whether messages are counted, and not calls.
    messages: bool,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some(SERVE_SERVICE) => return service::serve(Kind::Service, &arguments[1..]),
        Some(SERVE_LAYERS) => return service::serve(Kind::Layers, &arguments[1..]),
        _ => {}
    }
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    if arguments.iter().any(|argument| argument == "--gates") {
        return gates::hold();
    }
    let rounds = value("--rounds").map_or(20, |rounds| rounds.parse().expect("a number"));
    let only = value("--only").unwrap_or_default();

    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    assert!(cores >= 2, "it takes two cores: one for the servers, one for the load");
    rlimit::increase_nofile_limit(u64::MAX).expect("a limit");
    servers::pin(servers::LOAD);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let settings = servers::settings(folder.path(), traces::receive());
    let mut servers = vec![Server::bare()];
    match Server::go() {
        Ok(server) => servers.push(server),
        Err(why) => println!("grpc-go is left out: {why}"),
    }
    servers.push(Server::ours("layers", Kind::Layers, &settings));
    servers.push(Server::ours("service", Kind::Service, &settings));

    println!("{}", table::versions(&servers));
    for server in &servers {
        println!("{}: up after {} ms", server.name, server.started.as_millis());
    }
    let mut random = Random(seed());
    let mut number = 0;
    let mut groups = Vec::new();
    for case in cases().iter().filter(|case| case.name.contains(&only)) {
        let live = matches!(case.pace, Pace::Once(_));
        let rounds = if live { rounds.min(LIVE_ROUNDS) } else { rounds };
        let mut table = Table::new(case.name, case.messages, &servers);
        for round in 0..=rounds {
            for index in order(servers.len(), &mut random) {
                let sample = burst(&servers[index], case, &mut number);
                if round > 0 {
                    table.add(index, sample);
                }
            }
        }
        println!("{table}");
        groups.push(group(&table, if live { Figure::Cpu } else { Figure::Rate }));
    }
    if let Some(file) = value("--chart") {
        let drawn = chart::draw(&groups).expect("a string takes all");
        std::fs::write(&file, drawn).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
    drop(servers);
    if "real".contains(&only) {
        real::rows(&settings, folder.path());
    }
}

/// What the chart shows of a load.
fn group(table: &Table, figure: Figure) -> Group {
    let of = |sample: &Sample| match figure {
        Figure::Rate => sample.rate,
        Figure::Cpu => sample.cpu,
    };
    let bars = table.rows.iter().enumerate();
    let bars = bars.map(|(index, (server, _))| (*server, table.ratio(index, of))).collect();
    Group { name: table.name, figure, bars }
}

/// One burst.
fn burst(server: &Server, case: &Case, number: &mut u64) -> Sample {
    // The calls of a live load are counted to their end, so the first ones have to be of it.
    let warm = matches!(case.pace, Pace::Closed(_));
    let load = Load::connect(server.address, case.connections, &case.request, warm, number);
    let load = load.unwrap_or_else(|error| panic!("{}: {}: {error}", case.name, server.name));
    let written = server.written();
    let before = server.used();
    let mut used = Duration::ZERO;
    let ran =
        load.run(case.each, case.pace, || used = server.used().since(&before), || server.written());
    let (outcome, after) =
        ran.unwrap_or_else(|error| panic!("{}: {}: {error}", case.name, server.name));
    let written = after.zip(written).map(|(after, before)| after - before);
    let Outcome { calls, messages, all_calls, all_messages, errors, elapsed, mut latencies } =
        outcome;
    let (units, all) = if case.messages { (messages, all_messages) } else { (calls, all_calls) };
    latencies.sort_unstable();
    let middle = latencies.get(latencies.len() / 2).copied().unwrap_or_default();
    Sample {
        rate: units as f64 / elapsed.as_secs_f64(),
        cpu: used.as_secs_f64() * 1e6 / units as f64,
        writes: written.map(|written| written as f64 / all as f64),
        latency: middle.as_secs_f64() * 1e6,
        errors,
    }
}

fn cases() -> Vec<Case> {
    let unary = |name, connections, each| Case {
        name,
        connections,
        each,
        request: ask("Is that a yes or"),
        pace: Pace::Closed(BURST),
        messages: false,
    };
    let live = |name, connections, each| Case {
        name,
        connections,
        each,
        request: chat(LIVE_QUERY, None, None),
        pace: Pace::Once(GAP),
        messages: true,
    };
    vec![
        unary("unary 8x16", 8, 16),
        unary("unary 64x1", 64, 1),
        unary("unary 1x1", 1, 1),
        Case {
            name: "stream 8x4x100",
            connections: 8,
            each: 4,
            request: chat(READY_QUERY, Some(READY.to_string()), Some(100)),
            pace: Pace::Closed(BURST),
            messages: true,
        },
        live("live 8x50", 8, 50),
        live("live 200x2", 200, 2),
    ]
}

/// The number of a call has its place here.
const NUMBER: &str = "XXXXXXXXXXXX";

fn numbered() -> String {
    format!("00000000-0000-4000-8000-{NUMBER}")
}

fn ask(query: &str) -> Request {
    let message =
        AskRequest { query: query.to_owned(), request_id: numbered(), ..AskRequest::default() };
    request("/chatbot.v1.Chatbot/Ask", message.encode_to_vec(), Some(1))
}

fn chat(query: &str, request_id: Option<String>, messages: Option<u32>) -> Request {
    let message = ChatRequest {
        query: query.to_owned(),
        request_id: request_id.unwrap_or_else(numbered),
        ..ChatRequest::default()
    };
    request("/chatbot.v1.Chatbot/Chat", message.encode_to_vec(), messages)
}

fn request(path: &str, message: Vec<u8>, messages: Option<u32>) -> Request {
    let number_at = message.windows(NUMBER.len()).position(|part| part == NUMBER.as_bytes());
    Request { headers: Headers::new(path, TOKEN), message, number_at, messages }
}

/// Another seed for each run, so that no order is favoured.
fn seed() -> u64 {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("after 1970");
    now.as_secs() ^ u64::from(now.subsec_nanos()) << 32
}

/// The numbers below `count`, shuffled.
fn order(count: usize, random: &mut Random) -> Vec<usize> {
    let mut order: Vec<(u64, usize)> = (0..count).map(|n| (random.next(), n)).collect();
    order.sort_unstable();
    order.into_iter().map(|(_, n)| n).collect()
}
