//! The client keeps its promises over connections that die, servers that leave, refuse and fall silent.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use chatbot::{
    client::{Client, Conversation, Error, Options, Patience, Told},
    pb::chatbot::v1::{
        self as proto, AskRequest, ChatResponse, Event, FinishReason, PostMessage, TurnCompleted,
        event::Event as Body,
    },
};
use tokio::task::JoinSet;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    conversations::{completed, failed, posted, text},
    peer::Peer,
    proxy::Proxy,
    redis,
    replica::Replica,
    scripted::{Script, stepped},
    support::{LONG, Running, folder, report, start, start_scripted},
};

fn options(address: SocketAddr) -> Options {
    Options { limit: Some(LONG), ..Options::new([address.to_string()]) }
}

fn client(address: SocketAddr) -> Client {
    Client::new(options(address)).expect("good options")
}

/// A conversation with the scripted engine.
fn generative(client: &Client) -> Conversation {
    let mut conversation = client.conversation("");
    conversation.engine = proto::Engine::Generative;
    conversation
}

fn question(text: &str) -> AskRequest {
    AskRequest { query: text.to_owned(), ..AskRequest::default() }
}

/// What was told of a turn.
#[derive(Debug, Default)]
struct Transcript {
    events: Vec<Event>,
    lost: usize,
    restarted: usize,
}

/// Asks, and listens to the end.
async fn told(conversation: &mut Conversation, text: &str) -> Result<Transcript, Error> {
    let mut transcript = Transcript::default();
    let mut turn = conversation.ask(text);
    while let Some(told) = turn.next().await? {
        match told {
            Told::Event(event) => transcript.events.push(event),
            Told::Lost(_) => transcript.lost += 1,
            Told::Resumed => {}
            Told::Restarted => {
                transcript.restarted += 1;
                transcript.events.clear();
            }
        }
    }
    Ok(transcript)
}

/// The whole answer, as pieces and as a whole.
fn check_transcript(events: &[Event], expected: &str) {
    assert_eq!(text(events), expected);
    assert_eq!(completed(events.last().expect("an end")).text, expected);
    let sequences: Vec<_> = events.iter().map(|event| event.sequence_number).collect();
    assert!(sequences.is_sorted_by(|a, b| a < b), "{sequences:?}");
}

fn descriptors(process: u32) -> usize {
    std::fs::read_dir(format!("/proc/{process}/fd")).expect("its descriptors").count()
}

