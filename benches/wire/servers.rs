//! The servers that are compared: built where they have to be, each a process of its own on the same
//! core, all up at the same time.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use chatbot::pb;
use prost::Message as _;
use prost_types::{
    FileDescriptorSet,
    compiler::{CodeGeneratorRequest, CodeGeneratorResponse},
};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::{
    bare::{self, target},
    environment::undisturbed,
    service::{self, Kind},
    used::Used,
};

const LONG: Duration = Duration::from_mins(1);

/// An allocator that gives nothing back to the kernel, which it does by the clock and on a thread of its own.
const KEEPS: (&str, &str) =
    ("_RJEM_MALLOC_CONF", "background_thread:false,dirty_decay_ms:-1,muzzy_decay_ms:-1");

/// The cores: one for the servers, another for the load.
pub(crate) const SERVERS: usize = 0;
pub(crate) const LOAD: usize = 1;

/// Keeps this thread, and what it starts from now on, on one core.
pub(crate) fn pin(core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).expect("the core is there");
}

/// A server in a process of its own, killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) name: &'static str,
    child: Child,
    pub(crate) address: SocketAddr,
    /// Where its metrics are, if it has any.
    pub(crate) ops: Option<SocketAddr>,
    /// From its start to its address.
    pub(crate) started: Duration,
    /// What it says before its address.
    pub(crate) version: String,
}

