//! Phases, signals, and the tasks that have to end before the process does.
//!
//! A stop has two strengths. `draining` is soft: finish what runs, take nothing new. `closing` is
//! hard: drop what is left. The first SIGTERM or SIGINT asks for a stop, a second one hurries it to
//! its hard end. A task that dies although nobody asked for a stop asks for one itself, and then the
//! process exits with a failure: a server without its accept loop must not look alive.
//!
//! Every task is spawned here, with a name, so that a stop can wait for all of them.

use std::{
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures_util::FutureExt as _;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
    time::Instant,
};
use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFuture},
    task::TaskTracker,
};
use tracing::{Instrument as _, Span, error, info, warn};

/// The life of the process; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Lifecycle(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// A stop was asked for: not ready any more, but still serving.
    stopping: CancellationToken,
    /// Take nothing new, finish what runs.
    draining: CancellationToken,
    /// Drop what is left.
    closing: CancellationToken,
    /// Nobody is served any more.
    closed: CancellationToken,
    /// Tasks that serve peers; the drain waits for them.
    services: TaskTracker,
    /// Tasks that those rely on; they end after them.
    support: TaskTracker,
    /// Tasks that all of those stand on, to their last word.
    foundation: TaskTracker,
    crash: OnceLock<&'static str>,
    /// When `closing` will be cancelled at the latest; set before `draining` is cancelled.
    end: OnceLock<Instant>,
}

/// How long the parts of a stop may take.
#[derive(Debug, Clone, Copy)]
pub struct Timeline {
    /// From the signal to the drain: time for load balancers to notice.
    pub delay: Duration,
    /// From the drain to the hard end: time for calls to finish.
    pub grace: Duration,
}

/// Time for tasks to end once they have been told to drop everything; none of them waits on a peer.
const CLOSING: Duration = Duration::from_secs(2);
/// Time for the tasks that those stood on.
const CLOSED: Duration = Duration::from_millis(500);

impl Lifecycle {
    /// A new life.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks for a stop. The first call counts.
    pub fn stop(&self) {
        self.0.stopping.cancel();
    }

