//! TLS on the main port: a certificate that can be replaced, clients that have to show theirs, peers
//! that never finish their handshake.

use std::{
    fs,
    io::Write as _,
    net::TcpStream,
    path::Path,
    time::{Duration, Instant},
};

use chatbot::pb::{
    chatbot::v1::{AskRequest, chatbot_client::ChatbotClient},
    health::v1::{HealthCheckRequest, health_check_response::ServingStatus},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::support::{
    LONG, Process, Running, eventually, folder, http_get, metric, serve, start_in,
};

/// An authority, and the files that it signs.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        // With the name that certificates have by default, what it signs would look self-signed.
        params.distinguished_name.push(DnType::CommonName, "authority of the tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("an authority"))
    }

    /// Certificate and key of `name`, PEM.
    fn sign(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }

    pub(crate) fn write_server(&self, folder: &Path) {
        let (certificate, key) = self.sign("chatbot.test");
        fs::write(folder.join("tls.crt"), certificate).expect("a file");
        fs::write(folder.join("tls.key"), key).expect("a file");
    }

    /// Its own certificate, PEM.
    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    fn client(&self) -> ClientTlsConfig {
        let authority = Certificate::from_pem(self.pem());
        ClientTlsConfig::new().ca_certificate(authority).domain_name("chatbot.test")
    }
}

pub(crate) fn settings(folder: &Path) -> [String; 2] {
    ["cert_file", "key_file"].map(|key| {
        let file = if key == "cert_file" { "tls.crt" } else { "tls.key" };
        format!("tls.{key}={}", folder.join(file).display())
    })
}

async fn start_with_tls(authority: &Authority, more: &[&str]) -> Running {
    let folder = folder();
    authority.write_server(folder.path());
    let settings = settings(folder.path());
    let all: Vec<&str> = settings.iter().map(String::as_str).chain(more.iter().copied()).collect();
    start_in(folder, &all).await
}

async fn connect(
    address: std::net::SocketAddr,
    tls: ClientTlsConfig,
) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("https://{address}")).expect("an address");
    endpoint.tls_config(tls).expect("a good configuration").connect().await
}

async fn ask(channel: Channel) -> Result<bool, tonic::Status> {
    let request =
        AskRequest { query: "too many open files in the server".to_owned(), ..Default::default() };
    let response = ChatbotClient::new(channel).ask(request).await?;
    Ok(response.into_inner().answer.expect("an answer").answered)
}

// Two threads: looking at the metrics blocks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_main_port_speaks_tls_and_the_ops_port_never_does() {
    let authority = Authority::new();
    let app = start_with_tls(&authority, &[]).await;
    let channel = connect(app.addresses.server, authority.client()).await.expect("a connection");
    assert!(ask(channel).await.expect("an answer"));
    connect(app.addresses.server, Authority::new().client()).await.expect_err("another authority");
    assert!(http_get(app.addresses.ops, "/readyz").ends_with("ok\n"));
    let failed = || metric(app.addresses.ops, "chatbot_net_tls_handshakes_failed_total");
    eventually(|| failed() >= Some(1.0)).await;
    app.stop().await;
}

#[tokio::test]
async fn with_an_authority_for_clients_only_its_clients_come_in() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let folder = folder();
    authority.write_server(folder.path());
    fs::write(folder.path().join("ca.crt"), clients.pem()).expect("a file");
    let mut all = settings(folder.path()).to_vec();
    all.push(format!("tls.client_ca_file={}", folder.path().join("ca.crt").display()));
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let app = start_in(folder, &all).await;
    let server = app.addresses.server;

    let identity = |(certificate, key): (String, String)| Identity::from_pem(certificate, key);
    let theirs = authority.client().identity(identity(clients.sign("client.test")));
    let channel = connect(server, theirs).await.expect("a connection");
    assert!(ask(channel).await.expect("an answer"));
    // With TLS 1.3 the client hears of a refusal only after its own handshake.
    let nobody = connect(server, authority.client()).await;
    let stranger =
        connect(server, authority.client().identity(identity(authority.sign("other.test")))).await;
    for channel in [nobody, stranger].into_iter().flatten() {
        ask(channel).await.expect_err("refused");
    }
    // The kubelet's probe: a new plaintext connection, no credential, a second for all of it.
    let probe = async {
        let mut health = app.health(app.addresses.ops).await;
        health.check(HealthCheckRequest { service: "liveness".to_owned() }).await
    };
    let answer = tokio::time::timeout(Duration::from_secs(1), probe).await;
    let answer = answer.expect("within a second").expect("an answer").into_inner();
    assert_eq!(answer.status(), ServingStatus::Serving);
    app.stop().await;
}

#[tokio::test]
async fn a_peer_that_does_not_finish_its_handshake_is_cut() {
    use tokio::io::AsyncReadExt as _;
    let authority = Authority::new();
    let app = start_with_tls(&authority, &["server.preface_timeout=300ms"]).await;
    let mut silent = tokio::net::TcpStream::connect(app.addresses.server).await.expect("TCP");
    let mut nothing = [0; 1];
    let end = tokio::time::timeout(LONG, silent.read(&mut nothing)).await.expect("cut in time");
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    app.stop().await;
}

#[test]
fn a_stop_does_not_wait_for_handshakes() {
    let authority = Authority::new();
    let folder = folder();
    authority.write_server(folder.path());
    let settings = settings(folder.path());
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let mut process = Process::start(&mut serve(&folder, &settings));
    let server = process.wait_for_address(&["serving"]);
    let silent = TcpStream::connect(server).expect("a connection");
    // The head of a ClientHello whose rest never comes.
    let mut slow = TcpStream::connect(server).expect("a connection");
    slow.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]).expect("written");
    let start = Instant::now();
    process.signal("TERM");
    assert_eq!(process.wait().0.code(), Some(0));
    // The grace is a second; both handshakes have ten.
    let after = start.elapsed();
    assert!(after < Duration::from_secs(2), "{after:?}");
    drop((silent, slow));
}

// Two threads: the test waits for the process while its client speaks to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_certificate_is_taken_over_and_a_bad_one_is_not() {
    let (old, new) = (Authority::new(), Authority::new());
    let folder = folder();
    old.write_server(folder.path());
    let settings = settings(folder.path());
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let mut process = Process::start(&mut serve(&folder, &settings));
    let server = process.wait_for_address(&["serving"]);
    let before = connect(server, old.client()).await.expect("the first certificate");

    fs::write(folder.path().join("tls.crt"), "no certificate").expect("a file");
    process.signal("HUP");
    process.wait_for(&["certificate not reloaded", "tls.crt"]);
    connect(server, old.client()).await.expect("the last good certificate");

    new.write_server(folder.path());
    process.signal("HUP");
    process.wait_for(&["certificate reloaded"]);
    connect(server, new.client()).await.expect("the new certificate");
    connect(server, old.client()).await.expect_err("the old one is gone");
    assert!(ask(before).await.expect("an answer"), "connections outlive their certificate");
}

#[test]
fn certificates_that_cannot_be_used_end_the_start_with_their_names() {
    let folder = folder();
    let authority = Authority::new();
    let settings = settings(folder.path());
    let run = || {
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let output = serve(&folder, &settings).output().expect("it runs");
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).expect("UTF-8")
    };
    assert!(run().contains("cannot read a certificate from"));
    authority.write_server(folder.path());
    let mut key = fs::File::create(folder.path().join("tls.key")).expect("a file");
    key.write_all(authority.sign("other.test").1.as_bytes()).expect("a key");
    let wrong = run();
    assert!(wrong.contains("cannot be used"), "{wrong}");
}
