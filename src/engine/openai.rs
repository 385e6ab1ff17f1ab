//! The model's server: a thin client of `/v1/chat/completions`, which vLLM, llama.cpp, Ollama, LiteLLM
//! and hosted services all speak.
//!
//! Written by hand, since the ready-made clients take the end of a stream for the end of an answer,
//! refuse values that real servers send, and buffer without a bound. Every wait has a limit, an event
//! has a largest size, and a request whose answer is dropped is closed. A request is never repeated in
//! here: whether it may be is known to whoever has shown its text.

mod answer;
mod breaker;
mod fault;
mod metrics;
pub mod sse;
mod transport;
mod wire;

use std::sync::Arc;

use futures_util::{Stream, stream};
use prometheus_client::registry::Registry;
use reqwest::Url;

pub use self::transport::{Key, SetupError};
pub(super) use self::wire::{Message, Role};
use self::{answer::Answer, breaker::Breaker, metrics::Metrics};
use super::Error;
use crate::{
    config,
    domain::{FinishReason, RequestId, Usage},
    telemetry::ModelSpan,
};

/// The client of one model; clones share it.
#[derive(Debug, Clone)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    http: reqwest::Client,
    url: Url,
    key: Option<Key>,
    config: config::Upstream,
    breaker: Breaker,
    metrics: Metrics,
}

/// What a model is asked.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    /// The request that asks.
    pub(super) request: RequestId,
    /// What was said until now, the question last.
    pub(super) messages: Vec<Message>,
}

/// A part of a model's answer.
#[derive(Debug, PartialEq)]
pub(super) enum Part {
    /// The next piece of the text.
    Text(String),
    /// The answer is complete.
    End {
        /// Why.
        finish: FinishReason,
        /// What it has used, where the server says so.
        usage: Option<Usage>,
    },
}

/// How a stream of parts stands.
enum State {
    Before(Client, Ask),
    Within(Box<Answer>),
    Over,
}

impl Client {
    /// A client, with its key and authorities read. Blocks for small files; connects to nothing.
    pub fn new(config: &config::Upstream, registry: &mut Registry) -> Result<Self, SetupError> {
        let url = config.url.parse().map_err(|_| SetupError::Address(config.url.clone()))?;
        Ok(Self(Arc::new(Inner {
            http: transport::client(config)?,
            url,
            key: config.api_key_file.as_deref().map(Key::load).transpose()?,
            config: config.clone(),
            breaker: Breaker::default(),
            metrics: Metrics::new(registry),
        })))
    }

    /// The key that it shows, to be read again.
    pub fn key(&self) -> Option<Key> {
        self.0.key.clone()
    }

    /// Most tokens to send, by estimate.
    pub(super) fn context_tokens(&self) -> u32 {
        self.0.config.context_tokens
    }

    /// Whether the server is left alone now, so that another try is of no use.
    pub(super) fn is_resting(&self) -> bool {
        self.0.breaker.is_open()
    }

    /// Notes that a request is repeated.
    pub(super) fn retried(&self) {
        self.0.metrics.retries.inc();
    }

    /// Asks: the pieces of the text, then the end; or an error, and nothing more. Nothing is sent before
    /// the stream is read, and dropping it closes the request.
    pub(super) fn ask(&self, ask: Ask) -> impl Stream<Item = Result<Part, Error>> + Send + use<> {
        stream::unfold(State::Before(self.clone(), ask), |state| async {
            let mut answer = match state {
                State::Before(client, ask) => match Box::pin(Answer::begin(client, ask)).await {
                    Ok(answer) => Box::new(answer),
                    Err(error) => return Some((Err(error), State::Over)),
                },
                State::Within(answer) => answer,
                State::Over => return None,
            };
            let part = answer.next().await;
            let more = matches!(part, Ok(Part::Text(_)));
            Some((part, if more { State::Within(answer) } else { State::Over }))
        })
    }
}

impl Inner {
    fn body(&self, messages: &[Message]) -> Vec<u8> {
        let request = wire::Request {
            model: &self.config.model,
            messages,
            stream: true,
            stream_options: wire::StreamOptions { include_usage: true },
            max_tokens: self.config.max_output_tokens,
            temperature: self.config.temperature,
        };
        // Plain structs of strings and numbers; nothing in it can fail.
        serde_json::to_vec(&request).unwrap_or_default()
    }

    fn span(&self) -> ModelSpan {
        let host = self.url.host_str().unwrap_or_default();
        let port = self.url.port_or_known_default().unwrap_or_default();
        ModelSpan::start(&self.config.model, host, port)
    }
}
