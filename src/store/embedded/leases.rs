//! Who owns a turn right now, and whether anybody reads: known to the process alone.
//!
//! No lease has to outlive the process, since every turn that is open when the file is opened is ended
//! at once. So a renewal costs no fsync.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::super::WATCHED;
use crate::domain::ConversationDigest;

/// The leases of the active turns, by conversation.
#[derive(Debug)]
pub(super) struct Leases {
    length: Duration,
    turns: Mutex<HashMap<ConversationDigest, Lease>>,
}

#[derive(Debug)]
struct Lease {
    ends: Instant,
    watched_until: Instant,
}

impl Leases {
    pub(super) fn new(length: Duration) -> Self {
        Self { length, turns: Mutex::default() }
    }

    /// A turn begins, and nobody has read it yet. Granted before the commit: a reader that is quicker
    /// than the writer must not take the turn for an orphan, and a lease of a turn that was not kept
    /// does no harm.
    pub(super) fn begin(&self, conversation: ConversationDigest) {
        let now = Instant::now();
        let lease = Lease { ends: now + self.length, watched_until: now };
        self.lock().insert(conversation, lease);
    }

    /// The owner, an old or a new one, is alive.
    pub(super) fn renew(&self, conversation: ConversationDigest) {
        let now = Instant::now();
        let mut turns = self.lock();
        let lease = turns.entry(conversation).or_insert(Lease { ends: now, watched_until: now });
        lease.ends = now + self.length;
    }

    /// Whether the active turn can be reaped.
    pub(super) fn over(&self, conversation: ConversationDigest) -> bool {
        self.lock().get(&conversation).is_none_or(|lease| lease.ends <= Instant::now())
    }

    /// Somebody reads the active turn.
    pub(super) fn watch(&self, conversation: ConversationDigest) {
        let now = Instant::now();
        let mut turns = self.lock();
        let lease = turns.entry(conversation).or_insert(Lease { ends: now, watched_until: now });
        lease.watched_until = now + WATCHED;
    }

    /// Whether somebody has just read the active turn.
    pub(super) fn watched(&self, conversation: ConversationDigest) -> bool {
        self.lock().get(&conversation).is_some_and(|lease| lease.watched_until > Instant::now())
    }

    /// Forgets what is over: no lease and one that has ended are the same.
    pub(super) fn forget(&self) {
        let now = Instant::now();
        self.lock().retain(|_, lease| lease.ends > now || lease.watched_until > now);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ConversationDigest, Lease>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
