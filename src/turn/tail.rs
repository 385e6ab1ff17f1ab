//! Readers: a conversation, or one turn of it, from a position to its end.
//!
//! A reader knows nothing of the owner of a turn; it reads the log, wherever it is, and only gets from
//! memory what an owner here has had acknowledged (`turn/recent.rs`). It remembers the last event it has
//! shown by its tag, so that a store which has lost its newest events is noticed and never waited for.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::{
    Attached, Error, LOOK, PAGE, PATIENCE, PAUSE, Turns, recent::Known, watch::ReaderGuard,
};
use crate::{
    domain::{ConversationKey, Event, EventBody, FailureReason, Position, RequestId, Sequence},
    store::{self, After, Hint, Page},
    telemetry,
};

/// Turns that the call of one reader points to at most: a span takes no more.
const LINKS: usize = 128;

/// Reads a conversation. Its methods can be dropped and called again at any time.
#[derive(Debug)]
pub struct Tail {
    turns: Turns,
    key: ConversationKey,
    after: After,
    hint: Hint,
    /// Hints, and appends of this replica, up to the last look.
    heard: (u64, u64),
    /// All was read: there is nothing to look for before a hint, or until it is time to look without.
    caught_up: bool,
    idle: bool,
    /// Since when the store has been down.
    down: Option<Instant>,
    /// Since when a turn without an owner cannot be taken over: a store may be read and not written, as
    /// on a full disk.
    stuck: Arc<Mutex<Option<Instant>>>,
    /// The turns that the reader's call points to, if it is traced; `None` for the reader of one turn,
    /// whose call does so since its beginning.
    linked: Option<Vec<RequestId>>,
    /// When something was read last, and the alarm for a look without a hint. It goes off too early
    /// and is set again then: to set it for each event would cost more than the event.
    looked: Instant,
    alarm: Pin<Box<Sleep>>,
    /// Counts as a reader of the conversation, and knows what is logged here.
    guard: ReaderGuard,
}

impl Tail {
    pub(super) fn new(turns: Turns, key: &ConversationKey, after: After) -> Self {
        let hint = turns.0.log.hint(key);
        let mut guard = turns.0.watchers.reads(key.digest());
        let heard = (hint.count(), guard.recent().after(after, 0).1.unwrap_or_default());
        let looked = Instant::now();
        Self {
            turns,
            key: key.clone(),
            after,
            hint,
            heard,
            caught_up: false,
            idle: false,
            down: None,
            stuck: Arc::default(),
            linked: Some(Vec::new()),
            looked,
            alarm: Box::pin(sleep_until(looked + LOOK)),
            guard,
        }
    }

    /// The conversation.
    pub fn key(&self) -> &ConversationKey {
        &self.key
    }

    /// Whether everything there is was read, and no turn is running, as far as the last read tells.
    pub fn is_idle(&self) -> bool {
        self.idle
    }

    /// There is more to come than the last read told.
    pub fn expect_more(&mut self) {
        self.caught_up = false;
        self.idle = false;
    }

    /// The reader's call points to this turn already: it begins it.
    pub fn is_linked_to(&mut self, turn: RequestId) {
        if let Some(linked) = &mut self.linked
            && telemetry::is_traced()
            && linked.len() < LINKS
        {
            linked.push(turn);
        }
    }

    /// The next events; waits until there are some. None at all says, once, that the conversation has
    /// come to rest. Waits some seconds for a store that is down.
    pub async fn next(&mut self) -> Result<Vec<Event>, Error> {
        loop {
            let mut woken = false;
            if self.caught_up {
                woken = !self.wait().await;
                // Before the read: if that is dropped, the hint must not be lost.
                self.caught_up = false;
            }
            // In this order: for each append of this replica there is a hint first.
            let hints = self.hint.count();
            let (known, appends) = self.guard.recent().after(self.after, PAGE);
            // More hints than that are somebody else's, such as a message from another replica. One that
            // goes unnoticed, since its like of here was heard before this reader came, is made up for by
            // the look of each second.
            let own = appends.is_none_or(|appends| hints - self.heard.0 <= appends - self.heard.1);
            let heard = appends.map_or(self.heard, |appends| (hints, appends));
            match known {
                Known::Events(events, more) => {
                    let events = self.take(events, more, own).await;
                    self.heard = heard;
                    return Ok(events);
                }
                // Its owner is about to tell, and the store would tell the same with more effort.
                Known::Coming if woken => {
                    self.caught_up = true;
                    continue;
                }
                Known::All if woken && own => {
                    self.heard = heard;
                    self.caught_up = true;
                    continue;
                }
                Known::Coming | Known::All | Known::Nothing => self.heard = heard,
            }
            if let Some(Page { events, active, more }) = self.read().await? {
                let newest = active.map(|active| active.turn);
                let newest = newest.or_else(|| events.last().and_then(|event| event.turn));
                if let Some(turn) = newest {
                    // Before anything is changed: a drop meanwhile must not lose the page.
                    self.link(turn).await;
                }
                let orphaned = active.is_some_and(|active| active.orphaned);
                let rested = self.idle;
                self.idle = active.is_none() && !more;
                if let Some(last) = events.last() {
                    self.after = After::Position(last.position);
                    *self.stuck() = None;
                    // For each event there is a hint, so to look once more for nothing would be half of
                    // all reads. The end of an owner has none.
                    self.caught_up = !more && !orphaned;
                    return Ok(events);
                }
                if self.stuck().is_some_and(|since| since.elapsed() >= PATIENCE) {
                    let why = "the turn's owner is gone, and its end cannot be written";
                    return Err(store::Error::Down(why.to_owned()).into());
                }
                if self.idle && !rested {
                    return Ok(events);
                }
                if orphaned {
                    self.take_over();
                }
            }
            self.caught_up = true;
        }
    }

