//! Running apps for the tests: in this process on free ports, or the real binary.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use chatbot::{
    app::{Addresses, App, Options},
    config::{Config, Sources},
    lifecycle::Lifecycle,
    pb::{
        chatbot::v1::chatbot_client::ChatbotClient,
        health::v1::{
            HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
        },
    },
};
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};

use crate::scripted::Stepped;

/// Longer than anything takes on a busy machine; a test that waits for it has failed.
pub(crate) const LONG: Duration = Duration::from_mins(1);

/// Six entries, two languages, one in none: few enough that the index is there at once.
pub(crate) const ENTRIES: &str = r#"{"answer_id":1,"questions":["Why are there too many open files?","EMFILE error in the server"],"answer":"Raise the limit and close your channels.","language_code":"en"}
{"answer_id":2,"questions":["What is a deadline?"],"answer":"The time by which a call has to end.","language_code":"en"}
{"answer_id":3,"questions":["연결이 왜 자꾸 끊기나요?","커넥션이 끊어져요"],"answer":"서버가 연결의 나이를 제한하기 때문입니다.","language_code":"ko"}
{"answer_id":4,"questions":["데드라인이 뭔가요?"],"answer":"호출이 끝나야 하는 시각입니다.","language_code":"ko"}
{"answer_id":5,"questions":["What is a deadline good for?"],"answer":"It frees what a slow call would hold.","language_code":"en"}
{"answer_id":6,"questions":["RLIMIT_NOFILE"],"answer":"ulimit -n","language_code":""}
"#;

/// A folder with [`ENTRIES`] as its `faq.jsonl`.
pub(crate) fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("faq.jsonl"), ENTRIES).expect("the entries");
    folder
}

/// An app in this process.
pub(crate) struct Running {
    pub(crate) addresses: Addresses,
    pub(crate) life: Lifecycle,
    pub(crate) folder: tempfile::TempDir,
    tasks: JoinSet<()>,
}

/// Starts an app on free ports of the loopback address with the test entries, a store in memory and
/// no drain delay; `settings` go over these.
pub(crate) async fn start(settings: &[&str]) -> Running {
    let folder = folder();
    start_in(folder, settings).await
}

/// The settings of a server on free ports of the loopback address with the test entries of `folder`, a
/// store in memory and no drain delay; `more` go over these.
pub(crate) fn settings(folder: &Path, more: &[&str]) -> Vec<String> {
    let knowledge = format!("knowledge.path={}", folder.join("faq.jsonl").display());
    let defaults = [
        "server.address=127.0.0.1:0",
        "ops.address=127.0.0.1:0",
        "server.drain_delay=0s",
        "server.drain_grace=1s",
        "store.url=memory:",
        &knowledge,
    ];
    defaults.iter().chain(more).map(|setting| (*setting).to_owned()).collect()
}

/// Like [`start`], on a folder that is there already.
pub(crate) async fn start_in(folder: tempfile::TempDir, settings: &[&str]) -> Running {
    start_with(folder, settings, Options::default()).await
}

/// Like [`start`], with an engine that is played by the test.
pub(crate) async fn start_scripted(engine: Stepped, settings: &[&str]) -> Running {
    let options = Options { generative: Some(Arc::new(engine)), ..Options::default() };
    start_with(folder(), settings, options).await
}

pub(crate) async fn start_with(
    folder: tempfile::TempDir,
    more: &[&str],
    options: Options,
) -> Running {
    let sources = Sources { overrides: settings(folder.path(), more), ..Sources::default() };
    let config = Config::load(&sources).expect("good settings");
    let life = Lifecycle::new();
    let app = Box::pin(App::bind(config, life.clone(), options)).await.expect("a bound app");
    let addresses = app.addresses();
    let mut tasks = JoinSet::new();
    tasks.spawn(app.run());
    let app = Running { addresses, life, folder, tasks };
    let readiness = HealthCheckRequest { service: "readiness".to_owned() };
    let mut watch = app.health(addresses.ops).await.watch(readiness).await.expect("a stream");
    while let Some(now) = watch.get_mut().message().await.expect("no error") {
        if now.status() == ServingStatus::Serving {
            break;
        }
    }
    app
}

impl Running {
    pub(crate) async fn chatbot(&self) -> ChatbotClient<Channel> {
        ChatbotClient::new(channel(self.addresses.server).await)
    }

    pub(crate) async fn health(&self, address: SocketAddr) -> HealthClient<Channel> {
        HealthClient::new(channel(address).await)
    }

    /// Waits for the app to end, after `life.stop()`.
    pub(crate) async fn ended(mut self) -> tempfile::TempDir {
        let ended = tokio::time::timeout(LONG, self.tasks.join_next()).await;
        ended.expect("it ends in time").expect("it ran").expect("it did not panic");
        self.folder
    }

    pub(crate) async fn stop(self) -> tempfile::TempDir {
        self.life.stop();
        self.ended().await
    }
}

