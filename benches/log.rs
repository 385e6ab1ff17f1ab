//! What the log costs: turns step by step, appends, the way to a reader, a resumed read, and the time to a
//! `Chat`'s first event.
//!
//! ```text
//! cargo bench --bench log [-- --seconds N]
//! ```
//!
//! Each figure is taken for N seconds (2 without the flag), for a store in memory, one in a file of
//! the system's temporary folder, and a redis-server with `appendfsync everysec`, if there is one;
//! loopback, all on this machine, so compare the rows of one run and nothing else.
//!
//! * **turns**: begin, an append of one event of 120 bytes, finish (the terminal event), each turn in a new
//!   conversation, by 1, 16 and 128 owners at once.
//! * **appends**: fenced appends of one event of 120 bytes, by 1, 16 and 128 owners at once.
//! * **append to reader**: from the call of an append to its event in the hands of a reader who was
//!   woken by the hint; on Redis the reader is another replica.
//! * **resume**: a log of 10,000 events, read from its beginning to its end in pages as a reader takes them.
//! * **first event**: a new `Chat` over a warm connection to its first event, and to its first piece of
//!   text, with an engine that answers at once; beside a bare tonic server that echoes.

#![expect(clippy::print_stdout, clippy::expect_used, reason = "a program for a terminal")]

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    pin::Pin,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use chatbot::{
    app::{App, Options},
    config::{Config, Sources},
    domain::{
        Completion, ConversationId, ConversationKey, EventBody, FinishReason, Message, RequestId,
        Sequence,
    },
    engine::{End, Engine, Piece, Pieces, Question},
    health::Health,
    lifecycle::Lifecycle,
    pb::chatbot::v1::{
        self as proto, ChatRequest,
        chatbot_client::ChatbotClient,
        chatbot_server::{Chatbot, ChatbotServer},
        event::Event as Body,
    },
    store::{self, After, Appended, Begin, Begun, Owner, Store, TurnOptions},
};
use futures_util::{Stream, StreamExt as _, future::join_all, stream};
use prometheus_client::registry::Registry;
use tonic::{Request, Response, Status, Streaming, transport::Channel};
use uuid::Uuid;

const PIECE: usize = 120;
const WRITERS: [usize; 3] = [1, 16, 128];
/// Events of the log that is resumed.
const RESUMED: usize = 10_000;
/// Events that a reader asks for at once.
const PAGE: usize = 128;

#[tokio::main]
async fn main() {
    let time = Duration::from_secs(seconds().unwrap_or(2));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = format!("store.url=redb:{}", folder.path().join("bench.redb").display());
    let redis = Redis::start(folder.path());
    let mut urls = vec![("memory", "store.url=memory:".to_owned()), ("redb file", file)];
    match &redis {
        Some(redis) => urls.push(("redis", redis.url())),
        None => println!("no redis-server here: install Debian's redis-server for its rows\n"),
    }

    println!(
        "{:<12} {:>8} {:>12} {:>21} {:>21} {:>21}",
        "turns", "owners", "a second", "begin p50, p99", "append p50, p99", "finish p50, p99"
    );
    for (name, url) in &urls {
        let life = Lifecycle::new();
        let store = open(url, &life).await;
        for owners in WRITERS {
            let turns = turns(&store, owners, time).await;
            let rate = f64_of(turns.len()) / time.as_secs_f64();
            print!("{name:<12} {owners:>8} {rate:>12.0}");
            for step in 0..3 {
                let mut times: Vec<Duration> = turns.iter().map(|times| times[step]).collect();
                let (p50, p99) = (percentile(&mut times, 50), percentile(&mut times, 99));
                print!(" {p50:>10.1?} {p99:>10.1?}");
            }
            println!();
        }
        drop(store);
        life.stop();
    }

    println!("\n{:<12} {:>8} {:>12} {:>10} {:>10}", "appends", "owners", "a second", "p50", "p99");
    for (name, url) in &urls {
        let life = Lifecycle::new();
        let store = open(url, &life).await;
        for owners in WRITERS {
            let mut times = appends(&store, owners, time).await;
            let rate = f64_of(times.len()) / time.as_secs_f64();
            let (p50, p99) = (percentile(&mut times, 50), percentile(&mut times, 99));
            println!("{name:<12} {owners:>8} {rate:>12.0} {p50:>10.1?} {p99:>10.1?}");
        }
        drop(store);
        life.stop();
    }

    println!("\n{:<12} {:>10} {:>10}   (append to reader)", "", "p50", "p99");
    for (name, url) in &urls {
        let life = Lifecycle::new();
        let here = open(url, &life).await;
        let there = if *name == "redis" { open(url, &life).await } else { Arc::clone(&here) };
        let mut times = to_reader(&here, there, time).await;
        let (p50, p99) = (percentile(&mut times, 50), percentile(&mut times, 99));
        println!("{name:<12} {p50:>10.1?} {p99:>10.1?}");
        drop(here);
        life.stop();
    }

    println!("\n{:<12} {:>12} {:>10} {:>10}   (resume)", "", "events/s", "p50", "p99");
    for (name, url) in &urls {
        let life = Lifecycle::new();
        let store = open(url, &life).await;
        let mut times = resumes(&*store, time).await;
        let spent: Duration = times.iter().sum();
        let rate = f64_of(times.len() * RESUMED) / spent.as_secs_f64();
        let (p50, p99) = (percentile(&mut times, 50), percentile(&mut times, 99));
        println!("{name:<12} {rate:>12.0} {p50:>10.1?} {p99:>10.1?}");
        drop(store);
        life.stop();
    }

    first_events(&urls, time).await;
}

