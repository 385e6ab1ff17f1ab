//! The `redis:` stores: where their servers are, and how they are spoken to.
//!
//! A URL of this kind may hold a password, so no text that is made here repeats any of it.

use std::{fmt, path::PathBuf};

use percent_encoding::percent_decode_str;

use super::settings::{FromSetting, Settings, quoted};

/// Where a server listens that says nothing else.
const PORT: u16 = 6379;
/// Where a sentinel listens that says nothing else.
const SENTINEL_PORT: u16 = 26379;
/// Most replicas that a write can wait for.
const REPLICAS: u32 = 5;

/// A Redis or Valkey store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redis {
    /// What the addresses are.
    pub topology: Topology,
    /// Where they listen; never empty.
    pub addresses: Vec<Address>,
    /// Whether they speak TLS.
    pub tls: bool,
    /// The user, if not the default one.
    pub user: Option<String>,
    /// The password in the URL.
    pub password: Option<Secret>,
    /// The database's number.
    pub database: u32,
    /// The file that holds the password, in place of the URL's. Read again for each connection.
    pub password_file: Option<PathBuf>,
    /// The authorities of the servers' certificates, PEM. `None`: those of the system.
    pub ca_file: Option<PathBuf>,
    /// Replicas that have to hold a write before it is acknowledged.
    pub wait_replicas: u32,
    /// What all keys begin with.
    pub key_prefix: String,
}

/// What listens at the addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Topology {
    /// The server itself.
    Single,
    /// Sentinels that know where the primary is.
    Sentinel {
        /// The name by which they know it.
        primary: String,
    },
    /// Some nodes of a cluster.
    Cluster,
}

/// Where somebody listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Address {
    /// A name or an IP address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A URL as a setting: listed without its password.
pub(super) struct UrlText(pub(super) String);

impl FromSetting for UrlText {
    fn parse(value: &config::Value) -> Result<Self, String> {
        String::parse(value).map(Self)
    }

    fn toml(&self) -> String {
        // A password may hold any character, so everything up to the last @ counts as one.
        let parts = self.0.split_once("://").and_then(|(scheme, rest)| {
            let (credentials, place) = rest.rsplit_once('@')?;
            Some((scheme, credentials, place))
        });
        let Some((scheme, credentials, place)) = parts else { return quoted(&self.0) };
        let user = credentials.split_once(':').map_or("", |(user, _)| user);
        quoted(&format!("{scheme}://{user}:***@{place}"))
    }
}

/// The keys that go with a URL of this kind.
pub(super) struct Keys {
    password_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
    wait_replicas: u32,
    key_prefix: String,
}

impl Keys {
    /// Takes them all, so that none is unknown, whatever the URL is.
    pub(super) fn check(settings: &mut Settings) -> Self {
        let path = |text: String| (!text.is_empty()).then(|| PathBuf::from(text));
        let password_file = path(settings.take("store.password_file", String::new()));
        let ca_file = path(settings.take("store.ca_file", String::new()));
        let wait_replicas = settings.take("store.wait_replicas", 0);
        if wait_replicas > REPLICAS {
            settings.problem("store.wait_replicas", format!("must be between 0 and {REPLICAS}"));
        }
        let key_prefix = settings.take("store.key_prefix", "chatbot".to_owned());
        // Braces would move the hash tag, and with it the slot.
        if key_prefix.is_empty()
            || key_prefix.contains(|letter: char| {
                letter.is_whitespace() || letter.is_control() || "{}".contains(letter)
            })
        {
            settings.problem("store.key_prefix", "must be a text without braces or white space");
        }
        Self { password_file, ca_file, wait_replicas, key_prefix }
    }

    /// Notes the keys that mean nothing beside another kind of URL.
    pub(super) fn refuse(&self, settings: &mut Settings) {
        let set = [
            ("store.password_file", self.password_file.is_some()),
            ("store.ca_file", self.ca_file.is_some()),
            ("store.wait_replicas", self.wait_replicas > 0),
        ];
        for (key, set) in set {
            if set {
                settings.problem(key, "takes a store.url that begins with \"redis\" with it");
            }
        }
    }
}

