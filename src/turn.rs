//! Turns: one request and its answer, from the claim of its id to its last event.
//!
//! A turn outlives whoever asked for it. The call that begins one claims the request in the log and
//! hands the generation to a task of its own (`turn/run.rs`); from then on it only reads the log
//! (`turn/tail.rs`), as every other reader does, here or on another replica. Nothing is shown that the log
//! has not acknowledged. A turn whose owner died is taken over by whoever reads it next: it is run
//! again if nobody can have seen anything of it, and ends as interrupted otherwise; an answer is
//! never generated a second time under text that a user has read.

mod admission;
mod metrics;
mod run;
mod tail;
mod watch;

use std::{collections::HashMap, sync::Arc, time::Duration};

use prometheus_client::registry::Registry;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};
use tracing::{Instrument as _, Span, debug, info, warn};

pub use self::{
    admission::Quota,
    tail::{Tail, TurnTail},
};
use self::{
    admission::{Admission, Refusal, Slot},
    metrics::{Metrics, Outcome},
    run::{Asked, Generation},
    watch::Watchers,
};
use crate::{
    domain::{
        Completion, ConversationKey, EngineKind, EventBody, Failure, FailureReason, FinishReason,
        RequestId, Sequence,
    },
    engine::{Engines, Exchange, Question},
    error::Kind,
    lifecycle::Lifecycle,
    store::{
        self, After, Appended, Begin, Begun, ConversationLog, Owner, Page, Reaped, TurnOptions,
    },
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
}

