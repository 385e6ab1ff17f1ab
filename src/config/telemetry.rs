//! `telemetry`: logs and traces.
//!
//! OpenTelemetry's own variables count below our keys, so that a pod which gets them injected needs
//! nothing else: `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, `OTEL_EXPORTER_OTLP_ENDPOINT`,
//! `OTEL_TRACES_SAMPLER(_ARG)`, `OTEL_SDK_DISABLED`. `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`,
//! `OTEL_EXPORTER_OTLP_HEADERS` and the batch processor's are read by the SDK itself.

use tracing_subscriber::EnvFilter;

use super::settings::Settings;

/// Logs and traces.
#[derive(Debug, Clone, PartialEq)]
pub struct Telemetry {
    /// How log lines look.
    pub log_format: LogFormat,
    /// Which log lines there are, as `tracing` has it: `info`, `info,chatbot::rpc=debug`.
    pub log_filter: String,
    /// Where traces go, by OTLP over gRPC; `None`: nowhere.
    pub otlp_endpoint: Option<String>,
    /// The share of calls that are traced, 0 to 1, where the caller has not decided.
    pub sample_ratio: f64,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Telemetry {
    pub(super) fn check(settings: &mut Settings) -> Self {
        let log_format = match settings.take("telemetry.log_format", "text".to_owned()).as_str() {
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            other => {
                let what = format!("must be \"text\" or \"json\", is {other:?}");
                settings.problem("telemetry.log_format", what);
                LogFormat::Text
            }
        };
        let log_filter = settings.take("telemetry.log_filter", "info".to_owned());
        if let Err(error) = EnvFilter::builder().parse(&log_filter) {
            let what = format!("must be a filter such as \"info,chatbot::rpc=debug\": {error}");
            settings.problem("telemetry.log_filter", what);
        }
        Self {
            log_format,
            log_filter,
            otlp_endpoint: otlp_endpoint(settings),
            sample_ratio: sample_ratio(settings),
        }
    }
}

fn otlp_endpoint(settings: &mut Settings) -> Option<String> {
    const KEY: &str = "telemetry.otlp_endpoint";
    let (default, origin) = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"]
        .into_iter()
        .find_map(|name| settings.variable(name).map(|value| (value.to_owned(), name)))
        .unwrap_or((String::new(), "default"));
    let disabled = settings.variable("OTEL_SDK_DISABLED") == Some("true");
    let endpoint = settings.take_or(KEY, default, origin);
    if endpoint.is_empty() || disabled {
        return None;
    }
    let wrong = match endpoint.parse::<http::Uri>() {
        Ok(uri) if uri.scheme_str() == Some("http") && uri.authority().is_some() => None,
        Ok(uri) if uri.scheme_str() == Some("https") => {
            Some("https is not supported yet, send to a collector in the cluster by http")
        }
        _ => Some("must be the address of an OTLP gRPC receiver such as \"http://collector:4317\""),
    };
    if let Some(wrong) = wrong {
        if origin == "default" {
            settings.problem(KEY, format!("{wrong}; is {endpoint:?}"));
        } else {
            settings.variable_problem(origin, format!("{wrong}; is {endpoint:?}"));
        }
        return None;
    }
    Some(endpoint)
}

fn sample_ratio(settings: &mut Settings) -> f64 {
    const KEY: &str = "telemetry.sample_ratio";
    const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
    let argument = settings.variable("OTEL_TRACES_SAMPLER_ARG").map(ToOwned::to_owned);
    let (default, origin) = match settings.variable(SAMPLER) {
        None => (1.0, "default"),
        Some("always_on" | "parentbased_always_on") => (1.0, SAMPLER),
        Some("always_off" | "parentbased_always_off") => (0.0, SAMPLER),
        Some("traceidratio" | "parentbased_traceidratio") => {
            let ratio = argument.as_deref().unwrap_or("1").parse().ok();
            let Some(ratio) = ratio.filter(|ratio| (0.0..=1.0).contains(ratio)) else {
                settings.variable_problem("OTEL_TRACES_SAMPLER_ARG", "must be between 0 and 1");
                return 1.0;
            };
            (ratio, "OTEL_TRACES_SAMPLER_ARG")
        }
        Some(other) => {
            let what = format!("is not supported: {other:?}; set {KEY} instead");
            settings.variable_problem(SAMPLER, what);
            (1.0, "default")
        }
    };
    let ratio = settings.take_or(KEY, default, origin);
    if !(0.0..=1.0).contains(&ratio) {
        settings.problem(KEY, "must be between 0 and 1");
    }
    ratio
}