    /// Takes what the turn that runs here has logged.
    async fn take(&mut self, events: Vec<Event>, more: bool, own: bool) -> Vec<Event> {
        let Some(last) = events.last() else { return events };
        if let Some(turn) = last.turn {
            // Before anything is changed: a drop meanwhile must not lose the events.
            self.link(turn).await;
        }
        self.after = After::Position(last.position);
        *self.stuck() = None;
        self.looked = Instant::now();
        self.idle = false;
        self.down = None;
        // What comes after an end, the store knows.
        let ended = last.body.is_terminal();
        if ended && !more {
            self.guard.recent().forget();
        }
        self.caught_up = !more && own && !ended;
        events
    }

    /// Waits until there may be something to read; true if only because it is time to look.
    async fn wait(&mut self) -> bool {
        if self.down.is_some() {
            sleep(PAUSE).await;
            return true;
        }
        loop {
            tokio::select! {
                biased;
                () = self.guard.recent().grown() => return false,
                () = self.hint.changed() => return false,
                () = &mut self.alarm => {
                    let now = Instant::now();
                    let due = self.looked + LOOK;
                    if now >= due {
                        self.alarm.as_mut().reset(now + LOOK);
                        return true;
                    }
                    self.alarm.as_mut().reset(due);
                }
            }
        }
    }

    fn stuck(&self) -> MutexGuard<'_, Option<Instant>> {
        self.stuck.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn link(&mut self, turn: RequestId) {
        let Some(linked) = &self.linked else { return };
        if !telemetry::is_traced() || linked.len() >= LINKS || linked.contains(&turn) {
            return;
        }
        self.turns.link(&self.key, turn).await;
        self.is_linked_to(turn);
    }

    /// `None` while the store is down.
    async fn read(&mut self) -> Result<Option<Page>, Error> {
        self.looked = Instant::now();
        // The owner sees the readers of its own replica without the store.
        let watching = !self.turns.0.watchers.is_run(self.key.digest());
        match self.turns.0.log.read(&self.key, self.after, PAGE, watching).await {
            Ok(page) => {
                self.down = None;
                Ok(Some(page))
            }
            Err(error @ store::Error::Down(_)) => {
                let since = *self.down.get_or_insert_with(Instant::now);
                if since.elapsed() < PATIENCE { Ok(None) } else { Err(error.into()) }
            }
            Err(error) => {
                if matches!(error, store::Error::PositionUnknown) {
                    self.guard.recent().lost(self.after);
                }
                Err(error.into())
            }
        }
    }

    fn take_over(&self) {
        let stuck = Arc::clone(&self.stuck);
        self.turns.spawn_take_over(&self.key, move |outcome| {
            let mut stuck = stuck.lock().unwrap_or_else(PoisonError::into_inner);
            match outcome {
                Ok(()) => *stuck = None,
                Err(_) => {
                    stuck.get_or_insert_with(Instant::now);
                }
            }
        });
    }
}

/// Reads one turn.
#[derive(Debug)]
pub struct TurnTail {
    turns: Turns,
    key: ConversationKey,
    turn: RequestId,
    start: Sequence,
    /// Where its terminal event is, if it was over when the reader came.
    end: Option<Sequence>,
    /// The event that the reader had seen before it came.
    seen: Option<Position>,
    source: Source,
    ended: Option<Ended>,
}

/// Where the events come from.
#[derive(Debug)]
enum Source {
    /// All of them are here.
    Whole(Vec<Event>),
    /// The log, in which the turn is over.
    Log(After),
    /// The conversation, in which it runs.
    Running(Box<Tail>),
}

/// How the turn has ended.
#[derive(Debug, Clone, Copy)]
enum Ended {
    Completed,
    Failed(FailureReason),
}

impl TurnTail {
    pub(super) fn new(
        turns: Turns,
        key: ConversationKey,
        attached: Attached,
        seen: Option<Position>,
    ) -> Self {
        let Attached { turn, start, end, logged } = attached;
        let beginning = After::Sequence(Sequence(start.0.saturating_sub(1)));
        let after = seen.map_or(beginning, After::Position);
        let source = match end {
            Some(_) if seen.is_none() && !logged.is_empty() => Source::Whole(logged),
            Some(_) => Source::Log(after),
            None => Self::running(&turns, &key, after),
        };
        Self { turns, key, turn, start, end, seen, source, ended: None }
    }