/// What a request was admitted with.
#[derive(Debug)]
struct Admitted {
    /// For engines with a model.
    slot: Option<Slot>,
    /// Whether it has taken one of its principal's turns.
    counted: bool,
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
        let admission = Admission::new(terms.quota, registry);
        let (watchers, metrics) = (Watchers::default(), Metrics::new(registry));
        Self(Arc::new(Inner { log, engines, life, terms, admission, watchers, metrics }))
    }

    /// Whether the server offers this engine.
    pub fn offers(&self, engine: EngineKind) -> bool {
        self.0.engines.get(engine).is_some()
    }

    /// Claims the request and begins its turn, unless it is known already. Goes on to its end, once
    /// begun, whatever becomes of the caller, who does not wait for a slot beyond its `deadline`.
    pub async fn begin(
        &self,
        key: &ConversationKey,
        begin: Begin,
        busy: OnBusy,
        deadline: Option<Instant>,
    ) -> Result<Attached, Error> {
        if self.0.life.draining().is_cancelled() {
            return Err(Error::Draining);
        }
        if busy == OnBusy::Interrupt {
            // Before anything else: the slot that the new turn needs may be the running one's.
            self.interrupt(key, begin.message.request).await?;
        }
        let admitted = self.admit(key, &begin, deadline).await?;
        // A caller that goes away in the middle of the claim must not leave a turn without an owner.
        let (done, outcome) = oneshot::channel();
        let (this, key) = (self.clone(), key.clone());
        let claim = async move {
            let _ = done.send(this.claim(&key, &begin, busy, admitted).await);
        };
        self.0.life.spawn_work(claim.instrument(Span::current()));
        let stopped = |_| store::Error::Down("the claim was lost".to_owned());
        outcome.await.map_err(stopped)?
    }

    /// Stops the turn that is running, and waits for its end, unless `request` is no news.
    async fn interrupt(&self, key: &ConversationKey, request: RequestId) -> Result<(), Error> {
        let log = &self.0.log;
        if log.find(key, request).await?.is_some() {
            return Ok(());
        }
        let deadline = self.others_end();
        let mut hint = log.hint(key);
        loop {
            let running = match log.read(key, AFTER_ALL, 1, false).await {
                Ok(Page { active: Some(running), .. }) => running,
                Ok(Page { active: None, .. }) | Err(store::Error::NotFound) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            if Instant::now() >= deadline {
                return Err(Error::InProgress(running.turn));
            }
            if running.orphaned {
                self.take_over(key).await?;
            } else {
                self.cancel_running(key, running.turn).await?;
                tokio::select! {
                    () = hint.changed() => {}
                    () = sleep(LOOK) => {}
                }
            }
        }
    }

    async fn cancel_running(&self, key: &ConversationKey, turn: RequestId) -> Result<(), Error> {
        match self.0.log.cancel(key, turn).await {
            Ok(()) | Err(store::Error::NotFound) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Until when another turn has ended: an owner that answers ends it at once, and one that does not
    /// has lost it after a lease.
    fn others_end(&self) -> Instant {
        Instant::now() + self.0.terms.lease * 2 + PATIENCE
    }

    /// Lets a request in that is known, whatever the load, and others as far as there is room.
    async fn admit(
        &self,
        key: &ConversationKey,
        begin: &Begin,
        deadline: Option<Instant>,
    ) -> Result<Admitted, Error> {
        let Inner { admission, engines, log, .. } = &*self.0;
        let needs_slot = begin.options.engine.unwrap_or(engines.default) != EngineKind::Retrieval;
        let counted = admission.take_turn(key.principal());
        if counted.is_ok() {
            if !needs_slot {
                return Ok(Admitted { slot: None, counted: true });
            }
            if let Some(slot) = admission.free_slot() {
                return Ok(Admitted { slot: Some(slot), counted: true });
            }
        }
        // What was begun before is only read, and that costs nothing of what is short.
        let known = log.find(key, begin.message.request).await;
        let refusal = match (known, counted) {
            (Ok(None), Err(refusal)) => refusal,
            (Ok(None), Ok(())) => match admission.slot(deadline).await {
                Ok(slot) => return Ok(Admitted { slot: Some(slot), counted: true }),
                Err(refusal) => {
                    admission.give_back(key.principal());
                    refusal
                }
            },
            (known, counted) => {
                if counted.is_ok() {
                    admission.give_back(key.principal());
                }
                known?;
                return Ok(Admitted { slot: None, counted: false });
            }
        };
        admission.refused(refusal);
        Err(refusal.into())
    }

    /// Claims, and gives back what a request was admitted with if it begins nothing.
    async fn claim(
        &self,
        key: &ConversationKey,
        begin: &Begin,
        busy: OnBusy,
        admitted: Admitted,
    ) -> Result<Attached, Error> {
        let turn = begin.message.request;
        let outcome = self.claimed(key, begin, busy).await;
        if let Ok(Begun::New { owner, start }) = outcome {
            let text = begin.message.text.clone();
            self.run(owner, start, text, &begin.options, admitted.slot);
            return Ok(Attached { turn, start, end: None });
        }
        if admitted.counted {
            self.0.admission.give_back(key.principal());
        }
        match outcome? {
            Begun::New { start, .. } => Ok(Attached { turn, start, end: None }),
            Begun::Known { start, end } => Ok(Attached { turn, start, end }),
            Begun::Busy { turn, .. } => Err(Error::InProgress(turn)),
        }
    }

    async fn claimed(
        &self,
        key: &ConversationKey,
        begin: &Begin,
        busy: OnBusy,
    ) -> Result<Begun, Error> {
        let deadline = self.others_end();
        let mut hint = self.0.log.hint(key);
        loop {
            let outcome = self.0.log.begin(key, begin).await?;
            let Begun::Busy { turn: running, orphaned } = outcome else { return Ok(outcome) };
            if Instant::now() >= deadline {
                return Ok(outcome);
            }
            if orphaned {
                self.take_over(key).await?;
            } else if busy == OnBusy::Interrupt {
                self.cancel_running(key, running).await?;
                tokio::select! {
                    () = hint.changed() => {}
                    () = sleep(LOOK) => {}
                }
            } else {
                return Ok(outcome);
            }
        }
    }

    /// Logs a message that wants no answer.
    pub async fn post(&self, key: &ConversationKey, begin: &Begin) -> Result<(), Error> {
        if self.0.life.draining().is_cancelled() {
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
        // Its owner may be dead, and nobody may be reading. In a task, so that a caller who leaves in
        // the middle of it leaves no turn without an owner.
        let (this, key) = (self.clone(), key.clone());
        let take_over = async move {
            if let Err(error) = this.take_over(&key).await {
                warn!(%error, "a turn could not be taken over");
            }
        };
        self.0.life.spawn_work(take_over.instrument(Span::current()));
        Ok(())
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
        if self.0.life.draining().is_cancelled() {
            // Another replica has the time for it.
            return Ok(());
        }
        let Some(reaped) = self.0.log.reap(key).await? else { return Ok(()) };
        self.0.metrics.takeovers.inc();
        let Reaped { owner, start, attempt, visible, cancelled, options } = reaped;
        let (turn, epoch) = (owner.turn, owner.epoch);
        info!(%turn, epoch, attempt, visible, cancelled, "the turn's owner is gone, taking over");
        let (message, partial) = self.so_far(key, start, turn).await?;
        let failed = |reason, partial_text| EventBody::Failed(Failure { reason, partial_text });
        let end = match message {
            _ if cancelled => EventBody::Completed(stopped(partial)),
            Some(_) if !visible && attempt <= ATTEMPTS && !self.can_run(&options) => {
                // As during a rollout: when this lease is over, another replica may run it.
                return Ok(());
            }
            Some(text) if !visible && attempt <= ATTEMPTS => {
                // It was admitted once. Without a free slot it runs beyond them, rather than not at all.
                let slot = self.0.admission.free_slot();
                self.run(owner, start, text, &options, slot);
                return Ok(());
            }
            _ => failed(FailureReason::Interrupted, partial),
        };
        let outcome = Outcome::of(&end);
        // If this replica dies now, the next reader does the same again.
        if let Appended::Stored { .. } = self.0.log.append(&owner, 1, &[end]).await? {
            self.0.metrics.ended(outcome);
        }
        Ok(())
    }

    fn can_run(&self, options: &TurnOptions) -> bool {
        self.offers(options.engine.unwrap_or(self.0.engines.default))
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
    fn run(
        &self,
        owner: Owner,
        start: Sequence,
        text: String,
        options: &TurnOptions,
        slot: Option<Slot>,
    ) {
        let slot = slot.map(Slot::runs);
        let kind = options.engine.unwrap_or(self.0.engines.default);
        let engine = self.0.engines.get(kind).cloned();
        if engine.is_none() {
            // Offered by the replica that began the turn, as during a rollout.
            warn!(turn = %owner.turn, engine = ?kind, "the engine of a turn is not offered here");
        }
        debug!(turn = %owner.turn, epoch = owner.epoch, engine = ?kind, "turn begins");
        let (this, language) = (self.clone(), options.language.clone());
        let (key, request) = (owner.key.clone(), owner.turn);
        let generation = Generation::new(self.clone(), owner);
        let run = async move {
            let history = match kind {
                EngineKind::Retrieval => Vec::new(),
                EngineKind::Generative | EngineKind::Augmented => this.history(&key, start).await,
            };
            let question = Question { request, text, language, history };
            generation.run(engine.map(|engine| Asked { engine, question })).await;
            drop(slot);
        };
        self.0.life.spawn_work(run.instrument(Span::current()));
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
                    questions.insert(turn, message.text);
                }
                (EventBody::Completed(completion), Some(turn)) if !completion.text.is_empty() => {
                    if let Some(question) = questions.remove(&turn) {
                        exchanges.push(Exchange { question, answer: completion.text });
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
