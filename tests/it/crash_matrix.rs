//! Every row of the crash matrix in ARCHITECTURE.md, by its name there.
//!
//! Replicas that only read or are cut off are apps in this process; those that are killed and frozen
//! are processes. All of them share one real redis-server, unless the row is about one node.

use std::{net::SocketAddr, time::Duration};

use chatbot::pb::chatbot::v1::{
    AskRequest, ChatRequest, ConverseRequest, Event, FinishReason, Join, KnowledgeEntry,
    TeachRequest, chatbot_client::ChatbotClient, converse_request::Request as Say,
    converse_response::Response as Told, teach_request::Change,
};
use tonic::{Code, transport::Channel};

use crate::{
    conversations::{
        chat, completed, delta, failed, id, next, posted, reason, request, rest, text, unavailable,
    },
    proxy::Proxy,
    redis::{self, Redis},
    replica::Replica,
    scripted::{Script, notes, stepped},
    support::{
        LONG, Running, SmallDisk, channel, eventually, folder, metric, serve, start_scripted,
    },
};

/// Short, so that dead owners are noticed soon.
const LEASE: &str = "store.lease=500ms";

type Client = ChatbotClient<Channel>;

async fn client(address: SocketAddr) -> Client {
    ChatbotClient::new(channel(address).await)
}

/// Two replicas in this process, over one store, that one test plays.
async fn two(redis: &Redis) -> (Running, Running, crate::scripted::Questions) {
    let (engine, questions) = stepped();
    let url = redis.url();
    let a = start_scripted(engine.again(), &[&url, LEASE]).await;
    let b = start_scripted(engine, &[&url, LEASE]).await;
    (a, b, questions)
}

fn script(hangs_at: Option<usize>) -> Script {
    Script { seed: 7, pieces: 5, bytes: 300, every: 1, hangs_at }
}

fn scripted(script: &Script) -> ChatRequest {
    request(&script.question())
}

#[expect(clippy::cast_precision_loss, reason = "a small number")]
fn f64_of(number: i64) -> f64 {
    number as f64
}

fn after(request: &ChatRequest, event: &Event) -> ChatRequest {
    ChatRequest { resume_token: event.resume_token.clone(), ..request.clone() }
}

