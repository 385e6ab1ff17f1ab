//! `Ask` and `RankAnswers`: right answers, honest ignorance, clear refusals.

use chatbot::pb::chatbot::v1::{
    AskRequest, AskResponse, Engine, RankAnswersRequest, RankAnswersResponse, TurnCompleted,
    chatbot_client::ChatbotClient,
};
use prost::Message;
use tokio_stream::StreamExt as _;
use tonic::{Code, Request, Status, codec::Streaming, transport::Channel};
use tonic_types::StatusExt as _;

use crate::support::{channel, start};

fn ask(query: &str) -> AskRequest {
    AskRequest { query: query.to_owned(), ..AskRequest::default() }
}

async fn answer(client: &mut ChatbotClient<Channel>, request: AskRequest) -> TurnCompleted {
    let response = client.ask(request).await.expect("an answer").into_inner();
    response.answer.expect("an answer")
}

fn rank(query: &str) -> RankAnswersRequest {
    RankAnswersRequest { query: query.to_owned(), ..RankAnswersRequest::default() }
}

async fn ranked(
    client: &mut ChatbotClient<Channel>,
    request: RankAnswersRequest,
) -> Vec<RankAnswersResponse> {
    let stream: Streaming<_> = client.rank_answers(request).await.expect("a stream").into_inner();
    stream.map(|answer| answer.expect("an answer")).collect().await
}

/// The reason and the field paths of a refusal.
fn refusal(status: &Status) -> (String, Vec<String>) {
    let details = status.get_error_details();
    let info = details.error_info().expect("exactly one ErrorInfo");
    assert_eq!(info.domain, "chatbot.v1.Chatbot");
    let fields = details.bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default();
    (info.reason.clone(), fields.into_iter().map(|violation| violation.field).collect())
}

#[tokio::test]
async fn it_answers_in_the_language_of_the_question() {
    let app = start(&[]).await;
    let mut client = app.chatbot().await;
    let english = answer(&mut client, ask("too many open files in my server")).await;
    assert!(english.answered);
    assert_eq!(english.text, "Raise the limit and close your channels.");
    assert_eq!(english.sources.len(), 1);
    assert_eq!(english.sources[0].answer_id, 1);
    assert_eq!(english.sources[0].title, "Why are there too many open files?");
    let korean = answer(&mut client, ask("연결이 왜 자꾸 끊기나요")).await;
    assert!(korean.answered);
    assert_eq!(korean.text, "서버가 연결의 나이를 제한하기 때문입니다.");
    app.stop().await;
}

/// A date a second would fill the connection's table of headers, which every answer is compared with.
#[tokio::test]
async fn an_answer_has_no_date() {
    let app = start(&[]).await;
    let mut client = app.chatbot().await;
    let response = client.ask(ask("too many open files in my server")).await.expect("an answer");
    assert!(!response.metadata().contains_key("date"), "{:?}", response.metadata());
    app.stop().await;
}

#[tokio::test]
async fn it_says_when_it_does_not_know_and_that_is_ok() {
    let app = start(&[]).await;
    let mut client = app.chatbot().await;
    for unknown in
        ["best pizza in Naples", "내일 서울 날씨 어때?", "🍕", "deadline for tax returns in Italy"]
    {
        let answer = answer(&mut client, ask(unknown)).await;
        assert!(!answer.answered, "{unknown}: {answer:?}");
        assert!(!answer.text.is_empty());
        assert!(answer.confidence < 0.5);
    }
    app.stop().await;
}

#[tokio::test]
async fn the_turn_has_the_callers_request_id_or_one_of_its_own() {
    let app = start(&[]).await;
    let mut client = app.chatbot().await;
    let id = "0b8e4c8e-6d3a-4c36-9d1c-2f1f0a3d5e77";
    let with = AskRequest { request_id: id.to_owned(), ..ask("deadline") };
    assert_eq!(answer(&mut client, with).await.turn_id, id);
    assert_eq!(answer(&mut client, ask("deadline")).await.turn_id.len(), 36);
    app.stop().await;
}

#[tokio::test]
async fn answers_are_ranked_best_first_with_scores_and_confidence() {
    let app = start(&[]).await;
    let mut client = app.chatbot().await;
    let answers = ranked(&mut client, rank("what is a deadline good for")).await;
    assert_eq!(answers[0].answer_id, 5);
    assert_eq!(answers[1].answer_id, 2);
    assert!(answers.is_sorted_by(|a, b| a.score >= b.score && a.confidence >= b.confidence));
    assert!(answers.iter().all(|answer| !answer.text.is_empty()));
    assert_eq!(ranked(&mut client, rank("nothing matches xyzzy pizza")).await, []);
    app.stop().await;
}

