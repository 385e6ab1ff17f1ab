//! The newest events of a conversation whose turn runs here, for its readers here.
//!
//! Whoever owns a turn knows what it has logged. So the readers beside it, which are nearly all there are,
//! need not have the store look for it: they get what the store has acknowledged, from memory. Everything
//! else (readers that are behind, positions that cannot be told from others, what somebody else has logged)
//! is the store's.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    domain::{Event, EventBody, Sequence},
    grown::{self, Grown},
    store::After,
};

/// Events that are kept, and bytes of them: what a reader is behind at most before it reads the store.
const KEPT: usize = 128;
const KEPT_BYTES: usize = 32 * 1024;

/// What was logged here lately; clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Recent(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    log: Mutex<Log>,
    /// Changes for whoever waits.
    grown: Grown,
}

/// A piece of the conversation without a gap.
#[derive(Debug, Default)]
struct Log {
    /// The place before the first event, and its tag if it was an event here.
    before: (Sequence, Option<u64>),
    events: VecDeque<Event>,
    bytes: usize,
    /// Appends whose outcome is not known, and those that have logged something.
    coming: usize,
    appends: u64,
}

/// A reader, which hears of what is logged, until it is dropped.
#[derive(Debug)]
pub(super) struct Listener {
    recent: Recent,
    grown: grown::Listener,
}

/// What is known here of what comes after a position.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Known {
    /// These events, and whether there are more.
    Events(Vec<Event>, bool),
    /// Nothing yet, but something is on its way into the log.
    Coming,
    /// All that was logged here comes before.
    All,
    /// Nothing: the store may know.
    Nothing,
}

/// Something is on its way into the log, until it is dropped; and what has come of it.
#[derive(Debug)]
pub(super) struct Coming(Recent, Vec<Event>);

impl Recent {
    /// Listens from now on.
    pub(super) fn listen(&self) -> Listener {
        Listener { recent: self.clone(), grown: self.0.grown.listen() }
    }

    /// An append begins.
    pub(super) fn coming(&self) -> Coming {
        self.lock().coming += 1;
        Coming(self.clone(), Vec::new())
    }

    /// The store has acknowledged these, in their order and without a gap.
    pub(super) fn logged(&self, events: Vec<Event>) {
        self.add(events, 0);
    }

    fn add(&self, events: Vec<Event>, appends: usize) {
        let mut log = self.lock();
        log.coming -= appends;
        log.appends += u64::from(appends > 0 && !events.is_empty());
        for event in events {
            log.add(event);
        }
        drop(log);
        self.0.grown.add();
    }

    fn after(&self, after: After, most: usize) -> (Known, Option<u64>) {
        let log = self.lock();
        let appends = (log.coming == 0).then_some(log.appends);
        let Some(known) = log.index_after(after) else { return (Known::Nothing, appends) };
        let rest = log.events.len() - known;
        let known = if rest > 0 {
            let events = log.events.iter().skip(known).take(most).cloned().collect();
            Known::Events(events, rest > most)
        } else if log.coming > 0 {
            Known::Coming
        } else if log.events.is_empty() {
            Known::Nothing
        } else {
            Known::All
        };
        (known, appends)
    }

    /// The turn is over and a reader has all of it: who joins a conversation for hours should not hold its
    /// last answer as long. Whoever is behind reads the store.
    fn forget(&self) {
        let mut log = self.lock();
        if let Some(last) = log.events.back() {
            log.before = (last.position.sequence, Some(last.position.tag));
        }
        log.events = VecDeque::new();
        log.bytes = 0;
    }