pub(crate) async fn channel(address: SocketAddr) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    endpoint.connect().await.expect("a connection")
}

/// One HTTP/1.1 request; the whole response.
pub(crate) fn http_get(address: SocketAddr, path: &str) -> String {
    use std::io::Read as _;
    let mut stream = std::net::TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(LONG)).expect("a timeout");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        .expect("a request");
    let mut response = String::new();
    stream.read_to_string(&mut response).expect("a response");
    response
}

/// The value of a metric without labels.
pub(crate) fn metric(address: SocketAddr, name: &str) -> Option<f64> {
    let text = http_get(address, "/metrics");
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Waits until `holds`; a test in which it does not has failed.
pub(crate) async fn eventually(mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "it did not come to hold");
        tokio::task::yield_now().await;
    }
}

/// The real binary, started with `settings`; it is killed when dropped.
pub(crate) struct Process {
    child: Child,
    lines: mpsc::Receiver<String>,
    seen: Vec<String>,
}

/// The binary's path.
pub(crate) fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chatbot"));
    // What the machine's owner has set must not change the tests.
    for (name, _) in std::env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| name.starts_with("CHATBOT") || name.starts_with("OTEL_"))
        {
            command.env_remove(name);
        }
    }
    command
}

impl Process {
    /// Starts `command`, which has to be a server, and reads its log.
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let stdout = child.stdout.take().expect("piped");
        let (sender, lines) = mpsc::sync_channel(10_000);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines, seen: Vec::new() }
    }

    /// Waits for a log line that has all of `words`.
    pub(crate) fn wait_for(&mut self, words: &[&str]) -> String {
        let deadline = Instant::now() + LONG;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if words.iter().all(|word| line.contains(word)) {
                        return line;
                    }
                }
                Err(error) => panic!("no line with {words:?} ({error}) in {:#?}", self.seen),
            }
        }
    }

    /// The address that a line of the log names.
    pub(crate) fn wait_for_address(&mut self, words: &[&str]) -> SocketAddr {
        let line = self.wait_for(words);
        let address = line.split("address=").nth(1).expect("an address in the line");
        address.split_whitespace().next().expect("an address").parse().expect("an address")
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The log lines since the last look.
    pub(crate) fn new_lines(&mut self) -> Vec<String> {
        let lines: Vec<_> = self.lines.try_iter().collect();
        self.seen.extend(lines.iter().cloned());
        lines
    }

    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args(["-s", name, &self.child.id().to_string()])
            .status()
            .expect("kill runs");
        assert!(status.success());
    }

    /// Waits for the end; the exit status and what standard error had.
    pub(crate) fn wait(mut self) -> (ExitStatus, Vec<String>, String) {
        let deadline = Instant::now() + LONG;
        // Its standard output ends with it.
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => self.seen.push(line),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("it did not end: {:#?}", self.seen),
            }
        }
        let status = self.child.wait().expect("a child");
        let mut stderr = String::new();
        let mut pipe = self.child.stderr.take().expect("piped");
        std::io::Read::read_to_string(&mut pipe, &mut stderr).expect("standard error");
        (status, std::mem::take(&mut self.seen), stderr)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server of the real binary on free ports, with a store in memory and the test entries.
pub(crate) fn serve(folder: &tempfile::TempDir, settings: &[&str]) -> Command {
    let mut command = binary();
    command.arg("serve");
    for setting in [
        "server.address=127.0.0.1:0",
        "ops.address=127.0.0.1:0",
        "server.drain_delay=0s",
        "server.drain_grace=1s",
        "store.url=memory:",
    ]
    .iter()
    .chain(settings)
    {
        command.args(["--set", setting]);
    }
    let path: PathBuf = folder.path().join("faq.jsonl");
    command.args(["--set", &format!("knowledge.path={}", path.display())]);
    command
}

/// Says what was measured, past the test runner's capture.
pub(crate) fn report(line: &str) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Says that a test was skipped, past the test runner's capture; where nothing may be skipped, fails.
pub(crate) fn skip(what: &str, install: &str) {
    assert!(
        std::env::var_os("CHATBOT_CI").is_none(),
        "{what} is missing, and with CHATBOT_CI nothing may be skipped; {install}"
    );
    report(&format!("skipped: {what} is missing; {install}"));
}

/// Whether a program ends well; what it prints is nobody's business.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// A file system of four megabytes, for as long as it lives; where it cannot be had, that is said.
pub(crate) struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    pub(crate) fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"]).arg(folder.path());
        if !succeeds(&mut mount) {
            skip("a file system of its own", "run as root, with the right to mount");
            return None;
        }
        Some(Self(folder))
    }

    pub(crate) fn grow(&self) {
        let mut mount = Command::new("mount");
        assert!(succeeds(mount.args(["-o", "remount,size=64m"]).arg(self.0.path())));
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = succeeds(Command::new("umount").arg("--lazy").arg(self.0.path()));
    }
}
