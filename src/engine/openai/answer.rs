//! One request and its answer: sent, read event by event, and judged.
//!
//! The answer is whole when the server has said why it ended, and not before: the end of the stream
//! and `[DONE]` alone are what a server that was killed or a proxy that gave up look like too.

use std::time::Duration;

use http::{StatusCode, header};
use reqwest::Response;
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    Ask, Client, Part,
    fault::Fault,
    metrics::Tally,
    sse::{Decoder, EVENT_BYTES},
    transport::bearer,
    wire::{Chunk, Finish, Reported},
};
use crate::{
    domain::{FinishReason, Usage},
    engine::Error,
};

/// How long the body of a refusal may take, and how much of it is read.
const REFUSAL: (Duration, usize) = (Duration::from_secs(1), 4096);
/// How long the count of tokens may come after the end of the answer.
const USAGE: Duration = Duration::from_secs(2);
/// How long the end of the stream may come after its last event: read to it, the connection can be used
/// again.
const LAST: Duration = Duration::from_millis(50);

/// An answer while it is read. Dropping it closes the request.
#[derive(Debug)]
pub(super) struct Answer {
    client: Client,
    tally: Tally,
    key: Option<std::sync::Arc<str>>,
    response: Response,
    decoder: Decoder,
    /// What of the body has not been decoded.
    bytes: bytes::Bytes,
    /// By when the first token has to come.
    first: Instant,
    /// Whether the server has named the model that answers.
    named: bool,
    /// Whether the model has begun.
    begun: bool,
    /// Whether the turn has been given text.
    said: bool,
    finish: Option<Finish>,
    usage: Option<Usage>,
}

/// What comes next in a body.
enum Next {
    Event(Vec<u8>),
    /// It is over.
    End,
}

impl Answer {
    /// Sends the request and waits for the beginning of its answer.
    pub(super) async fn begin(client: Client, ask: Ask) -> Result<Self, Error> {
        let Some(permit) = client.0.breaker.pass() else {
            let fault = Fault::skipped();
            client.0.metrics.skipped(&fault);
            return Err(fault.told(false));
        };
        let inner = &client.0;
        let span = inner.span();
        let mut tally = Tally::new(inner.metrics.clone(), inner.breaker.clone(), permit, span);
        let key = inner.key.as_ref().map(super::Key::current);
        match Self::send(&client, &ask, &tally, key.as_deref()).await {
            Ok((response, first)) => Ok(Self {
                client,
                tally,
                key,
                response,
                decoder: Decoder::default(),
                bytes: bytes::Bytes::new(),
                first,
                named: false,
                begun: false,
                said: false,
                finish: None,
                usage: None,
            }),
            Err(fault) => {
                tally.failed(&fault, false);
                Err(fault.told(false))
            }
        }
    }

