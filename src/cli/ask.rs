//! `chatbot ask`: one question, for people who try the service and for tests of a deployment.
//!
//! Prints the answer; exit code 0 if the bot knew one, 4 if it did not, 2 and 3 as in `health`.

use std::{process::ExitCode, time::Duration};

use clap::Args;
use tonic::Request;
use uuid::Uuid;

use super::client::{EXIT_NO, Failure, block_on, connect, local};
use crate::{
    config::Sources,
    pb::chatbot::v1::{AskRequest, chatbot_client::ChatbotClient},
};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// The question
    question: String,

    /// The server, HOST:PORT [default: the main port of the settings, on this machine]
    #[arg(long)]
    addr: Option<String>,

    /// Only answers in this language, such as ko or en [default: any]
    #[arg(long, default_value = "")]
    language: String,

    /// Time for connecting and for the answer
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

pub(super) fn run(sources: &Sources, options: Options) -> ExitCode {
    let address = match options.addr.clone() {
        Some(address) => address,
        None => match super::load(sources) {
            Ok((config, _)) => local(config.server.address),
            Err(code) => return code,
        },
    };
    block_on(ask(address, options))
}

#[expect(clippy::print_stdout, reason = "this is its output")]
async fn ask(address: String, options: Options) -> Result<ExitCode, Failure> {
    let mut client = ChatbotClient::new(connect(&address, options.timeout).await?);
    let mut request = Request::new(AskRequest {
        query: options.question,
        request_id: Uuid::new_v4().to_string(),
        language_code: options.language,
        ..AskRequest::default()
    });
    request.set_timeout(options.timeout);
    let response = client.ask(request).await.map_err(Failure::Call)?.into_inner();
    let answer = response.answer.unwrap_or_default();
    println!("{}", answer.text);
    Ok(if answer.answered { ExitCode::SUCCESS } else { ExitCode::from(EXIT_NO) })
}
