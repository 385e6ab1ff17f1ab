//! Memory of one idle connection: our server against a bare tonic server of the same contract.
//!
//! ```text
//! cargo bench --features jemalloc --bench idle
//! ```
//!
//! Both are processes of their own: the binary with its defaults, and `examples/bare.rs` with the
//! profile and the allocator that it would have without us. Each gets 5,000 connections by turns,
//! with one health check on each, as from a health checker that never closes anything. What is
//! counted is anonymous resident memory (`RssAnon`): the process's own, without its sockets in the
//! kernel. Then everything is closed, and half a minute later it is read again: memory that does not
//! come back counts against the container's limit for ever. It takes two minutes, and more
//! the first time, when `bare` is built.

#![expect(clippy::print_stdout, clippy::expect_used, reason = "a program for a terminal")]

#[path = "shared/bare.rs"]
mod bare;
#[path = "shared/environment.rs"]
mod environment;

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use socket2::{Domain, Socket, Type};

const CONNECTIONS: usize = 5_000;
/// Loopback addresses that connections come from, by turns: one address has ports for fewer, and the
/// server has words for many idle connections from one.
const SOURCES: usize = 250;
/// Before the first look: what the start has left must be given back, or connections move in there and
/// seem to cost less. After 15 s there still were 5 MiB of it, a kilobyte a connection.
const START: Duration = Duration::from_mins(1);
/// Before the second look: shorter than the keepalive, which these peers do not answer.
const SETTLE: Duration = Duration::from_secs(15);
/// From the end of all connections to the last look.
const COME_BACK: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(20);

const KNOWLEDGE: &str = r#"{"answer_id":1,"questions":["What is a deadline?"],"answer":"The end.","language_code":"en"}"#;

fn main() {
    let limit = rlimit::increase_nofile_limit(u64::MAX).expect("a limit");
    // Two ends here for each one there.
    let room = usize::try_from(limit.saturating_sub(100)).expect("fits") / 2;
    let count = CONNECTIONS.min(room);
    let folder = tempfile::tempdir().expect("a temporary folder");
    // Bare first: it may have to be built, and both should be as old when they are looked at.
    let bare = Server::bare();
    let servers = [Server::ours(folder.path()), bare];
    thread::sleep(START);
    let before = servers.each_ref().map(Server::memory);
    let peers: Vec<TcpStream> =
        (0..count).flat_map(|n| servers.each_ref().map(|server| open(server.address, n))).collect();
    thread::sleep(SETTLE);
    let open = servers.each_ref().map(Server::memory);
    drop(peers);
    thread::sleep(COME_BACK);
    let after = servers.each_ref().map(Server::memory);

    println!("{count} connections to each, one health check on each, {}", versions());
    println!(
        "{:<10} {:>12} {:>12} {:>14} {:>14}",
        "server", "before", "open", "a connection", "closed, 30 s"
    );
    let each = [0, 1].map(|n| open[n].saturating_sub(before[n]) / count as u64);
    for (n, server) in servers.iter().enumerate() {
        let kib = |bytes: u64| format!("{} KiB", bytes / 1024);
        println!(
            "{:<10} {:>12} {:>12} {:>14} {:>14}",
            server.name,
            kib(before[n]),
            kib(open[n]),
            format!("{} B", each[n]),
            kib(after[n]),
        );
    }
    println!("ours / bare: {:.2}", ratio(each[0], each[1]));
}

#[expect(clippy::cast_precision_loss, reason = "a ratio needs no precision")]
fn ratio(ours: u64, bare: u64) -> f64 {
    ours as f64 / bare as f64
}

/// A server in a process of its own, killed when dropped.
struct Server {
    name: &'static str,
    child: Child,
    address: SocketAddr,
}

impl Server {
    fn ours(folder: &Path) -> Self {
        let file = folder.join("faq.jsonl");
        std::fs::write(&file, KNOWLEDGE).expect("the knowledge");
        let mut command = Command::new(env!("CARGO_BIN_EXE_chatbot"));
        command.arg("serve");
        for setting in [
            "server.address=127.0.0.1:0",
            "ops.address=127.0.0.1:0",
            "store.url=memory:",
            "server.exempt_peers=127.0.0.0/8",
            &format!("knowledge.path={}", file.display()),
        ] {
            command.args(["--set", setting]);
        }
        Self::start("ours", &mut command, "serving address=")
    }

