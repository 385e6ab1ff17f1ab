//! Credentials: who calls, and what for.
//!
//! A caller shows a bearer token (an opaque one of the tokens file, or a JWT signed by a key of the
//! JWKS file) or owns the certificate of its connection, and becomes a [`Principal`]. Nothing here
//! knows about RPCs. A refusal never says what is wrong with a credential: that would help whoever
//! tries one to make a better one. Neither tokens nor their hashes are shown, logged or repeated in
//! messages.

mod jwt;
mod signature;
mod tokens;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, Weak},
    time::SystemTime,
};

use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};
use rustls_pki_types::CertificateDer;
use subtle::ConstantTimeEq as _;
use tracing::debug;
use webpki::EndEntityCert;

pub use crate::config::{Scope, Scopes};
use crate::{config, error::Kind};

/// Most bytes of a bearer token.
const TOKEN_BYTES: usize = 8 * 1024;
/// Most bytes of a header that is remembered: connections are many.
const KNOWN_BYTES: usize = 4 * 1024;
/// Most bytes of a principal's name: what a SPIFFE ID may have.
const NAME_BYTES: usize = 2048;
/// Problems of one file that are told at most.
const TOLD: usize = 20;

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The name in the tokens file, the `sub` of the JWT, or the name in the certificate. The same
    /// name is the same principal, whichever credential it comes from.
    pub name: Arc<str>,
    /// What it may do.
    pub scopes: Scopes,
}

impl Principal {
    /// Anybody, where no credentials are configured.
    fn anonymous() -> Self {
        Self { name: "anonymous".into(), scopes: Scopes::ALL }
    }

    /// The principal of a name that somebody else has chosen, unless it is too long, empty, or
    /// would break a log line.
    fn new(name: &str, scopes: Scopes) -> Option<Self> {
        let good = (1..=NAME_BYTES).contains(&name.len()) && !name.chars().any(char::is_control);
        good.then(|| Self { name: name.into(), scopes })
    }
}

/// Why there is no principal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No credential was shown.
    #[error("a credential is required: a bearer token or a client certificate")]
    Missing,
    /// The credential does not count: malformed, unknown, expired, or meant for somebody else.
    #[error("the credential is not valid")]
    Invalid,
}

impl Refusal {
    /// What the caller can do about it.
    pub fn kind(self) -> Kind {
        match self {
            Self::Missing | Self::Invalid => Kind::Unauthenticated,
        }
    }
}

/// Why credentials were not loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Files cannot be taken; all of them are told.
    #[error("bad credentials:{}", .0.iter().map(ToString::to_string).collect::<String>())]
    Files(Vec<BadFile>),
}

impl Error {
    /// What the caller can do about it.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Files(_) => Kind::Internal,
        }
    }
}

/// What is wrong with one file of credentials.
#[derive(Debug)]
pub struct BadFile {
    path: PathBuf,
    problems: Vec<String>,
}

impl fmt::Display for BadFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in self.problems.iter().take(TOLD) {
            write!(f, "\n  {}: {problem}", self.path.display())?;
        }
        match self.problems.len().saturating_sub(TOLD) {
            0 => Ok(()),
            more => write!(f, "\n  {}: and {more} more", self.path.display()),
        }
    }
}

/// Tells principals from strangers; clones share the credentials.
#[derive(Debug, Clone)]
pub struct Authenticator(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    config: config::Auth,
    credentials: RwLock<Arc<Credentials>>,
}

/// What one reading of the files gave. `None` is a kind of credential that is off.
#[derive(Debug)]
struct Credentials {
    tokens: Option<tokens::Tokens>,
    keys: Option<jwt::Keys>,
}

/// Whose a token is, and until when it counts; `None`: as long as the file says so.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    principal: Principal,
    end: Option<SystemTime>,
}

/// A token that was found good, for whoever sees it again and again, such as a connection: to verify a JWT
/// costs more than the rest of a call does.
pub struct Known {
    header: Box<[u8]>,
    /// The files may be read again. What was read before is not kept for this.
    of: Weak<Credentials>,
    end: Option<SystemTime>,
    principal: Principal,
}

impl Known {
    fn new(header: &HeaderValue, credentials: &Arc<Credentials>, found: &Found) -> Option<Self> {
        let Found { principal, end } = found;
        (header.len() <= KNOWN_BYTES).then(|| Self {
            // Copied: it may be a piece of all that was read with it.
            header: header.as_bytes().into(),
            of: Arc::downgrade(credentials),
            end: *end,
            principal: principal.clone(),
        })
    }

    /// Whether this is it still.
    fn is(&self, header: &HeaderValue, credentials: &Arc<Credentials>) -> bool {
        // In a time that tells no more than the length: behind a proxy others may share the connection.
        bool::from(header.as_bytes().ct_eq(&self.header))
            && std::ptr::eq(self.of.as_ptr(), Arc::as_ptr(credentials))
            && self.end.is_none_or(|end| SystemTime::now() < end)
    }
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Known").field("principal", &self.principal).finish_non_exhaustive()
    }
}

/// How many credentials there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// Entries of the tokens file.
    pub tokens: usize,
    /// Keys that JWTs can be signed with.
    pub keys: usize,
}

impl Authenticator {
    /// Reads and checks the files; the error tells what is wrong with each. Blocks.
    pub fn load(config: &config::Auth) -> Result<Self, Error> {
        let credentials = RwLock::new(Arc::new(Credentials::load(config)?));
        Ok(Self(Arc::new(Shared { config: config.clone(), credentials })))
    }

