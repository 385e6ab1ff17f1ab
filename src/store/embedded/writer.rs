//! The thread that writes.
//!
//! It takes all jobs that wait for it into one transaction (group commit), so that many callers share
//! one fsync, and answers them after it. A job that is refused harms no other. One that meets damage, or
//! panics, may have been in the middle of something: the transaction is given up, that job refused, and
//! the others are done again without it. A database that fails fails all of them, and then the file is
//! opened again, at most once a second, until that works. Meanwhile the store is down and says so to
//! `health`.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use prometheus_client::{
    metrics::{
        counter::Counter,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use tokio::sync::{
    mpsc::{self, error::TryRecvError},
    oneshot, watch,
};
use tracing::{error, info, warn};

use super::{
    super::{Error, hints::Hints},
    file::{File, caught, guarded},
    leases::Leases,
    sweep::{Swept, sweep},
    tables::{Effects, Fault, Tables, write},
};
use crate::{domain::Revision, health::Dependency};

/// Jobs that wait, and share a commit, at most; more wait in their callers. With a thousand turns nobody has to
/// wait for the second commit: a sync takes as long as hundreds of jobs.
pub(super) const GROUP: usize = 1024;
/// How often a store that is down is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often old things are looked for.
const SWEEP: Duration = Duration::from_mins(1);

/// A change that somebody waits for. It is dropped, and its caller learns so, if the store is down.
pub(super) type Job = Box<dyn FnMut(Step<'_, '_>) -> Result<(), Error> + Send>;

/// What a job is to do.
pub(super) enum Step<'s, 't> {
    /// Its change; once more if the transaction of the last time was given up. An error is one of the
    /// database.
    Run(&'s mut Tables<'t>),
    /// What came of it is on the disk, and the caller can know.
    Answer,
    /// It cannot be done, and the caller can know why.
    Refuse(Error),
}

/// A job for the writer, and where its outcome arrives.
pub(super) fn job<T: Send + 'static>(
    mut change: impl FnMut(&mut Tables<'_>) -> Result<T, Fault> + Send + 'static,
) -> (Job, oneshot::Receiver<Result<T, Error>>) {
    let (caller, outcome) = oneshot::channel();
    let (mut caller, mut done) = (Some(caller), None);
    let job = move |step: Step<'_, '_>| {
        let answer = match step {
            Step::Run(tables) => {
                done = Some(match change(tables) {
                    Ok(outcome) => Ok(outcome),
                    Err(Fault::Refused(error)) => Err(error),
                    Err(Fault::Database(error)) => return Err(error),
                });
                return Ok(());
            }
            Step::Answer => done.take(),
            Step::Refuse(error) => Some(Err(error)),
        };
        if let (Some(caller), Some(answer)) = (caller.take(), answer) {
            let _ = caller.send(answer);
        }
        Ok(())
    };
    (Box::new(job), outcome)
}

pub(super) struct Writer {
    pub(super) file: Arc<File>,
    pub(super) queue: mpsc::Receiver<Job>,
    pub(super) revision: watch::Sender<Revision>,
    pub(super) hints: Hints,
    pub(super) leases: Arc<Leases>,
    pub(super) retention: Duration,
    pub(super) dependency: Dependency,
    pub(super) metrics: Metrics,
}

impl Writer {
    pub(super) fn run(mut self) {
        let mut sweeps = Instant::now() + SWEEP;
        while let Some(group) = self.next(sweeps) {
            let written = if group.is_empty() { Ok(()) } else { self.group(group) };
            let swept = written.and_then(|()| {
                if Instant::now() >= sweeps {
                    let more = self.sweep()?.more;
                    sweeps = Instant::now() + if more { Duration::ZERO } else { SWEEP };
                }
                Ok(())
            });
            let Err(error) = swept else { continue };
            error!(%error, "the store failed, it is down until a write succeeds");
            self.metrics.failures.inc();
            self.dependency.down();
            if !self.recover() {
                return;
            }
        }
        self.settle();
    }

    /// A file that is closed has nothing in its journal, for whoever looks at it.
    fn settle(&self) {
        let settled = self.file.with(|database| {
            write(database, &self.file.journal, |tables| {
                tables.settle_all().map_err(Fault::into_error)
            })
        });
        if let Err(error) = settled {
            warn!(%error, "deltas are left in the journal, the next start puts them in their place");
        }
    }

    /// The jobs that wait, as many as share a commit; none if there are none until `until`. `None` if
    /// the store is closed. Whoever sends a job unparks this thread after it.
    fn next(&mut self, until: Instant) -> Option<Vec<Job>> {
        let mut group = Vec::new();
        loop {
            match self.queue.try_recv() {
                Ok(job) => {
                    group.push(job);
                    if group.len() == GROUP {
                        return Some(group);
                    }
                }
                Err(_) if !group.is_empty() => return Some(group),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Some(group);
                    }
                    thread::park_timeout(left);
                }
            }
        }
    }

    /// Runs a group in one transaction, and answers its callers. They learn of a failure by the loss of
    /// their jobs.
    fn group(&self, mut group: Vec<Job>) -> Result<(), Error> {
        let start = Instant::now();
        let effects = loop {
            let mut spoilt = None;
            let written = self.file.with(|database| {
                write(database, &self.file.journal, |tables| {
                    for (index, job) in group.iter_mut().enumerate() {
                        let error = match caught(|| job(Step::Run(tables))) {
                            Ok(Ok(())) => continue,
                            Ok(Err(error @ Error::Corrupt(_))) => error,
                            Ok(Err(error)) => return Err(error),
                            // Its repetition would do the same.
                            Err(panic) => Error::Corrupt(panic),
                        };
                        spoilt = Some(index);
                        return Err(error);
                    }
                    Ok(())
                })
            });
            match (written, spoilt) {
                (Ok(((), effects)), _) => break effects,
                (Err(error @ Error::Corrupt(_)), Some(index)) => {
                    error!(%error, "a change is refused, all others go on");
                    self.metrics.failures.inc();
                    let _ = group.remove(index)(Step::Refuse(error));
                }
                (Err(error), _) => return Err(error),
            }
        };
        if effects.changed {
            self.metrics.commits.observe(start.elapsed().as_secs_f64());
        }
        self.tell(effects);
        for mut job in group {
            let _ = job(Step::Answer);
        }
        Ok(())
    }

    fn tell(&self, effects: Effects) {
        // Before the next group, in which a reap may wait: an owner who waits for a slow disk is alive.
        for conversation in effects.owned {
            self.leases.renew(conversation);
        }
        if let Some(newest) = effects.revision {
            self.revision.send_replace(newest);
        }
        for conversation in effects.grown {
            self.hints.grown(conversation);
        }
        for conversation in effects.cancelled {
            self.hints.cancelled(conversation);
        }
    }

    fn sweep(&self) -> Result<Swept, Error> {
        self.leases.forget();
        let swept = self.file.with(|database| {
            write(database, &self.file.journal, |tables| {
                sweep(tables, self.retention, SystemTime::now()).map_err(Fault::into_error)
            })
        });
        let swept = match swept {
            Ok((swept, _)) => swept,
            // What cannot be read is not forgotten; what can be is still of use.
            Err(error @ Error::Corrupt(_)) => {
                error!(%error, "old conversations cannot be forgotten");
                self.metrics.failures.inc();
                Swept::default()
            }
            Err(error) => return Err(error),
        };
        self.metrics.swept.inc_by(swept.conversations);
        Ok(swept)
    }

    /// Tries to open the file again until that works, dropping jobs meanwhile. False if the store is
    /// closed before that.
    fn recover(&mut self) -> bool {
        loop {
            let retry = Instant::now() + RETRY;
            loop {
                match self.next(retry) {
                    Some(group) if group.is_empty() => break,
                    Some(_) => {}
                    None => return false,
                }
            }
            match guarded(|| self.file.reopen()) {
                Ok(()) => {
                    info!("the store is open again");
                    self.dependency.up();
                    return true;
                }
                Err(error) => warn!(%error, "the store is still down"),
            }
        }
    }
}

pub(super) struct Metrics {
    commits: Histogram,
    failures: Counter,
    swept: Counter,
}

impl Metrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            commits: Histogram::new(exponential_buckets(0.000_25, 2.0, 14)),
            failures: Counter::default(),
            swept: Counter::default(),
        };
        let registry = registry.sub_registry_with_prefix("store");
        registry.register_with_unit(
            "commit",
            "Duration of group commits, fsync included",
            Unit::Seconds,
            metrics.commits.clone(),
        );
        registry.register(
            "failures",
            "Group commits that failed, and changes that met damage",
            metrics.failures.clone(),
        );
        registry.register(
            "swept_conversations",
            "Conversations that were forgotten after store.retention",
            metrics.swept.clone(),
        );
        metrics
    }
}
