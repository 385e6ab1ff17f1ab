//! The generation of one answer: from the engine's pieces to logged events.
//!
//! It belongs to nobody's call. It ends with its answer, when it is asked to stop, at the turn's
//! limit, with the server, when nobody reads any more, or when it finds that it does not own its turn
//! any longer; each of these but the last is an event in the log.

use std::{
    future::{Future as _, poll_fn},
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{FutureExt as _, StreamExt as _, stream};
use tokio::{
    sync::watch,
    time::{Instant, Sleep, sleep, sleep_until},
};
use tracing::{error, info, warn};

use super::{
    Inner, PATIENCE, PAUSE, Turns,
    bell::Bell,
    metrics::Outcome,
    stopped,
    text::{CHUNK, Text},
    watch::RunGuard,
};
use crate::{
    domain::{Completion, Event, EventBody, Failure, FailureReason, FinishReason},
    engine::{self, Engine, Piece, Pieces, Question},
    store::{self, Appended, Hint, Owner},
};

/// Events of one append. As many do not wait for the next beat.
const BATCH: usize = 64;
/// Bytes of an answer. The terminal event repeats all of it and has to fit into a message.
const ANSWER_BYTES: usize = 128 * 1024;
/// How long after its first text an engine that has no more to say is looked at in the beat: what it says
/// before the next one is logged no sooner, and to be woken for each piece cost more than all the rest of it.
/// Its end is heard of as much later, which of a short answer would be much.
const PACED: Duration = Duration::from_millis(500);
/// For how long a beat takes one piece after the other. If that is over something is slow, and it is logged.
const LINGER: Duration = Duration::from_millis(10);
/// Looks without a piece, one after the other, by which an engine has no more to say.
const LOOKS: u8 = 2;
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
    /// Until it runs.
    hint: Option<Hint>,
    watched: RunGuard,
    started: Instant,
    /// The number of the next event.
    next: u64,
    /// The answer so far, and of how many pieces it is.
    text: Text,
    pieces: u64,
    /// Events of it that are not in the log yet.
    ready: Vec<EventBody>,
    /// Whether text was logged, and when it is next: the first at once, then in the beat.
    logged: bool,
    beat: Instant,
    /// When the first text was logged.
    spoken: Instant,
    /// Whether the engine is looked at in the beat too; how many looks without a piece are left until it has
    /// no more to say; and whether it has been left alone since.
    paced: bool,
    looks: u8,
    drained: bool,
}

/// What became of an append of the turn's owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stored {
    /// It is in the log. Whether somebody reads at another replica.
    Yes { watched: bool },
    /// The turn was asked to stop.
    Cancelled,
    /// The turn is somebody else's.
    Fenced,
}

/// What has happened.
enum Woken {
    /// There is as much text as one append takes.
    Text,
    /// The engine's last word, or ours where it has said more than an answer may have.
    Last(Option<Result<engine::End, engine::Error>>),
    Closing,
    Alarm,
    /// The turn was asked to stop, or may have been.
    Cancelled(Hint),
    /// There are more readers here, or fewer.
    Readers(watch::Receiver<usize>),
}

async fn cancelled(mut hint: Hint) -> Hint {
    hint.cancelled().await;
    hint
}

async fn changed(mut readers: watch::Receiver<usize>) -> watch::Receiver<usize> {
    // Its sender lives as long as the run.
    let _ = readers.changed().await;
    readers
}

