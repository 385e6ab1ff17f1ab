//! What becomes of a turn when the model's server does what such servers do: each fault as the client
//! of the chatbot sees it, and how often the model was called.

use std::time::{Duration, Instant};

use chatbot::pb::chatbot::v1::{
    CancelTurnRequest, ChatRequest, Engine, Event, FinishReason, TurnCompleted,
    chatbot_client::ChatbotClient,
};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::json;
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::{
    collector::{Collector, attribute, hex},
    conversations::{chat, completed, delta, failed, next, reason, request, rest, text},
    model::{Call, Model},
    support::{Process, Running, channel, eventually, folder, metric, report, serve, start},
};

/// An app that asks `model`.
async fn app(model: &Model, more: &[&str]) -> Running {
    let settings = model.settings(more);
    start(&settings.iter().map(String::as_str).collect::<Vec<_>>()).await
}

/// What a client of the chatbot saw of one turn.
struct Seen {
    events: Vec<Event>,
    status: Option<Status>,
    /// How often the model was called.
    calls: usize,
    took: Duration,
}

impl Seen {
    fn completed(&self) -> &TurnCompleted {
        assert!(self.status.is_none(), "{:?}", self.status);
        completed(self.events.last().expect("an end"))
    }

    /// Checks a failure: its reason in the status and in the event, what was said before it, and how
    /// often the model was called.
    fn failed(&self, told: &str, partial: &str, calls: usize) {
        let status = self.status.as_ref().expect("a status");
        assert_eq!((status.code(), &reason(status)[..]), (Code::Unavailable, told));
        let end = failed(self.events.last().expect("an end"));
        assert_eq!((end.code, &end.reason[..]), (Code::Unavailable.into(), told));
        assert_eq!((&end.partial_text[..], &text(&self.events)[..]), (partial, partial));
        assert_eq!(self.calls, calls);
    }
}

/// Asks `engine` and plays the model's side of each call.
async fn ask<F>(
    model: &mut Model,
    app: &Running,
    asked: &ChatRequest,
    play: impl Fn(Call) -> F,
) -> Seen
where
    F: Future<Output = ()> + Send + 'static,
{
    let (start, before) = (Instant::now(), model.count());
    let mut client = app.chatbot().await;
    let stream = chat(&mut client, asked).await;
    let mut rest = Box::pin(rest(stream));
    let mut plays = JoinSet::new();
    let (events, status) = loop {
        tokio::select! {
            seen = &mut rest => break seen,
            call = model.next() => { plays.spawn(play(call)); }
        }
    };
    // A play that has failed has failed the test.
    while let Some(played) = plays.join_next().await {
        played.expect("it is played to its end");
    }
    Seen { events, status, calls: model.count() - before, took: start.elapsed() }
}

/// One turn of the generative engine.
async fn generate<F>(more: &[&str], play: impl Fn(Call) -> F) -> Seen
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut model = Model::start().await;
    let app = app(&model, more).await;
    let seen = ask(&mut model, &app, &request("Why?"), play).await;
    app.stop().await;
    seen
}

