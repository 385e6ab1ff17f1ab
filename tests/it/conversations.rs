//! A turn outlives the call that began it: `Chat`, `Converse`, `CancelTurn`, and `Ask` again.

use std::time::Duration;

use chatbot::pb::chatbot::v1::{
    AskRequest, CancelTurnRequest, ChatRequest, ChatResponse, ConverseRequest, Engine, Event,
    FinishReason, Join, MessagePosted, PostMessage, TurnCompleted, TurnFailed,
    chatbot_client::ChatbotClient, converse_request::Request as Say,
    converse_response::Response as Told, event::Event as Body,
};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Code, Status, Streaming, transport::Channel};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use crate::{
    scripted::{PANIC, Played, stepped, stepped_with_room},
    support::{LONG, Running, eventually, metric, start, start_scripted},
};

type Client = ChatbotClient<Channel>;

pub(crate) fn id() -> String {
    Uuid::new_v4().to_string()
}

/// A request to the scripted engine.
pub(crate) fn request(query: &str) -> ChatRequest {
    ChatRequest {
        query: query.to_owned(),
        request_id: id(),
        engine: Engine::Generative.into(),
        ..ChatRequest::default()
    }
}

pub(crate) async fn chat(client: &mut Client, request: &ChatRequest) -> Streaming<ChatResponse> {
    client.chat(request.clone()).await.expect("a stream").into_inner()
}

/// The next event of a stream that goes on.
pub(crate) async fn next(stream: &mut Streaming<ChatResponse>) -> Event {
    let next = tokio::time::timeout(LONG, stream.message()).await.expect("an event in time");
    next.expect("no error").expect("no end").event.expect("an event")
}

/// The rest of a stream, and how it ended.
pub(crate) async fn rest(mut stream: Streaming<ChatResponse>) -> (Vec<Event>, Option<Status>) {
    let mut events = Vec::new();
    loop {
        match tokio::time::timeout(LONG, stream.message()).await.expect("an event in time") {
            Ok(Some(response)) => events.push(response.event.expect("an event")),
            Ok(None) => return (events, None),
            Err(status) => return (events, Some(status)),
        }
    }
}

pub(crate) fn body(event: &Event) -> &Body {
    event.event.as_ref().expect("a body")
}

pub(crate) fn delta(event: &Event) -> &str {
    match body(event) {
        Body::TextDelta(text) => text,
        other => panic!("not a delta: {other:?}"),
    }
}

pub(crate) fn completed(event: &Event) -> &TurnCompleted {
    match body(event) {
        Body::TurnCompleted(completed) => completed,
        other => panic!("not completed: {other:?}"),
    }
}

pub(crate) fn failed(event: &Event) -> &TurnFailed {
    match body(event) {
        Body::TurnFailed(failed) => failed,
        other => panic!("not failed: {other:?}"),
    }
}

pub(crate) fn posted(event: &Event) -> &MessagePosted {
    match body(event) {
        Body::MessagePosted(posted) => posted,
        other => panic!("not posted: {other:?}"),
    }
}

/// The text of all deltas.
pub(crate) fn text(events: &[Event]) -> String {
    let deltas = events.iter().filter_map(|event| match body(event) {
        Body::TextDelta(text) => Some(text.as_str()),
        _ => None,
    });
    deltas.collect()
}

pub(crate) fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    details.error_info().expect("exactly one ErrorInfo").reason.clone()
}

/// Answers a question by two pieces that are events of their own.
async fn answer(played: Played) {
    played.say(&"one ".repeat(100)).await;
    played.say(&"둘 ".repeat(100)).await;
    played.end().await;
}

