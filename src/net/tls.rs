//! TLS of the main port, with certificates that can be replaced while it runs.
//!
//! Certificates are renewed every few weeks by something else; a server that has to be restarted for
//! it is one that serves an expired certificate some day. A pair that cannot be used leaves the last
//! good one in force.

use std::{
    io,
    path::{Path, PathBuf},
    pin::pin,
    sync::{Arc, PoisonError, RwLock},
    task::Poll,
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::gauge::ConstGauge,
    registry::{Registry, Unit},
};
use tokio::{net::TcpStream, sync::Semaphore};
use tokio_rustls::{
    LazyConfigAcceptor,
    rustls::{
        self, RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
        server::{Acceptor, VerifierBuilderError, WebPkiClientVerifier},
    },
    server::TlsStream,
};

use super::validity::Validity;
use crate::config;

/// Signatures at a time. They are what a handshake costs, and a flood of them would take every core;
/// more of them wait, inside their own deadline.
const HANDSHAKES: usize = 64;

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read, or holds something else.
    #[error("cannot read {what} from {path}: {why}")]
    Read {
        /// What should be in it.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Certificate and key do not go together.
    #[error("{cert} and {key} cannot be used: {source}")]
    Pair {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The authorities cannot be used.
    #[error("{path} cannot be used: {source}")]
    Authorities {
        /// The file.
        path: PathBuf,
        /// Why.
        source: VerifierBuilderError,
    },
}

/// Takes TLS connections; clones share the certificate.
#[derive(Debug, Clone)]
pub struct Tls {
    files: Arc<config::Tls>,
    /// Whether HTTP/1.1 is offered too, for gRPC-Web.
    http1: bool,
    current: Arc<RwLock<Current>>,
    handshakes: Arc<Semaphore>,
}

#[derive(Debug, Clone)]
struct Current {
    config: Arc<ServerConfig>,
    /// Of the certificate of the chain that ends first.
    validity: Option<Validity>,
}

impl Tls {
    /// Reads and checks the files. Blocks.
    pub fn load(files: &config::Tls, http1: bool) -> Result<Self, Error> {
        let current = Arc::new(RwLock::new(load(files, http1)?));
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
        Ok(Self { files: Arc::new(files.clone()), http1, current, handshakes })
    }

    /// Reads the files again; connections from now on use what they hold. If they cannot be used, the
    /// last good pair stays. Blocks.
    pub fn reload(&self) -> Result<(), Error> {
        let new = load(&self.files, self.http1)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// Exports since when and until when the certificate is valid that is in use.
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(Dates(self.clone())));
    }

    fn current(&self) -> Current {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Shakes hands, in at most `limit`. The stream is in a box: it has more than a kilobyte, which
    /// would be there again for each step that it is handed on by.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
        limit: Duration,
    ) -> io::Result<Box<TlsStream<TcpStream>>> {
        let shake_hands = async {
            // Waiting for the peer's hello holds no slot, or a few silent peers would hold all.
            let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
            let config = self.current().config;
            let slot = self.handshakes.acquire().await.map_err(io::Error::other)?;
            // The first step signs; what follows waits for the peer again.
            let mut rest = pin!(hello.into_stream(config));
            let first = futures_util::poll!(rest.as_mut());
            drop(slot);
            match first {
                Poll::Ready(done) => done,
                Poll::Pending => rest.await,
            }
        };
        let stream = tokio::time::timeout(limit, shake_hands).await.unwrap_or_else(|_| {
            Err(io::Error::new(io::ErrorKind::TimedOut, "the TLS handshake took too long"))
        });
        stream.map(Box::new)
    }
}

#[derive(Debug)]
struct Dates(Tls);

impl Collector for Dates {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(validity) = self.0.current().validity else { return Ok(()) };
        for (name, help, seconds) in [
            (
                "net_tls_certificate_not_before_timestamp",
                "Unix time from which the certificate in use is valid",
                validity.from,
            ),
            (
                "net_tls_certificate_not_after_timestamp",
                "Unix time at which the certificate in use ends, or the first of its chain does",
                validity.until,
            ),
        ] {
            let gauge = ConstGauge::new(seconds);
            let unit = Some(&Unit::Seconds);
            let metric = encoder.encode_descriptor(name, help, unit, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        Ok(())
    }
}

fn load(files: &config::Tls, http1: bool) -> Result<Current, Error> {
    let chain = certificates("a certificate", &files.cert_file)?;
    // All or none: the dates of the others would hide those that cannot be read.
    let validities: Option<Vec<_>> =
        chain.iter().map(|certificate| Validity::of(certificate)).collect();
    let validity = validities.and_then(|all| all.into_iter().min_by_key(|validity| validity.until));
    let config = Arc::new(server_config(files, chain, http1)?);
    Ok(Current { config, validity })
}

fn server_config(
    files: &config::Tls,
    chain: Vec<CertificateDer<'static>>,
    http1: bool,
) -> Result<ServerConfig, Error> {
    let key = PrivateKeyDer::from_pem_file(&files.key_file)
        .map_err(|error| unreadable("a private key", &files.key_file, &error))?;
    let provider = Arc::new(ring::default_provider());
    let pair =
        |source| Error::Pair { cert: files.cert_file.clone(), key: files.key_file.clone(), source };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(pair)?;
    let builder = match &files.client_ca_file {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates("certificate authorities", path)? {
                roots
                    .add(authority)
                    .map_err(|error| unreadable("certificate authorities", path, &error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|source| Error::Authorities { path: path.clone(), source })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(pair)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    if http1 {
        config.alpn_protocols.push(b"http/1.1".to_vec());
    }
    Ok(config)
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| unreadable(what, path, &error))?;
    if found.is_empty() {
        return Err(unreadable(what, path, &"there is none in it"));
    }
    Ok(found)
}

fn unreadable(what: &'static str, path: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::Read { what, path: path.to_owned(), why: why.to_string() }
}
