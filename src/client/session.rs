//! A place in a conversation that several take part in, which is kept over connections.
//!
//! A message counts as said when it comes back as an event. Until then it is kept, and sent again on
//! every new stream; the server recognises it by its `request_id`.

use std::collections::VecDeque;

use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use uuid::Uuid;

use super::{
    Client, Error, Lost, Told, is_position_lost,
    retry::{Again, Retry},
    turn::Order,
    why,
};
use crate::pb::chatbot::v1::{
    ConverseRequest, ConverseResponse, Event, Join, PostMessage, chatbot_client::ChatbotClient,
    converse_request::Request as Say, converse_response::Response as Heard, event::Event as Body,
};

/// Messages that may be on their way at once; more of them wait here.
const ON_THE_WAY: usize = 16;

/// A joined conversation.
#[derive(Debug)]
pub struct Session {
    client: Client,
    conversation: String,
    token: String,
    order: Order,
    retry: Retry,
    /// Said, and not yet heard back.
    unseen: VecDeque<PostMessage>,
    state: State,
    is_lost: bool,
    told: VecDeque<Told>,
}

#[derive(Debug)]
enum State {
    Waiting(Option<Instant>),
    Joined(Joined),
    Ended,
}

#[derive(Debug)]
struct Joined {
    hears: Box<Streaming<ConverseResponse>>,
    says: mpsc::Sender<ConverseRequest>,
    /// How many of the unseen messages were said on this stream, from the front.
    said: usize,
    generation: u64,
}

impl Session {
    pub(super) fn new(client: Client, conversation: String) -> Self {
        let retry = client.retry();
        Self {
            client,
            conversation,
            token: String::new(),
            order: Order::default(),
            retry,
            unseen: VecDeque::new(),
            state: State::Waiting(None),
            is_lost: false,
            told: VecDeque::new(),
        }
    }

    /// The conversation's id; empty before the first event of a new one.
    pub fn id(&self) -> &str {
        &self.conversation
    }

    /// Says something; an empty `request_id` gets one, which is returned. It goes out while [`next`] is
    /// waited for.
    ///
    /// [`next`]: Session::next
    pub fn post(&mut self, mut message: PostMessage) -> String {
        if message.request_id.is_empty() {
            message.request_id = Uuid::new_v4().to_string();
        }
        let id = message.request_id.clone();
        self.unseen.push_back(message);
        self.speak();
        id
    }

    /// Stops a turn of this conversation.
    pub async fn cancel(&self, turn: &str) -> Result<(), Error> {
        self.client.cancel_turn(&self.conversation, turn).await
    }

    /// The next of the conversation. It has no end but an error, such as a message that was refused;
    /// `None` after that.
    pub async fn next(&mut self) -> Result<Option<Told>, Error> {
        let silence = self.client.options.session_silence;
        loop {
            if let Some(told) = self.told.pop_front() {
                return Ok(Some(told));
            }
            self.speak();
            match &mut self.state {
                State::Ended => return Ok(None),
                State::Waiting(at) => {
                    if let Some(at) = at {
                        sleep_until(*at).await;
                    }
                    self.join().await?;
                }
                State::Joined(joined) => {
                    let more = joined.said < self.unseen.len();
                    let says = joined.says.clone();
                    let heard = tokio::select! {
                        heard = timeout(silence, joined.hears.message()) => heard,
                        // There is room for what waits.
                        Ok(_) = says.reserve(), if more => continue,
                    };
                    self.hear(heard)?;
                }
            }
        }
    }

    /// Says what waits, as far as there is room.
    fn speak(&mut self) {
        let State::Joined(joined) = &mut self.state else { return };
        while let Some(message) = self.unseen.get(joined.said) {
            let say = ConverseRequest { request: Some(Say::PostMessage(message.clone())) };
            if joined.says.try_send(say).is_err() {
                return;
            }
            joined.said += 1;
        }
    }