impl Redis {
    /// Whether the URL is meant to be of this kind.
    pub(super) fn is_meant(url: &str) -> bool {
        url.starts_with("redis")
    }

    /// Reads a URL. The error says what is wrong and repeats nothing of it.
    pub(super) fn parse(url: &str, keys: Keys) -> Result<Self, String> {
        let (scheme, rest) = url.split_once("://").ok_or("must go on with \"://\" after redis")?;
        let (tls, kind) = match scheme.split_once('+').unwrap_or((scheme, "")) {
            ("redis", kind) => (false, kind),
            ("rediss", kind) => (true, kind),
            _ => return Err(schemes()),
        };
        let (credentials, place) = match rest.rsplit_once('@') {
            Some((credentials, place)) => (Some(credentials), place),
            None => (None, rest),
        };
        let (user, password) = credentials.map_or(Ok((None, None)), read_credentials)?;
        if place.contains(['?', '#']) {
            return Err("must not have a \"?\" or \"#\" part".to_owned());
        }
        let (hosts, path) = place.split_once('/').unwrap_or((place, ""));
        let port = if kind == "sentinel" { SENTINEL_PORT } else { PORT };
        let addresses: Vec<_> =
            hosts.split(',').map(|host| address(host, port)).collect::<Result<_, _>>()?;
        if kind.is_empty() && addresses.len() > 1 {
            return Err("must name one host; for several: redis+sentinel or redis+cluster".into());
        }
        let (topology, database) = topology(kind, path)?;
        let database = if database.is_empty() { Ok(0) } else { database.parse() };
        let database = database.map_err(|_| "must end in a database's number such as \"/0\"")?;
        let Keys { password_file, ca_file, wait_replicas, key_prefix } = keys;
        if ca_file.is_some() && !tls {
            return Err("must begin with \"rediss\" where store.ca_file is set".to_owned());
        }
        Ok(Self {
            topology,
            addresses,
            tls,
            user,
            password,
            database,
            password_file,
            ca_file,
            wait_replicas,
            key_prefix,
        })
    }
}

/// What the addresses are, and the rest of the path.
fn topology<'a>(kind: &str, path: &'a str) -> Result<(Topology, &'a str), String> {
    match kind {
        "" => Ok((Topology::Single, path)),
        "sentinel" => {
            let (primary, database) = path.split_once('/').unwrap_or((path, ""));
            if primary.is_empty() {
                return Err("must end in the primary's name, as the sentinels know it, such as \
                            redis+sentinel://host:26379/mymaster"
                    .to_owned());
            }
            Ok((Topology::Sentinel { primary: primary.to_owned() }, database))
        }
        "cluster" if path.is_empty() => Ok((Topology::Cluster, "")),
        "cluster" => Err("must not name a database, clusters have only one".to_owned()),
        _ => Err(schemes()),
    }
}

fn schemes() -> String {
    "must begin with \"redis://\", \"redis+sentinel://\" or \"redis+cluster://\", or with \"rediss\" \
     for TLS"
        .to_owned()
}

fn read_credentials(text: &str) -> Result<(Option<String>, Option<Secret>), String> {
    let (user, password) = text.split_once(':').unwrap_or((text, ""));
    let decoded = |text: &str| {
        let text = percent_decode_str(text).decode_utf8();
        text.map(std::borrow::Cow::into_owned)
            .map_err(|_| "must have a user and password in UTF-8, percent-encoded".to_owned())
    };
    let some = |text: String| (!text.is_empty()).then_some(text);
    Ok((some(decoded(user)?), some(decoded(password)?).map(Secret)))
}

