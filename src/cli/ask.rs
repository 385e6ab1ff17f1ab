//! `chatbot ask`: one question, for people who try the service and for tests of a deployment.
//!
//! Prints the answer; exit code 0 if the bot knew one, 4 if it did not, 2 and 3 as in `health`.

use std::{process::ExitCode, time::Duration};

use clap::Args;

use super::client::{Connection, EXIT_NO, Failure, addresses, block_on};
use crate::{
    client::{self, Client, Patience},
    config::Sources,
    pb::chatbot::v1::AskRequest,
};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// The question
    question: String,

    /// The server, HOST:PORT; several are tried in turn [default: the main port of the settings, on this
    /// machine]
    #[arg(long, value_name = "HOST:PORT")]
    addr: Vec<String>,

    /// Only answers in this language, such as ko or en [default: any]
    #[arg(long, default_value = "")]
    language: String,

    /// Time for connecting and for the answer
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    timeout: Duration,

    #[command(flatten)]
    connection: Connection,
}

pub(super) fn run(sources: &Sources, options: Options) -> ExitCode {
    match addresses(&options.addr, sources) {
        Ok(addresses) => block_on(ask(addresses, options)),
        Err(code) => code,
    }
}

#[expect(clippy::print_stdout, reason = "this is its output")]
async fn ask(addresses: Vec<String>, options: Options) -> Result<ExitCode, Failure> {
    let client = Client::new(client::Options {
        connect_timeout: options.timeout,
        limit: Some(options.timeout),
        // A test of a deployment has to tell what it finds, not what it finds after a while.
        patience: Patience { budget: Duration::ZERO, ..Patience::default() },
        ..options.connection.options(addresses)
    })?;
    client.connect().await?;
    let request = AskRequest {
        query: options.question,
        language_code: options.language,
        ..AskRequest::default()
    };
    let answer = client.ask(request).await?.answer.unwrap_or_default();
    println!("{}", answer.text);
    Ok(if answer.answered { ExitCode::SUCCESS } else { ExitCode::from(EXIT_NO) })
}