#[tokio::test]
async fn chat_streams_its_turn_and_the_end_repeats_the_text() {
    let app = start(&[]).await;
    let mut client = app.chatbot().await;
    // The default engine: the knowledge base.
    let request = ChatRequest {
        query: "too many open files".to_owned(),
        request_id: id(),
        ..ChatRequest::default()
    };
    let (events, status) = rest(chat(&mut client, &request).await).await;
    assert!(status.is_none());
    let message = posted(&events[0]);
    assert_eq!(message.text, request.query);
    assert_eq!(
        (&message.request_id, &message.participant_id[..]),
        (&request.request_id, "anonymous")
    );
    let end = completed(events.last().expect("events"));
    assert_eq!(end.text, "Raise the limit and close your channels.");
    assert_eq!(text(&events), end.text);
    assert!(end.answered);
    assert_eq!(end.finish_reason(), FinishReason::Stop);
    assert_eq!(end.sources[0].answer_id, 1);
    let sequences: Vec<i64> = events.iter().map(|event| event.sequence_number).collect();
    assert_eq!(sequences, (1..=i64::try_from(events.len()).expect("few")).collect::<Vec<_>>());
    for event in &events {
        assert_eq!(event.turn_id, request.request_id);
        assert_eq!(event.conversation_id, events[0].conversation_id);
        assert!(event.create_time.is_some());
    }
    app.stop().await;
}

#[tokio::test]
async fn the_first_piece_is_shown_at_once_and_small_ones_are_gathered() {
    let (engine, mut questions) = stepped();
    let app = start_scripted(engine, &[]).await;
    let mut client = app.chatbot().await;
    let mut stream = chat(&mut client, &request("?")).await;
    let played = questions.next().await;
    posted(&next(&mut stream).await);
    played.say("a").await;
    assert_eq!(delta(&next(&mut stream).await), "a");
    // Within one gathering; how many of them it catches is a matter of time, what they say is not.
    for piece in ["b", "c", "d", "e"] {
        played.say(piece).await;
    }
    played.end().await;
    let (events, status) = rest(stream).await;
    assert!(status.is_none());
    assert_eq!(text(&events), "bcde");
    assert!(events.len() < 5, "{events:?}");
    assert_eq!(completed(events.last().expect("an end")).text, "abcde");
    app.stop().await;
}

#[tokio::test]
async fn an_engine_that_hands_over_one_piece_at_a_time_is_not_slowed_down_by_the_beat() {
    // As the connection of a model does. One piece in each beat would take ten times the limit.
    let (engine, mut questions) = stepped_with_room(1);
    let app = start_scripted(engine, &["engine.max_turn_time=10s"]).await;
    let mut stream = chat(&mut app.chatbot().await, &request("?")).await;
    let played = questions.next().await;
    posted(&next(&mut stream).await);
    // An event in each beat, until the engine is looked at in the beat too.
    for piece in 0..15 {
        played.say(&format!("{piece} ")).await;
        assert_eq!(delta(&next(&mut stream).await), format!("{piece} "));
    }
    for piece in 15..2_000 {
        played.say(&format!("{piece} ")).await;
        // Nothing that could be shown, such as half of a character.
        played.say("").await;
    }
    played.end().await;
    let (events, status) = rest(stream).await;
    assert!(status.is_none(), "{status:?}");
    let said: Vec<_> = (0..2_000).map(|piece| format!("{piece} ")).collect();
    assert_eq!(completed(events.last().expect("an end")).text, said.concat());
    app.stop().await;
}

#[tokio::test]
async fn a_client_that_was_cut_after_any_event_gets_the_rest_and_nothing_twice() {
    let (engine, mut questions) = stepped();
    let app = start_scripted(engine, &[]).await;
    let mut client = app.chatbot().await;
    let mut request = request("?");
    let stream = chat(&mut client, &request).await;
    answer(questions.next().await).await;
    let (events, _) = rest(stream).await;
    assert_eq!(events.len(), 4);
    for seen in 0..=events.len() {
        request.resume_token =
            seen.checked_sub(1).map(|last| events[last].resume_token.clone()).unwrap_or_default();
        // The same request, and one that names the conversation that it has learnt.
        for conversation in [String::new(), events[0].conversation_id.clone()] {
            request.conversation_id = conversation;
            let (rest, status) = rest(chat(&mut client, &request).await).await;
            assert!(status.is_none());
            assert_eq!(rest, events[seen..]);
        }
    }
    assert!(questions.is_empty(), "nothing was generated twice");
    app.stop().await;
}

