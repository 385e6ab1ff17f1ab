//! Taking over: what becomes of a turn whose owner is gone.

use std::{sync::Arc, time::SystemTime};

use tracing::{Instrument as _, Span, info, warn};

use super::{ATTEMPTS, Error, Opening, PAGE, Turns, metrics::Outcome, stopped};
use crate::{
    domain::{ConversationKey, EventBody, Failure, FailureReason, RequestId, Sequence},
    store::{After, Appended, Page, Reaped, TurnOptions},
};

impl Turns {
    /// Takes over the conversation's turn if its owner is gone: runs it again, or ends it.
    pub(super) async fn take_over(&self, key: &ConversationKey) -> Result<(), Error> {
        if self.0.life.is_draining() {
            // Another replica has the time for it.
            return Ok(());
        }
        let Some(reaped) = self.0.log.reap(key).await? else { return Ok(()) };
        self.0.metrics.takeovers.inc();
        let Reaped { owner, start, attempt, since, visible, cancelled, options } = reaped;
        let (turn, epoch) = (owner.turn, owner.epoch);
        let now = SystemTime::now();
        if let Some(before) = self.attempt(&owner, &options, attempt.saturating_sub(1), since) {
            before.lost();
        }
        let traced = self.attempt(&owner, &options, attempt, Some(now));
        info!(%turn, epoch, attempt, visible, cancelled, "the turn's owner is gone, taking over");
        let (message, partial) = self.so_far(key, start, turn).await?;
        let failed = |reason, partial_text| EventBody::Failed(Failure { reason, partial_text });
        let end = match message {
            _ if cancelled => EventBody::Completed(stopped(partial).into()),
            Some(_) if !visible && attempt <= ATTEMPTS && !self.can_run(&options) => {
                // As during a rollout: when this lease is over, another replica may run it.
                return Ok(());
            }
            Some(text) if !visible && attempt <= ATTEMPTS => {
                // It was admitted once. Without a free slot it runs beyond them, rather than not at all.
                let slot = self.0.admission.free_slot();
                let opening = Opening { start, text, logged: Vec::new() };
                self.run(owner, opening, &options, slot, traced);
                return Ok(());
            }
            _ => failed(FailureReason::Interrupted, partial),
        };
        let outcome = Outcome::of(&end);
        // If this replica dies now, the next reader does the same again.
        if let Appended::Stored { .. } = self.0.log.append(&owner, 1, &[end]).await? {
            self.0.metrics.ended(outcome);
            if let Some(attempt) = traced {
                attempt.ended(outcome.name(), outcome.is_failure());
            }
        }
        Ok(())
    }

    /// Does so in a task, so that whoever asks and leaves in the middle leaves no turn without an owner.
    pub(super) fn spawn_take_over(
        &self,
        key: &ConversationKey,
        then: impl FnOnce(Result<(), Error>) + Send + 'static,
    ) {
        let (this, key) = (self.clone(), key.clone());
        let take_over = async move {
            let outcome = this.take_over(&key).await;
            if let Err(error) = &outcome {
                warn!(%error, "a turn could not be taken over");
            }
            then(outcome);
        };
        self.0.life.spawn_work(take_over.instrument(Span::current()));
    }

    fn can_run(&self, options: &TurnOptions) -> bool {
        self.offers(self.kind(options))
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
                    EventBody::Posted(posted) => {
                        message = Some(Arc::unwrap_or_clone(posted).text);
                    }
                    EventBody::Delta(more) => text.push_str(&more),
                    EventBody::Completed(_) | EventBody::Failed(_) => return Ok((message, text)),
                }
            }
        }
    }
}
