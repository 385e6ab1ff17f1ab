//! `chatbot health`: a probe for places where the kubelet's own is not, such as docker-compose.
//!
//! By default it asks the ops port of this machine's server, in plaintext, as the kubelet does. One
//! line on standard output; exit code 0 if SERVING, 64 for a wrong command line, 2 if nothing
//! answers, 3 if the call fails, 4 if not SERVING.
//!
//! With `--watch` a line for each change, UNREACHABLE among them, until a signal; then the exit code is
//! that of the last line.

use std::{process::ExitCode, time::Duration};

use clap::Args;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};

use super::client::{Connection, EXIT_NO, Failure, block_on, local};
use crate::{
    client::{self, Client, Error, Patience},
    config::{Config, Sources},
    pb::health::v1::health_check_response::ServingStatus,
};

/// Between two looks at a server that cannot be reached.
const RECONNECT: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct Options {
    /// The server, HOST:PORT [default: the ops port of the settings, on this machine]
    #[arg(long, value_name = "HOST:PORT")]
    addr: Option<String>,

    /// The service: empty, chatbot.v1.Chatbot, liveness, readiness or startup
    #[arg(long, default_value = "")]
    service: String,

    /// Time for connecting, and for the answer
    #[arg(long, default_value = "3s", value_parser = humantime::parse_duration)]
    timeout: Duration,

    /// Time for connecting [default: --timeout]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    connect_timeout: Option<Duration>,

    /// Time for the answer [default: --timeout]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    rpc_timeout: Option<Duration>,

    /// Go on, and print each change
    #[arg(long)]
    watch: bool,

    #[command(flatten)]
    connection: Connection,
}

pub(super) fn run(sources: &Sources, options: Options) -> ExitCode {
    // A probe must not fail for a setting that the running server does not mind.
    let address = options.addr.clone().unwrap_or_else(|| local(Config::ops_address(sources)));
    block_on(check(address, options))
}

async fn check(address: String, options: Options) -> Result<ExitCode, Failure> {
    let Options { service, timeout, connect_timeout, rpc_timeout, watch, connection, .. } = options;
    let client = Client::new(client::Options {
        connect_timeout: connect_timeout.unwrap_or(timeout),
        limit: Some(rpc_timeout.unwrap_or(timeout)),
        // A probe tells what it finds.
        patience: Patience { budget: Duration::ZERO, ..Patience::default() },
        ..connection.options(vec![address])
    })?;
    client.connect().await?;
    if watch {
        return self::watch(&client, &service).await;
    }
    let status = client.health(&service).await?.status();
    tell(status.as_str_name());
    Ok(code(status == ServingStatus::Serving))
}

async fn watch(client: &Client, service: &str) -> Result<ExitCode, Failure> {
    let no_signal = |error| Failure::Usage(format!("signals cannot be heard: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signal)?;
    let mut last = None;
    tokio::select! {
        failed = follow(client, service, &mut last) => Err(failed.into()),
        _ = terminate.recv() => Ok(code(last == Some(ServingStatus::Serving.as_str_name()))),
        _ = interrupt.recv() => Ok(code(last == Some(ServingStatus::Serving.as_str_name()))),
    }
}

/// Prints each change, over connections that come and go; ends only when the server's answer is no.
async fn follow(client: &Client, service: &str, last: &mut Option<&'static str>) -> Error {
    loop {
        match client.watch_health(service).await {
            Ok(mut stream) => {
                while let Ok(Some(response)) = stream.message().await {
                    change(last, response.status().as_str_name());
                }
            }
            Err(Error::Call(status)) if client::Fate::of(&status) == client::Fate::Answered => {
                return Error::Call(status);
            }
            Err(Error::Options(why)) => return Error::Options(why),
            Err(_) => {}
        }
        // One connection may end without the server being gone; two in a row may not.
        if client.connect().await.is_err() {
            change(last, "UNREACHABLE");
            sleep(RECONNECT).await;
        }
    }
}

fn change(last: &mut Option<&'static str>, now: &'static str) {
    if last.replace(now) != Some(now) {
        tell(now);
    }
}

#[expect(clippy::print_stdout, reason = "this is its output")]
fn tell(line: &str) {
    println!("{line}");
}

fn code(serving: bool) -> ExitCode {
    if serving { ExitCode::SUCCESS } else { ExitCode::from(EXIT_NO) }
}