#[tokio::test]
async fn connection_drops() {
    let Some(redis) = redis::start() else { return };
    let (engine, mut questions) = stepped();
    let url = redis.url();
    // Connections of replica B live a fifth of a second.
    let a = start_scripted(engine.again(), &[&url]).await;
    let b = start_scripted(engine, &[&url, "server.max_age=200ms", "server.age_grace=500ms"]).await;
    let request = request("?");
    let mut stream = chat(&mut a.chatbot().await, &request).await;
    let played = questions.next().await;
    played.say("0 ").await;
    let mut seen = vec![next(&mut stream).await, next(&mut stream).await];
    drop(stream);
    let mut cuts = 0;
    for _ in 0..100 {
        let again = after(&request, seen.last().expect("events"));
        let stream = match b.chatbot().await.chat(again).await {
            Ok(stream) => stream.into_inner(),
            // On a busy machine a connection may be old before it is asked.
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                continue;
            }
        };
        // One piece a connection, then its age ends it.
        cuts += 1;
        played.say(&format!("{cuts} ")).await;
        let (more, status) = rest(stream).await;
        seen.extend(more);
        assert_eq!(reason(&status.expect("cut by age")), "DRAINING");
        if cuts == 5 {
            break;
        }
    }
    assert_eq!(cuts, 5);
    played.end().await;
    let again = after(&request, seen.last().expect("events"));
    let (more, status) = rest(chat(&mut a.chatbot().await, &again).await).await;
    assert!(status.is_none());
    seen.extend(more);
    assert_eq!(completed(seen.last().expect("an end")).text, "0 1 2 3 4 5 ");
    assert_eq!(text(&seen), "0 1 2 3 4 5 ");
    let sequences: Vec<_> = seen.iter().map(|event| event.sequence_number).collect();
    assert_eq!(sequences, (1..=8).collect::<Vec<_>>());
    assert!(questions.is_empty());
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn drop_before_the_first_event() {
    let Some(redis) = redis::start() else { return };
    let (a, b, mut questions) = two(&redis).await;
    let request = request("?");
    let mut first = a.chatbot().await;
    // The call is dropped as soon as its turn runs, whether it has been answered or not.
    let played = {
        let call = first.chat(request.clone());
        tokio::pin!(call);
        tokio::select! {
            played = questions.next() => played,
            stream = &mut call => {
                drop(stream);
                questions.next().await
            }
        }
    };
    drop(first);
    let stream = chat(&mut b.chatbot().await, &request).await;
    played.say("once").await;
    played.end().await;
    let (events, status) = rest(stream).await;
    assert!(status.is_none());
    assert_eq!(text(&events), "once");
    assert!(questions.is_empty(), "no second generation");
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn same_request_at_two_replicas_at_once() {
    let Some(redis) = redis::start() else { return };
    let (a, b, mut questions) = two(&redis).await;
    let request = request("?");
    let (mut one, mut two) = (a.chatbot().await, b.chatbot().await);
    let (one, two) = tokio::join!(chat(&mut one, &request), chat(&mut two, &request));
    let played = questions.next().await;
    played.say("for both").await;
    played.end().await;
    let (one, two) = tokio::join!(rest(one), rest(two));
    assert_eq!(one.0, two.0);
    assert_eq!(text(&one.0), "for both");
    assert!(questions.is_empty(), "one owner, two readers");
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn crash_between_append_and_send() {
    let Some(redis) = redis::start() else { return };
    let folder = folder();
    let mut a = Replica::start(folder.path(), &[&redis.url(), LEASE]);
    let b = Replica::start(folder.path(), &[&redis.url(), LEASE]);
    let script = script(Some(2));
    let request = scripted(&script);
    // Its client takes the head of the answer and reads nothing.
    let unread = chat(&mut client(a.server).await, &request).await;
    // The log has two pieces: somebody else has read them.
    let mut other = chat(&mut client(b.server).await, &request).await;
    let seen = [next(&mut other).await, next(&mut other).await, next(&mut other).await];
    a.kill();
    drop(unread);
    let (events, status) = rest(chat(&mut client(b.server).await, &request).await).await;
    assert_eq!(events[..3], seen, "what was logged and not sent is there");
    assert_eq!(reason(&status.expect("a status")), "INTERRUPTED");
    assert_eq!(failed(events.last().expect("an end")).partial_text, text(&seen));
}

#[tokio::test]
async fn append_outcome_unknown() {
    let Some(redis) = redis::start() else { return };
    let (a, b, mut questions) = two(&redis).await;
    let request = request("?");
    let mut stream = chat(&mut a.chatbot().await, &request).await;
    let played = questions.next().await;
    played.say("before ").await;
    posted(&next(&mut stream).await);
    assert_eq!(delta(&next(&mut stream).await), "before ");
    // The store takes the command and answers nobody, until its time is over.
    redis.signal("STOP");
    played.say("during ").await;
    eventually(|| metric(a.addresses.ops, "chatbot_health_ready") == Some(0.0)).await;
    redis.signal("CONT");
    played.say("after").await;
    played.end().await;
    let (events, status) = rest(stream).await;
    assert!(status.is_none(), "{status:?}");
    assert_eq!(completed(events.last().expect("an end")).text, "before during after");
    assert_eq!(text(&events), "during after", "repeated, and stored once");
    // The other replica sees the same.
    let (all, _) = rest(chat(&mut b.chatbot().await, &request).await).await;
    assert_eq!(all[2..], events);
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn owner_killed_nothing_visible_yet() {
    let Some(redis) = redis::start() else { return };
    let folder = folder();
    let mut a = Replica::start(folder.path(), &[&redis.url(), LEASE]);
    let b = Replica::start(folder.path(), &[&redis.url(), LEASE]);
    let script = script(Some(0));
    let request = scripted(&script);
    let mut stream = chat(&mut client(a.server).await, &request).await;
    let message = next(&mut stream).await;
    eventually(|| notes(&folder.path().join("notes")).contains_key(&request.request_id)).await;
    a.kill();
    let again = after(&request, &message);
    let (events, status) = rest(chat(&mut client(b.server).await, &again).await).await;
    assert!(status.is_none(), "{status:?}");
    assert_eq!(text(&events), script.text());
    assert_eq!(completed(events.last().expect("an end")).text, script.text());
    assert_eq!(notes(&folder.path().join("notes"))[&request.request_id], 2);
}

#[tokio::test]
async fn owner_killed_after_a_delta() {
    let Some(redis) = redis::start() else { return };
    let folder = folder();
    let mut a = Replica::start(folder.path(), &[&redis.url(), LEASE]);
    let b = Replica::start(folder.path(), &[&redis.url(), LEASE]);
    let script = script(Some(2));
    let request = scripted(&script);
    let mut stream = chat(&mut client(a.server).await, &request).await;
    let seen = [next(&mut stream).await, next(&mut stream).await, next(&mut stream).await];
    a.kill();
    let mut b_client = client(b.server).await;
    let (events, status) = rest(chat(&mut b_client, &after(&request, &seen[2])).await).await;
    let status = status.expect("a status");
    assert_eq!((status.code(), &reason(&status)[..]), (Code::Unavailable, "INTERRUPTED"));
    assert_eq!(events.len(), 1);
    assert_eq!(failed(&events[0]).partial_text, text(&seen));
    assert_eq!(notes(&folder.path().join("notes"))[&request.request_id], 1, "never again");
    // In the same conversation, a new request.
    let conversation_id = seen[0].conversation_id.clone();
    let anew = ChatRequest { conversation_id, ..scripted(&self::script(None)) };
    let (events, status) = rest(chat(&mut b_client, &anew).await).await;
    assert!(status.is_none());
    assert_eq!(text(&events), script.text());
}

#[tokio::test]
async fn owner_frozen_past_its_lease_and_thawed() {
    let Some(redis) = redis::start() else { return };
    let folder = folder();
    let a = Replica::start(folder.path(), &[&redis.url(), LEASE]);
    let b = Replica::start(folder.path(), &[&redis.url(), LEASE]);
    let script = Script { pieces: 10_000, every: 20, ..script(None) };
    let request = scripted(&script);
    let mut stream = chat(&mut client(a.server).await, &request).await;
    let seen = [next(&mut stream).await, next(&mut stream).await];
    a.signal("STOP");
    let mut b_client = client(b.server).await;
    let (events, status) = rest(chat(&mut b_client, &after(&request, &seen[1])).await).await;
    assert_eq!(reason(&status.expect("a status")), "INTERRUPTED");
    a.signal("CONT");
    // It goes on, finds that it has lost the turn, and stops.
    eventually(|| metric(a.ops, "chatbot_turn_fenced_total") == Some(1.0)).await;
    eventually(|| metric(a.ops, "chatbot_turn_running") == Some(0.0)).await;
    let (now, _) = rest(chat(&mut b_client, &after(&request, &seen[1])).await).await;
    assert_eq!(now, events, "it has added nothing");
}

#[tokio::test]
async fn sigterm() {
    let Some(redis) = redis::start() else { return };
    let folder = folder();
    let a = Replica::start(folder.path(), &[&redis.url(), LEASE, "server.drain_grace=2s"]);
    let b = Replica::start(folder.path(), &[&redis.url(), LEASE]);
    let mut a_client = client(a.server).await;
    // One that ends within the grace, one that does not, and one who listens.
    let short = Script { pieces: 20, every: 50, ..script(None) };
    let (short_request, long_request) = (scripted(&short), scripted(&script(Some(2))));
    let mut short_stream = chat(&mut a_client, &short_request).await;
    let mut long_stream = chat(&mut a_client, &long_request).await;
    posted(&next(&mut short_stream).await);
    let seen =
        [next(&mut long_stream).await, next(&mut long_stream).await, next(&mut long_stream).await];
    let join = Join { conversation_id: seen[0].conversation_id.clone(), ..Join::default() };
    let join = ConverseRequest { request: Some(Say::Join(join)) };
    let says =
        futures_util::StreamExt::chain(tokio_stream::iter([join]), futures_util::stream::pending());
    let mut guest = a_client.converse(says).await.expect("a stream").into_inner();
    a.signal("TERM");
    let ending = loop {
        let told = guest.message().await.expect("no error yet").expect("no end yet");
        match told.response {
            Some(Told::SessionEnding(ending)) => break ending,
            Some(Told::Event(_)) => {}
            other => panic!("{other:?}"),
        }
    };
    assert!(ending.time_left.is_some());
    let (events, status) = rest(short_stream).await;
    assert!(status.is_none(), "it had the time");
    assert_eq!(completed(events.last().expect("an end")).text, short.text());
    // Here or there, an explicit failure, written by the owner itself: no lease had to end.
    drop(long_stream);
    let again = after(&long_request, &seen[2]);
    let (events, status) = rest(chat(&mut client(b.server).await, &again).await).await;
    assert_eq!(reason(&status.expect("a status")), "INTERRUPTED");
    assert_eq!(failed(events.last().expect("an end")).partial_text, text(&seen));
    assert_eq!(metric(b.ops, "chatbot_turn_takeovers_total"), Some(0.0));
}

#[tokio::test]
async fn store_primary_lost_with_its_tail() {
    let Some(mut primary) = redis::start() else { return };
    let Some(replica) = redis::start() else { return };
    let proxy = Proxy::to(primary.address()).await;
    let (engine, mut questions) = stepped();
    let url = format!("store.url=redis://{}/0", proxy.address);
    let a = start_scripted(engine, &[&url, LEASE]).await;
    replica.follow(&primary);
    let request = request("?");
    let mut client = a.chatbot().await;
    let mut stream = chat(&mut client, &request).await;
    let played = questions.next().await;
    played.say("kept ").await;
    let kept = [next(&mut stream).await, next(&mut stream).await];
    assert_eq!(delta(&kept[1]), "kept ");
    // The replica is cut off; what comes now is acknowledged by the primary alone.
    replica.wait_for_offset_of(&primary).await;
    replica.command(&["REPLICAOF", "NO", "ONE"]);
    played.say("lost").await;
    let lost = next(&mut stream).await;
    assert_eq!(delta(&lost), "lost");
    primary.kill();
    proxy.turn_to(replica.address());
    // The position is gone: said at once, to who waits and to who comes.
    let (_, status) = rest(stream).await;
    let status = status.expect("an error");
    assert_eq!((status.code(), &reason(&status)[..]), (Code::OutOfRange, "RESUME_TOKEN_INVALID"));
    // The owner finds its numbers gone, and stops its model.
    played.dropped().await;
    let mut client = a.chatbot().await;
    let (events, status) = rest(chat(&mut client, &request).await).await;
    assert_eq!(events[..2], kept);
    assert_eq!(reason(&status.expect("a status")), "INTERRUPTED");
    assert_eq!(failed(events.last().expect("an end")).partial_text, "kept ");
    let (_, status) = rest(chat(&mut client, &after(&request, &lost)).await).await;
    assert_eq!(reason(&status.expect("a status")), "RESUME_TOKEN_INVALID");
    a.stop().await;
}

#[tokio::test]
async fn store_down() {
    let Some(mut redis) = redis::start() else { return };
    let (a, b, mut questions) = two(&redis).await;
    let request = request("?");
    let mut client = a.chatbot().await;
    let mut stream = chat(&mut client, &request).await;
    let played = questions.next().await;
    played.say("logged").await;
    let seen = [next(&mut stream).await, next(&mut stream).await];
    redis.kill();
    played.say("not logged").await;
    let status = b.chatbot().await.chat(self::request("!")).await.expect_err("no store");
    assert_eq!((status.code(), &reason(&status)[..]), (Code::Unavailable, "LOG_UNAVAILABLE"));
    assert!(status_has_retry(&status));
    // The running turn waits some seconds, then gives up its model.
    let (events, status) = rest(stream).await;
    assert!(events.is_empty(), "nothing unlogged was shown");
    assert_eq!(reason(&status.expect("a status")), "LOG_UNAVAILABLE");
    played.dropped().await;
    redis.restart();
    eventually(|| metric(b.addresses.ops, "chatbot_health_ready") == Some(1.0)).await;
    let mut client = b.chatbot().await;
    let (events, status) = rest(chat(&mut client, &request).await).await;
    assert_eq!(reason(&status.expect("a status")), "INTERRUPTED");
    assert_eq!(events[..2], seen, "what was shown is there");
    a.stop().await;
    b.stop().await;
}

fn status_has_retry(status: &tonic::Status) -> bool {
    use tonic_types::StatusExt as _;
    status.get_error_details().retry_info().is_some()
}

#[tokio::test]
async fn deltas_or_conversation_expired() {
    let Some(redis) = redis::start() else { return };
    let (a, b, mut questions) = two(&redis).await;
    let request = request("?");
    let mut client = b.chatbot().await;
    let stream = chat(&mut client, &request).await;
    let played = questions.next().await;
    played.say("gone soon").await;
    played.end().await;
    let (events, _) = rest(stream).await;
    redis.delete("*:deltas");
    let (rest_of_it, status) = rest(chat(&mut client, &after(&request, &events[1])).await).await;
    assert!(status.is_none());
    assert_eq!(rest_of_it, events[events.len() - 1..], "the end has the whole text");
    let (all, _) = rest(chat(&mut client, &request).await).await;
    assert_eq!(all, [events[0].clone(), events[events.len() - 1].clone()]);
    redis.delete("*:conv");
    redis.delete("*:log");
    redis.delete("*:req:*");
    let conversation_id = events[0].conversation_id.clone();
    let again = ChatRequest { conversation_id, request_id: id(), ..request };
    let status = client.chat(again).await.expect_err("it has expired");
    assert_eq!(reason(&status), "CONVERSATION_NOT_FOUND");
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn one_node_process_or_power_loss() {
    let folder = folder();
    let url = format!("store.url=redb:{}", folder.path().join("chatbot.redb").display());
    let mut node = Replica::start(folder.path(), &[&url]);
    let done = scripted(&script(None));
    let mut client = client(node.server).await;
    let (complete, _) = rest(chat(&mut client, &done).await).await;
    let open = scripted(&script(Some(3)));
    let mut stream = chat(&mut client, &open).await;
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(next(&mut stream).await);
    }
    node.kill();
    let node = Replica::start(folder.path(), &[&url]);
    let mut client = self::client(node.server).await;
    let (events, status) = rest(chat(&mut client, &open).await).await;
    assert_eq!(reason(&status.expect("a status")), "INTERRUPTED");
    assert_eq!(events[..4], seen, "the text is kept");
    assert_eq!(failed(events.last().expect("an end")).partial_text, text(&seen));
    let (events, status) = rest(chat(&mut client, &done).await).await;
    assert!(status.is_none());
    assert_eq!(events.last(), complete.last());
}

#[tokio::test]
async fn upstream_fails_before_the_first_delta() {
    let (engine, mut questions) = stepped();
    let app = start_scripted(engine, &[]).await;
    let request = request("?");
    let stream = chat(&mut app.chatbot().await, &request).await;
    questions.next().await.fail(unavailable()).await;
    questions.next().await.fail(unavailable()).await;
    let played = questions.next().await;
    played.say("at last").await;
    played.end().await;
    let (events, status) = rest(stream).await;
    assert!(status.is_none(), "a later start is all that is seen");
    assert_eq!(text(&events), "at last");
    // But not for ever.
    let stream = chat(&mut app.chatbot().await, &self::request("?")).await;
    for _ in 0..3 {
        questions.next().await.fail(unavailable()).await;
    }
    let (_, status) = rest(stream).await;
    assert_eq!(reason(&status.expect("a status")), "UPSTREAM_UNAVAILABLE");
    app.stop().await;
}

#[tokio::test]
async fn upstream_ends_without_a_finish_reason() {
    let (engine, mut questions) = stepped();
    let app = start_scripted(engine, &[]).await;
    let stream = chat(&mut app.chatbot().await, &request("?")).await;
    let played = questions.next().await;
    played.say("half").await;
    drop(played);
    let (events, status) = rest(stream).await;
    let status = status.expect("a status");
    assert_eq!((status.code(), &reason(&status)[..]), (Code::Unavailable, "UPSTREAM_TRUNCATED"));
    assert_eq!(failed(events.last().expect("an end")).partial_text, "half");
    app.stop().await;
}

#[tokio::test]
async fn reader_slow() {
    let (engine, mut questions) = stepped();
    let app = start_scripted(engine, &[]).await;
    let request = request("?");
    // Takes nothing, until everything is over.
    let slow = chat(&mut app.chatbot().await, &request).await;
    let mut quick = chat(&mut app.chatbot().await, &request).await;
    let played = questions.next().await;
    posted(&next(&mut quick).await);
    let piece = "x".repeat(1_000);
    for _ in 0..100 {
        played.say(&piece).await;
        assert_eq!(delta(&next(&mut quick).await), piece, "nobody is held up");
    }
    played.end().await;
    let (events, _) = rest(quick).await;
    let (late, status) = rest(slow).await;
    assert!(status.is_none());
    assert_eq!(late.len(), 102);
    assert_eq!(late.last(), events.last());
    assert_eq!(text(&late), piece.repeat(100));
    app.stop().await;
}

#[tokio::test]
async fn nobody_reads_for_detach_grace() {
    let Some(redis) = redis::start() else { return };
    let (engine, mut questions) = stepped();
    let (url, grace) = (redis.url(), "store.detach_grace=100ms");
    let a = start_scripted(engine.again(), &[&url, LEASE, grace]).await;
    let b = start_scripted(engine, &[&url, LEASE, grace]).await;
    let request = request("?");
    let mut here = chat(&mut a.chatbot().await, &request).await;
    let played = questions.next().await;
    let message = next(&mut here).await;
    // A reader of another replica counts as one, longer than the grace and the lease.
    let mut there = chat(&mut b.chatbot().await, &request).await;
    posted(&next(&mut there).await);
    drop(here);
    for piece in ["still ", "here "] {
        let heard = tokio::time::timeout(Duration::from_secs(1), played.dropped()).await;
        assert!(heard.is_err(), "somebody reads");
        played.say(piece).await;
        assert_eq!(delta(&next(&mut there).await), piece);
    }
    drop(there);
    tokio::time::timeout(LONG, played.dropped()).await.expect("nobody reads");
    let again = after(&request, &message);
    let (events, status) = rest(chat(&mut b.chatbot().await, &again).await).await;
    assert!(status.is_none());
    let end = completed(events.last().expect("an end"));
    assert_eq!((end.finish_reason(), &end.text[..]), (FinishReason::Cancelled, "still here "));
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn damaged_file_disk_full() {
    let Some(disk) = SmallDisk::mount() else { return };
    let folder = folder();
    let file = disk.path().join("chatbot.redb");
    let url = format!("store.url=redb:{}", file.display());
    let node = Replica::start(folder.path(), &[&url, LEASE]);
    let mut client = client(node.server).await;
    // More than there is room for.
    let long = Script { pieces: 120, bytes: 1_000, every: 0, ..script(None) };
    let mut full = None;
    let mut told = Vec::new();
    for seed in 0..100 {
        let request = scripted(&Script { seed, ..long.clone() });
        let (events, status) = match client.chat(request.clone()).await {
            Ok(stream) => rest(stream.into_inner()).await,
            Err(status) => (Vec::new(), Some(status)),
        };
        let Some(status) = status else {
            told.push((request, events));
            continue;
        };
        assert_eq!((status.code(), &reason(&status)[..]), (Code::Unavailable, "LOG_UNAVAILABLE"));
        full = Some((request, events));
        break;
    }
    let (request, events) = full.expect("the disk is full");
    disk.grow();
    eventually(|| metric(node.ops, "chatbot_health_ready") == Some(1.0)).await;
    // What was shown is there; where nothing was logged, the request is as good as new.
    let (again, _) = rest(chat(&mut client, &request).await).await;
    assert_eq!(again[..events.len()], events);
    for (request, events) in &told {
        let (again, status) = rest(chat(&mut client, request).await).await;
        assert!(status.is_none());
        assert_eq!(again.last(), events.last(), "what was acknowledged is kept");
    }
    drop(node);

    // And damaged, it is refused with a way out, not guessed at.
    let mut bytes = std::fs::read(&file).expect("the file");
    bytes[..512].fill(0xAA);
    std::fs::write(&file, &bytes).expect("the file");
    let output = serve(&folder, &[&url]).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("--set-aside-damaged-store"), "{stderr}");
    assert_eq!(std::fs::read(&file).expect("the file"), bytes, "it is left as it is");
}

#[tokio::test]
async fn teach_stream_drops() {
    let Some(redis) = redis::start() else { return };
    let (a, b, _questions) = two(&redis).await;
    let upsert = |answer_id: i32| TeachRequest {
        change: Some(Change::Upsert(KnowledgeEntry {
            answer_id,
            questions: vec![format!("What is the number {answer_id} called?")],
            answer: format!("Number {answer_id}."),
            language_code: "en".to_owned(),
        })),
    };
    let changes: Vec<_> = (1_000..1_300).map(upsert).collect();
    // The stream breaks in the middle; a part of it may have been kept.
    let (says, said) = tokio::sync::mpsc::channel(1);
    let mut client = a.chatbot().await;
    {
        let teach = client.teach(tokio_stream::wrappers::ReceiverStream::new(said));
        tokio::pin!(teach);
        for change in &changes[..280] {
            tokio::select! {
                sent = says.send(change.clone()) => sent.expect("it listens"),
                broke = &mut teach => panic!("{broke:?}"),
            }
        }
    }
    drop(client);
    // Sent again, to another replica, all of it counts once.
    let taught = b.chatbot().await.teach(tokio_stream::iter(changes)).await;
    let taught = taught.expect("a summary").into_inner();
    assert_eq!(taught.upserted_count, 300);
    let follows = |app: &Running| {
        let (ops, revision) = (app.addresses.ops, taught.knowledge_revision);
        move || metric(ops, "chatbot_knowledge_revision").is_some_and(|now| now >= f64_of(revision))
    };
    for app in [&a, &b] {
        eventually(follows(app)).await;
        assert_eq!(metric(app.addresses.ops, "chatbot_knowledge_entries"), Some(306.0));
        let question = AskRequest {
            query: "What is the number 1234 called?".to_owned(),
            ..AskRequest::default()
        };
        let answer = app.chatbot().await.ask(question).await.expect("an answer").into_inner();
        assert_eq!(answer.answer.expect("an answer").text, "Number 1234.");
    }
    a.stop().await;
    b.stop().await;
}
