//! `store`: where the log is.

use std::{ops::RangeInclusive, path::PathBuf, time::Duration};

use super::{
    redis::{Keys, Redis, UrlText},
    settings::Settings,
};

/// Least and most that a lease can be.
const LEASE: RangeInclusive<Duration> = Duration::from_millis(500)..=Duration::from_mins(1);
/// Least that the log is kept: a client has to be able to come back.
const RETENTION_FLOOR: Duration = Duration::from_hours(1);

/// The log's place, and how it is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Store {
    /// Which store, and where.
    pub url: StoreUrl,
    /// How long a conversation is kept after its last event.
    pub retention: Duration,
    /// How long a turn's owner may be silent before another replica takes over.
    pub lease: Duration,
    /// How long a turn goes on with nobody reading.
    pub detach_grace: Duration,
}

/// The stores of this version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// One file on this machine.
    File(PathBuf),
    /// Nothing outlives the process.
    Memory,
    /// A Redis or Valkey server, or several.
    Redis(Redis),
}

impl Store {
    pub(super) fn check(settings: &mut Settings) -> Self {
        let UrlText(url) = settings.take("store.url", UrlText("redb:data/chatbot.redb".to_owned()));
        let keys = Keys::check(settings);
        let url = Self::check_url(settings, &url, keys);
        let retention = settings.take("store.retention", Duration::from_hours(7 * 24));
        if retention < RETENTION_FLOOR {
            settings.problem("store.retention", "must be at least 1h");
        }
        let lease = settings.take("store.lease", Duration::from_secs(5));
        if !LEASE.contains(&lease) {
            settings.problem("store.lease", "must be between 500ms and 1m");
        }
        let detach_grace = settings.take("store.detach_grace", Duration::from_mins(1));
        Self { url, retention, lease, detach_grace }
    }

    fn check_url(settings: &mut Settings, url: &str, keys: Keys) -> StoreUrl {
        if Redis::is_meant(url) {
            return match Redis::parse(url, keys) {
                Ok(redis) => StoreUrl::Redis(redis),
                Err(what) => {
                    settings.problem("store.url", what);
                    StoreUrl::Memory
                }
            };
        }
        keys.refuse(settings);
        match url.split_once(':') {
            Some(("memory", "")) => StoreUrl::Memory,
            Some(("redb", path)) if !path.is_empty() => StoreUrl::File(PathBuf::from(path)),
            _ => {
                settings.problem(
                    "store.url",
                    "must be \"redb:PATH\" for a file on this machine, \"memory:\", or \"redis://HOST:PORT/0\"",
                );
                StoreUrl::Memory
            }
        }
    }
}