    /// The store has lost events, maybe these.
    pub(super) fn lost(&self) {
        let mut log = self.lock();
        log.before = (Sequence(0), None);
        log.events = VecDeque::new();
        log.bytes = 0;
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        self.0.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listener {
    /// What was logged here after a position, at most `most` events; and how many appends have been logged
    /// here so far, if none is on its way.
    pub(super) fn after(&mut self, after: After, most: usize) -> (Known, Option<u64>) {
        // First, so that what is logged meanwhile is heard of.
        self.grown.see();
        self.recent.after(after, most)
    }

    /// Ends when more was logged here since the last look or the last end of this, or an append has come to nothing.
    pub(super) async fn grown(&mut self) {
        self.grown.more().await;
    }

    /// The store does not know this position: it has lost events, if it was logged here.
    pub(super) fn lost(&self, after: After) {
        if self.recent.lock().index_after(after).is_some() {
            self.recent.lost();
        }
    }

    /// The turn is over, and this reader has all of it: see [`Recent::forget`].
    pub(super) fn forget(&self) {
        self.recent.forget();
    }
}

impl Log {
    fn add(&mut self, event: Event) {
        let place = event.position.sequence.0;
        let last = self.events.back().map_or(self.before.0, |last| last.position.sequence);
        if place != last.0 + 1 {
            // Somebody else has logged something in between.
            self.events.clear();
            self.bytes = 0;
            self.before = (Sequence(place.saturating_sub(1)), None);
        }
        self.bytes += size(&event);
        self.events.push_back(event);
        while self.events.len() > KEPT || (self.bytes > KEPT_BYTES && self.events.len() > 1) {
            let Some(oldest) = self.events.pop_front() else { break };
            self.bytes -= size(&oldest);
            self.before = (oldest.position.sequence, Some(oldest.position.tag));
        }
    }

    /// The index of the event that comes after a position, if that is sure.
    fn index_after(&self, after: After) -> Option<usize> {
        let index = |sequence: Sequence| {
            let index = usize::try_from(sequence.0.checked_sub(self.before.0.0)?).ok()?;
            (index <= self.events.len()).then_some(index)
        };
        match after {
            After::Sequence(sequence) => index(sequence),
            After::Position(position) => {
                let index = index(position.sequence)?;
                let tag = match index.checked_sub(1) {
                    Some(event) => Some(self.events[event].position.tag),
                    None => self.before.1,
                };
                (tag == Some(position.tag)).then_some(index)
            }
        }
    }
}

impl Coming {
    /// The store has acknowledged these, in their order and without a gap.
    pub(super) fn logged(mut self, events: Vec<Event>) {
        self.1 = events;
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        // Also of nothing: whoever waits for it must not wait for what has failed.
        self.0.add(std::mem::take(&mut self.1), 1);
    }
}

fn size(event: &Event) -> usize {
    let text = match &event.body {
        EventBody::Posted(message) => message.text.len(),
        EventBody::Delta(text) => text.len(),
        EventBody::Completed(completion) => completion.text.len(),
        EventBody::Failed(failure) => failure.partial_text.len(),
    };
    size_of::<Event>() + text
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use futures_util::FutureExt as _;

    use super::*;
    use crate::domain::Position;

    fn event(place: u64, text: &str) -> Event {
        let position = Position { sequence: Sequence(place), tag: place * 1000 };
        let body = EventBody::Delta(text.into());
        Event { position, turn: None, time: SystemTime::UNIX_EPOCH, body }
    }

    fn at(place: u64) -> After {
        After::Position(event(place, "").position)
    }

    fn after(recent: &Recent, after: After, most: usize) -> Known {
        recent.after(after, most).0
    }

    fn places(known: Known) -> Vec<u64> {
        let Known::Events(events, _) = known else { panic!("{known:?}") };
        events.iter().map(|event| event.position.sequence.0).collect()
    }

    #[test]
    fn what_was_logged_is_read_from_any_place_in_it_and_from_no_other() {
        let recent = Recent::default();
        assert_eq!(after(&recent, After::Sequence(Sequence(0)), 10), Known::Nothing);
        recent.logged(vec![event(5, "a"), event(6, "b"), event(7, "c")]);
        assert_eq!(places(after(&recent, After::Sequence(Sequence(4)), 10)), [5, 6, 7]);
        assert_eq!(places(after(&recent, at(5), 1)), [6]);
        assert!(matches!(after(&recent, at(5), 1), Known::Events(_, true)));
        assert!(matches!(after(&recent, at(5), 2), Known::Events(_, false)));
        assert_eq!(after(&recent, at(7), 10), Known::All);
        // Before it, behind it, and under another tag, as after a loss.
        for unknown in [
            After::Sequence(Sequence(3)),
            After::Sequence(Sequence(8)),
            at(4),
            After::Position(Position { sequence: Sequence(6), tag: 1 }),
        ] {
            assert_eq!(after(&recent, unknown, 10), Known::Nothing, "{unknown:?}");
        }
    }

    #[test]
    fn what_somebody_else_has_logged_in_between_is_never_skipped() {
        let recent = Recent::default();
        recent.logged(vec![event(1, "a")]);
        recent.logged(vec![event(3, "c")]);
        assert_eq!(after(&recent, at(1), 10), Known::Nothing);
        // The store has read 2 to the reader; its tag is not known here.
        assert_eq!(after(&recent, at(2), 10), Known::Nothing);
        assert_eq!(places(after(&recent, After::Sequence(Sequence(2)), 10)), [3]);
    }

    #[tokio::test]
    async fn an_append_on_its_way_is_worth_waiting_for() {
        let recent = Recent::default();
        recent.logged(vec![event(1, "a")]);
        let (mut reader, mut other) = (recent.listen(), recent.listen());
        let coming = recent.coming();
        assert_eq!(reader.after(at(1), 10), (Known::Coming, None));
        assert!(reader.grown().now_or_never().is_none());
        // Its task is woken, not only told when it asks.
        let told = async { drop(coming) };
        tokio::join!(biased; reader.grown(), told);
        assert_eq!(reader.after(at(1), 10), (Known::All, Some(0)));
        assert!(reader.grown().now_or_never().is_none());
        recent.coming().logged(vec![event(2, "b")]);
        assert!(reader.grown().now_or_never().is_some());
        assert!(matches!(reader.after(at(1), 10), (Known::Events(..), Some(1))));
        assert!(reader.grown().now_or_never().is_none());
        assert!(other.grown().now_or_never().is_some());
    }

    #[test]
    fn what_is_forgotten_is_the_stores_and_what_follows_is_not() {
        let recent = Recent::default();
        recent.logged(vec![event(1, "a"), event(2, "b")]);
        recent.forget();
        assert_eq!(after(&recent, at(1), 10), Known::Nothing);
        assert_eq!(after(&recent, at(2), 10), Known::Nothing);
        recent.logged(vec![event(3, "c")]);
        assert_eq!(places(after(&recent, at(2), 10)), [3]);
        // After a loss nothing is joined to what was before it.
        recent.lost();
        recent.logged(vec![event(4, "d")]);
        assert_eq!(after(&recent, at(3), 10), Known::Nothing);
    }

    #[test]
    fn it_keeps_a_bounded_part() {
        let recent = Recent::default();
        let most = u64::try_from(KEPT).expect("fits");
        for place in 1..=most + 10 {
            recent.logged(vec![event(place, "a")]);
        }
        assert_eq!(after(&recent, at(9), 1), Known::Nothing);
        assert_eq!(places(after(&recent, at(10), 1)), [11]);
        recent.logged(vec![event(most + 11, &"x".repeat(KEPT_BYTES))]);
        assert_eq!(recent.lock().events.len(), 1);
        assert_eq!(places(after(&recent, at(most + 10), 1)), [most + 11]);
    }
}
