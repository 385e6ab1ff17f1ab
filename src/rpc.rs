//! The RPCs of `chatbot.v1`: one file an RPC, one file a layer around all of them.
//!
//! An RPC checks its request, asks the modules below, and turns what they say into messages. Its
//! errors go through `Error`; `status` alone makes gRPC statuses of them.

mod ask;
mod authenticate;
mod convert;
mod observe;
mod rank_answers;
mod rescue;
mod status;
mod teach;

use std::{pin::Pin, sync::Arc};

use futures_util::Stream;
use prometheus_client::registry::Registry;
use tonic::{Request, Response, Status, Streaming, service::Routes};

use crate::{
    auth::{Authenticator, Refusal, Scope},
    config,
    engine::Retrieval,
    error::{Kind, Violation},
    health,
    knowledge::{self, Knowledge},
    lifecycle::Lifecycle,
    pb::{self, chatbot::v1 as proto},
    store::{self, Store},
    telemetry::CallSpans,
};
use proto::chatbot_server::{self, ChatbotServer};

/// Most bytes of one message, both ways.
pub const MESSAGE_BYTES: usize = 256 * 1024;

/// What the RPCs need.
#[derive(Debug)]
pub struct Chatbot {
    /// The engine that answers.
    pub retrieval: Retrieval,
    /// The knowledge base, for ranking and to wait for what was taught.
    pub knowledge: Knowledge,
    /// The log that `Teach` writes.
    pub store: Arc<dyn Store>,
    /// Limits on requests.
    pub limits: config::Limits,
}

/// Everything that is served on the main port: the chatbot, health, and reflection if wanted.
pub fn routes(
    chatbot: Chatbot,
    health: health::Health,
    life: &Lifecycle,
    authenticator: Authenticator,
    spans: CallSpans,
    reflection: bool,
    registry: &mut Registry,
) -> Result<Routes, tonic_reflection::server::Error> {
    let chatbot = ChatbotServer::from_arc(Arc::new(chatbot))
        .max_decoding_message_size(MESSAGE_BYTES)
        .max_encoding_message_size(MESSAGE_BYTES);
    let mut routes =
        Routes::new(chatbot).add_service(health::service(health, life.draining().clone()));
    if reflection {
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(pb::CHATBOT_DESCRIPTORS)
            .register_encoded_file_descriptor_set(pb::HEALTH_DESCRIPTORS)
            .build_v1()?;
        routes = routes.add_service(reflection);
    }
    // The last layer is the outermost: what rescue has made of a response is what is observed, and
    // so is what authenticate has refused.
    let layered = routes
        .into_axum_router()
        .layer(authenticate::Layer::new(authenticator, registry))
        .layer(rescue::Layer)
        .layer(observe::Layer::new(spans, registry));
    Ok(Routes::from(layered))
}

/// Why an RPC failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// Fields of the request break rules.
    #[error("the request is invalid")]
    Fields(Vec<Violation>),
    /// There is no valid credential.
    #[error(transparent)]
    Credential(Refusal),
    /// The credential is valid and does not allow it.
    #[error("the credential does not have the scope {}", .0.name())]
    Scope(Scope),
    /// This version does not do it.
    #[error("{0}")]
    Unimplemented(&'static str),
    #[error(transparent)]
    Knowledge(#[from] knowledge::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Fields(_) => Kind::Invalid,
            Self::Credential(refusal) => refusal.kind(),
            Self::Scope(_) => Kind::Denied,
            Self::Unimplemented(_) => Kind::Unimplemented,
            Self::Knowledge(error) => error.kind(),
            Self::Store(error) => error.kind(),
        }
    }
}

const NO_CONVERSATIONS: &str =
    "this version keeps no conversations: use Ask, without a conversation_id";

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl chatbot_server::Chatbot for Chatbot {
    async fn ask(
        &self,
        request: Request<proto::AskRequest>,
    ) -> Result<Response<proto::AskResponse>, Status> {
        Ok(Response::new(self.answer(&request.into_inner())?))
    }

    type RankAnswersStream = Answers<proto::RankAnswersResponse>;

    async fn rank_answers(
        &self,
        request: Request<proto::RankAnswersRequest>,
    ) -> Result<Response<Self::RankAnswersStream>, Status> {
        let ranked = self.rank(&request.into_inner())?;
        Ok(Response::new(Box::pin(futures_util::stream::iter(ranked.into_iter().map(Ok)))))
    }

    async fn teach(
        &self,
        request: Request<Streaming<proto::TeachRequest>>,
    ) -> Result<Response<proto::TeachResponse>, Status> {
        Ok(Response::new(self.learn(request.into_inner()).await?))
    }

    type ChatStream = Answers<proto::ChatResponse>;

    async fn chat(
        &self,
        _: Request<proto::ChatRequest>,
    ) -> Result<Response<Self::ChatStream>, Status> {
        Err(Error::Unimplemented(NO_CONVERSATIONS).into())
    }

    type ConverseStream = Answers<proto::ConverseResponse>;

    async fn converse(
        &self,
        _: Request<Streaming<proto::ConverseRequest>>,
    ) -> Result<Response<Self::ConverseStream>, Status> {
        Err(Error::Unimplemented(NO_CONVERSATIONS).into())
    }

    async fn cancel_turn(
        &self,
        _: Request<proto::CancelTurnRequest>,
    ) -> Result<Response<proto::CancelTurnResponse>, Status> {
        Err(Error::Unimplemented(NO_CONVERSATIONS).into())
    }
}
