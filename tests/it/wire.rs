//! The messages of the service that this one descends from decode as ours, and ours as theirs.

use chatbot::pb::chatbot::v1::{RankAnswersRequest, RankAnswersResponse};
use prost::Message;

/// string = 1, int32 = 2, repeated int32 = 3, string = 4.
#[derive(Clone, PartialEq, Message)]
struct OriginalRequest {
    #[prost(string, tag = "1")]
    query: String,
    #[prost(int32, tag = "2")]
    count: i32,
    #[prost(int32, repeated, tag = "3")]
    ids: Vec<i32>,
    #[prost(string, tag = "4")]
    language: String,
}

/// int32 = 1, double = 2.
#[derive(Clone, PartialEq, Message)]
struct OriginalResponse {
    #[prost(int32, tag = "1")]
    id: i32,
    #[prost(double, tag = "2")]
    score: f64,
}

#[test]
fn requests_are_the_same_both_ways() {
    let theirs = OriginalRequest {
        query: "왜 끊겨요?".to_owned(),
        count: 3,
        ids: vec![7, -1, i32::MAX],
        language: "ko".to_owned(),
    };
    let ours = RankAnswersRequest {
        query: theirs.query.clone(),
        max_answers: theirs.count,
        excluded_answer_ids: theirs.ids.clone(),
        language_code: theirs.language.clone(),
    };
    assert_eq!(RankAnswersRequest::decode(&*theirs.encode_to_vec()), Ok(ours.clone()));
    assert_eq!(OriginalRequest::decode(&*ours.encode_to_vec()), Ok(theirs));
}

#[test]
fn responses_are_the_same_both_ways_and_new_fields_are_skipped() {
    let theirs = OriginalResponse { id: 42, score: 3.25 };
    let ours = RankAnswersResponse { answer_id: 42, score: 3.25, ..Default::default() };
    assert_eq!(RankAnswersResponse::decode(&*theirs.encode_to_vec()), Ok(ours.clone()));
    let full = RankAnswersResponse { text: "답".to_owned(), confidence: 0.5, ..ours };
    assert_eq!(OriginalResponse::decode(&*full.encode_to_vec()), Ok(theirs));
}
