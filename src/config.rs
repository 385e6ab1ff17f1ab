//! The configuration: raw settings from four layers, checked into plain data.
//!
//! Layers, later ones win: the defaults of the sections, a TOML or YAML file, environment variables
//! `CHATBOT__SECTION__KEY`, and `--set section.key=value`. Every problem is found in one go and
//! names where its value came from, because a pod that fails once per mistake costs a rollout each
//! time. Unknown keys are problems too: a misspelt limit that is silently ignored is no limit.
//!
//! A module gets its own section, never the whole `Config`.

mod auth;
mod engine;
mod knowledge;
mod limits;
mod ops;
mod redis;
mod server;
mod settings;
mod store;
mod telemetry;
mod tls;
mod upstream;
mod web;

use std::{fmt, net::SocketAddr, path::PathBuf};

use self::settings::Settings;
pub use self::{
    auth::{Auth, Scope, Scopes},
    engine::{DefaultEngine, Engine},
    knowledge::Knowledge,
    limits::Limits,
    ops::Ops,
    redis::{Address, Redis, Secret, Topology},
    server::{Connections, Server},
    settings::{Environment, Problem, Setting},
    store::{Store, StoreUrl},
    telemetry::{LogFormat, Telemetry},
    tls::Tls,
    upstream::Upstream,
    web::Web,
};

/// Where the settings come from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// A TOML (`.toml`) or YAML (`.yaml`, `.yml`) file.
    pub file: Option<PathBuf>,
    /// The environment, taken as a value so that tests need not change the process's own.
    pub environment: Environment,
    /// `section.key=value` pairs from the command line.
    pub overrides: Vec<String>,
}

/// The checked configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The main port and its drain.
    pub server: Server,
    /// The ops port.
    pub ops: Ops,
    /// Credentials of the main port.
    pub auth: Auth,
    /// The log of conversations and of knowledge.
    pub store: Store,
    /// The knowledge base.
    pub knowledge: Knowledge,
    /// How answers are made.
    pub engine: Engine,
    /// The model; `None`: there is none.
    pub upstream: Option<Upstream>,
    /// Limits on requests.
    pub limits: Limits,
    /// Logs and traces.
    pub telemetry: Telemetry,
    /// TLS on the main port; `None`: plaintext.
    pub tls: Option<Tls>,
    /// Browsers.
    pub web: Web,
}

/// Everything that is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        let noun = if count == 1 { "problem" } else { "problems" };
        write!(f, "the configuration has {count} {noun}:")?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl Config {
    /// Reads all sources and checks every section; the error holds every problem.
    pub fn load(sources: &Sources) -> Result<Self, Problems> {
        Self::load_with_settings(sources).map(|(config, _)| config)
    }

    /// The ops address alone, whatever is wrong with the other settings; the default if it is wrong
    /// itself.
    pub fn ops_address(sources: &Sources) -> SocketAddr {
        Ops::check(&mut Settings::read(sources)).address
    }

    /// Like [`Config::load`], with each setting as it stands and where it came from.
    pub fn load_with_settings(sources: &Sources) -> Result<(Self, Vec<Setting>), Problems> {
        let mut settings = Settings::read(sources);
        let config = Self {
            server: Server::check(&mut settings),
            ops: Ops::check(&mut settings),
            auth: Auth::check(&mut settings),
            store: Store::check(&mut settings),
            knowledge: Knowledge::check(&mut settings),
            engine: Engine::check(&mut settings),
            upstream: Upstream::check(&mut settings),
            limits: Limits::check(&mut settings),
            telemetry: Telemetry::check(&mut settings),
            tls: Tls::check(&mut settings),
            web: Web::check(&mut settings),
        };
        if config.server.address == config.ops.address && config.server.address.port() != 0 {
            settings.problem(
                "ops.address",
                "must differ from server.address: probes need a port of their own",
            );
        }
        if config.engine.default.needs_a_model() && config.upstream.is_none() {
            settings.problem(
                "engine.default",
                "needs a model: set upstream.base_url and upstream.model",
            );
        }
        settings.finish().map(|listed| (config, listed))
    }
}

#[cfg(test)]
mod tests;
