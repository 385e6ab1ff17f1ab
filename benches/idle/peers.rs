//! Clients of which nothing is left but a socket: what 5,000 clients of a library need would be more
//! than what is measured.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use socket2::{Domain, Socket, Type};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    client::Resumption,
    crypto::ring,
    pki_types::{CertificateDer, ServerName},
};

/// Loopback addresses that connections come from, by turns: one address has ports for fewer, and the
/// server has words for many idle connections from one.
const SOURCES: usize = 250;
const LONG: Duration = Duration::from_secs(20);

/// Opens connections.
#[derive(Debug)]
pub(crate) struct Peer(Option<Arc<ClientConfig>>);

impl Peer {
    /// Without TLS.
    pub(crate) fn plain() -> Self {
        Self(None)
    }

    /// With TLS, from servers with this certificate.
    pub(crate) fn tls(trusted: &CertificateDer<'static>) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(trusted.clone()).expect("a certificate");
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        // As many clients, each of which comes for the first time.
        config.resumption = Resumption::disabled();
        Self(Some(Arc::new(config)))
    }

    /// The socket of the connection number `n`, after one health check.
    pub(crate) fn connect(&self, server: SocketAddr, n: usize) -> TcpStream {
        let last = u8::try_from(n % SOURCES).expect("fits") + 1;
        let source = SocketAddr::from((Ipv4Addr::new(127, 0, 1, last), 0));
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&source.into()).expect("a port");
        socket.connect(&server.into()).expect("a connection");
        let mut stream = TcpStream::from(socket);
        stream.set_nodelay(true).expect("an option");
        stream.set_read_timeout(Some(LONG)).expect("an option");
        let Some(config) = &self.0 else {
            check(&mut stream);
            return stream;
        };
        let name = ServerName::try_from("localhost").expect("a name");
        let session = ClientConnection::new(Arc::clone(config), name).expect("a session");
        let mut stream = StreamOwned::new(session, stream);
        check(&mut stream);
        // The keys go, and the server cannot tell: nothing more is said.
        stream.sock
    }
}

/// One health check, in frames written by hand.
fn check(stream: &mut (impl Read + Write)) {
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
    stream.flush().expect("written");
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
