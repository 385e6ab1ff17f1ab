//! Memory of one idle connection: our server against a bare tonic server of the same contract, without
//! TLS and with it.
//!
//! ```text
//! cargo bench --features jemalloc --bench idle
//! ```
//!
//! All are processes of their own: the binary with its defaults, and `examples/bare.rs` with the
//! profile and the allocator that it would have without us; once without TLS, and once more with the
//! same certificate for both. Each gets 5,000 connections, by turns with its counterpart, with one
//! health check on each, as from a health checker that never closes anything. What is counted is
//! anonymous resident memory (`RssAnon`): the process's own, without its sockets in the kernel. Then
//! everything is closed, and ten seconds later it is read again: memory that does not come back counts
//! against the container's limit for ever. It takes three minutes, and more the first time, when `bare`
//! is built.

#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    clippy::cast_precision_loss,
    reason = "a program for a terminal, whose figures need no precision"
)]

#[path = "../shared/bare.rs"]
mod bare;
#[path = "../shared/environment.rs"]
mod environment;
#[path = "../shared/locked.rs"]
mod locked;
mod peers;
#[path = "../shared/resident.rs"]
mod resident;
mod servers;

use std::{thread, time::Duration};

use self::{
    peers::Peer,
    servers::{Certificate, Server},
};

const CONNECTIONS: usize = 5_000;
/// Before the first look: what the start has left must be given back, or connections move in there and
/// seem to cost less.
const START: Duration = Duration::from_mins(1);
/// Before the second look: shorter than the keepalive, which these peers do not answer.
const SETTLE: Duration = Duration::from_secs(15);
/// From the end of all connections to the last look.
const COME_BACK: Duration = Duration::from_secs(10);

fn main() {
    let limit = rlimit::increase_nofile_limit(u64::MAX).expect("a limit");
    // Two ends here for each one there.
    let room = usize::try_from(limit.saturating_sub(100)).expect("fits") / 2;
    let count = CONNECTIONS.min(room);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let certificate = Certificate::write(folder.path());
    // Built before any is started: all should be about as old when they are looked at.
    let bare = bare::bare();
    let program = bare.get_program();
    let pairs = [None, Some(&certificate)]
        .map(|tls| (tls, [Server::ours(folder.path(), tls), Server::bare(program, tls)]));
    thread::sleep(START);

    println!("{count} connections to each, one health check on each");
    println!("{}", locked::versions().join(", "));
    println!(
        "{:<16} {:>12} {:>12} {:>14} {:>14} {:>10}",
        "server", "before", "open", "a connection", "closed, 10 s", "come back"
    );
    for (tls, servers) in &pairs {
        let peer = tls.map_or_else(Peer::plain, |certificate| Peer::tls(&certificate.trusted));
        let looks = look(servers, &peer, count);
        for (server, look) in servers.iter().zip(&looks) {
            println!("{:<16} {}", server.name, look.row(count));
        }
        let [ours, bare] = looks.map(|look| look.taken());
        println!("{:<16} {:.2}\n", "ours / bare", ours as f64 / bare as f64);
    }
}

/// A server's memory, in bytes: before its connections, with them, and after them.
#[derive(Debug, Clone, Copy)]
struct Look {
    before: u64,
    open: u64,
    after: u64,
}

impl Look {
    /// What the connections have taken.
    fn taken(&self) -> u64 {
        self.open.saturating_sub(self.before)
    }

    fn row(&self, count: usize) -> String {
        let kib = |bytes: u64| format!("{} KiB", bytes / 1024);
        // More than all of it, if the last remains of the start went with it.
        let back = self.open as f64 - self.after as f64;
        format!(
            "{:>12} {:>12} {:>14} {:>14} {:>10}",
            kib(self.before),
            kib(self.open),
            format!("{} B", self.taken() / count as u64),
            kib(self.after),
            format!("{:.1} %", 100.0 * back / self.taken() as f64),
        )
    }
}

/// Opens and closes connections to both, and looks at each.
fn look(servers: &[Server; 2], peer: &Peer, count: usize) -> [Look; 2] {
    let memory = || servers.each_ref().map(Server::memory);
    let before = memory();
    let connections: Vec<_> = (0..count)
        .flat_map(|n| servers.each_ref().map(|server| peer.connect(server.address, n)))
        .collect();
    thread::sleep(SETTLE);
    let open = memory();
    drop(connections);
    thread::sleep(COME_BACK);
    let after = memory();
    [0, 1].map(|n| Look { before: before[n], open: open[n], after: after[n] })
}