    async fn join(&mut self) -> Result<(), Error> {
        let silence = self.client.options.silence;
        let (says, said) = mpsc::channel(ON_THE_WAY);
        let join =
            Join { conversation_id: self.conversation.clone(), resume_token: self.token.clone() };
        // The channel is new, so there is room.
        let _ = says.try_send(ConverseRequest { request: Some(Say::Join(join)) });
        let request = self.client.link.request(ReceiverStream::new(said))?;
        let lease = self.client.link.lease();
        let mut rpc = ChatbotClient::new(lease.channel);
        match timeout(silence, rpc.converse(request)).await {
            Ok(Ok(hears)) => {
                let hears = Box::new(hears.into_inner());
                let generation = lease.generation;
                self.state = State::Joined(Joined { hears, says, said: 0, generation });
                if std::mem::take(&mut self.is_lost) {
                    self.told.push_back(Told::Resumed);
                }
                Ok(())
            }
            Ok(Err(status)) => self.broke(&status, lease.generation),
            Err(_) => self.silent(lease.generation),
        }
    }

    fn hear(
        &mut self,
        heard: Result<Result<Option<ConverseResponse>, Status>, tokio::time::error::Elapsed>,
    ) -> Result<(), Error> {
        let State::Joined(Joined { generation, .. }) = self.state else { return Ok(()) };
        let response = match heard {
            Ok(Ok(Some(response))) => response.response,
            // This side is open, so the server has no reason to end.
            Ok(Ok(None)) => return self.lost_stream("the stream ended", generation),
            Ok(Err(status)) => return self.broke(&status, generation),
            Err(_) => return self.silent(generation),
        };
        match response {
            Some(Heard::Event(event)) => self.take(event),
            Some(Heard::Heartbeat(_)) => {
                self.retry.progress();
                Ok(())
            }
            Some(Heard::SessionEnding(_)) => {
                // On another connection, at once: this one has seconds to live.
                self.client.link.leave(generation);
                self.state = State::Waiting(None);
                Ok(())
            }
            None => self.end(Error::Contract("a message without content")),
        }
    }

    fn take(&mut self, event: Event) -> Result<(), Error> {
        if let Err(error) = self.order.check(&event) {
            return self.end(error);
        }
        self.retry.progress();
        self.token.clone_from(&event.resume_token);
        if self.conversation.is_empty() {
            self.conversation.clone_from(&event.conversation_id);
        }
        if let Some(Body::MessagePosted(posted)) = &event.event {
            let seen = self.unseen.iter().position(|ours| ours.request_id == posted.request_id);
            if let Some(seen) = seen {
                self.unseen.remove(seen);
                if let State::Joined(joined) = &mut self.state
                    && seen < joined.said
                {
                    joined.said -= 1;
                }
            }
        }
        self.told.push_back(Told::Event(event));
        Ok(())
    }

    fn silent(&mut self, generation: u64) -> Result<(), Error> {
        self.client.link.leave(generation);
        let silence = self.client.options.session_silence;
        match self.retry.lost(Instant::now(), false) {
            Some(Again { at, .. }) => self.wait(format!("nothing heard for {silence:?}"), at),
            None => self.end(Error::Silent(silence)),
        }
    }

    fn lost_stream(&mut self, why: &str, generation: u64) -> Result<(), Error> {
        self.client.link.leave(generation);
        match self.retry.lost(Instant::now(), false) {
            Some(Again { at, .. }) => self.wait(why.to_owned(), at),
            None => self.end(Error::Contract("the stream ends again and again")),
        }
    }

    fn broke(&mut self, status: &Status, generation: u64) -> Result<(), Error> {
        if is_position_lost(status) && !self.token.is_empty() {
            self.token.clear();
            self.order.restart();
            self.state = State::Waiting(None);
            self.told.push_back(Told::Restarted);
            return Ok(());
        }
        let Some(Again { at, elsewhere }) = self.retry.after(status, true, Instant::now()) else {
            return self.end(Error::of(status.clone(), &self.client.link));
        };
        if elsewhere {
            self.client.link.leave(generation);
        }
        self.wait(why(status), at)
    }

    #[expect(clippy::unnecessary_wraps, reason = "one of two ways to go on, the other is an end")]
    fn wait(&mut self, why: String, at: Instant) -> Result<(), Error> {
        self.state = State::Waiting(Some(at));
        if !std::mem::replace(&mut self.is_lost, true) {
            self.told.push_back(Told::Lost(Lost { why, next_try: at }));
        }
        Ok(())
    }

    fn end(&mut self, error: Error) -> Result<(), Error> {
        self.state = State::Ended;
        Err(error)
    }
}
