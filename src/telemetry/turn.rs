//! The spans of a turn, which outlives its call and may outlive its replica.
//!
//! A span is exported by the process in which it ends, and one that is open dies with its process. So a
//! turn has no open spans. Its ids and its beginning are kept with it in the log, and each of its spans is
//! made, whole, by whoever logs what ends it. The turn's own is made with its terminal event. Each owner's
//! time with the turn is an **attempt**: made by that owner if it has ended the turn, and else by whoever
//! takes the turn over, since the owner may be dead. An attempt's id follows from the turn's, so that
//! whatever was exported before points to spans that do come.
//!
//! The turn's parent is its caller's span and not the call's: a call may end half an hour earlier, and is
//! lost where its replica is killed. Calls that begin, resume or watch a turn link to it.

use std::{
    cell::Cell,
    time::{Duration, SystemTime},
};

use futures_util::future::Either;
use opentelemetry::{
    Context, KeyValue,
    context::FutureExt as _,
    global,
    trace::{
        Link, Span as _, SpanBuilder, SpanContext, SpanId, Status, TraceContextExt as _,
        TraceFlags, TraceId, TraceState,
    },
};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};
use serde::{Deserialize, Serialize};
use tracing::{Instrument as _, Span, info_span};

use super::call::{Caller, UNSAMPLED};
use crate::domain::{ConversationId, EngineKind, RequestId};

/// Most bytes of a caller's `tracestate` that are kept: as many as the specification asks for.
const STATE_BYTES: usize = 512;

/// Whether the current call is traced, or what is done for a turn that is.
pub fn is_traced() -> bool {
    Context::map_current(|context| context.span().span_context().is_sampled())
}

/// The trace that a turn is part of, as it is kept with the turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnTrace {
    /// In hexadecimal, as all ids here.
    trace_id: String,
    /// The turn's own span.
    span_id: String,
    /// The caller's, if it has told one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parent_span_id: Option<String>,
    /// What the caller's tracing system wants passed on.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    trace_state: String,
    /// When the turn began, by the clock of the replica that began it: nanoseconds since 1970.
    began: u64,
}

impl TurnTrace {
    /// The trace of a turn that the current call begins now; `None` if the call is not traced.
    pub fn begin() -> Option<Self> {
        if !is_traced() {
            return None;
        }
        let call = Context::current();
        let of_call = call.span().span_context().clone();
        let state = of_call.trace_state().header();
        Some(Self {
            trace_id: of_call.trace_id().to_string(),
            span_id: RandomIdGenerator::default().new_span_id().to_string(),
            parent_span_id: call.get::<Caller>().map(|caller| caller.0.to_string()),
            trace_state: if state.len() > STATE_BYTES { String::new() } else { state },
            began: nanos(SystemTime::now()),
        })
    }

    /// A trace like one that a call of a tracing caller begins.
    #[cfg(test)]
    pub(crate) fn example() -> Self {
        Self {
            trace_id: "4bf92f3577b34da6a3ce929d0e0e4736".to_owned(),
            span_id: "53995c3f42cd8ad8".to_owned(),
            parent_span_id: Some("00f067aa0ba902b7".to_owned()),
            trace_state: "congo=t61rcWkgMzE".to_owned(),
            began: 1_763_985_123_456_789_000,
        }
    }

    /// Has the span of the current call point to the turn's.
    pub fn link(&self, turn: RequestId) {
        if let Some(span) = self.span() {
            let attributes = vec![KeyValue::new("chatbot.turn.id", turn.to_string())];
            Context::map_current(|call| call.span().add_link(span, attributes));
        }
    }

    /// The turn's span; `None` if what is kept is no trace.
    fn span(&self) -> Option<SpanContext> {
        let trace = TraceId::from_hex(&self.trace_id).ok()?;
        let span = SpanId::from_hex(&self.span_id).ok()?;
        let state = self.trace_state.parse().unwrap_or_else(|_| TraceState::default());
        let span = SpanContext::new(trace, span, TraceFlags::SAMPLED, false, state);
        span.is_valid().then_some(span)
    }

    fn parent(&self) -> Option<SpanId> {
        let parent = SpanId::from_hex(self.parent_span_id.as_deref()?).ok()?;
        (parent != SpanId::INVALID).then_some(parent)
    }
}

/// What spans tell of a turn. What was said is no part of it.
#[derive(Debug, Clone, Copy)]
pub struct Subject {
    /// The conversation.
    pub conversation: ConversationId,
    /// The turn.
    pub turn: RequestId,
    /// Who answers; `None` if that is not known here.
    pub engine: Option<EngineKind>,
}

/// One owner's time with a turn that is traced.
#[derive(Debug, Clone)]
pub struct Attempt {
    turn: SpanContext,
    parent: Option<SpanId>,
    began: SystemTime,
    number: u32,
    since: SystemTime,
    about: Vec<KeyValue>,
}

impl Attempt {
    /// The attempt of this number, from 1, since the turn's beginning or later. `None` if what is kept is
    /// no trace.
    pub fn new(
        trace: &TurnTrace,
        subject: Subject,
        number: u32,
        since: Option<SystemTime>,
    ) -> Option<Self> {
        let Subject { conversation, turn, engine } = subject;
        let mut about = vec![
            KeyValue::new("gen_ai.conversation.id", conversation.to_string()),
            KeyValue::new("chatbot.turn.id", turn.to_string()),
        ];
        about.extend(engine.map(|engine| KeyValue::new("chatbot.engine", engine.name())));
        let began = SystemTime::UNIX_EPOCH + Duration::from_nanos(trace.began);
        Some(Self {
            turn: trace.span()?,
            parent: trace.parent(),
            began,
            number,
            since: since.unwrap_or(began),
            about,
        })
    }

