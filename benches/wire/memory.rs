//! A store that answers from memory, without a transaction and without a thread: what the service costs
//! when its log costs nothing. It keeps to the contract of the log, but forgets the oldest
//! conversations, so that a burst does not fill the machine.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    hash::{BuildHasherDefault, Hasher},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use chatbot::{
    domain::{
        Change, ConversationDigest, ConversationKey, EngineKind, Event, EventBody, Position,
        RequestId, Revision, Sequence,
    },
    store::{
        Active, After, Appended, Begin, Begun, ConversationLog, Error, Found, Hint, Hints,
        KnowledgeLog, Owner, Page, Reaped, TurnOptions, WATCHED,
    },
};
use tokio::sync::watch;

const SHARDS: usize = 16;
/// Conversations of a shard. Few, since what is measured is the service and not the processor's caches.
const KEPT: usize = 2;
/// How long an owner may be silent.
const LEASE: Duration = Duration::from_secs(5);

/// The store.
#[derive(Debug)]
pub(crate) struct Memory {
    shards: [Mutex<Shard>; SHARDS],
    hints: Hints,
    knowledge: watch::Sender<Revision>,
    changes: Mutex<Vec<(Revision, Change)>>,
}

#[derive(Debug, Default)]
struct Shard {
    conversations: HashMap<ConversationDigest, Conversation, BuildHasherDefault<Half>>,
    oldest: VecDeque<ConversationDigest>,
}

fn options(begin: &Begin, wants_answer: bool) -> Option<(Option<EngineKind>, Option<String>)> {
    wants_answer.then(|| (begin.options.engine, begin.options.language.clone()))
}

/// Digests are hashes already: their second half will do.
#[derive(Debug, Default)]
struct Half(u64);

impl Hasher for Half {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // The length of the array comes first, which changes nothing.
        if let Some(half) = bytes.last_chunk() {
            self.0 = u64::from_ne_bytes(*half);
        }
    }
}

#[derive(Debug, Default)]
struct Conversation {
    events: Vec<Event>,
    last: u64,
    /// Few.
    requests: Vec<Request>,
    active: Option<Turn>,
    epoch: u64,
    watched: Option<Instant>,
}

#[derive(Debug)]
struct Request {
    id: RequestId,
    /// What makes it the same, beside its message, which is in the log.
    options: Option<(Option<EngineKind>, Option<String>)>,
    start: Sequence,
    end: Option<Sequence>,
}

#[derive(Debug)]
struct Turn {
    id: RequestId,
    start: Sequence,
    options: TurnOptions,
    /// Events of this epoch.
    stored: u64,
    leased: Instant,
    attempt: u32,
    visible: bool,
    cancelled: bool,
}

impl Turn {
    fn orphaned(&self) -> bool {
        self.leased.elapsed() > LEASE
    }
}

impl Conversation {
    fn add(&mut self, turn: Option<RequestId>, time: SystemTime, body: EventBody) -> Sequence {
        self.last += 1;
        let position = Position::random(Sequence(self.last));
        self.events.push(Event { position, turn, time, body });
        position.sequence
    }

    /// What was added since there were `before` events.
    fn since(&self, before: usize) -> Vec<Event> {
        self.events.get(before..).unwrap_or_default().to_vec()
    }

    fn request(&self, id: RequestId) -> Option<&Request> {
        self.requests.iter().find(|request| request.id == id)
    }

    fn end(&mut self, id: RequestId, end: Sequence) {
        if let Some(request) = self.requests.iter_mut().find(|request| request.id == id) {
            request.end = Some(end);
        }
    }

    fn is_same(&self, known: &Request, begin: &Begin, wants_answer: bool) -> bool {
        let at = usize::try_from(known.start.0).unwrap_or(usize::MAX);
        let message = at.checked_sub(1).and_then(|at| self.events.get(at)).map(|event| &event.body);
        matches!(message, Some(EventBody::Posted(message)) if message.text == begin.message.text)
            && known.options == options(begin, wants_answer)
    }

    /// Where a request is, if it is known.
    fn known(&self, begin: &Begin, wants_answer: bool) -> Result<Option<&Request>, Error> {
        match self.request(begin.message.request) {
            Some(known) if !self.is_same(known, begin, wants_answer) => Err(Error::Reused),
            known => Ok(known),
        }
    }

    fn claim(&mut self, begin: &Begin, time: SystemTime, wants_answer: bool) -> Sequence {
        let request = begin.message.request;
        let turn = wants_answer.then_some(request);
        let start = self.add(turn, time, EventBody::Posted(begin.message.clone()));
        let end = (!wants_answer).then_some(start);
        self.requests.push(Request {
            id: request,
            options: options(begin, wants_answer),
            start,
            end,
        });
        start
    }