async fn open(url: &str, life: &Lifecycle) -> Arc<dyn Store> {
    let sources = Sources { overrides: vec![url.to_owned()], ..Sources::default() };
    let config = Config::load(&sources).expect("good settings");
    let mut registry = Registry::default();
    let health = Health::new(&mut registry);
    let dependency = health.dependency("store");
    store::open(&config.store, false, dependency, life, &mut registry).await.expect("a store")
}

async fn begin(store: &dyn Store) -> (Owner, Sequence) {
    let key = ConversationKey::new("bench", ConversationId(Uuid::new_v4()));
    let message = Message {
        participant: "bench".into(),
        text: "?".to_owned(),
        request: RequestId(Uuid::new_v4()),
    };
    let begin = Begin { message: message.into(), options: TurnOptions::default(), existing: false };
    match store.begin(&key, &begin).await.expect("a begin") {
        Begun::New { owner, start, .. } => (owner, start),
        other => panic!("{other:?}"),
    }
}

async fn append(store: &dyn Store, owner: &Owner, number: u64) {
    append_all(store, owner, number, &[EventBody::Delta("x".repeat(PIECE).into())]).await;
}

async fn append_all(store: &dyn Store, owner: &Owner, number: u64, events: &[EventBody]) {
    let appended = store.append(owner, number, events).await.expect("an append");
    assert!(matches!(appended, Appended::Stored { .. }));
}

/// The terminal event of a turn with this text.
fn completed(text: String) -> EventBody {
    let completion = Completion {
        text,
        answered: true,
        confidence: 1.0,
        sources: Vec::new(),
        usage: None,
        finish: FinishReason::Stop,
        degraded: false,
    };
    EventBody::Completed(completion.into())
}

/// What each step of each turn took.
async fn turns(store: &Arc<dyn Store>, owners: usize, time: Duration) -> Vec<[Duration; 3]> {
    let until = Instant::now() + time;
    let own = |_| async move {
        let mut times = Vec::new();
        loop {
            let start = Instant::now();
            if start >= until {
                break;
            }
            let (owner, _) = begin(&**store).await;
            let begun = Instant::now();
            append(&**store, &owner, 1).await;
            let appended = Instant::now();
            append_all(&**store, &owner, 2, &[completed("x".repeat(PIECE))]).await;
            times.push([begun - start, appended - begun, appended.elapsed()]);
        }
        times
    };
    join_all((0..owners).map(own)).await.concat()
}

