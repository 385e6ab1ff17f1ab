//! Overload: ten times as many clients as there are slots for generations.
//!
//! First a quarter of the slots is asked for, then ten times all of them, each client again as soon as
//! its answer is whole, or when the refusal says (`grpc-retry-pushback-ms`). Answers are 40 tokens at 20
//! a second. All the while `RankAnswers`, which needs no slot, is asked every ten milliseconds by a
//! thread of its own. Accepted turns and `RankAnswers` should take what they took before: the p99 not
//! more than 1.2 times. A turn that has waited in the queue (`engine.queue_time`, 250 ms) is accepted too.

use std::{
    thread,
    time::{Duration, Instant},
};

use chatbot::pb::chatbot::v1::{RankAnswersRequest, chatbot_client::ChatbotClient};
use futures_util::future::join_all;
use tokio::{runtime, time::MissedTickBehavior};
use tonic::{Code, Status};

use crate::{GAP, ask::Way, process::Process, upstream::Script};

/// What the service is given; its default.
const SLOTS: u32 = 64;
const EVERY: Duration = Duration::from_millis(10);

/// What came of one load.
#[derive(Debug, Default)]
struct Outcome {
    /// How long accepted turns took, and how long their first text.
    turns: Vec<f64>,
    firsts: Vec<f64>,
    ranks: Vec<f64>,
    refused: usize,
    /// Of those refused, how many were not told when to come back.
    untold: usize,
}

pub(crate) async fn overload(upstream: &Process, time: Duration) {
    let slots = format!("engine.max_generations={SLOTS}");
    let service = Process::service("store.url=memory:", upstream, &[&slots]);
    let base = format!("http://{}", service.address);
    println!("\n{SLOTS} slots, answers of 2 s, memory; ms: p50, p99");
    println!(
        "{:<14}{:>18}{:>16}{:>18}{:>8}{:>10}{:>10}",
        "clients", "accepted turn", "its first text", "RankAnswers", "turns", "refused", "untold"
    );
    let mut p99s = Vec::new();
    for clients in [SLOTS / 4, 10 * SLOTS] {
        let ranks = {
            let base = base.clone();
            thread::spawn(move || {
                let runtime = runtime::Builder::new_current_thread().enable_all().build();
                runtime.expect("a runtime").block_on(rank(&base, time))
            })
        };
        let way = Way::chat(&base, clients as usize).await;
        let until = Instant::now() + time;
        let outcomes = join_all((0..clients).map(|number| client(&way, number, until))).await;
        let mut all =
            Outcome { ranks: ranks.join().expect("it asks to the end"), ..Outcome::default() };
        for outcome in outcomes {
            all.turns.extend(outcome.turns);
            all.firsts.extend(outcome.firsts);
            all.refused += outcome.refused;
            all.untold += outcome.untold;
        }
        let count = all.turns.len();
        let [turn, first, rank] = [all.turns, all.firsts, all.ranks].map(percentiles);
        println!(
            "{clients:<14}{:>18}{:>16}{:>18}{count:>8}{:>10}{:>10}",
            format!("{:.0}, {:.0}", turn[0], turn[1]),
            format!("{:.1}, {:.0}", first[0], first[1]),
            format!("{:.2}, {:.2}", rank[0], rank[1]),
            all.refused,
            all.untold,
        );
        p99s.push([turn[1], rank[1]]);
    }
    let ratio = |n: usize| p99s[1][n] / p99s[0][n];
    println!("p99 of accepted turns x {:.2}, of RankAnswers x {:.2}", ratio(0), ratio(1));
}

async fn client(way: &Way, number: u32, until: Instant) -> Outcome {
    let script = Script { tokens: 40, delay: GAP, gap: GAP };
    let mut outcome = Outcome::default();
    while Instant::now() < until {
        let start = Instant::now();
        match way.ask(number as usize, script).await {
            Ok(answer) => {
                outcome.turns.push(start.elapsed().as_secs_f64() * 1e3);
                outcome.firsts.push(answer.first.expect("text").as_secs_f64() * 1e3);
            }
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
                outcome.refused += 1;
                let pushback = pushback(&status);
                outcome.untold += usize::from(pushback.is_none());
                tokio::time::sleep(pushback.unwrap_or(Duration::from_millis(100))).await;
            }
        }
    }
    outcome
}

fn pushback(status: &Status) -> Option<Duration> {
    let value = status.metadata().get("grpc-retry-pushback-ms")?;
    Some(Duration::from_millis(value.to_str().ok()?.parse().ok()?))
}

async fn rank(base: &str, time: Duration) -> Vec<f64> {
    let mut client = ChatbotClient::connect(base.to_owned()).await.expect("a connection");
    let until = Instant::now() + time;
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut times = Vec::new();
    while Instant::now() < until {
        ticks.tick().await;
        let start = Instant::now();
        let query = "keepalive too_many_pings".to_owned();
        let request = RankAnswersRequest { query, ..RankAnswersRequest::default() };
        let mut answers = client.rank_answers(request).await.expect("a stream").into_inner();
        while answers.message().await.expect("no error").is_some() {}
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times
}

/// The p50 and the p99.
fn percentiles(mut times: Vec<f64>) -> [f64; 2] {
    times.sort_unstable_by(f64::total_cmp);
    [50, 99].map(|percent| times[(times.len() - 1) * percent / 100])
}
