//! The beginning of a turn: way is made for it, it is admitted, and its request is claimed.

use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};
use tracing::{Instrument as _, Span};

use super::{AFTER_ALL, Attached, Error, Inner, LOOK, OnBusy, PATIENCE, Turns, admission::Slot};
use crate::{
    domain::{ConversationKey, EngineKind, RequestId},
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
        if self.0.life.draining().is_cancelled() {
            return Err(Error::Draining);
        }
        if busy == OnBusy::Interrupt {
            // Before anything else: the slot that the new turn needs may be the running one's.
            self.interrupt(key, begin.message.request).await?;
        }
        let admitted = self.admit(key, &begin, deadline).await?;
        begin.options.trace = TurnTrace::begin();
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
            self.make_way(key, running, &mut hint).await?;
        }
    }

    /// Has a turn that is in the way end, and waits until that may be so.
    async fn make_way(
        &self,
        key: &ConversationKey,
        running: Active,
        hint: &mut Hint,
    ) -> Result<(), Error> {
        if running.orphaned {
            return self.take_over(key).await;
        }
        match self.0.log.cancel(key, running.turn).await {
            Ok(()) | Err(store::Error::NotFound) => {}
            Err(error) => return Err(error.into()),
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
            let (text, options) = (begin.message.text.clone(), &begin.options);
            if let Some(trace) = &options.trace {
                trace.link(turn);
            }
            let attempt = self.attempt(&owner, options, 1, None);
            self.run(owner, start, text, options, admitted.slot, attempt);
            return Ok(Attached { turn, start, end: None });
        }
        if admitted.counted {
            self.0.admission.give_back(key.principal());
        }
        match outcome? {
            Begun::New { start, .. } => Ok(Attached { turn, start, end: None }),
            Begun::Known { start, end } => {
                self.link(key, turn).await;
                Ok(Attached { turn, start, end })
            }
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
            if Instant::now() >= deadline || !(orphaned || busy == OnBusy::Interrupt) {
                return Ok(outcome);
            }
            self.make_way(key, Active { turn: running, orphaned }, &mut hint).await?;
        }
    }
}
