//! A replica of the service in a process of its own, with the scripted engine: this test binary,
//! started once more. It can be killed and frozen as a pod can.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use chatbot::{
    app::{App, Options},
    config::{Config, Sources},
    lifecycle::Lifecycle,
    telemetry::Telemetry,
};

use crate::{
    scripted::Paced,
    support::{LONG, settings},
};

/// The settings of a replica, one a line; set for no other test.
const SETTINGS: &str = "CHATBOT_TEST_REPLICA";
const NOTES: &str = "CHATBOT_TEST_NOTES";

/// No test: what a replica runs. It ends when its standard input does, so that none outlives the
/// tests, however they end.
#[test]
#[ignore = "the body of other tests' replicas"]
fn a_replica() {
    let Ok(settings) = std::env::var(SETTINGS) else { return };
    let notes = std::env::var_os(NOTES).expect("a file for notes").into();
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let telemetry = runtime.block_on(async {
        let overrides = settings.lines().map(str::to_owned).collect();
        let sources = Sources { overrides, ..Sources::default() };
        let config = Config::load(&sources).expect("good settings");
        let traced = config.telemetry.otlp_endpoint.is_some();
        let telemetry = traced.then(|| Telemetry::set_up(&config.telemetry).expect("telemetry"));
        let life = Lifecycle::new();
        life.handle_signals().expect("signal handlers");
        let options = Options { generative: Some(Arc::new(Paced { notes })), ..Options::default() };
        let app = Box::pin(App::bind(config, life, options)).await.expect("a bound app");
        let addresses = app.addresses();
        let served = format!("\nserving {} {}\n", addresses.server, addresses.ops);
        std::io::stdout().write_all(served.as_bytes()).expect("a reader");
        app.run().await;
        telemetry
    });
    // As the binary does: last of all, while the runtime drives the exporter's connection.
    if let Some(telemetry) = telemetry {
        telemetry.flush();
    }
}

/// A running replica; killed when dropped.
#[derive(Debug)]
pub(crate) struct Replica {
    child: Child,
    _stdin: ChildStdin,
    pub(crate) server: SocketAddr,
    pub(crate) ops: SocketAddr,
}

impl Replica {
    /// Starts one, with the test entries of `folder`; the scripted engine notes its starts there.
    pub(crate) fn start(folder: &Path, more: &[&str]) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .args(["replica::a_replica", "--exact", "--ignored", "--nocapture"])
            .env(SETTINGS, settings(folder, more).join("\n"))
            .env(NOTES, folder.join("notes"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a replica starts");
        let stdin = child.stdin.take().expect("piped");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let line = lines
            .find_map(|line| line.expect("a line").strip_prefix("serving ").map(str::to_owned));
        let line = line.expect("it serves");
        let mut addresses = line.split(' ').map(|address| address.parse().expect("an address"));
        let mut next = || addresses.next().expect("an address");
        let (server, ops) = (next(), next());
        // Its log goes nowhere, but must not block it.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, _stdin: stdin, server, ops }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let status = Command::new("kill").args(["-s", name, &id]).status().expect("kill runs");
        assert!(status.success());
    }

    /// Asks it to stop, and waits for its end.
    pub(crate) async fn stop(&mut self) {
        self.signal("TERM");
        let deadline = Instant::now() + LONG;
        while self.child.try_wait().expect("a child").is_none() {
            assert!(Instant::now() < deadline, "it does not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.kill();
    }
}
