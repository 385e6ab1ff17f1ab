//! One turn is one trace, whatever becomes of its calls and its owners.
//!
//! What a receiver of traces has in the end is looked at as a whole: whatever a span points to is there
//! too, and each span is there once.

use std::{collections::HashSet, net::SocketAddr, path::Path};

use chatbot::pb::chatbot::v1::{
    ChatRequest, ChatResponse, ConverseRequest, Event, Join, chatbot_client::ChatbotClient,
    converse_request::Request as Say, converse_response::Response as Told,
};
use opentelemetry_proto::tonic::trace::v1::{
    Span,
    span::{Link, SpanKind},
    status::StatusCode,
};
use tonic::{Request, Streaming};

use crate::{
    collector::{Collector, attribute, hex},
    conversations::{completed, failed, next, request, rest, text},
    redis,
    replica::Replica,
    scripted::{Script, notes},
    support::{LONG, channel, eventually, folder, metric},
};

/// Short, so that dead owners are noticed soon.
const IN_FLIGHT: &str = "chatbot_rpc_in_flight{method=\"chatbot.v1.Chatbot/Chat\"}";
const LEASE: &str = "store.lease=500ms";

/// The trace and the span of the call that begins, of the one that comes back, and of a listener.
const BEGINS: (&str, &str) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
const RESUMES: (&str, &str) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
const LISTENS: (&str, &str) = ("7bba9f33312b3dbb8b2c2c62bb7abe2d", "086e83747d0e381e");

/// A request of a caller that traces.
fn traced<T>(message: T, (trace, span): (&str, &str)) -> Request<T> {
    let mut request = Request::new(message);
    let parent = format!("00-{trace}-{span}-01").parse().expect("a value");
    request.metadata_mut().insert("traceparent", parent);
    request.metadata_mut().insert("tracestate", "quokka=smiles".parse().expect("a value"));
    request
}

async fn chat(
    address: SocketAddr,
    message: &ChatRequest,
    caller: (&str, &str),
) -> Streaming<ChatResponse> {
    let mut client = ChatbotClient::new(channel(address).await);
    client.chat(traced(message.clone(), caller)).await.expect("a stream").into_inner()
}

fn script(hangs_at: Option<usize>) -> Script {
    Script { seed: 7, pieces: 5, bytes: 300, every: 1, hangs_at }
}

fn after(request: &ChatRequest, event: &Event) -> ChatRequest {
    ChatRequest { resume_token: event.resume_token.clone(), ..request.clone() }
}

async fn started(folder: &Path, request: &ChatRequest) {
    eventually(|| notes(&folder.join("notes")).contains_key(&request.request_id)).await;
}

/// All that came of one turn.
#[derive(Debug)]
struct Trace {
    turn: Span,
    /// In their order.
    attempts: Vec<Span>,
    calls: Vec<Span>,
}

