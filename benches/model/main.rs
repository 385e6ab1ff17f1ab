//! What the service adds to the model behind it: time to the first text, work for each token, and a
//! thousand answers at a time.
//!
//! ```text
//! cargo bench --features jemalloc --bench model [-- [--seconds N] [--streams | --overload]]
//! ```
//!
//! The upstream is scripted (`upstream.rs`) and a process of its own, and so is each service: the
//! binary, with its defaults, a store in memory, one in a file of the system's temporary folder, and a
//! redis-server with `appendfsync everysec`, if there is one. Beside them stand the upstream itself,
//! asked directly, and LiteLLM's proxy, if `CHATBOT_LITELLM` or the PATH has its command (measured with
//! 1.106.2, by `pip install 'litellm[proxy]==1.106.2'`): one worker, no keys, no database, no
//! telemetry. All on this machine, so compare the rows of one run and nothing else; those of a table
//! are measured by turns.
//!
//! * **first text**: from a question on a warm connection to the first text of its answer, one at a
//!   time, less what the model took by its own clock (20 ms); and how much more than asked directly.
//! * **cost of a token**: what the processors did for it, by process, the question's share included:
//!   answers of 200 tokens as fast as they come, 8 at a time; and answers of 100 tokens at 20 a second,
//!   50 at a time, where each token is an event of its own and nothing can be done for several at once.
//! * **streams**: 1,000 at a time with 20 tokens a second each, for N seconds (30 without the flag). The
//!   lag is how late a token is by the upstream's schedule; that of the last third must not be more than
//!   that of the first. The service's resident memory is looked at each second from when all of them run:
//!   what a store in memory keeps of their texts grows, and nothing else should. Clients, upstream and
//!   Redis work on the same processors. LiteLLM is left out: its one processor does less than a tenth of it.
//! * **overload** (`overload.rs`): ten times as many clients as there are slots.
//!
//! `--streams` and `--overload` measure nothing else.

#![expect(clippy::print_stdout, clippy::expect_used, reason = "a program for a terminal")]

mod ask;
#[path = "../shared/environment.rs"]
mod environment;
mod overload;
mod process;
#[path = "../shared/resident.rs"]
mod resident;
mod upstream;
#[path = "../shared/used.rs"]
mod used;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use tokio::time::{sleep, sleep_until};
use tonic::Status;

use crate::{
    ask::{Answer, Way},
    process::Process,
    upstream::Script,
    used::Used,
};

/// The argument of the process that is the upstream.
const UPSTREAM: &str = "be-the-upstream";
/// Streams at a time.
const STREAMS: usize = 1_000;
/// More slots than streams: admission is the last table's subject.
const SLOTS: &str = "engine.max_generations=2000";
/// From a token to the next where there is a pace.
const GAP: Duration = Duration::from_millis(50);
/// How long the streams take to begin: they neither begin together nor speak together.
const RAMP: Duration = Duration::from_secs(5);

/// Who is measured.
struct Contestant {
    name: &'static str,
    /// Where it is, but for the upstream itself.
    process: Option<Process>,
    base: String,
    chats: bool,
    /// With connections for what is asked one at a time or a few.
    way: Way,
}

/// Everything that runs.
struct Field {
    contestants: Vec<Contestant>,
    redis: Option<Process>,
    upstream: Process,
}

fn main() {
    rlimit::increase_nofile_limit(u64::MAX).expect("a limit");
    if std::env::args().any(|argument| argument == UPSTREAM) {
        return upstream::run();
    }
    let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
    let time = Duration::from_secs(seconds().unwrap_or(30));
    // One thread: the clients must not take both processors from what is measured.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(Box::pin(async {
        if std::env::args().any(|argument| argument == "--overload") {
            return overload::overload(&Process::upstream(), time).await;
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        let field = Field::set(folder.path()).await;
        if std::env::args().any(|argument| argument == "--streams") {
            return streams(&field, time).await;
        }
        first_texts(&field, time).await;
        costs(&field, time).await;
        streams(&field, time).await;
        overload::overload(&field.upstream, time / 2).await;
    }));
}