    fn running(turns: &Turns, key: &ConversationKey, after: After) -> Source {
        let tail = Tail::new(turns.clone(), key, after);
        Source::Running(Box::new(Tail { linked: None, ..tail }))
    }

    /// The next events of the turn; waits until there are some. `None` after the terminal one.
    pub async fn next(&mut self) -> Result<Option<Vec<Event>>, Error> {
        if self.ended.is_some() {
            return Ok(None);
        }
        if let (Some(seen), Some(end)) = (self.seen, self.end)
            && seen.sequence >= end
        {
            return Box::pin(self.seen_to_its_end(seen, end)).await;
        }
        loop {
            let events = match self.any().await {
                Err(Error::Log(store::Error::PositionUnknown)) => {
                    return Box::pin(self.healed()).await;
                }
                other => other?,
            };
            if !events.is_empty() {
                if let Some(last) = events.last() {
                    self.ended = ended(&last.body);
                }
                return Ok(Some(events));
            }
        }
    }

    /// The turn's terminal event, for whoever wants nothing else.
    pub async fn end(mut self) -> Result<Option<EventBody>, Error> {
        if let Source::Whole(events) = &mut self.source {
            return Ok(events.pop().map(|event| event.body));
        }
        // Most answers are whole, and a call is as large as all that it may have to wait for.
        Box::pin(async move {
            let mut last = None;
            while let Some(mut events) = self.next().await? {
                last = events.pop();
            }
            Ok(last.map(|event| event.body))
        })
        .await
    }

    /// Why the turn has failed, once `next` has given `None` or the terminal event; `None` if it has not.
    pub fn failure(&self) -> Option<FailureReason> {
        match self.ended? {
            Ended::Completed => None,
            Ended::Failed(reason) => Some(reason),
        }
    }

    /// The next events of the turn that there are, up to the terminal one.
    async fn any(&mut self) -> Result<Vec<Event>, Error> {
        let mut events = match &mut self.source {
            Source::Whole(events) => return Ok(std::mem::take(events)),
            Source::Running(tail) => tail.next().await?,
            Source::Log(after) => {
                let after = *after;
                match self.turns.0.log.read(&self.key, after, PAGE, false).await {
                    Ok(Page { events, .. }) if !events.is_empty() => {
                        let last = events.last().map(|last| After::Position(last.position));
                        self.source = Source::Log(last.unwrap_or(after));
                        events
                    }
                    // Somebody who waits has more patience.
                    Ok(_) | Err(store::Error::Down(_)) => {
                        self.source = Self::running(&self.turns, &self.key, after);
                        Vec::new()
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        };
        events.retain(|event| event.turn == Some(self.turn));
        if let Some(end) = events.iter().position(|event| event.body.is_terminal()) {
            events.truncate(end + 1);
        }
        Ok(events)
    }

    /// The reader has seen all of it, if its position is one of this conversation.
    async fn seen_to_its_end(
        &mut self,
        seen: Position,
        end: Sequence,
    ) -> Result<Option<Vec<Event>>, Error> {
        let Self { turns, key, .. } = self;
        turns.0.log.read(key, After::Position(seen), 1, false).await?;
        let before = After::Sequence(Sequence(end.0.saturating_sub(1)));
        let Page { events, .. } = turns.0.log.read(key, before, 1, false).await?;
        self.ended = events.first().and_then(|event| ended(&event.body));
        Ok(None)
    }

    /// The position is gone. Where that is so because the turn's deltas have expired, its terminal
    /// event, which replaces them, is all that the reader needs. Anything else is told.
    async fn healed(&mut self) -> Result<Option<Vec<Event>>, Error> {
        let Self { turns, key, .. } = self;
        let mut after = Sequence(self.start.0.saturating_sub(1));
        loop {
            let page = turns.0.log.read(key, After::Sequence(after), PAGE, false).await?;
            let Some(last) = page.events.last() else { break };
            after = last.position.sequence;
            for event in page.events.into_iter().filter(|event| event.turn == Some(self.turn)) {
                match &event.body {
                    EventBody::Posted(_) => {}
                    EventBody::Delta(_) => return Err(store::Error::PositionUnknown.into()),
                    end => {
                        self.ended = ended(end);
                        return Ok(Some(vec![event]));
                    }
                }
            }
        }
        Err(store::Error::PositionUnknown.into())
    }
}

/// How a turn has ended whose last event is this one; `None` if it has not.
fn ended(body: &EventBody) -> Option<Ended> {
    match body {
        EventBody::Posted(_) | EventBody::Delta(_) => None,
        EventBody::Completed(_) => Some(Ended::Completed),
        EventBody::Failed(failure) => Some(Ended::Failed(failure.reason)),
    }
}