impl Trace {
    /// Checks that nothing is missing: the turn is there once, each of its attempts is, and whatever a
    /// span points to, but for the callers' own spans.
    fn of(spans: Vec<Span>, request: &ChatRequest) -> Self {
        let ids: HashSet<_> = spans.iter().map(|span| span.span_id.clone()).collect();
        assert_eq!(ids.len(), spans.len(), "each is there once: {spans:#?}");
        let callers = [BEGINS, RESUMES, LISTENS].map(|(_, span)| span);
        for span in &spans {
            assert!(span.end_time_unix_nano >= span.start_time_unix_nano, "{span:#?}");
            let parent = &span.parent_span_id;
            let is_there = ids.contains(parent) || callers.contains(&hex(parent).as_str());
            assert!(is_there, "its parent is missing: {span:#?}");
            for link in &span.links {
                let linked = spans.iter().find(|other| other.span_id == link.span_id);
                let linked = linked.unwrap_or_else(|| panic!("a link to nothing: {span:#?}"));
                assert_eq!(linked.trace_id, link.trace_id);
            }
        }
        let (mut turns, mut attempts, mut calls) = (Vec::new(), Vec::new(), Vec::new());
        for span in spans {
            match &span.name[..] {
                "turn" => turns.push(span),
                "attempt" => attempts.push(span),
                _ => calls.push(span),
            }
        }
        assert_eq!(turns.len(), 1, "{turns:#?}");
        let turn = turns.remove(0);
        assert_eq!(hex(&turn.trace_id), BEGINS.0);
        assert_eq!(hex(&turn.parent_span_id), BEGINS.1);
        let attempts_told = format!("IntValue({})", attempts.len());
        assert_eq!(attribute(&turn, "chatbot.turn.attempts"), Some(attempts_told));
        attempts.sort_by_key(|span| attribute(span, "chatbot.turn.attempt"));
        for (index, attempt) in attempts.iter().enumerate() {
            let number = format!("IntValue({})", index + 1);
            assert_eq!(attribute(attempt, "chatbot.turn.attempt"), Some(number));
            assert_eq!(attempt.parent_span_id, turn.span_id);
            assert_eq!(attempt.trace_id, turn.trace_id);
            assert!(attempt.start_time_unix_nano >= turn.start_time_unix_nano);
            assert!(attempt.end_time_unix_nano <= turn.end_time_unix_nano);
            let before = index.checked_sub(1).map(|before| &attempts[before].span_id);
            let links: Vec<_> = attempt.links.iter().map(|link| &link.span_id).collect();
            assert_eq!(links, Vec::from_iter(before), "each points to the one before");
        }
        for span in attempts.iter().chain([&turn]) {
            assert_eq!(span.kind(), SpanKind::Internal);
            assert_eq!(span.trace_state, "quokka=smiles");
            let id = Some(request.request_id.clone());
            assert_eq!(attribute(span, "chatbot.turn.id"), id);
            assert_eq!(attribute(span, "chatbot.engine").as_deref(), Some("generative"));
            assert!(attribute(span, "gen_ai.conversation.id").is_some());
        }
        Self { turn, attempts, calls }
    }

    /// How the attempts ended, and then the turn.
    fn outcomes(&self) -> Vec<String> {
        let spans = self.attempts.iter().chain([&self.turn]);
        let outcomes = spans.map(|span| {
            let outcome = attribute(span, "chatbot.turn.outcome").expect("an outcome");
            let failed = span.status.as_ref().is_some_and(|it| it.code() == StatusCode::Error);
            let error = failed.then(|| outcome.clone());
            assert_eq!(attribute(span, "error.type"), error);
            outcome
        });
        outcomes.collect()
    }

    /// The call of a caller, which points to the turn and to nothing else.
    fn linked_call(&self, (trace, span): (&str, &str)) -> &Span {
        let call = self.calls.iter().find(|call| hex(&call.parent_span_id) == span);
        let call = call.unwrap_or_else(|| panic!("no call of {span}: {:#?}", self.calls));
        assert_eq!((call.kind(), hex(&call.trace_id).as_str()), (SpanKind::Server, trace));
        let links: Vec<_> = call.links.iter().map(|link: &Link| &link.span_id).collect();
        assert_eq!(links, [&self.turn.span_id], "{call:#?}");
        call
    }
}