#[tokio::test]
async fn a_dropped_stream_does_not_end_its_turn() {
    let (engine, mut questions) = stepped();
    let app = start_scripted(engine, &[]).await;
    let request = request("?");
    let mut first = app.chatbot().await;
    let mut stream = chat(&mut first, &request).await;
    let played = questions.next().await;
    played.say("before ").await;
    let (message, before) = (next(&mut stream).await, next(&mut stream).await);
    posted(&message);
    drop((stream, first));
    played.say("meanwhile ").await;
    // On another connection, from the last event that was seen.
    let mut second = app.chatbot().await;
    let again = ChatRequest { resume_token: before.resume_token, ..request };
    let mut stream = chat(&mut second, &again).await;
    assert_eq!(delta(&next(&mut stream).await), "meanwhile ");
    played.say("after").await;
    played.end().await;
    let (events, status) = rest(stream).await;
    assert!(status.is_none());
    assert_eq!(completed(events.last().expect("an end")).text, "before meanwhile after");
    app.stop().await;
}

#[tokio::test]
async fn a_conversation_goes_on_and_has_one_turn_at_a_time() {
    let (engine, mut questions) = stepped();
    let app = start_scripted(engine, &[]).await;
    let mut client = app.chatbot().await;
    let first = request("one?");
    let mut stream = chat(&mut client, &first).await;
    let conversation_id = next(&mut stream).await.conversation_id;
    let played = questions.next().await;

    let second = ChatRequest { conversation_id: conversation_id.clone(), ..request("two?") };
    let busy = client.chat(second.clone()).await.expect_err("the first one runs");
    assert_eq!((busy.code(), reason(&busy)), (Code::Aborted, "TURN_IN_PROGRESS".to_owned()));
    let details = busy.get_error_details();
    assert!(details.retry_info().is_some());
    let metadata = &details.error_info().expect("an ErrorInfo").metadata;
    assert_eq!(metadata.get("turn_id"), Some(&first.request_id));

    answer(played).await;
    let (before, _) = rest(stream).await;
    let stream = chat(&mut client, &second).await;
    answer(questions.next().await).await;
    let (after, status) = rest(stream).await;
    assert!(status.is_none());
    assert_eq!(posted(&after[0]).text, "two?");
    let last = before.last().expect("an end").sequence_number;
    assert_eq!(after[0].sequence_number, last + 1);
    assert!(after.iter().all(|event| event.turn_id == second.request_id));
    app.stop().await;
}

#[tokio::test]
async fn one_request_id_is_one_request() {
    let (engine, mut questions) = stepped();
    let app = start_scripted(engine, &[]).await;
    let mut client = app.chatbot().await;
    let request = request("?");
    let streams = [chat(&mut client, &request).await, chat(&mut client, &request).await];
    answer(questions.next().await).await;
    let [a, b] = streams;
    let (a, b) = tokio::join!(rest(a), rest(b));
    assert_eq!(a.0, b.0);
    assert!(questions.is_empty());

    for other in [
        ChatRequest { query: "!".to_owned(), ..request.clone() },
        ChatRequest { engine: Engine::Retrieval.into(), ..request.clone() },
        ChatRequest { language_code: "ko".to_owned(), ..request.clone() },
    ] {
        let reused = client.chat(other).await.expect_err("another payload");
        assert_eq!(
            (reused.code(), reason(&reused)),
            (Code::AlreadyExists, "REQUEST_ID_REUSED".to_owned())
        );
        let details = reused.get_error_details();
        let metadata = &details.error_info().expect("an ErrorInfo").metadata;
        assert_eq!(metadata.get("turn_id"), Some(&request.request_id));
    }
    app.stop().await;
}

