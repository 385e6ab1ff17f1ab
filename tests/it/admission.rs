//! Admission: what is refused, how that is told, and what is never refused.

use std::time::Duration;

use chatbot::pb::chatbot::v1::{
    AskRequest, CancelTurnRequest, ChatRequest, Engine, RankAnswersRequest,
};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::{
    conversations::{chat, completed, delta, id, next, reason, request, rest, text},
    model::Model,
    redis,
    scripted::stepped,
    support::{eventually, metric, report, start, start_scripted},
};

/// The time to come back, which the status tells twice.
fn pushback(status: &Status) -> Duration {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let retry = status.get_error_details().retry_info().and_then(|retry| retry.retry_delay);
    let retry = retry.expect("a RetryInfo");
    let trailer = status.metadata().get("grpc-retry-pushback-ms").expect("a pushback");
    let trailer: u64 = trailer.to_str().expect("text").parse().expect("milliseconds");
    assert_eq!(u128::from(trailer), retry.as_millis());
    retry
}

#[tokio::test]
async fn what_has_no_slot_is_refused_and_everything_else_goes_on() {
    let (engine, mut questions) = stepped();
    let app = start_scripted(engine, &["engine.max_generations=2", "engine.queue_time=50ms"]).await;
    let mut client = app.chatbot().await;
    let first = request("one?");
    let mut streams = [chat(&mut client, &first).await, chat(&mut client, &request("two?")).await];
    let played = [questions.next().await, questions.next().await];

    let status = client.chat(request("three?")).await.expect_err("no slot");
    assert_eq!(reason(&status), "OVERLOADED");
    assert!(pushback(&status) >= Duration::from_millis(75));
    let ask = AskRequest {
        query: "three?".to_owned(),
        engine: Engine::Generative.into(),
        ..AskRequest::default()
    };
    assert_eq!(reason(&client.ask(ask).await.expect_err("no slot")), "OVERLOADED");
    // The same request is not a new one.
    let again = chat(&mut client, &first).await;
    // And the knowledge base needs no slot.
    let faq = AskRequest { query: "too many open files".to_owned(), ..AskRequest::default() };
    assert!(client.ask(faq).await.expect("an answer").into_inner().answer.expect("one").answered);
    let rank = RankAnswersRequest { query: "deadline".to_owned(), ..RankAnswersRequest::default() };
    assert!(client.rank_answers(rank).await.expect("ranks").into_inner().message().await.is_ok());

    // A call whose client has gone holds its slot: the generation goes on.
    let [one, two] = played;
    drop(streams[1].message());
    drop(std::mem::replace(&mut streams[1], again));
    assert_eq!(reason(&client.chat(request("three?")).await.expect_err("no slot")), "OVERLOADED");
    two.end().await;
    eventually(|| metric(app.addresses.ops, "chatbot_turn_slots_in_use") == Some(1.0)).await;
    let three = chat(&mut client, &request("three?")).await;
    questions.next().await.end().await;
    assert!(rest(three).await.1.is_none());
    one.end().await;
    for stream in streams {
        assert!(rest(stream).await.1.is_none());
    }
    let refused = "chatbot_turn_refused_total{reason=\"overloaded\"}";
    assert_eq!(metric(app.addresses.ops, refused), Some(3.0));
    app.stop().await;
}

#[tokio::test]
async fn a_request_waits_no_longer_than_its_caller() {
    let (engine, mut questions) = stepped();
    let app = start_scripted(engine, &["engine.max_generations=1", "engine.queue_time=1m"]).await;
    let mut client = app.chatbot().await;
    let running = chat(&mut client, &request("one?")).await;
    let played = questions.next().await;
    // In the queue until its deadline, and then told the reason rather than the deadline.
    let mut hurried = Request::new(request("two?"));
    hurried.set_timeout(Duration::from_millis(200));
    let status = client.chat(hurried).await.expect_err("no slot");
    assert!(
        [Code::ResourceExhausted, Code::DeadlineExceeded, Code::Cancelled].contains(&status.code())
    );
    eventually(|| metric(app.addresses.ops, "chatbot_turn_waiting") == Some(0.0)).await;
    // One who waits gets the slot that is freed.
    let mut other = client.clone();
    let patient = request("three?");
    let waits = async { chat(&mut other, &patient).await };
    let frees = async {
        eventually(|| metric(app.addresses.ops, "chatbot_turn_waiting") == Some(1.0)).await;
        played.end().await;
    };
    let (stream, ()) = tokio::join!(waits, frees);
    let played = questions.next().await;
    assert_eq!(played.question.text, "three?");
    played.end().await;
    assert!(rest(stream).await.1.is_none());
    assert!(rest(running).await.1.is_none());
    app.stop().await;
}

