//! Turns: one request and its answer, from the claim of its id to its last event.
//!
//! A turn outlives whoever asked for it. The call that begins one claims the request in the log and
//! hands the generation to a task of its own (`turn/run.rs`), unless the answer is there at once and logged
//! with the claim; from then on it only reads the log (`turn/tail.rs`), as every other reader does, here or
//! on another replica. Nothing is shown that the log
//! has not acknowledged. A turn whose owner died is taken over by whoever reads it next: it is run
//! again if nobody can have seen anything of it, and ends as interrupted otherwise; an answer is
//! never generated a second time under text that a user has read.

mod admission;
mod begin;
mod bell;
mod metrics;
mod recent;
mod run;
mod tail;
mod take_over;
mod text;
mod tick;
mod watch;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use prometheus_client::registry::Registry;
use tokio::time::timeout;
use tracing::{debug, warn};

pub use self::{
    admission::Quota,
    tail::{Tail, TurnTail},
};
use self::{
    admission::{Admission, Refusal, Slot},
    metrics::Metrics,
    run::{Asked, Generation},
    tick::Tick,
    watch::Watchers,
};
use crate::{
    domain::{
        Completion, ConversationKey, EngineKind, Event, EventBody, FinishReason, RequestId,
        Sequence,
    },
    engine::{Engines, Exchange, Question},
    error::Kind,
    lifecycle::Lifecycle,
    store::{self, After, Begin, ConversationLog, Owner, TurnOptions},
    telemetry::{self, Attempt, Subject},
};

/// How often a reader looks without a hint, and how often the state of another turn is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long a running turn and its readers wait for a store that is down.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause before a store that is down is asked again.
const PAUSE: Duration = Duration::from_millis(100);
/// Owners that a turn may have. One that kills its owner each time must not go round all replicas
/// for ever.
const ATTEMPTS: u32 = 3;
/// Messages and answers of before that an engine is told at most; it takes what fits.
const HISTORY: usize = 100;
/// Where nothing comes after: to see the turn that is running, and no event.
const AFTER_ALL: After = After::Sequence(Sequence(i64::MAX as u64));
/// Events that are read at once.
const PAGE: usize = 128;

/// Why a turn could not be begun, read or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another turn of the conversation is running.
    #[error("turn {0} of the conversation is running")]
    InProgress(RequestId),
    /// The server is going away.
    #[error("this server is going away")]
    Draining,
    /// The principal has begun too many turns.
    #[error("too many requests by this caller, try again later")]
    RateLimited {
        /// When to come back.
        retry_after: Duration,
    },
    /// As many answers are generated as may be.
    #[error("too many answers are being generated, try again later or at another replica")]
    Overloaded {
        /// When to come back.
        retry_after: Duration,
    },
    /// The log cannot do it.
    #[error(transparent)]
    Log(#[from] store::Error),
}

impl Error {
    /// What the caller can do about it.
    pub fn kind(&self) -> Kind {
        match self {
            Self::InProgress(_) => Kind::Busy,
            Self::Draining => Kind::Draining,
            Self::RateLimited { .. } => Kind::RateLimited,
            Self::Overloaded { .. } => Kind::Overloaded,
            Self::Log(error) => error.kind(),
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::RateLimited(retry_after) => Self::RateLimited { retry_after },
            Refusal::Overloaded(retry_after) => Self::Overloaded { retry_after },
        }
    }
}

/// How long things may take, and how many there may be.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// The store's lease: how long an owner may be silent.
    pub lease: Duration,
    /// How long a turn goes on with nobody reading, on any replica.
    pub detach_grace: Duration,
    /// How long a turn may take.
    pub max_turn_time: Duration,
    /// How much is admitted.
    pub quota: Quota,
}

/// Begins turns, runs them, and reads them; clones share them.
#[derive(Debug, Clone)]
pub struct Turns(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    log: Arc<dyn ConversationLog>,
    engines: Engines,
    life: Lifecycle,
    terms: Terms,
    admission: Admission,
    watchers: Watchers,
    metrics: Metrics,
    tick: Tick,
}

/// What to do about a turn that is running in the conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnBusy {
    /// Refuse the new one.
    Refuse,
    /// Stop the running one, and wait for its end: barge-in.
    Interrupt,
}

/// A turn that was begun, or was there already.
#[derive(Debug, Clone, PartialEq)]
pub struct Attached {
    /// The turn.
    pub turn: RequestId,
    /// Where its message is.
    pub start: Sequence,
    /// Where its terminal event is, if it is over.
    pub end: Option<Sequence>,
    /// What its beginning has logged, which is all of it if it is over; nothing if it was there already.
    pub logged: Vec<Event>,
}

/// What a turn that is run begins with.
struct Opening {
    /// Where its message is, and what that says.
    start: Sequence,
    text: String,
    /// What its beginning has just logged, if that was here.
    logged: Vec<Event>,
}

impl Turns {
    /// Turns in `log`, answered by `engines`.
    pub fn new(
        log: Arc<dyn ConversationLog>,
        engines: Engines,
        terms: Terms,
        life: Lifecycle,
        registry: &mut Registry,
    ) -> Self {
        let admission = Admission::new(terms.quota, registry);
        let (watchers, metrics) = (Watchers::default(), Metrics::new(registry));
        let tick = Tick::new();
        Self(Arc::new(Inner { log, engines, life, terms, admission, watchers, metrics, tick }))
    }

    /// Whether the server offers this engine.
    pub fn offers(&self, engine: EngineKind) -> bool {
        self.0.engines.get(engine).is_some()
    }