#[tokio::test]
async fn ask_is_the_same_turn_in_one_message() {
    let (engine, mut questions) = stepped();
    let app = start_scripted(engine, &[]).await;
    let mut client = app.chatbot().await;
    let request = AskRequest {
        query: "?".to_owned(),
        request_id: id(),
        engine: Engine::Generative.into(),
        ..AskRequest::default()
    };
    let (mut one, mut two) = (client.clone(), client.clone());
    let (first, second, ()) =
        tokio::join!(one.ask(request.clone()), two.ask(request.clone()), async {
            answer(questions.next().await).await;
        });
    let first = first.expect("an answer").into_inner();
    assert_eq!(first, second.expect("the same answer").into_inner());
    assert_eq!(client.ask(request.clone()).await.expect("again").into_inner(), first);
    assert!(questions.is_empty());
    assert_eq!(first.answer.as_ref().expect("an answer").turn_id, request.request_id);

    // Chat sees it too, and goes on where Ask has begun.
    let same = ChatRequest {
        query: request.query.clone(),
        request_id: request.request_id.clone(),
        engine: request.engine,
        ..ChatRequest::default()
    };
    let (events, _) = rest(chat(&mut client, &same).await).await;
    assert_eq!(events[0].conversation_id, first.conversation_id);
    assert_eq!(Some(completed(events.last().expect("an end"))), first.answer.as_ref());
    app.stop().await;
}

#[tokio::test]
async fn what_is_not_there_is_said() {
    let app = start(&[]).await;
    let mut client = app.chatbot().await;
    let known =
        ChatRequest { query: "deadline".to_owned(), request_id: id(), ..ChatRequest::default() };
    let (events, _) = rest(chat(&mut client, &known).await).await;
    let told = |status: &Status| (status.code(), reason(status));

    let unknown = ChatRequest { conversation_id: id(), ..known.clone() };
    let status = client.chat(unknown).await.expect_err("no such conversation");
    assert_eq!(told(&status), (Code::NotFound, "CONVERSATION_NOT_FOUND".to_owned()));

    let mut token = events[1].resume_token.clone();
    let last = token.pop().expect("a digit");
    token.push(if last == '0' { '1' } else { '0' });
    for token in [token, "nonsense".to_owned(), "f".repeat(32)] {
        let resumed = ChatRequest { resume_token: token, ..known.clone() };
        let status = match client.chat(resumed).await {
            Err(status) => status,
            Ok(stream) => rest(stream.into_inner()).await.1.expect("an error"),
        };
        assert_eq!(told(&status), (Code::OutOfRange, "RESUME_TOKEN_INVALID".to_owned()));
        assert!(status.message().contains("position"), "{status:?}");
    }

    let bad = ChatRequest { request_id: "1".to_owned(), conversation_id: "x".to_owned(), ..known };
    let status = client.chat(bad).await.expect_err("two fields");
    assert_eq!(told(&status), (Code::InvalidArgument, "FIELD_INVALID".to_owned()));
    let details = status.get_error_details();
    let violations = &details.bad_request().expect("a BadRequest").field_violations;
    let fields: Vec<_> = violations.iter().map(|violation| &violation.field[..]).collect();
    assert_eq!(fields, ["request_id", "conversation_id"]);
    app.stop().await;
}

