//! A service of the contract whose every answer is a constant, as long as one of ours.
//!
//! `Chat` tells a hundred events: at once, or fifty a second for the query `live`. On a bare server it is
//! the baseline, and under our layers it is what they cost.

use std::{pin::Pin, time::Duration};

use super::pb::{
    chatbot::v1::{
        AskRequest, AskResponse, CancelTurnRequest, CancelTurnResponse, ChatRequest, ChatResponse,
        ConverseRequest, ConverseResponse, Event, FinishReason, RankAnswersRequest,
        RankAnswersResponse, TeachRequest, TeachResponse, TurnCompleted, chatbot_server::Chatbot,
        event::Event as Body,
    },
    health::v1::{
        HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
        health_check_response::ServingStatus, health_server::Health,
    },
};
use futures_util::{StreamExt as _, stream};
use tokio_stream::{Iter, Stream, iter, wrappers::IntervalStream};
use tonic::{Request, Response, Result, Status, Streaming};

type Messages<M> = Iter<std::vec::IntoIter<Result<M>>>;

/// Events of an answer.
const EVENTS: i64 = 100;
/// From one to the next, where they are not ready.
const GAP: Duration = Duration::from_millis(20);
/// An id, as long as they are.
const ID: &str = "0b8e4c8e-6d3a-4c36-9d1c-2f1f0a3d5e77";

/// The service.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Constant;

fn event(number: i64, text: &str) -> ChatResponse {
    let event = Event {
        sequence_number: number,
        resume_token: "000000000000000100000000000000ff".to_owned(),
        turn_id: ID.to_owned(),
        create_time: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 123_456_789 }),
        conversation_id: ID.to_owned(),
        event: Some(Body::TextDelta(text.to_owned())),
    };
    ChatResponse { event: Some(event) }
}

#[tonic::async_trait]
impl Chatbot for Constant {
    async fn ask(&self, _: Request<AskRequest>) -> Result<Response<AskResponse>> {
        let answer = TurnCompleted {
            turn_id: ID.to_owned(),
            text: "Yes, and no more.".to_owned(),
            answered: true,
            confidence: 1.0,
            finish_reason: FinishReason::Stop.into(),
            ..Default::default()
        };
        Ok(Response::new(AskResponse { conversation_id: ID.to_owned(), answer: Some(answer) }))
    }

    type RankAnswersStream = Messages<RankAnswersResponse>;

    async fn rank_answers(
        &self,
        _: Request<RankAnswersRequest>,
    ) -> Result<Response<Self::RankAnswersStream>> {
        Ok(Response::new(iter(vec![Ok(RankAnswersResponse::default())])))
    }

    async fn teach(&self, _: Request<Streaming<TeachRequest>>) -> Result<Response<TeachResponse>> {
        Ok(Response::new(TeachResponse::default()))
    }

    type ChatStream = Pin<Box<dyn Stream<Item = Result<ChatResponse>> + Send>>;

    async fn chat(&self, request: Request<ChatRequest>) -> Result<Response<Self::ChatStream>> {
        if request.get_ref().query == "live" {
            let text = "a piece of text ".repeat(16);
            let ticks = IntervalStream::new(tokio::time::interval(GAP));
            let numbers = ticks.zip(stream::iter(1..=EVENTS));
            let events = numbers.map(move |(_, number)| Ok(event(number, &text)));
            return Ok(Response::new(Box::pin(events)));
        }
        let events = iter((1..=EVENTS).map(|number| Ok(event(number, "a piece of text "))));
        Ok(Response::new(Box::pin(events)))
    }

    type ConverseStream = Messages<ConverseResponse>;

    async fn converse(
        &self,
        _: Request<Streaming<ConverseRequest>>,
    ) -> Result<Response<Self::ConverseStream>> {
        Ok(Response::new(iter(vec![Ok(ConverseResponse::default())])))
    }

    async fn cancel_turn(
        &self,
        _: Request<CancelTurnRequest>,
    ) -> Result<Response<CancelTurnResponse>> {
        Ok(Response::new(CancelTurnResponse::default()))
    }
}

#[tonic::async_trait]
impl Health for Constant {
    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>> {
        Ok(Response::new(HealthCheckResponse { status: ServingStatus::Serving.into() }))
    }

    async fn list(&self, _: Request<HealthListRequest>) -> Result<Response<HealthListResponse>> {
        Err(Status::unimplemented("it is bare"))
    }

    type WatchStream = Messages<HealthCheckResponse>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>> {
        Err(Status::unimplemented("it is bare"))
    }
}
