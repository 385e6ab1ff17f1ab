//! Who reads what on this replica, and which turns run on it.
//!
//! A turn that nobody reads is stopped after `store.detach_grace`. Its owner sees its own readers
//! here, at once; those of other replicas leave a mark in the store. And its readers here get what it has
//! logged from memory.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use super::recent::{Listener, Recent};
use crate::domain::ConversationDigest;

/// The conversations that are read or run here; clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Watchers(Arc<Mutex<HashMap<ConversationDigest, Conversation>>>);

#[derive(Debug, Default)]
struct Conversation {
    readers: watch::Sender<usize>,
    runs: usize,
    recent: Recent,
}

impl Conversation {
    fn is_unused(&self) -> bool {
        self.runs == 0 && *self.readers.borrow() == 0
    }
}

/// Somebody reads, until it is dropped.
#[derive(Debug)]
pub(super) struct ReaderGuard {
    watchers: Watchers,
    conversation: ConversationDigest,
    recent: Listener,
}

/// A turn runs, until it is dropped.
#[derive(Debug)]
pub(super) struct RunGuard {
    watchers: Watchers,
    conversation: ConversationDigest,
    readers: watch::Receiver<usize>,
    recent: Recent,
}

impl Watchers {
    pub(super) fn reads(&self, conversation: ConversationDigest) -> ReaderGuard {
        let mut all = self.lock();
        let entry = all.entry(conversation).or_default();
        entry.readers.send_modify(|readers| *readers += 1);
        let recent = entry.recent.listen();
        ReaderGuard { watchers: self.clone(), conversation, recent }
    }

    pub(super) fn runs(&self, conversation: ConversationDigest) -> RunGuard {
        let mut all = self.lock();
        let entry = all.entry(conversation).or_default();
        entry.runs += 1;
        let (readers, recent) = (entry.readers.subscribe(), entry.recent.clone());
        RunGuard { watchers: self.clone(), conversation, readers, recent }
    }

    /// Whether a turn of the conversation runs here.
    pub(super) fn is_run(&self, conversation: ConversationDigest) -> bool {
        self.lock().get(&conversation).is_some_and(|entry| entry.runs > 0)
    }

    fn leave(&self, conversation: ConversationDigest, apply: impl FnOnce(&mut Conversation)) {
        let mut all = self.lock();
        if let Some(entry) = all.get_mut(&conversation) {
            apply(entry);
            if entry.is_unused() {
                all.remove(&conversation);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ConversationDigest, Conversation>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReaderGuard {
    /// What is logged here.
    pub(super) fn recent(&mut self) -> &mut Listener {
        &mut self.recent
    }
}

impl Drop for ReaderGuard {
    fn drop(&mut self) {
        self.watchers.leave(self.conversation, |entry| {
            entry.readers.send_modify(|readers| *readers -= 1);
        });
    }
}

impl RunGuard {
    /// How many read here now.
    pub(super) fn readers(&self) -> usize {
        *self.readers.borrow()
    }

    /// Tells when that changes.
    pub(super) fn subscribe(&self) -> watch::Receiver<usize> {
        self.readers.clone()
    }

    /// Where what it logs is shown to its readers here.
    pub(super) fn recent(&self) -> &Recent {
        &self.recent
    }
}

impl Drop for RunGuard {
    fn drop(&mut self) {
        self.watchers.leave(self.conversation, |entry| entry.runs -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_run_sees_its_readers_come_and_go_and_nothing_stays() {
        let watchers = Watchers::default();
        let conversation = ConversationDigest([7; 16]);
        let run = watchers.runs(conversation);
        let mut changed = run.subscribe();
        assert!(watchers.is_run(conversation));
        assert_eq!(run.readers(), 0);
        let reader = watchers.reads(conversation);
        changed.changed().await.expect("it lives");
        assert_eq!(run.readers(), 1);
        drop(reader);
        changed.changed().await.expect("it lives");
        assert_eq!(run.readers(), 0);
        drop(run);
        assert!(!watchers.is_run(conversation));
        assert!(watchers.lock().is_empty());
    }
}