#[tokio::test]
async fn ranking_keeps_to_limit_exclusions_and_language() {
    let app = start(&[]).await;
    let mut client = app.chatbot().await;
    let ids = |answers: Vec<RankAnswersResponse>| {
        answers.into_iter().map(|answer| answer.answer_id).collect::<Vec<_>>()
    };
    let query = "what is a deadline 데드라인이 뭔가요 RLIMIT_NOFILE";
    let all = ids(ranked(&mut client, rank(query)).await);
    assert_eq!(all.len(), 4);
    let two = RankAnswersRequest { max_answers: 2, ..rank(query) };
    assert_eq!(ids(ranked(&mut client, two).await), all[..2]);
    let rest = RankAnswersRequest { excluded_answer_ids: all[..2].to_vec(), ..rank(query) };
    assert_eq!(ids(ranked(&mut client, rest).await), all[2..]);
    let korean = RankAnswersRequest { language_code: "ko-KR".to_owned(), ..rank(query) };
    let mut korean = ids(ranked(&mut client, korean).await);
    korean.sort_unstable();
    assert_eq!(korean, [4, 6], "Korean entries and those without a language");
    app.stop().await;
}

#[tokio::test]
async fn bad_requests_are_refused_with_every_field() {
    let app = start(&[]).await;
    let mut client = app.chatbot().await;
    let long = "x".repeat(8 * 1024 + 1);
    let requests = [
        (ask(""), vec!["query"]),
        (ask(" \t\n"), vec!["query"]),
        (ask(&long), vec!["query"]),
        (AskRequest { language_code: "korean!".to_owned(), ..ask("x") }, vec!["language_code"]),
        (AskRequest { engine: Engine::Generative.into(), ..ask("x") }, vec!["engine"]),
        (AskRequest { engine: 99, ..ask("x") }, vec!["engine"]),
        (
            AskRequest { request_id: "1".to_owned(), language_code: "?".to_owned(), ..ask("") },
            vec!["query", "request_id", "language_code"],
        ),
    ];
    for (request, fields) in requests {
        let status = client.ask(request).await.expect_err("refused");
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(
            refusal(&status),
            ("FIELD_INVALID".to_owned(), fields.iter().map(ToString::to_string).collect())
        );
    }
    let requests = [
        (RankAnswersRequest { max_answers: -1, ..rank("x") }, "max_answers"),
        (RankAnswersRequest { max_answers: 101, ..rank("x") }, "max_answers"),
        (
            RankAnswersRequest { excluded_answer_ids: vec![1; 1001], ..rank("x") },
            "excluded_answer_ids",
        ),
        (rank(""), "query"),
    ];
    for (request, field) in requests {
        let status = client.rank_answers(request).await.expect_err("refused");
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(refusal(&status), ("FIELD_INVALID".to_owned(), vec![field.to_owned()]));
    }
    // What fits is answered.
    let fits = "x".repeat(8 * 1024);
    assert!(!answer(&mut client, ask(&fits)).await.answered);
    app.stop().await;
}

#[tokio::test]
async fn the_query_limit_is_a_setting() {
    let app = start(&["limits.query_bytes=16B"]).await;
    let mut client = app.chatbot().await;
    let status = client.ask(ask("a question that is too long")).await.expect_err("refused");
    assert!(status.message().contains("at most 16 bytes"), "{status}");
    app.stop().await;
}

/// Encodes `query` as a number, which no decoder of ours accepts.
#[derive(Clone, PartialEq, Message)]
struct Garbage {
    #[prost(int32, tag = "1")]
    query: i32,
}

#[tokio::test]
async fn a_message_that_cannot_be_read_is_the_callers_mistake() {
    let app = start(&[]).await;
    let mut client = app.chatbot().await;
    let huge = client.ask(ask(&"x".repeat(300 * 1024))).await.expect_err("too large");
    assert_eq!(huge.code(), Code::InvalidArgument, "{huge}");
    assert_eq!(refusal(&huge), ("MESSAGE_INVALID".to_owned(), vec![]));
    assert!(huge.message().contains("262144"), "{huge}");

    let mut raw = tonic::client::Grpc::new(channel(app.addresses.server).await);
    raw.ready().await.expect("ready");
    let codec = tonic_prost::ProstCodec::<Garbage, AskResponse>::default();
    let path = "/chatbot.v1.Chatbot/Ask".parse().expect("a path");
    let status = raw.unary(Request::new(Garbage { query: 7 }), path, codec).await;
    let status = status.expect_err("garbage");
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert_eq!(refusal(&status).0, "MESSAGE_INVALID");
    // The connection is none the worse for it.
    assert!(answer(&mut client, ask("too many open files in the server")).await.answered);
    app.stop().await;
}