    /// The turn is over: this attempt has logged its end. Call it once, after the attempt's last work.
    pub fn ended(&self, outcome: &'static str, failed: bool) {
        self.made(outcome, failed);
        let parent = match self.parent {
            Some(parent) => Context::new().with_remote_span_context(self.of_trace(parent, true)),
            // The root, beside the call that began it.
            None => Context::new(),
        };
        let number = KeyValue::new("chatbot.turn.attempts", i64::from(self.number));
        let span = SpanBuilder::from_name("turn").with_start_time(self.began);
        self.make(self.turn.span_id(), &parent, span, number, outcome, failed);
    }

    /// The attempt has come to nothing: whoever calls this has taken the turn over from it.
    pub fn lost(&self) {
        self.made("lost", true);
    }

    fn made(&self, outcome: &'static str, failed: bool) {
        let parent = Context::new().with_remote_span_context(self.turn.clone());
        let number = KeyValue::new("chatbot.turn.attempt", i64::from(self.number));
        let mut span = SpanBuilder::from_name("attempt").with_start_time(self.since);
        if self.number > 1 {
            let before = self.of_trace(self.id(self.number - 1), false);
            span = span.with_links(vec![Link::with_context(before)]);
        }
        self.make(self.id(self.number), &parent, span, number, outcome, failed);
    }

    /// Exports a span that ends now.
    fn make(
        &self,
        id: SpanId,
        parent: &Context,
        span: SpanBuilder,
        number: KeyValue,
        outcome: &'static str,
        failed: bool,
    ) {
        let mut attributes = self.about.clone();
        attributes.extend([number, KeyValue::new("chatbot.turn.outcome", outcome)]);
        if failed {
            attributes.push(KeyValue::new("error.type", outcome));
        }
        let tracer = global::tracer("chatbot");
        let span = span.with_attributes(attributes);
        GIVEN.set(Some((self.turn.trace_id(), id)));
        let mut span = span.start_with_context(&tracer, parent);
        GIVEN.set(None);
        if failed {
            span.set_status(Status::error(outcome));
        }
        span.end();
    }

    fn id(&self, number: u32) -> SpanId {
        let turn = u64::from_be_bytes(self.turn.span_id().to_bytes());
        SpanId::from(turn.wrapping_add(u64::from(number)))
    }

    fn of_trace(&self, span: SpanId, remote: bool) -> SpanContext {
        let state = self.turn.trace_state().clone();
        SpanContext::new(self.turn.trace_id(), span, TraceFlags::SAMPLED, remote, state)
    }
}

/// Does the work of an attempt, or of a turn that is not traced, apart from the call that it came from:
/// its log lines have the turn's trace id, and its spans are below the attempt's.
pub fn attempting<F: Future>(
    attempt: Option<&Attempt>,
    work: F,
) -> impl Future<Output = F::Output> + use<F> {
    let Some(attempt) = attempt else {
        // Not in a trace that is not the turn's, and whose call it would keep open.
        let span = if is_traced() { Span::none() } else { Span::current() };
        return Either::Left(work.instrument(span));
    };
    let own = attempt.of_trace(attempt.id(attempt.number), false);
    let lines = info_span!(target: UNSAMPLED, parent: None, "attempt", trace_id = %own.trace_id());
    let context = Context::new().with_remote_span_context(own);
    Either::Right(work.with_context(context).instrument(lines))
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

thread_local! {
    /// The ids of the span that is being made.
    static GIVEN: Cell<Option<(TraceId, SpanId)>> = const { Cell::new(None) };
}

/// Random ids, but for spans whose ids were known before they are made.
#[derive(Debug, Default)]
pub(super) struct Ids(RandomIdGenerator);

impl IdGenerator for Ids {
    fn new_trace_id(&self) -> TraceId {
        GIVEN.get().map_or_else(|| self.0.new_trace_id(), |(trace, _)| trace)
    }

    fn new_span_id(&self) -> SpanId {
        GIVEN.get().map_or_else(|| self.0.new_span_id(), |(_, span)| span)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const PARENT: &str = "00f067aa0ba902b7";

    fn subject() -> Subject {
        Subject {
            conversation: ConversationId(Uuid::nil()),
            turn: RequestId(Uuid::nil()),
            engine: None,
        }
    }

    #[test]
    fn what_a_call_without_a_trace_begins_has_none() {
        assert_eq!(TurnTrace::begin(), None);
    }

    #[test]
    fn what_is_kept_is_read_back_and_nonsense_is_no_trace() {
        let kept = r#"{"trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","span_id":"00f067aa0ba902b7","began":7}"#;
        let root: TurnTrace = serde_json::from_str(kept).expect("a trace");
        assert_eq!(serde_json::to_string(&root).expect("JSON"), kept);
        let trace = TurnTrace::example();
        let kept = serde_json::to_string(&trace).expect("JSON");
        assert_eq!(serde_json::from_str::<TurnTrace>(&kept).expect("a trace"), trace);
        let first = Attempt::new(&trace, subject(), 1, None).expect("an attempt");
        assert_eq!(first.since, first.began);
        assert_eq!(first.id(1).to_string(), "53995c3f42cd8ad9");
        assert_eq!(first.parent.map(|parent| parent.to_string()).as_deref(), Some(PARENT));
        assert_eq!(first.turn.trace_state().header(), "congo=t61rcWkgMzE");
        for (trace_id, span_id) in [("x", "00f067aa0ba902b7"), ("4b", "0"), ("0", "7"), ("4b", "")]
        {
            let (trace_id, span_id) = (trace_id.to_owned(), span_id.to_owned());
            let bad = TurnTrace { trace_id, span_id, ..trace.clone() };
            assert!(Attempt::new(&bad, subject(), 1, None).is_none(), "{bad:?}");
        }
    }
}
