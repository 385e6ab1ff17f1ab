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
    auth::{Authenticator, Loaded},
    config::{self, Config, Setting, Sources},
    engine::openai,
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
    /// Who may call the main port.
    pub credentials: Authenticator,
    /// The key of the model's server, if there is one.
    pub model_key: Option<openai::Key>,
    /// How the files looked before they were read.
    pub files: Files,
}

/// What tells one state of a file from another without reading it.
type Fingerprint = Option<(u64, u64, i64, i64)>;

/// How the files look that are looked at.
#[derive(Debug, PartialEq, Eq)]
pub struct Files {
    settings: Fingerprint,
    knowledge: Fingerprint,
    certificates: Vec<Fingerprint>,
    credentials: Vec<Fingerprint>,
    model_key: Fingerprint,
}

fn fingerprint(path: Option<&PathBuf>) -> Fingerprint {
    let metadata = fs::metadata(path?).ok()?;
    Some((metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
}

fn fingerprint_of(path: &PathBuf) -> Fingerprint {
    fingerprint(Some(path))
}

impl Files {
    /// How they look now. To be taken before they are read: what changes from then on is read again.
    pub fn look(sources: &Sources, config: &Config) -> Self {
        Self {
            settings: fingerprint(sources.file.as_ref()),
            knowledge: fingerprint(config.knowledge.path.as_ref()),
            certificates: config
                .tls
                .iter()
                .flat_map(config::Tls::files)
                .map(fingerprint_of)
                .collect(),
            credentials: config.auth.files().map(fingerprint_of).collect(),
            model_key: fingerprint(
                config.upstream.as_ref().and_then(|upstream| upstream.api_key_file.as_ref()),
            ),
        }
    }
}

impl Reload {
    /// Reloads on SIGHUP and when a file of settings, knowledge, certificates, credentials or the
    /// model's key changes, until `closing` is cancelled.
    pub async fn run(mut self, closing: CancellationToken) {
        let mut hangup = match signal(SignalKind::hangup()) {
            Ok(hangup) => hangup,
            Err(error) => {
                error!(%error, "cannot reload on SIGHUP");
                return closing.cancelled().await;
            }
        };
        loop {
            let asked = tokio::select! {
                () = closing.cancelled() => return,
                _ = hangup.recv() => true,
                () = tokio::time::sleep(LOOK) => false,
            };
            let now = Files::look(&self.sources, &self.config);
            // First, and by itself: a token that leaked is gone even while the settings are bad.
            if asked || now.credentials != self.files.credentials {
                self.reload_credentials().await;
            }
            if asked || now.certificates != self.files.certificates {
                self.reload_certificates().await;
            }
            if asked || now.model_key != self.files.model_key {
                self.reload_model_key().await;
            }
            let knowledge = asked || now.knowledge != self.files.knowledge;
            if knowledge || now.settings != self.files.settings {
                self.reload(knowledge).await;
            }
            // Not how they look by now: what changed while it was read is read again.
            self.files = now;
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

    async fn reload_credentials(&self) {
        let credentials = self.credentials.clone();
        if credentials.loaded().is_none() {
            return;
        }
        match tokio::task::spawn_blocking(move || credentials.reload()).await {
            Ok(Ok(Loaded { tokens, keys })) => info!(tokens, keys, "credentials reloaded"),
            Ok(Err(error)) => error!(%error, "credentials not reloaded, the old stay"),
            Err(error) => error!(%error, "credentials not reloaded, the old stay"),
        }
    }

    async fn reload_model_key(&self) {
        let Some(key) = self.model_key.clone() else { return };
        match tokio::task::spawn_blocking(move || key.reload()).await {
            Ok(Ok(())) => info!("the model's key is reloaded"),
            Ok(Err(error)) => error!(%error, "the model's key is not reloaded, the old one stays"),
            Err(error) => error!(%error, "the model's key is not reloaded, the old one stays"),
        }
    }

    async fn reload(&mut self, knowledge: bool) {
        let (config, settings) = match Config::load_with_settings(&self.sources) {
            Ok(loaded) => loaded,
            Err(problems) => return error!(%problems, "not reloaded, the old settings stay"),
        };
        for setting in &settings {
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
        // The files of credentials and certificates are those that were named at the start.
        let (auth, tls) = (self.config.auth.clone(), self.config.tls.clone());
        let upstream = self.config.upstream.clone();
        self.config = Config { auth, upstream, tls, ..config };
        self.settings = settings;
    }
}