    fn watched(&self) -> bool {
        self.watched.is_some_and(|watched| watched.elapsed() < WATCHED)
    }
}

impl Memory {
    pub(crate) fn new() -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            hints: Hints::default(),
            knowledge: watch::Sender::new(Revision(0)),
            changes: Mutex::default(),
        }
    }

    /// Never forgets this conversation.
    pub(crate) fn keep(&self, key: &ConversationKey) {
        self.shard(key).oldest.retain(|digest| *digest != key.digest());
    }

    fn shard(&self, key: &ConversationKey) -> MutexGuard<'_, Shard> {
        let index = usize::from(key.digest().0[0]) % SHARDS;
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shard {
    fn get(&mut self, key: &ConversationKey) -> Result<&mut Conversation, Error> {
        self.conversations.get_mut(&key.digest()).ok_or(Error::NotFound)
    }

    /// The conversation, a new one unless it has to exist.
    fn open(&mut self, key: &ConversationKey, begin: &Begin) -> Result<&mut Conversation, Error> {
        let digest = key.digest();
        if self.oldest.len() >= KEPT {
            self.forget();
        }
        match self.conversations.entry(digest) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(_) if begin.existing => Err(Error::NotFound),
            Entry::Vacant(new) => {
                self.oldest.push_back(digest);
                Ok(new.insert(Conversation::default()))
            }
        }
    }

    /// Makes room; a conversation with a turn that runs is kept.
    fn forget(&mut self) {
        for _ in 0..self.oldest.len() {
            if self.oldest.len() < KEPT {
                return;
            }
            let Some(digest) = self.oldest.pop_front() else { return };
            let running = self.conversations.get(&digest).is_some_and(|c| c.active.is_some());
            if running {
                self.oldest.push_back(digest);
            } else {
                self.conversations.remove(&digest);
            }
        }
    }
}

#[async_trait::async_trait]
impl ConversationLog for Memory {
    async fn begin_with(
        &self,
        key: &ConversationKey,
        begin: &Begin,
        answer: &[EventBody],
    ) -> Result<Begun, Error> {
        let mut shard = self.shard(key);
        let conversation = shard.open(key, begin)?;
        if let Some(Request { start, end, .. }) = conversation.known(begin, true)? {
            return Ok(Begun::Known { start: *start, end: *end });
        }
        if let Some(turn) = &conversation.active {
            return Ok(Begun::Busy { turn: turn.id, orphaned: turn.orphaned() });
        }
        let (now, before) = (SystemTime::now(), conversation.events.len());
        let start = conversation.claim(begin, now, true);
        conversation.epoch += 1;
        let id = begin.message.request;
        let owner = Owner { key: key.clone(), turn: id, epoch: conversation.epoch };
        if !answer.is_empty() {
            for event in answer {
                conversation.add(Some(id), now, event.clone());
            }
            let end = Sequence(conversation.last);
            conversation.end(id, end);
            let logged = conversation.since(before);
            drop(shard);
            self.hints.grown(key.digest());
            return Ok(Begun::New { owner, start, logged });
        }
        conversation.active = Some(Turn {
            id,
            start,
            options: begin.options.clone(),
            stored: 0,
            leased: Instant::now(),
            attempt: 1,
            visible: false,
            cancelled: false,
        });
        let logged = conversation.since(before);
        drop(shard);
        self.hints.grown(key.digest());
        Ok(Begun::New { owner, start, logged })
    }

    async fn append(
        &self,
        owner: &Owner,
        number: u64,
        events: &[EventBody],
    ) -> Result<Appended, Error> {
        let key = &owner.key;
        let mut shard = self.shard(key);
        let Ok(conversation) = shard.get(key) else { return Ok(Appended::Fenced) };
        let Some(turn) = &mut conversation.active else { return Ok(Appended::Fenced) };
        if turn.id != owner.turn || conversation.epoch != owner.epoch || number > turn.stored + 1 {
            return Ok(Appended::Fenced);
        }
        turn.leased = Instant::now();
        let terminal = events.last().is_some_and(EventBody::is_terminal);
        if turn.cancelled && !terminal {
            return Ok(Appended::Cancelled);
        }
        let known = usize::try_from(turn.stored + 1 - number).unwrap_or(usize::MAX);
        let new = events.get(known..).unwrap_or_default();
        turn.stored += new.len() as u64;
        turn.visible |= new.iter().any(|event| matches!(event, EventBody::Delta(_)));
        let (now, before) = (SystemTime::now(), conversation.events.len());
        for event in new {
            conversation.add(Some(owner.turn), now, event.clone());
        }
        let logged = conversation.since(before);
        let last = Sequence(conversation.last);
        if terminal {
            conversation.active = None;
            conversation.end(owner.turn, last);
        }
        let watched = conversation.watched();
        drop(shard);
        if !new.is_empty() {
            self.hints.grown(key.digest());
        }
        Ok(Appended::Stored { last, logged, watched })
    }

