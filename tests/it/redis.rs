//! A real redis-server on a free port, gone when dropped.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::support::{LONG, eventually, skip};

/// A running server.
#[derive(Debug)]
pub(crate) struct Redis {
    child: Child,
    port: u16,
    folder: tempfile::TempDir,
}

/// A server, or `None` where there is no redis-server, which is said.
pub(crate) fn start() -> Option<Redis> {
    if Command::new("redis-server").arg("--version").stdout(Stdio::null()).status().is_err() {
        skip("redis-server", "install Debian's redis-server, or put one into PATH");
        return None;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    // The port may be taken between the look and the start; then another one is tried.
    (0..20)
        .find_map(|_| {
            let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
            let port = port.expect("a free port").port();
            spawn(port, &folder).map(|child| (child, port))
        })
        .map(|(child, port)| Redis { child, port, folder })
}

fn spawn(port: u16, folder: &tempfile::TempDir) -> Option<Child> {
    let mut child = Command::new("redis-server")
        .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", ""])
        .args(["--appendonly", "yes", "--appendfsync", "always", "--dir"])
        .arg(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server starts");
    let deadline = Instant::now() + LONG;
    loop {
        if TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return Some(child);
        }
        if child.try_wait().expect("a child").is_some() {
            return None;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("redis-server does not come up");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Redis {
    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Becomes a replica of `primary`.
    pub(crate) fn follow(&self, primary: &Self) {
        let reply = self.command(&["REPLICAOF", "127.0.0.1", &primary.port.to_string()]);
        assert!(reply.starts_with("+OK"), "{reply}");
    }

    /// Waits until this replica has all that `primary` has.
    pub(crate) async fn wait_for_offset_of(&self, primary: &Self) {
        eventually(|| {
            let master = primary.info("master_repl_offset:");
            self.info("master_link_status:").as_deref() == Some("up")
                && self.info("slave_repl_offset:") == master
        })
        .await;
    }

    fn info(&self, key: &str) -> Option<String> {
        let info = self.command(&["INFO", "replication"]);
        info.lines().find_map(|line| line.strip_prefix(key)).map(|value| value.trim().to_owned())
    }

    /// Deletes the keys that match.
    pub(crate) fn delete(&self, pattern: &str) {
        let keys = self.command(&["KEYS", pattern]);
        let keys: Vec<_> = keys.lines().filter(|line| line.contains("chatbot")).collect();
        assert!(!keys.is_empty(), "{pattern}");
        let words: Vec<_> = std::iter::once("DEL").chain(keys.iter().copied()).collect();
        self.command(&words);
    }

    pub(crate) fn url(&self) -> String {
        format!("store.url=redis://127.0.0.1:{}/0", self.port)
    }

    /// What `redis-cli` would print.
    pub(crate) fn command(&self, words: &[&str]) -> String {
        use std::io::{Read as _, Write as _};
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("a connection");
        stream.set_read_timeout(Some(LONG)).expect("a timeout");
        let line = format!("{}\r\nQUIT\r\n", words.join(" "));
        stream.write_all(line.as_bytes()).expect("a command");
        let mut reply = String::new();
        stream.read_to_string(&mut reply).expect("a reply");
        reply
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again, on the same port and data.
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.child = spawn(self.port, &self.folder).expect("the same port");
    }

    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let status = Command::new("kill").args(["-s", name, &id]).status().expect("kill runs");
        assert!(status.success());
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}
