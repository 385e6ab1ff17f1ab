//! Two gates that no noise of a machine moves: instructions for a call and for an event, and writes.
//!
//! Instructions are counted by callgrind over two lengths of the same load, so that the start and the
//! end drop out; each figure is the median of three such pairs. They depend on the compiler, the profile
//! and the C library, whose functions are chosen by the processor that valgrind shows (one with AVX2, on
//! any machine that has it): a new toolchain needs new figures. They do not see writes, which are what the
//! kernel is paid for, so those are counted too, by the service itself.
//!
//! Whatever goes by the clock has no place in what is counted, since a busy machine has more of it for each
//! call: the counted process has a knowledge base of one entry, so that hardly anything is counted at its
//! start, and an allocator that gives nothing back ([`Server::counted`]).

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    Case, cases,
    load::{Load, Pace},
    servers::{self, Server},
    service::Kind,
    traces,
};

/// What is held: instructions as recorded, and the most writes.
const UNARY: &str = "unary 8x16";
const STREAM: &str = "stream 8x4x100";
const RECORDED: &str = include_str!("gates.txt");
/// How far instructions may be from what is recorded.
const WITHIN: f64 = 0.03;
const WRITES: [(&str, f64); 2] = [(UNARY, 0.10), (STREAM, 0.02)];
/// Calls of the shorter load.
const CALLS: [(&str, u64); 2] = [(UNARY, 1_000), (STREAM, 100)];
/// As many times more has the longer one.
const LONGER: u64 = 7;
/// Pairs of a short and a long load.
const PAIRS: usize = 3;

/// Measures and compares; ends the process with 1 if a gate does not hold.
pub(crate) fn hold() {
    if let Err(error) = Command::new("valgrind").arg("--version").output() {
        eprintln!("the gates need valgrind (Debian's package of that name): {error}");
        std::process::exit(1);
    }
    servers::pin(servers::LOAD);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let settings = servers::settings(folder.path(), traces::receive());
    let mut held = true;
    for (name, most) in WRITES {
        let writes = writes(&settings, &case(name));
        held &= writes <= most;
        println!("{name}: {writes:.3} writes each, at most {most}");
    }
    let settings = [settings, vec![format!("knowledge.path={}", entry(folder.path()).display())]];
    let settings = settings.concat();
    for (name, calls) in CALLS {
        let case = case(name);
        let mut pairs = [0.0; PAIRS];
        for each in &mut pairs {
            let [short, long] = [calls, LONGER * calls]
                .map(|calls| instructions(&settings, &case, calls, folder.path()));
            *each = (long.0 - short.0) as f64 / (long.1 - short.1) as f64;
        }
        pairs.sort_unstable_by(f64::total_cmp);
        let [least, each, most] = pairs;
        let recorded = recorded(name);
        let change = each / recorded - 1.0;
        held &= change.abs() <= WITHIN;
        println!(
            "{name}: {each:.0} instructions each ({least:.0} to {most:.0}), {recorded:.0} recorded \
             ({:+.1} %)",
            change * 100.0
        );
    }
    if !held {
        eprintln!(
            "a gate does not hold; if that is meant, record the figures in benches/wire/gates.txt"
        );
        std::process::exit(1);
    }
}

fn case(name: &str) -> Case {
    cases().into_iter().find(|case| case.name == name).expect("a load of that name")
}

fn recorded(name: &str) -> f64 {
    let line = RECORDED.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|number| number.trim().parse().ok()).expect("a recorded figure")
}

/// Writes for each call or event, a greeting and a farewell of each connection among them.
fn writes(settings: &[String], case: &Case) -> f64 {
    let server = Server::ours("service", Kind::Service, settings);
    let calls = if case.messages { 2_000 } else { 100_000 };
    let units = run(&server, case, calls);
    server.counter("chatbot_net_writes_total") as f64 / units as f64
}

/// A knowledge base of one entry.
fn entry(folder: &Path) -> PathBuf {
    let path = folder.join("knowledge.jsonl");
    let entry = r#"{"answer_id":1,"questions":["Is that a yes?"],"answer":"It is."}"#;
    fs::write(&path, entry).expect("a file");
    path
}

/// What the service has executed when it has answered so many calls; and for how many calls or events
/// that was, since those that are on their way are not cut off.
fn instructions(settings: &[String], case: &Case, calls: u64, folder: &Path) -> (u64, u64) {
    let output = folder.join("callgrind");
    let server = Server::counted(settings, &output);
    let units = run(&server, case, calls);
    server.terminate();
    let profile = fs::read_to_string(output).expect("callgrind's profile");
    let total = profile
        .lines()
        .find_map(|line| line.strip_prefix("totals: ").or_else(|| line.strip_prefix("summary: ")));
    (total.and_then(|number| number.trim().parse().ok()).expect("a total"), units)
}

/// Runs so many calls; returns how many calls or events that were.
fn run(server: &Server, case: &Case, calls: u64) -> u64 {
    let mut number = 0;
    let load = Load::connect(server.address, case.connections, &case.request, true, &mut number);
    let ran = load.and_then(|load| load.run(case.each, Pace::Count(calls), || (), || ()));
    let (outcome, ()) = ran.unwrap_or_else(|error| panic!("{}: {error}", case.name));
    assert_eq!(outcome.errors, 0, "{}", case.name);
    if case.messages { outcome.all_messages } else { outcome.all_calls }
}
