//! Real servers on free ports, gone when dropped.

use std::{
    io::Write as _,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use redis::{RedisConnectionInfo, RedisResult, Value, aio::MultiplexedConnection};
use tempfile::TempDir;
use tokio::net::TcpStream;

use super::super::connect::{Connection, Driver};

/// Time for a server to start, load, or notice something.
pub(super) const LONG: Duration = Duration::from_secs(20);

/// Whether there is a redis-server; says so if not.
pub(super) fn installed() -> bool {
    let found = Command::new("redis-server").arg("--version").output().is_ok();
    if !found {
        assert!(
            std::env::var_os("CHATBOT_CI").is_none(),
            "redis-server is missing, and with CHATBOT_CI nothing may be skipped; apt-get install redis-server"
        );
        let _ = writeln!(
            std::io::stderr(),
            "skipped: redis-server is missing; apt-get install redis-server"
        );
    }
    found
}

/// A port that was free a moment ago; whoever loses the race tries another one.
pub(super) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").port()
}

#[derive(Debug)]
pub(super) struct Server {
    process: Child,
    folder: TempDir,
    pub(super) port: u16,
    args: Vec<String>,
    tls: bool,
}

impl Server {
    pub(super) async fn start(args: &[&str]) -> Self {
        Self::start_with(|_| args.iter().map(|arg| (*arg).to_owned()).collect(), false).await
    }

    /// The arguments are made anew for each port that is tried.
    pub(super) async fn start_with(args: impl Fn(&Path) -> Vec<String>, tls: bool) -> Self {
        for _ in 0..10 {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let port = free_port();
            let args = args(folder.path());
            let process = spawn(folder.path(), port, &args, tls);
            let mut server = Self { process, folder, port, args, tls };
            if server.is_up().await {
                return server;
            }
        }
        panic!("redis-server does not start");
    }

    pub(super) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Where the nodes of its cluster talk to it.
    pub(super) fn bus_port(&self) -> String {
        let at = self.args.iter().position(|arg| arg == "--cluster-port").expect("a node");
        self.args[at + 1].clone()
    }

    /// As from a crash.
    pub(super) fn kill(&mut self) {
        self.process.kill().expect("a process");
        self.process.wait().expect("its end");
    }

    pub(super) async fn start_again(&mut self) {
        self.process = spawn(self.folder.path(), self.port, &self.args, self.tls);
        assert!(self.is_up().await, "redis-server does not start again");
    }

    /// Stops or continues the process, so that it neither answers nor ends.
    pub(super) fn signal(&self, signal: &str) {
        let pid = self.process.id().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status().expect("kill");
        assert!(sent.success());
    }

    /// False if it ended, as without its port.
    async fn is_up(&mut self) -> bool {
        let up = async {
            loop {
                if self.process.try_wait().expect("a process").is_some() {
                    return false;
                }
                let reached = if self.tls {
                    TcpStream::connect(("127.0.0.1", self.port)).await.is_ok()
                } else {
                    match try_ask(self.port, &["PING"]).await {
                        Ok(_) => true,
                        Err(error) => error.code() == Some("NOAUTH"),
                    }
                };
                if reached {
                    return true;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(LONG, up).await.expect("a start")
    }

    /// Waits until the replica has everything. A WAIT would not tell: it is about the writes of its own
    /// connection, and a new one has none.
    pub(super) async fn has_all_of(&self, primary: &Self) {
        primary.until(&["INFO", "replication"], "state=online").await;
        let marker = uuid::Uuid::new_v4().to_string();
        primary.ask(&["SET", "marker", &marker]).await;
        self.until(&["GET", "marker"], &marker).await;
    }

    pub(super) async fn ask(&self, command: &[&str]) -> Value {
        try_ask(self.port, command).await.expect("a reply")
    }

    /// Asks until the reply holds `wanted`.
    pub(super) async fn until(&self, command: &[&str], wanted: &str) {
        let mut reply = String::new();
        let seen = async {
            loop {
                reply = format!("{:?}", try_ask(self.port, command).await);
                if reply.contains(wanted) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let seen = tokio::time::timeout(LONG, seen).await;
        assert!(seen.is_ok(), "{command:?} never said {wanted}: {reply}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(folder: &Path, port: u16, args: &[String], tls: bool) -> Child {
    let port = port.to_string();
    let mut command = Command::new("redis-server");
    // A configuration file that can be written to: sentinels insist on it.
    let file = folder.join("redis.conf");
    if !file.exists() {
        std::fs::write(&file, "").expect("a file");
    }
    command.arg(&file).arg("--dir").arg(folder);
    if tls {
        command.args(["--port", "0", "--tls-port", &port]);
    } else {
        command.args(["--port", &port]);
    }
    command
        .args(["--bind", "127.0.0.1", "--save", "", "--repl-diskless-sync-delay", "0"])
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server")
}

pub(super) async fn try_ask(port: u16, command: &[&str]) -> RedisResult<Value> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let info = RedisConnectionInfo::default().set_skip_set_lib_name();
    let (mut connection, driver) =
        MultiplexedConnection::new_with_config(&info, stream, redis::AsyncConnectionConfig::new())
            .await?;
    let mut ask = redis::cmd(command[0]);
    ask.arg(&command[1..]);
    let mut driver: Driver = Box::pin(driver);
    Connection::drive(&mut driver, ask.query_async(&mut connection)).await
}
