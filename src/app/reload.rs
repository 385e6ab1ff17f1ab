//! Reload: what can change while the service runs, on SIGHUP or when a file changes.
//!
//! Files are looked at every few seconds instead of watched: a mounted ConfigMap changes by a swap of
//! symbolic links two levels up, which file watches miss or see too early. A bad new state keeps the
//! last good one and says so.

use std::{fs, path::PathBuf, time::Duration};

use std::os::unix::fs::MetadataExt as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    config::{Config, Setting, Sources},
    knowledge::{Base, Reloader},
    net,
    telemetry::LogFilter,
};

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// Settings that are taken over at once; all others need a restart.
const RELOADABLE: [&str; 2] = ["telemetry.log_filter", "knowledge.path"];

/// Takes over what can be. Run it as a task.
#[derive(Debug)]
pub struct Reload {
    /// Where the configuration came from, and will again.
    pub sources: Sources,
    /// What is in force.
    pub config: Config,
    /// What was set, to tell what has changed.
    pub settings: Vec<Setting>,
    /// Changes the log filter.
    pub log_filter: LogFilter,
    /// Changes the base of the knowledge base.
    pub knowledge: Reloader,
    /// The certificate, if there is one.
    pub tls: Option<net::Tls>,
}

/// What tells one state of a file from another without reading it.
type Fingerprint = Option<(u64, u64, i64, i64)>;

/// The files that are looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Files {
    settings: Fingerprint,
    knowledge: Fingerprint,
    certificates: Vec<Fingerprint>,
}

fn fingerprint(path: Option<&PathBuf>) -> Fingerprint {
    let metadata = fs::metadata(path?).ok()?;
    Some((metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
}

impl Reload {
    /// Reloads on SIGHUP and when the configuration or knowledge file changes, until `closing` is
    /// cancelled.
    pub async fn run(mut self, closing: CancellationToken) {
        let mut hangup = match signal(SignalKind::hangup()) {
            Ok(hangup) => hangup,
            Err(error) => {
                error!(%error, "cannot reload on SIGHUP");
                return closing.cancelled().await;
            }
        };
        let mut files = self.fingerprints();
        loop {
            let asked = tokio::select! {
                () = closing.cancelled() => return,
                _ = hangup.recv() => true,
                () = tokio::time::sleep(LOOK) => false,
            };
            let now = self.fingerprints();
            if asked || now.certificates != files.certificates {
                self.reload_certificates().await;
            }
            if asked || now.settings != files.settings || now.knowledge != files.knowledge {
                self.reload(asked || now.knowledge != files.knowledge).await;
            }
            // As they were before they were read: a change in between is seen the next time.
            files = now;
        }
    }

    fn fingerprints(&self) -> Files {
        let tls = self.config.tls.as_ref();
        let certificates = tls.map_or_else(Vec::new, |tls| {
            vec![Some(&tls.cert_file), Some(&tls.key_file), tls.client_ca_file.as_ref()]
        });
        Files {
            settings: fingerprint(self.sources.file.as_ref()),
            knowledge: fingerprint(self.config.knowledge.path.as_ref()),
            certificates: certificates.into_iter().map(fingerprint).collect(),
        }
    }

    async fn reload_certificates(&self) {
        let Some(tls) = self.tls.clone() else { return };
        match tokio::task::spawn_blocking(move || tls.reload()).await {
            Ok(Ok(())) => info!("certificate reloaded"),
            Ok(Err(error)) => error!(%error, "certificate not reloaded, the old one stays"),
            Err(error) => error!(%error, "certificate not reloaded, the old one stays"),
        }
    }

    async fn reload(&mut self, knowledge: bool) {
        let (config, settings) = match Config::load_with_settings(&self.sources) {
            Ok(loaded) => loaded,
            Err(problems) => return error!(%problems, "not reloaded, the old settings stay"),
        };
        for setting in settings.iter().filter(|setting| !self.settings.contains(setting)) {
            let same = |old: &&Setting| old.key == setting.key && old.toml == setting.toml;
            if !self.settings.iter().any(|old| same(&old))
                && !RELOADABLE.contains(&setting.key.as_str())
            {
                warn!(key = setting.key, value = setting.toml, "changed, needs a restart");
            }
        }
        if config.telemetry.log_filter != self.config.telemetry.log_filter {
            let filter = &config.telemetry.log_filter;
            match self.log_filter.set(filter) {
                Ok(()) => info!(filter, "log filter changed"),
                Err(error) => error!(%error, "log filter not changed"),
            }
        }
        if knowledge || config.knowledge.path != self.config.knowledge.path {
            match self.knowledge.reload(Base::of_path(config.knowledge.path.as_deref())).await {
                Some(Ok(entries)) => info!(entries, "knowledge reloaded"),
                Some(Err(error)) => error!(%error, "knowledge not reloaded, the old stays"),
                // The feed has ended: so does the process.
                None => {}
            }
        }
        self.config = config;
        self.settings = settings;
    }
}
