//! A conversation of one client's own, and its answers, which resume by themselves.

use std::{collections::VecDeque, time::Duration};

use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tonic::{Status, Streaming};
use uuid::Uuid;

use super::{
    Client, Error, Lost, Told, is_position_lost,
    retry::{Again, Retry},
    why,
};
use crate::pb::chatbot::v1::{
    ChatRequest, ChatResponse, Engine, Event, chatbot_client::ChatbotClient, event::Event as Body,
};

/// How long the status after the last event is waited for.
const TRAILERS: Duration = Duration::from_secs(1);

/// Questions and answers that know of each other.
#[derive(Debug, Clone)]
pub struct Conversation {
    client: Client,
    id: String,
    /// Which engine answers; by default the server's choice.
    pub engine: Engine,
    /// BCP 47 tag of the language that is asked in; empty: any.
    pub language: String,
}

impl Conversation {
    pub(super) fn new(client: Client, id: String) -> Self {
        Self { client, id, engine: Engine::Unspecified, language: String::new() }
    }

    /// Its id; empty before the first event of a new one.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Asks. The answer is what the turn tells; the conversation waits for it.
    pub fn ask(&mut self, text: impl Into<String>) -> Turn<'_> {
        self.ask_as(Uuid::new_v4().to_string(), text)
    }

    /// Asks with a request id (UUID version 4) of the caller's. One that was used for the same question before
    /// is that turn again, told from its start: nothing is generated for it.
    pub fn ask_as(&mut self, request_id: impl Into<String>, text: impl Into<String>) -> Turn<'_> {
        let request = ChatRequest {
            query: text.into(),
            conversation_id: self.id.clone(),
            request_id: request_id.into(),
            engine: self.engine.into(),
            language_code: self.language.clone(),
            resume_token: String::new(),
        };
        let retry = self.client.retry();
        let end = self.client.options.limit.map(|limit| Instant::now() + limit);
        Turn {
            conversation: self,
            request,
            order: Order::default(),
            retry,
            end,
            state: State::Waiting(None),
            is_lost: false,
            is_over: false,
            to_cancel: false,
            told: VecDeque::new(),
        }
    }
}

/// What was heard last, and whether the next is after it.
#[derive(Debug, Default)]
pub(super) struct Order {
    last: Option<i64>,
}

impl Order {
    pub(super) fn check(&mut self, event: &Event) -> Result<(), Error> {
        if self.last.is_some_and(|last| event.sequence_number <= last) {
            return Err(Error::Contract("an event came twice or out of order"));
        }
        self.last = Some(event.sequence_number);
        Ok(())
    }

    pub(super) fn restart(&mut self) {
        self.last = None;
    }
}

/// One question and its answer.
///
/// Dropping it does not stop the answer, which can be had again by its id; [`Turn::cancel`] does.
#[derive(Debug)]
pub struct Turn<'a> {
    conversation: &'a mut Conversation,
    /// What is sent, again and again, with the token of the last event.
    request: ChatRequest,
    order: Order,
    retry: Retry,
    end: Option<Instant>,
    state: State,
    /// Whether that was told, so that its end is told too.
    is_lost: bool,
    /// Whether the terminal event was told.
    is_over: bool,
    /// It is to be stopped as soon as its conversation is known.
    to_cancel: bool,
    told: VecDeque<Told>,
}

#[derive(Debug)]
enum State {
    /// Nothing is open; not before this time.
    Waiting(Option<Instant>),
    Open {
        stream: Box<Streaming<ChatResponse>>,
        generation: u64,
    },
    Ended,
}

