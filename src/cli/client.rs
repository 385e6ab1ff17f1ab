//! What the commands that call a server share: its address, one channel, exit codes.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use super::EXIT_USAGE;

/// Why a call from the command line failed. The exit codes are those of `grpc_health_probe`, where
/// it has them.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("{0}")]
    Usage(String),
    #[error("cannot connect to {address}: {why}")]
    Connect { address: String, why: String },
    #[error("call failed: {} ({:?})", .0.message(), .0.code())]
    Call(Status),
}

impl Failure {
    #[expect(clippy::print_stdout, reason = "the one line that a probe's log shows")]
    pub(super) fn report(&self) -> ExitCode {
        println!("{self}");
        ExitCode::from(match self {
            Self::Usage(_) => EXIT_USAGE,
            Self::Connect { .. } => 2,
            Self::Call(_) => 3,
        })
    }
}

/// The server did what it was asked, and the answer is no.
pub(super) const EXIT_NO: u8 = 4;

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

/// Opens a channel to `address`, `HOST:PORT` with or without `http://`. Connecting and each call
/// may take `limit`.
pub(super) async fn connect(address: &str, limit: Duration) -> Result<Channel, Failure> {
    let uri =
        if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
    let endpoint = Endpoint::from_shared(uri)
        .map_err(|_| Failure::Usage(format!("{address:?} is no address, write HOST:PORT")))?
        .connect_timeout(limit)
        .timeout(limit);
    let why = match tokio::time::timeout(limit, endpoint.connect()).await {
        Ok(Ok(channel)) => return Ok(channel),
        Ok(Err(error)) => root_cause(&error),
        Err(_) => format!("no answer within {}", humantime::format_duration(limit)),
    };
    Err(Failure::Connect { address: address.to_owned(), why })
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}
