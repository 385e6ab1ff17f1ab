//! `Converse`: joins a conversation, and takes part in it.
//!
//! The stream is a view of the log like any other. What its client says goes through the same claims
//! as `Chat`'s requests, and comes back as an event, to this client and to all others. One message is
//! in work at a time; the next is not read before, so a client that talks faster than the log writes
//! is slowed down by flow control.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt as _, stream};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep_until},
};
use tonic::{Status, Streaming};

use super::{
    Chatbot, Error, cancel_turn,
    chat::{Asked, refused},
    convert,
    proto::{self, converse_request::Request as Said, converse_response::Response as Told},
    status,
};
use crate::{
    domain::{ConversationKey, Event, RequestId, Sequence},
    error::Violation,
    net::Ending,
    store::{After, TurnOptions},
    turn::{self, OnBusy, Tail, Turns},
};

impl Chatbot {
    pub(super) fn join(
        &self,
        principal: Arc<str>,
        ending: Ending,
        inbound: Streaming<proto::ConverseRequest>,
    ) -> Result<impl Stream<Item = Result<proto::ConverseResponse, Status>> + Send + use<>, Error>
    {
        let permit = Arc::clone(&self.joined_streams).try_acquire_owned();
        let now = Instant::now();
        let session = Session {
            turns: self.turns.clone(),
            query_bytes: self.limits.query_bytes,
            principal,
            inbound: Some(inbound),
            place: Place::Nowhere,
            work: None,
            join_timeout: self.join_timeout,
            join_by: now + self.join_timeout,
            heartbeat_interval: self.heartbeat_interval,
            heartbeat: now + self.heartbeat_interval,
            announced: Box::pin(async move { ending.announced().await }),
            _permit: permit.map_err(|_| Error::Full)?,
        };
        let batches = stream::unfold(Some(session), |session| async move {
            let mut session = session?;
            let (batch, rest) = match session.next().await {
                Ok(Some(told)) => (told, Some(session)),
                Ok(None) => return None,
                Err(status) => (vec![Err(status)], None),
            };
            Some((stream::iter(batch), rest))
        });
        Ok(batches.flatten())
    }
}

type Work = Pin<Box<dyn Future<Output = Result<Done, Error>> + Send>>;

/// One client's stream.
struct Session {
    turns: Turns,
    query_bytes: usize,
    principal: Arc<str>,
    /// `None` once the client has said its last.
    inbound: Option<Streaming<proto::ConverseRequest>>,
    place: Place,
    /// What the client's last message asks for.
    work: Option<Work>,
    join_timeout: Duration,
    join_by: Instant,
    heartbeat_interval: Duration,
    heartbeat: Instant,
    announced: Pin<Box<dyn Future<Output = Duration> + Send>>,
    _permit: OwnedSemaphorePermit,
}

/// Where the client is.
enum Place {
    /// It has not joined.
    Nowhere,
    /// In a conversation that begins with its first message, and gets its id from it.
    New,
    In(Box<Tail>),
}

/// What a message of the client came to.
enum Done {
    /// It is in the log of this conversation, under this id.
    Said(ConversationKey, RequestId),
    Stopped,
}

/// What happened next.
enum Next {
    Ending(Duration),
    Events(Result<Vec<Event>, turn::Error>),
    Done(Result<Done, Error>),
    Said(Result<Option<proto::ConverseRequest>, Status>),
    NotJoined,
    Silence,
}

impl Session {
    /// What to tell the client next; `None` at the end.
    async fn next(
        &mut self,
    ) -> Result<Option<Vec<Result<proto::ConverseResponse, Status>>>, Status> {
        loop {
            if self.is_over() {
                return Ok(None);
            }
            let told = match self.happens().await {
                Next::Ending(time_left) => {
                    // Once: a future that has ended must not be asked again.
                    self.announced = Box::pin(std::future::pending());
                    let time_left = time_left.try_into().ok();
                    vec![Told::SessionEnding(proto::SessionEnding { time_left })]
                }
                Next::Events(events) => match events.map_err(Error::from)? {
                    // It has come to rest, which may be what a client that has said its last waits for.
                    events if events.is_empty() => continue,
                    events => self.told(events),
                },
                Next::Silence => vec![Told::Heartbeat(proto::Heartbeat {})],
                Next::NotJoined => return Err(Error::NotReceived(self.join_timeout).into()),
                Next::Done(done) => {
                    self.work = None;
                    self.done(done?);
                    continue;
                }
                Next::Said(said) => {
                    match said.map_err(status::of_peer)? {
                        Some(request) => self.take(request)?,
                        None => self.inbound = None,
                    }
                    continue;
                }
            };
            self.heartbeat = Instant::now() + self.heartbeat_interval;
            let response = |told| Ok(proto::ConverseResponse { response: Some(told) });
            return Ok(Some(told.into_iter().map(response).collect()));
        }
    }

    /// Whether there is nothing more to come: the client has said its last, and the conversation
    /// rests. A client that only listens keeps its side open.
    fn is_over(&self) -> bool {
        let rests = match &self.place {
            Place::Nowhere | Place::New => true,
            Place::In(tail) => tail.is_idle(),
        };
        self.inbound.is_none() && self.work.is_none() && rests
    }

