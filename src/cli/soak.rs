//! `chatbot soak`: turns at a steady rate through the client that resumes, each checked to the byte.
//!
//! For operators who want to see that a rolling update, a drain or a failover of their own cluster loses
//! nothing: run it, do that, and read the last line. A turn is whole if its events came in order and ended
//! with one terminal event, if the pieces make up the text, and if the same request, sent again when it is
//! over, is answered by the same events, from whichever replica that asks. Turns begin at the rate whether
//! others have ended or not. SIGINT and SIGTERM end it early; what is open then is waited for.
//!
//! Exit code 0 if all turns were whole, 4 if one failed or was not, 2 and 3 as in `health`.

use std::{
    collections::BTreeMap,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{MissedTickBehavior, interval},
};

use super::client::{Connection, EXIT_NO, Engine, Failure, addresses, block_on};
use crate::{
    client::{self, Client, Error, Told, Turn},
    config::Sources,
    pb::chatbot::v1::{Event, event::Event as Body},
};

/// Turns that may be open; more means that the server does not keep up, and memory has an end.
const OPEN: usize = 10_000;
/// How often it is told how far it is.
const REPORT: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(super) struct Options {
    /// The question
    #[arg(default_value = "What does too many open files mean?")]
    question: String,

    /// The server, HOST:PORT; several are tried in turn [default: the main port of the settings, on this
    /// machine]
    #[arg(long, value_name = "HOST:PORT")]
    addr: Vec<String>,

    /// Turns that begin in a second
    #[arg(long, default_value = "10", value_parser = rate)]
    rate: f64,

    /// How long turns are begun
    #[arg(long, default_value = "1m", value_parser = humantime::parse_duration)]
    duration: Duration,

    /// Connections that they are spread over
    #[arg(long, default_value = "8", value_parser = clap::value_parser!(u16).range(1..=1_000))]
    connections: u16,

    /// Time for each turn, repetitions included
    #[arg(long, default_value = "2m", value_parser = humantime::parse_duration)]
    timeout: Duration,

    /// How answers are made [default: the server's choice]
    #[arg(long, value_enum)]
    engine: Option<Engine>,

    #[command(flatten)]
    connection: Connection,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.01..=10_000.0).contains(&rate) => Ok(rate),
        _ => Err("must be a number from 0.01 to 10000".to_owned()),
    }
}

pub(super) fn run(sources: &Sources, options: Options) -> ExitCode {
    match addresses(&options.addr, sources) {
        Ok(addresses) => block_on(soak(addresses, options)),
        Err(code) => code,
    }
}

async fn soak(addresses: Vec<String>, options: Options) -> Result<ExitCode, Failure> {
    let Options { question, rate, duration, connections, timeout, engine, connection, .. } =
        options;
    let settings = client::Options { limit: Some(timeout), ..connection.options(addresses) };
    let clients = (0..connections).map(|_| Client::new(settings.clone()));
    let clients = clients.collect::<Result<Vec<_>, Error>>()?;
    // A wrong address is told at once, not once for each turn.
    clients[0].connect().await?;
    let hear = |kind| {
        signal(kind).map_err(|error| Failure::Usage(format!("signals cannot be heard: {error}")))
    };
    let mut interrupted = hear(SignalKind::interrupt())?;
    let mut terminated = hear(SignalKind::terminate())?;

    let start = Instant::now();
    let mut begins = interval(Duration::from_secs_f64(1.0 / rate));
    begins.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut reports = interval(REPORT);
    reports.tick().await;
    let mut open = FuturesUnordered::new();
    let mut count = Count::default();
    let mut begins_more = true;
    while begins_more || !open.is_empty() {
        tokio::select! {
            _ = begins.tick(), if begins_more => {
                begins_more = start.elapsed() < duration;
                if open.len() >= OPEN {
                    count.add(Err(format!("{OPEN} turns are open: not begun")));
                } else if begins_more {
                    let client = &clients[count.begun % clients.len()];
                    open.push(turn(client, &question, engine));
                }
                count.begun += usize::from(begins_more);
            }
            Some(outcome) = open.next() => count.add(outcome),
            _ = reports.tick() => count.report(start.elapsed()),
            // Those that are open are waited for, unless it is said twice.
            () = told_to_end(&mut interrupted, &mut terminated) => {
                if !begins_more {
                    break;
                }
                begins_more = false;
            }
        }
    }
    Ok(count.conclude(start.elapsed(), open.len()))
}

