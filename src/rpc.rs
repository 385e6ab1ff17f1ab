//! The RPCs of `chatbot.v1`: one file an RPC, one file a layer around all of them.
//!
//! An RPC checks its request, asks the modules below, and turns what they say into messages. Its
//! errors go through `Error`; `status` alone makes gRPC statuses of them.

mod ask;
mod authenticate;
mod bounds;
mod cancel_turn;
mod chat;
mod converse;
mod convert;
mod dispatch;
mod observe;
mod rank_answers;
mod rescue;
mod status;
mod teach;
mod web;

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::Stream;
use prometheus_client::registry::Registry;
use tokio::{sync::Semaphore, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use self::dispatch::{Dispatch, Routes};
use crate::{
    auth::{Authenticator, Principal, Refusal, Scope},
    config,
    domain::{FailureReason, RequestId},
    error::{Kind, Violation},
    health,
    knowledge::{self, Knowledge},
    net::{self, Ending},
    pb::{self, chatbot::v1 as proto},
    store::{self, KnowledgeLog},
    telemetry::CallSpans,
    turn::{self, Turns},
};
use proto::chatbot_server::{self, ChatbotServer};

/// Most bytes of one message, both ways.
pub const MESSAGE_BYTES: usize = 256 * 1024;

/// What the RPCs need.
#[derive(Debug)]
pub struct Chatbot {
    /// The turns of all conversations.
    pub turns: Turns,
    /// The knowledge base, for ranking and to wait for what was taught.
    pub knowledge: Knowledge,
    /// The log that `Teach` writes.
    pub store: Arc<dyn KnowledgeLog>,
    /// Limits on requests.
    pub limits: config::Limits,
    /// Time for the first message of a stream that may be silent later.
    pub join_timeout: Duration,
    /// How long a stream may have nothing to tell before it says that it is alive: proxies cut streams
    /// that are idle.
    pub heartbeat_interval: Duration,
    /// One permit for each `Converse` stream.
    pub joined_streams: Arc<Semaphore>,
}

/// What every call on the main port goes through.
#[derive(Debug)]
pub struct Layers {
    /// Who may call.
    pub authenticator: Authenticator,
    /// The spans of calls.
    pub spans: CallSpans,
    /// Time for a request to arrive.
    pub receive_timeout: Duration,
    /// Which pages may call.
    pub web: config::Web,
}

/// Everything that is served on the main port: the chatbot, health, and reflection if wanted, under
/// the layers.
pub fn routes<C: chatbot_server::Chatbot>(
    chatbot: C,
    health: health::Health,
    draining: CancellationToken,
    reflection: bool,
    layers: Layers,
    registry: &mut Registry,
) -> Result<impl net::Routes + use<C>, tonic_reflection::server::Error> {
    let chatbot = ChatbotServer::from_arc(Arc::new(chatbot))
        .max_decoding_message_size(MESSAGE_BYTES)
        .max_encoding_message_size(MESSAGE_BYTES);
    let mut rest = tonic::service::Routes::default();
    rest = rest.add_service(health::service(health, draining));
    if reflection {
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(pb::CHATBOT_DESCRIPTORS)
            .register_encoded_file_descriptor_set(pb::HEALTH_DESCRIPTORS)
            .build_v1()?
            .max_decoding_message_size(MESSAGE_BYTES);
        rest = rest.add_service(reflection);
    }
    // The first layer is the outermost: what the inner ones have refused or corrected is what is
    // observed, and gRPC-Web only translates what comes out.
    let Layers { authenticator, spans, receive_timeout, web } = layers;
    let authenticate = authenticate::Layer::new(authenticator, registry);
    let observe = observe::Layer::new(spans, registry);
    let layered = tower::ServiceBuilder::new()
        .layer(observe)
        .layer(rescue::Layer)
        .layer(bounds::Layer { receive_timeout })
        .layer(authenticate)
        .service(Dispatch::new(chatbot, rest.into_axum_router()));
    Ok(Routes::new(layered, &web))
}

/// Why an RPC failed.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// Fields of the request break rules.
    #[error("the request is invalid")]
    Fields(Vec<Violation>),
    /// The caller's deadline is malformed.
    #[error("grpc-timeout must be at most eight digits and one of H, M, S, m, u, n")]
    Timeout,
    /// There is no valid credential.
    #[error(transparent)]
    Credential(Refusal),
    /// The credential is valid and does not allow it.
    #[error("the credential does not have the scope {}", .0.name())]
    Scope(Scope),
    /// The caller's deadline is over.
    #[error("the deadline that the caller has set is over")]
    Deadline,
    /// The request did not come.
    #[error("the request was not received within {}", humantime::format_duration(*.0))]
    NotReceived(Duration),
    /// A handler has a bug.
    #[error("a handler panicked")]
    Panicked,
    /// The connection ends.
    #[error("this connection ends, try again on another one")]
    Leaving,
    /// As many streams as may be are open.
    #[error("limits.joined_streams are open here, try again or at another replica")]
    Full,
    /// The request's id was used for another request.
    #[error("the request_id was used for another request: make a new one for each request")]
    Reused(RequestId),
    /// The turn has failed.
    #[error("{}", failed(*.0))]
    TurnFailed(FailureReason),
    #[error(transparent)]
    Knowledge(#[from] knowledge::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Turn(#[from] turn::Error),
}

/// Why a turn has failed, for its caller.
fn failed(reason: FailureReason) -> &'static str {
    match reason {
        FailureReason::Interrupted => {
            "the answer broke off because its server went away: ask again, with a new request_id"
        }
        FailureReason::Timeout => "the turn took longer than engine.max_turn_time",
        FailureReason::UpstreamUnavailable => {
            "the model is not available: ask again later, with a new request_id"
        }
        FailureReason::UpstreamTruncated => {
            "the model's answer broke off: ask again, with a new request_id"
        }
        FailureReason::Internal => "internal error, see the server's log",
    }
}

