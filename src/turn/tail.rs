//! Readers: a conversation, or one turn of it, from a position to its end.
//!
//! A reader knows nothing of the owner of a turn; it reads the log, wherever it is. It remembers the
//! last event it has shown by its tag, so that a store which has lost its newest events is noticed
//! and never waited for.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::{Instant, sleep};

use super::{Attached, Error, LOOK, PAGE, PATIENCE, PAUSE, Turns, watch::ReaderGuard};
use crate::{
    domain::{ConversationKey, Event, EventBody, Position, RequestId, Sequence},
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
    /// Counts as a reader of the conversation.
    _guard: ReaderGuard,
}

impl Tail {
    pub(super) fn new(turns: Turns, key: &ConversationKey, after: After) -> Self {
        let hint = turns.0.log.hint(key);
        let guard = turns.0.watchers.reads(key.digest());
        let key = key.clone();
        let (down, stuck) = (None, Arc::default());
        let (caught_up, idle) = (false, false);
        let linked = Some(Vec::new());
        Self { turns, key, after, hint, caught_up, idle, down, stuck, linked, _guard: guard }
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
            if self.caught_up {
                let wait = if self.down.is_some() { PAUSE } else { LOOK };
                tokio::select! {
                    () = self.hint.changed() => {}
                    () = sleep(wait) => {}
                }
                // Before the read: if that is dropped, the hint must not be lost.
                self.caught_up = false;
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
            Err(error) => Err(error.into()),
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
    tail: Tail,
    turn: RequestId,
    start: Sequence,
    /// Where its terminal event is, if it was over when the reader came.
    end: Option<Sequence>,
    /// The event that the reader had seen before it came.
    seen: Option<Position>,
    outcome: Option<EventBody>,
}

impl TurnTail {
    pub(super) fn new(
        turns: Turns,
        key: &ConversationKey,
        attached: Attached,
        seen: Option<Position>,
    ) -> Self {
        let Attached { turn, start, end } = attached;
        let beginning = After::Sequence(Sequence(start.0.saturating_sub(1)));
        let tail = Tail::new(turns, key, seen.map_or(beginning, After::Position));
        let tail = Tail { linked: None, ..tail };
        Self { tail, turn, start, end, seen, outcome: None }
    }

    /// The next events of the turn; waits until there are some. `None` after the terminal one.
    pub async fn next(&mut self) -> Result<Option<Vec<Event>>, Error> {
        if self.outcome.is_some() {
            return Ok(None);
        }
        if let (Some(seen), Some(end)) = (self.seen, self.end)
            && seen.sequence >= end
        {
            return self.seen_to_its_end(seen, end).await;
        }
        loop {
            let mut events = match self.tail.next().await {
                Err(Error::Log(store::Error::PositionUnknown)) => return self.healed().await,
                other => other?,
            };
            events.retain(|event| event.turn == Some(self.turn));
            if let Some(end) = events.iter().find(|event| event.body.is_terminal()) {
                self.outcome = Some(end.body.clone());
            }
            if !events.is_empty() {
                return Ok(Some(events));
            }
        }
    }

    /// How the turn ended, once `next` has given `None` or the terminal event.
    pub fn outcome(&self) -> Option<&EventBody> {
        self.outcome.as_ref()
    }

    /// The reader has seen all of it, if its position is one of this conversation.
    async fn seen_to_its_end(
        &mut self,
        seen: Position,
        end: Sequence,
    ) -> Result<Option<Vec<Event>>, Error> {
        let Tail { turns, key, .. } = &self.tail;
        turns.0.log.read(key, After::Position(seen), 1, false).await?;
        let before = After::Sequence(Sequence(end.0.saturating_sub(1)));
        let Page { events, .. } = turns.0.log.read(key, before, 1, false).await?;
        self.outcome = events.into_iter().next().map(|event| event.body);
        Ok(None)
    }

    /// The position is gone. Where that is so because the turn's deltas have expired, its terminal
    /// event, which replaces them, is all that the reader needs. Anything else is told.
    async fn healed(&mut self) -> Result<Option<Vec<Event>>, Error> {
        let Tail { turns, key, .. } = &self.tail;
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
                        self.outcome = Some(end.clone());
                        return Ok(Some(vec![event]));
                    }
                }
            }
        }
        Err(store::Error::PositionUnknown.into())
    }
}
