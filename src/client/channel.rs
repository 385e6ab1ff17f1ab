//! One channel to one of several addresses, TLS, and the credential that goes with each call.
//!
//! Nothing connects before it is needed, and a connection that is lost is made anew by itself. What that
//! does not cover is a server that holds a connection and says nothing, or one that wants to be left:
//! then the channel is replaced, by one to the next address. Calls that run on the old one keep it until
//! they end; then it is closed.

use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tonic::{
    Request,
    metadata::{Ascii, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use super::Error;

/// How long a token that was read from a file is used before the file is looked at again: tokens that
/// Kubernetes projects are replaced while they are valid.
const TOKEN_AGE: Duration = Duration::from_mins(1);

/// TLS. Without an authority of its own, those of the machine count.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// A PEM file with the only authorities that count.
    pub ca_file: Option<PathBuf>,
    /// The client's certificate and its key, PEM files.
    pub identity_files: Option<(PathBuf, PathBuf)>,
    /// The name that the server's certificate has to have; by default the host of the address.
    pub server_name: Option<String>,
}

/// The token that is shown with each call.
#[derive(Clone, Default)]
pub enum Credential {
    /// None.
    #[default]
    None,
    /// This one.
    Token(String),
    /// The text of a file, which is read again when it is a minute old.
    File(PathBuf),
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Token(_) => f.write_str("Token(..)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// The channel that is in use, and how to make the next one.
pub(super) struct Link {
    endpoints: Vec<Endpoint>,
    current: Mutex<Current>,
    token: Mutex<Token>,
    credential: Credential,
}

struct Current {
    /// Counts the channels, so that many calls that found the same one bad replace it once.
    generation: u64,
    channel: Channel,
}

#[derive(Default)]
struct Token {
    value: Option<MetadataValue<Ascii>>,
    read: Option<std::time::Instant>,
}

/// A channel, and which one it is.
#[derive(Debug, Clone)]
pub(super) struct Lease {
    pub(super) channel: Channel,
    pub(super) generation: u64,
}

impl Link {
    pub(super) fn new(
        addresses: &[String],
        tls: Option<&Tls>,
        credential: Credential,
        connect_timeout: Duration,
    ) -> Result<Self, Error> {
        let tls = tls.map(read_tls).transpose()?;
        let endpoints = addresses
            .iter()
            .map(|address| endpoint(address, tls.clone(), connect_timeout))
            .collect::<Result<Vec<_>, _>>()?;
        let first = endpoints.first().ok_or_else(|| Error::Options("no address".to_owned()))?;
        let current = Current { generation: 0, channel: first.connect_lazy() };
        let link =
            Self { current: Mutex::new(current), endpoints, token: Mutex::default(), credential };
        // A token that cannot be read is a mistake of the options, and told now.
        link.token()?;
        Ok(link)
    }

    pub(super) fn addresses(&self) -> usize {
        self.endpoints.len()
    }

    pub(super) fn lease(&self) -> Lease {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        Lease { channel: current.channel.clone(), generation: current.generation }
    }

    /// Replaces the channel, if it is still the one of `generation`, by one to the next address.
    pub(super) fn leave(&self, generation: u64) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.generation != generation {
            return;
        }
        current.generation += 1;
        let next = usize::try_from(current.generation).unwrap_or_default() % self.endpoints.len();
        if let Some(endpoint) = self.endpoints.get(next) {
            current.channel = endpoint.connect_lazy();
        }
    }

    /// Connects now, and says why it cannot. The addresses are tried in turn, once each.
    pub(super) async fn connect(&self, limit: Duration) -> Result<(), Error> {
        let mut failed = None;
        for _ in &self.endpoints {
            let generation = self.lease().generation;
            let at = usize::try_from(generation).unwrap_or_default() % self.endpoints.len();
            let Some(endpoint) = self.endpoints.get(at) else { continue };
            let why = match tokio::time::timeout(limit, endpoint.connect()).await {
                Ok(Ok(channel)) => {
                    let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
                    current.channel = channel;
                    return Ok(());
                }
                Ok(Err(error)) => root_cause(&error),
                Err(_) => format!("no answer within {limit:?}"),
            };
            failed = Some(Error::Connect { address: shown(endpoint), why });
            self.leave(generation);
        }
        Err(failed.unwrap_or_else(|| Error::Options("no address".to_owned())))
    }

    /// The address that is in use.
    pub(super) fn address(&self) -> String {
        let generation = self.lease().generation;
        let at = usize::try_from(generation).unwrap_or_default() % self.endpoints.len();
        self.endpoints.get(at).map(shown).unwrap_or_default()
    }

    /// A request with the credential.
    pub(super) fn request<T>(&self, message: T) -> Result<Request<T>, Error> {
        let mut request = Request::new(message);
        if let Some(token) = self.token()? {
            request.metadata_mut().insert("authorization", token);
        }
        Ok(request)
    }

    fn token(&self) -> Result<Option<MetadataValue<Ascii>>, Error> {
        let mut token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        match &self.credential {
            Credential::None => return Ok(None),
            Credential::Token(text) if token.value.is_none() => token.value = Some(bearer(text)?),
            Credential::File(path) if token.read.is_none_or(|read| read.elapsed() > TOKEN_AGE) => {
                match read(path).and_then(|text| bearer(&text)) {
                    Ok(value) => token.value = Some(value),
                    // The last good one, as long as there is one: files are away while they are replaced.
                    Err(error) if token.value.is_none() => return Err(error),
                    Err(_) => {}
                }
                token.read = Some(std::time::Instant::now());
            }
            Credential::Token(_) | Credential::File(_) => {}
        }
        Ok(token.value.clone())
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the token.
        f.debug_struct("Link").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}

fn endpoint(
    address: &str,
    tls: Option<ClientTlsConfig>,
    connect_timeout: Duration,
) -> Result<Endpoint, Error> {
    let invalid = |_| Error::Options(format!("{address:?} is no address, write HOST:PORT"));
    let scheme = if tls.is_some() { "https" } else { "http" };
    let uri =
        if address.contains("://") { address.to_owned() } else { format!("{scheme}://{address}") };
    let secure = uri.starts_with("https://");
    let endpoint = Endpoint::from_shared(uri)
        .map_err(invalid)?
        .connect_timeout(connect_timeout)
        .tcp_nodelay(true)
        // Dead peers, and frozen ones, while calls run; idle connections are left in peace, and the server
        // counts pings.
        .http2_keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10));
    match tls {
        Some(_) if !secure => {
            Err(Error::Options(format!("{address}: http:// and TLS do not go together")))
        }
        Some(tls) => endpoint.tls_config(tls.timeout(connect_timeout)).map_err(bad_tls),
        None if secure => {
            let tls = ClientTlsConfig::new().with_native_roots().timeout(connect_timeout);
            endpoint.tls_config(tls).map_err(bad_tls)
        }
        None => Ok(endpoint),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the shape of map_err")]
fn bad_tls(error: tonic::transport::Error) -> Error {
    Error::Options(format!("TLS cannot be used: {}", root_cause(&error)))
}

fn read_tls(tls: &Tls) -> Result<ClientTlsConfig, Error> {
    let mut config = ClientTlsConfig::new();
    config = match &tls.ca_file {
        Some(path) => config.ca_certificate(Certificate::from_pem(read(path)?)),
        None => config.with_native_roots(),
    };
    if let Some((certificate, key)) = &tls.identity_files {
        config = config.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    if let Some(name) = &tls.server_name {
        config = config.domain_name(name);
    }
    Ok(config)
}

fn read(path: &PathBuf) -> Result<String, Error> {
    let text = std::fs::read_to_string(path);
    text.map_err(|error| Error::Options(format!("{} cannot be read: {error}", path.display())))
}

fn bearer(token: &str) -> Result<MetadataValue<Ascii>, Error> {
    let value = MetadataValue::try_from(format!("Bearer {}", token.trim()));
    // Not with the error, which may repeat it.
    let mut value =
        value.map_err(|_| Error::Options("the token has characters of no token".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

fn shown(endpoint: &Endpoint) -> String {
    endpoint.uri().authority().map(ToString::to_string).unwrap_or_default()
}

/// The deepest cause: those above it say "transport error".
pub(super) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}