#[tokio::test]
async fn the_stop_button_ends_the_turn_and_the_generation() {
    let (engine, mut questions) = stepped();
    let app = start_scripted(engine, &[]).await;
    let mut client = app.chatbot().await;
    let request = request("?");
    let mut stream = chat(&mut client, &request).await;
    let played = questions.next().await;
    played.say("so far").await;
    let message = next(&mut stream).await;
    assert_eq!(delta(&next(&mut stream).await), "so far");
    let turn = CancelTurnRequest {
        conversation_id: message.conversation_id.clone(),
        turn_id: request.request_id.clone(),
    };
    client.cancel_turn(turn.clone()).await.expect("stopped");
    played.dropped().await;
    let (events, status) = rest(stream).await;
    assert!(status.is_none(), "a stopped turn is a completed one");
    let end = completed(&events[0]);
    assert_eq!((end.finish_reason(), &end.text[..]), (FinishReason::Cancelled, "so far"));
    // Twice, and when it is over, it is fine; what was never there is not.
    client.cancel_turn(turn.clone()).await.expect("over");
    // Who has heard nothing of it yet does not know its conversation.
    let unheard = CancelTurnRequest { conversation_id: String::new(), ..turn.clone() };
    client.cancel_turn(unheard.clone()).await.expect("the one that it has begun");
    for wrong in [
        CancelTurnRequest { turn_id: id(), ..unheard },
        CancelTurnRequest { turn_id: id(), ..turn.clone() },
        CancelTurnRequest { conversation_id: id(), ..turn },
    ] {
        let status = client.cancel_turn(wrong).await.expect_err("no such turn");
        assert_eq!(reason(&status), "CONVERSATION_NOT_FOUND");
    }
    let status = client.cancel_turn(CancelTurnRequest::default()).await.expect_err("empty");
    assert!(status.message().contains("turn_id: "), "{status:?}");
    app.stop().await;
}

pub(crate) fn unavailable() -> chatbot::engine::Error {
    chatbot::engine::Error::Unavailable { why: "down".to_owned(), retry_after: None }
}

#[tokio::test]
async fn a_failed_turn_is_an_event_and_a_status() {
    use chatbot::engine::Error;
    let (engine, mut questions) = stepped();
    let app = start_scripted(engine, &["engine.max_turn_time=1s"]).await;
    let mut client = app.chatbot().await;
    for (error, code, told) in [
        (Some(unavailable()), Code::Unavailable, "UPSTREAM_UNAVAILABLE"),
        (Some(Error::Truncated("cut".to_owned())), Code::Unavailable, "UPSTREAM_TRUNCATED"),
        (None, Code::DeadlineExceeded, "TURN_TIMEOUT"),
    ] {
        let request = request("?");
        let stream = chat(&mut client, &request).await;
        let played = questions.next().await;
        played.say("part").await;
        match error {
            Some(error) => played.fail(error).await,
            None => played.dropped().await,
        }
        let (events, status) = rest(stream).await;
        let status = status.expect("a status");
        assert_eq!((status.code(), &reason(&status)[..]), (code, told));
        let end = failed(events.last().expect("an end"));
        assert_eq!((end.code, &end.reason[..]), (code.into(), told));
        assert_eq!(end.partial_text, "part");
        // Whoever comes later is told the same.
        let seen = events.last().expect("an end").resume_token.clone();
        let again = ChatRequest { resume_token: seen, ..request };
        let (events, status) = rest(chat(&mut client, &again).await).await;
        assert!(events.is_empty(), "nothing twice");
        assert_eq!(reason(&status.expect("a status")), told);
    }
    app.stop().await;
}

#[tokio::test]
async fn an_engine_that_panics_fails_its_turn_alone() {
    let (engine, mut questions) = stepped();
    let app = start_scripted(engine, &[]).await;
    let mut client = app.chatbot().await;
    let mut stream = chat(&mut client, &request("?")).await;
    let played = questions.next().await;
    played.say("half").await;
    posted(&next(&mut stream).await);
    assert_eq!(delta(&next(&mut stream).await), "half");
    played.say(PANIC).await;
    let (events, status) = rest(stream).await;
    let status = status.expect("a status");
    assert_eq!((status.code(), &reason(&status)[..]), (Code::Internal, "INTERNAL"));
    assert_eq!(failed(events.last().expect("an end")).partial_text, "half");
    let stream = chat(&mut client, &request("?")).await;
    answer(questions.next().await).await;
    assert!(rest(stream).await.1.is_none());
    app.stop().await;
}

