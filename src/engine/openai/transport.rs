//! The HTTP client: connections to one server, and the key that opens it.
//!
//! TLS is rustls with ring, as on the main port, against the system's authorities or a file of them. A
//! redirect is not followed, since it would carry the key to somebody else.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use http::HeaderValue;
use reqwest::redirect;
use tokio_rustls::rustls::{
    self, ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject as _},
};

use crate::config;

/// How long a connection is kept that nobody uses, and how many of them.
const KEPT: (Duration, usize) = (Duration::from_secs(30), 32);
/// HTTP/2 pings while an answer is awaited: requests share a connection, and a dead one would fail
/// all of them until it is noticed.
const PING: Duration = Duration::from_secs(10);
const PONG: Duration = Duration::from_secs(10);

/// Why there is no client for the model's server.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The key cannot be used.
    #[error("cannot read the key from upstream.api_key_file {path}: {why}")]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The authorities cannot be used.
    #[error("cannot read certificate authorities from {origin}: {why}")]
    Authorities {
        /// The file, or the system.
        origin: String,
        /// What is wrong.
        why: String,
    },
    /// The address is none.
    #[error("upstream.base_url is no address: {0}")]
    Address(String),
    /// TLS cannot be set up.
    #[error("cannot set up TLS for the model's server")]
    Tls(#[from] rustls::Error),
    /// The client cannot be set up.
    #[error("cannot set up the client of the model's server")]
    Client(#[from] reqwest::Error),
}

/// The key of the model's server; clones share it.
#[derive(Clone)]
pub struct Key {
    path: PathBuf,
    current: Arc<RwLock<Arc<str>>>,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Key {
    /// Reads the file. Blocks.
    pub(super) fn load(path: &Path) -> Result<Self, SetupError> {
        let path = path.to_owned();
        let current = Arc::new(RwLock::new(read(&path)?));
        Ok(Self { path, current })
    }

    /// Reads the file again; requests from now on send what it holds. If it cannot be used, the old key
    /// stays. Blocks.
    pub fn reload(&self) -> Result<(), SetupError> {
        let new = read(&self.path)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    pub(super) fn current(&self) -> Arc<str> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The header that shows a key. Its `Debug` does not.
pub(super) fn bearer(key: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::try_from(format!("Bearer {key}")).ok()?;
    header.set_sensitive(true);
    Some(header)
}

fn read(path: &Path) -> Result<Arc<str>, SetupError> {
    let unusable = |why: String| SetupError::Key { path: path.to_owned(), why };
    let text = std::fs::read_to_string(path).map_err(|error| unusable(error.to_string()))?;
    let key = text.trim();
    if key.is_empty() {
        return Err(unusable("it is empty".to_owned()));
    }
    if bearer(key).is_none() {
        return Err(unusable("it has characters that no header can have".to_owned()));
    }
    Ok(key.into())
}

/// The client.
pub(super) fn client(config: &config::Upstream) -> Result<reqwest::Client, SetupError> {
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls(config)?)
        .connect_timeout(config.connect_timeout)
        .redirect(redirect::Policy::none())
        // The key goes to the server that is configured, and to nobody that the environment names.
        .no_proxy()
        .pool_idle_timeout(KEPT.0)
        .pool_max_idle_per_host(KEPT.1)
        .http2_keep_alive_interval(PING)
        .http2_keep_alive_timeout(PONG)
        .user_agent(concat!("chatbot/", env!("CARGO_PKG_VERSION")))
        .build()?;
    Ok(client)
}

fn tls(config: &config::Upstream) -> Result<ClientConfig, SetupError> {
    let mut roots = RootCertStore::empty();
    // Without TLS a system that has no authorities is fine.
    if config.url.starts_with("https:") {
        let (origin, authorities) = match &config.ca_file {
            Some(path) => (format!("upstream.ca_file {}", path.display()), of_file(path)),
            None => ("the system".to_owned(), of_the_system()),
        };
        let unusable = |why: String| SetupError::Authorities { origin: origin.clone(), why };
        let (good, _) = roots.add_parsable_certificates(authorities.map_err(unusable)?);
        if good == 0 {
            return Err(unusable("there is none".to_owned()));
        }
    }
    let mut tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(tls)
}

fn of_file(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    found.map_err(|error| error.to_string())
}

/// Some of them may be unreadable; with none there is a reason.
fn of_the_system() -> Result<Vec<CertificateDer<'static>>, String> {
    let found = rustls_native_certs::load_native_certs();
    match found.errors.first() {
        Some(error) if found.certs.is_empty() => Err(error.to_string()),
        _ => Ok(found.certs),
    }
}
