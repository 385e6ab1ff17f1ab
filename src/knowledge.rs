//! The knowledge base: what the bot can answer, found by search.
//!
//! The truth is a base (a JSONL file or the built-in sample) and the knowledge log in the store. The
//! search index is only a cache of it, in memory, made anew at each start and whenever the base
//! changes. A replica that restarts, or that another one taught something, ends up with the same
//! answers.

pub mod analyzer;
mod base;
mod confidence;
pub mod evaluation;
mod feed;
mod index;

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    metrics::{
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use tokio::sync::watch;

pub use self::{
    base::{Base, BaseError},
    feed::{Feed, Reloader},
};
use self::{confidence::Calibration, index::Index};
use crate::{
    domain::{AnswerId, Entry, Revision},
    error::Kind,
    store,
};

/// Why the knowledge base could not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The index failed; it is made anew at the next start.
    #[error("the search index failed")]
    Index(#[from] tantivy::TantivyError),
    /// The base cannot be read.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// The log cannot be read.
    #[error("the knowledge log cannot be read")]
    Log(#[from] store::Error),
    /// The index did not reach the revision in time. What was taught is kept.
    #[error("the index is still behind revision {}, what was taught is kept", .0.0)]
    Behind(Revision),
}

impl Error {
    /// What the caller can do about it.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Index(_) | Self::Base(_) => Kind::Internal,
            Self::Log(error) => error.kind(),
            Self::Behind(_) => Kind::DependencyDown,
        }
    }
}

/// A question to the knowledge base.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// The question.
    pub text: &'a str,
    /// Only entries of this primary language, and those without one; `None`: all.
    pub language: Option<&'a str>,
    /// Entries that are not wanted.
    pub excluded: &'a [AnswerId],
    /// How many hits at most.
    pub most: usize,
}

/// An entry that matches.
#[derive(Debug, Clone, PartialEq)]
pub struct Hit {
    /// The entry, which the knowledge base shares.
    pub entry: Arc<Entry>,
    /// Raw BM25.
    pub score: f64,
    /// How likely it is the right answer, 0 to 1. Of one query's hits only the first can reach one
    /// half.
    pub confidence: f64,
}

/// The knowledge base as it can be searched now; clones share it.
#[derive(Debug, Clone)]
pub struct Knowledge(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    current: RwLock<Current>,
    revision: watch::Sender<Revision>,
    metrics: Metrics,
}

/// The index and the calibration that was fitted on it, replaced together with the base.
#[derive(Debug, Clone)]
struct Current {
    index: Arc<Index>,
    calibration: Calibration,
}

impl Knowledge {
    fn new(current: Current, revision: Revision, metrics: Metrics) -> Self {
        let (revision, _) = watch::channel(revision);
        let this = Self(Arc::new(Inner { current: RwLock::new(current), revision, metrics }));
        this.export();
        this
    }

    /// A knowledge base of `entries` alone, without a log, for evaluations and benchmarks.
    pub fn of_entries(entries: &[Entry]) -> Result<Self, Error> {
        let index = Index::of_entries(entries.to_vec())?;
        let calibration = evaluation::calibration(&evaluation::trials(entries)?);
        let current = Current { index: Arc::new(index), calibration };
        Ok(Self::new(current, Revision(0), Metrics::default()))
    }

    /// The entries that match, best first. Takes well under a millisecond for a hundred thousand
    /// entries, so it is called in place on async threads.
    pub fn search(&self, query: &Query<'_>) -> Result<Vec<Hit>, Error> {
        let start = Instant::now();
        let Current { index, calibration } = self.current();
        let hits = calibration.judge(index.search(query)?);
        self.0.metrics.searches.observe(start.elapsed().as_secs_f64());
        Ok(hits)
    }

    /// Waits until the index holds `revision`.
    pub async fn wait_for(&self, revision: Revision, limit: Duration) -> Result<(), Error> {
        let mut revisions = self.0.revision.subscribe();
        let reached = revisions.wait_for(|now| *now >= revision);
        match tokio::time::timeout(limit, reached).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Error::Behind(revision)),
        }
    }

    /// How many entries there are.
    pub fn entries(&self) -> u64 {
        self.current().index.len()
    }

    fn current(&self) -> Current {
        self.0.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace(&self, apply: impl FnOnce(&mut Current)) {
        apply(&mut self.0.current.write().unwrap_or_else(PoisonError::into_inner));
        self.export();
    }

    fn reached(&self, revision: Revision) {
        self.0.revision.send_replace(revision);
        self.export();
    }

    /// The log goes as far as `newest`.
    fn log_reaches(&self, newest: Revision) {
        self.0.metrics.log_revision.set(gauge(newest.0));
    }

    /// The index holds all that the log has.
    fn followed(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.0.metrics.followed.set(gauge(now.as_secs()));
    }

    fn export(&self) {
        let Current { index, calibration } = self.current();
        let metrics = &self.0.metrics;
        metrics.entries.set(gauge(index.len()));
        metrics.revision.set(gauge(self.0.revision.borrow().0));
        metrics.calibrated.set(calibration.is_fitted().into());
    }
}

fn gauge(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[derive(Debug)]
struct Metrics {
    entries: Gauge,
    revision: Gauge,
    calibrated: Gauge,
    log_revision: Gauge,
    followed: Gauge,
    searches: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            entries: Gauge::default(),
            revision: Gauge::default(),
            calibrated: Gauge::default(),
            log_revision: Gauge::default(),
            followed: Gauge::default(),
            searches: Histogram::new(exponential_buckets(0.000_05, 2.0, 12)),
        }
    }
}

impl Metrics {
    fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("knowledge");
        registry.register("entries", "Entries in the index", metrics.entries.clone());
        registry.register("revision", "Revision of the index", metrics.revision.clone());
        registry.register(
            "calibrated",
            "1 if confidence is fitted on the operator's own entries, 0 if it is a default",
            metrics.calibrated.clone(),
        );
        registry.register(
            "log_revision",
            "Newest revision of the log that this replica knows of",
            metrics.log_revision.clone(),
        );
        registry.register_with_unit(
            "followed_timestamp",
            "Unix time at which the index last held all that the log had",
            Unit::Seconds,
            metrics.followed.clone(),
        );
        registry.register_with_unit(
            "search",
            "Duration of searches",
            Unit::Seconds,
            metrics.searches.clone(),
        );
        metrics
    }
}