async fn told_to_end(interrupted: &mut Signal, terminated: &mut Signal) {
    tokio::select! {
        _ = interrupted.recv() => {}
        _ = terminated.recv() => {}
    }
}

/// A turn that was whole.
#[derive(Debug, Clone, Copy)]
struct Whole {
    /// How often its stream was lost and went on.
    lost: usize,
    first_text: Duration,
    took: Duration,
}

/// Asks, listens to the end, and asks for the same again. An error says what was wrong.
async fn turn(client: &Client, question: &str, engine: Option<Engine>) -> Result<Whole, String> {
    let start = Instant::now();
    let mut conversation = client.conversation("");
    conversation.engine = engine.map(Into::into).unwrap_or_default();
    let mut turn = conversation.ask(question);
    let id = turn.id().to_owned();
    let told = hear(&mut turn, start).await?;
    let took = start.elapsed();
    check(&told.events)?;
    let again = hear(&mut conversation.ask_as(id, question), start).await?;
    if again.events != told.events {
        return Err("wrong: asked again, the same turn is told otherwise".to_owned());
    }
    Ok(Whole { lost: told.lost, first_text: told.first_text.unwrap_or(took), took })
}

/// What was told of a turn.
#[derive(Debug, Default)]
struct Heard {
    events: Vec<Event>,
    lost: usize,
    first_text: Option<Duration>,
}

async fn hear(turn: &mut Turn<'_>, start: Instant) -> Result<Heard, String> {
    let mut heard = Heard::default();
    loop {
        match turn.next().await {
            Ok(Some(Told::Event(event))) => {
                let is_text =
                    matches!(event.event, Some(Body::TextDelta(_) | Body::TurnCompleted(_)));
                if is_text && heard.first_text.is_none() {
                    heard.first_text = Some(start.elapsed());
                }
                heard.events.push(event);
            }
            Ok(Some(Told::Lost(_))) => heard.lost += 1,
            Ok(Some(Told::Resumed)) => {}
            // Allowed, for a store may lose its tail; what is checked is what is told in the end.
            Ok(Some(Told::Restarted)) => heard.events.clear(),
            Ok(None) => return Ok(heard),
            Err(error) => {
                let reason = error.reason().unwrap_or_else(|| "no answer".to_owned());
                return Err(format!("failed: {reason}: {error}"));
            }
        }
    }
}

/// Whether a transcript is that of one whole turn. The client has seen to the order.
fn check(events: &[Event]) -> Result<(), String> {
    let mut pieces = String::new();
    let (last, before) = events.split_last().ok_or("wrong: no event")?;
    for event in before {
        match &event.event {
            Some(Body::MessagePosted(_)) => {}
            Some(Body::TextDelta(text)) => pieces.push_str(text),
            _ => return Err("wrong: a turn ends twice".to_owned()),
        }
    }
    match &last.event {
        Some(Body::TurnCompleted(completed)) if completed.text == pieces => Ok(()),
        // Of one that ended long ago only the end is kept.
        Some(Body::TurnCompleted(_)) if pieces.is_empty() => Ok(()),
        Some(Body::TurnCompleted(_)) => Err("wrong: the pieces are not the text".to_owned()),
        Some(Body::TurnFailed(failed)) => Err(format!("failed: {}", failed.reason)),
        _ => Err("wrong: a turn without an end".to_owned()),
    }
}

