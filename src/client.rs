//! A client that keeps the promise from its side: the connection dies, the conversation does not.
//!
//! [`Client`] is one channel for everything, made once and kept. A call that a dying connection took down
//! is sent again by rules, not by luck: [`Fate`] says whether the server can have seen it. A
//! [`Conversation`] resumes its answers, a [`Session`] its place in a shared one, where they were, at
//! whichever server answers; nothing is shown twice, and what has to be said about it is told as
//! [`Told`].
//!
//! No task is spawned: everything happens while its caller waits for it, and dropping a future drops
//! what it did. Every `next` may be dropped and called again; nothing is lost by it.

mod channel;
mod replay;
mod retry;
mod session;
mod turn;

use std::{future::Future, pin::pin, sync::Arc, time::Duration};

use futures_util::stream;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tonic::{Code, Request, Status, Streaming, transport::Channel};
use uuid::Uuid;

use self::{
    channel::Link,
    retry::{Again, Retry},
};
pub use self::{
    channel::{Credential, Tls},
    replay::Fate,
    retry::Patience,
    session::Session,
    turn::{Conversation, Turn},
};
use crate::pb::{
    chatbot::v1::{
        AskRequest, AskResponse, CancelTurnRequest, Event, RankAnswersRequest, RankAnswersResponse,
        TeachRequest, TeachResponse, chatbot_client::ChatbotClient,
    },
    health::v1::{HealthCheckRequest, HealthCheckResponse, health_client::HealthClient},
};

/// How a client is made.
#[derive(Debug, Clone)]
pub struct Options {
    /// `HOST:PORT` of servers that share a store, or of a service in front of them. They are tried in
    /// turn; one is used at a time.
    pub addresses: Vec<String>,
    /// TLS; `None`: plaintext, but for addresses that begin with `https://`.
    pub tls: Option<Tls>,
    /// What is shown with each call.
    pub credential: Credential,
    /// Time for a connection, TLS included.
    pub connect_timeout: Duration,
    /// Time for a call that has one answer, repetitions included, and a turn's; `None`: as long as it
    /// takes.
    pub limit: Option<Duration>,
    /// How long an answer may be silent before another server is asked for the rest of it. That costs
    /// nothing but a connection, so it need not be long. A call that has one answer is waited for; as often
    /// as this time is over, or half of [`Options::limit`] if that is less, its connection is tried with a
    /// health check.
    pub silence: Duration,
    /// The same for a joined conversation; longer than the server's `server.heartbeat_interval`.
    pub session_silence: Duration,
    /// How long what fails is tried again.
    pub patience: Patience,
}

impl Options {
    /// The defaults, for one address or several.
    pub fn new(addresses: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            addresses: addresses.into_iter().map(Into::into).collect(),
            tls: None,
            credential: Credential::None,
            connect_timeout: Duration::from_secs(3),
            limit: None,
            silence: Duration::from_secs(10),
            session_silence: Duration::from_secs(40),
            patience: Patience::default(),
        }
    }
}

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The options cannot be used.
    #[error("{0}")]
    Options(String),
    /// No server could be reached.
    #[error("cannot connect to {address}: {why}")]
    Connect {
        /// The last that was tried.
        address: String,
        /// What was in the way.
        why: String,
    },
    /// The server's answer is no, or the call may not be repeated.
    #[error("call failed: {} ({:?})", .0.message(), .0.code())]
    Call(Status),
    /// The server takes calls and does not answer.
    #[error("no answer within {0:?}")]
    Silent(Duration),
    /// The caller's limit is over.
    #[error("the time limit is over")]
    Limit,
    /// The server broke the contract: events out of order, or messages without content.
    #[error("the server broke the contract: {0}")]
    Contract(&'static str),
}

impl Error {
    /// The reason that the server has given, of those in the contract.
    pub fn reason(&self) -> Option<String> {
        match self {
            Self::Call(status) => retry::reason(status),
            _ => None,
        }
    }

