//! The generation of one answer: from the engine's pieces to logged events.
//!
//! It belongs to nobody's call. It ends with its answer, when it is asked to stop, at the turn's
//! limit, with the server, when nobody reads any more, or when it finds that it does not own its turn
//! any longer; each of these but the last is an event in the log.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _, stream};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{error, info, warn};

use super::{PATIENCE, PAUSE, Turns, metrics::Outcome, stopped, watch::RunGuard};
use crate::{
    domain::{Completion, EventBody, Failure, FailureReason, FinishReason},
    engine::{self, Engine, Piece, Pieces, Question},
    store::{self, Appended, Hint, Owner},
};

/// After an event, how long pieces are gathered for the next one, unless there are many.
const GATHER: Duration = Duration::from_millis(50);
/// As many bytes are an event of their own.
const CHUNK: usize = 256;
/// Events of one append.
const BATCH: usize = 64;
/// Bytes of an answer. The terminal event repeats all of it and has to fit into a message.
const ANSWER_BYTES: usize = 128 * 1024;
/// Time for the first reader to come, before nobody reading means anything.
const ATTACH: Duration = Duration::from_secs(5);

/// How often an engine is asked that cannot be had, as long as nothing was said.
const TRIES: u32 = 3;
/// Pause before it is asked again, where it does not say itself; longer each time.
const RETRY: Duration = Duration::from_millis(250);

/// Who is asked what.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) question: Question,
}

impl Asked {
    fn answer(&self) -> Pieces {
        self.engine.answer(self.question.clone())
    }

    fn answer_after(&self, pause: Duration) -> Pieces {
        let (engine, question) = (Arc::clone(&self.engine), self.question.clone());
        let answer = async move {
            sleep(pause).await;
            engine.answer(question)
        };
        Box::pin(stream::once(answer).flatten())
    }
}

/// One run of a turn.
#[derive(Debug)]
pub(super) struct Generation {
    turns: Turns,
    owner: Owner,
    hint: Hint,
    watched: RunGuard,
    started: Instant,
    /// The number of the next event.
    next: u64,
    /// The answer so far.
    text: String,
    /// What of it is not in the log yet.
    pending: String,
    /// When text was last logged.
    logged: Option<Instant>,
}

/// What a run comes to.
#[derive(Debug)]
enum Verdict {
    /// This is how the turn ends.
    End(EventBody),
    /// The end is in the log.
    Ended(Outcome),
    /// The turn is not this run's any more, or cannot be written.
    Lost,
}

impl Generation {
    pub(super) fn new(turns: Turns, owner: Owner) -> Self {
        let hint = turns.0.log.hint(&owner.key);
        let watched = turns.0.watchers.runs(owner.key.digest());
        turns.0.metrics.running.inc();
        Self {
            turns,
            owner,
            hint,
            watched,
            started: Instant::now(),
            next: 1,
            text: String::new(),
            pending: String::new(),
            logged: None,
        }
    }

    /// Runs to the turn's end, and tells it if this run has logged it. Asked `None`, there is nobody who
    /// could answer.
    pub(super) async fn run(mut self, asked: Option<Asked>) -> Option<Outcome> {
        let verdict = match asked {
            None => Verdict::End(self.failed(FailureReason::Internal)),
            Some(asked) => {
                let generated = AssertUnwindSafe(self.generate(asked)).catch_unwind().await;
                generated.unwrap_or_else(|_| {
                    error!(turn = %self.owner.turn, "an engine panicked");
                    Verdict::End(self.failed(FailureReason::Internal))
                })
            }
        };
        let verdict = match verdict {
            Verdict::End(end) => self.finish(end).await,
            other => other,
        };
        match verdict {
            Verdict::Ended(outcome) => {
                self.turns.0.metrics.ended(outcome);
                Some(outcome)
            }
            // Whoever reads the turn next ends it.
            Verdict::End(_) | Verdict::Lost => {
                warn!(turn = %self.owner.turn, epoch = self.owner.epoch, "the turn is lost");
                None
            }
        }
    }

