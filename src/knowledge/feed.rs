//! Feeds the index: from the base and the log at start, from the log's end while running.

use std::{sync::Arc, time::Duration};

use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::{
    Base, Current, Error, Knowledge, Metrics, confidence::Calibration, evaluation, index::Index,
};
use crate::{
    domain::{Change, Entry, Revision},
    store::KnowledgeLog,
};

/// Changes that are read and made visible at once.
const BATCH: usize = 10_000;
/// How often the log is looked at without a hint that it grew.
const LOOK: Duration = Duration::from_secs(1);
/// Confidence is fitted again once this share of the entries has changed.
const REFIT: f64 = 0.1;

/// Keeps a knowledge base up to date; run it as a task.
#[derive(Debug)]
pub struct Feed {
    knowledge: Knowledge,
    store: Arc<dyn KnowledgeLog>,
    applied: Revision,
    /// Changes since confidence was fitted.
    unfitted: usize,
    reloads: mpsc::Receiver<Reload>,
}

#[derive(Debug)]
struct Reload {
    base: Base,
    done: oneshot::Sender<Result<u64, Error>>,
}

/// Asks the feed to take another base.
#[derive(Debug, Clone)]
pub struct Reloader(mpsc::Sender<Reload>);

impl Reloader {
    /// Reads `base`, and replaces the current one with it if it is good; what was taught stays.
    /// Returns how many entries there are now, or `None` if the feed has ended.
    pub async fn reload(&self, base: Base) -> Option<Result<u64, Error>> {
        let (done, outcome) = oneshot::channel();
        self.0.send(Reload { base, done }).await.ok()?;
        outcome.await.ok()
    }
}

impl Feed {
    /// Builds the index of `base` and all that the log holds, and fits confidence on it.
    pub async fn open(
        base: Base,
        store: Arc<dyn KnowledgeLog>,
        registry: &mut Registry,
    ) -> Result<(Knowledge, Self, Reloader), Error> {
        let (current, applied) = build(base, &*store).await?;
        let knowledge = Knowledge::new(current, applied, Metrics::new(registry));
        let (sender, reloads) = mpsc::channel(1);
        knowledge.log_reaches(applied.max(*store.knowledge_revision().borrow()));
        knowledge.followed();
        let feed = Self { knowledge: knowledge.clone(), store, applied, unfitted: 0, reloads };
        Ok((knowledge, feed, Reloader(sender)))
    }

    /// Follows the log until `closing` is cancelled.
    pub async fn run(mut self, closing: CancellationToken) {
        let mut revision = self.store.knowledge_revision();
        loop {
            tokio::select! {
                () = closing.cancelled() => return,
                reload = self.reloads.recv() => match reload {
                    Some(Reload { base, done }) => {
                        let _ = done.send(self.reload(base).await);
                    }
                    None => return closing.cancelled().await,
                },
                _ = revision.changed() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
            self.knowledge.log_reaches(self.applied.max(*revision.borrow_and_update()));
            if let Err(error) = self.follow().await {
                // The store reports its own state; the log is looked at again in a moment.
                error!(%error, source = std::error::Error::source(&error), "knowledge is behind");
                tokio::time::sleep(LOOK).await;
            } else {
                self.knowledge.log_reaches(self.applied.max(*revision.borrow()));
                self.knowledge.followed();
            }
        }
    }

    async fn follow(&mut self) -> Result<(), Error> {
        loop {
            let batch = self.store.read_knowledge(self.applied, BATCH).await?;
            let Some((newest, _)) = batch.last() else {
                break;
            };
            let newest = *newest;
            self.unfitted += batch.len();
            let changes: Vec<Change> = batch.into_iter().map(|(_, change)| change).collect();
            let index = self.knowledge.current().index;
            blocking(move || Ok(index.apply(changes)?)).await?;
            self.applied = newest;
            self.knowledge.reached(newest);
        }
        #[expect(clippy::cast_precision_loss, reason = "counts of entries")]
        let changed = self.unfitted as f64 > self.knowledge.entries() as f64 * REFIT;
        if self.unfitted > 0 && changed {
            self.unfitted = 0;
            let index = self.knowledge.current().index;
            let calibration = blocking(move || calibrate(&index.entries())).await?;
            self.knowledge.replace(|current| current.calibration = calibration);
        }
        Ok(())
    }

    async fn reload(&mut self, base: Base) -> Result<u64, Error> {
        let (current, applied) = build(base, &*self.store).await?;
        let entries = current.index.len();
        self.applied = applied;
        self.unfitted = 0;
        self.knowledge.replace(|now| *now = current);
        self.knowledge.reached(applied);
        Ok(entries)
    }
}

async fn build(base: Base, store: &dyn KnowledgeLog) -> Result<(Current, Revision), Error> {
    let start = std::time::Instant::now();
    let index = blocking(move || Ok(Arc::new(Index::of_entries(base.load()?)?))).await?;
    let mut applied = Revision(0);
    loop {
        let batch = store.read_knowledge(applied, BATCH).await?;
        let Some((newest, _)) = batch.last() else {
            break;
        };
        applied = *newest;
        let changes: Vec<Change> = batch.into_iter().map(|(_, change)| change).collect();
        let index = Arc::clone(&index);
        blocking(move || Ok(index.apply(changes)?)).await?;
    }
    let calibration = {
        let index = Arc::clone(&index);
        blocking(move || calibrate(&index.entries())).await?
    };
    info!(
        entries = index.len(),
        revision = applied.0,
        calibrated = calibration.is_fitted(),
        seconds = start.elapsed().as_secs_f64(),
        "knowledge is loaded"
    );
    Ok((Current { index, calibration }, applied))
}

fn calibrate(entries: &[Arc<Entry>]) -> Result<Calibration, Error> {
    Ok(evaluation::calibration(&evaluation::trials(entries)?))
}

/// Runs index work, which takes up to seconds, off the async threads.
async fn blocking<T, F>(work: F) -> Result<T, Error>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, Error> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(panic) => Err(Error::Index(tantivy::TantivyError::SystemError(panic.to_string()))),
    }
}

#[cfg(test)]
mod tests;
