//! `Teach`: good changes are kept, bad ones reported, a restart finds what was acknowledged.

use chatbot::pb::chatbot::v1::{
    AskRequest, KnowledgeEntry, TeachRequest, TeachResponse, chatbot_client::ChatbotClient,
    teach_request::Change,
};
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt as _;

use crate::support::{metric, start, start_in};

fn upsert(answer_id: i32, question: &str, answer: &str) -> TeachRequest {
    let entry = KnowledgeEntry {
        answer_id,
        questions: vec![question.to_owned()],
        answer: answer.to_owned(),
        language_code: "en".to_owned(),
    };
    TeachRequest { change: Some(Change::Upsert(entry)) }
}

fn delete(id: i32) -> TeachRequest {
    TeachRequest { change: Some(Change::DeleteAnswerId(id)) }
}

async fn teach(
    client: &mut ChatbotClient<Channel>,
    changes: Vec<TeachRequest>,
) -> Result<TeachResponse, Status> {
    client.teach(tokio_stream::iter(changes)).await.map(tonic::Response::into_inner)
}

async fn ask(client: &mut ChatbotClient<Channel>, query: &str) -> Option<String> {
    let request = AskRequest { query: query.to_owned(), ..AskRequest::default() };
    let answer = client.ask(request).await.expect("an answer").into_inner().answer;
    answer.filter(|answer| answer.answered).map(|answer| answer.text)
}

#[tokio::test]
async fn what_is_taught_is_answered_at_once_and_what_is_deleted_is_not() {
    let app = start(&[]).await;
    let mut client = app.chatbot().await;
    let question = "When does the quokka smile?";
    assert_eq!(ask(&mut client, question).await, None);
    let summary = teach(&mut client, vec![upsert(70, question, "Always.")]).await.expect("kept");
    assert_eq!((summary.upserted_count, summary.knowledge_revision), (1, 1));
    assert_eq!(ask(&mut client, question).await.as_deref(), Some("Always."));
    let summary = teach(&mut client, vec![upsert(70, question, "Mostly."), delete(1)]).await;
    let summary = summary.expect("kept");
    assert_eq!(
        (summary.upserted_count, summary.deleted_count, summary.knowledge_revision),
        (1, 1, 3)
    );
    assert_eq!(ask(&mut client, question).await.as_deref(), Some("Mostly."));
    assert_eq!(ask(&mut client, "too many open files in the server").await, None);
    app.stop().await;
}

#[tokio::test]
async fn bad_changes_are_reported_by_index_and_the_good_ones_kept() {
    let app = start(&[]).await;
    let mut client = app.chatbot().await;
    let mut too_long = upsert(73, "q", "a");
    if let Some(Change::Upsert(entry)) = &mut too_long.change {
        entry.answer = "x".repeat(64 * 1024 + 1);
    }
    let changes = vec![
        upsert(0, "no id", "x"),
        upsert(71, "When does the wombat dig?", "At night."),
        TeachRequest { change: None },
        delete(-5),
        too_long,
        upsert(72, "", ""),
    ];
    let summary = teach(&mut client, changes).await.expect("kept in part");
    assert_eq!((summary.upserted_count, summary.deleted_count, summary.rejected_count), (1, 0, 5));
    let indexes: Vec<i32> = summary.rejections.iter().map(|rejection| rejection.index).collect();
    assert_eq!(indexes, [0, 2, 3, 4, 5]);
    assert!(summary.rejections[0].reason.starts_with("upsert.answer_id: must be positive"));
    assert!(summary.rejections[4].reason.contains("upsert.questions[0]: must not be empty"));
    assert_eq!(ask(&mut client, "when does the wombat dig").await.as_deref(), Some("At night."));
    app.stop().await;
}

#[tokio::test]
async fn a_long_stream_is_taken_and_the_first_hundred_rejections_are_told() {
    let app = start(&[]).await;
    let mut client = app.chatbot().await;
    let changes: Vec<_> = (1..=1_000)
        .flat_map(|n| [upsert(1_000 + n, &format!("unique{n} question"), "yes"), delete(0)])
        .collect();
    let summary = teach(&mut client, changes).await.expect("kept");
    assert_eq!((summary.upserted_count, summary.rejected_count), (1_000, 1_000));
    assert_eq!(summary.rejections.len(), 100);
    assert_eq!(summary.knowledge_revision, 1_000);
    assert_eq!(ask(&mut client, "unique777 question").await.as_deref(), Some("yes"));
    assert_eq!(metric(app.addresses.ops, "chatbot_knowledge_entries"), Some(1_006.0));
    assert_eq!(metric(app.addresses.ops, "chatbot_knowledge_revision"), Some(1_000.0));
    app.stop().await;
}

#[tokio::test]
async fn an_empty_stream_changes_nothing() {
    let app = start(&[]).await;
    let mut client = app.chatbot().await;
    let summary = teach(&mut client, Vec::new()).await.expect("fine");
    assert_eq!(summary, TeachResponse::default());
    app.stop().await;
}

#[tokio::test]
async fn a_message_that_is_too_large_ends_the_stream_with_a_reason() {
    let app = start(&[]).await;
    let mut client = app.chatbot().await;
    let huge = upsert(1, "q", &"x".repeat(300 * 1024));
    let status = teach(&mut client, vec![huge]).await.expect_err("refused");
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    let details = status.get_error_details();
    assert_eq!(details.error_info().map(|info| info.reason.as_str()), Some("MESSAGE_INVALID"));
    app.stop().await;
}

#[tokio::test]
async fn a_restart_finds_what_was_taught() {
    let folder = crate::support::folder();
    let url = format!("store.url=redb:{}", folder.path().join("chatbot.redb").display());
    let app = start_in(folder, &[&url]).await;
    let mut client = app.chatbot().await;
    let changes = vec![upsert(70, "When does the quokka smile?", "Always."), delete(2)];
    teach(&mut client, changes).await.expect("kept");
    let folder = app.stop().await;

    let app = start_in(folder, &[&url]).await;
    let mut client = app.chatbot().await;
    assert_eq!(ask(&mut client, "when does the quokka smile").await.as_deref(), Some("Always."));
    assert_eq!(
        ask(&mut client, "too many open files in the server").await.as_deref(),
        Some("Raise the limit and close your channels.")
    );
    assert_eq!(metric(app.addresses.ops, "chatbot_knowledge_entries"), Some(6.0));
    assert_eq!(metric(app.addresses.ops, "chatbot_knowledge_revision"), Some(2.0));
    app.stop().await;
}