    async fn generate(&mut self, asked: Asked) -> Verdict {
        let mut pieces = asked.answer();
        let mut tries = 1;
        let terms = self.turns.0.terms;
        let closing = self.turns.0.life.closing().clone();
        let deadline = self.started + terms.max_turn_time;
        let mut renewal = Instant::now() + terms.lease / 3;
        let mut cancels = 0;
        let mut alone = (self.watched.readers() == 0).then(|| self.started + ATTACH);
        loop {
            let flush = self.logged.map_or(self.started, |logged| logged + GATHER);
            let abandoned = alone.map(|since| since + terms.detach_grace);
            let mut ask_the_log = false;
            tokio::select! {
                biased;
                () = closing.cancelled() => return self.at_the_end_of_the_server(),
                () = sleep_until(deadline) => {
                    return Verdict::End(self.failed(FailureReason::Timeout));
                }
                () = self.hint.changed() => {
                    ask_the_log = self.hint.cancels() > cancels;
                    cancels = self.hint.cancels();
                }
                () = self.watched.changed() => {
                    alone = (self.watched.readers() == 0).then(Instant::now);
                }
                () = sleep_until(renewal) => ask_the_log = true,
                () = sleep_until(abandoned.unwrap_or(deadline)), if abandoned.is_some() => {
                    ask_the_log = true;
                }
                () = sleep_until(flush), if !self.pending.is_empty() => {
                    let events = [EventBody::Delta(std::mem::take(&mut self.pending))];
                    if let Some(verdict) = self.log_text(&events).await {
                        return verdict;
                    }
                }
                piece = pieces.next() => {
                    if let Some(Err(engine::Error::Unavailable { why, retry_after })) = &piece
                        && self.text.is_empty()
                        && tries < TRIES
                    {
                        warn!(turn = %self.owner.turn, why, tries, "asking the engine again");
                        self.turns.0.metrics.retries.inc();
                        pieces = asked.answer_after(retry_after.unwrap_or(RETRY * tries));
                        tries += 1;
                        continue;
                    }
                    let (events, end) = self.take(piece, &mut pieces);
                    if let Some(verdict) = self.log_pieces(events, end).await {
                        return verdict;
                    }
                }
            }
            if ask_the_log {
                renewal = Instant::now() + terms.lease / 3;
                match self.append(&[]).await {
                    Some(Appended::Stored { watched, .. }) => {
                        if watched && alone.is_some() {
                            // The mark lasts for seconds; there is no use in looking sooner.
                            alone = Some(renewal);
                        } else if abandoned.is_some_and(|then| then <= Instant::now()) {
                            info!(turn = %self.owner.turn, "nobody reads the turn, stopping it");
                            return Verdict::End(self.stopped());
                        }
                    }
                    Some(Appended::Cancelled) => return Verdict::End(self.stopped()),
                    Some(Appended::Fenced) => return self.fenced(),
                    None => return Verdict::Lost,
                }
            }
        }
    }

    /// Takes a piece and all that are ready behind it: events to log, and the turn's end.
    fn take(
        &mut self,
        first: Option<Result<Piece, engine::Error>>,
        pieces: &mut Pieces,
    ) -> (Vec<EventBody>, Option<EventBody>) {
        let mut events = Vec::new();
        let mut next = Some(first);
        while let Some(piece) = next {
            match piece {
                Some(Ok(Piece::Text(more))) => {
                    if self.text.len() + more.len() > ANSWER_BYTES {
                        return (events, Some(self.cut(&more)));
                    }
                    self.text.push_str(&more);
                    self.pending.push_str(&more);
                }
                Some(Ok(Piece::End(end))) => return (events, Some(self.completed(end))),
                Some(Err(error)) => {
                    warn!(
                        turn = %self.owner.turn,
                        %error,
                        source = std::error::Error::source(&error),
                        "the engine failed",
                    );
                    return (events, Some(self.failed(error.reason())));
                }
                None => {
                    warn!(turn = %self.owner.turn, "the engine ended without an end");
                    return (events, Some(self.failed(FailureReason::UpstreamTruncated)));
                }
            }
            if self.pending.len() >= CHUNK {
                events.push(EventBody::Delta(std::mem::take(&mut self.pending)));
            }
            next = if events.len() < BATCH { pieces.next().now_or_never() } else { None };
        }
        (events, None)
    }