/// Reads a long log again and again; what each time took.
async fn resumes(store: &dyn Store, time: Duration) -> Vec<Duration> {
    let (owner, _) = begin(store).await;
    // The question and the end are events too.
    let deltas = vec![EventBody::Delta("x".repeat(PIECE).into()); RESUMED - 2];
    let mut number = 1;
    for deltas in deltas.chunks(PAGE) {
        append_all(store, &owner, number, deltas).await;
        number += deltas.len() as u64;
    }
    append_all(store, &owner, number, &[completed("x".repeat(PIECE))]).await;

    let mut times = Vec::new();
    let until = Instant::now() + time;
    while Instant::now() < until {
        let begun = Instant::now();
        let (mut after, mut events) = (After::Sequence(Sequence::default()), 0);
        loop {
            let page = store.read(&owner.key, after, PAGE, false).await.expect("a read");
            events += page.events.len();
            let Some(last) = page.events.last() else { break };
            after = After::Position(last.position);
            if !page.more {
                break;
            }
        }
        assert_eq!(events, RESUMED, "every event is read once");
        times.push(begun.elapsed());
    }
    times
}

async fn appends(store: &Arc<dyn Store>, owners: usize, time: Duration) -> Vec<Duration> {
    let until = Instant::now() + time;
    let write = |_| async move {
        let (owner, _) = begin(&**store).await;
        let mut times = Vec::new();
        for number in 1.. {
            let start = Instant::now();
            if start >= until {
                break;
            }
            append(&**store, &owner, number).await;
            times.push(start.elapsed());
        }
        times
    };
    join_all((0..owners).map(write)).await.concat()
}

async fn to_reader(here: &Arc<dyn Store>, there: Arc<dyn Store>, time: Duration) -> Vec<Duration> {
    let (owner, start) = begin(&**here).await;
    let until = Instant::now() + time;
    let mut hint = there.hint(&owner.key);
    let mut after = After::Sequence(start);
    let mut times = Vec::new();
    for number in 1.. {
        let begun = Instant::now();
        if begun >= until {
            break;
        }
        let append = append(&**here, &owner, number);
        let read = async {
            loop {
                let page = there.read(&owner.key, after, 128, true).await.expect("a read");
                if let Some(event) = page.events.last() {
                    return (After::Position(event.position), begun.elapsed());
                }
                hint.changed().await;
            }
        };
        let ((), (position, taken)) = tokio::join!(append, read);
        after = position;
        times.push(taken);
    }
    times
}

/// Answers at once.
#[derive(Debug)]
struct AtOnce;

impl Engine for AtOnce {
    fn answer(&self, _: Question) -> Pieces {
        let end = End {
            answered: true,
            confidence: 1.0,
            sources: Vec::new(),
            usage: None,
            finish: FinishReason::Stop,
            degraded: false,
        };
        Box::pin(stream::iter([Ok(Piece::Text("x".repeat(PIECE))), Ok(Piece::End(end))]))
    }
}

async fn first_events(urls: &[(&str, String)], time: Duration) {
    println!("\n{:<12} {:>12} {:>12}   (p50 of a Chat)", "", "first event", "first text");
    let mut clients = vec![("echo", client(echo().await).await)];
    let mut lives = Vec::new();
    for (name, url) in urls {
        let life = Lifecycle::new();
        clients.push((*name, client(serve(url, &life).await).await));
        lives.push(life);
    }
    // In turns, so that a noisy moment meets all of them.
    let mut times: Vec<(Vec<Duration>, Vec<Duration>)> = vec![Default::default(); clients.len()];
    let until = Instant::now() + time * u32::try_from(clients.len()).unwrap_or(1);
    while Instant::now() < until {
        for ((_, client), (events, texts)) in clients.iter_mut().zip(&mut times) {
            let (event, text) = chat(client).await;
            events.push(event);
            texts.push(text);
        }
    }
    let mut echo = None;
    for ((name, _), (mut events, mut texts)) in clients.into_iter().zip(times) {
        let (event, text) = (percentile(&mut events, 50), percentile(&mut texts, 50));
        let (echo_event, echo_text) = *echo.get_or_insert((event, text));
        let (more, more_text) = (event.saturating_sub(echo_event), text.saturating_sub(echo_text));
        println!("{name:<12} {event:>12.1?} {text:>12.1?}   +{more:.1?}, +{more_text:.1?}");
    }
}

