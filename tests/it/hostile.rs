//! Peers that do what they should not, against the real binary: the limits hold, the others are
//! served, and it ends on time.
//!
//! Times are promises with a tolerance for a busy machine; what was measured goes to standard error.

mod age;
mod attacks;
mod descriptors;
mod leftovers;
mod limits;
mod stop;

use std::{net::SocketAddr, process::Command, time::Duration};

use chatbot::pb::chatbot::v1::{AskRequest, KnowledgeEntry, TeachRequest, teach_request::Change};

use crate::{
    frames::{DATA, END_STREAM, Frame, Peer, TEACH, grpc},
    support::{Process, folder, http_get, metric, serve},
};

/// For what takes milliseconds; a test that waits for it has failed.
const SOON: Duration = Duration::from_secs(5);
/// What a busy machine may add to a promised time.
const TOLERANCE: Duration = Duration::from_millis(300);
const UNAVAILABLE: Option<i32> = Some(14);
const DEADLINE_EXCEEDED: Option<i32> = Some(4);
const OK: Option<i32> = Some(0);

struct Server {
    process: Process,
    main: SocketAddr,
    ops: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Server {
    fn start(settings: &[&str]) -> Self {
        let folder = folder();
        let command = serve(&folder, settings);
        Self::run(command, folder)
    }

    /// Runs `command`, whose server reads `folder`.
    fn run(mut command: Command, folder: tempfile::TempDir) -> Self {
        let mut process = Process::start(&mut command);
        let ops = process.wait_for_address(&["ops port is open"]);
        let main = process.wait_for_address(&["serving"]);
        Self { process, main, ops, _folder: folder }
    }

    fn metric(&self, name: &str) -> Option<f64> {
        metric(self.ops, name)
    }

    /// The calls that have not ended, of all methods.
    fn in_flight(&self) -> f64 {
        let text = http_get(self.ops, "/metrics");
        let gauges = text.lines().filter(|line| line.starts_with("chatbot_rpc_in_flight{"));
        let numbers = gauges.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
        numbers.sum()
    }

    /// The processor time that it has used.
    fn processor_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()));
        let stat = stat.expect("a process");
        // After the command's name, which may have spaces, comes field 3; these are 14 and 15.
        let (_, fields) = stat.rsplit_once(')').expect("a name");
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
        // Linux tells programs of 100 ticks a second, whatever it counts itself.
        Duration::from_millis(ticks * 10)
    }

    /// Its resident memory in bytes.
    fn memory(&self) -> i64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()));
        let status = status.expect("a process");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
        let kib = line.split_whitespace().next().expect("a number");
        kib.parse::<i64>().expect("a number") * 1024
    }
}

/// One change of the knowledge base, framed.
fn lesson(answer_id: i32) -> Vec<u8> {
    let entry = KnowledgeEntry {
        answer_id,
        questions: vec!["When does the quokka smile?".to_owned()],
        answer: "Always.".to_owned(),
        ..Default::default()
    };
    grpc(&TeachRequest { change: Some(Change::Upsert(entry)) })
}

/// Begins a Teach call whose body stays open: the activity of a busy connection.
fn teach(peer: &mut Peer) -> u32 {
    let stream = peer.open(TEACH, &[]);
    peer.send(&[Frame::new(DATA, 0, stream, lesson(100))]);
    // Calls begin in the order of their headers: with this one's answer, that one has begun.
    assert_eq!(peer.check(SOON).code(), OK, "{peer:?}");
    stream
}

/// For Ask.
fn question() -> AskRequest {
    AskRequest { query: "What is a deadline?".to_owned(), ..Default::default() }
}

/// Ends a Teach call; the status.
fn finish(peer: &mut Peer, stream: u32) -> Option<i32> {
    peer.send(&[Frame::new(DATA, END_STREAM, stream, lesson(101))]);
    peer.wait_end_of(stream, SOON).code()
}
