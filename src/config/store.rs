//! `store`: where the log is.

use std::path::PathBuf;

use super::settings::Settings;

/// The log's place.
#[derive(Debug, Clone, PartialEq)]
pub struct Store {
    /// Which store, and where.
    pub url: StoreUrl,
}

/// The stores of this version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// One file on this machine.
    File(PathBuf),
    /// Nothing outlives the process.
    Memory,
}

impl Store {
    pub(super) fn check(settings: &mut Settings) -> Self {
        let url = settings.take("store.url", "redb:data/chatbot.redb".to_owned());
        let url = match url.split_once(':') {
            Some(("memory", "")) => StoreUrl::Memory,
            Some(("redb", path)) if !path.is_empty() => StoreUrl::File(PathBuf::from(path)),
            _ => {
                settings.problem(
                    "store.url",
                    "must be \"redb:PATH\" for a file on this machine, or \"memory:\"",
                );
                StoreUrl::Memory
            }
        };
        Self { url }
    }
}
