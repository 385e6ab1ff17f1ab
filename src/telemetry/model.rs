//! The span of one request to a model, named and attributed as OpenTelemetry's conventions for
//! generative AI say, and the header that carries its trace on.

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{
    Array, StringValue, Value,
    propagation::{Injector, TextMapPropagator as _},
    trace::Status,
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::{Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The span of a request to a model, where the turn that makes it is traced.
#[derive(Debug)]
pub struct ModelSpan(Option<Span>);

impl ModelSpan {
    /// The span of a request for `model` to the server at `host` and `port`, below the current attempt's.
    pub fn start(model: &str, host: &str, port: u16) -> Self {
        if !super::turn::is_traced() {
            return Self(None);
        }
        let span = info_span!(
            target: super::call::SAMPLED,
            "chat",
            otel.name = format!("chat {model}"),
            otel.kind = "client",
            gen_ai.operation.name = "chat",
            // Whoever else it is: this is the dialect that is spoken.
            gen_ai.provider.name = "openai",
            gen_ai.request.model = model,
            gen_ai.request.stream = true,
            server.address = host,
            server.port = i64::from(port),
        );
        Self(Some(span))
    }

    /// Adds the header that makes the server's own spans part of the trace.
    pub fn inject(&self, headers: &mut HeaderMap) {
        if let Some(span) = &self.0 {
            TraceContextPropagator::new().inject_context(&span.context(), &mut Headers(headers));
        }
    }

    /// Records which model answers.
    pub fn answered_by(&self, model: &str) {
        self.set("gen_ai.response.model", model.to_owned());
    }

    /// Records why the answer ended, in the server's word.
    pub fn finished(&self, word: &str) {
        let words = Array::String(vec![StringValue::from(word.to_owned())]);
        self.set("gen_ai.response.finish_reasons", Value::Array(words));
    }

    /// Records the tokens, as the server counts them.
    pub fn used(&self, input: u32, output: u32) {
        self.set("gen_ai.usage.input_tokens", i64::from(input));
        self.set("gen_ai.usage.output_tokens", i64::from(output));
    }

    /// Records what went wrong.
    pub fn failed(&self, error_type: String) {
        if let Some(span) = &self.0 {
            span.set_status(Status::error(error_type.clone()));
            span.set_attribute("error.type", error_type);
        }
    }

    fn set(&self, key: &'static str, value: impl Into<Value>) {
        if let Some(span) = &self.0 {
            span.set_attribute(key, value);
        }
    }
}

struct Headers<'a>(&'a mut HeaderMap);

impl Injector for Headers<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(name), Ok(value)) = (key.parse::<HeaderName>(), HeaderValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}