    fn bare() -> Self {
        Self::start("bare", &mut bare::bare(), "address=")
    }

    /// Starts it and waits for the line of its log that ends with `before` and its address.
    fn start(name: &'static str, command: &mut Command, before: &'static str) -> Self {
        environment::undisturbed(command);
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("the server starts");
        let stdout = child.stdout.take().expect("piped");
        let (sender, found) = mpsc::sync_channel(1);
        // It reads to the end: a log that nobody reads would stop the server.
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some((_, address)) = line.split_once(before) {
                    let _ = sender.try_send(address.trim().parse().expect("an address"));
                }
            }
        });
        let address = found.recv_timeout(LONG).expect("the address in time");
        Self { name, child, address }
    }

    /// Its anonymous resident memory, in bytes.
    fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))
            .expect("the server runs");
        let value = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = value.and_then(|value| value.trim().strip_suffix(" kB")).expect("a value");
        kib.parse::<u64>().expect("a number") * 1024
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection after one health check. The frames are written by hand: 5,000 clients of a library
/// would need more memory than what is measured.
fn open(server: SocketAddr, n: usize) -> TcpStream {
    let last = u8::try_from(n % SOURCES).expect("fits") + 1;
    let source = SocketAddr::from((Ipv4Addr::new(127, 0, 1, last), 0));
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&source.into()).expect("a port");
    socket.connect(&server.into()).expect("a connection");
    let mut stream = TcpStream::from(socket);
    stream.set_nodelay(true).expect("an option");
    stream.set_read_timeout(Some(LONG)).expect("an option");

    let mut request = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    request.extend(frame(SETTINGS, 0, 0, &[]));
    request.extend(frame(HEADERS, END_HEADERS, 1, &headers()));
    // A message of no bytes, not compressed: a check of the server as a whole.
    request.extend(frame(DATA, END_STREAM, 1, &[0; 5]));
    stream.write_all(&request).expect("written");
    let mut message = Vec::new();
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).expect("a frame");
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        stream.read_exact(&mut payload).expect("its payload");
        let (kind, flags, of_call) = (head[3], head[4], head[5..] == [0, 0, 0, 1]);
        if kind == DATA {
            message.extend(payload);
        }
        if of_call && flags & END_STREAM != 0 {
            break;
        }
    }
    assert_eq!(message, [0, 0, 0, 0, 2, 8, 1], "SERVING");
    stream.write_all(&frame(SETTINGS, ACK, 0, &[])).expect("written");
    stream
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("a short frame");
    [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
}

/// The request's headers in HPACK (RFC 7541): by the static table's numbers, values as they are.
fn headers() -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).expect("short")], text.as_bytes()].concat();
    [
        // :method POST, :scheme http, :path, :authority
        vec![0x83, 0x86, 0x04],
        text("/grpc.health.v1.Health/Check"),
        vec![0x01],
        text("localhost"),
        // content-type, and a name of its own
        vec![0x0f, 0x10],
        text("application/grpc"),
        vec![0x00],
        text("te"),
        text("trailers"),
    ]
    .concat()
}

/// The versions of what is measured, as locked.
fn versions() -> String {
    let mut lines = include_str!("../Cargo.lock").lines();
    let mut versions = Vec::new();
    while let Some(line) = lines.next() {
        let name = line.strip_prefix("name = ").map(|name| name.trim_matches('"'));
        let wanted = ["h2", "hyper", "tikv-jemallocator", "tokio", "tonic"];
        if let Some(name) = name.filter(|name| wanted.contains(name)) {
            let version = lines.next().and_then(|line| line.strip_prefix("version = "));
            versions.push(format!("{name} {}", version.unwrap_or("?").trim_matches('"')));
        }
    }
    versions.join(", ")
}
