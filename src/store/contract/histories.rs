//! Random histories: owners die, freeze, thaw and repeat themselves, others talk in between, readers
//! come and go, and none of them may ever be shown something wrong.
//!
//! One history is one conversation and one sequence of random steps, so what a store has to answer is
//! known at each of them; many histories run at once. Leases are as short as the store allows, and no
//! step relies on one still holding.

use std::{
    collections::{BTreeMap, HashMap},
    panic::AssertUnwindSafe,
};

use futures_util::{FutureExt as _, StreamExt as _, stream};

use super::*;

const STEPS: usize = 60;
/// Histories that run at once.
const AT_ONCE: usize = 64;

/// Plays histories; a seed that failed once fails again, as far as the store's timing allows.
pub(in crate::store) async fn histories(replicas: &Replicas, count: u64, seed: u64) {
    stream::iter(0..count)
        .map(|n| async move {
            let seed = seed.wrapping_add(n);
            let played = AssertUnwindSafe(play(replicas, seed)).catch_unwind().await;
            assert!(played.is_ok(), "the history with seed {seed} failed, see above");
        })
        .buffer_unordered(AT_ONCE)
        .collect::<()>()
        .await;
}

async fn play(replicas: &Replicas, seed: u64) {
    let mut history = History::begin(replicas, seed).await;
    for _ in 0..STEPS {
        history.step().await;
    }
    history.end().await;
}

/// xorshift64*.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        usize::try_from(number).expect("31 bits") % limit
    }
}

/// An owner as it sees itself. It may be wrong about still being one.
struct Writer {
    owner: Owner,
    next: u64,
    /// What it appended; after a reap of a turn that was visible, what anybody had appended.
    text: String,
    /// It may only end the turn, since a part of the answer was seen.
    must_end: bool,
    frozen: bool,
}

struct Reader {
    last: Option<Position>,
    shown: Vec<Event>,
}

/// What is known of a turn.
struct Turn {
    begin: Begin,
    start: Sequence,
    owners: u32,
    newest: u64,
    deltas: Vec<String>,
    cancelled: bool,
    end: Option<(Sequence, EventBody)>,
}

struct History<'a> {
    replicas: &'a Replicas,
    dice: Dice,
    key: ConversationKey,
    turns: Vec<Turn>,
    posts: Vec<(Begin, Sequence)>,
    writers: Vec<Writer>,
    readers: Vec<Reader>,
    /// Every event that a reader was shown.
    seen: BTreeMap<Sequence, Event>,
    words: u64,
}