#[tokio::test]
async fn a_principal_has_its_rate_and_repetitions_do_not_count() {
    let app = start(&["limits.turns_per_second=0.01", "limits.burst=2"]).await;
    let mut client = app.chatbot().await;
    let ask = |request_id: String| AskRequest {
        query: "deadline".to_owned(),
        request_id,
        ..AskRequest::default()
    };
    let first = id();
    let answer = client.ask(ask(first.clone())).await.expect("an answer").into_inner();
    for _ in 0..5 {
        let again = client.ask(ask(first.clone())).await.expect("the same").into_inner();
        assert_eq!(again, answer);
    }
    client.ask(ask(id())).await.expect("the second");
    let status = client.ask(ask(id())).await.expect_err("the third");
    assert_eq!(reason(&status), "RATE_LIMITED");
    assert!(pushback(&status) >= Duration::from_secs(70));
    // What was begun can still be read.
    assert_eq!(client.ask(ask(first)).await.expect("the same").into_inner(), answer);
    app.stop().await;
}

#[tokio::test]
async fn an_engine_is_told_what_was_said_before() {
    let (engine, mut questions) = stepped();
    let app = start_scripted(engine, &[]).await;
    let mut client = app.chatbot().await;
    let mut conversation_id = String::new();
    for (number, question) in ["one?", "two?", "three?"].into_iter().enumerate() {
        let request = ChatRequest { conversation_id: conversation_id.clone(), ..request(question) };
        let stream = chat(&mut client, &request).await;
        let played = questions.next().await;
        let told: Vec<_> =
            played.question.history.iter().map(|said| said.question.clone()).collect();
        assert_eq!(told, ["one?", "two?", "three?"][..number]);
        assert!(played.question.history.iter().all(|said| said.answer.starts_with("answer to ")));
        played.say(&format!("answer to {question}")).await;
        played.end().await;
        let (events, _) = rest(stream).await;
        conversation_id = events[0].conversation_id.clone();
    }
    app.stop().await;
}

#[tokio::test]
async fn the_stop_button_of_another_replica_closes_the_models_call() {
    let Some(redis) = redis::start() else { return };
    let mut model = Model::start().await;
    let url = redis.url();
    let settings = model.settings(&[&url, "engine.default=generative"]);
    let settings: Vec<_> = settings.iter().map(String::as_str).collect();
    let (a, b) = (start(&settings).await, start(&settings).await);
    let (mut here, mut there) = (a.chatbot().await, b.chatbot().await);
    let mut took = Vec::new();
    for _ in 0..10 {
        let request = request("Why?");
        let mut stream = chat(&mut here, &request).await;
        let message = next(&mut stream).await;
        let played = model.next().await.stream();
        played.say("so far ").await;
        assert_eq!(delta(&next(&mut stream).await), "so far ");
        let stop = std::time::Instant::now();
        let turn = CancelTurnRequest {
            conversation_id: message.conversation_id,
            turn_id: request.request_id,
        };
        there.cancel_turn(turn).await.expect("stopped");
        played.closed().await;
        took.push(stop.elapsed());
        let (events, status) = rest(stream).await;
        assert!(status.is_none());
        assert_eq!(completed(&events[0]).text, "so far ");
        assert_eq!(text(&events), "");
    }
    took.sort();
    report(&format!(
        "upstream call closed after CancelTurn at another replica: median {:?}, longest {:?}",
        took[5], took[9]
    ));
    a.stop().await;
    b.stop().await;
}