async fn chat(client: &mut ChatbotClient<Channel>) -> (Duration, Duration) {
    let request = ChatRequest {
        query: "?".to_owned(),
        request_id: Uuid::new_v4().to_string(),
        engine: proto::Engine::Generative.into(),
        ..ChatRequest::default()
    };
    let start = Instant::now();
    let mut stream = client.chat(request).await.expect("a stream").into_inner();
    let mut first = None;
    let mut text = None;
    while let Some(response) = stream.message().await.expect("no error") {
        first.get_or_insert_with(|| start.elapsed());
        if let Some(Body::TextDelta(_)) = response.event.and_then(|event| event.event) {
            text.get_or_insert_with(|| start.elapsed());
        }
    }
    (first.expect("an event"), text.expect("text"))
}

async fn client(address: SocketAddr) -> ChatbotClient<Channel> {
    ChatbotClient::connect(format!("http://{address}")).await.expect("a connection")
}

#[expect(clippy::disallowed_methods, reason = "ends with the program")]
async fn serve(url: &str, life: &Lifecycle) -> SocketAddr {
    let overrides = ["server.address=127.0.0.1:0", "ops.address=127.0.0.1:0", url];
    let overrides = overrides.map(str::to_owned).to_vec();
    let config = Config::load(&Sources { overrides, ..Sources::default() });
    let options = Options { generative: Some(Arc::new(AtOnce)), ..Options::default() };
    let app = Box::pin(App::bind(config.expect("good settings"), life.clone(), options)).await;
    let app = app.expect("a bound app");
    let address = app.addresses().server;
    tokio::spawn(app.run());
    address
}

#[expect(clippy::disallowed_methods, reason = "ends with the program")]
async fn echo() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = tonic::transport::Server::builder().add_service(ChatbotServer::new(Echo));
    tokio::spawn(server.serve_with_incoming(incoming));
    address
}

/// Says at once what the service would say, and keeps nothing.
#[derive(Debug)]
struct Echo;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Chatbot for Echo {
    type ChatStream = Answers<proto::ChatResponse>;
    type ConverseStream = Answers<proto::ConverseResponse>;
    type RankAnswersStream = Answers<proto::RankAnswersResponse>;

    async fn chat(&self, _: Request<ChatRequest>) -> Result<Response<Self::ChatStream>, Status> {
        let text = "x".repeat(PIECE);
        let bodies = [
            Body::MessagePosted(proto::MessagePosted::default()),
            Body::TextDelta(text.clone()),
            Body::TurnCompleted(proto::TurnCompleted { text, ..proto::TurnCompleted::default() }),
        ];
        let responses = bodies.map(|body| {
            let event = proto::Event { event: Some(body), ..proto::Event::default() };
            Ok(proto::ChatResponse { event: Some(event) })
        });
        Ok(Response::new(stream::iter(responses).boxed()))
    }

    async fn ask(
        &self,
        _: Request<proto::AskRequest>,
    ) -> Result<Response<proto::AskResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn rank_answers(
        &self,
        _: Request<proto::RankAnswersRequest>,
    ) -> Result<Response<Self::RankAnswersStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn teach(
        &self,
        _: Request<Streaming<proto::TeachRequest>>,
    ) -> Result<Response<proto::TeachResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn converse(
        &self,
        _: Request<Streaming<proto::ConverseRequest>>,
    ) -> Result<Response<Self::ConverseStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn cancel_turn(
        &self,
        _: Request<proto::CancelTurnRequest>,
    ) -> Result<Response<proto::CancelTurnResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

struct Redis {
    child: Child,
    port: u16,
}

impl Redis {
    fn start(folder: &std::path::Path) -> Option<Self> {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
        let port = free.expect("a free port").port();
        let child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", ""])
            .args(["--appendonly", "yes", "--appendfsync", "everysec", "--dir"])
            .arg(folder)
            .stdout(Stdio::null())
            .spawn()
            .ok()?;
        let redis = Self { child, port };
        let until = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < until, "redis-server does not come up");
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(redis)
    }

    fn url(&self) -> String {
        format!("store.url=redis://127.0.0.1:{}/0", self.port)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times
        .get((times.len() * percent / 100).min(times.len().saturating_sub(1)))
        .copied()
        .unwrap_or_default()
}

#[expect(clippy::cast_precision_loss, reason = "counts")]
fn f64_of(count: usize) -> f64 {
    count as f64
}

/// The number after `--seconds`; what cargo itself passes is nobody's business.
fn seconds() -> Option<u64> {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--seconds");
    arguments.next()?;
    arguments.next()?.parse().ok()
}