#[tokio::test]
async fn an_answer_streams_and_tells_its_tokens() {
    let mut model = Model::start().await;
    let more = [
        "upstream.max_output_tokens=100",
        "upstream.temperature=0.5",
        "engine.system_prompt=Be kind.",
    ];
    let app = app(&model, &more).await;
    let asked = ChatRequest { language_code: "ko-KR".to_owned(), ..request("왜?") };
    let mut client = app.chatbot().await;
    let mut stream = chat(&mut client, &asked).await;
    next(&mut stream).await;
    let call = model.next().await;
    assert_eq!(call.header("x-request-id"), Some(&asked.request_id[..]));
    assert_eq!(call.header("authorization"), None);
    assert_eq!(call.header("traceparent"), None, "nothing is traced");
    let expected = json!({
        "model": "tiny",
        "messages": [
            {"role": "system", "content": "Be kind.\nThe language of the answer: ko."},
            {"role": "user", "content": "왜?"},
        ],
        "stream": true,
        "stream_options": {"include_usage": true},
        "max_tokens": 100,
        "temperature": 0.5,
    });
    assert_eq!(call.body, expected);
    let played = call.stream();
    played.event(&json!({"choices": [{"delta": {"role": "assistant", "content": null}}]})).await;
    played.raw(": still there\n\n").await;
    played.say("왜냐하면 ").await;
    assert_eq!(delta(&next(&mut stream).await), "왜냐하면 ");
    played.answer("그렇습니다.").await;
    let (events, status) = rest(stream).await;
    assert!(status.is_none());
    let end = completed(events.last().expect("an end"));
    assert_eq!(end.text, "왜냐하면 그렇습니다.");
    assert!(end.answered && !end.degraded && end.sources.is_empty());
    assert_eq!(end.finish_reason(), FinishReason::Stop);
    let usage = end.usage.expect("tokens");
    assert_eq!((usage.input_tokens, usage.output_tokens), (7, 3));
    let ops = app.addresses.ops;
    for (name, value) in [
        ("chatbot_upstream_requests_total{outcome=\"completed\"}", 1.0),
        ("chatbot_upstream_tokens_total{direction=\"input\"}", 7.0),
        ("chatbot_upstream_tokens_total{direction=\"output\"}", 3.0),
        ("chatbot_upstream_first_token_seconds_count", 1.0),
        ("chatbot_upstream_duration_seconds_count", 1.0),
        ("chatbot_upstream_in_flight", 0.0),
        ("chatbot_upstream_breaker_state", 0.0),
    ] {
        assert_eq!(metric(ops, name), Some(value), "{name}");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_cut_in_the_middle_is_truncated_and_not_repeated() {
    let seen = generate(&[], async |call: Call| {
        let played = call.stream();
        played.say("half an ").await;
        played.cut().await;
    })
    .await;
    seen.failed("UPSTREAM_TRUNCATED", "half an ", 1);
}

#[tokio::test]
async fn a_cut_before_the_first_text_is_asked_again() {
    let seen = generate(&[], async |call: Call| call.stream().cut().await).await;
    seen.failed("UPSTREAM_UNAVAILABLE", "", 3);
}

#[tokio::test]
async fn a_stream_that_is_done_without_a_reason_is_truncated() {
    let seen = generate(&[], async |call: Call| {
        let played = call.stream();
        played.say("three of ").await;
        played.done().await;
    })
    .await;
    seen.failed("UPSTREAM_TRUNCATED", "three of ", 1);
    let seen = generate(&[], async |call: Call| call.stream().done().await).await;
    seen.failed("UPSTREAM_UNAVAILABLE", "", 3);
}

#[tokio::test]
async fn the_end_of_the_stream_is_not_the_end_of_the_answer() {
    let seen = generate(&[], async |call: Call| call.stream().say("three of ").await).await;
    seen.failed("UPSTREAM_TRUNCATED", "three of ", 1);
}

#[tokio::test]
async fn an_answer_with_a_reason_is_whole_whatever_comes_after() {
    for after in ["", "data: {nonsense\n\n", "data: {\"error\": \"too late\"}\n\n"] {
        let seen = generate(&[], move |call: Call| async move {
            let played = call.stream();
            played.say("whole").await;
            played.finish("stop").await;
            played.raw(after).await;
            played.cut().await;
        })
        .await;
        assert_eq!((&seen.completed().text[..], seen.calls), ("whole", 1), "{after}");
        assert!(seen.completed().usage.is_none());
    }
}

#[tokio::test]
async fn too_many_requests_are_repeated_when_the_server_says() {
    let mut model = Model::start().await;
    let app = app(&model, &[]).await;
    let first = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let seen = ask(&mut model, &app, &request("Why?"), |call| {
        let first = first.swap(false, std::sync::atomic::Ordering::SeqCst);
        async move {
            if first {
                let body = r#"{"error":{"message":"slow down"}}"#;
                return call.refuse(429, &[("retry-after", "1")], body);
            }
            call.stream().answer("at last").await;
        }
    })
    .await;
    assert_eq!((&seen.completed().text[..], seen.calls), ("at last", 2));
    assert!(seen.took >= Duration::from_secs(1), "{:?}", seen.took);
    assert_eq!(metric(app.addresses.ops, "chatbot_turn_retries_total"), Some(1.0));
    app.stop().await;
}

#[tokio::test]
async fn too_many_requests_for_ever_are_unavailable() {
    let seen = generate(&[], async |call: Call| call.refuse(429, &[("retry-after", "0")], "no"));
    seen.await.failed("UPSTREAM_UNAVAILABLE", "", 3);
}

#[tokio::test]
async fn an_error_of_the_server_is_repeated() {
    for status in [500, 503, 408] {
        let seen =
            generate(&[], move |call: Call| async move { call.refuse(status, &[], "down") }).await;
        seen.failed("UPSTREAM_UNAVAILABLE", "", 3);
    }
}

#[tokio::test]
async fn a_refusal_is_not_repeated() {
    for status in [400, 401, 403, 404, 413, 422, 302] {
        let seen =
            generate(&[], move |call: Call| async move { call.refuse(status, &[], "no") }).await;
        seen.failed("UPSTREAM_UNAVAILABLE", "", 1);
    }
}

#[tokio::test]
async fn garbage_is_no_answer() {
    let html = async |call: Call| {
        call.refuse(200, &[("content-type", "text/html")], "<html>sign in</html>");
    };
    generate(&[], html).await.failed("UPSTREAM_UNAVAILABLE", "", 3);
    let seen = generate(&[], async |call: Call| {
        let played = call.stream();
        played.say("so far ").await;
        played.raw("data: {\"choices\": [{]\n\n").await;
        played.closed().await;
    })
    .await;
    seen.failed("UPSTREAM_TRUNCATED", "so far ", 1);
}

#[tokio::test]
async fn an_error_in_the_stream_is_an_error() {
    let error = json!({"error": {"message": "out of memory", "type": "server_error"}});
    let before = error.clone();
    let seen = generate(&[], move |call: Call| {
        let error = before.clone();
        async move { call.stream().event(&error).await }
    })
    .await;
    seen.failed("UPSTREAM_UNAVAILABLE", "", 3);
    let seen = generate(&[], move |call: Call| {
        let error = error.clone();
        async move {
            let played = call.stream();
            played.say("so far ").await;
            played.event(&error).await;
            played.closed().await;
        }
    })
    .await;
    seen.failed("UPSTREAM_TRUNCATED", "so far ", 1);
    // One that says it is the asker's fault is not repeated; one that comes as a body is one too.
    let seen = generate(&[], async |call: Call| {
        let error = json!({"error": {"message": "too long", "code": 400}});
        call.stream().event(&error).await;
    })
    .await;
    seen.failed("UPSTREAM_UNAVAILABLE", "", 1);
    let seen = generate(&[], async |call: Call| {
        let body = r#"{"error":{"message":"no such model","code":404}}"#;
        call.refuse(200, &[("content-type", "application/json")], body);
    })
    .await;
    seen.failed("UPSTREAM_UNAVAILABLE", "", 1);
}

#[tokio::test]
async fn silence_before_the_first_token_is_unavailable() {
    let settings = ["upstream.first_token_timeout=200ms"];
    let seen = generate(&settings, Call::keep_silent).await;
    seen.failed("UPSTREAM_UNAVAILABLE", "", 3);
    // Headers, comments and a role are no token.
    let seen = generate(&settings, async |call: Call| {
        let played = call.stream();
        played.raw(": processing\n\n").await;
        played.event(&json!({"choices": [{"delta": {"role": "assistant"}}]})).await;
        played.closed().await;
    })
    .await;
    seen.failed("UPSTREAM_UNAVAILABLE", "", 3);
}

#[tokio::test]
async fn silence_between_tokens_is_truncated() {
    let seen = generate(&["upstream.idle_timeout=200ms"], async |call: Call| {
        let played = call.stream();
        played.say("and then ").await;
        played.closed().await;
    })
    .await;
    seen.failed("UPSTREAM_TRUNCATED", "and then ", 1);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unavailable() {
    let mut model = Model::start().await;
    let gone = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr();
    let url = format!("upstream.base_url=http://{}", gone.expect("an address"));
    let app = app(&model, &[&url]).await;
    let seen = ask(&mut model, &app, &request("Why?"), Call::keep_silent).await;
    seen.failed("UPSTREAM_UNAVAILABLE", "", 0);
    app.stop().await;
}

#[tokio::test]
async fn an_unknown_reason_to_finish_is_an_end() {
    for (word, reason) in [
        ("eos_token", FinishReason::Stop),
        ("length", FinishReason::MaxTokens),
        ("content_filter", FinishReason::ContentFilter),
    ] {
        let seen = generate(&[], move |call: Call| async move {
            let played = call.stream();
            played.say("fine").await;
            played.finish(word).await;
            played.done().await;
        })
        .await;
        assert_eq!((&seen.completed().text[..], seen.calls), ("fine", 1));
        assert_eq!(seen.completed().finish_reason(), reason);
    }
}

#[tokio::test]
async fn a_model_that_says_nothing_does_not_know() {
    let seen = generate(&[], async |call: Call| {
        let played = call.stream();
        played.finish("tool_calls").await;
        played.done().await;
    })
    .await;
    let end = seen.completed();
    assert!(!end.answered && end.text.contains("do not know"), "{end:?}");
}

#[tokio::test]
async fn a_huge_line_is_given_up() {
    let seen = generate(&[], async |call: Call| {
        let played = call.stream();
        played.say("so far ").await;
        played.raw("data: ").await;
        // As long as anybody takes it; 64 MiB would not be noticed as a leak.
        for _ in 0..1_000 {
            played.raw(vec![b'x'; 64 * 1024]).await;
        }
        played.closed().await;
    })
    .await;
    seen.failed("UPSTREAM_TRUNCATED", "so far ", 1);
}

#[tokio::test]
async fn a_slow_drip_of_bytes_is_the_same_answer() {
    let seen = generate(&["upstream.idle_timeout=5s"], async |call: Call| {
        let played = call.stream();
        let first = json!({"choices": [{"delta": {"content": "한국어 🎉 "}}]});
        let last = json!({"choices": [{"delta": {"content": "끝"}, "finish_reason": "stop"}]});
        let stream =
            format!(": hi\r\n\r\ndata: {first}\r\n\r\ndata: {last}\r\n\r\ndata: [DONE]\r\n\r\n");
        for byte in stream.into_bytes() {
            played.raw(vec![byte]).await;
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(seen.completed().text, "한국어 🎉 끝");
}

#[tokio::test]
async fn a_server_that_keeps_failing_is_left_alone() {
    let mut model = Model::start().await;
    let app = app(&model, &[]).await;
    let fail = async |call: Call| call.refuse(500, &[], "down");
    for (turn, calls) in [(1, 3), (2, 2), (3, 0)] {
        let seen = ask(&mut model, &app, &request("Why?"), fail).await;
        seen.failed("UPSTREAM_UNAVAILABLE", "", calls);
        let open = metric(app.addresses.ops, "chatbot_upstream_breaker_state");
        assert_eq!(open, Some(if turn == 1 { 0.0 } else { 1.0 }), "turn {turn}");
    }
    let skipped = "chatbot_upstream_requests_total{outcome=\"breaker_open\"}";
    assert_eq!(metric(app.addresses.ops, skipped), Some(4.0));
    app.stop().await;
}

#[tokio::test]
async fn a_client_that_goes_takes_the_call_with_it() {
    let mut model = Model::start().await;
    let app = app(&model, &["store.detach_grace=0s"]).await;
    let mut took = Vec::new();
    for _ in 0..20 {
        let mut client = app.chatbot().await;
        let mut stream = chat(&mut client, &request("Why?")).await;
        next(&mut stream).await;
        let played = model.next().await.stream();
        played.say("so far ").await;
        assert_eq!(delta(&next(&mut stream).await), "so far ");
        let gone = Instant::now();
        drop(stream);
        played.closed().await;
        took.push(gone.elapsed());
    }
    took.sort();
    let (median, longest) = (took[10], took[19]);
    report(&format!(
        "upstream call closed after its client: median {median:?}, longest {longest:?}"
    ));
    assert!(median < Duration::from_millis(250), "{took:?}");
    let cancelled = "chatbot_upstream_requests_total{outcome=\"cancelled\"}";
    eventually(|| metric(app.addresses.ops, cancelled) == Some(20.0)).await;
    app.stop().await;
}

#[tokio::test]
async fn the_stop_button_closes_the_call() {
    let mut model = Model::start().await;
    let app = app(&model, &[]).await;
    let mut client = app.chatbot().await;
    // Before the first token, and after it.
    for said in ["", "so far "] {
        let asked = request("Why?");
        let mut stream = chat(&mut client, &asked).await;
        let conversation_id = next(&mut stream).await.conversation_id;
        let call = model.next().await;
        let turn = CancelTurnRequest { conversation_id, turn_id: asked.request_id.clone() };
        let stop = Instant::now();
        if said.is_empty() {
            client.cancel_turn(turn).await.expect("stopped");
            call.keep_silent().await;
        } else {
            let played = call.stream();
            played.say(said).await;
            assert_eq!(delta(&next(&mut stream).await), said);
            client.cancel_turn(turn).await.expect("stopped");
            played.closed().await;
        }
        report(&format!("upstream call closed after CancelTurn: {:?}", stop.elapsed()));
        let (events, status) = rest(stream).await;
        assert!(status.is_none());
        let end = completed(events.last().expect("an end"));
        assert_eq!((end.finish_reason(), &end.text[..]), (FinishReason::Cancelled, said));
    }
    app.stop().await;
}

#[tokio::test]
async fn a_connection_serves_one_call_after_the_other() {
    let mut model = Model::start().await;
    let app = app(&model, &[]).await;
    for _ in 0..20 {
        let seen = ask(&mut model, &app, &request("Why?"), async |call: Call| {
            call.stream().answer("Because.").await;
        })
        .await;
        assert_eq!(seen.completed().text, "Because.");
    }
    assert_eq!((model.count(), model.connections()), (20, 1));
    app.stop().await;
}

#[tokio::test]
async fn tls_and_http_2_are_spoken_with_authorities_from_a_file() {
    let files = folder();
    let (mut model, authority) = Model::start_tls(files.path()).await;
    let trusted = format!("upstream.ca_file={}", authority.display());
    let app = app(&model, &[&trusted]).await;
    let seen = ask(&mut model, &app, &request("Why?"), async |call: Call| {
        assert_eq!(call.version, http::Version::HTTP_2);
        call.stream().answer("secretly").await;
    })
    .await;
    assert_eq!(seen.completed().text, "secretly");
    app.stop().await;
}

/// A request to the augmented engine.
fn grounded(query: &str) -> ChatRequest {
    ChatRequest { engine: Engine::RetrievalAugmented.into(), ..request(query) }
}

#[tokio::test]
async fn an_augmented_answer_is_grounded_and_names_its_sources() {
    let mut model = Model::start().await;
    let app = app(&model, &["engine.default=augmented"]).await;
    // By default, and by name.
    for engine in [Engine::Unspecified, Engine::RetrievalAugmented] {
        let asked = ChatRequest { engine: engine.into(), ..grounded("too many open files") };
        let seen = ask(&mut model, &app, &asked, async |call: Call| {
            let asked = call.messages().pop().expect("a question");
            assert!(asked.contains("Question: too many open files"), "{asked}");
            assert!(asked.contains("Raise the limit and close your channels."), "{asked}");
            call.stream().answer("Raise it.").await;
        })
        .await;
        let end = seen.completed();
        assert_eq!((&end.text[..], end.sources[0].answer_id), ("Raise it.", 1));
        assert!(end.answered && !end.degraded && end.confidence >= 0.5, "{end:?}");
    }
    app.stop().await;
}

#[tokio::test]
async fn what_the_knowledge_base_does_not_know_is_not_asked() {
    let mut model = Model::start().await;
    let app = app(&model, &[]).await;
    let seen = ask(&mut model, &app, &grounded("best pizza in Naples"), Call::keep_silent).await;
    assert!(!seen.completed().answered && !seen.completed().degraded);
    assert_eq!(seen.calls, 0);
    app.stop().await;
}

#[tokio::test]
async fn it_is_asked_where_the_operator_wants_it() {
    let mut model = Model::start().await;
    let app = app(&model, &["engine.ungrounded=true"]).await;
    let seen = ask(&mut model, &app, &grounded("best pizza in Naples"), async |call: Call| {
        assert_eq!(call.messages().pop().as_deref(), Some("best pizza in Naples"));
        call.stream().answer("Margherita.").await;
    })
    .await;
    let end = seen.completed();
    assert!(end.answered && end.sources.is_empty() && end.confidence <= 0.0, "{end:?}");
    app.stop().await;
}

type Play = futures_util::future::BoxFuture<'static, ()>;

#[tokio::test]
async fn the_knowledge_base_answers_for_a_model_that_cannot_and_says_so() {
    let mut model = Model::start().await;
    let app = app(&model, &["upstream.first_token_timeout=2500ms"]).await;
    let fall_back = async |model: &mut Model, play: fn(Call) -> _, calls: usize| {
        let seen = ask(model, &app, &grounded("too many open files"), play).await;
        let end = seen.completed();
        assert_eq!(end.text, "Raise the limit and close your channels.");
        assert!(end.answered && end.degraded && end.usage.is_none(), "{end:?}");
        assert_eq!((end.sources[0].answer_id, seen.calls), (1, calls));
    };
    let refused: fn(Call) -> Play = |call| Box::pin(async { call.refuse(401, &[], "no") });
    let down: fn(Call) -> Play = |call| Box::pin(async { call.refuse(500, &[], "down") });
    let busy: fn(Call) -> Play =
        |call| Box::pin(async { call.refuse(429, &[("retry-after", "60")], "later") });
    let silent: fn(Call) -> Play = |call| Box::pin(call.keep_silent());
    fall_back(&mut model, refused, 1).await;
    fall_back(&mut model, busy, 1).await;
    fall_back(&mut model, silent, 1).await;
    fall_back(&mut model, down, 2).await;
    fall_back(&mut model, down, 2).await;
    // The breaker is open now.
    fall_back(&mut model, down, 0).await;
    assert_eq!(metric(app.addresses.ops, "chatbot_upstream_retries_total"), Some(2.0));
    app.stop().await;
}

#[tokio::test]
async fn after_the_first_text_there_is_no_falling_back() {
    let mut model = Model::start().await;
    let app = app(&model, &[]).await;
    let seen = ask(&mut model, &app, &grounded("too many open files"), async |call: Call| {
        let played = call.stream();
        played.say("Raise ").await;
        played.cut().await;
    })
    .await;
    seen.failed("UPSTREAM_TRUNCATED", "Raise ", 1);
    app.stop().await;
}

#[tokio::test]
async fn two_hundred_equal_requests_are_one_call() {
    let mut model = Model::start().await;
    let app = app(&model, &[]).await;
    let client = app.chatbot().await;
    let asked = request("Why?");
    let mut readers = JoinSet::new();
    for _ in 0..200 {
        let (mut client, asked) = (client.clone(), asked.clone());
        readers.spawn(async move { rest(chat(&mut client, &asked).await).await.0 });
    }
    model.next().await.stream().answer("once").await;
    while let Some(events) = readers.join_next().await {
        let events = events.expect("a reader");
        assert_eq!(completed(events.last().expect("an end")).text, "once");
    }
    assert_eq!(model.count(), 1);
    app.stop().await;
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const KEY: &str = "sk-0123456789abcdef";

/// The chatbot's own process, so that its log and its traces are seen. Two threads: the test blocks on
/// the process while its servers have to answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_is_shown_to_the_server_and_to_nobody_else() {
    let mut model = Model::start().await;
    let folder = folder();
    let file = folder.path().join("key");
    std::fs::write(&file, format!("{KEY}\n")).expect("a file");
    let key = format!("upstream.api_key_file={}", file.display());
    let filter =
        "telemetry.log_filter=debug,chatbot=trace,reqwest=trace,hyper=trace,hyper_util=trace";
    let settings = model.settings(&[&key, filter]);
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let mut process = Process::start(&mut serve(&folder, &settings));
    let server = process.wait_for_address(&["serving"]);
    let mut client = ChatbotClient::new(channel(server).await);

    let stream = chat(&mut client, &request("Why?")).await;
    let call = model.next().await;
    assert_eq!(call.header("authorization"), Some(&format!("Bearer {KEY}")[..]));
    call.refuse(401, &[], &format!("{{\"error\":{{\"message\":\"{KEY} is wrong\"}}}}"));
    let (events, status) = rest(stream).await;
    assert!(!format!("{events:?}{status:?}").contains(KEY));
    let line = process.wait_for(&["the engine failed"]);
    assert!(line.contains("it answered 401: *** is wrong"), "{line}");

    // Another key is taken from the file when the process is told.
    std::fs::write(&file, "sk-another").expect("a file");
    process.signal("HUP");
    process.wait_for(&["the model's key is reloaded"]);
    let stream = chat(&mut client, &request("Why?")).await;
    let call = model.next().await;
    assert_eq!(call.header("authorization"), Some("Bearer sk-another"));
    call.stream().answer("Because.").await;
    assert!(rest(stream).await.1.is_none());
    // A bad one is not.
    std::fs::write(&file, "").expect("a file");
    process.signal("HUP");
    process.wait_for(&["the model's key is not reloaded", "it is empty"]);

    process.signal("TERM");
    let (status, lines, stderr) = process.wait();
    assert_eq!(status.code(), Some(0));
    assert!(lines.len() > 20, "the filter lets much through");
    for line in lines.iter().chain([&stderr]) {
        assert!(!line.contains("sk-"), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_traced_call_is_a_span_and_goes_on_in_the_model() {
    let mut model = Model::start().await;
    let (mut collector, endpoint) = Collector::start().await;
    let folder = folder();
    let settings = model.settings(&[&endpoint]);
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let mut process = Process::start(&mut serve(&folder, &settings));
    let server = process.wait_for_address(&["serving"]);
    let mut client = ChatbotClient::new(channel(server).await);
    let mut parents = Vec::new();
    for flags in ["01", "00", "01"] {
        let mut asked = tonic::Request::new(request("Why?"));
        let parent = format!("00-{TRACE}-00f067aa0ba902b7-{flags}");
        asked.metadata_mut().insert("traceparent", parent.parse().expect("a value"));
        let stream = client.chat(asked).await.expect("a stream").into_inner();
        let call = model.next().await;
        let parent = call.header("traceparent").map(ToOwned::to_owned);
        assert_eq!(parent.is_some(), flags == "01");
        match parents.len() {
            0 => call.stream().answer("Because.").await,
            _ => call.refuse(404, &[], "no such model"),
        }
        parents.extend(parent);
        rest(stream).await;
    }
    process.signal("TERM");
    assert_eq!(process.wait().0.code(), Some(0));

    let mut spans = collector.spans().await;
    for span in spans.iter().filter(|span| span.kind() == SpanKind::Client) {
        let attempt = spans.iter().find(|other| other.span_id == span.parent_span_id);
        assert_eq!(attempt.expect("the attempt that asks").name, "attempt");
    }
    spans.retain(|span| span.kind() == SpanKind::Client);
    spans.sort_by_key(|span| span.start_time_unix_nano);
    assert_eq!(spans.len(), 2, "{spans:#?}");
    for (span, parent) in spans.iter().zip(&parents) {
        let expected = format!("00-{TRACE}-{}-01", hex(&span.span_id));
        assert_eq!((&span.name[..], parent), ("chat tiny", &expected));
        assert_eq!(hex(&span.trace_id), TRACE);
        let port = format!("IntValue({})", model.address.port());
        for (key, value) in [
            ("gen_ai.operation.name", "chat"),
            ("gen_ai.provider.name", "openai"),
            ("gen_ai.request.model", "tiny"),
            ("server.address", "localhost"),
            ("server.port", &port),
        ] {
            assert_eq!(attribute(span, key).as_deref(), Some(value), "{key}");
        }
    }
    for (key, value) in [
        ("gen_ai.response.model", "tiny-2"),
        ("gen_ai.usage.input_tokens", "IntValue(7)"),
        ("gen_ai.usage.output_tokens", "IntValue(3)"),
    ] {
        assert_eq!(attribute(&spans[0], key).as_deref(), Some(value), "{key}");
    }
    let reasons = attribute(&spans[0], "gen_ai.response.finish_reasons").expect("reasons");
    assert!(reasons.contains("stop"), "{reasons}");
    assert_eq!(attribute(&spans[0], "error.type"), None);
    assert_eq!(attribute(&spans[1], "error.type").as_deref(), Some("404"));
}