/// What came of the turns.
#[derive(Debug, Default)]
struct Count {
    begun: usize,
    whole: Vec<Whole>,
    resumed: usize,
    /// By what was wrong.
    bad: BTreeMap<String, usize>,
}

impl Count {
    fn add(&mut self, outcome: Result<Whole, String>) {
        match outcome {
            Ok(whole) => {
                self.resumed += whole.lost;
                self.whole.push(whole);
            }
            Err(what) => *self.bad.entry(what).or_default() += 1,
        }
    }

    fn bad(&self, kind: &str) -> usize {
        self.bad.iter().filter(|(what, _)| what.starts_with(kind)).map(|(_, count)| count).sum()
    }

    #[expect(clippy::print_stdout, reason = "this is its output")]
    fn report(&self, elapsed: Duration) {
        println!(
            "{:>4} s  {} turns begun, {} whole, {} failed, {} wrong; {} streams resumed",
            elapsed.as_secs(),
            self.begun,
            self.whole.len(),
            self.failed(),
            self.bad("wrong"),
            self.resumed,
        );
    }

    /// What failed, or could not even be begun.
    fn failed(&self) -> usize {
        self.bad.values().sum::<usize>() - self.bad("wrong")
    }

    #[expect(clippy::print_stdout, reason = "this is its output")]
    fn conclude(&self, elapsed: Duration, open: usize) -> ExitCode {
        for (what, count) in &self.bad {
            println!("{count} x {what}");
        }
        if open > 0 {
            println!("{open} turns were not waited for");
        }
        let [first, took] = [|turn: &Whole| turn.first_text, |turn: &Whole| turn.took]
            .map(|time| percentiles(self.whole.iter().map(time).collect()));
        if let (Some([first, latest_first]), Some([took, longest])) = (first, took) {
            println!(
                "first text p50 {first:.0?}, p99 {latest_first:.0?}; \
                 whole answer p50 {took:.0?}, p99 {longest:.0?}",
            );
        }
        self.report(elapsed);
        let good = self.bad.is_empty() && open == 0 && !self.whole.is_empty();
        if good { ExitCode::SUCCESS } else { ExitCode::from(EXIT_NO) }
    }
}

/// The p50 and the p99.
fn percentiles(mut times: Vec<Duration>) -> Option<[Duration; 2]> {
    times.sort_unstable();
    let last = times.len().checked_sub(1)?;
    Some([50, 99].map(|percent| times[last * percent / 100]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::chatbot::v1::{MessagePosted, TurnCompleted, TurnFailed};

    fn events(bodies: impl IntoIterator<Item = Body>) -> Vec<Event> {
        let event = |body| Event { event: Some(body), ..Event::default() };
        bodies.into_iter().map(event).collect()
    }

    fn delta(text: &str) -> Body {
        Body::TextDelta(text.to_owned())
    }

    fn completed(text: &str) -> Body {
        Body::TurnCompleted(TurnCompleted { text: text.to_owned(), ..TurnCompleted::default() })
    }

    #[test]
    fn a_transcript_is_whole_if_its_pieces_make_up_its_text() {
        let posted = Body::MessagePosted(MessagePosted::default());
        check(&events([posted.clone(), delta("a"), delta("b"), completed("ab")])).expect("whole");
        check(&events([posted.clone(), completed("ab")])).expect("the end is enough");
        for (wrong, what) in [
            (events([]), "no event"),
            (events([posted.clone(), delta("a")]), "without an end"),
            (events([posted.clone(), delta("a"), completed("ab")]), "not the text"),
            (events([completed("a"), delta("a"), completed("a")]), "ends twice"),
            (events([posted, delta("a"), Body::TurnFailed(TurnFailed::default())]), "failed"),
        ] {
            let told = check(&wrong).expect_err(what);
            assert!(told.contains(what), "{told}");
        }
    }
}