async fn calls_over_recycled_connections(calls: usize) {
    let app = start(&["server.max_age=300ms"]).await;
    let client = client(app.addresses.server);
    let started = Instant::now();
    for call in 0..calls {
        let answer = client.ask(question("too many open files")).await;
        let answer = answer.unwrap_or_else(|error| panic!("call {call}: {error}"));
        assert!(answer.answer.expect("an answer").answered);
    }
    report(&format!(
        "{calls} calls in {:.1?} over connections that live 300 ms: no error",
        started.elapsed()
    ));
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_calls_over_connections_that_live_300_ms_have_no_error() {
    calls_over_recycled_connections(5_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "ten times the one above"]
async fn fifty_thousand_calls_over_connections_that_live_300_ms_have_no_error() {
    calls_over_recycled_connections(50_000).await;
}

/// Two replicas over one store, and a proxy that cuts all connections and turns to the other one.
async fn turns_over_a_cutting_proxy(lasting: Duration, cut_every: Duration, at_once: u64) {
    let Some(redis) = redis::start() else { return };
    let folder = folder();
    let replicas = [(); 2].map(|()| Replica::start(folder.path(), &[&redis.url()]));
    let proxy = Proxy::to(replicas[0].server).await;
    let client = client(proxy.address);
    let end = Instant::now() + lasting;
    let mut talkers = JoinSet::new();
    for talker in 1..=at_once {
        let client = client.clone();
        talkers.spawn(async move {
            let mut conversation = generative(&client);
            let (mut turns, mut lost) = (0, 0);
            while Instant::now() < end {
                turns += 1;
                let seed = talker * 1_000_000 + turns;
                let script = Script { seed, pieces: 40, bytes: 260, every: 25, hangs_at: None };
                let told = told(&mut conversation, &script.question()).await.expect("an answer");
                check_transcript(&told.events, &script.text());
                assert_eq!(told.restarted, 0, "the store has lost nothing");
                lost += told.lost;
            }
            (turns, lost)
        });
    }
    let mut cuts = 0;
    while Instant::now() < end {
        tokio::time::sleep(cut_every).await;
        cuts += 1;
        proxy.turn_to(replicas[cuts % 2].server);
    }
    let (mut turns, mut lost) = (0, 0);
    for (some, times) in talkers.join_all().await {
        turns += some;
        lost += times;
    }
    assert!(lost > 0, "it was not cut at all");
    report(&format!(
        "{turns} turns of 40 events, {cuts} cuts in {lasting:?}, {lost} streams resumed: every \
         transcript exact"
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_over_a_proxy_that_cuts_twice_a_second_are_exact() {
    turns_over_a_cutting_proxy(Duration::from_secs(15), Duration::from_millis(500), 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes five minutes"]
async fn answers_over_a_proxy_that_cuts_for_five_minutes_are_exact() {
    turns_over_a_cutting_proxy(Duration::from_mins(5), Duration::from_secs(2), 10).await;
}

/// A call may meet the end of its connection at a moment when libraries lose it; it must not wait forever.
async fn reconnects_and_checks(reconnects: usize, checks: usize) {
    let folder = folder();
    let replica = Replica::start(folder.path(), &[]);
    let proxy = Proxy::to(replica.server).await;
    let client = client(proxy.address);
    let check = async || client.health("").await.expect("healthy");
    check().await;
    let before = (descriptors(std::process::id()), descriptors(replica.id()));
    for _ in 0..checks {
        check().await;
    }
    for _ in 0..reconnects {
        proxy.turn_to(replica.server);
        check().await;
    }
    // What was cut last is closed in a moment, also at the far end.
    let deadline = Instant::now() + LONG;
    let after = loop {
        let after = (descriptors(std::process::id()), descriptors(replica.id()));
        let flat = after.0.abs_diff(before.0) <= 2 && after.1.abs_diff(before.1) <= 2;
        if flat || Instant::now() > deadline {
            break after;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    report(&format!(
        "{checks} health checks, {reconnects} reconnects: descriptors of client and server {} and \
         {}, then {} and {}",
        before.0, before.1, after.0, after.1
    ));
    assert!(after.0.abs_diff(before.0) <= 2 && after.1.abs_diff(before.1) <= 2);
}

/// No test: its own descriptors are counted, so it runs in a process without other tests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the body of another test"]
async fn a_client_that_counts_its_descriptors() {
    reconnects_and_checks(1_000, 10_000).await;
}

#[test]
fn a_thousand_reconnects_and_ten_thousand_checks_leave_no_descriptor_behind() {
    let name = "client::a_client_that_counts_its_descriptors";
    let output = std::process::Command::new(std::env::current_exe().expect("this binary"))
        .args([name, "--exact", "--ignored", "--nocapture"])
        .output()
        .expect("it runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let counted = stderr.lines().find(|line| line.contains("descriptors")).expect("a report");
    report(counted);
}

fn exhausted(retry_after: Option<Duration>) -> Status {
    let mut details = ErrorDetails::with_error_info("OVERLOADED", "chatbot.v1.Chatbot", []);
    if let Some(after) = retry_after {
        details.set_retry_info(Some(after));
    }
    Status::with_error_details(Code::ResourceExhausted, "full", details)
}

#[tokio::test]
async fn what_is_exhausted_is_asked_again_only_if_told_and_not_before_its_time() {
    let peer = Peer::start().await;
    let client = client(peer.address);
    peer.refuse(vec![exhausted(None)]);
    let error = client.ask(question("?")).await.expect_err("refused");
    assert_eq!(error.reason().as_deref(), Some("OVERLOADED"));
    assert_eq!(peer.calls().len(), 1);

    let wait = Duration::from_millis(300);
    let mut pushed_back = Status::resource_exhausted("full");
    let value = "300".parse().expect("a value");
    pushed_back.metadata_mut().insert("grpc-retry-pushback-ms", value);
    for refusal in [exhausted(Some(wait)), pushed_back] {
        peer.refuse(vec![refusal.clone(), refusal]);
        let answer = client.ask(question("?")).await.expect("an answer");
        assert_eq!(answer.answer.expect("an answer").text, "yes");
        let calls = peer.calls();
        assert_eq!(calls.len(), 3);
        for pair in calls.windows(2) {
            assert!(pair[1].0 - pair[0].0 >= wait, "{calls:?}");
            assert_eq!(pair[1].1, pair[0].1, "one request");
        }
    }
}

#[tokio::test]
async fn a_call_that_waits_tries_its_connection_and_is_not_sent_again() {
    let peer = Peer::start().await;
    let brief = Duration::from_millis(50);
    let waits = Options { silence: brief, ..options(peer.address) };
    // Half of the limit is less than its patience.
    let limited =
        Options { silence: LONG, limit: Some(Duration::from_secs(10)), ..options(peer.address) };
    peer.hold();
    for options in [waits, limited] {
        let (calls, checks) = (peer.calls().len(), peer.checks());
        let client = Client::new(options).expect("good options");
        client.ask(question("?")).await.expect("an answer, once health was asked for");
        assert!(peer.checks() > checks);
        assert_eq!(peer.calls().len(), calls + 1);
    }
}

fn event(number: i64, body: Body) -> ChatResponse {
    ChatResponse {
        event: Some(Event {
            sequence_number: number,
            resume_token: format!("token {number}"),
            conversation_id: "c".to_owned(),
            event: Some(body),
            ..Event::default()
        }),
    }
}

fn delta(number: i64, text: &str) -> ChatResponse {
    event(number, Body::TextDelta(text.to_owned()))
}

fn end(number: i64, text: &str) -> ChatResponse {
    let completed = TurnCompleted { text: text.to_owned(), ..TurnCompleted::default() };
    event(number, Body::TurnCompleted(completed))
}

#[tokio::test]
async fn a_server_that_says_nothing_is_left_and_its_answer_goes_on_elsewhere() {
    let (frozen, well) = (Peer::start().await, Peer::start().await);
    frozen.chats(vec![(vec![delta(1, "one ")], None)]);
    well.chats(vec![(vec![delta(2, "two"), end(3, "one two")], None)]);
    let addresses = [frozen.address.to_string(), well.address.to_string()];
    let silence = Duration::from_millis(200);
    let client = Client::new(Options { silence, ..Options::new(addresses) });
    let client = client.expect("good options");
    let transcript = told(&mut client.conversation(""), "?").await.expect("an answer");
    check_transcript(&transcript.events, "one two");
    assert_eq!(transcript.lost, 1);
    let (first, again) = (frozen.asked(), well.asked());
    assert_eq!(again[0].resume_token, "token 1");
    let same = proto::ChatRequest { resume_token: String::new(), ..again[0].clone() };
    assert_eq!(first[0], same, "the same request, with the last token");
}

#[tokio::test]
async fn an_unknown_position_begins_again_and_says_so() {
    let peer = Peer::start().await;
    let lost = Status::unavailable("cut");
    let unknown = ErrorDetails::with_error_info("RESUME_TOKEN_INVALID", "chatbot.v1.Chatbot", []);
    let unknown = Status::with_error_details(Code::OutOfRange, "unknown", unknown);
    peer.chats(vec![
        (vec![delta(7, "old ")], Some(lost)),
        (Vec::new(), Some(unknown)),
        (vec![delta(1, "new "), end(2, "new text")], None),
    ]);
    let client = client(peer.address);
    let transcript = told(&mut client.conversation(""), "?").await.expect("an answer");
    assert_eq!(transcript.restarted, 1);
    assert_eq!(text(&transcript.events), "new ");
    let tokens: Vec<_> = peer.asked().iter().map(|asked| asked.resume_token.clone()).collect();
    assert_eq!(tokens, ["", "token 7", ""]);
}

#[tokio::test]
async fn events_out_of_order_are_an_error_and_not_shown() {
    let peer = Peer::start().await;
    peer.chats(vec![(vec![delta(2, "b"), delta(2, "b")], None)]);
    let client = client(peer.address);
    let mut conversation = client.conversation("");
    let mut turn = conversation.ask("?");
    assert!(matches!(turn.next().await, Ok(Some(Told::Event(_)))));
    assert!(matches!(turn.next().await, Err(Error::Contract(_))));
    assert!(matches!(turn.next().await, Ok(None)));
}

#[tokio::test]
async fn a_failed_turn_is_told_with_what_was_said_of_it() {
    let (engine, mut questions) = stepped();
    let app = start_scripted(engine, &[]).await;
    let client = client(app.addresses.server);
    let mut conversation = generative(&client);
    let play = async {
        let played = questions.next().await;
        played.say("half").await;
        played.fail(chatbot::engine::Error::Truncated("cut".to_owned())).await;
    };
    let (transcript, ()) = tokio::join!(told(&mut conversation, "?"), play);
    let transcript = transcript.expect("told");
    let end = failed(transcript.events.last().expect("an end"));
    assert_eq!((&end.reason[..], &end.partial_text[..]), ("UPSTREAM_TRUNCATED", "half"));
    // And the conversation goes on.
    let play = async {
        let played = questions.next().await;
        played.say("whole").await;
        played.end().await;
    };
    let (transcript, ()) = tokio::join!(told(&mut conversation, "again?"), play);
    check_transcript(&transcript.expect("told").events, "whole");
    app.stop().await;
}

#[tokio::test]
async fn a_turn_can_be_stopped_before_anything_is_known_of_it() {
    let (engine, mut questions) = stepped();
    let app = start_scripted(engine, &[]).await;
    let client = client(app.addresses.server);
    let mut conversation = generative(&client);
    let mut turn = conversation.ask("?");
    turn.cancel().await.expect("noted");
    let mut last = None;
    while let Some(told) = turn.next().await.expect("no error") {
        if let Told::Event(event) = told {
            last = Some(event);
        }
    }
    let end = last.expect("an end");
    assert_eq!(completed(&end).finish_reason(), FinishReason::Cancelled);
    questions.next().await.dropped().await;
    app.stop().await;
}

#[tokio::test]
async fn limits_and_patience_end_what_does_not() {
    let nobody =
        Options { connect_timeout: Duration::from_secs(1), ..Options::new(["127.0.0.1:1"]) };
    let none = Patience { budget: Duration::ZERO, ..Patience::default() };
    let impatient = Client::new(Options { patience: none, ..nobody.clone() }).expect("options");
    assert!(matches!(impatient.ask(question("?")).await, Err(Error::Connect { .. })));
    let some = Patience { budget: Duration::from_millis(300), ..none };
    let patient = Client::new(Options { patience: some, ..nobody }).expect("options");
    let failed = told(&mut patient.conversation(""), "?").await;
    assert!(matches!(failed, Err(Error::Connect { .. })), "{failed:?}");

    let peer = Peer::start().await;
    peer.chats(vec![(vec![delta(1, "one ")], None)]);
    let limit = Some(Duration::from_millis(200));
    let hurried = Client::new(Options { limit, ..options(peer.address) }).expect("options");
    let mut conversation = hurried.conversation("");
    let mut turn = conversation.ask("?");
    assert!(matches!(turn.next().await, Ok(Some(Told::Event(_)))));
    assert!(matches!(turn.next().await, Err(Error::Limit)));
    assert!(matches!(turn.next().await, Ok(None)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn teaching_and_ranking_outlive_their_connections_too() {
    let app = start(&["server.max_age=100ms"]).await;
    let proxy = Proxy::to(app.addresses.server).await;
    let client = client(proxy.address);
    let entry = proto::KnowledgeEntry {
        answer_id: 77,
        questions: vec!["When does the quokka smile?".to_owned()],
        answer: "Always.".to_owned(),
        language_code: String::new(),
    };
    let change = proto::teach_request::Change::Upsert(entry);
    let changes = vec![proto::TeachRequest { change: Some(change) }];
    let query = proto::RankAnswersRequest { query: "quokka".to_owned(), ..Default::default() };
    for round in 0..100 {
        let taught = client.teach(changes.clone()).await;
        assert_eq!(taught.expect("taught").upserted_count, 1);
        if round % 10 == 0 {
            proxy.turn_to(app.addresses.server);
        }
        let ranked = client.rank_answers(query.clone()).await.expect("answers");
        assert_eq!(ranked[0].answer_id, 77);
    }
    app.stop().await;
}

/// Listens until `wanted` events were told.
async fn hear(session: &mut chatbot::client::Session, wanted: usize, heard: &mut Vec<Event>) {
    while heard.len() < wanted {
        match tokio::time::timeout(LONG, session.next()).await.expect("in time") {
            Ok(Some(Told::Event(event))) => heard.push(event),
            Ok(Some(Told::Lost(_) | Told::Resumed)) => {}
            other => panic!("{other:?}"),
        }
    }
}

fn remark(text: String) -> PostMessage {
    PostMessage { text, no_reply: true, ..PostMessage::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_outlives_its_connections_and_every_message_is_said_once() {
    // Every connection says goodbye after 300 ms, and a proxy cuts every 170.
    let app: Running = start(&["server.max_age=300ms", "server.age_grace=200ms"]).await;
    let proxy = Proxy::to(app.addresses.server).await;
    let client = client(proxy.address);
    let mut session = client.join("");
    let mut heard = Vec::new();
    session.post(remark("0".to_owned()));
    hear(&mut session, 1, &mut heard).await;
    let mut cut = tokio::time::interval(Duration::from_millis(170));
    for number in 1..200 {
        session.post(remark(number.to_string()));
        tokio::select! {
            () = hear(&mut session, number + 1, &mut heard) => {}
            () = async {
                loop {
                    cut.tick().await;
                    proxy.turn_to(app.addresses.server);
                }
            } => {}
        }
        // Slow enough for many goodbyes, and not at rest while one comes.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let texts: Vec<_> = heard.iter().map(|event| posted(event).text.clone()).collect();
    assert_eq!(texts, (0..200).map(|number| number.to_string()).collect::<Vec<_>>());

    // One who joins later has heard the same.
    let mut late = client.join(session.id());
    let mut history = Vec::new();
    hear(&mut late, 200, &mut history).await;
    assert_eq!(history, heard);
    let refused = late.post(PostMessage { text: " ".to_owned(), ..PostMessage::default() });
    assert!(!refused.is_empty());
    let error = loop {
        match late.next().await {
            Ok(Some(Told::Lost(_) | Told::Resumed)) => {}
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.reason().as_deref(), Some("FIELD_INVALID"));
    assert!(matches!(late.next().await, Ok(None)));
    app.stop().await;
}
