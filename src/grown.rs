//! A count that wakes those who wait for more.
//!
//! For each event there are some of these, and of each it is mostly one task that waits. A channel
//! (`tokio::sync::watch`) locks eight lists of waiting tasks for each change.

use std::{
    future::poll_fn,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
};

use futures_util::task::AtomicWaker;

/// The count, from 0; clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Grown(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    count: AtomicU64,
    tasks: Mutex<Vec<Arc<AtomicWaker>>>,
}

/// One who waits for more, until it is dropped.
#[derive(Debug)]
pub(crate) struct Listener {
    grown: Grown,
    /// Once it has waited: many never do.
    task: Option<Arc<AtomicWaker>>,
    seen: u64,
}

impl Grown {
    /// One more.
    pub(crate) fn add(&self) {
        // Before the tasks are woken, which look at it after they have said where they are to be woken.
        self.0.count.fetch_add(1, Ordering::SeqCst);
        for task in &*self.tasks() {
            task.wake();
        }
    }

    /// Listens from now on.
    pub(crate) fn listen(&self) -> Listener {
        Listener { grown: self.clone(), task: None, seen: self.count() }
    }

    fn count(&self) -> u64 {
        self.0.count.load(Ordering::SeqCst)
    }

    fn tasks(&self) -> MutexGuard<'_, Vec<Arc<AtomicWaker>>> {
        self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listener {
    /// The count.
    pub(crate) fn count(&self) -> u64 {
        self.grown.count()
    }

    /// Takes note of what there is, as if it had been waited for.
    pub(crate) fn see(&mut self) {
        self.seen = self.count();
    }

    /// Ends when there is more than was seen, and takes note of it. It can be dropped and called again.
    pub(crate) async fn more(&mut self) {
        let Self { grown, task, seen } = self;
        let task = task.get_or_insert_with(|| {
            let task = Arc::<AtomicWaker>::default();
            grown.tasks().push(Arc::clone(&task));
            task
        });
        poll_fn(|context| {
            task.register(context.waker());
            let count = grown.count();
            if count == *seen {
                return Poll::Pending;
            }
            *seen = count;
            Poll::Ready(())
        })
        .await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let Some(task) = &self.task else { return };
        self.grown.tasks().retain(|other| !Arc::ptr_eq(other, task));
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn each_listener_hears_of_what_came_since_and_once() {
        let grown = Grown::default();
        grown.add();
        let (mut one, mut other) = (grown.listen(), grown.listen());
        assert!(one.more().now_or_never().is_none());
        let add = async {
            grown.add();
            grown.add();
        };
        tokio::join!(one.more(), add);
        assert!(one.more().now_or_never().is_none());
        other.see();
        assert!(other.more().now_or_never().is_none());
        assert_eq!(other.count(), 3);
        assert_eq!(grown.tasks().len(), 2);
        drop((one, other));
        assert!(grown.tasks().is_empty());
    }
}