impl Turn<'_> {
    /// The turn's id, which is its request's.
    pub fn id(&self) -> &str {
        &self.request.request_id
    }

    /// The next of it; `None` after the terminal event, a `turn_completed` or a `turn_failed`. A turn
    /// that failed is told as an event, with what was said of it; an error is about the call, and its turn
    /// may go on without this client.
    pub async fn next(&mut self) -> Result<Option<Told>, Error> {
        let Some(end) = self.end else { return self.next_unlimited().await };
        if let Ok(next) = timeout_at(end, self.next_unlimited()).await {
            return next;
        }
        self.state = State::Ended;
        Err(Error::Limit)
    }

    /// Stops the answer. Its terminal event comes as for any other.
    pub async fn cancel(&mut self) -> Result<(), Error> {
        self.to_cancel = true;
        self.cancel_if_known().await
    }

    /// The first event of a new conversation tells its id, without which nothing can be stopped.
    async fn cancel_if_known(&mut self) -> Result<(), Error> {
        let Conversation { client, id, .. } = &*self.conversation;
        if self.to_cancel && !id.is_empty() {
            client.cancel_turn(id, self.id()).await?;
            self.to_cancel = false;
        }
        Ok(())
    }

    async fn next_unlimited(&mut self) -> Result<Option<Told>, Error> {
        let silence = self.conversation.client.options.silence;
        loop {
            if let Some(told) = self.told.pop_front() {
                return Ok(Some(told));
            }
            if !self.is_over {
                self.cancel_if_known().await?;
            }
            match &mut self.state {
                State::Ended => return Ok(None),
                State::Waiting(at) => {
                    if let Some(at) = at {
                        sleep_until(*at).await;
                    }
                    self.open().await?;
                }
                State::Open { stream, .. } => {
                    let patience = if self.is_over { TRAILERS } else { silence };
                    let heard = timeout(patience, stream.message()).await;
                    if self.is_over {
                        // What was missing were the trailers, for the server's sake.
                        self.state = State::Ended;
                        return Ok(None);
                    }
                    self.hear(heard)?;
                }
            }
        }
    }

    async fn open(&mut self) -> Result<(), Error> {
        let client = &self.conversation.client;
        let mut request = client.link.request(self.request.clone())?;
        if let Some(end) = self.end {
            request.set_timeout(end.saturating_duration_since(Instant::now()));
        }
        let lease = client.link.lease();
        let mut rpc = ChatbotClient::new(lease.channel);
        let silence = client.options.silence;
        match timeout(silence, rpc.chat(request)).await {
            Ok(Ok(stream)) => {
                let stream = Box::new(stream.into_inner());
                self.state = State::Open { stream, generation: lease.generation };
                if std::mem::take(&mut self.is_lost) {
                    self.told.push_back(Told::Resumed);
                }
                Ok(())
            }
            Ok(Err(status)) => self.broke(status, lease.generation),
            Err(_) => self.silent(lease.generation),
        }
    }

    fn hear(
        &mut self,
        heard: Result<Result<Option<ChatResponse>, Status>, tokio::time::error::Elapsed>,
    ) -> Result<(), Error> {
        let State::Open { generation, .. } = self.state else { return Ok(()) };
        match heard {
            Ok(Ok(Some(response))) => self.take(response),
            // Between here and there somebody has cut the stream, politely: a turn has a last event.
            Ok(Ok(None)) => self.cut(generation),
            Ok(Err(status)) => self.broke(status, generation),
            // The server was there when the stream was opened, so this uses up no patience.
            Err(_) => {
                self.retry.progress();
                self.silent(generation)
            }
        }
    }

    fn take(&mut self, response: ChatResponse) -> Result<(), Error> {
        let event = response.event.ok_or(Error::Contract("a message without an event"))?;
        let checked = self.order.check(&event);
        if checked.is_err() {
            self.state = State::Ended;
        }
        checked?;
        self.retry.progress();
        self.request.resume_token.clone_from(&event.resume_token);
        if self.conversation.id.is_empty() {
            self.conversation.id.clone_from(&event.conversation_id);
        }
        self.is_over = matches!(event.event, Some(Body::TurnCompleted(_) | Body::TurnFailed(_)));
        self.told.push_back(Told::Event(event));
        Ok(())
    }

    fn silent(&mut self, generation: u64) -> Result<(), Error> {
        let silence = self.conversation.client.options.silence;
        self.conversation.client.link.leave(generation);
        let Some(Again { at, .. }) = self.retry.lost(Instant::now(), false) else {
            self.state = State::Ended;
            return Err(Error::Silent(silence));
        };
        self.lost(format!("nothing heard for {silence:?}"), at);
        Ok(())
    }

    fn cut(&mut self, generation: u64) -> Result<(), Error> {
        self.conversation.client.link.leave(generation);
        let Some(Again { at, .. }) = self.retry.lost(Instant::now(), false) else {
            self.state = State::Ended;
            return Err(Error::Contract("turns end without their last event"));
        };
        self.lost("the stream ended early".to_owned(), at);
        Ok(())
    }

    fn broke(&mut self, status: Status, generation: u64) -> Result<(), Error> {
        let link = &self.conversation.client.link;
        if is_position_lost(&status) && !self.request.resume_token.is_empty() {
            self.request.resume_token.clear();
            self.order.restart();
            self.state = State::Waiting(None);
            self.told.push_back(Told::Restarted);
            return Ok(());
        }
        let Some(Again { at, elsewhere }) = self.retry.after(&status, true, Instant::now()) else {
            self.state = State::Ended;
            return Err(Error::of(status, link));
        };
        if elsewhere {
            link.leave(generation);
        }
        self.lost(why(&status), at);
        Ok(())
    }

    fn lost(&mut self, why: String, at: Instant) {
        self.state = State::Waiting(Some(at));
        if !std::mem::replace(&mut self.is_lost, true) {
            self.told.push_back(Told::Lost(Lost { why, next_try: at }));
        }
    }
}