    /// The engine that a turn is answered by.
    fn kind(&self, options: &TurnOptions) -> EngineKind {
        options.engine.unwrap_or(self.0.engines.default)
    }

    /// Logs a message that wants no answer.
    pub async fn post(&self, key: &ConversationKey, begin: &Begin) -> Result<(), Error> {
        if self.0.life.is_draining() {
            return Err(Error::Draining);
        }
        // A message is kept like a turn's, so it counts like one.
        if let Err(refusal) = self.0.admission.take_turn(key.principal())
            && self.0.log.find(key, begin.message.request).await?.is_none()
        {
            self.0.admission.refused(refusal);
            return Err(refusal.into());
        }
        self.0.log.post(key, begin).await?;
        Ok(())
    }

    /// Asks a turn to stop, on whichever replica it runs. One that is over stays as it is.
    pub async fn cancel(&self, key: &ConversationKey, turn: RequestId) -> Result<(), Error> {
        self.0.log.cancel(key, turn).await?;
        // Its owner may be dead, and nobody may be reading.
        self.spawn_take_over(key, drop);
        self.link(key, turn).await;
        Ok(())
    }

    /// The events of a turn, after `after` where the caller has seen some.
    pub fn tail_turn(
        &self,
        key: &ConversationKey,
        attached: Attached,
        after: Option<crate::domain::Position>,
    ) -> TurnTail {
        TurnTail::new(self.clone(), key.clone(), attached, after)
    }

    /// The events of a conversation.
    pub fn tail(&self, key: &ConversationKey, after: After) -> Tail {
        Tail::new(self.clone(), key, after)
    }

    /// What is traced of an owner's time with its turn, by which number and since when; `None` if the
    /// turn is not traced.
    fn attempt(
        &self,
        owner: &Owner,
        options: &TurnOptions,
        number: u32,
        since: Option<SystemTime>,
    ) -> Option<Attempt> {
        let trace = options.trace.as_ref()?;
        let (conversation, engine) = (owner.key.id(), Some(self.kind(options)));
        let subject = Subject { conversation, turn: owner.turn, engine };
        Attempt::new(trace, subject, number, since)
    }

    /// Has the span of the current call point to that of a turn, if both are traced. That a link cannot
    /// be found is nothing that a caller should suffer from.
    async fn link(&self, key: &ConversationKey, turn: RequestId) {
        if telemetry::is_traced()
            && let Ok(Some(store::Found { trace: Some(trace), .. })) =
                self.0.log.find(key, turn).await
        {
            trace.link(turn);
        }
    }

    /// Runs the turn in a task of its own.
    fn run(
        &self,
        owner: Owner,
        opening: Opening,
        options: &TurnOptions,
        slot: Option<Slot>,
        attempt: Option<Attempt>,
    ) {
        let Opening { start, text, logged } = opening;
        let slot = slot.map(Slot::runs);
        let kind = self.kind(options);
        let engine = self.0.engines.get(kind).cloned();
        if engine.is_none() {
            // Offered by the replica that began the turn, as during a rollout.
            warn!(turn = %owner.turn, engine = ?kind, "the engine of a turn is not offered here");
        }
        debug!(turn = %owner.turn, epoch = owner.epoch, engine = ?kind, "turn begins");
        let (this, language) = (self.clone(), options.language.clone());
        let (key, request) = (owner.key.clone(), owner.turn);
        let generation = Generation::new(self.clone(), owner, logged);
        let run = async move {
            let history = match kind {
                EngineKind::Retrieval => Vec::new(),
                EngineKind::Generative | EngineKind::Augmented => this.history(&key, start).await,
            };
            let question = Question { request, text, language, history };
            let outcome = generation.run(engine.map(|engine| Asked { engine, question })).await;
            drop(slot);
            outcome
        };
        let run = telemetry::attempting(attempt.as_ref(), run);
        self.0.life.spawn_work(async move {
            if let (Some(outcome), Some(attempt)) = (run.await, attempt) {
                attempt.ended(outcome.name(), outcome.is_failure());
            }
        });
    }

    /// What was asked and answered before a turn. A store that cannot tell is no reason not to answer.
    async fn history(&self, key: &ConversationKey, start: Sequence) -> Vec<Exchange> {
        // Nobody renews the lease meanwhile.
        let history = self.0.log.history(key, start, HISTORY);
        let events = match timeout(self.0.terms.lease / 3, history).await {
            Ok(Ok(events)) => events,
            Ok(Err(error)) => {
                warn!(%error, "a turn is answered without its history");
                return Vec::new();
            }
            Err(_) => {
                warn!("a turn is answered without its history, which takes too long to read");
                return Vec::new();
            }
        };
        let mut questions = HashMap::new();
        let mut exchanges = Vec::new();
        for event in events {
            match (event.body, event.turn) {
                (EventBody::Posted(message), Some(turn)) => {
                    questions.insert(turn, Arc::unwrap_or_clone(message).text);
                }
                (EventBody::Completed(completion), Some(turn)) if !completion.text.is_empty() => {
                    if let Some(question) = questions.remove(&turn) {
                        let answer = Arc::unwrap_or_clone(completion).text;
                        exchanges.push(Exchange { question, answer });
                    }
                }
                _ => {}
            }
        }
        exchanges
    }
}

/// The end of a turn that was stopped.
fn stopped(text: String) -> Completion {
    Completion {
        answered: !text.is_empty(),
        text,
        confidence: 0.0,
        sources: Vec::new(),
        usage: None,
        finish: FinishReason::Cancelled,
        degraded: false,
    }
}
