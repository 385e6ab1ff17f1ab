//! `chatbot chat`: a conversation in a terminal.
//!
//! The answer goes to standard output, as it comes; whatever is said about it goes to standard error. A
//! connection that dies in the middle shows as a dim line, and the text goes on where it was. Without a
//! terminal there are no prompts and no colours, each line that is read is a question, and the answers
//! can be read by programs.
//!
//! Ctrl-C stops the answer, a second one leaves. `--once` has the exit codes of `ask`, and 130 where it
//! was stopped.

mod lines;
mod screen;

use std::{io::IsTerminal as _, process::ExitCode, time::Duration};

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::{
    lines::{Line, Lines},
    screen::Screen,
};
use super::client::{Connection, EXIT_INTERRUPTED, EXIT_NO, Engine, Failure, addresses, block_on};
use crate::{
    client::{Client, Conversation, Error, Told},
    config::Sources,
    pb::chatbot::v1::{FinishReason, event::Event as Body},
};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// A server, HOST:PORT; several are tried in turn [default: the main port of the settings, on this
    /// machine]
    #[arg(long, value_name = "HOST:PORT")]
    addr: Vec<String>,

    /// Go on in this conversation [default: a new one]
    #[arg(long, value_name = "ID", default_value = "")]
    conversation: String,

    /// How answers are made [default: the server's choice]
    #[arg(long, value_enum)]
    engine: Option<Engine>,

    /// Only answers in this language, such as ko or en [default: any]
    #[arg(long, default_value = "")]
    language: String,

    /// Ask this, and leave
    #[arg(long, value_name = "TEXT")]
    once: Option<String>,

    /// How long a server that cannot be reached is tried again
    #[arg(long, default_value = "1m", value_parser = humantime::parse_duration)]
    patience: Duration,

    #[command(flatten)]
    connection: Connection,
}

/// How a turn ended for its user.
enum Ended {
    Answered,
    NotKnown,
    Stopped,
    /// The turn failed; that was told.
    Failed,
    /// The second Ctrl-C.
    Left,
}

pub(super) fn run(sources: &Sources, options: Options) -> ExitCode {
    match addresses(&options.addr, sources) {
        Ok(addresses) => block_on(chat(addresses, options)),
        Err(code) => code,
    }
}

async fn chat(addresses: Vec<String>, options: Options) -> Result<ExitCode, Failure> {
    let Options { conversation, engine, language, once, patience, connection, .. } = options;
    let mut client = connection.options(addresses);
    client.patience.budget = patience;
    let mut conversation = Client::new(client)?.conversation(conversation);
    conversation.engine = engine.map(Into::into).unwrap_or_default();
    conversation.language = language;
    let interrupts = signal(SignalKind::interrupt());
    let mut interrupts =
        interrupts.map_err(|error| Failure::Usage(format!("signals cannot be heard: {error}")))?;
    let mut screen = Screen::new();
    let Some(question) = once else {
        return Ok(talk(&mut conversation, &mut interrupts, &mut screen).await);
    };
    Ok(match answer(&mut conversation, question, &mut interrupts, &mut screen).await {
        Ok(Ended::Answered) => ExitCode::SUCCESS,
        Ok(Ended::NotKnown) => ExitCode::from(EXIT_NO),
        Ok(Ended::Stopped | Ended::Left) => ExitCode::from(EXIT_INTERRUPTED),
        Ok(Ended::Failed) => ExitCode::from(3),
        Err(error) => {
            screen.note(&error.to_string());
            Failure::from(error).code()
        }
    })
}

/// Question after question. The exit code is that of the last failure, so that a script that pipes its
/// questions learns of it.
async fn talk(
    conversation: &mut Conversation,
    interrupts: &mut Signal,
    screen: &mut Screen,
) -> ExitCode {
    let mut lines = Lines::new(std::io::stdin().is_terminal());
    let mut code = ExitCode::SUCCESS;
    if lines.is_terminal() {
        screen.note("Ctrl-C stops an answer, Ctrl-D leaves.");
    }
    loop {
        let line = tokio::select! {
            line = lines.next() => line,
            _ = interrupts.recv() => return ExitCode::from(EXIT_INTERRUPTED),
        };
        let question = match line {
            Line::Text(text) if text.trim().is_empty() => continue,
            Line::Text(text) => text,
            Line::End => break,
        };
        match answer(conversation, question, interrupts, screen).await {
            Ok(Ended::Left) => {
                code = ExitCode::from(EXIT_INTERRUPTED);
                break;
            }
            Ok(Ended::Failed) => code = ExitCode::from(3),
            Ok(Ended::Answered | Ended::NotKnown | Ended::Stopped) => {}
            Err(error) => {
                screen.note(&error.to_string());
                code = Failure::from(error).code();
            }
        }
    }
    if lines.is_terminal() && !conversation.id().is_empty() {
        let id = conversation.id();
        screen.note(&format!("to go on: chatbot chat --conversation {id}"));
    }
    code
}

/// Asks, and shows the answer as it comes.
async fn answer(
    conversation: &mut Conversation,
    question: String,
    interrupts: &mut Signal,
    screen: &mut Screen,
) -> Result<Ended, Error> {
    screen.begin();
    let mut turn = conversation.ask(question);
    let mut stopped = false;
    loop {
        let told = tokio::select! {
            told = turn.next() => told?,
            _ = interrupts.recv() => {
                if stopped {
                    screen.end();
                    return Ok(Ended::Left);
                }
                stopped = true;
                screen.note("stopping, once more to leave…");
                let cancelled = tokio::select! {
                    cancelled = turn.cancel() => cancelled,
                    _ = interrupts.recv() => return Ok(Ended::Left),
                };
                cancelled?;
                continue;
            }
        };
        let event = match told {
            Some(Told::Event(event)) => event,
            Some(Told::Lost(lost)) => {
                screen.begin_note(&format!("{}, resuming…", lost.why));
                continue;
            }
            Some(Told::Resumed) => {
                screen.done("resumed");
                continue;
            }
            Some(Told::Restarted) => {
                screen.restart();
                continue;
            }
            // The terminal event comes before the end.
            None => return Ok(Ended::Failed),
        };
        match event.event {
            Some(Body::TextDelta(text)) => screen.add(&text),
            Some(Body::TurnCompleted(completed)) => {
                screen.whole(&completed.text);
                screen.end();
                if completed.finish_reason() == FinishReason::Cancelled {
                    screen.note("stopped");
                    return Ok(Ended::Stopped);
                }
                return Ok(if completed.answered { Ended::Answered } else { Ended::NotKnown });
            }
            Some(Body::TurnFailed(failed)) => {
                screen.whole(&failed.partial_text);
                screen.end();
                screen.note(&format!("the answer broke off: {}", failed.reason));
                return Ok(Ended::Failed);
            }
            Some(Body::MessagePosted(_)) | None => {}
        }
    }
}
