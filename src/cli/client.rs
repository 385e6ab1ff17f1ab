//! What the commands that call a server share: where it is, how it is spoken to, exit codes.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, ValueEnum};

use super::EXIT_USAGE;
use crate::{
    client::{Credential, Error, Tls},
    pb::chatbot::v1 as proto,
};

/// How a server is spoken to.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct Connection {
    /// Speak TLS, and trust the authorities of this machine
    #[arg(long)]
    tls: bool,

    /// Speak TLS, and trust only the authorities of this PEM file
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,

    /// The client's certificate, a PEM file
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,

    /// The key of the client's certificate, a PEM file
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,

    /// The name that the server's certificate has to have [default: the host of the address]
    #[arg(long, value_name = "NAME")]
    tls_server_name: Option<String>,

    /// A file with the bearer token [default: the variable `CHATBOT_TOKEN`, else none]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl Connection {
    /// A client's options for these addresses.
    pub(super) fn options(self, addresses: Vec<String>) -> crate::client::Options {
        let Self { tls, tls_ca, tls_cert, tls_key, tls_server_name, token_file } = self;
        let mut options = crate::client::Options::new(addresses);
        if tls || tls_ca.is_some() || tls_cert.is_some() || tls_server_name.is_some() {
            options.tls = Some(Tls {
                ca_file: tls_ca,
                identity_files: tls_cert.zip(tls_key),
                server_name: tls_server_name,
            });
        }
        // No flag has the token itself: a command line is for everybody to read.
        let token = std::env::var("CHATBOT_TOKEN").ok().filter(|token| !token.is_empty());
        options.credential = match (token_file, token) {
            (Some(file), _) => Credential::File(file),
            (None, Some(token)) => Credential::Token(token),
            (None, None) => Credential::None,
        };
        options
    }
}

/// How answers are made, on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Engine {
    Retrieval,
    Generative,
    Augmented,
}

impl From<Engine> for proto::Engine {
    fn from(engine: Engine) -> Self {
        match engine {
            Engine::Retrieval => Self::Retrieval,
            Engine::Generative => Self::Generative,
            Engine::Augmented => Self::RetrievalAugmented,
        }
    }
}

/// Why a command failed. The exit codes are those of `grpc_health_probe`, where it has them.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Client(#[from] Error),
}

impl Failure {
    #[expect(clippy::print_stdout, reason = "the one line that a probe's log shows")]
    pub(super) fn report(&self) -> ExitCode {
        println!("{self}");
        self.code()
    }

    pub(super) fn code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Usage(_) | Self::Client(Error::Options(_)) => EXIT_USAGE,
            Self::Client(Error::Connect { .. }) => 2,
            Self::Client(_) => 3,
        })
    }
}

/// The server did what it was asked, and the answer is no.
pub(super) const EXIT_NO: u8 = 4;

/// Ended by Ctrl-C, as shells tell it.
pub(super) const EXIT_INTERRUPTED: u8 = 130;

/// Runs a call on a small runtime of its own.
pub(super) fn block_on(call: impl Future<Output = Result<ExitCode, Failure>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(call).unwrap_or_else(|failure| failure.report()),
        Err(error) => Failure::Usage(format!("cannot start a runtime: {error}")).report(),
    }
}

/// Where a server of this configuration is reached from its own machine.
pub(super) fn local(address: SocketAddr) -> String {
    let ip =
        if address.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { address.ip() };
    SocketAddr::new(ip, address.port()).to_string()
}

/// The addresses that were given, or that of the settings.
pub(super) fn addresses(
    given: &[String],
    sources: &crate::config::Sources,
) -> Result<Vec<String>, ExitCode> {
    if given.is_empty() {
        let (config, _) = super::load(sources)?;
        return Ok(vec![local(config.server.address)]);
    }
    Ok(given.to_vec())
}