impl Server {
    /// This program, started once more as one of ours.
    pub(crate) fn ours(name: &'static str, kind: Kind, settings: &[String]) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.arg(match kind {
            Kind::Service => super::SERVE_SERVICE,
            Kind::Layers => super::SERVE_LAYERS,
        });
        command.args(settings);
        // As the binary has it.
        command.env("_RJEM_MALLOC_CONF", "dirty_decay_ms:3000");
        Self::start(name, &mut command)
    }

    /// The program, with these settings.
    pub(crate) fn program(name: &'static str, settings: &[String]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chatbot"));
        command.arg("serve");
        for setting in settings {
            command.args(["--set", setting]);
        }
        Self::start(name, &mut command)
    }

    /// A bare tonic server, with the profile and the allocator that it would have without us.
    pub(crate) fn bare() -> Self {
        Self::start("bare tonic", &mut bare::bare())
    }

    /// A bare grpc-go server, where there is Go; otherwise why there is none.
    pub(crate) fn go() -> Result<Self, String> {
        Ok(Self::start("grpc-go", &mut Command::new(build_go()?)))
    }

    /// Starts it on the servers' core and waits for the line that ends with its address.
    fn start(name: &'static str, command: &mut Command) -> Self {
        undisturbed(command);
        pin(SERVERS);
        let start = Instant::now();
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        pin(LOAD);
        let mut child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stdout = child.stdout.take().expect("piped");
        let (sender, found) = mpsc::sync_channel(4);
        // It reads to the end: a log that nobody reads would stop the server.
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // At the end of its line: others, such as that of a store, have more to tell.
                let told = line.split_once("address=");
                let told = told.and_then(|(before, address)| {
                    Some((before.trim().to_owned(), address.trim().parse::<SocketAddr>().ok()?))
                });
                if let Some(told) = told {
                    let _ = sender.send(told);
                } else if line.contains("ERROR") {
                    eprintln!("{name}: {line}");
                }
            }
        });
        let told = || found.recv_timeout(LONG).expect("the address in time");
        let (mut version, mut address) = told();
        let mut ops = None;
        if version.contains("ops") {
            ops = Some(address);
            (version, address) = told();
        }
        let started = start.elapsed();
        Self { name, child, address, ops, started, version }
    }

    /// What its threads have used of the processor.
    pub(crate) fn used(&self) -> Used {
        Used::of(self.child.id())
    }

    /// This program as the whole service, under callgrind, where there is valgrind.
    pub(crate) fn counted(settings: &[String], output: &Path) -> Self {
        let mut command = Command::new("valgrind");
        command
            .args(["--tool=callgrind", "--quiet", "--dump-instr=no"])
            .arg(format!("--callgrind-out-file={}", output.display()))
            .arg(std::env::current_exe().expect("this program"))
            .arg(super::SERVE_SERVICE)
            .args(settings)
            .env(KEEPS.0, KEEPS.1);
        Self::start("counted", &mut command)
    }

    /// Ends it by a signal, and waits.
    pub(crate) fn terminate(mut self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").arg(id).status().expect("kill runs").success());
        self.child.wait().expect("it ends");
    }

    /// A counter of its metrics.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        let mut ops = TcpStream::connect(self.ops.expect("it has metrics")).expect("the ops port");
        ops.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            .expect("written");
        let mut text = String::new();
        ops.read_to_string(&mut text).expect("read");
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|value| value.trim().parse().ok()).expect("the counter")
    }

    /// Segments with data that it has sent on the connections that are open, which on this machine is
    /// how often it has written; by iproute2, where that is there.
    pub(crate) fn written(&self) -> Option<u64> {
        let port = self.address.port();
        let output = Command::new("ss")
            .args(["-tinH", "state", "established", &format!("sport = :{port}")])
            .output()
            .ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        let counts = text.split_whitespace().filter_map(|word| word.strip_prefix("data_segs_out:"));
        Some(counts.filter_map(|count| count.parse::<u64>().ok()).sum())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Builds `benches/wire/go`. The plugins of protoc make Go of the contract, without protoc: they are
/// told what is in it as it stands in the program.
fn build_go() -> Result<PathBuf, String> {
    let folder = target().join("wire-go");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/wire/go");
    fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    let go = |folder: &Path, arguments: &[&str]| {
        let mut command = Command::new("go");
        command.args(arguments).current_dir(folder).env("GOBIN", target().join("wire-go"));
        let done = command.output().map_err(|error| format!("go: {error}"))?;
        let told = String::from_utf8_lossy(&done.stderr).into_owned();
        if done.status.success() { Ok(()) } else { Err(format!("go {arguments:?}: {told}")) }
    };
    for plugin in PLUGINS {
        let name = plugin.rsplit_once('@').and_then(|(path, _)| path.rsplit_once('/'));
        if name.is_some_and(|(_, name)| !folder.join(name).exists()) {
            go(&folder, &["install", plugin])?;
        }
    }
    for file in ["main.go", "go.mod", "go.sum"] {
        fs::copy(source.join(file), folder.join(file)).map_err(|error| error.to_string())?;
    }
    for plugin in ["protoc-gen-go", "protoc-gen-go-grpc"] {
        generate(&folder, plugin).map_err(|error| format!("{plugin}: {error}"))?;
    }
    go(&folder, &["build", "-o", "server", "."])?;
    Ok(folder.join("server"))
}

const PLUGINS: [&str; 2] = [
    "google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12",
    "google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2",
];

/// Has a plugin of protoc write its part of the contract into `folder/gen`.
fn generate(folder: &Path, plugin: &str) -> std::io::Result<()> {
    let files = FileDescriptorSet::decode(pb::CHATBOT_DESCRIPTORS)?.file;
    let request = CodeGeneratorRequest {
        file_to_generate: vec!["chatbot/v1/chatbot.proto".to_owned()],
        parameter: Some("paths=source_relative".to_owned()),
        proto_file: files,
        compiler_version: None,
    };
    let mut child =
        Command::new(folder.join(plugin)).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    child.stdin.take().expect("piped").write_all(&request.encode_to_vec())?;
    let output = child.wait_with_output()?;
    let response = CodeGeneratorResponse::decode(output.stdout.as_slice())?;
    for file in response.file {
        let path = folder.join("gen").join(file.name());
        fs::create_dir_all(path.parent().expect("a folder"))?;
        fs::write(path, file.content())?;
    }
    match response.error {
        Some(error) => Err(std::io::Error::other(error)),
        None => Ok(()),
    }
}

/// The settings that ours has in every run.
pub(crate) fn settings(folder: &Path, traces: SocketAddr) -> Vec<String> {
    service::settings(folder, &format!("http://{traces}"))
}