impl Field {
    async fn set(folder: &Path) -> Self {
        let upstream = Process::upstream();
        let redis = Process::redis(folder);
        let litellm = Process::litellm(folder, &upstream);
        let file = format!("store.url=redb:{}", folder.join("bench.redb").display());
        let mut stores = vec![("chatbot, memory", "store.url=memory:".to_owned())];
        stores.push(("chatbot, file", file));
        match &redis {
            Some(redis) => {
                stores.push(("chatbot, redis", format!("store.url=redis://{}/0", redis.address)));
            }
            None => println!("no redis-server here: install Debian's redis-server for its rows\n"),
        }
        let mut contestants =
            vec![Contestant::new("upstream itself", None, &upstream.address, false).await];
        for (name, store) in stores {
            let process = Process::service(&store, &upstream, &[SLOTS]);
            let address = process.address.clone();
            contestants.push(Contestant::new(name, Some(process), &address, true).await);
        }
        match litellm {
            Some(process) => {
                let address = process.address.clone();
                contestants.push(Contestant::new("LiteLLM", Some(process), &address, false).await);
            }
            None => println!("no litellm here: pip install 'litellm[proxy]' for its rows\n"),
        }
        Self { contestants, redis, upstream }
    }
}

impl Contestant {
    async fn new(name: &'static str, process: Option<Process>, address: &str, chats: bool) -> Self {
        let base = format!("http://{address}");
        let way = if chats { Way::chat(&base, 50).await } else { Way::completions(&base) };
        Self { name, process, base, chats, way }
    }

    /// A way for as many streams at once.
    async fn wide(&self, streams: usize) -> Way {
        if self.chats { Way::chat(&self.base, streams).await } else { self.way.clone() }
    }
}

/// What processes use of the processors while something is done.
struct Meter {
    ids: [Option<u32>; 4],
    before: [Option<Used>; 4],
    machine: (u64, u64),
    start: Instant,
}

/// What they have used: the contestant, Redis, the upstream and this process.
struct Reading {
    took: Duration,
    used: [Duration; 4],
    /// What everybody has used on this machine, and what its host has kept, in hundredths of a second.
    machine: (u64, u64),
}

impl Meter {
    fn start(field: &Field, contestant: &Contestant) -> Self {
        let id = |process: &Option<Process>| process.as_ref().map(Process::id);
        let ids = [
            id(&contestant.process),
            id(&field.redis),
            Some(field.upstream.id()),
            Some(std::process::id()),
        ];
        let before = ids.map(|id| id.map(Used::of));
        Self { ids, before, machine: machine(), start: Instant::now() }
    }

    fn read(&self) -> Reading {
        let used = [0, 1, 2, 3].map(|n| match (self.ids[n], &self.before[n]) {
            (Some(id), Some(before)) => Used::of(id).since(before),
            _ => Duration::ZERO,
        });
        let now = machine();
        let machine = (now.0 - self.machine.0, now.1 - self.machine.1);
        Reading { took: self.start.elapsed(), used, machine }
    }
}

async fn first_texts(field: &Field, time: Duration) {
    let script = Script { tokens: 20, delay: Duration::from_millis(20), gap: Duration::ZERO };
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); field.contestants.len()];
    for contestant in &field.contestants {
        for _ in 0..20 {
            contestant.way.ask(0, script).await.expect("an answer");
        }
    }
    let until = Instant::now() + time;
    while Instant::now() < until {
        // By turns, so that a noisy moment meets all of them.
        for (contestant, times) in field.contestants.iter().zip(&mut times) {
            let answer = contestant.way.ask(0, script).await.expect("an answer");
            times.push(answer.first.expect("text").as_secs_f64() * 1e3);
        }
    }
    println!("first text, ms beyond the model's own     of {} each", times[0].len());
    println!("{:<18}{:>9}{:>9}{:>9}   added: p50 (quartiles)", "", "p25", "p50", "p75");
    for (contestant, own) in field.contestants.iter().zip(&times) {
        let added: Vec<_> = own.iter().zip(&times[0]).map(|(own, direct)| own - direct).collect();
        let [p25, p50, p75] = quartiles(own.clone());
        print!("{:<18}{p25:>9.2}{p50:>9.2}{p75:>9.2}", contestant.name);
        if contestant.process.is_some() {
            let [p25, p50, p75] = quartiles(added);
            print!("   {p50:.2} ({p25:.2} to {p75:.2})");
        }
        println!();
    }
}

/// Asks in as many streams, each until the time is over, and begins them by and by; how many tokens
/// came, and in how many pieces.
async fn drive(
    way: &Way,
    streams: u32,
    script: Script,
    ramp: Duration,
    time: Duration,
) -> (f64, f64) {
    let until = Instant::now() + time;
    let stream = |number: u32| async move {
        sleep(ramp * number / streams).await;
        let (mut answers, mut pieces) = (0, 0);
        while answers == 0 || Instant::now() < until {
            let answer = way.ask(number as usize, script).await;
            pieces += answer.expect("an answer").pieces;
            answers += 1;
        }
        (f64::from(answers) * f64::from(script.tokens), f64_of(pieces))
    };
    let heard = join_all((0..streams).map(stream)).await;
    (heard.iter().map(|heard| heard.0).sum(), heard.iter().map(|heard| heard.1).sum())
}