    /// Reads the files again and takes all of them over, or none: a bad file keeps what was good.
    /// Blocks.
    pub fn reload(&self) -> Result<Loaded, Error> {
        let credentials = Arc::new(Credentials::load(&self.0.config)?);
        let loaded = credentials.count();
        *self.0.credentials.write().unwrap_or_else(PoisonError::into_inner) = credentials;
        Ok(loaded)
    }

    /// How many credentials there are; `None` where none are configured and anybody may call.
    pub fn loaded(&self) -> Option<Loaded> {
        (!self.is_open()).then(|| self.credentials().count())
    }

    /// The principal of a request as far as nothing has to be looked up or verified: of a token that is
    /// `known`, or anybody.
    pub fn recall(
        &self,
        headers: &HeaderMap,
        certificate: Option<&[u8]>,
        known: Option<&Known>,
    ) -> Option<Principal> {
        if self.is_open() {
            return certificate.is_none().then(Principal::anonymous);
        }
        let (header, known) = (authorization(headers).ok()??, known?);
        known.is(header, &self.credentials()).then(|| known.principal.clone())
    }

    /// The principal of a request: of its bearer token, else of the verified certificate of its
    /// connection; and its token, to [`recall`](Self::recall) it by. Where no credentials are
    /// configured, an `Authorization` header is not looked at: there is nothing to compare it with,
    /// and whoever left it out would get in.
    pub fn authenticate(
        &self,
        headers: &HeaderMap,
        certificate: Option<&[u8]>,
    ) -> Result<(Principal, Option<Known>), Refusal> {
        if !self.is_open()
            && let Some(header) = authorization(headers)?
        {
            // Whoever reads the files again need not wait for this.
            let credentials = Arc::clone(&self.credentials());
            let found = credentials.principal(bearer(header)?).ok_or(Refusal::Invalid)?;
            let known = Known::new(header, &credentials, &found);
            return Ok((found.principal, known));
        }
        let principal = match certificate {
            Some(der) => self.certificate(der)?,
            None if self.is_open() => Principal::anonymous(),
            None => return Err(Refusal::Missing),
        };
        Ok((principal, None))
    }

    /// The principal of a client certificate: its first URI (as SPIFFE has it), else its first DNS
    /// name. The chain is not looked at: whoever ended TLS has verified it.
    pub fn certificate(&self, der: &[u8]) -> Result<Principal, Refusal> {
        let der = CertificateDer::from(der);
        let certificate = EndEntityCert::try_from(&der).map_err(|_| Refusal::Invalid)?;
        let mut names = certificate.valid_uri_names().chain(
            // A wildcard names nobody.
            certificate.valid_dns_names().filter(|name| !name.starts_with('*')),
        );
        names
            .next()
            .and_then(|name| Principal::new(name, self.0.config.certificate_scopes))
            .ok_or(Refusal::Invalid)
    }

    fn is_open(&self) -> bool {
        self.0.config.files().next().is_none()
    }

    fn credentials(&self) -> RwLockReadGuard<'_, Arc<Credentials>> {
        self.0.credentials.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Credentials {
    fn load(config: &config::Auth) -> Result<Self, Error> {
        let mut bad = Vec::new();
        let tokens = read(config.tokens_file.as_deref(), &mut bad, tokens::Tokens::parse);
        let keys = read(config.jwks_file.as_deref(), &mut bad, |text| {
            jwt::Keys::parse(text, &config.audience, &config.issuer)
        });
        if bad.is_empty() { Ok(Self { tokens, keys }) } else { Err(Error::Files(bad)) }
    }

    fn count(&self) -> Loaded {
        Loaded {
            tokens: self.tokens.as_ref().map_or(0, tokens::Tokens::len),
            keys: self.keys.as_ref().map_or(0, jwt::Keys::len),
        }
    }

    fn principal(&self, token: &str) -> Option<Found> {
        let jwt = self.keys.as_ref().filter(|_| token.matches('.').count() == 2);
        if let Some(keys) = jwt {
            match keys.principal(token) {
                Ok(found) => return Some(found),
                // For the operator: callers are told nothing.
                Err(why) => debug!(why, "not a valid JWT"),
            }
        }
        let principal = self.tokens.as_ref()?.principal(token)?.clone();
        Some(Found { principal, end: None })
    }
}

/// Reads a file and parses it; what is wrong goes to `bad`.
fn read<T>(
    path: Option<&Path>,
    bad: &mut Vec<BadFile>,
    parse: impl FnOnce(&str) -> Result<T, Vec<String>>,
) -> Option<T> {
    let path = path?;
    let parsed = std::fs::read_to_string(path)
        .map_err(|error: io::Error| vec![format!("cannot be read: {error}")])
        .and_then(|text| parse(&text));
    parsed.map_err(|problems| bad.push(BadFile { path: path.to_owned(), problems })).ok()
}

/// The `Authorization` header, if there is one. Two are refused: a proxy in front may have looked at the
/// other one.
fn authorization(headers: &HeaderMap) -> Result<Option<&HeaderValue>, Refusal> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (value, more) = (values.next(), values.next());
    if more.is_some() { Err(Refusal::Invalid) } else { Ok(value) }
}

/// The token of an `Authorization` header.
fn bearer(header: &HeaderValue) -> Result<&str, Refusal> {
    let text = header.to_str().map_err(|_| Refusal::Invalid)?;
    let (scheme, token) = text.split_once(' ').ok_or(Refusal::Invalid)?;
    let token = token.trim_matches(' ');
    let good = scheme.eq_ignore_ascii_case("bearer")
        && (1..=TOKEN_BYTES).contains(&token.len())
        && token.bytes().all(|byte| byte.is_ascii_graphic());
    if good { Ok(token) } else { Err(Refusal::Invalid) }
}

#[cfg(test)]
mod tests;
