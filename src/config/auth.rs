//! `auth`: who may call the main port, and what for.
//!
//! Credentials are in files, never in settings: settings end up in dumps, process lists and
//! manifests. A file that is not named is a kind of credential that is off; with none named,
//! anybody may call.

use std::{fmt, path::PathBuf};

use super::settings::Settings;

/// The keys that a JWKS file needs beside it.
const JWT_KEYS: [&str; 2] = ["auth.audience", "auth.issuer"];

/// Credentials of the main port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Auth {
    /// The hashes of bearer tokens, with names and scopes; read again when it changes.
    pub tokens_file: Option<PathBuf>,
    /// The public keys that JWTs are signed with, as a JWK set; read again when it changes.
    pub jwks_file: Option<PathBuf>,
    /// The audience that a JWT must be meant for.
    pub audience: String,
    /// The issuer that a JWT must be from.
    pub issuer: String,
    /// What the holder of a client certificate may do.
    pub certificate_scopes: Scopes,
}

impl Auth {
    /// The files that hold credentials.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.tokens_file.iter().chain(&self.jwks_file)
    }

    pub(super) fn check(settings: &mut Settings) -> Self {
        let path = |text: String| (!text.is_empty()).then(|| PathBuf::from(text));
        let tokens_file = path(settings.take("auth.tokens_file", String::new()));
        let jwks_file = path(settings.take("auth.jwks_file", String::new()));
        let [audience, issuer] = JWT_KEYS.map(|key| {
            let value = settings.take(key, String::new());
            if jwks_file.is_some() && value.is_empty() {
                // A key set is often shared by all services of an issuer: without both checks, a
                // token for any of them would do.
                settings.problem(key, "must be set where auth.jwks_file is");
            }
            value
        });
        let listed = settings.take("auth.certificate_scopes", Scopes::ALL.to_string());
        let certificate_scopes = Scopes::parse_list(&listed).unwrap_or_else(|what| {
            settings.problem("auth.certificate_scopes", what);
            Scopes::default()
        });
        Self { tokens_file, jwks_file, audience, issuer, certificate_scopes }
    }
}

/// A right that a credential can carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// To ask, and to talk.
    Chat,
    /// To change what the bot knows.
    Teach,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 2] = [Self::Chat, Self::Teach];

    /// The scope of a name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.name() == name)
    }

    /// Its name in files, tokens and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Teach => "teach",
        }
    }
}

/// A set of scopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scopes {
    chat: bool,
    teach: bool,
}

impl Scopes {
    /// All of them.
    pub const ALL: Self = Self { chat: true, teach: true };

    /// Whether `scope` is one of them.
    pub fn contains(self, scope: Scope) -> bool {
        match scope {
            Scope::Chat => self.chat,
            Scope::Teach => self.teach,
        }
    }

    /// Reads `chat,teach`; empty is none. The error does not repeat the text, which in a file of
    /// credentials may be one in the wrong column.
    pub fn parse_list(list: &str) -> Result<Self, String> {
        let names = list.split(',').map(str::trim).filter(|name| !name.is_empty());
        let scopes: Option<Self> = names.map(Scope::of_name).collect();
        scopes.ok_or_else(|| format!("must be scopes of \"{}\", separated by commas", Self::ALL))
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        let mut all = Self::default();
        for scope in scopes {
            match scope {
                Scope::Chat => all.chat = true,
                Scope::Teach => all.teach = true,
            }
        }
        all
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> =
            Scope::ALL.into_iter().filter(|scope| self.contains(*scope)).map(Scope::name).collect();
        f.write_str(&names.join(","))
    }
}
