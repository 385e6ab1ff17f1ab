//! `upstream`: the model, behind any server that speaks OpenAI's `/v1/chat/completions`.
//!
//! The key is in a file, never in a setting: settings end up in dumps, process lists and manifests.
//! For the same reason an address with a password in it is refused, and not repeated.

use std::{path::PathBuf, time::Duration};

use http::Uri;

use super::settings::Settings;

/// What the model's server is asked for, below its base.
const CHAT: &str = "/chat/completions";
/// Most tokens that a setting can ask for.
const MOST_TOKENS: u32 = 10_000_000;

/// The model and its server.
#[derive(Debug, Clone, PartialEq)]
pub struct Upstream {
    /// Where chat completions are, such as `http://ollama:11434/v1/chat/completions`.
    pub url: String,
    /// The model's name.
    pub model: String,
    /// Holds the key that is sent as a bearer token; read again when it changes.
    pub api_key_file: Option<PathBuf>,
    /// Certificate authorities, PEM, in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// How long the first piece of an answer may take, connection included.
    pub first_token_timeout: Duration,
    /// How long each further piece may take.
    pub idle_timeout: Duration,
    /// Most tokens of an answer; `None`: what the server has.
    pub max_output_tokens: Option<u32>,
    /// How freely the model chooses its words; `None`: what the server has.
    pub temperature: Option<f64>,
    /// Most tokens that are sent, by estimate. What the question leaves is for the history.
    pub context_tokens: u32,
}

impl Upstream {
    /// `None` where no server is named: there is no model.
    pub(super) fn check(settings: &mut Settings) -> Option<Self> {
        let base = settings.take("upstream.base_url", String::new());
        let model = settings.take("upstream.model", String::new());
        let mut path = |key| {
            let path = settings.take(key, String::new());
            (!path.is_empty()).then(|| PathBuf::from(path))
        };
        let api_key_file = path("upstream.api_key_file");
        let ca_file = path("upstream.ca_file");
        let mut limit = |key, seconds| {
            let limit = settings.take(key, Duration::from_secs(seconds));
            if limit.is_zero() {
                settings.problem(key, "must be longer than nothing");
            }
            limit
        };
        let connect_timeout = limit("upstream.connect_timeout", 3);
        let first_token_timeout = limit("upstream.first_token_timeout", 30);
        let idle_timeout = limit("upstream.idle_timeout", 20);
        let max_output_tokens = settings.take("upstream.max_output_tokens", 0);
        let temperature = settings.take("upstream.temperature", None::<f64>);
        if temperature.is_some_and(|temperature| !(0.0..=2.0).contains(&temperature)) {
            settings.problem("upstream.temperature", "must be between 0 and 2, or empty");
        }
        let context_tokens = settings.take("upstream.context_tokens", 4096);
        if !(256..=MOST_TOKENS).contains(&context_tokens) {
            settings.problem("upstream.context_tokens", "must be between 256 and 10000000");
        }
        if base.is_empty() {
            if !model.is_empty() {
                settings.problem("upstream.model", "takes upstream.base_url with it");
            }
            return None;
        }
        if model.is_empty() {
            settings.problem("upstream.model", "must be set where upstream.base_url is");
        }
        let url = url(&base).unwrap_or_else(|what| {
            settings.problem("upstream.base_url", what);
            String::new()
        });
        Some(Self {
            url,
            model,
            api_key_file,
            ca_file,
            connect_timeout,
            first_token_timeout,
            idle_timeout,
            max_output_tokens: (max_output_tokens > 0).then_some(max_output_tokens),
            temperature,
            context_tokens,
        })
    }
}

/// Where chat completions are below `base`, which may or may not end in a slash or in the version.
fn url(base: &str) -> Result<String, String> {
    const RIGHT: &str = "must be an http or https address such as \"http://ollama:11434/v1\"";
    let uri: Uri = base.parse().map_err(|_| RIGHT.to_owned())?;
    let authority = uri.authority().ok_or(RIGHT)?;
    let scheme =
        uri.scheme_str().filter(|scheme| ["http", "https"].contains(scheme)).ok_or(RIGHT)?;
    if authority.as_str().contains('@') {
        return Err(format!("{RIGHT}, without a password: a key goes into upstream.api_key_file"));
    }
    if uri.query().is_some() {
        return Err(format!("{RIGHT}, without a query"));
    }
    let path = uri.path().trim_end_matches('/');
    let path = path.strip_suffix(CHAT).unwrap_or(path);
    // Some servers have it in the middle, as in `/v1beta/openai`.
    let versioned = path.split('/').any(|segment| {
        let number = segment.strip_prefix('v').unwrap_or_default();
        number.starts_with(|digit: char| digit.is_ascii_digit())
    });
    let version = if versioned { "" } else { "/v1" };
    Ok(format!("{scheme}://{authority}{path}{version}{CHAT}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_is_taken_as_people_write_it() {
        for (base, means) in [
            ("http://ollama:11434", "http://ollama:11434/v1/chat/completions"),
            ("http://ollama:11434/", "http://ollama:11434/v1/chat/completions"),
            ("http://ollama:11434/v1", "http://ollama:11434/v1/chat/completions"),
            ("http://ollama:11434/v1/", "http://ollama:11434/v1/chat/completions"),
            ("http://[::1]:80/v1/chat/completions", "http://[::1]:80/v1/chat/completions"),
            ("https://proxy/team/a", "https://proxy/team/a/v1/chat/completions"),
            ("https://g/v1beta/openai/", "https://g/v1beta/openai/chat/completions"),
        ] {
            assert_eq!(url(base), Ok(means.to_owned()));
        }
    }

    #[test]
    fn what_is_no_base_is_refused_and_a_password_not_repeated() {
        for wrong in ["ollama:11434", "ftp://x/", "/v1", "http://x/v1?key=secret", "nonsense"] {
            assert!(url(wrong).expect_err(wrong).starts_with("must be an http"), "{wrong}");
        }
        let refused = url("https://user:secret@host/v1").expect_err("a password");
        assert!(refused.contains("without a password"));
        assert!(!refused.contains("secret"));
    }
}