async fn costs(field: &Field, time: Duration) {
    let second = Duration::from_secs(1);
    let fast = Script { tokens: 200, delay: Duration::ZERO, gap: Duration::ZERO };
    let paced = Script { tokens: 100, delay: Duration::ZERO, gap: GAP };
    let rounds = (time.as_secs() / 6).max(2);
    let kinds = [
        ("200 tokens as fast as they come, 8 at a time", fast, 8, Duration::ZERO, second),
        ("100 tokens at 20 a second, 50 at a time", paced, 50, second, Duration::ZERO),
    ];
    for (title, script, streams, ramp, time) in kinds {
        let mut taken: Vec<[Vec<f64>; 6]> = vec![Default::default(); field.contestants.len()];
        for _ in 0..rounds {
            for (contestant, taken) in field.contestants.iter().zip(&mut taken) {
                let meter = Meter::start(field, contestant);
                let (tokens, pieces) = drive(&contestant.way, streams, script, ramp, time).await;
                let reading = meter.read();
                for (used, taken) in reading.used.iter().zip(taken.iter_mut()) {
                    taken.push(used.as_secs_f64() * 1e6 / tokens);
                }
                taken[4].push(tokens / reading.took.as_secs_f64());
                taken[5].push(tokens / pieces);
            }
        }
        println!("\ncost of a token, us of a processor: answers of {title}, {rounds} rounds");
        println!(
            "{:<18}{:>24}{:>9}{:>10}{:>9}{:>12}{:>16}",
            "", "itself", "redis", "upstream", "client", "tokens/s", "tokens a piece",
        );
        for (contestant, taken) in field.contestants.iter().zip(taken) {
            let [own, redis, upstream, client, rate, piece] = taken.map(quartiles);
            let own = format!("{:.1} ({:.1} to {:.1})", own[1], own[0], own[2]);
            let own = if contestant.process.is_some() { own } else { String::new() };
            println!(
                "{:<18}{own:>24}{:>9.1}{:>10.1}{:>9.1}{:>12.0}{:>16.1}",
                contestant.name, redis[1], upstream[1], client[1], rate[1], piece[1],
            );
        }
    }
}

async fn streams(field: &Field, time: Duration) {
    let tokens = u32::try_from(time.as_millis() / GAP.as_millis()).expect("few");
    let script = Script { tokens, delay: Duration::ZERO, gap: GAP };
    println!("\n{STREAMS} streams, 20 tokens a second each, for {} s: lag, ms", time.as_secs());
    println!(
        "{:<18}{:>9}{:>9}{:>7}{:>7}{:>8}{:>8}{:>16}{:>16}{:>18}",
        "",
        "tokens/s",
        "events/s",
        "p50",
        "p99",
        "max",
        "> 50",
        "first third",
        "last third",
        "last token"
    );
    let (mut readings, mut memories) = (Vec::new(), Vec::new());
    for contestant in &field.contestants {
        // A proxy whose processor does less than a tenth of it is not asked for all.
        if contestant.process.is_some() && !contestant.chats {
            continue;
        }
        let way = contestant.wide(STREAMS).await;
        let begun = tokio::time::Instant::now();
        let stream = |number: u32| {
            let way = &way;
            async move {
                sleep_until(begun + RAMP * number / 1_000).await;
                let start = Instant::now();
                let answer = way.ask(number as usize, script).await?;
                Ok((answer, start.elapsed()))
            }
        };
        let meter = async {
            sleep_until(begun + RAMP).await;
            let meter = Meter::start(field, contestant);
            let end = begun + RAMP.max(time);
            let mut memory = Vec::new();
            while tokio::time::Instant::now() < end {
                memory.extend(contestant.process.as_ref().map(memory_of));
                sleep_until((tokio::time::Instant::now() + Duration::from_secs(1)).min(end)).await;
            }
            (meter.read(), memory)
        };
        let all = join_all((0..u32::try_from(STREAMS).expect("few")).map(stream));
        let (answers, (reading, memory)) = tokio::join!(all, meter);
        let (answers, broken): (Vec<_>, Vec<Result<_, Status>>) =
            answers.into_iter().partition(Result::is_ok);
        if let Some(Err(status)) = broken.first() {
            println!("{}: {} broken, such as {status}", contestant.name, broken.len());
        }
        let answers: Vec<_> = answers.into_iter().flatten().collect();
        if !answers.is_empty() {
            print_lags(contestant.name, &answers);
        }
        readings.push((contestant.name, reading));
        memories.push((contestant.name, memory));
    }
    println!("\nresident memory of each while all {STREAMS} streams run, MiB, second by second");
    for (name, memory) in memories.iter().filter(|(_, memory)| !memory.is_empty()) {
        let numbers: Vec<_> = memory.iter().map(|bytes| format!("{bytes:.0}")).collect();
        println!("{name:<18} {}", numbers.join(" "));
    }
    println!("\nprocessors used while all {STREAMS} streams run");
    println!(
        "{:<18}{:>9}{:>9}{:>10}{:>9}{:>9}{:>18}",
        "", "itself", "redis", "upstream", "client", "others", "kept by the host"
    );
    for (name, Reading { took, used, machine }) in readings {
        let share = |time: f64| time / took.as_secs_f64();
        let [own, redis, upstream, client] = used.map(|used| share(used.as_secs_f64()));
        let (busy, stolen) = (share(f64_of(machine.0) / 100.0), share(f64_of(machine.1) / 100.0));
        let others = (busy - own - redis - upstream - client).max(0.0);
        println!(
            "{name:<18}{own:>9.2}{redis:>9.2}{upstream:>10.2}{client:>9.2}{others:>9.2}{stolen:>18.2}"
        );
    }
}

