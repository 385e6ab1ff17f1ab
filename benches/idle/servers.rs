//! The servers that are compared, and the certificate that they show.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use tokio_rustls::rustls::pki_types::CertificateDer;

use super::{environment::undisturbed, resident::resident};

const LONG: Duration = Duration::from_secs(20);

const KNOWLEDGE: &str = r#"{"answer_id":1,"questions":["What is a deadline?"],"answer":"The end.","language_code":"en"}"#;

/// A certificate of `localhost`, and where it is.
#[derive(Debug)]
pub(crate) struct Certificate {
    /// What a client has to trust: itself, since it signs itself.
    pub(crate) trusted: CertificateDer<'static>,
    cert_file: PathBuf,
    key_file: PathBuf,
}

impl Certificate {
    /// A new one, with its files in this folder.
    pub(crate) fn write(folder: &Path) -> Self {
        let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]);
        let pair = pair.expect("a certificate");
        let (cert_file, key_file) = (folder.join("tls.crt"), folder.join("tls.key"));
        fs::write(&cert_file, pair.cert.pem()).expect("a file");
        fs::write(&key_file, pair.signing_key.serialize_pem()).expect("a file");
        Self { trusted: pair.cert.der().clone(), cert_file, key_file }
    }
}

/// A server in a process of its own, killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) name: String,
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Server {
    /// Our program, with its defaults as far as a benchmark can have them.
    pub(crate) fn ours(folder: &Path, tls: Option<&Certificate>) -> Self {
        let file = folder.join("faq.jsonl");
        fs::write(&file, KNOWLEDGE).expect("the knowledge");
        let mut settings = vec![
            "server.address=127.0.0.1:0".to_owned(),
            "ops.address=127.0.0.1:0".to_owned(),
            "store.url=memory:".to_owned(),
            "server.exempt_peers=127.0.0.0/8".to_owned(),
            format!("knowledge.path={}", file.display()),
        ];
        if let Some(Certificate { cert_file, key_file, .. }) = tls {
            settings.push(format!("tls.cert_file={}", cert_file.display()));
            settings.push(format!("tls.key_file={}", key_file.display()));
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_chatbot"));
        command.arg("serve");
        for setting in &settings {
            command.args(["--set", setting]);
        }
        Self::start("ours", tls.is_some(), &mut command, "serving address=")
    }

    /// The bare one.
    pub(crate) fn bare(program: &OsStr, tls: Option<&Certificate>) -> Self {
        let mut command = Command::new(program);
        if let Some(Certificate { cert_file, key_file, .. }) = tls {
            command.arg("--tls").args([cert_file, key_file]);
        }
        Self::start("bare tonic", tls.is_some(), &mut command, "address=")
    }

    /// Starts it and waits for the line of its log that ends with `before` and its address.
    fn start(name: &str, tls: bool, command: &mut Command, before: &'static str) -> Self {
        undisturbed(command);
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
        let name = if tls { format!("{name}, TLS") } else { name.to_owned() };
        Self { name, child, address }
    }

    /// Its anonymous resident memory, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        resident(self.child.id(), "RssAnon")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
