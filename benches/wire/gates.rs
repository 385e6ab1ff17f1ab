//! Two gates that no noise of a machine moves: instructions for a call and for an event, and writes.
//!
//! Instructions are counted by callgrind over two lengths of the same load, so that the start and the
//! end drop out. They depend on the compiler, the profile and the C library, whose functions are chosen
//! by the processor that valgrind shows (one with AVX2, on any machine that has it): a new toolchain
//! needs new figures. They do not see writes, which are what the kernel is paid for, so those are
//! counted too, by the service itself.

use std::{fs, path::Path};

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
/// Calls of the shorter load; the longer one has three times as many.
const CALLS: [(&str, u64); 2] = [(UNARY, 2_000), (STREAM, 60)];

/// Measures and compares; ends the process with 1 if a gate does not hold.
pub(crate) fn hold() {
    servers::pin(servers::LOAD);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let settings = servers::settings(folder.path(), traces::receive());
    let mut held = true;
    for (name, most) in WRITES {
        let writes = writes(&settings, &case(name));
        held &= writes <= most;
        println!("{name}: {writes:.3} writes each, at most {most}");
    }
    for (name, calls) in CALLS {
        let case = case(name);
        let [short, long] =
            [calls, 3 * calls].map(|n| instructions(&settings, &case, n, folder.path()));
        let units = 2 * calls * u64::from(case.request.messages.unwrap_or(1));
        let each = (long - short) as f64 / units as f64;
        let recorded = recorded(name);
        let change = each / recorded - 1.0;
        held &= change.abs() <= WITHIN;
        println!(
            "{name}: {each:.0} instructions each, {recorded:.0} recorded ({:+.1} %)",
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

fn instructions(settings: &[String], case: &Case, calls: u64, folder: &Path) -> u64 {
    let output = folder.join("callgrind");
    let server = Server::counted(settings, &output);
    run(&server, case, calls);
    server.terminate();
    let profile = fs::read_to_string(output).expect("callgrind's profile");
    let total = profile
        .lines()
        .find_map(|line| line.strip_prefix("totals: ").or_else(|| line.strip_prefix("summary: ")));
    total.and_then(|number| number.trim().parse().ok()).expect("a total")
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
