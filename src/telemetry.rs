//! Logs and traces: set up first, flushed last.
//!
//! Log lines go to standard output, as text or JSON, and carry the trace id of their call. Traces go
//! to an OTLP receiver by gRPC, where one is configured. Whether a call is traced is decided before
//! its span exists, and only spans of this crate reach the exporter: without that filter every frame
//! that h2 logs becomes a span, ten times the work of the call itself (measured).

mod call;
mod model;
pub mod process;
mod turn;

use std::{io::IsTerminal as _, time::Duration};

use opentelemetry::{KeyValue, global, trace::TracerProvider as _};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{Sampler, SdkTracerProvider},
};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    EnvFilter, Layer as _, Registry,
    filter::Targets,
    layer::SubscriberExt as _,
    reload,
    util::{SubscriberInitExt as _, TryInitError},
};

pub use self::{
    call::{CallSpan, CallSpans},
    model::ModelSpan,
    turn::{Attempt, Subject, TurnTrace, attempting, is_traced},
};
use crate::config;

/// How long the last spans may take to leave. Part of what a pod's grace period has to cover.
pub const FLUSH: Duration = Duration::from_secs(5);

/// The logs and traces of the process could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter is no filter.
    #[error("log filter {filter:?} is invalid")]
    Filter {
        /// The filter.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// The exporter cannot be built.
    #[error("cannot export traces to {endpoint}")]
    Exporter {
        /// The receiver.
        endpoint: String,
        /// Why.
        source: opentelemetry_otlp::ExporterBuildError,
    },
    /// Somebody else has set up the process's logs.
    #[error("logs are set up already")]
    AlreadySetUp(#[from] TryInitError),
    /// The filter cannot be changed.
    #[error("the log filter cannot be changed")]
    Reload(#[from] reload::Error),
}

/// The process's logs and traces. Keep it to the end and [`flush`](Telemetry::flush) it then.
#[derive(Debug)]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
    filter: LogFilter,
}

/// Changes the log filter of the running process.
#[derive(Debug, Clone)]
pub struct LogFilter(reload::Handle<EnvFilter, Registry>);

impl LogFilter {
    /// Replaces the filter.
    pub fn set(&self, filter: &str) -> Result<(), Error> {
        Ok(self.0.reload(parse(filter)?)?)
    }
}

fn parse(filter: &str) -> Result<EnvFilter, Error> {
    EnvFilter::builder()
        .parse(filter)
        .map_err(|source| Error::Filter { filter: filter.to_owned(), source })
}

impl Telemetry {
    /// Sets up the process's logs and traces. Call it once, inside the runtime that outlives it: the
    /// exporter's connection lives there.
    pub fn set_up(config: &config::Telemetry) -> Result<Self, Error> {
        let (filter, handle) = reload::Layer::new(parse(&config.log_filter)?);
        // Colours are for terminals, not for what collects logs.
        let colours = std::io::stdout().is_terminal();
        let lines = tracing_subscriber::fmt::layer().with_ansi(colours);
        let lines = match config.log_format {
            config::LogFormat::Text => lines.boxed(),
            config::LogFormat::Json => lines.json().flatten_event(true).boxed(),
        };
        let provider = config.otlp_endpoint.as_deref().map(provider).transpose()?;
        if let Some(provider) = &provider {
            // For the spans that no tracing span stands for, see `turn`.
            global::set_tracer_provider(provider.clone());
        }
        let spans = provider.as_ref().map(|provider| {
            // Code locations and thread ids would triple a span's size and tell nobody anything.
            tracing_opentelemetry::layer()
                .with_tracer(provider.tracer("chatbot"))
                .with_location(false)
                .with_threads(false)
                .with_target(false)
                .with_tracked_inactivity(false)
                .with_filter(exported())
        });
        tracing_subscriber::registry().with(lines.with_filter(filter)).with(spans).try_init()?;
        Ok(Self { provider, filter: LogFilter(handle) })
    }

    /// The handle that changes the log filter.
    pub fn log_filter(&self) -> LogFilter {
        self.filter.clone()
    }

    /// Sends what is left and ends the exporter, in at most [`FLUSH`]. Blocks: not for a runtime's
    /// worker thread. The runtime must still run.
    pub fn flush(self) {
        let Some(provider) = self.provider else {
            return;
        };
        if let Err(error) = provider.shutdown_with_timeout(FLUSH) {
            tracing::warn!(%error, "the last spans were not exported");
        }
    }
}

/// The spans and events that the exporter sees.
fn exported() -> Targets {
    Targets::new()
        .with_target(call::SAMPLED, LevelFilter::INFO)
        .with_target("chatbot", LevelFilter::WARN)
        .with_target(call::UNSAMPLED, LevelFilter::OFF)
}

fn provider(endpoint: &str) -> Result<SdkTracerProvider, Error> {
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .map_err(|source| Error::Exporter { endpoint: endpoint.to_owned(), source })?;
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        // Decided before the span exists, see `call`.
        .with_sampler(Sampler::AlwaysOn)
        .with_id_generator(turn::Ids::default())
        .with_resource(resource())
        .build())
}

/// What the spans are of. `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` go first.
fn resource() -> Resource {
    let from_environment = Resource::builder().build();
    let named = from_environment
        .get(&"service.name".into())
        .is_some_and(|name| !name.as_str().starts_with("unknown_service"));
    let mut builder = Resource::builder()
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    if from_environment.get(&"service.instance.id".into()).is_none() {
        // Replicas take turns over from each other; a trace has to tell who did what.
        let instance = uuid::Uuid::new_v4().to_string();
        builder = builder.with_attribute(KeyValue::new("service.instance.id", instance));
    }
    if named { builder.build() } else { builder.with_service_name("chatbot").build() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sampled_calls_of_this_crate_reach_the_exporter() {
        let exported = exported();
        let sees = |target: &str, level| exported.would_enable(target, &level);
        assert!(sees(call::SAMPLED, tracing::Level::INFO));
        assert!(!sees(call::UNSAMPLED, tracing::Level::ERROR));
        assert!(!sees("h2::client", tracing::Level::ERROR));
        assert!(!sees("hyper_util", tracing::Level::ERROR));
        assert!(!sees("chatbot::lifecycle", tracing::Level::INFO));
        assert!(sees("chatbot::rpc::status", tracing::Level::ERROR));
    }
}
