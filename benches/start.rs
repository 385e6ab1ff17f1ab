//! From the start of the binary to being ready, and the memory that it then has, idle.
//!
//! ```text
//! cargo bench --features jemalloc --bench start
//! ```
//!
//! With the built-in sample and with 100,000 entries in a file, each with a store in memory and with a new
//! file; several starts each. Ready is when it says that it serves: knowledge is indexed, the store is open and
//! the main port listens. Memory is the resident set of the last start, half a minute later.

#![expect(clippy::print_stdout, clippy::expect_used, reason = "a program for a terminal")]

#[path = "shared/environment.rs"]
mod environment;
#[path = "shared/resident.rs"]
mod resident;

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use self::environment::undisturbed;

const ENTRIES: u32 = 100_000;
/// After which the memory is looked at: what the start needed is given back by then.
const SETTLED: Duration = Duration::from_secs(30);

/// One start of the service, ended when it is dropped.
struct Service(Child);

impl Service {
    /// Starts it, and tells how long it took to be ready.
    fn start(settings: &[String]) -> (Self, Duration) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chatbot"));
        command.arg("serve").stdin(Stdio::null()).stdout(Stdio::piped());
        undisturbed(&mut command);
        for setting in settings {
            command.args(["--set", setting]);
        }
        let start = Instant::now();
        let mut child = command.spawn().expect("it starts");
        let stdout = child.stdout.take().expect("piped");
        let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
        let ready = lines.find(|line| line.contains(" serving address="));
        let took = start.elapsed();
        assert!(ready.is_some(), "it ended before it was ready");
        // The rest is read, for a log that nobody reads would stop it.
        thread::spawn(move || lines.for_each(drop));
        (Self(child), took)
    }

    /// Its resident set in MiB.
    fn resident(&self) -> f64 {
        let kib = u32::try_from(resident::resident(self.0.id(), "VmRSS") / 1024);
        f64::from(kib.expect("less than 4 TiB")) / 1024.0
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn main() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let knowledge = folder.path().join("knowledge.jsonl");
    write_entries(&knowledge);
    println!(
        "{:<28}{:>10}{:>10}{:>10}{:>14}",
        "start to ready, ms", "min", "median", "max", "idle, MiB"
    );
    for (entries, file, starts) in [("sample", None, 15), ("100,000 entries", Some(&knowledge), 5)]
    {
        for store in ["memory", "file"] {
            let mut times = Vec::new();
            let mut last = None;
            for number in 0..starts {
                let url = match store {
                    "memory" => "memory:".to_owned(),
                    _ => format!("redb:{}/{starts}-{number}.redb", folder.path().display()),
                };
                let mut settings = vec![
                    "server.address=127.0.0.1:0".to_owned(),
                    "ops.address=127.0.0.1:0".to_owned(),
                    format!("store.url={url}"),
                ];
                settings.extend(file.map(|file| format!("knowledge.path={}", file.display())));
                // The one before ends first.
                drop(last.take());
                let (service, took) = Service::start(&settings);
                times.push(took.as_secs_f64() * 1e3);
                last = Some(service);
            }
            thread::sleep(SETTLED);
            let resident = last.map_or(0.0, |service| service.resident());
            times.sort_unstable_by(f64::total_cmp);
            let [shortest, median, longest] =
                [0, times.len() / 2, times.len() - 1].map(|n| times[n]);
            let name = format!("{entries}, {store}");
            println!("{name:<28}{shortest:>10.0}{median:>10.0}{longest:>10.0}{resident:>14.1}");
        }
    }
}

/// Entries as somebody's FAQ might have them: three ways to ask each, of words that repeat.
fn write_entries(file: &Path) {
    let mut text = String::new();
    for id in 1..=ENTRIES {
        let (part, step) = (id % 997, id % 89);
        writeln!(
            text,
            r#"{{"answer_id":{id},"questions":["How do I replace part {part} of machine {id}?","What is step {step} for part {part}?","Part {part} of {id} is broken"],"answer":"Open machine {id}, take out part {part} and follow step {step}.","language_code":"en"}}"#
        )
        .expect("a String");
    }
    fs::write(file, text).expect("a file");
}
