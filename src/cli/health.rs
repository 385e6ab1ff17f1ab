//! `chatbot health`: a probe for places where the kubelet's own is not, such as docker-compose.
//!
//! By default it asks the ops port of this machine's server, in plaintext, as the kubelet does. One
//! line on standard output; exit code 0 if SERVING, 64 for a wrong command line, 2 if nothing
//! answers, 3 if the call fails, 4 if not SERVING.

use std::{process::ExitCode, time::Duration};

use clap::Args;
use tonic::Request;

use super::client::{EXIT_NO, Failure, block_on, connect, local};
use crate::{
    config::{Config, Sources},
    pb::health::v1::{
        HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
    },
};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// The server, HOST:PORT [default: the ops port of the settings, on this machine]
    #[arg(long)]
    addr: Option<String>,

    /// The service: empty, chatbot.v1.Chatbot, liveness, readiness or startup
    #[arg(long, default_value = "")]
    service: String,

    /// Time for connecting and for the answer
    #[arg(long, default_value = "3s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

pub(super) fn run(sources: &Sources, options: Options) -> ExitCode {
    // A probe must not fail for a setting that the running server does not mind.
    let address = options.addr.clone().unwrap_or_else(|| local(Config::ops_address(sources)));
    block_on(check(address, options))
}

#[expect(clippy::print_stdout, reason = "this is its output")]
async fn check(address: String, options: Options) -> Result<ExitCode, Failure> {
    let Options { service, timeout, .. } = options;
    let mut client = HealthClient::new(connect(&address, timeout).await?);
    let mut request = Request::new(HealthCheckRequest { service });
    request.set_timeout(timeout);
    let status = client.check(request).await.map_err(Failure::Call)?.into_inner().status();
    println!("{}", status.as_str_name());
    Ok(match status {
        ServingStatus::Serving => ExitCode::SUCCESS,
        _ => ExitCode::from(EXIT_NO),
    })
}