fn address(text: &str, port: u16) -> Result<Address, String> {
    let wrong = || "must name hosts and ports such as \"host:6379\" or \"[::1]:6379\"".to_owned();
    let (host, given) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or_else(wrong)?;
            let given = after.strip_prefix(':');
            if given.is_none() && !after.is_empty() {
                return Err(wrong());
            }
            (host, given)
        }
        None => match text.split_once(':') {
            Some((host, given)) => (host, Some(given)),
            None => (text, None),
        },
    };
    if host.is_empty() || host.contains(|letter: char| letter.is_whitespace()) {
        return Err(wrong());
    }
    let port = given.map_or(Ok(port), |given| given.parse().map_err(|_| wrong()))?;
    if port == 0 {
        return Err(wrong());
    }
    Ok(Address { host: host.to_owned(), port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Redis, String> {
        let keys = Keys {
            password_file: None,
            ca_file: None,
            wait_replicas: 0,
            key_prefix: "chatbot".to_owned(),
        };
        Redis::parse(url, keys)
    }

    fn address(host: &str, port: u16) -> Address {
        Address { host: host.to_owned(), port }
    }

    #[test]
    fn a_url_names_servers_and_how_they_are_spoken_to() {
        let plain = parse("redis://cache").expect("a URL");
        assert_eq!(plain.addresses, [address("cache", 6379)]);
        assert_eq!((plain.tls, plain.database, &plain.topology), (false, 0, &Topology::Single));

        let full = parse("rediss://bot:p%40ss:w@[::1]:7000/3").expect("a URL");
        assert_eq!(full.addresses, [address("::1", 7000)]);
        assert_eq!(full.addresses[0].to_string(), "[::1]:7000");
        assert_eq!((full.tls, full.database), (true, 3));
        assert_eq!(full.user.as_deref(), Some("bot"));
        assert_eq!(full.password, Some(Secret("p@ss:w".to_owned())));
        assert!(!format!("{full:?}").contains("p@ss"));

        let sentinel = parse("redis+sentinel://:pw@a,b:1/main/2").expect("a URL");
        assert_eq!(sentinel.addresses, [address("a", 26379), address("b", 1)]);
        assert_eq!(sentinel.topology, Topology::Sentinel { primary: "main".to_owned() });
        assert_eq!((sentinel.database, &sentinel.user), (2, &None));

        let cluster = parse("rediss+cluster://a:1,b:2").expect("a URL");
        assert_eq!((cluster.topology, cluster.addresses.len()), (Topology::Cluster, 2));
    }

    #[test]
    fn a_bad_url_is_refused_without_its_password() {
        let bad = [
            ("redis:host", "must go on with"),
            ("redisx://host", "must begin with"),
            ("redis+ring://host", "must begin with"),
            ("redis://", "must name hosts and ports"),
            ("redis://:secret@host:port", "must name hosts and ports"),
            ("redis://:secret@host:0", "must name hosts and ports"),
            ("redis://:secret@[::1", "must name hosts and ports"),
            ("redis://:secret@a,b", "must name one host"),
            ("redis://:secret@host/zero", "must end in a database's number"),
            ("redis://:secret@host?x=1", "must not have"),
            ("redis+sentinel://:secret@host", "must end in the primary's name"),
            ("redis+cluster://:secret@host/1", "must not name a database"),
            ("redis://:secret%ff@host", "must have a user and password in UTF-8"),
        ];
        for (url, expected) in bad {
            let what = parse(url).expect_err(url);
            assert!(what.starts_with(expected), "{url}: {what}");
            assert!(!what.contains("secret"), "{url}: {what}");
        }
    }

    #[test]
    fn a_password_is_not_listed() {
        for (url, listed) in [
            ("redis://bot:secret@host:1/2", "\"redis://bot:***@host:1/2\""),
            ("redis://:se@c/ret@host", "\"redis://:***@host\""),
            ("redis://host/0", "\"redis://host/0\""),
            ("redb:data/a@b.redb", "\"redb:data/a@b.redb\""),
        ] {
            assert_eq!(UrlText(url.to_owned()).toml(), listed);
        }
    }
}
