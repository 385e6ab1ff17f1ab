//! Turns: one request and its answer, from the claim of its id to its last event.
//!
//! A turn outlives whoever asked for it. The call that begins one claims the request in the log and
//! hands the generation to a task of its own ([`run`]); from then on it only reads the log
//! ([`tail`]), as every other reader does, here or on another replica. Nothing is shown that the log
//! has not acknowledged. A turn whose owner died is taken over by whoever reads it next: it is run
//! again if nobody can have seen anything of it, and ends as interrupted otherwise; an answer is
//! never generated a second time under text that a user has read.

mod metrics;
mod run;
mod tail;
mod watch;

use std::{sync::Arc, time::Duration};

use prometheus_client::registry::Registry;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};
use tracing::{Instrument as _, Span, debug, info, warn};

pub use self::tail::{Tail, TurnTail};
use self::{
    metrics::{Metrics, Outcome},
    run::{Asked, Generation},
    watch::Watchers,
};
use crate::{
    domain::{
        Completion, ConversationKey, EngineKind, EventBody, Failure, FailureReason, FinishReason,
        RequestId, Sequence,
    },
    engine::{Engines, Question},
    error::Kind,
    lifecycle::Lifecycle,
    store::{self, After, Begin, Begun, ConversationLog, Owner, Page, Reaped},
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
    /// The server does not offer the engine.
    #[error("the engine is not offered here")]
    NoEngine,
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
            Self::NoEngine => Kind::Invalid,
            Self::Log(error) => error.kind(),
        }
    }
}

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// The store's lease: how long an owner may be silent.
    pub lease: Duration,
    /// How long a turn goes on with nobody reading, on any replica.
    pub detach_grace: Duration,
    /// How long a turn may take.
    pub max_turn_time: Duration,
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
    watchers: Watchers,
    metrics: Metrics,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attached {
    /// The turn.
    pub turn: RequestId,
    /// Where its message is.
    pub start: Sequence,
    /// Where its terminal event is, if it is over.
    pub end: Option<Sequence>,
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
        let (watchers, metrics) = (Watchers::default(), Metrics::new(registry));
        Self(Arc::new(Inner { log, engines, life, terms, watchers, metrics }))
    }

    /// Whether the server offers this engine.
    pub fn offers(&self, engine: EngineKind) -> bool {
        self.0.engines.get(engine).is_some()
    }

    /// Claims the request and begins its turn, unless it is known already. Goes on to its end, once
    /// begun, whatever becomes of the caller.
    pub async fn begin(
        &self,
        key: &ConversationKey,
        begin: Begin,
        busy: OnBusy,
    ) -> Result<Attached, Error> {
        // A caller that goes away in the middle of the claim must not leave a turn without an owner.
        let (done, outcome) = oneshot::channel();
        let (this, key) = (self.clone(), key.clone());
        let claim = async move {
            let _ = done.send(this.claim(&key, &begin, busy).await);
        };
        self.0.life.spawn_work(claim.instrument(Span::current()));
        let stopped = |_| store::Error::Down("the claim was lost".to_owned());
        outcome.await.map_err(stopped)?
    }

    async fn claim(
        &self,
        key: &ConversationKey,
        begin: &Begin,
        busy: OnBusy,
    ) -> Result<Attached, Error> {
        if self.0.life.draining().is_cancelled() {
            return Err(Error::Draining);
        }
        let turn = begin.message.request;
        // An owner that answers ends its turn at once; one that does not has lost it after a lease.
        let deadline = Instant::now() + self.0.terms.lease * 2 + PATIENCE;
        let mut hint = self.0.log.hint(key);
        loop {
            match self.0.log.begin(key, begin).await? {
                Begun::New { owner, start } => {
                    let question = Question {
                        request: turn,
                        text: begin.message.text.clone(),
                        language: begin.options.language.clone(),
                        history: Vec::new(),
                    };
                    self.run(owner, question, begin.options.engine);
                    return Ok(Attached { turn, start, end: None });
                }
                Begun::Known { start, end } => return Ok(Attached { turn, start, end }),
                Begun::Busy { orphaned: true, .. } if Instant::now() < deadline => {
                    self.take_over(key).await?;
                }
                Begun::Busy { turn: running, .. }
                    if busy == OnBusy::Interrupt && Instant::now() < deadline =>
                {
                    match self.0.log.cancel(key, running).await {
                        Ok(()) | Err(store::Error::NotFound) => {}
                        Err(error) => return Err(error.into()),
                    }
                    tokio::select! {
                        () = hint.changed() => {}
                        () = sleep(LOOK) => {}
                    }
                }
                Begun::Busy { turn: running, .. } => return Err(Error::InProgress(running)),
            }
        }
    }

    /// Logs a message that wants no answer.
    pub async fn post(&self, key: &ConversationKey, begin: &Begin) -> Result<(), Error> {
        if self.0.life.draining().is_cancelled() {
            return Err(Error::Draining);
        }
        self.0.log.post(key, begin).await?;
        Ok(())
    }

    /// Asks a turn to stop, on whichever replica it runs. One that is over stays as it is.
    pub async fn cancel(&self, key: &ConversationKey, turn: RequestId) -> Result<(), Error> {
        self.0.log.cancel(key, turn).await?;
        // Its owner may be dead, and nobody may be reading.
        self.take_over(key).await
    }

    /// The events of a turn, after `after` where the caller has seen some.
    pub fn tail_turn(
        &self,
        key: &ConversationKey,
        attached: Attached,
        after: Option<crate::domain::Position>,
    ) -> TurnTail {
        TurnTail::new(self.clone(), key, attached, after)
    }

    /// The events of a conversation.
    pub fn tail(&self, key: &ConversationKey, after: After) -> Tail {
        Tail::new(self.clone(), key, after)
    }

    /// Takes over the conversation's turn if its owner is gone: runs it again, or ends it.
    async fn take_over(&self, key: &ConversationKey) -> Result<(), Error> {
        let Some(reaped) = self.0.log.reap(key).await? else { return Ok(()) };
        self.0.metrics.takeovers.inc();
        let Reaped { owner, start, attempt, visible, cancelled, options } = reaped;
        let (turn, epoch) = (owner.turn, owner.epoch);
        info!(%turn, epoch, attempt, visible, cancelled, "the turn's owner is gone, taking over");
        let (message, partial) = self.so_far(key, start, turn).await?;
        let failed = |reason, partial_text| EventBody::Failed(Failure { reason, partial_text });
        let end = match message {
            _ if cancelled => EventBody::Completed(stopped(partial)),
            Some(text) if !visible && attempt <= ATTEMPTS => {
                let (language, history) = (options.language, Vec::new());
                let question = Question { request: turn, text, language, history };
                self.run(owner, question, options.engine);
                return Ok(());
            }
            _ => failed(FailureReason::Interrupted, partial),
        };
        let outcome = Outcome::of(&end);
        // If this replica dies now, the next reader does the same again.
        self.0.log.append(&owner, 1, &[end]).await?;
        self.0.metrics.ended(outcome);
        Ok(())
    }

    /// The turn's message, and the text of its answer so far.
    async fn so_far(
        &self,
        key: &ConversationKey,
        start: Sequence,
        turn: RequestId,
    ) -> Result<(Option<String>, String), Error> {
        let (mut message, mut text) = (None, String::new());
        let mut after = Sequence(start.0.saturating_sub(1));
        loop {
            let Page { events, .. } =
                self.0.log.read(key, After::Sequence(after), PAGE, false).await?;
            let Some(last) = events.last() else { return Ok((message, text)) };
            after = last.position.sequence;
            for event in events.into_iter().filter(|event| event.turn == Some(turn)) {
                match event.body {
                    EventBody::Posted(posted) => message = Some(posted.text),
                    EventBody::Delta(more) => text.push_str(&more),
                    EventBody::Completed(_) | EventBody::Failed(_) => return Ok((message, text)),
                }
            }
        }
    }

    /// Runs the turn in a task of its own.
    fn run(&self, owner: Owner, question: Question, engine: Option<EngineKind>) {
        let kind = engine.unwrap_or(self.0.engines.default);
        let engine = self.0.engines.get(kind).cloned();
        if engine.is_none() {
            // Offered by the replica that began the turn, as during a rollout.
            warn!(turn = %owner.turn, engine = ?kind, "the engine of a turn is not offered here");
        }
        debug!(turn = %owner.turn, epoch = owner.epoch, engine = ?kind, "turn begins");
        let generation = Generation::new(self.clone(), owner);
        let asked = engine.map(|engine| Asked { engine, question });
        self.0.life.spawn_work(generation.run(asked).instrument(Span::current()));
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