/// Its resident memory in MiB.
fn memory_of(process: &Process) -> f64 {
    f64_of(resident::resident(process.id(), "VmRSS")) / f64::from(1 << 20)
}

fn print_lags(name: &str, answers: &[(Answer, Duration)]) {
    let third = |answer: &Answer| answer.lags.len() / 3;
    let part = |of: &dyn Fn(&Answer) -> Vec<u32>| {
        let mut lags: Vec<u32> = answers.iter().flat_map(|(answer, _)| of(answer)).collect();
        lags.sort_unstable();
        let at = |percent: usize| f64::from(lags[(lags.len() - 1) * percent / 100]) / 1e3;
        [at(50), at(99), at(100)]
    };
    let all = part(&|answer| answer.lags.clone());
    let first = part(&|answer| answer.lags[..third(answer)].to_vec());
    let last = part(&|answer| answer.lags[answer.lags.len() - third(answer)..].to_vec());
    let end = part(&|answer| answer.lags.last().copied().into_iter().collect());
    let rate = |count: &dyn Fn(&Answer) -> usize| -> f64 {
        answers.iter().map(|(answer, took)| f64_of(count(answer)) / took.as_secs_f64()).sum()
    };
    let (tokens, events) = (rate(&|answer| answer.lags.len()), rate(&|answer| answer.pieces));
    let count: usize = answers.iter().map(|(answer, _)| answer.lags.len()).sum();
    let gap = u32::try_from(GAP.as_micros()).expect("short");
    let late = answers.iter().flat_map(|(answer, _)| &answer.lags).filter(|lag| **lag > gap);
    let late = 100.0 * f64_of(late.count()) / f64_of(count);
    let two = |[p50, p99, _]: [f64; 3]| format!("{p50:.1}, {p99:.1}");
    let three = |[p50, p99, max]: [f64; 3]| format!("{p50:.1}, {p99:.1}, {max:.0}");
    println!(
        "{name:<18}{tokens:>9.0}{events:>9.0}{:>7.1}{:>7.1}{:>8.1}{:>8}{:>16}{:>16}{:>18}",
        all[0],
        all[1],
        all[2],
        format!("{late:.2}%"),
        two(first),
        two(last),
        three(end),
    );
}

/// What all processes of this machine have used until now, and what its host has kept from it, in
/// hundredths of a second.
fn machine() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let words = text.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let times: Vec<u64> = words.map(|word| word.parse().unwrap_or_default()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal
    let at = |n: usize| times.get(n).copied().unwrap_or_default();
    (at(0) + at(1) + at(2) + at(5) + at(6), at(7))
}

fn quartiles(mut numbers: Vec<f64>) -> [f64; 3] {
    numbers.sort_unstable_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| numbers[(numbers.len() - 1) * quarter / 4])
}

#[expect(clippy::cast_precision_loss, reason = "counts")]
fn f64_of(count: impl TryInto<u64>) -> f64 {
    count.try_into().unwrap_or_default() as f64
}

/// The number after `--seconds`; what cargo itself passes is nobody's business.
fn seconds() -> Option<u64> {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--seconds");
    arguments.next()?;
    arguments.next()?.parse().ok()
}