    async fn post(&self, key: &ConversationKey, begin: &Begin) -> Result<Sequence, Error> {
        let mut shard = self.shard(key);
        let conversation = shard.open(key, begin)?;
        if let Some(Request { start, .. }) = conversation.known(begin, false)? {
            return Ok(*start);
        }
        let start = conversation.claim(begin, SystemTime::now(), false);
        drop(shard);
        self.hints.grown(key.digest());
        Ok(start)
    }

    async fn cancel(&self, key: &ConversationKey, turn: RequestId) -> Result<(), Error> {
        let mut shard = self.shard(key);
        let conversation = shard.get(key)?;
        if conversation.request(turn).is_none() {
            return Err(Error::NotFound);
        }
        if let Some(active) = conversation.active.as_mut().filter(|active| active.id == turn) {
            active.cancelled = true;
        }
        drop(shard);
        self.hints.cancelled(key.digest());
        Ok(())
    }

    async fn reap(&self, key: &ConversationKey) -> Result<Option<Reaped>, Error> {
        let mut shard = self.shard(key);
        let conversation = shard.get(key)?;
        let Some(turn) = conversation.active.as_mut().filter(|turn| turn.orphaned()) else {
            return Ok(None);
        };
        conversation.epoch += 1;
        turn.stored = 0;
        turn.leased = Instant::now();
        turn.attempt += 1;
        let owner = Owner { key: key.clone(), turn: turn.id, epoch: conversation.epoch };
        Ok(Some(Reaped {
            owner,
            start: turn.start,
            attempt: turn.attempt,
            since: None,
            visible: turn.visible,
            cancelled: turn.cancelled,
            options: turn.options.clone(),
        }))
    }

    async fn read(
        &self,
        key: &ConversationKey,
        after: After,
        most: usize,
        watching: bool,
    ) -> Result<Page, Error> {
        let mut shard = self.shard(key);
        let conversation = shard.get(key)?;
        if watching {
            conversation.watched = Some(Instant::now());
        }
        let after = match after {
            After::Sequence(sequence) => sequence,
            After::Position(position) => {
                // Every event is kept, so its place is its index.
                let at = usize::try_from(position.sequence.0).unwrap_or(usize::MAX);
                let event = at.checked_sub(1).and_then(|at| conversation.events.get(at));
                if event.is_none_or(|event| event.position != position) {
                    return Err(Error::PositionUnknown);
                }
                position.sequence
            }
        };
        let after = usize::try_from(after.0).unwrap_or(usize::MAX);
        let rest = conversation.events.get(after..).unwrap_or_default();
        let active = conversation.active.as_ref();
        Ok(Page {
            events: rest.iter().take(most).cloned().collect(),
            active: active.map(|turn| Active { turn: turn.id, orphaned: turn.orphaned() }),
            more: rest.len() > most,
        })
    }

    async fn find(
        &self,
        key: &ConversationKey,
        request: RequestId,
    ) -> Result<Option<Found>, Error> {
        let mut shard = self.shard(key);
        let Ok(conversation) = shard.get(key) else { return Ok(None) };
        // Without the trace: one call in a hundred has one, and only looks for it to link to it.
        let found = |request: &Request| Found { start: request.start, trace: None };
        Ok(conversation.request(request).map(found))
    }

    async fn history(
        &self,
        key: &ConversationKey,
        before: Sequence,
        most: usize,
    ) -> Result<Vec<Event>, Error> {
        let mut shard = self.shard(key);
        let conversation = shard.get(key)?;
        let before = conversation.events.iter().rev().filter(|event| {
            event.position.sequence < before && !matches!(event.body, EventBody::Delta(_))
        });
        let mut events: Vec<Event> = before.take(most).cloned().collect();
        events.reverse();
        Ok(events)
    }

    fn hint(&self, key: &ConversationKey) -> Hint {
        self.hints.subscribe(key.digest())
    }
}

#[async_trait::async_trait]
impl KnowledgeLog for Memory {
    async fn append_knowledge(&self, changes: Vec<Change>) -> Result<Revision, Error> {
        let mut log = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let first = self.knowledge.borrow().0 + 1;
        log.extend((first..).map(Revision).zip(changes));
        let revision = log.last().map_or(Revision(0), |(revision, _)| *revision);
        self.knowledge.send_replace(revision);
        Ok(revision)
    }

    async fn read_knowledge(
        &self,
        after: Revision,
        most: usize,
    ) -> Result<Vec<(Revision, Change)>, Error> {
        let log = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let newer = log.iter().filter(|(revision, _)| *revision > after);
        Ok(newer.take(most).cloned().collect())
    }

    fn knowledge_revision(&self) -> watch::Receiver<Revision> {
        self.knowledge.subscribe()
    }
}
