//! The span of one call, named and attributed as OpenTelemetry's stable RPC conventions (1.45) say.

use std::sync::atomic::{AtomicU64, Ordering};

use http::{HeaderMap, HeaderName};
use opentelemetry::{
    Context, TraceFlags,
    propagation::{Extractor, TextMapPropagator as _},
    trace::{SpanId, Status, TraceContextExt as _},
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::{Span, debug_span, field::Empty, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// Target of the spans that are exported.
pub(super) const SAMPLED: &str = "chatbot::call";
/// Target of the spans that only log lines see.
pub(super) const UNSAMPLED: &str = "chatbot::unsampled";

/// The header with the caller's span. Looked up by its text it would be read anew for each call.
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The caller's span, in the context of its call.
#[derive(Debug)]
pub(super) struct Caller(pub(super) SpanId);

/// Makes the spans of calls.
#[derive(Debug)]
pub struct CallSpans {
    /// The share of calls to trace where the caller has not decided; 0 without an exporter.
    ratio: f64,
    undecided: AtomicU64,
    propagator: TraceContextPropagator,
}

impl CallSpans {
    /// Spans by `ratio`, 0 to 1.
    pub fn new(ratio: f64) -> Self {
        Self { ratio, undecided: AtomicU64::new(0), propagator: TraceContextPropagator::new() }
    }

    /// The span of a call of `method`, such as `chatbot.v1.Chatbot/Ask`, continuing the trace that
    /// the caller's `traceparent` names. The caller's sampled flag decides; without one, the ratio.
    pub fn start(&self, method: &'static str, headers: &HeaderMap) -> CallSpan {
        let parent = headers
            .contains_key(&TRACEPARENT)
            .then(|| self.propagator.extract(&Headers(headers)))
            .filter(|context| context.span().span_context().is_valid());
        let sampled = self.ratio > 0.0
            && match &parent {
                Some(context) => {
                    context.span().span_context().trace_flags() & TraceFlags::SAMPLED
                        == TraceFlags::SAMPLED
                }
                None => self.every_nth(),
            };
        if !sampled {
            let Some(context) = parent else {
                // For a line of its log that says which call it is from, each call would pay a fifth of
                // what it costs. Whoever looks for something has the log at debug.
                let span = debug_span!(target: UNSAMPLED, "call", rpc.method = method);
                return CallSpan { span, sampled };
            };
            let span = info_span!(target: UNSAMPLED, "call", rpc.method = method, trace_id = Empty);
            record_trace_id(&span, &context);
            return CallSpan { span, sampled };
        }
        let span = info_span!(
            target: SAMPLED,
            "call",
            otel.name = method,
            otel.kind = "server",
            rpc.system.name = "grpc",
            rpc.method = method,
            trace_id = Empty,
        );
        if let Some(context) = parent {
            let caller = Caller(context.span().span_context().span_id());
            // Fails only where no OpenTelemetry layer is installed, as in tests.
            let _ = span.set_parent(context.with_value(caller));
        }
        record_trace_id(&span, &span.context());
        CallSpan { span, sampled }
    }

    /// True for the configured share of the calls, evenly spread, without a random number.
    fn every_nth(&self) -> bool {
        let before = self.undecided.fetch_add(1, Ordering::Relaxed);
        #[expect(clippy::cast_precision_loss, reason = "exact for the first 2^53 calls")]
        let share = |calls: u64| (calls as f64 * self.ratio).floor();
        share(before + 1) > share(before)
    }
}

fn record_trace_id(span: &Span, context: &Context) {
    let id = context.span().span_context().trace_id();
    span.record("trace_id", tracing::field::display(id));
}

/// The span of one call.
#[derive(Debug, Clone)]
pub struct CallSpan {
    span: Span,
    sampled: bool,
}

impl CallSpan {
    /// The span, to do the call's work in.
    pub fn span(&self) -> &Span {
        &self.span
    }

    /// Records how the call ended: the status code's name, and whether it is the server's fault,
    /// which alone makes a server span an error.
    pub fn end(&self, code: &'static str, server_fault: bool) {
        if !self.sampled {
            return;
        }
        self.span.set_attribute("rpc.response.status_code", code);
        if server_fault {
            self.span.set_attribute("error.type", code);
            self.span.set_status(Status::error(code));
        }
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    fn sampled(spans: &CallSpans, flags: &str) -> bool {
        let value = format!("00-{TRACE}-00f067aa0ba902b7-{flags}");
        let headers = [("traceparent", value)].into_iter().map(|(name, value)| {
            (http::HeaderName::from_static(name), value.parse().expect("a header value"))
        });
        spans.start("chatbot.v1.Chatbot/Ask", &headers.collect()).sampled
    }

    #[test]
    fn the_ratio_decides_for_callers_that_have_not() {
        let spans = CallSpans::new(0.25);
        let count = (0..100)
            .filter(|_| spans.start("chatbot.v1.Chatbot/Ask", &HeaderMap::new()).sampled)
            .count();
        assert_eq!(count, 25);
    }

    #[test]
    fn the_callers_flag_goes_before_the_ratio() {
        assert!(sampled(&CallSpans::new(0.001), "01"));
        assert!(!sampled(&CallSpans::new(1.0), "00"));
    }

    #[test]
    fn nothing_is_sampled_without_an_exporter() {
        assert!(!sampled(&CallSpans::new(0.0), "01"));
    }
}