    async fn happens(&mut self) -> Next {
        let Self { inbound, place, work, join_by, heartbeat, announced, .. } = self;
        let listens = work.is_none() && inbound.is_some();
        let joined = !matches!(place, Place::Nowhere);
        tokio::select! {
            biased;
            time_left = announced => Next::Ending(time_left),
            events = events(place) => Next::Events(events),
            done = working(work) => Next::Done(done),
            said = hear(inbound), if listens => Next::Said(said),
            () = sleep_until(*join_by), if !joined => Next::NotJoined,
            () = sleep_until(*heartbeat) => Next::Silence,
        }
    }

    fn told(&self, events: Vec<Event>) -> Vec<Told> {
        match &self.place {
            Place::In(tail) => {
                let conversation = convert::id(tail.key().id().0);
                let told = |event| Told::Event(convert::event(&conversation, event));
                events.into_iter().map(told).collect()
            }
            Place::Nowhere | Place::New => Vec::new(),
        }
    }

    /// Takes a message of the client.
    fn take(&mut self, request: proto::ConverseRequest) -> Result<(), Error> {
        match (request.request, &self.place) {
            (Some(Said::Join(join)), Place::Nowhere) => self.join(&join),
            (Some(Said::PostMessage(message)), Place::New | Place::In(..)) => self.say(message),
            (Some(Said::CancelTurn(request)), Place::In(tail)) => {
                let (key, turns) = (tail.key().clone(), self.turns.clone());
                let (_, turn) = cancel_turn::check(&request, Some(key.id()))?;
                self.work = Some(Box::pin(async move {
                    turns.cancel(&key, turn).await?;
                    Ok(Done::Stopped)
                }));
                Ok(())
            }
            (Some(Said::CancelTurn(_)), Place::New) => {
                Err(wrong("cancel_turn", "nothing was said here yet"))
            }
            (Some(Said::Join(_)), _) => Err(wrong("join", "must be sent once")),
            (Some(_), Place::Nowhere) => Err(wrong("join", "must be the first message")),
            (None, _) => Err(wrong("request", "must be a join, a post_message or a cancel_turn")),
        }
    }

    fn join(&mut self, join: &proto::Join) -> Result<(), Error> {
        let mut check = convert::Check::default();
        let id = check.conversation_id("join.conversation_id", &join.conversation_id);
        if join.conversation_id.is_empty() && !join.resume_token.is_empty() {
            let what = "must be empty for a new conversation";
            check.found(Violation::new("join.resume_token", what));
        }
        check.finish()?;
        let after = convert::position(&join.resume_token)?
            .map_or(After::Sequence(Sequence(0)), After::Position);
        self.place = match id.map(|id| ConversationKey::new(Arc::clone(&self.principal), id)) {
            None => Place::New,
            Some(key) => Place::In(Box::new(self.turns.tail(&key, after))),
        };
        Ok(())
    }

    fn say(&mut self, message: proto::PostMessage) -> Result<(), Error> {
        let mut check = convert::Check::default();
        let request_id = check.request_id("post_message.request_id", &message.request_id);
        check.query("post_message.text", &message.text, self.query_bytes);
        let engine = check.engine("post_message.engine", message.engine, &self.turns);
        check.finish()?;
        let conversation = match &mut self.place {
            Place::In(tail) => {
                if !message.no_reply {
                    tail.is_linked_to(request_id);
                }
                Some(tail.key().id())
            }
            Place::Nowhere | Place::New => None,
        };
        let options = TurnOptions { engine, ..TurnOptions::default() };
        let asked = Asked { conversation, request_id, text: message.text, options };
        let (key, begin) = asked.begin(&self.principal);
        let turns = self.turns.clone();
        self.work = Some(Box::pin(async move {
            let said = if message.no_reply {
                turns.post(&key, &begin).await
            } else {
                turns.begin(&key, begin, OnBusy::Interrupt, None).await.map(drop)
            };
            said.map_err(|error| refused(error, request_id))?;
            Ok(Done::Said(key, request_id))
        }));
        Ok(())
    }

    fn done(&mut self, done: Done) {
        let Done::Said(key, request) = done else { return };
        match &mut self.place {
            Place::In(tail) => tail.expect_more(),
            Place::Nowhere | Place::New => {
                let mut tail = self.turns.tail(&key, After::Sequence(Sequence(0)));
                tail.is_linked_to(request);
                self.place = Place::In(Box::new(tail));
            }
        }
    }
}

fn wrong(field: &str, what: &str) -> Error {
    Error::Fields(vec![Violation::new(field, what)])
}

async fn events(place: &mut Place) -> Result<Vec<Event>, turn::Error> {
    match place {
        Place::In(tail) => tail.next().await,
        Place::Nowhere | Place::New => std::future::pending().await,
    }
}

async fn working(work: &mut Option<Work>) -> Result<Done, Error> {
    match work {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}

async fn hear(
    inbound: &mut Option<Streaming<proto::ConverseRequest>>,
) -> Result<Option<proto::ConverseRequest>, Status> {
    match inbound {
        Some(inbound) => inbound.message().await,
        None => std::future::pending().await,
    }
}