    /// Ends once a stop was asked for.
    pub fn stopping(&self) -> WaitForCancellationFuture<'_> {
        self.0.stopping.cancelled()
    }

    /// The soft token: cancelled when nothing new must be taken.
    pub fn draining(&self) -> &CancellationToken {
        &self.0.draining
    }

    /// Whether nothing new must be taken: asked for each call, where the token would lock.
    pub fn is_draining(&self) -> bool {
        self.0.end.get().is_some()
    }

    /// The hard token: cancelled when what is left must be dropped.
    pub fn closing(&self) -> &CancellationToken {
        &self.0.closing
    }

    /// The last token: cancelled when everything that serves, or supports what serves, has ended.
    pub fn closed(&self) -> &CancellationToken {
        &self.0.closed
    }

    /// How long a drain that has begun lasts at most; nothing before it has.
    pub fn time_left(&self) -> Option<Duration> {
        let end = self.0.end.get()?;
        Some(end.saturating_duration_since(Instant::now()))
    }

    /// The name of the task whose death began the stop, if one did.
    pub fn crash(&self) -> Option<&'static str> {
        self.0.crash.get().copied()
    }

    /// Runs `task`, a service to peers, until it has drained. Ending before the drain, or a panic, is
    /// a crash. A stop waits for it as long as the grace lasts.
    pub fn spawn_service<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.spawn(name, &self.0.services, self.0.draining.clone(), task);
    }

    /// Runs `task`, which services rely on, until everything has drained; it has to end when
    /// `closing` is cancelled. Ending before that, or a panic, is a crash.
    pub fn spawn_support<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.spawn(name, &self.0.support, self.0.closing.clone(), task);
    }

    /// Runs `task`, which everything stands on, such as the connections of a store: what is dropped
    /// hard may still have a last word to write. It has to end when `closed` is cancelled. Ending
    /// before that, or a panic, is a crash.
    pub fn spawn_foundation<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.spawn(name, &self.0.foundation, self.0.closed.clone(), task);
    }

    /// Runs `work` for one peer: a connection, or a call. It may end at any time, and a panic ends
    /// only itself: one peer's bug must not be everybody's. A stop waits for it like for a service.
    #[expect(clippy::disallowed_methods, reason = "one of the places where tasks are spawned")]
    pub fn spawn_work<F>(&self, work: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        tokio::spawn(self.0.services.track_future(work));
    }

    /// Does `work` here, and goes on with it in a task of its own once it has to wait: whoever wants it
    /// may go away, and it is not left half done. What need not wait costs no task. `None` if it panics
    /// there, or the runtime ends. It comes in its box, since it would be copied with each step on the way
    /// into one.
    pub async fn see_through<T: Send + 'static>(
        &self,
        mut work: Pin<Box<dyn Future<Output = T> + Send>>,
    ) -> Option<T> {
        if let Some(done) = work.as_mut().now_or_never() {
            return Some(done);
        }
        let (sender, done) = oneshot::channel();
        let rest = async move {
            let _ = sender.send(work.await);
        };
        self.spawn_work(rest.instrument(Span::current()));
        done.await.ok()
    }

    #[expect(clippy::disallowed_methods, reason = "one of the places where tasks are spawned")]
    fn spawn<F>(
        &self,
        name: &'static str,
        tracker: &TaskTracker,
        may_end: CancellationToken,
        task: F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let this = self.clone();
        let span = tracing::debug_span!("task", task = name);
        let watched = async move {
            match AssertUnwindSafe(task).catch_unwind().await {
                Err(_) => this.crashed(name, "panicked"),
                Ok(()) if !may_end.is_cancelled() => this.crashed(name, "ended"),
                Ok(()) => {}
            }
        };
        tokio::spawn(tracker.track_future(watched.instrument(span)));
    }

    fn crashed(&self, name: &'static str, how: &'static str) {
        error!(task = name, "task {how}, stopping");
        // Only the first one is told; the others may follow from it.
        let _ = self.0.crash.set(name);
        self.stop();
    }

    /// Turns SIGTERM and SIGINT into a stop. Fails if the handlers cannot be installed.
    pub fn handle_signals(&self) -> std::io::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let this = self.clone();
        self.spawn_support("signals", async move {
            tokio::select! {
                name = either(&mut terminate, &mut interrupt) => {
                    info!(signal = name, "stopping; a second signal ends at once");
                    this.stop();
                }
                () = this.0.closing.cancelled() => return,
            }
            tokio::select! {
                name = either(&mut terminate, &mut interrupt) => {
                    warn!(signal = name, "second signal, ending at once");
                    let _ = this.0.end.set(Instant::now());
                    this.0.draining.cancel();
                    this.0.closing.cancel();
                }
                () = this.0.closing.cancelled() => {}
            }
        });
        Ok(())
    }

    /// Takes the process from the request to stop to the end of its tasks, in at most
    /// `delay + grace` and two and a half seconds, whatever the tasks do.
    pub async fn wind_down(&self, timeline: Timeline) {
        let Inner { draining, closing, closed, services, support, foundation, .. } = &*self.0;
        let _ = tokio::time::timeout(timeline.delay, draining.cancelled()).await;
        info!(grace_seconds = timeline.grace.as_secs_f64(), "draining");
        let _ = self.0.end.set(Instant::now() + timeline.grace);
        draining.cancel();
        services.close();
        tokio::select! {
            () = services.wait() => {}
            () = closing.cancelled() => {}
            () = tokio::time::sleep(timeline.grace) => warn!("grace is over, dropping what is left"),
        }
        closing.cancel();
        support.close();
        let ended = async { tokio::join!(services.wait(), support.wait()) };
        if tokio::time::timeout(CLOSING, ended).await.is_err() {
            error!(tasks = services.len() + support.len(), "tasks did not end");
        }
        closed.cancel();
        foundation.close();
        if tokio::time::timeout(CLOSED, foundation.wait()).await.is_err() {
            error!(tasks = foundation.len(), "tasks that others stand on did not end");
        }
    }
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMELINE: Timeline =
        Timeline { delay: Duration::from_secs(5), grace: Duration::from_secs(25) };

    #[tokio::test(start_paused = true)]
    async fn what_is_dropped_hard_can_still_stand_on_the_foundation() {
        let life = Lifecycle::new();
        let (words, mut heard) = tokio::sync::mpsc::channel(1);
        let closed = life.closed().clone();
        life.spawn_foundation("store", async move {
            tokio::select! {
                biased;
                word = heard.recv() => assert_eq!(word, Some("last word")),
                () = closed.cancelled() => panic!("it ended too early"),
            }
            closed.cancelled().await;
        });
        let closing = life.closing().clone();
        life.spawn_work(async move {
            closing.cancelled().await;
            words.send("last word").await.expect("it listens");
        });
        life.stop();
        life.wind_down(TIMELINE).await;
        assert_eq!(life.crash(), None);
        assert!(life.0.foundation.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_waits_for_the_delay_and_then_for_the_tasks() {
        let life = Lifecycle::new();
        let draining = life.draining().clone();
        life.spawn_service("serve", async move {
            draining.cancelled().await;
            tokio::time::sleep(Duration::from_secs(3)).await;
        });
        let start = tokio::time::Instant::now();
        life.stop();
        life.wind_down(TIMELINE).await;
        assert_eq!(start.elapsed().as_secs(), 8);
        assert_eq!(life.crash(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_at_its_deadline_whatever_the_tasks_do() {
        let life = Lifecycle::new();
        life.spawn_service("deaf", std::future::pending());
        let start = tokio::time::Instant::now();
        life.stop();
        life.wind_down(TIMELINE).await;
        assert_eq!(start.elapsed().as_secs(), 5 + 25 + CLOSING.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_ends_before_the_drain_is_a_crash() {
        let life = Lifecycle::new();
        life.spawn_service("accept", async {});
        life.stopping().await;
        assert_eq!(life.crash(), Some("accept"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_a_crash() {
        let life = Lifecycle::new();
        life.spawn_support("bug", async { panic!("on purpose") });
        life.stopping().await;
        assert_eq!(life.crash(), Some("bug"));
    }
}