#[tokio::test]
async fn a_turn_that_nobody_reads_is_stopped_after_its_grace() {
    let (engine, mut questions) = stepped();
    let app = start_scripted(engine, &["store.detach_grace=0s"]).await;
    let mut client = app.chatbot().await;
    let request = request("?");
    let mut stream = chat(&mut client, &request).await;
    let played = questions.next().await;
    played.say("unheard").await;
    next(&mut stream).await;
    assert_eq!(delta(&next(&mut stream).await), "unheard");
    drop(stream);
    played.dropped().await;
    let (events, status) = rest(chat(&mut client, &request).await).await;
    assert!(status.is_none());
    let end = completed(events.last().expect("an end"));
    assert_eq!((end.finish_reason(), &end.text[..]), (FinishReason::Cancelled, "unheard"));
    eventually(|| metric(app.addresses.ops, "chatbot_turn_running") == Some(0.0)).await;
    app.stop().await;
}

/// A client of `Converse`.
struct Guest {
    says: mpsc::Sender<ConverseRequest>,
    hears: Streaming<chatbot::pb::chatbot::v1::ConverseResponse>,
}

impl Guest {
    async fn new(app: &Running) -> Self {
        let (says, said) = mpsc::channel(10);
        let mut client = app.chatbot().await;
        let hears = client.converse(ReceiverStream::new(said)).await.expect("a stream");
        Self { says, hears: hears.into_inner() }
    }

    async fn join(app: &Running, conversation_id: &str, resume_token: &str) -> Self {
        let guest = Self::new(app).await;
        guest
            .say(Say::Join(Join {
                conversation_id: conversation_id.to_owned(),
                resume_token: resume_token.to_owned(),
            }))
            .await;
        guest
    }

    async fn say(&self, request: Say) {
        let request = ConverseRequest { request: Some(request) };
        self.says.send(request).await.expect("it listens");
    }

    async fn post(&self, text: &str, no_reply: bool) -> String {
        let request_id = id();
        self.say(Say::PostMessage(PostMessage {
            request_id: request_id.clone(),
            text: text.to_owned(),
            engine: Engine::Generative.into(),
            no_reply,
        }))
        .await;
        request_id
    }

    async fn told(&mut self) -> Result<Option<Told>, Status> {
        let told = tokio::time::timeout(LONG, self.hears.message()).await.expect("in time")?;
        Ok(told.map(|told| told.response.expect("a response")))
    }

    async fn event(&mut self) -> Event {
        match self.told().await {
            Ok(Some(Told::Event(event))) => event,
            other => panic!("not an event: {other:?}"),
        }
    }

    /// The status that ends the stream.
    async fn refused(&mut self) -> Status {
        self.told().await.expect_err("a refusal")
    }
}

#[tokio::test]
async fn everybody_in_a_conversation_hears_everything() {
    let (engine, mut questions) = stepped();
    let app = start_scripted(engine, &[]).await;
    let mut alice = Guest::join(&app, "", "").await;
    let turn = alice.post("hello?", false).await;
    let message = alice.event().await;
    assert_eq!(posted(&message).text, "hello?");
    assert_eq!(message.turn_id, turn);
    let mut bob = Guest::join(&app, &message.conversation_id, "").await;
    assert_eq!(bob.event().await, message);
    bob.post("psst", true).await;
    for guest in [&mut alice, &mut bob] {
        let event = guest.event().await;
        assert_eq!((&posted(&event).text[..], &event.turn_id[..]), ("psst", ""));
    }
    let played = questions.next().await;
    assert_eq!(played.question.text, "hello?");
    played.say("hi").await;
    played.end().await;
    let mut last = Vec::new();
    for guest in [&mut alice, &mut bob] {
        assert_eq!(delta(&guest.event().await), "hi");
        last.push(guest.event().await);
    }
    assert_eq!(completed(&last[0]).text, "hi");
    assert_eq!(last[0], last[1]);

    // One who comes later has the same history, and one who comes back the rest of it.
    let mut carol = Guest::join(&app, &message.conversation_id, "").await;
    let mut history = Vec::new();
    for _ in 0..4 {
        history.push(carol.event().await);
    }
    assert_eq!(history[3], last[0]);
    let mut dave = Guest::join(&app, &message.conversation_id, &history[1].resume_token).await;
    assert_eq!([dave.event().await, dave.event().await], history[2..]);
    assert!(questions.is_empty());
    app.stop().await;
}

