//! The beginning of a turn: way is made for it, it is admitted, and its request is claimed.

use tokio::time::{Instant, sleep};

use super::{
    AFTER_ALL, Attached, Error, Inner, LOOK, OnBusy, Opening, PATIENCE, Turns, admission::Slot,
    metrics::Outcome, run::at_once,
};
use crate::{
    domain::{ConversationKey, EngineKind, EventBody, RequestId},
    engine::Question,
    store::{self, Active, Begin, Begun, Hint, Page},
    telemetry::TurnTrace,
};

/// What a request was admitted with.
#[derive(Debug)]
struct Admitted {
    /// For engines with a model.
    slot: Option<Slot>,
    /// Whether it has taken one of its principal's turns.
    counted: bool,
}

impl Turns {
    /// Claims the request and begins its turn, unless it is known already. Goes on to its end, once
    /// begun, whatever becomes of the caller, who does not wait for a slot beyond its `deadline`.
    pub async fn begin(
        &self,
        key: &ConversationKey,
        mut begin: Begin,
        busy: OnBusy,
        deadline: Option<Instant>,
    ) -> Result<Attached, Error> {
        if self.0.life.is_draining() {
            return Err(Error::Draining);
        }
        if busy == OnBusy::Interrupt {
            // Before anything else: the slot that the new turn needs may be the running one's.
            Box::pin(self.interrupt(key, begin.message.request)).await?;
        }
        let admitted = self.admit(key, &begin, deadline).await?;
        begin.options.trace = TurnTrace::begin();
        // A caller that goes away in the middle of the claim must not leave a turn without an owner.
        let (this, key) = (self.clone(), key.clone());
        let claim = Box::pin(async move { this.claim(&key, &begin, busy, admitted).await });
        let lost = || store::Error::Down("the claim was lost".to_owned());
        self.0.life.see_through(claim).await.ok_or_else(lost)?
    }

    /// Stops the turn that is running, and waits for its end, unless `request` is no news.
    async fn interrupt(&self, key: &ConversationKey, request: RequestId) -> Result<(), Error> {
        let log = &self.0.log;
        if log.find(key, request).await?.is_some() {
            return Ok(());
        }
        let deadline = self.others_end();
        let (mut hint, mut asked) = (log.hint(key), None);
        loop {
            let running = match log.read(key, AFTER_ALL, 1, false).await {
                Ok(Page { active: Some(running), .. }) => running,
                Ok(Page { active: None, .. }) | Err(store::Error::NotFound) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            if Instant::now() >= deadline {
                return Err(Error::InProgress(running.turn));
            }
            self.make_way(key, running, &mut hint, &mut asked).await?;
        }
    }

    /// Has a turn that is in the way end, and waits until that may be so. `asked` is who was asked to.
    async fn make_way(
        &self,
        key: &ConversationKey,
        running: Active,
        hint: &mut Hint,
        asked: &mut Option<RequestId>,
    ) -> Result<(), Error> {
        if running.orphaned {
            return self.take_over(key).await;
        }
        // Once: it is kept, and is a hint to whoever asks, too.
        if asked.replace(running.turn) != Some(running.turn) {
            match self.0.log.cancel(key, running.turn).await {
                Ok(()) | Err(store::Error::NotFound) => {}
                Err(error) => return Err(error.into()),
            }
        }
        tokio::select! {
            () = hint.changed() => {}
            () = sleep(LOOK) => {}
        }
        Ok(())
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
        let Inner { admission, log, .. } = &*self.0;
        let needs_slot = self.kind(&begin.options) != EngineKind::Retrieval;
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
            (Ok(None), Ok(())) => match Box::pin(admission.slot(deadline)).await {
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
        // Before the claim, so that one step logs the whole turn. For a request that is known that is for
        // nothing, but it costs a search, and a second step would cost each turn one.
        let answer = if admitted.counted { self.at_once(begin) } else { None };
        let outcome = self.claimed(key, begin, answer.as_deref().unwrap_or_default(), busy).await;
        if let Ok(Begun::New { owner, start, logged }) = outcome {
            let options = &begin.options;
            if let Some(trace) = &options.trace {
                trace.link(turn);
            }
            let attempt = self.attempt(&owner, options, 1, None);
            let end = answer.as_ref().and_then(|answer| answer.last());
            let Some(outcome) = end.map(Outcome::of) else {
                let text = begin.message.text.clone();
                let opening = Opening { start, text, logged: logged.clone() };
                self.run(owner, opening, options, admitted.slot, attempt);
                return Ok(Attached { turn, start, end: None, logged });
            };
            self.0.metrics.ended(outcome);
            if let Some(attempt) = attempt {
                attempt.ended(outcome.name(), outcome.is_failure());
            }
            let end = logged.last().map(|end| end.position.sequence);
            return Ok(Attached { turn, start, end, logged });
        }
        if admitted.counted {
            self.0.admission.give_back(key.principal());
        }
        match outcome? {
            Begun::Known { start, end } => {
                self.link(key, turn).await;
                Ok(Attached { turn, start, end, logged: Vec::new() })
            }
            Begun::New { start, logged, .. } => Ok(Attached { turn, start, end: None, logged }),
            Begun::Busy { turn, .. } => Err(Error::InProgress(turn)),
        }
    }

    /// All events of the answer, where its engine need not wait for anything.
    fn at_once(&self, begin: &Begin) -> Option<Vec<EventBody>> {
        let engine = self.0.engines.get(self.kind(&begin.options))?;
        let question = Question {
            request: begin.message.request,
            text: begin.message.text.clone(),
            language: begin.options.language.clone(),
            history: Vec::new(),
        };
        at_once(engine.as_ref(), &question)
    }

    async fn claimed(
        &self,
        key: &ConversationKey,
        begin: &Begin,
        answer: &[EventBody],
        busy: OnBusy,
    ) -> Result<Begun, Error> {
        let mut waiting = None;
        loop {
            let outcome = self.0.log.begin_with(key, begin, answer).await?;
            let Begun::Busy { turn: running, orphaned } = outcome else { return Ok(outcome) };
            if !(orphaned || busy == OnBusy::Interrupt) {
                return Ok(outcome);
            }
            let Some((hint, asked, deadline)) = &mut waiting else {
                // The turn may have ended before anybody waits for that: look once more.
                waiting = Some((self.0.log.hint(key), None, self.others_end()));
                continue;
            };
            if Instant::now() >= *deadline {
                return Ok(outcome);
            }
            let running = Active { turn: running, orphaned };
            Box::pin(self.make_way(key, running, hint, asked)).await?;
        }
    }
}
