//! Wake-ups for those who wait for a conversation to grow.
//!
//! One entry for each conversation that somebody waits for, none for the others, so that a replica
//! pays for its readers and not for its history. A hint carries no truth: whoever wakes up reads the
//! log.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::{
    domain::ConversationDigest,
    grown::{Grown, Listener},
};

/// Who waits for what; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Hints(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    waiting: Mutex<HashMap<ConversationDigest, Awaited>>,
    /// The set of conversations that are waited for has changed.
    changed: Notify,
}

/// A conversation that somebody waits for.
#[derive(Debug, Default)]
struct Awaited {
    /// Hints so far, of both kinds.
    all: Grown,
    /// How often its turn was asked to stop. The turn's owner waits for this alone: of its own appends it
    /// need not be told.
    cancels: Grown,
    readers: usize,
}

/// One reader's wake-up, gone when dropped.
#[derive(Debug)]
pub struct Hint {
    conversation: ConversationDigest,
    all: Listener,
    cancels: Listener,
    hints: Hints,
}

impl Hints {
    /// Waits for the conversation.
    pub fn subscribe(&self, conversation: ConversationDigest) -> Hint {
        let mut waiting = self.lock();
        let awaited = waiting.entry(conversation).or_default();
        awaited.readers += 1;
        if awaited.readers == 1 {
            self.0.changed.notify_one();
        }
        let (all, cancels) = (awaited.all.listen(), awaited.cancels.listen());
        Hint { conversation, all, cancels, hints: self.clone() }
    }

    /// The conversation has grown.
    pub fn grown(&self, conversation: ConversationDigest) {
        self.hint(conversation, false);
    }

    /// The conversation's turn was asked to stop, or may have been.
    pub fn cancelled(&self, conversation: ConversationDigest) {
        self.hint(conversation, true);
    }

    /// Ends when the set of conversations that are waited for has changed since the last call.
    pub(super) async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// The conversations that are waited for and not in `known`, and those in `known` that are not
    /// waited for any more.
    pub(super) fn difference(
        &self,
        known: &HashSet<ConversationDigest>,
    ) -> (Vec<ConversationDigest>, Vec<ConversationDigest>) {
        let waiting = self.lock();
        let joined = waiting.keys().filter(|key| !known.contains(key)).copied().collect();
        let left = known.iter().filter(|key| !waiting.contains_key(key)).copied().collect();
        (joined, left)
    }

    fn hint(&self, conversation: ConversationDigest, cancel: bool) {
        if let Some(awaited) = self.lock().get(&conversation) {
            awaited.all.add();
            if cancel {
                awaited.cancels.add();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ConversationDigest, Awaited>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hint {
    /// Ends when there was a hint since the last call, or since the subscription.
    pub async fn changed(&mut self) {
        self.all.more().await;
    }

    /// Ends when the turn was asked to stop, or may have been, since the last call, or since the
    /// subscription.
    pub async fn cancelled(&mut self) {
        self.cancels.more().await;
    }

    /// How many hints there were since the first subscription.
    pub fn count(&self) -> u64 {
        self.all.count()
    }
}

impl Drop for Hint {
    fn drop(&mut self) {
        let mut waiting = self.hints.lock();
        let Some(awaited) = waiting.get_mut(&self.conversation) else { return };
        awaited.readers -= 1;
        if awaited.readers == 0 {
            waiting.remove(&self.conversation);
            self.hints.0.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn readers_of_one_conversation_wake_up_together_and_leave_nothing_behind() {
        let hints = Hints::default();
        let (one, other) = (ConversationDigest([1; 16]), ConversationDigest([2; 16]));
        let (mut a, mut b) = (hints.subscribe(one), hints.subscribe(one));
        hints.grown(other);
        assert!(a.changed().now_or_never().is_none());
        hints.grown(one);
        a.changed().await;
        b.changed().await;
        assert!(a.changed().now_or_never().is_none());
        assert!(b.cancelled().now_or_never().is_none());
        hints.cancelled(one);
        b.changed().await;
        b.cancelled().await;
        assert!(b.cancelled().now_or_never().is_none());
        assert_eq!(b.count(), 2);
        drop(a);
        assert_eq!(hints.lock().len(), 1);
        drop(b);
        assert_eq!(hints.lock().len(), 0);
    }
}
