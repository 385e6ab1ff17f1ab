//! What is counted about the model's server, and the tally of one request.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use tokio::time::Instant;

use super::{
    breaker::{Breaker, Permit},
    fault::Fault,
    wire::Finish,
};
use crate::{domain::Usage, telemetry::ModelSpan};

/// How requests end.
const OUTCOMES: [&str; 6] =
    ["completed", "cancelled", "truncated", "unavailable", "refused", "breaker_open"];

#[derive(Debug, Clone)]
pub(super) struct Metrics {
    requests: Family<Outcome, Counter>,
    first_token: Histogram,
    duration: Histogram,
    tokens: Family<Direction, Counter>,
    in_flight: Gauge,
    breaker: Gauge,
    pub(super) retries: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Direction {
    direction: &'static str,
}

impl Metrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            first_token: Histogram::new(exponential_buckets(0.005, 2.0, 14)),
            duration: Histogram::new(exponential_buckets(0.05, 2.0, 13)),
            tokens: Family::default(),
            in_flight: Gauge::default(),
            breaker: Gauge::default(),
            retries: Counter::default(),
        };
        // A counter that begins with its first event hides that event: a rate needs a value before it.
        for outcome in OUTCOMES {
            drop(metrics.requests.get_or_create(&Outcome { outcome }));
        }
        for direction in ["input", "output"] {
            drop(metrics.tokens.get_or_create(&Direction { direction }));
        }
        let registry = registry.sub_registry_with_prefix("upstream");
        registry.register(
            "requests",
            "Requests to the model's server that ended, by outcome",
            metrics.requests.clone(),
        );
        registry.register(
            "in_flight",
            "Requests to the model's server that have not ended",
            metrics.in_flight.clone(),
        );
        registry.register_with_unit(
            "first_token",
            "From a request to the first token of its answer",
            Unit::Seconds,
            metrics.first_token.clone(),
        );
        registry.register_with_unit(
            "duration",
            "Duration of requests to the model's server",
            Unit::Seconds,
            metrics.duration.clone(),
        );
        registry.register(
            "tokens",
            "Tokens as the model's server counts them, by direction",
            metrics.tokens.clone(),
        );
        registry.register(
            "breaker_state",
            "0 if requests pass, 1 if the server is left alone, 2 if one request tries",
            metrics.breaker.clone(),
        );
        registry.register(
            "retries",
            "Times that the augmented engine asked again by itself; see turn_retries for the others",
            metrics.retries.clone(),
        );
        metrics
    }

    pub(super) fn skipped(&self, fault: &Fault) {
        self.requests.get_or_create(&Outcome { outcome: fault.outcome(false) }).inc();
    }
}

/// What is recorded of one request, whichever way it ends: dropped, it was cancelled.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) span: ModelSpan,
    metrics: Metrics,
    breaker: Breaker,
    permit: Option<Permit>,
    start: Instant,
    outcome: &'static str,
}

impl Tally {
    pub(super) fn new(metrics: Metrics, breaker: Breaker, permit: Permit, span: ModelSpan) -> Self {
        metrics.in_flight.inc();
        metrics.breaker.set(breaker.number());
        let (permit, start) = (Some(permit), Instant::now());
        Self { span, metrics, breaker, permit, start, outcome: "cancelled" }
    }

    /// How long it has taken.
    pub(super) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// The model has begun.
    pub(super) fn begun(&mut self) {
        self.metrics.first_token.observe(self.elapsed().as_secs_f64());
        self.well();
    }

    /// The answer is whole.
    pub(super) fn completed(&mut self, finish: &Finish, usage: Option<Usage>) {
        self.outcome = "completed";
        self.well();
        self.span.finished(&finish.word);
        if let Some(Usage { input_tokens, output_tokens }) = usage {
            self.span.used(input_tokens, output_tokens);
            for (direction, count) in [("input", input_tokens), ("output", output_tokens)] {
                self.metrics.tokens.get_or_create(&Direction { direction }).inc_by(count.into());
            }
        }
    }

    /// It has failed, after text was `said` or before.
    pub(super) fn failed(&mut self, fault: &Fault, said: bool) {
        self.outcome = fault.outcome(said);
        self.span.failed(fault.error_type());
        match self.permit.take() {
            Some(permit) if fault.is_failure() => permit.failed(),
            // It has answered, if only to refuse.
            Some(permit) => permit.succeeded(),
            None => {}
        }
    }

    fn well(&mut self) {
        if let Some(permit) = self.permit.take() {
            permit.succeeded();
        }
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        drop(self.permit.take());
        self.metrics.in_flight.dec();
        self.metrics.breaker.set(self.breaker.number());
        self.metrics.duration.observe(self.elapsed().as_secs_f64());
        self.metrics.requests.get_or_create(&Outcome { outcome: self.outcome }).inc();
    }
}