    /// The error of a call that is not sent again.
    fn of(status: Status, link: &Link) -> Self {
        if std::error::Error::source(&status)
            .is_some_and(|cause| matches!(cause.downcast_ref(), Some(tonic::TimeoutExpired(()))))
        {
            return Self::Limit;
        }
        if Fate::of(&status) == Fate::NotConnected {
            return Self::Connect { address: link.address(), why: channel::root_cause(&status) };
        }
        Self::Call(status)
    }
}

/// What a stream tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// The next event; never twice, never out of order.
    Event(Event),
    /// The server cannot be heard. The stream goes on by itself; this is for people who wonder.
    Lost(Lost),
    /// It can be heard again.
    Resumed,
    /// The server does not know the position any more. What comes next begins at the start, and replaces
    /// what was shown.
    Restarted,
}

/// What happened to a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// In words.
    pub why: String,
    /// When the next try is.
    pub next_try: Instant,
}

/// One channel to the service, for everything. Cheap to clone; a clone shares the channel.
#[derive(Debug, Clone)]
pub struct Client {
    link: Arc<Link>,
    options: Arc<Options>,
}

impl Client {
    /// A client. It connects when it is needed; see [`Client::connect`].
    pub fn new(options: Options) -> Result<Self, Error> {
        let Options { addresses, tls, credential, connect_timeout, .. } = &options;
        let link = Link::new(addresses, tls.as_ref(), credential.clone(), *connect_timeout)?;
        Ok(Self { link: Arc::new(link), options: Arc::new(options) })
    }

    /// Connects now, to tell whether it can.
    pub async fn connect(&self) -> Result<(), Error> {
        self.link.connect(self.options.connect_timeout).await
    }

    /// Asks, and waits for the answer. Without a `request_id` it gets one.
    pub async fn ask(&self, mut request: AskRequest) -> Result<AskResponse, Error> {
        if request.request_id.is_empty() {
            request.request_id = Uuid::new_v4().to_string();
        }
        self.call(request, async |channel, request| {
            Ok(ChatbotClient::new(channel).ask(request).await?.into_inner())
        })
        .await
    }

    /// The answers that match, best first.
    pub async fn rank_answers(
        &self,
        request: RankAnswersRequest,
    ) -> Result<Vec<RankAnswersResponse>, Error> {
        self.call(request, async |channel, request| {
            let mut answers = Vec::new();
            let mut stream = ChatbotClient::new(channel).rank_answers(request).await?.into_inner();
            while let Some(answer) = stream.message().await? {
                answers.push(answer);
            }
            Ok(answers)
        })
        .await
    }

    /// Teaches. Changes are upserts and deletes by id, so all of them are sent again after a loss.
    pub async fn teach(&self, changes: Vec<TeachRequest>) -> Result<TeachResponse, Error> {
        self.call(changes, async |channel, request| {
            let request = request.map(stream::iter);
            Ok(ChatbotClient::new(channel).teach(request).await?.into_inner())
        })
        .await
    }

    /// Stops a turn, wherever it runs. One that is over is fine.
    pub async fn cancel_turn(&self, conversation: &str, turn: &str) -> Result<(), Error> {
        let request = CancelTurnRequest {
            conversation_id: conversation.to_owned(),
            turn_id: turn.to_owned(),
        };
        self.call(request, async |channel, request| {
            ChatbotClient::new(channel).cancel_turn(request).await.map(drop)
        })
        .await
    }

    /// Asks for the health of a service.
    pub async fn health(&self, service: &str) -> Result<HealthCheckResponse, Error> {
        let request = HealthCheckRequest { service: service.to_owned() };
        self.call(request, async |channel, request| {
            Ok(HealthClient::new(channel).check(request).await?.into_inner())
        })
        .await
    }

    /// The health of a service, and its changes. This stream ends with its connection.
    pub async fn watch_health(
        &self,
        service: &str,
    ) -> Result<Streaming<HealthCheckResponse>, Error> {
        let request = self.link.request(HealthCheckRequest { service: service.to_owned() })?;
        let channel = self.link.lease().channel;
        let mut health = HealthClient::new(channel.clone());
        let watched = self.wait(channel, None, health.watch(request)).await;
        Ok(watched.map_err(|status| Error::of(status, &self.link))?.into_inner())
    }