    /// Logs what `take` took, and what is pending if its time has come.
    async fn log_pieces(
        &mut self,
        mut events: Vec<EventBody>,
        end: Option<EventBody>,
    ) -> Option<Verdict> {
        let due = self.logged.is_none_or(|logged| logged.elapsed() >= GATHER);
        if !self.pending.is_empty() && (due || end.is_some()) {
            events.push(EventBody::Delta(std::mem::take(&mut self.pending)));
        }
        let Some(end) = end else { return self.log_text(&events).await };
        let outcome = Outcome::of(&end);
        events.push(end);
        Some(match self.append(&events).await {
            Some(Appended::Stored { .. }) => Verdict::Ended(outcome),
            Some(Appended::Cancelled) => Verdict::End(self.stopped()),
            Some(Appended::Fenced) => self.fenced(),
            None => Verdict::Lost,
        })
    }

    /// Logs text; the verdict if that is the end.
    async fn log_text(&mut self, events: &[EventBody]) -> Option<Verdict> {
        if events.is_empty() {
            return None;
        }
        match self.append(events).await {
            Some(Appended::Stored { .. }) => {
                let now = Instant::now();
                if self.logged.replace(now).is_none() {
                    let first = now - self.started;
                    self.turns.0.metrics.first_delta.observe(first.as_secs_f64());
                }
                None
            }
            Some(Appended::Cancelled) => Some(Verdict::End(self.stopped())),
            Some(Appended::Fenced) => Some(self.fenced()),
            None => Some(Verdict::Lost),
        }
    }

    /// Logs the turn's end.
    async fn finish(&mut self, end: EventBody) -> Verdict {
        let outcome = Outcome::of(&end);
        match self.append(&[end]).await {
            Some(Appended::Stored { .. }) => Verdict::Ended(outcome),
            Some(Appended::Cancelled | Appended::Fenced) => self.fenced(),
            None => Verdict::Lost,
        }
    }

    /// Appends, and waits for a store that is down: what was appended without an answer is appended
    /// again under the same number. `None` if patience ends, or the server does.
    async fn append(&mut self, events: &[EventBody]) -> Option<Appended> {
        let inner = &self.turns.0;
        let until = Instant::now() + PATIENCE;
        loop {
            match inner.log.append(&self.owner, self.next, events).await {
                Ok(appended) => {
                    if matches!(appended, Appended::Stored { .. }) {
                        self.next += events.len() as u64;
                    }
                    return Some(appended);
                }
                Err(error @ store::Error::Down(_))
                    if Instant::now() < until && !inner.life.closing().is_cancelled() =>
                {
                    warn!(turn = %self.owner.turn, %error, "an append has to be repeated");
                    sleep(PAUSE).await;
                }
                Err(error) => {
                    error!(turn = %self.owner.turn, %error, "the turn cannot be written");
                    return None;
                }
            }
        }
    }

    /// The server drops what is left. A turn of which nothing was shown is left to another replica.
    fn at_the_end_of_the_server(&self) -> Verdict {
        match self.logged {
            Some(_) => Verdict::End(self.failed(FailureReason::Interrupted)),
            None => Verdict::Lost,
        }
    }

    fn fenced(&self) -> Verdict {
        self.turns.0.metrics.fenced.inc();
        Verdict::Lost
    }

    fn completed(&self, end: engine::End) -> EventBody {
        let engine::End { answered, confidence, sources, usage, finish, degraded } = end;
        EventBody::Completed(Completion {
            text: self.text.clone(),
            answered,
            // JSON, which stores write, has no other numbers.
            confidence: if confidence.is_finite() { confidence } else { 0.0 },
            sources,
            usage,
            finish,
            degraded,
        })
    }

    /// The end of an answer that is too long: as much of it as may be.
    fn cut(&mut self, more: &str) -> EventBody {
        let more = &more[..more.floor_char_boundary(ANSWER_BYTES - self.text.len())];
        self.text.push_str(more);
        self.pending.push_str(more);
        self.completed(engine::End {
            answered: true,
            confidence: 0.0,
            sources: Vec::new(),
            usage: None,
            finish: FinishReason::MaxTokens,
            degraded: false,
        })
    }

    fn failed(&self, reason: FailureReason) -> EventBody {
        EventBody::Failed(Failure { reason, partial_text: self.text.clone() })
    }

    fn stopped(&self) -> EventBody {
        EventBody::Completed(stopped(self.text.clone()))
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.turns.0.metrics.running.dec();
    }
}
