//! A bare tonic server of the same contract: the baseline of `benches/idle.rs`.
//!
//! Everything is as tonic has it by default, on the C library's malloc; every answer is a constant. It
//! prints its address and serves until it is killed.

#![expect(clippy::print_stdout, reason = "its address is its output")]

use chatbot::pb::{
    chatbot::v1::{
        AskRequest, AskResponse, CancelTurnRequest, CancelTurnResponse, ChatRequest, ChatResponse,
        ConverseRequest, ConverseResponse, RankAnswersRequest, RankAnswersResponse, TeachRequest,
        TeachResponse, TurnCompleted,
        chatbot_server::{Chatbot, ChatbotServer},
    },
    health::v1::{
        HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
        health_check_response::ServingStatus,
        health_server::{Health, HealthServer},
    },
};
use tokio_stream::{Iter, iter};
use tonic::{
    Request, Response, Result, Status, Streaming,
    transport::{Server, server::TcpIncoming},
};

type Messages<M> = Iter<std::vec::IntoIter<Result<M>>>;

struct Constant;

#[tonic::async_trait]
impl Chatbot for Constant {
    async fn ask(&self, _: Request<AskRequest>) -> Result<Response<AskResponse>> {
        let answer =
            TurnCompleted { text: "Yes.".to_owned(), answered: true, ..Default::default() };
        Ok(Response::new(AskResponse { answer: Some(answer), ..Default::default() }))
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

    type ChatStream = Messages<ChatResponse>;

    async fn chat(&self, _: Request<ChatRequest>) -> Result<Response<Self::ChatStream>> {
        Ok(Response::new(iter(vec![Ok(ChatResponse::default())])))
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

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into())?;
    println!("address={}", incoming.local_addr()?);
    Server::builder()
        .add_service(ChatbotServer::new(Constant))
        .add_service(HealthServer::new(Constant))
        .serve_with_incoming(incoming)
        .await?;
    Ok(())
}