#[tokio::test]
async fn a_resumed_turn_is_one_trace_and_its_calls_point_to_it() {
    let Some(redis) = redis::start() else { return };
    let (mut collector, endpoint) = Collector::start().await;
    let folder = folder();
    let mut a = Replica::start(folder.path(), &[&redis.url(), &endpoint]);
    let mut b = Replica::start(folder.path(), &[&redis.url(), &endpoint]);
    let script = Script { every: 100, ..script(None) };
    let request = request(&script.question());
    let mut stream = chat(a.server, &request, BEGINS).await;
    let seen = [next(&mut stream).await, next(&mut stream).await];
    drop(stream);
    eventually(|| metric(a.ops, IN_FLIGHT) == Some(0.0)).await;

    // Somebody listens at the other replica, and the client comes back there.
    let join = Join { conversation_id: seen[0].conversation_id.clone(), ..Join::default() };
    let join = ConverseRequest { request: Some(Say::Join(join)) };
    let says =
        futures_util::StreamExt::chain(tokio_stream::iter([join]), futures_util::stream::pending());
    let mut guest = ChatbotClient::new(channel(b.server).await);
    let guest = guest.converse(traced(says, LISTENS)).await;
    let mut guest = guest.expect("a stream").into_inner();
    let (events, status) = rest(chat(b.server, &after(&request, &seen[1]), RESUMES).await).await;
    assert!(status.is_none(), "{status:?}");
    assert_eq!(text(&[&seen[..], &events].concat()), script.text());
    loop {
        let told = tokio::time::timeout(LONG, guest.message()).await.expect("in time");
        let told = told.expect("no error").expect("no end");
        if let Some(Told::Event(event)) = told.response
            && event.sequence_number == events.last().expect("an end").sequence_number
        {
            break;
        }
    }
    drop(guest);
    b.stop().await;
    a.stop().await;

    let trace = Trace::of(collector.spans().await, &request);
    assert_eq!(trace.outcomes(), ["answered", "answered"]);
    assert_eq!(trace.calls.len(), 3);
    let (begins, resumes) = (trace.linked_call(BEGINS), trace.linked_call(RESUMES));
    assert!(
        begins.end_time_unix_nano < resumes.start_time_unix_nano,
        "a call that was dropped has ended, whatever becomes of its turn"
    );
    trace.linked_call(LISTENS);
}

#[tokio::test]
async fn a_turn_that_was_run_again_has_both_attempts() {
    let Some(redis) = redis::start() else { return };
    let (mut collector, endpoint) = Collector::start().await;
    let folder = folder();
    let mut a = Replica::start(folder.path(), &[&redis.url(), LEASE, &endpoint]);
    let mut b = Replica::start(folder.path(), &[&redis.url(), LEASE, &endpoint]);
    let script = script(Some(0));
    let request = request(&script.question());
    let mut stream = chat(a.server, &request, BEGINS).await;
    let message = next(&mut stream).await;
    started(folder.path(), &request).await;
    a.kill();
    let again = after(&request, &message);
    let (events, status) = rest(chat(b.server, &again, RESUMES).await).await;
    assert!(status.is_none(), "{status:?}");
    assert_eq!(completed(events.last().expect("an end")).text, script.text());
    b.stop().await;

    let trace = Trace::of(collector.spans().await, &request);
    assert_eq!(trace.outcomes(), ["lost", "answered", "answered"]);
    // The first call's span was lost with its replica, and nothing needs it.
    assert_eq!(trace.calls.len(), 1);
    trace.linked_call(RESUMES);
}

#[tokio::test]
async fn a_turn_that_broke_off_with_its_owner_is_ended_by_who_takes_it_over() {
    let Some(redis) = redis::start() else { return };
    let (mut collector, endpoint) = Collector::start().await;
    let folder = folder();
    let mut a = Replica::start(folder.path(), &[&redis.url(), LEASE, &endpoint]);
    let mut b = Replica::start(folder.path(), &[&redis.url(), LEASE, &endpoint]);
    let request = request(&script(Some(2)).question());
    let mut stream = chat(a.server, &request, BEGINS).await;
    let seen = [next(&mut stream).await, next(&mut stream).await, next(&mut stream).await];
    a.kill();
    let again = after(&request, &seen[2]);
    let (events, status) = rest(chat(b.server, &again, RESUMES).await).await;
    assert!(status.is_some());
    assert_eq!(failed(events.last().expect("an end")).partial_text, text(&seen));
    b.stop().await;

    let trace = Trace::of(collector.spans().await, &request);
    assert_eq!(trace.outcomes(), ["lost", "interrupted", "interrupted"]);
    assert_eq!(trace.calls.len(), 1);
    trace.linked_call(RESUMES);
}