impl<'a> History<'a> {
    async fn begin(replicas: &'a Replicas, seed: u64) -> Self {
        // Neighbouring seeds must not give similar histories.
        let dice = Dice(seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let mut history = Self {
            replicas,
            dice,
            key: fresh(),
            turns: Vec::new(),
            posts: Vec::new(),
            writers: Vec::new(),
            readers: Vec::new(),
            seen: BTreeMap::new(),
            words: 0,
        };
        history.begin_turn().await;
        history
    }

    /// Either replica.
    fn any(&mut self) -> Arc<dyn Store> {
        let Replicas { here, there, .. } = self.replicas;
        Arc::clone(if self.dice.below(2) == 0 { here } else { there })
    }

    fn word(&mut self) -> String {
        self.words += 1;
        format!("w{} ", self.words)
    }

    /// The newest turn, if it is active.
    fn active(&mut self) -> Option<&mut Turn> {
        self.turns.last_mut().filter(|turn| turn.end.is_none())
    }

    async fn step(&mut self) {
        match self.dice.below(100) {
            0..10 => self.begin_turn().await,
            10..40 => self.write().await,
            40..50 => self.finish().await,
            50..55 => self.kill_or_freeze(),
            55..60 => self.thaw(),
            60..68 => self.post().await,
            68..71 => self.cancel().await,
            71..77 => self.take_over().await,
            _ => self.read().await,
        }
    }

    async fn begin_turn(&mut self) {
        let store = self.any();
        // A request that is known comes again.
        if !self.turns.is_empty() && self.dice.below(3) == 0 {
            let at = self.dice.below(self.turns.len());
            let turn = &self.turns[at];
            let known = store.begin(&self.key, &turn.begin).await.expect("a begin");
            let end = turn.end.as_ref().map(|(end, _)| *end);
            assert_eq!(known, Begun::Known { start: turn.start, end });
            return;
        }
        let begin = says(request(), &self.word());
        // Now and then the answer is there at once.
        let whole = self.dice.below(4) == 0;
        let words: Vec<_> = (0..if whole { 2 } else { 0 }).map(|_| self.word()).collect();
        let mut answer: Vec<_> = words.iter().map(|word| delta(word)).collect();
        answer.extend(whole.then(|| completed(&words.concat())));
        let outcome = store.begin_with(&self.key, &begin, &answer).await.expect("a begin");
        if let Some(active) = self.active() {
            let expected = active.begin.message.request;
            assert!(matches!(outcome, Begun::Busy { turn, .. } if turn == expected), "{outcome:?}");
            return;
        }
        let Begun::New { owner, start, logged } = outcome else { panic!("not new: {outcome:?}") };
        let newest = owner.epoch;
        assert!(self.turns.last().is_none_or(|last| last.newest < newest));
        let last = logged.last().expect("a message").position.sequence;
        let (owners, cancelled, deltas, end) =
            (1, false, words, answer.pop().map(|end| (last, end)));
        self.turns.push(Turn { begin, start, owners, newest, deltas, cancelled, end });
        if whole {
            // Whoever claims to own it cannot write.
            let late = store.append(&owner, 4, &[delta("late")]).await.expect("an append");
            assert_eq!(late, Appended::Fenced);
            return;
        }
        let (text, must_end, frozen) = (String::new(), false, false);
        self.writers.push(Writer { owner, next: 1, text, must_end, frozen });
    }

    /// Somebody who thinks that it owns a turn goes on.
    async fn write(&mut self) {
        let Some(at) = self.awake() else { return };
        if self.writers[at].must_end {
            return self.end_turn(at).await;
        }
        let words: Vec<_> = (0..self.dice.below(4)).map(|_| self.word()).collect();
        let events: Vec<_> = words.iter().map(|word| delta(word)).collect();
        match self.append(at, &events).await {
            Appended::Stored { .. } => {
                let writer = &mut self.writers[at];
                writer.next += events.len() as u64;
                writer.text.extend(words.iter().map(String::as_str));
                self.active().expect("a turn").deltas.extend(words);
            }
            Appended::Cancelled => self.writers[at].must_end = true,
            Appended::Fenced => drop(self.writers.swap_remove(at)),
        }
    }

    async fn finish(&mut self) {
        if let Some(at) = self.awake() {
            self.end_turn(at).await;
        }
    }

    async fn end_turn(&mut self, at: usize) {
        let writer = &self.writers[at];
        let end = if writer.must_end { interrupted(&writer.text) } else { completed(&writer.text) };
        match self.append(at, std::slice::from_ref(&end)).await {
            Appended::Stored { last, .. } => {
                self.active().expect("a turn").end = Some((last, end));
            }
            Appended::Cancelled => panic!("an end is stored all the same"),
            Appended::Fenced => {}
        }
        self.writers.swap_remove(at);
    }

    /// Appends, now and then more than once, as after an unknown outcome; the world goes on meanwhile.
    async fn append(&mut self, at: usize, events: &[EventBody]) -> Appended {
        let Writer { owner, next, .. } = &self.writers[at];
        let (owner, next) = (owner.clone(), *next);
        let cancelled = self.active().is_some_and(|turn| turn.cancelled);
        let mut outcomes = Vec::new();
        loop {
            outcomes.push(self.any().append(&owner, next, events).await.expect("an append"));
            match self.dice.below(16) {
                0 | 1 => {}
                2 => self.post().await,
                3 if !events.is_empty() => self.cancel().await,
                _ => break,
            }
        }
        let last = |outcome: &Appended| match outcome {
            Appended::Stored { last, .. } => Ok(*last),
            other => Err(other.clone()),
        };
        let first = last(&outcomes[0]);
        assert!(outcomes.iter().all(|other| last(other) == first), "{outcomes:?}");

        let ends = events.last().is_some_and(EventBody::is_terminal);
        let owns = self
            .active()
            .filter(|turn| (turn.begin.message.request, turn.newest) == (owner.turn, owner.epoch));
        let mut outcomes = outcomes.into_iter();
        let outcome = outcomes.next().expect("one at least");
        match (owns, &outcome) {
            (None, Appended::Fenced) => {}
            (Some(_), Appended::Cancelled) => assert!(cancelled && !ends),
            (Some(_), Appended::Stored { .. }) => assert!(!cancelled || ends),
            _ => panic!("{owner:?} got {outcome:?}"),
        }
        // Of all repetitions the first one tells what is new.
        if let Appended::Stored { logged, last, .. } = &outcome {
            let told = logged.iter().map(|event| &event.body);
            assert!(told.eq(events), "{logged:?}");
            assert!(logged.last().is_none_or(|event| event.position.sequence == *last));
        }
        let again =
            |outcome| matches!(outcome, Appended::Stored { logged, .. } if !logged.is_empty());
        assert!(!outcomes.any(again), "what is stored is told once");
        outcome
    }

    /// Somebody who is neither dead nor frozen.
    fn awake(&mut self) -> Option<usize> {
        let awake: Vec<_> =
            (0..self.writers.len()).filter(|at| !self.writers[*at].frozen).collect();
        (!awake.is_empty()).then(|| awake[self.dice.below(awake.len())])
    }

    fn kill_or_freeze(&mut self) {
        if let Some(at) = self.awake() {
            if self.dice.below(2) == 0 {
                self.writers.swap_remove(at);
            } else {
                self.writers[at].frozen = true;
            }
        }
    }

    fn thaw(&mut self) {
        for writer in &mut self.writers {
            writer.frozen = false;
        }
    }

    async fn post(&mut self) {
        let store = self.any();
        if !self.posts.is_empty() && self.dice.below(3) == 0 {
            let at = self.dice.below(self.posts.len());
            let (post, place) = &self.posts[at];
            assert_eq!(store.post(&self.key, post).await.expect("a post"), *place);
            return;
        }
        let post = says(request(), &self.word());
        let place = store.post(&self.key, &post).await.expect("a post");
        self.posts.push((post, place));
    }

    async fn cancel(&mut self) {
        let store = self.any();
        let at = self.dice.below(self.turns.len());
        let turn = &mut self.turns[at];
        store.cancel(&self.key, turn.begin.message.request).await.expect("a cancel");
        turn.cancelled |= turn.end.is_none();
    }

    /// Another replica looks after the turn, perhaps while somebody who was frozen thaws.
    async fn take_over(&mut self) {
        let store = self.any();
        if self.active().is_none() {
            assert_eq!(store.reap(&self.key).await.expect("a reap"), None);
            return;
        }
        if self.dice.below(2) == 0 {
            lease_over(&*store, &self.key, self.replicas.lease).await;
        }
        let thawed = self.awake().filter(|at| !self.writers[*at].must_end);
        let Some(at) = thawed.filter(|_| self.dice.below(2) == 0) else {
            let taken = store.reap(&self.key).await.expect("a reap");
            return self.taken_over(taken);
        };
        let (word, other) = (self.word(), self.any());
        let events = [delta(&word)];
        let Writer { owner, next, .. } = &self.writers[at];
        let (taken, appended) =
            tokio::join!(store.reap(&self.key), other.append(owner, *next, &events));
        let (taken, appended) = (taken.expect("a reap"), appended.expect("an append"));
        let (turn, epoch) = (owner.turn, owner.epoch);
        let active = self.active().expect("a turn");
        let owned = (active.begin.message.request, active.newest) == (turn, epoch);
        match appended {
            Appended::Stored { .. } => {
                assert!(owned && !active.cancelled);
                active.deltas.push(word.clone());
                self.writers[at].next += 1;
                self.writers[at].text.push_str(&word);
            }
            Appended::Cancelled => assert!(owned && active.cancelled),
            Appended::Fenced => assert!(!owned || taken.is_some()),
        }
        self.taken_over(taken);
    }

    fn taken_over(&mut self, taken: Option<Reaped>) {
        let Some(taken) = taken else { return };
        let turn = self.active().expect("a turn");
        turn.owners += 1;
        assert!(taken.owner.epoch > turn.newest);
        turn.newest = taken.owner.epoch;
        assert_eq!(taken.owner.turn, turn.begin.message.request);
        let expected = Reaped {
            owner: taken.owner,
            start: turn.start,
            attempt: turn.owners,
            // A time, which the contract of reaps looks at.
            since: taken.since,
            visible: !turn.deltas.is_empty(),
            cancelled: turn.cancelled,
            options: turn.begin.options.clone(),
        };
        let taken = Reaped { owner: expected.owner.clone(), ..taken };
        assert_eq!(taken, expected);
        let text = turn.deltas.concat();
        let (owner, must_end) = (taken.owner, taken.visible || taken.cancelled);
        self.writers.push(Writer { owner, next: 1, text, must_end, frozen: false });
    }

    /// A reader comes, or comes back, and reads a little.
    async fn read(&mut self) {
        let at = self.dice.below(5);
        if at >= self.readers.len() {
            self.readers.push(Reader { last: None, shown: Vec::new() });
        }
        let at = at.min(self.readers.len() - 1);
        let most = 1 + self.dice.below(6);
        self.read_page(at, most).await;
    }

    /// Returns how many events there were.
    async fn read_page(&mut self, at: usize, most: usize) -> usize {
        let (store, watching) = (self.any(), self.dice.below(2) == 0);
        let last = self.readers[at].last;
        let after = last.map_or(After::Sequence(Sequence(0)), After::Position);
        let page = match store.read(&self.key, after, most, watching).await {
            Ok(page) => page,
            Err(Error::PositionUnknown) => {
                self.lost(at);
                return most;
            }
            Err(error) => panic!("{error}"),
        };
        let expected = self.active().map(|turn| turn.begin.message.request);
        assert_eq!(page.active.map(|active| active.turn), expected);
        assert!(page.events.len() <= most);
        let read = page.events.len();
        for event in page.events {
            let place = event.position.sequence;
            let reader = &mut self.readers[at];
            assert!(reader.last.is_none_or(|last| last.sequence < place), "shown twice");
            reader.last = Some(event.position);
            reader.shown.push(event.clone());
            let before = self.seen.entry(place).or_insert_with(|| event.clone());
            assert_eq!(*before, event, "one place, two events");
        }
        read
    }

    /// A reader's position is unknown: that can only be a delta that has expired. It begins anew.
    fn lost(&mut self, at: usize) {
        let reader = &mut self.readers[at];
        let last = reader.shown.pop().expect("the beginning is never unknown");
        assert!(matches!(last.body, EventBody::Delta(_)), "{last:?}");
        let newest = self.turns.iter().rev().take(2).map(|turn| turn.begin.message.request);
        assert!(newest.into_iter().all(|turn| last.turn != Some(turn)), "{last:?}");
        *reader = Reader { last: None, shown: Vec::new() };
    }

    /// Everybody comes to an end, and the readers see all of it.
    async fn end(mut self) {
        while self.active().is_some() {
            let store = self.any();
            lease_over(&*store, &self.key, self.replicas.lease).await;
            let taken = store.reap(&self.key).await.expect("a reap");
            self.taken_over(taken);
            let newest = self.writers.len() - 1;
            self.end_turn(newest).await;
        }
        // Whoever is left is fenced.
        self.thaw();
        while !self.writers.is_empty() {
            self.end_turn(0).await;
        }
        self.readers.push(Reader { last: None, shown: Vec::new() });
        for at in 0..self.readers.len() {
            while self.read_page(at, 10).await > 0 {}
        }
        let log = log(&*self.any(), &self.key).await;
        self.check_log(&log);
        for reader in &self.readers {
            self.check_shown(&log, &reader.shown);
        }
    }

    fn check_log(&self, log: &[Event]) {
        assert!(log.is_sorted_by(|a, b| a.position.sequence < b.position.sequence));
        let posts: Vec<_> = log.iter().filter(|event| event.turn.is_none()).collect();
        assert_eq!(posts.len(), self.posts.len());
        for (event, (post, place)) in posts.iter().zip(&self.posts) {
            assert_eq!(event.body, EventBody::Posted(post.message.clone()));
            assert_eq!(event.position.sequence, *place);
        }
        for (age, turn) in self.turns.iter().rev().enumerate() {
            let id = turn.begin.message.request;
            let events: Vec<_> = log.iter().filter(|event| event.turn == Some(id)).collect();
            let [first, deltas @ .., last] = &events[..] else { panic!("{events:?}") };
            assert_eq!(first.body, EventBody::Posted(turn.begin.message.clone()));
            assert_eq!(first.position.sequence, turn.start);
            assert_eq!(Some((last.position.sequence, last.body.clone())), turn.end);
            let deltas: Vec<_> = deltas.iter().map(|event| event.body.clone()).collect();
            if age < 2 {
                assert_eq!(deltas, turn.deltas.iter().map(|word| delta(word)).collect::<Vec<_>>());
            }
            assert!(!deltas.iter().any(EventBody::is_terminal));
            if let EventBody::Completed(completion) = &last.body {
                assert_eq!(completion.text, turn.deltas.concat());
            }
        }
    }

    /// Everything that is in the log was shown, and nothing else but deltas that have expired. Those
    /// of a turn are shown from the first one on, and its end has the whole text.
    fn check_shown(&self, log: &[Event], shown: &[Event]) {
        let log: HashMap<_, _> = log.iter().map(|event| (event.position.sequence, event)).collect();
        let mut kept = 0;
        let mut deltas: HashMap<RequestId, String> = HashMap::new();
        for event in shown {
            let expired = matches!(event.body, EventBody::Delta(_));
            match log.get(&event.position.sequence) {
                Some(logged) => {
                    assert_eq!(*logged, event);
                    kept += 1;
                }
                None => assert!(expired, "shown and not in the log: {event:?}"),
            }
            if let (EventBody::Delta(text), Some(turn)) = (&event.body, event.turn) {
                deltas.entry(turn).or_default().push_str(text);
            }
        }
        assert_eq!(kept, log.len(), "a gap");
        for turn in &self.turns {
            if let Some(text) = deltas.get(&turn.begin.message.request) {
                assert!(turn.deltas.concat().starts_with(text.as_str()), "{text}");
            }
        }
    }
}
