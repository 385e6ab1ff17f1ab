//! Latency of the kubelet's probe while every worker thread of the main runtime is busy.
//!
//! ```text
//! cargo bench --bench probe [-- --seconds N]
//! ```
//!
//! The app runs in this process. For N seconds (60 without the flag) twice as many tasks as there are
//! worker threads spin on the main runtime, 50 ms at a time before others get a turn, like calls that
//! compute too much. All the while a thread with a runtime of its own does what a kubelet does, every
//! 50 ms: a new connection without TLS, HTTP/2, one Check of "liveness" without metadata, one second
//! of patience. Before that it does so while nobody spins, for comparison. Liveness is the main
//! runtime's heartbeat, with ten seconds of patience, so as long as the spinning tasks yield the status
//! should be SERVING; any other counts as an error.

#![expect(clippy::print_stdout, clippy::expect_used, reason = "a program for a terminal")]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use chatbot::{
    app::{App, Options},
    config::{Config, Sources},
    lifecycle::Lifecycle,
    pb::health::v1::{
        HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
    },
};
use tokio::{runtime, time::MissedTickBehavior};
use tonic::transport::Endpoint;

/// How long a task spins before it yields.
const SPIN: Duration = Duration::from_millis(50);
const EVERY: Duration = Duration::from_millis(50);
/// The kubelet's default `timeoutSeconds`.
const PATIENCE: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_secs(5);

fn main() {
    let busy = Duration::from_secs(seconds().unwrap_or(60));
    let runtime = runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let life = Lifecycle::new();
    let app = runtime.block_on(bind(life.clone()));
    let ops = app.addresses().ops;
    let app = runtime.spawn(app.run());

    println!(
        "{:<6} {:>7} {:>7} {:>9} {:>9} {:>9} {:>9}  statuses",
        "main", "probes", "errors", "p50", "p90", "p99", "max"
    );
    probe_on_a_thread(ops, IDLE.min(busy)).print("idle");

    let workers = runtime.metrics().num_workers();
    let until = Instant::now() + busy;
    let spun = Arc::new(AtomicU64::new(0));
    let spinning: Vec<_> =
        (0..2 * workers).map(|_| runtime.spawn(spin(until, Arc::clone(&spun)))).collect();
    let start = Instant::now();
    probe_on_a_thread(ops, busy).print("busy");
    for task in spinning {
        runtime.block_on(task).expect("it spins to the end");
    }
    let spun = Duration::from_nanos(spun.load(Ordering::Relaxed));
    let share = spun.as_secs_f64() / (start.elapsed().as_secs_f64() * f64_of(workers));
    println!("{workers} worker threads, busy for {:.0} % of the time", 100.0 * share);

    life.stop();
    runtime.block_on(app).expect("it stops");
}

/// The number after `--seconds`; what cargo itself passes is nobody's business.
fn seconds() -> Option<u64> {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--seconds");
    arguments.next()?;
    Some(arguments.next().expect("a number").parse().expect("a number"))
}

fn f64_of(number: usize) -> f64 {
    f64::from(u32::try_from(number).expect("fits"))
}

async fn bind(life: Lifecycle) -> App {
    let overrides = [
        "server.address=127.0.0.1:0",
        "ops.address=127.0.0.1:0",
        "server.drain_delay=0s",
        "server.drain_grace=1s",
        "store.url=memory:",
    ];
    let overrides = overrides.map(str::to_owned).to_vec();
    let config = Config::load(&Sources { overrides, ..Sources::default() });
    let config = config.expect("good settings");
    App::bind(config, life, Options::default()).await.expect("a bound app")
}

async fn spin(until: Instant, spun: Arc<AtomicU64>) {
    while Instant::now() < until {
        let start = Instant::now();
        while start.elapsed() < SPIN {
            std::hint::spin_loop();
        }
        let nanoseconds = u64::try_from(start.elapsed().as_nanos()).expect("fits");
        spun.fetch_add(nanoseconds, Ordering::Relaxed);
        tokio::task::yield_now().await;
    }
}

/// What became of the probes.
#[derive(Default)]
struct Probes {
    times: Vec<Duration>,
    errors: usize,
    /// The statuses that came, without repetition.
    statuses: Vec<String>,
}

impl Probes {
    fn print(mut self, main: &str) {
        self.times.sort_unstable();
        let at =
            |percent: usize| format!("{:.2?}", self.times[(self.times.len() - 1) * percent / 100]);
        println!(
            "{main:<6} {:>7} {:>7} {:>9} {:>9} {:>9} {:>9}  {}",
            self.times.len(),
            self.errors,
            at(50),
            at(90),
            at(99),
            at(100),
            self.statuses.join(", "),
        );
    }
}

/// Probes for a time, on an OS thread and a runtime that share nothing with the main ones.
fn probe_on_a_thread(ops: SocketAddr, time: Duration) -> Probes {
    let kubelet = thread::spawn(move || {
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(probe(ops, time))
    });
    kubelet.join().expect("it probes to the end")
}

async fn probe(ops: SocketAddr, time: Duration) -> Probes {
    let end = Instant::now() + time;
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut probes = Probes::default();
    while Instant::now() < end {
        ticks.tick().await;
        let start = Instant::now();
        let outcome = tokio::time::timeout(PATIENCE, check(ops)).await;
        probes.times.push(start.elapsed());
        let status = match outcome {
            Ok(Ok(status)) => status.as_str_name().to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "late".to_owned(),
        };
        if status != ServingStatus::Serving.as_str_name() {
            probes.errors += 1;
        }
        if !probes.statuses.contains(&status) {
            probes.statuses.push(status);
        }
    }
    probes
}

async fn check(ops: SocketAddr) -> Result<ServingStatus, Box<dyn std::error::Error>> {
    let channel = Endpoint::from_shared(format!("http://{ops}"))?.connect().await?;
    let request = HealthCheckRequest { service: "liveness".to_owned() };
    Ok(HealthClient::new(channel).check(request).await?.into_inner().status())
}