    /// A conversation; with an empty `id` a new one.
    pub fn conversation(&self, id: impl Into<String>) -> Conversation {
        Conversation::new(self.clone(), id.into())
    }

    /// Joins a conversation; with an empty `id` a new one, which begins with the first message.
    pub fn join(&self, id: impl Into<String>) -> Session {
        Session::new(self.clone(), id.into())
    }

    fn retry(&self) -> Retry {
        Retry::new(self.options.patience, self.link.addresses())
    }

    /// Sends `message` until there is an answer. All calls of the contract may be repeated: by their
    /// `request_id`, because they only read, or because doing them twice is doing them once.
    async fn call<M: Clone, T>(
        &self,
        message: M,
        send: impl AsyncFn(Channel, Request<M>) -> Result<T, Status>,
    ) -> Result<T, Error> {
        let end = self.options.limit.map(|limit| Instant::now() + limit);
        let mut retry = self.retry();
        loop {
            let mut request = self.link.request(message.clone())?;
            let lease = self.link.lease();
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            if let Some(left) = left {
                request.set_timeout(left);
            }
            let call = self.wait(lease.channel.clone(), left, send(lease.channel, request));
            let answer = match end {
                Some(end) => timeout_at(end, call).await.map_err(|_| Error::Limit)?,
                None => call.await,
            };
            let status = match answer {
                Ok(answer) => return Ok(answer),
                Err(status) => status,
            };
            let Some(Again { at, elsewhere }) = retry.after(&status, true, Instant::now()) else {
                return Err(Error::of(status, &self.link));
            };
            if elsewhere {
                self.link.leave(lease.generation);
            }
            if end.is_some_and(|end| at >= end) {
                // Waiting longer than the limit cannot help: the status says more than the limit does.
                return Err(Error::of(status, &self.link));
            }
            sleep_until(at).await;
        }
    }

    /// Waits for a call on `channel`, and asks there for health as often as it has waited for
    /// [`Options::silence`], or half of the time that is `left` for it.
    ///
    /// One call of some thousand that meet the end of their connection is lost between libraries: the queue
    /// in which hyper hands calls to a connection (tokio's unbounded channel) may accept one while its far
    /// end is dropped, and keeps it for as long as there is anybody who could send. That is tonic's channel,
    /// which looks whether its connection has ended when it gets its next call, and then lets go of both. So
    /// the health check finds a new connection, and the call, never sent, fails and may be sent again.
    async fn wait<T>(
        &self,
        channel: Channel,
        left: Option<Duration>,
        call: impl Future<Output = T>,
    ) -> T {
        let silence = self.options.silence;
        let silence = left.map_or(silence, |left| silence.min(left / 2));
        let mut call = pin!(call);
        loop {
            if let Ok(answer) = timeout(silence, call.as_mut()).await {
                return answer;
            }
            // Without its credential it would still be a call.
            let check = HealthCheckRequest::default;
            let check = self.link.request(check()).unwrap_or_else(|_| Request::new(check()));
            let mut health = HealthClient::new(channel.clone());
            tokio::select! {
                answer = call.as_mut() => return answer,
                // Whatever it says; a server that says nothing is noticed by pings.
                _ = health.check(check) => {}
            }
        }
    }
}

/// What happened to a stream, for people.
fn why(status: &Status) -> String {
    match Fate::of(status) {
        Fate::Answered => status.message().to_owned(),
        Fate::NotConnected => format!("no connection ({})", channel::root_cause(status)),
        Fate::Unsent | Fate::NotProcessed | Fate::Ambiguous => "connection lost".to_owned(),
    }
}

/// Whether the position that was shown is not known any more.
fn is_position_lost(status: &Status) -> bool {
    status.code() == Code::OutOfRange
}