    async fn send(
        client: &Client,
        ask: &Ask,
        tally: &Tally,
        key: Option<&str>,
    ) -> Result<(Response, Instant), Fault> {
        let inner = &client.0;
        let limit = inner.config.first_token_timeout;
        let first = Instant::now() + limit;
        let mut request = inner.http.post(inner.url.clone()).body(inner.body(&ask.messages));
        let mut headers = http::HeaderMap::new();
        tally.span.inject(&mut headers);
        headers.insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
        headers.insert(header::ACCEPT, http::HeaderValue::from_static("text/event-stream"));
        if let Ok(id) = ask.request.to_string().parse() {
            headers.insert("x-request-id", id);
        }
        if let Some(header) = key.and_then(bearer) {
            headers.insert(header::AUTHORIZATION, header);
        }
        request = request.headers(headers);
        let response = match timeout_at(first, request.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(Fault::connection(&error)),
            Err(_) => return Err(Fault::timeout("no answer", limit)),
        };
        let status = response.status();
        let kind = response.headers().get(header::CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default().to_owned();
        // One that names no type is taken at its word.
        let streams = kind.is_empty() || kind.starts_with("text/event-stream");
        if status == StatusCode::OK && streams {
            return Ok((response, first));
        }
        let headers = response.headers().clone();
        let body = beginning(response).await;
        if status != StatusCode::OK {
            return Err(Fault::status(status, &headers, &body, key));
        }
        Err(match Reported::of_body(&body) {
            Some(reported) => Fault::reported(&reported, key),
            None => {
                Fault::garbage(format!("it answered {kind:.80?} in place of a stream of events"))
            }
        })
    }

    /// The next part of the answer.
    pub(super) async fn next(&mut self) -> Result<Part, Error> {
        match self.part().await {
            Ok(part) => {
                self.said |= matches!(part, Part::Text(_));
                Ok(part)
            }
            Err(fault) => {
                self.tally.failed(&fault, self.said);
                Err(fault.told(self.said))
            }
        }
    }

    async fn part(&mut self) -> Result<Part, Fault> {
        loop {
            let event = match (self.event().await, &self.finish) {
                (Ok(Next::Event(event)), _) if event != b"[DONE]" => event,
                (Ok(Next::Event(_)), Some(_)) => {
                    let _ = timeout(LAST, self.response.chunk()).await;
                    return Ok(self.end());
                }
                // Whatever comes after the end of the answer does not unmake it.
                (_, Some(_)) => return Ok(self.end()),
                (Ok(_), None) => {
                    return Err(Fault::ended("its stream ended before the answer did"));
                }
                (Err(fault), None) => return Err(fault),
            };
            let chunk = match (Chunk::read(&event), &self.finish) {
                (Ok(chunk), _) => chunk,
                (Err(_), Some(_)) => return Ok(self.end()),
                (Err(error), None) => {
                    return Err(Fault::garbage(format!(
                        "it sent an event that is no JSON: {error}"
                    )));
                }
            };
            if let Some(text) = self.take(chunk)? {
                return Ok(Part::Text(text));
            }
        }
    }

    /// Takes what an event says; its text, if it has some.
    fn take(&mut self, chunk: Chunk) -> Result<Option<String>, Fault> {
        if let (Some(reported), None) = (&chunk.error, &self.finish) {
            return Err(Fault::reported(reported, self.key.as_deref()));
        }
        if let Some(model) = chunk.model.as_ref().filter(|_| !self.named) {
            self.tally.span.answered_by(model);
            self.named = true;
        }
        if (chunk.begun || chunk.finish.is_some()) && !self.begun {
            self.begun = true;
            self.tally.begun();
        }
        self.usage = chunk.usage.or(self.usage);
        let over = self.finish.is_some();
        self.finish = self.finish.take().or(chunk.finish);
        Ok((!over && !chunk.text.is_empty()).then_some(chunk.text))
    }

    fn end(&mut self) -> Part {
        let usage = self.usage;
        match &self.finish {
            Some(finish) => {
                self.tally.completed(finish, usage);
                Part::End { finish: finish.reason, usage }
            }
            None => Part::End { finish: FinishReason::Stop, usage },
        }
    }

    /// The next event, in the time that there is for it.
    async fn event(&mut self) -> Result<Next, Fault> {
        let config = &self.client.0.config;
        let (until, fault) = if self.finish.is_some() {
            (Instant::now() + USAGE, Fault::timeout("no count of tokens", USAGE))
        } else if self.begun {
            let limit = config.idle_timeout;
            (Instant::now() + limit, Fault::timeout("nothing more", limit))
        } else {
            (self.first, Fault::timeout("no first token", config.first_token_timeout))
        };
        timeout_at(until, self.read()).await.unwrap_or(Err(fault))
    }

    async fn read(&mut self) -> Result<Next, Fault> {
        loop {
            let mut bytes = &self.bytes[..];
            let event = self.decoder.next(&mut bytes);
            let left = bytes.len();
            let _ = self.bytes.split_to(self.bytes.len() - left);
            match event {
                Ok(Some(event)) => return Ok(Next::Event(event)),
                Ok(None) => {}
                Err(_) => {
                    let why = format!("it sent an event of more than {} KiB", EVENT_BYTES / 1024);
                    return Err(Fault::garbage(why));
                }
            }
            match self.response.chunk().await {
                Ok(Some(bytes)) => self.bytes = bytes,
                Ok(None) => return Ok(self.decoder.rest().map_or(Next::End, Next::Event)),
                Err(error) => return Err(Fault::connection(&error)),
            }
        }
    }
}

/// The beginning of a body that is no answer, as far as it comes in time.
async fn beginning(mut response: Response) -> Vec<u8> {
    let (limit, most) = REFUSAL;
    let mut body = Vec::new();
    let _ = timeout(limit, async {
        while let Ok(Some(bytes)) = response.chunk().await {
            body.extend_from_slice(&bytes[..bytes.len().min(most - body.len())]);
            if body.len() == most {
                return;
            }
        }
    })
    .await;
    body
}
