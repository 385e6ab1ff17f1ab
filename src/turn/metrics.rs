//! What is counted about turns.

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

use crate::domain::{EventBody, FailureReason, FinishReason};

/// How turns end.
const OUTCOMES: [&str; 8] = [
    "answered",
    "unanswered",
    "cancelled",
    "interrupted",
    "timeout",
    "upstream_unavailable",
    "upstream_truncated",
    "internal",
];

#[derive(Debug)]
pub(super) struct Metrics {
    /// Turns that run on this replica.
    pub(super) running: Gauge,
    /// Turns whose owner was gone.
    pub(super) takeovers: Counter,
    /// Turns that were lost to another owner.
    pub(super) fenced: Counter,
    /// Times that an engine was asked again.
    pub(super) retries: Counter,
    /// From the beginning of a turn's run to its first logged delta. Answers that are there at once have no
    /// run: they would hide a model that is slow.
    pub(super) first_delta: Histogram,
    /// In the order of `OUTCOMES`, kept: looking them up by their labels locks and hashes.
    ended: [Counter; OUTCOMES.len()],
}

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Outcome {
    outcome: &'static str,
}

impl Outcome {
    /// The outcome that a terminal event tells.
    pub(super) fn of(end: &EventBody) -> Self {
        let outcome = match end {
            EventBody::Completed(completion) => match completion.finish {
                FinishReason::Cancelled => "cancelled",
                FinishReason::Stop if !completion.answered => "unanswered",
                FinishReason::Stop | FinishReason::MaxTokens | FinishReason::ContentFilter => {
                    "answered"
                }
            },
            EventBody::Failed(failure) => match failure.reason {
                FailureReason::Interrupted => "interrupted",
                FailureReason::Timeout => "timeout",
                FailureReason::UpstreamUnavailable => "upstream_unavailable",
                FailureReason::UpstreamTruncated => "upstream_truncated",
                FailureReason::Internal => "internal",
            },
            EventBody::Posted(_) | EventBody::Delta(_) => "none",
        };
        Self { outcome }
    }

    pub(super) fn name(self) -> &'static str {
        self.outcome
    }

    pub(super) fn is_failure(self) -> bool {
        !matches!(self.outcome, "answered" | "unanswered" | "cancelled")
    }
}

impl Metrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let ended = Family::<Outcome, Counter>::default();
        let metrics = Self {
            running: Gauge::default(),
            takeovers: Counter::default(),
            fenced: Counter::default(),
            retries: Counter::default(),
            first_delta: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
            // From zero, since a counter that begins with its first event hides that event: a rate needs a
            // value before it.
            ended: OUTCOMES.map(|outcome| ended.get_or_create(&Outcome { outcome }).clone()),
        };
        let registry = registry.sub_registry_with_prefix("turn");
        registry.register("running", "Turns that run on this replica", metrics.running.clone());
        registry.register("ended", "Turns that this replica has ended", ended);
        registry.register(
            "takeovers",
            "Turns that this replica took over because their owner was gone",
            metrics.takeovers.clone(),
        );
        registry.register(
            "fenced",
            "Turns that this replica has lost to another owner",
            metrics.fenced.clone(),
        );
        registry.register(
            "retries",
            "Times that an engine which could not be had was asked again",
            metrics.retries.clone(),
        );
        registry.register_with_unit(
            "first_delta",
            "From the beginning of a run to its first logged piece of text",
            Unit::Seconds,
            metrics.first_delta.clone(),
        );
        metrics
    }

    pub(super) fn ended(&self, outcome: Outcome) {
        if let Some(ended) = OUTCOMES.iter().position(|name| *name == outcome.outcome) {
            self.ended[ended].inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Failure;

    #[test]
    fn however_a_turn_ends_was_counted_from_zero() {
        let failed = |reason| EventBody::Failed(Failure { reason, partial_text: String::new() });
        let completed = |finish, answered| {
            let stopped = super::super::stopped(String::new());
            let completion = crate::domain::Completion { answered, finish, ..stopped };
            EventBody::Completed(completion.into())
        };
        let ends = [
            failed(FailureReason::Interrupted),
            failed(FailureReason::Timeout),
            failed(FailureReason::UpstreamUnavailable),
            failed(FailureReason::UpstreamTruncated),
            failed(FailureReason::Internal),
            completed(FinishReason::Stop, true),
            completed(FinishReason::Stop, false),
            completed(FinishReason::MaxTokens, true),
            completed(FinishReason::ContentFilter, true),
            completed(FinishReason::Cancelled, true),
        ];
        for end in ends {
            let Outcome { outcome } = Outcome::of(&end);
            assert!(OUTCOMES.contains(&outcome), "{outcome}");
        }
    }
}