#[tokio::test]
async fn a_message_interrupts_the_running_turn() {
    let (engine, mut questions) = stepped();
    let app = start_scripted(engine, &[]).await;
    let mut guest = Guest::join(&app, "", "").await;
    guest.post("first?", false).await;
    let first = questions.next().await;
    first.say("well").await;
    posted(&guest.event().await);
    assert_eq!(delta(&guest.event().await), "well");
    let second = guest.post("second!", false).await;
    first.dropped().await;
    let end = guest.event().await;
    assert_eq!(completed(&end).finish_reason(), FinishReason::Cancelled);
    let message = guest.event().await;
    assert_eq!((&posted(&message).text[..], &message.turn_id), ("second!", &second));
    questions.next().await.end().await;
    assert_eq!(completed(&guest.event().await).turn_id, second);

    // And its client can stop a turn without a message.
    let third = guest.post("third?", false).await;
    let played = questions.next().await;
    posted(&guest.event().await);
    guest
        .say(Say::CancelTurn(CancelTurnRequest {
            conversation_id: String::new(),
            turn_id: third.clone(),
        }))
        .await;
    played.dropped().await;
    let end = guest.event().await;
    assert_eq!((completed(&end).finish_reason(), end.turn_id), (FinishReason::Cancelled, third));
    app.stop().await;
}

#[tokio::test]
async fn a_guest_who_has_said_his_last_hears_the_turn_to_its_end() {
    let app = start(&[]).await;
    let mut client = app.chatbot().await;
    let post = PostMessage {
        request_id: id(),
        text: "too many open files".to_owned(),
        ..PostMessage::default()
    };
    let says = [Say::Join(Join::default()), Say::PostMessage(post)];
    let says = tokio_stream::iter(says.map(|say| ConverseRequest { request: Some(say) }));
    let stream = client.converse(says).await.expect("a stream").into_inner();
    let told: Vec<_> = stream.collect().await;
    let last = told.last().expect("events").as_ref().expect("no error");
    let Some(Told::Event(event)) = &last.response else { panic!("not an event: {last:?}") };
    assert_eq!(completed(event).text, "Raise the limit and close your channels.");
    app.stop().await;
}

#[tokio::test]
async fn a_guest_who_has_nothing_to_say_or_to_hear_is_let_go_at_once() {
    let app = start(&["server.heartbeat_interval=1m"]).await;
    let mut client = app.chatbot().await;
    let request =
        ChatRequest { query: "deadline".to_owned(), request_id: id(), ..ChatRequest::default() };
    let (events, _) = rest(chat(&mut client, &request).await).await;
    let last = events.last().expect("an end");
    let join = Join {
        conversation_id: last.conversation_id.clone(),
        resume_token: last.resume_token.clone(),
    };
    let says = tokio_stream::iter([ConverseRequest { request: Some(Say::Join(join)) }]);
    let mut stream = client.converse(says).await.expect("a stream").into_inner();
    let end = tokio::time::timeout(Duration::from_secs(30), stream.message()).await;
    assert!(end.expect("at once").expect("no error").is_none());
    app.stop().await;
}