/// The kind of a failed turn.
fn failure_kind(reason: FailureReason) -> Kind {
    match reason {
        FailureReason::Interrupted => Kind::Interrupted,
        FailureReason::Timeout => Kind::TurnTimeout,
        FailureReason::UpstreamUnavailable => Kind::UpstreamUnavailable,
        FailureReason::UpstreamTruncated => Kind::UpstreamTruncated,
        FailureReason::Internal => Kind::Internal,
    }
}

impl Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Fields(_) | Self::Timeout => Kind::Invalid,
            Self::Credential(refusal) => refusal.kind(),
            Self::Scope(_) => Kind::Denied,
            Self::Deadline | Self::NotReceived(_) => Kind::Deadline,
            Self::Panicked => Kind::Internal,
            Self::Leaving => Kind::Draining,
            Self::Full => Kind::Overloaded,
            Self::Reused(_) => Kind::Conflict,
            Self::TurnFailed(reason) => failure_kind(*reason),
            Self::Turn(error) => error.kind(),
            Self::Knowledge(error) => error.kind(),
            Self::Store(error) => error.kind(),
        }
    }
}

/// Until when the caller waits.
fn deadline<T>(request: &Request<T>) -> Option<Instant> {
    request.extensions().get::<bounds::Deadline>().map(|deadline| deadline.0)
}

/// Who calls. Every call has come through `authenticate`.
fn principal<T>(request: &Request<T>) -> Result<Arc<str>, Error> {
    let principal = request.extensions().get::<Principal>();
    principal
        .map(|principal| Arc::clone(&principal.name))
        .ok_or(Error::Credential(Refusal::Missing))
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl chatbot_server::Chatbot for Chatbot {
    async fn ask(
        &self,
        request: Request<proto::AskRequest>,
    ) -> Result<Response<proto::AskResponse>, Status> {
        let principal = principal(&request)?;
        Ok(Response::new(self.answer(&principal, deadline(&request), request.into_inner()).await?))
    }

    type RankAnswersStream = Answers<proto::RankAnswersResponse>;

    async fn rank_answers(
        &self,
        request: Request<proto::RankAnswersRequest>,
    ) -> Result<Response<Self::RankAnswersStream>, Status> {
        let hits = self.rank(&request.into_inner())?;
        // Each is copied when it is its turn: hundreds of calls with a hundred long answers each would
        // else hold gigabytes while their peer reads nothing.
        let answers = hits.into_iter().map(|hit| Ok(convert::ranked_answer(&hit)));
        Ok(Response::new(Box::pin(futures_util::stream::iter(answers))))
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
        request: Request<proto::ChatRequest>,
    ) -> Result<Response<Self::ChatStream>, Status> {
        let principal = principal(&request)?;
        let events = self.chat(&principal, deadline(&request), request.into_inner()).await?;
        Ok(Response::new(Box::pin(events)))
    }

    type ConverseStream = Answers<proto::ConverseResponse>;

    async fn converse(
        &self,
        request: Request<Streaming<proto::ConverseRequest>>,
    ) -> Result<Response<Self::ConverseStream>, Status> {
        let principal = principal(&request)?;
        let ending = request.extensions().get::<Ending>().cloned().unwrap_or_default();
        let events = self.join(principal, ending, request.into_inner())?;
        Ok(Response::new(Box::pin(events)))
    }

    async fn cancel_turn(
        &self,
        request: Request<proto::CancelTurnRequest>,
    ) -> Result<Response<proto::CancelTurnResponse>, Status> {
        let principal = principal(&request)?;
        Ok(Response::new(self.stop(&principal, request.get_ref()).await?))
    }
}