/// Waits until `time` with an alarm that was maybe set for something else. One that is set too early is left:
/// to set it costs more than to be woken in vain.
fn poll_until(mut alarm: Pin<&mut Sleep>, time: Instant, context: &mut Context<'_>) -> Poll<()> {
    loop {
        if time < alarm.deadline() || alarm.is_elapsed() {
            alarm.as_mut().reset(time);
        }
        ready!(alarm.as_mut().poll(context));
        if time <= Instant::now() {
            return Poll::Ready(());
        }
    }
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
    pub(super) fn new(turns: Turns, owner: Owner, logged: Vec<Event>) -> Self {
        let hint = Some(turns.0.log.hint(&owner.key));
        let watched = turns.0.watchers.runs(owner.key.digest());
        watched.recent().logged(logged);
        turns.0.metrics.running.inc();
        let started = Instant::now();
        Self {
            turns,
            owner,
            hint,
            watched,
            started,
            next: 1,
            text: Text::default(),
            pieces: 0,
            ready: Vec::new(),
            logged: false,
            beat: started,
            spoken: started,
            paced: false,
            looks: 0,
            drained: false,
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
        let mut closing = pin!(closing.cancelled());
        let deadline = self.started + terms.max_turn_time;
        let mut renewal = Instant::now() + terms.lease / 3;
        let mut alone = (self.watched.readers() == 0).then(|| self.started + ATTACH);
        // What is waited for is kept from piece to piece: to begin to wait costs as much as the piece.
        let hint = self.hint.take().unwrap_or_else(|| self.turns.0.log.hint(&self.owner.key));
        let mut cancel = pin!(cancelled(hint));
        let mut joined = pin!(changed(self.watched.subscribe()));
        // One alarm for whatever is next: setting one for each reason would cost more than a piece.
        let mut alarm = pin!(sleep_until(deadline));
        let (bell, interrupts) = (Bell::new(), Bell::new());
        loop {
            let abandoned = alone.map(|since| since + terms.detach_grace);
            let mut ask_the_log = false;
            let woken = poll_fn(|context| {
                // Pieces are gathered in here: most wait for the beat, and need nothing else.
                if let ControlFlow::Break(polled) = self.look(&mut pieces, &bell, context) {
                    return polled;
                }
                let interrupted = interrupts.answer(context, |context| {
                    if closing.as_mut().poll(context).is_ready() {
                        return Poll::Ready(Woken::Closing);
                    }
                    if let Poll::Ready(hint) = cancel.as_mut().poll(context) {
                        return Poll::Ready(Woken::Cancelled(hint));
                    }
                    joined.as_mut().poll(context).map(Woken::Readers)
                });
                if interrupted.is_ready() {
                    return interrupted;
                }
                let beat = (self.drained || self.has_text()).then_some(self.beat);
                let next = [Some(deadline), Some(renewal), beat, abandoned].into_iter().flatten();
                let next = next.min().unwrap_or(deadline);
                // Text that has missed its beat, as the first: no timer is quicker than a millisecond.
                if beat == Some(next) && next <= Instant::now() {
                    return Poll::Ready(Woken::Alarm);
                }
                poll_until(alarm.as_mut(), next, context).map(|()| Woken::Alarm)
            });
            match woken.await {
                Woken::Closing => return self.at_the_end_of_the_server(),
                // Of an engine that is always ahead nothing else wakes us.
                Woken::Alarm | Woken::Text => {
                    // It waits for the store, not for the engine.
                    bell.mute();
                    let now = Instant::now();
                    if now >= deadline {
                        return Verdict::End(self.failed(FailureReason::Timeout));
                    }
                    if let Some(verdict) = self.log_text(None).await {
                        return verdict;
                    }
                    ask_the_log = now >= renewal || abandoned.is_some_and(|then| now >= then);
                }
                Woken::Cancelled(hint) => {
                    ask_the_log = true;
                    cancel.set(cancelled(hint));
                    interrupts.ring();
                }
                Woken::Readers(readers) => {
                    alone = (self.watched.readers() == 0).then(Instant::now);
                    joined.set(changed(readers));
                    interrupts.ring();
                }
                Woken::Last(Some(Err(engine::Error::Unavailable { why, retry_after })))
                    if self.text.is_empty() && tries < TRIES =>
                {
                    warn!(turn = %self.owner.turn, why, tries, "asking the engine again");
                    self.turns.0.metrics.retries.inc();
                    pieces = asked.answer_after(retry_after.unwrap_or(RETRY * tries));
                    tries += 1;
                }
                Woken::Last(last) => {
                    let end = self.end(last);
                    if let Some(verdict) = self.log_text(Some(end)).await {
                        return verdict;
                    }
                }
            }
            if ask_the_log {
                renewal = Instant::now() + terms.lease / 3;
                let watched = match self.renew().await {
                    Ok(watched) => watched,
                    Err(verdict) => return verdict,
                };
                if watched && alone.is_some() {
                    // The mark lasts for seconds; there is no use in looking sooner.
                    alone = Some(renewal);
                } else if abandoned.is_some_and(|then| then <= Instant::now()) {
                    info!(turn = %self.owner.turn, "nobody reads the turn, stopping it");
                    return Verdict::End(self.stopped());
                }
            }
        }
    }

    /// Renews the lease, and hears whether somebody reads at another replica, or the verdict.
    async fn renew(&mut self) -> Result<bool, Verdict> {
        match self.append(&[]).await {
            Some(Stored::Yes { watched }) => Ok(watched),
            Some(Stored::Cancelled) => Err(Verdict::End(self.stopped())),
            Some(Stored::Fenced) => Err(self.fenced()),
            None => Err(Verdict::Lost),
        }
    }

    /// Whether there is text that is not in the log.
    fn has_text(&self) -> bool {
        !self.ready.is_empty() || self.text.has_rest()
    }

    /// Looks at the engine, unless it is to be left alone until the beat. Goes on if there is nothing to do
    /// but to wait.
    fn look(
        &mut self,
        pieces: &mut Pieces,
        bell: &Bell,
        context: &mut Context<'_>,
    ) -> ControlFlow<Poll<Woken>> {
        let now = Instant::now();
        let due = now >= self.beat;
        if self.drained && !due {
            return ControlFlow::Continue(());
        }
        let before = self.pieces;
        let polled = bell.listen(context, |context| self.gather(pieces, context));
        if polled.is_ready() {
            return ControlFlow::Break(polled);
        }
        self.drained = false;
        if !self.paced {
            return ControlFlow::Continue(());
        }
        // A connection of HTTP/1.1 has room for one piece, and is filled again while others run: one look in
        // each beat would slow the model down. So another one follows once they have: in a beat after each
        // piece, and after it until there is none. Where there is one all are waited for, to the next beat.
        let nothing = self.pieces == before;
        let again = if due {
            !nothing && now < self.beat + LINGER
        } else if nothing && self.looks > 0 {
            self.looks -= 1;
            self.drained = self.looks == 0;
            !self.drained
        } else {
            self.looks = 0;
            false
        };
        if self.drained {
            bell.mute();
        }
        if again {
            context.waker().wake_by_ref();
            return ControlFlow::Break(Poll::Pending);
        }
        ControlFlow::Continue(())
    }

    /// Takes the pieces that are ready, up to what one append takes.
    fn gather(&mut self, pieces: &mut Pieces, context: &mut Context<'_>) -> Poll<Woken> {
        loop {
            match ready!(pieces.poll_next_unpin(context)) {
                Some(Ok(Piece::Text(more))) => {
                    self.pieces += 1;
                    let room = ANSWER_BYTES - self.text.len();
                    let enough = self.text.push(&more[..more.floor_char_boundary(room)]);
                    if more.len() > room {
                        return Poll::Ready(Woken::Last(Some(Ok(too_long()))));
                    }
                    if enough {
                        self.cut_off();
                    }
                }
                Some(Ok(Piece::End(end))) => return Poll::Ready(Woken::Last(Some(Ok(end)))),
                Some(Err(error)) => return Poll::Ready(Woken::Last(Some(Err(error)))),
                None => return Poll::Ready(Woken::Last(None)),
            }
            if self.ready.len() >= BATCH {
                return Poll::Ready(Woken::Text);
            }
        }
    }

    /// The turn's end by the engine's last word.
    fn end(&self, last: Option<Result<engine::End, engine::Error>>) -> EventBody {
        match last {
            Some(Ok(end)) => completed(self.text.whole(), end),
            Some(Err(error)) => {
                warn!(
                    turn = %self.owner.turn,
                    %error,
                    source = std::error::Error::source(&error),
                    "the engine failed",
                );
                self.failed(error.reason())
            }
            None => {
                warn!(turn = %self.owner.turn, "the engine ended without an end");
                self.failed(FailureReason::UpstreamTruncated)
            }
        }
    }

    /// Makes an event of the text that is pending.
    fn cut_off(&mut self) {
        self.ready.push(EventBody::Delta(self.text.cut_off()));
    }

    /// Logs the text that is not in the log, if its time has come or it is much, and the turn's end if
    /// there is one; the verdict if that is the end.
    async fn log_text(&mut self, end: Option<EventBody>) -> Option<Verdict> {
        let due = end.is_some()
            || self.ready.len() >= BATCH
            || (self.has_text() && Instant::now() >= self.beat);
        if !due {
            return None;
        }
        if self.text.has_rest() {
            self.cut_off();
        }
        let mut events = std::mem::take(&mut self.ready);
        let outcome = end.as_ref().map(Outcome::of);
        events.extend(end);
        match (self.append(&events).await, outcome) {
            (Some(Stored::Yes { .. }), Some(outcome)) => Some(Verdict::Ended(outcome)),
            (Some(Stored::Yes { .. }), None) => {
                let Inner { tick, metrics, .. } = &*self.turns.0;
                let now = Instant::now();
                self.beat = tick.after(now, self.owner.key.digest(), metrics.running.get());
                if !self.logged {
                    self.logged = true;
                    self.spoken = now;
                    metrics.first_delta.observe((now - self.started).as_secs_f64());
                }
                self.paced = now - self.spoken >= PACED;
                (self.looks, self.drained) = (LOOKS, false);
                None
            }
            (Some(Stored::Cancelled), _) => Some(Verdict::End(self.stopped())),
            (Some(Stored::Fenced), _) => Some(self.fenced()),
            (None, _) => Some(Verdict::Lost),
        }
    }

    /// Logs the turn's end.
    async fn finish(&mut self, end: EventBody) -> Verdict {
        let outcome = Outcome::of(&end);
        match self.append(&[end]).await {
            Some(Stored::Yes { .. }) => Verdict::Ended(outcome),
            Some(Stored::Cancelled | Stored::Fenced) => self.fenced(),
            None => Verdict::Lost,
        }
    }

    /// Appends, and waits for a store that is down: what was appended without an answer is appended
    /// again under the same number. `None` if patience ends, or the server does. Readers of this replica
    /// get what was logged from here, without another look at the store.
    async fn append(&mut self, events: &[EventBody]) -> Option<Stored> {
        let inner = &self.turns.0;
        let coming = (!events.is_empty()).then(|| self.watched.recent().coming());
        let until = Instant::now() + PATIENCE;
        loop {
            match inner.log.append(&self.owner, self.next, events).await {
                Ok(Appended::Stored { logged, watched, .. }) => {
                    self.next += events.len() as u64;
                    if let Some(coming) = coming {
                        coming.logged(logged);
                    }
                    return Some(Stored::Yes { watched });
                }
                Ok(Appended::Cancelled) => return Some(Stored::Cancelled),
                Ok(Appended::Fenced) => return Some(Stored::Fenced),
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
        if self.logged {
            Verdict::End(self.failed(FailureReason::Interrupted))
        } else {
            Verdict::Lost
        }
    }

    fn fenced(&self) -> Verdict {
        // By another owner, or because the store has lost what was acknowledged.
        self.watched.recent().lost();
        self.turns.0.metrics.fenced.inc();
        Verdict::Lost
    }

    fn failed(&self, reason: FailureReason) -> EventBody {
        EventBody::Failed(Failure { reason, partial_text: self.text.whole() })
    }

    fn stopped(&self) -> EventBody {
        EventBody::Completed(stopped(self.text.whole()).into())
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.turns.0.metrics.running.dec();
    }
}

/// The end of an answer that is too long: as much of it as may be.
fn too_long() -> engine::End {
    engine::End {
        answered: true,
        confidence: 0.0,
        sources: Vec::new(),
        usage: None,
        finish: FinishReason::MaxTokens,
        degraded: false,
    }
}

fn completed(text: String, end: engine::End) -> EventBody {
    let engine::End { answered, confidence, sources, usage, finish, degraded } = end;
    let completion = Completion {
        text,
        answered,
        // JSON, which stores write, has no other numbers.
        confidence: if confidence.is_finite() { confidence } else { 0.0 },
        sources,
        usage,
        finish,
        degraded,
    };
    EventBody::Completed(completion.into())
}

/// All events of an answer that is there at once; `None` if its engine has to wait for it, or if it is
/// too long for one step.
pub(super) fn at_once(engine: &dyn Engine, question: &Question) -> Option<Vec<EventBody>> {
    let failed = |reason| {
        let partial_text = String::new();
        vec![EventBody::Failed(Failure { reason, partial_text })]
    };
    let turn = question.request;
    match catch_unwind(AssertUnwindSafe(|| engine.at_once(question))) {
        Ok(None) => None,
        Ok(Some(Ok((text, end)))) => (text.len() <= BATCH * CHUNK).then(|| {
            let mut events: Vec<_> =
                chunks(&text).map(|chunk| EventBody::Delta(chunk.into())).collect();
            events.push(completed(text, end));
            events
        }),
        Ok(Some(Err(error))) => {
            warn!(%turn, %error, source = std::error::Error::source(&error), "the engine failed");
            Some(failed(error.reason()))
        }
        Err(_) => {
            error!(%turn, "an engine panicked");
            Some(failed(FailureReason::Internal))
        }
    }
}

/// The text in events of at least `CHUNK` bytes, but for the last, cut between words.
fn chunks(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let after = rest.floor_char_boundary(CHUNK);
        let end = match rest[after..].find(char::is_whitespace) {
            Some(space) if after < rest.len() => {
                let word = after + space;
                word + rest[word..].chars().next().map_or(0, char::len_utf8)
            }
            _ => rest.len(),
        };
        let (chunk, left) = rest.split_at(end);
        rest = left;
        (!chunk.is_empty()).then_some(chunk)
    })
}
