//! The processes of a run: the upstream, the services, Redis, LiteLLM. Each is gone when dropped.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use crate::environment::undisturbed;

const LONG: Duration = Duration::from_secs(90);

/// One of them.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    /// `HOST:PORT`.
    pub(crate) address: String,
}

impl Process {
    /// The scripted upstream: this program, started once more.
    pub(crate) fn upstream() -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.arg(crate::UPSTREAM).stdin(Stdio::piped());
        Self::told(&mut command)
    }

    /// The service, as it is built here, with this store and upstream.
    pub(crate) fn service(store: &str, upstream: &Self, more: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chatbot"));
        command.arg("serve").stdin(Stdio::null());
        let upstream = format!("upstream.base_url=http://{}", upstream.address);
        let settings = [
            "server.address=127.0.0.1:0",
            "ops.address=127.0.0.1:0",
            "upstream.model=tiny",
            upstream.as_str(),
            store,
        ];
        for setting in settings.iter().chain(more) {
            command.args(["--set", setting]);
        }
        Self::told(&mut command)
    }

    /// A redis-server that keeps its log in `folder`, if there is one to start.
    pub(crate) fn redis(folder: &Path) -> Option<Self> {
        let port = free_port();
        let mut command = Command::new("redis-server");
        command
            .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", ""])
            .args(["--appendonly", "yes", "--appendfsync", "everysec", "--dir"])
            .arg(folder);
        Self::listening(&mut command, port)
    }

    /// LiteLLM's proxy in front of the upstream, if there is one to start: without telemetry, keys, a
    /// database and anything from the network.
    pub(crate) fn litellm(folder: &Path, upstream: &Self) -> Option<Self> {
        let port = free_port();
        let file = folder.join("litellm.yaml");
        let model = format!(
            "model_list:\n  - model_name: tiny\n    litellm_params:\n      model: openai/tiny\n      \
             api_base: http://{}/v1\n      api_key: none\n",
            upstream.address
        );
        fs::write(&file, model).expect("a file");
        let program = std::env::var_os("CHATBOT_LITELLM").unwrap_or_else(|| "litellm".into());
        let mut command = Command::new(program);
        command
            .args(["--host", "127.0.0.1", "--port", &port.to_string(), "--num_workers", "1"])
            .args(["--telemetry", "False", "--config"])
            .arg(file)
            .env("LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY", "true")
            .env("LITELLM_LOCAL_MODEL_COST_MAP", "True")
            // A line for each call would be its own work, and not ours.
            .env("LITELLM_LOG", "ERROR")
            .stderr(Stdio::null())
            .current_dir(folder);
        Self::listening(&mut command, port)
    }

    /// Its id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Starts a program that tells its address in a line that ends with `serving address=ADDRESS`.
    fn told(command: &mut Command) -> Self {
        undisturbed(command);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("it starts");
        let stdout = child.stdout.take().expect("piped");
        let (sender, found) = mpsc::sync_channel(1);
        // It reads to the end: a log that nobody reads would stop the program.
        thread::spawn(move || {
            let mut warnings = 0;
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some((_, address)) = line.split_once("serving address=") {
                    let _ = sender.try_send(address.trim().to_owned());
                } else if line.contains("WARN") || line.contains("ERROR") {
                    warnings += 1;
                    if warnings <= 3 {
                        println!("{line}");
                    }
                }
            }
        });
        let address = found.recv_timeout(LONG).expect("the address in time");
        Self { child, address }
    }

    /// Starts a program that tells nothing, and waits until it listens.
    fn listening(command: &mut Command, port: u16) -> Option<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().ok()?;
        let mut process = Self { child, address: format!("127.0.0.1:{port}") };
        let until = Instant::now() + LONG;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = process.child.try_wait().expect("a child");
            assert!(ended.is_none(), "{command:?} ends: {ended:?}");
            assert!(Instant::now() < until, "{command:?} does not come up");
            thread::sleep(Duration::from_millis(50));
        }
        Some(process)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
    free.expect("a free port").port()
}