#[tokio::test]
async fn an_owner_that_thaws_adds_nothing_to_the_trace() {
    let Some(redis) = redis::start() else { return };
    let (mut collector, endpoint) = Collector::start().await;
    let folder = folder();
    let mut a = Replica::start(folder.path(), &[&redis.url(), LEASE, &endpoint]);
    let mut b = Replica::start(folder.path(), &[&redis.url(), LEASE, &endpoint]);
    let request = request(&Script { pieces: 10_000, every: 20, ..script(None) }.question());
    let mut stream = chat(a.server, &request, BEGINS).await;
    let seen = [next(&mut stream).await, next(&mut stream).await];
    a.signal("STOP");
    let again = after(&request, &seen[1]);
    let (_, status) = rest(chat(b.server, &again, RESUMES).await).await;
    assert!(status.is_some());
    a.signal("CONT");
    eventually(|| metric(a.ops, "chatbot_turn_fenced_total") == Some(1.0)).await;
    drop(stream);
    a.stop().await;
    b.stop().await;

    let trace = Trace::of(collector.spans().await, &request);
    assert_eq!(trace.outcomes(), ["lost", "interrupted", "interrupted"]);
    assert_eq!(trace.calls.len(), 2);
    trace.linked_call(BEGINS);
    trace.linked_call(RESUMES);
}

#[tokio::test]
async fn the_turn_that_a_stop_interrupts_is_in_the_last_spans() {
    let (mut collector, endpoint) = Collector::start().await;
    let folder = folder();
    let mut only = Replica::start(folder.path(), &[&endpoint]);
    let request = request(&script(Some(2)).question());
    let mut stream = chat(only.server, &request, BEGINS).await;
    let _seen = [next(&mut stream).await, next(&mut stream).await];
    only.stop().await;

    let trace = Trace::of(collector.spans().await, &request);
    assert_eq!(trace.outcomes(), ["interrupted", "interrupted"]);
    trace.linked_call(BEGINS);
}

#[tokio::test]
async fn a_turn_that_died_with_its_only_server_is_ended_at_the_next_start() {
    let (mut collector, endpoint) = Collector::start().await;
    let folder = folder();
    let url = format!("store.url=redb:{}", folder.path().join("chatbot.redb").display());
    let mut only = Replica::start(folder.path(), &[&url, &endpoint]);
    let request = request(&script(Some(2)).question());
    let mut stream = chat(only.server, &request, BEGINS).await;
    let _seen = [next(&mut stream).await, next(&mut stream).await];
    only.kill();
    let mut only = Replica::start(folder.path(), &[&url, &endpoint]);
    only.stop().await;

    let trace = Trace::of(collector.spans().await, &request);
    assert_eq!(trace.outcomes(), ["interrupted", "interrupted"]);
    assert!(trace.calls.is_empty(), "{:#?}", trace.calls);
}

#[tokio::test]
async fn whoever_takes_over_a_turn_that_is_not_traced_does_not_trace_it() {
    let Some(redis) = redis::start() else { return };
    let (mut collector, endpoint) = Collector::start().await;
    let folder = folder();
    let sampled = "telemetry.sample_ratio=0";
    let mut a = Replica::start(folder.path(), &[&redis.url(), LEASE, &endpoint, sampled]);
    let mut b = Replica::start(folder.path(), &[&redis.url(), LEASE, &endpoint]);
    let request = request(&script(Some(0)).question());
    let mut stream = chat(a.server, &request, BEGINS).await;
    let message = next(&mut stream).await;
    started(folder.path(), &request).await;
    a.kill();
    let (_, status) = rest(chat(b.server, &after(&request, &message), RESUMES).await).await;
    assert!(status.is_none(), "{status:?}");
    b.stop().await;

    let spans = collector.spans().await;
    let names: Vec<_> = spans.iter().map(|span| &span.name[..]).collect();
    assert_eq!(names, ["chatbot.v1.Chatbot/Chat"], "{spans:#?}");
    assert!(spans[0].links.is_empty());
}
