//! What was promised, at size: three replicas over one Redis, and whatever happens to them.

use std::{
    collections::HashSet,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use chatbot::pb::chatbot::v1::{
    AskRequest, ChatRequest, ConverseRequest, Engine, Event, Join, PostMessage,
    chatbot_client::ChatbotClient, converse_request::Request as Say,
};
use futures_util::{StreamExt as _, future::join_all, stream};
use tokio::task::JoinSet;
use tonic::{Code, transport::Endpoint};

use crate::{
    conversations::{body, chat, completed, failed, id, reason, request, rest, text},
    redis,
    replica::Replica,
    scripted::{Script, notes, stepped},
    support::{LONG, channel, folder, report, start_scripted},
};

const TURNS: u64 = 1_000;
const AT_ONCE: usize = 40;
const LEASE: Duration = Duration::from_secs(1);

/// Three replicas, one of which may be down.
struct Fleet {
    folder: PathBuf,
    url: String,
    replicas: Vec<Mutex<Replica>>,
    /// Held by whoever disturbs one, so that two are always well.
    disturbing: tokio::sync::Mutex<()>,
    kills: AtomicUsize,
    freezes: AtomicUsize,
}

impl Fleet {
    fn start_one(folder: &std::path::Path, url: &str) -> Replica {
        Replica::start(folder, &[url, &format!("store.lease={}ms", LEASE.as_millis())])
    }

    fn address(&self, which: usize) -> SocketAddr {
        self.replicas[which].lock().expect("a replica").server
    }

    /// Kills the replica and starts another in its place, or freezes it past its lease. Does nothing
    /// while another one is disturbed.
    async fn disturb(self: &Arc<Self>, which: usize, kill: bool) {
        let Ok(_guard) = self.disturbing.try_lock() else { return };
        if kill {
            self.kills.fetch_add(1, Ordering::Relaxed);
            let this = Arc::clone(self);
            let restart = move || {
                this.replicas[which].lock().expect("a replica").kill();
                let new = Self::start_one(&this.folder, &this.url);
                *this.replicas[which].lock().expect("a replica") = new;
            };
            tokio::task::spawn_blocking(restart).await.expect("a new replica");
        } else {
            self.freezes.fetch_add(1, Ordering::Relaxed);
            self.replicas[which].lock().expect("a replica").signal("STOP");
            tokio::time::sleep(LEASE * 2).await;
            self.replicas[which].lock().expect("a replica").signal("CONT");
        }
    }
}

/// Numbers that look random and come again with the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % sides
    }
}

/// What one client went through.
struct Story {
    request: ChatRequest,
    seen: Vec<Event>,
    connections: usize,
    interrupted: usize,
}

enum Broke {
    /// The connection, or the client's patience.
    Connection,
    Interrupted,
    /// Nothing: it has all of it.
    Ended,
}

/// Reads on until something breaks.
async fn listen(
    fleet: &Arc<Fleet>,
    dice: &mut Dice,
    chaos_at: &mut Option<usize>,
    request: &ChatRequest,
    seen: &mut Vec<Event>,
) -> Broke {
    let which = usize::try_from(dice.roll(3)).expect("few");
    let endpoint = Endpoint::from_shared(format!("http://{}", fleet.address(which)));
    let endpoint = endpoint.expect("an address").connect_timeout(LEASE);
    // A replica that is frozen takes connections and says nothing.
    let Ok(Ok(channel)) = tokio::time::timeout(LEASE, endpoint.connect()).await else {
        return Broke::Connection;
    };
    let mut client = ChatbotClient::new(channel);
    let token = seen.last().map(|event| event.resume_token.clone()).unwrap_or_default();
    let request = ChatRequest { resume_token: token, ..request.clone() };
    let Ok(Ok(stream)) = tokio::time::timeout(LEASE * 2, client.chat(request)).await else {
        return Broke::Connection;
    };
    let mut stream = stream.into_inner();
    loop {
        if dice.roll(60) == 0 {
            return Broke::Connection;
        }
        if chaos_at.is_some_and(|at| seen.len() >= at) {
            *chaos_at = None;
            let (fleet, kill) = (Arc::clone(fleet), dice.roll(2) == 0);
            fleet.disturb(which, kill).await;
        }
        match tokio::time::timeout(LEASE * 2, stream.message()).await {
            Err(_) => return Broke::Connection,
            Ok(Ok(Some(response))) => {
                let event = response.event.expect("an event");
                let expected = seen.last().map_or(1, |last| last.sequence_number + 1);
                assert_eq!(event.sequence_number, expected, "nothing missing, nothing twice");
                assert!(!seen.last().is_some_and(is_end), "nothing after the end");
                seen.push(event);
            }
            Ok(Ok(None)) => return Broke::Ended,
            Ok(Err(status)) => match status.code() {
                Code::Unavailable if seen.last().is_some_and(is_end) => {
                    assert_eq!(reason(&status), "INTERRUPTED");
                    return Broke::Interrupted;
                }
                Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled => {
                    return Broke::Connection;
                }
                _ => panic!("{status:?}"),
            },
        }
    }
}

