//! The way in which a part of what a task waits for wakes it.
//!
//! A model says something every few milliseconds, and its turn logs it in the beat: in between it wants to
//! sleep on. And of what hardly ever happens it wants to be told, and not to ask each time that it is woken
//! for something else: to ask three channels costs as much as to take a piece of text.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;

/// A waker for one part of what a task waits for.
#[derive(Debug)]
pub(super) struct Bell {
    shared: Arc<Shared>,
    waker: Waker,
}

#[derive(Debug, Default)]
struct Shared {
    muted: AtomicBool,
    rung: AtomicBool,
    task: AtomicWaker,
}

impl Bell {
    pub(super) fn new() -> Self {
        let shared = Arc::new(Shared { rung: AtomicBool::new(true), ..Shared::default() });
        Self { waker: Waker::from(Arc::clone(&shared)), shared }
    }

    /// Has the task sleep on whoever rings. What rings meanwhile is not remembered: whoever mutes has to
    /// look again by itself.
    pub(super) fn mute(&self) {
        self.shared.muted.store(true, Ordering::Relaxed);
    }

    /// Polls something that wakes the task by this bell, until it is muted.
    pub(super) fn listen<T>(
        &self,
        context: &mut Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> T,
    ) -> T {
        self.shared.task.register(context.waker());
        // Before the poll, which sees what has rung until now. Each side changes it, and does not only look,
        // so that one of them comes second and knows of the other.
        self.shared.muted.swap(false, Ordering::SeqCst);
        poll(&mut Context::from_waker(&self.waker))
    }

    /// Polls something only if it has rung since the last time, as it has at first. What is pending then
    /// has to ring.
    pub(super) fn answer<T>(
        &self,
        context: &mut Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        self.shared.task.register(context.waker());
        if self.shared.rung.swap(false, Ordering::SeqCst) {
            poll(&mut Context::from_waker(&self.waker))
        } else {
            Poll::Pending
        }
    }

    /// Has the next [`Self::answer`] look: something was put in the place of what was done.
    pub(super) fn ring(&self) {
        self.shared.rung.store(true, Ordering::SeqCst);
    }
}

impl Wake for Shared {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::SeqCst);
        if !self.muted.fetch_or(false, Ordering::SeqCst) {
            self.task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, sync::atomic::AtomicUsize};

    use tokio::sync::oneshot;

    use super::*;

    #[derive(Default)]
    struct Task(AtomicUsize);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_task_sleeps_while_it_is_muted_and_misses_nothing_after_it() {
        let task = Arc::new(Task::default());
        let waker = Waker::from(Arc::clone(&task));
        let mut context = Context::from_waker(&waker);
        let bell = Bell::new();
        for (muted, woken) in [(true, 0), (false, 1), (true, 1), (false, 2)] {
            let (tell, told) = oneshot::channel();
            let mut told = pin!(told);
            let mut look = || bell.listen(&mut context, |context| told.as_mut().poll(context));
            assert!(look().is_pending());
            if muted {
                bell.mute();
            }
            tell.send(()).expect("it listens");
            assert_eq!(task.0.load(Ordering::SeqCst), woken);
            assert_eq!(look(), Poll::Ready(Ok(())));
        }
    }

    #[test]
    fn what_has_not_rung_is_not_asked() {
        let mut context = Context::from_waker(Waker::noop());
        let bell = Bell::new();
        let (tell, told) = oneshot::channel();
        let (mut told, mut asked) = (pin!(told), 0);
        let mut look = || {
            let polled = bell.answer(&mut context, |context| {
                asked += 1;
                told.as_mut().poll(context)
            });
            (polled, asked)
        };
        assert_eq!(look(), (Poll::Pending, 1));
        assert_eq!(look(), (Poll::Pending, 1));
        bell.ring();
        assert_eq!(look(), (Poll::Pending, 2));
        tell.send(()).expect("it listens");
        assert_eq!(look(), (Poll::Ready(Ok(())), 3));
    }
}