#[tokio::test]
async fn a_message_interrupts_the_turn_that_has_the_only_slot() {
    let (engine, mut questions) = stepped();
    let app = start_scripted(engine, &["engine.max_generations=1"]).await;
    let mut guest = Guest::join(&app, "", "").await;
    // An engine that is not heard of any more would end its turn itself.
    let mut kept = Vec::new();
    for round in 0..5 {
        let turn = guest.post("again?", false).await;
        let played = questions.next().await;
        if round > 0 {
            let end = guest.event().await;
            assert_eq!(completed(&end).finish_reason(), FinishReason::Cancelled);
        }
        assert_eq!(guest.event().await.turn_id, turn);
        played.say("well").await;
        assert_eq!(delta(&guest.event().await), "well");
        kept.push(played);
    }
    app.stop().await;
}

#[tokio::test]
async fn converse_says_what_is_wrong() {
    let (engine, _questions) = stepped();
    let app = start_scripted(engine, &["limits.joined_streams=2"]).await;
    for (says, told) in [
        (vec![Say::PostMessage(PostMessage::default())], "join: must be the first message"),
        (vec![Say::Join(Join::default()), Say::Join(Join::default())], "join: must be sent once"),
        (
            vec![Say::Join(Join { resume_token: "x".to_owned(), ..Join::default() })],
            "join.resume_token: must be empty for a new conversation",
        ),
        (
            vec![Say::Join(Join { conversation_id: id(), ..Join::default() })],
            "there is no such conversation or turn",
        ),
        (
            vec![Say::Join(Join::default()), Say::CancelTurn(CancelTurnRequest::default())],
            "cancel_turn: nothing was said here yet",
        ),
    ] {
        let mut guest = Guest::new(&app).await;
        for say in says {
            guest.say(say).await;
        }
        assert_eq!(guest.refused().await.message(), told);
    }
    let mut guest = Guest::join(&app, "", "").await;
    guest.say(Say::PostMessage(PostMessage::default())).await;
    let status = guest.refused().await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("post_message.request_id"), "{status:?}");

    // As many as may be are joined.
    let _guests = [Guest::join(&app, "", "").await, Guest::join(&app, "", "").await];
    let mut client = app.chatbot().await;
    let status = client.converse(tokio_stream::empty()).await.expect_err("full");
    assert_eq!((status.code(), &reason(&status)[..]), (Code::ResourceExhausted, "OVERLOADED"));
    app.stop().await;
}

#[tokio::test]
async fn a_guest_hears_that_the_stream_is_alive_and_that_it_will_end() {
    let app = start(&["server.heartbeat_interval=100ms", "server.drain_grace=2s"]).await;
    let mut guest = Guest::join(&app, "", "").await;
    for _ in 0..2 {
        assert!(matches!(guest.told().await, Ok(Some(Told::Heartbeat(_)))));
    }
    app.life.stop();
    let ending = loop {
        match guest.told().await.expect("a goodbye first") {
            Some(Told::SessionEnding(ending)) => break ending,
            Some(Told::Heartbeat(_)) => {}
            other => panic!("no goodbye: {other:?}"),
        }
    };
    let left = Duration::try_from(ending.time_left.expect("a time")).expect("a duration");
    assert!(left > Duration::ZERO && left <= Duration::from_secs(2), "{left:?}");
    let status = loop {
        match guest.told().await {
            Ok(Some(Told::Heartbeat(_))) => {}
            Err(status) => break status,
            other => panic!("not the end: {other:?}"),
        }
    };
    assert_eq!((status.code(), &reason(&status)[..]), (Code::Unavailable, "DRAINING"));
    app.ended().await;
}

#[tokio::test]
async fn a_connection_that_is_too_old_tells_its_guests() {
    let app = start(&["server.max_age=300ms", "server.age_grace=1s"]).await;
    let mut guest = Guest::join(&app, "", "").await;
    let ending = guest.told().await.expect("a goodbye first");
    assert!(matches!(ending, Some(Told::SessionEnding(_))), "{ending:?}");
    assert_eq!(reason(&guest.refused().await), "DRAINING");
    app.stop().await;
}