fn is_end(event: &Event) -> bool {
    use chatbot::pb::chatbot::v1::event::Event as Body;
    matches!(body(event), Body::TurnCompleted(_) | Body::TurnFailed(_))
}

/// One client: asks until it has an answer, come what may.
async fn tell(fleet: Arc<Fleet>, seed: u64) -> Story {
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let script = script(seed);
    let mut story = Story {
        request: request(&script.question()),
        seen: Vec::new(),
        connections: 0,
        interrupted: 0,
    };
    let mut chaos_at = Some(usize::try_from(dice.roll(52)).expect("few"));
    loop {
        story.connections += 1;
        assert!(story.connections < 500, "it never ends");
        let Story { request, seen, .. } = &mut story;
        match listen(&fleet, &mut dice, &mut chaos_at, request, seen).await {
            Broke::Connection => tokio::time::sleep(Duration::from_millis(20)).await,
            Broke::Interrupted => {
                let end = failed(seen.last().expect("an end"));
                assert_eq!(end.partial_text, text(seen));
                story.interrupted += 1;
                story.request = self::request(&script.question());
                story.seen = Vec::new();
            }
            Broke::Ended => return story,
        }
    }
}

fn script(seed: u64) -> Script {
    Script { seed, pieces: 50, bytes: 260, every: 25, hangs_at: None }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_turns_over_replicas_that_die_and_freeze_are_told_without_a_flaw() {
    let Some(redis) = redis::start() else { return };
    let folder = folder();
    let url = redis.url();
    let start = |_| Mutex::new(Fleet::start_one(folder.path(), &url));
    let fleet = Arc::new(Fleet {
        folder: folder.path().to_owned(),
        url: url.clone(),
        replicas: (0..3).map(start).collect(),
        disturbing: tokio::sync::Mutex::default(),
        kills: AtomicUsize::new(0),
        freezes: AtomicUsize::new(0),
    });
    let mut tellers = JoinSet::new();
    let mut stories = Vec::new();
    for seed in 1..=TURNS {
        if tellers.len() == AT_ONCE {
            stories.push(tellers.join_next().await.expect("one").expect("a story"));
        }
        tellers.spawn(tell(Arc::clone(&fleet), seed));
    }
    stories.extend(tellers.join_all().await);

    let mut requests = HashSet::new();
    let mut client = ChatbotClient::new(channel(fleet.address(0)).await);
    for story in &stories {
        assert!(requests.insert(story.request.request_id.clone()));
        let script: Script = serde_json::from_str(&story.request.query).expect("a script");
        // Byte for byte that of an undisturbed run, in pieces and as a whole.
        assert_eq!(text(&story.seen), script.text());
        assert_eq!(completed(story.seen.last().expect("an end")).text, script.text());
        assert!(story.seen.len() >= 50, "{}", story.seen.len());
        assert_eq!(story.seen.iter().filter(|event| is_end(event)).count(), 1);
        // And the log holds what was shown, and no more: no second run has left a trace.
        let (log, status) = rest(chat(&mut client, &story.request).await).await;
        assert!(status.is_none());
        assert_eq!(log, story.seen);
    }
    assert!(fleet.kills.load(Ordering::Relaxed) > 5 && fleet.freezes.load(Ordering::Relaxed) > 5);
    let sum = |of: fn(&Story) -> usize| stories.iter().map(of).sum::<usize>();
    let runs = notes(&folder.path().join("notes"));
    report(&format!(
        "{TURNS} turns: {} kills, {} freezes, {} connections, {} interrupted and asked again, {} \
         run again with nothing visible",
        fleet.kills.load(Ordering::Relaxed),
        fleet.freezes.load(Ordering::Relaxed),
        sum(|story| story.connections),
        sum(|story| story.interrupted),
        runs.values().filter(|runs| **runs > 1).count(),
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_equal_requests_at_three_replicas_are_one_generation() {
    let Some(redis) = redis::start() else { return };
    let (engine, mut questions) = stepped();
    let mut apps = Vec::new();
    for _ in 0..3 {
        apps.push(start_scripted(engine.again(), &[&redis.url()]).await);
    }
    let mut clients = Vec::new();
    for app in &apps {
        clients.push(app.chatbot().await);
    }
    let request = AskRequest {
        query: "the same?".to_owned(),
        request_id: id(),
        engine: Engine::Generative.into(),
        ..AskRequest::default()
    };
    let ask = |index: usize| {
        let (mut client, request) = (clients[index % 3].clone(), request.clone());
        async move { client.ask(request).await.expect("an answer").into_inner() }
    };
    let play = async {
        let played = questions.next().await;
        played.say("the same.").await;
        played.end().await;
    };
    let (answers, ()) = tokio::join!(join_all((0..200).map(ask)), play);
    assert_eq!(answers.len(), 200);
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    assert_eq!(answers[0].answer.as_ref().expect("an answer").text, "the same.");
    assert!(questions.is_empty(), "one generation");
    for client in &mut clients {
        let other = AskRequest { query: "another?".to_owned(), ..request.clone() };
        let status = client.ask(other).await.expect_err("another payload");
        assert_eq!(
            (status.code(), &reason(&status)[..]),
            (Code::AlreadyExists, "REQUEST_ID_REUSED")
        );
    }
    for app in apps {
        app.stop().await;
    }
}

/// Joins conversations of their own over `clients`, until each has `most`; every stream has been told
/// its own message.
async fn join_more(
    clients: &[ChatbotClient<tonic::transport::Channel>],
    number: usize,
    streams: &mut Vec<tonic::Streaming<chatbot::pb::chatbot::v1::ConverseResponse>>,
) {
    for client in clients {
        let joins = (0..number).map(|_| {
            let mut client = client.clone();
            async move {
                let post = PostMessage {
                    request_id: id(),
                    text: "hello".to_owned(),
                    no_reply: true,
                    ..PostMessage::default()
                };
                let says = [Say::Join(Join::default()), Say::PostMessage(post)];
                let says = says.map(|say| ConverseRequest { request: Some(say) });
                let says = stream::iter(says).chain(stream::pending());
                let mut told = client.converse(says).await.expect("a stream").into_inner();
                told.message().await.expect("no error").expect("its own message");
                told
            }
        });
        streams.extend(tokio::time::timeout(LONG, join_all(joins)).await.expect("in time"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_joined_streams_cost_the_store_no_connection() {
    let Some(redis) = redis::start() else { return };
    let folder = folder();
    let replica = Replica::start(folder.path(), &[&redis.url()]);
    let descriptors = || {
        let folder = format!("/proc/{}/fd", replica.id());
        std::fs::read_dir(folder).expect("its descriptors").count()
    };
    // One of them is the look itself.
    let connections = || redis.command(&["CLIENT", "LIST"]).matches("id=").count();
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(ChatbotClient::new(channel(replica.server).await));
    }
    let mut streams = Vec::new();
    join_more(&clients, 1, &mut streams).await;
    let few = (descriptors(), connections());
    join_more(&clients, 99, &mut streams).await;
    assert_eq!(streams.len(), 1_000);
    let many = (descriptors(), connections());
    assert_eq!(many, few, "descriptors and store connections with 1,000 and with 10 streams");
    report(&format!(
        "1,000 joined streams: {} descriptors, {} store connections",
        many.0,
        many.1 - 1
    ));
}
