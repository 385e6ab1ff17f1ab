//! What can go wrong with a request, and whether asking again can help.
//!
//! Before the first piece of text everything that another try may mend is [`Error::Unavailable`]; what
//! the server has refused for good is [`Error::Refused`]. After it there is one thing left: the answer
//! is [`Error::Truncated`].

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode, header};

use super::wire::Reported;
use crate::engine::Error;

/// Longest pause that a server may ask for. A turn has no time for longer ones.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Bytes of a message that are repeated in the log.
const SHOWN: usize = 512;

/// What went wrong.
#[derive(Debug)]
pub(super) struct Fault {
    kind: Kind,
    why: String,
    retry_after: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The breaker is open.
    Skipped,
    Connect,
    Timeout,
    /// The connection broke, or the stream ended before the answer.
    Broken,
    /// What was sent is no stream of completions.
    Garbage,
    /// The server has answered with this status.
    Status(StatusCode),
    /// The server has reported an error in the stream.
    Reported(Option<StatusCode>),
}

impl Fault {
    fn new(kind: Kind, why: impl Into<String>) -> Self {
        Self { kind, why: why.into(), retry_after: None }
    }

    pub(super) fn skipped() -> Self {
        Self::new(
            Kind::Skipped,
            "it has failed again and again, and is left alone for some seconds",
        )
    }

    pub(super) fn timeout(what: &str, limit: Duration) -> Self {
        Self::new(Kind::Timeout, format!("{what} within {}", humantime::format_duration(limit)))
    }

    pub(super) fn ended(why: &str) -> Self {
        Self::new(Kind::Broken, why)
    }

    pub(super) fn garbage(why: impl Into<String>) -> Self {
        Self::new(Kind::Garbage, why)
    }

    /// A failure of the connection.
    pub(super) fn connection(error: &reqwest::Error) -> Self {
        let kind = match error {
            error if error.is_connect() => Kind::Connect,
            error if error.is_timeout() => Kind::Timeout,
            _ => Kind::Broken,
        };
        // The last cause says most, and the first would repeat the address.
        let mut cause: &dyn std::error::Error = error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        let what = if kind == Kind::Connect { "no connection" } else { "the connection broke" };
        Self::new(kind, format!("{what}: {cause}"))
    }

    /// An answer with a status that is no success; `key` is not repeated.
    pub(super) fn status(
        status: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
        key: Option<&str>,
    ) -> Self {
        let said = Reported::of_body(body).map_or_else(
            || String::from_utf8_lossy(body).into_owned(),
            |reported| reported.message,
        );
        let why = format!("it answered {}: {}", status.as_u16(), shown(&said, key));
        let retry_after = retry_after(headers, SystemTime::now());
        Self { kind: Kind::Status(status), why, retry_after }
    }

    /// An error that came in place of an event.
    pub(super) fn reported(reported: &Reported, key: Option<&str>) -> Self {
        let status = reported.status.and_then(|status| StatusCode::from_u16(status).ok());
        let why = format!("it reported an error: {}", shown(&reported.message, key));
        Self::new(Kind::Reported(status), why)
    }

    /// Whether it tells that the server is not well.
    pub(super) fn is_failure(&self) -> bool {
        match self.kind {
            Kind::Skipped => false,
            Kind::Connect | Kind::Timeout | Kind::Broken | Kind::Garbage | Kind::Reported(None) => {
                true
            }
            // Too many requests: it is well, and says so.
            Kind::Status(status) | Kind::Reported(Some(status)) => {
                status == StatusCode::REQUEST_TIMEOUT || status.is_server_error()
            }
        }
    }

    /// Whether another try may mend it.
    fn is_passing(&self) -> bool {
        match self.kind {
            Kind::Status(status) | Kind::Reported(Some(status)) => {
                status == StatusCode::TOO_MANY_REQUESTS || self.is_failure()
            }
            _ => true,
        }
    }

    /// `error.type`, as the conventions have it.
    pub(super) fn error_type(&self) -> String {
        let name = match self.kind {
            Kind::Skipped => "breaker_open",
            Kind::Connect => "connect",
            Kind::Timeout => "timeout",
            Kind::Broken => "broken",
            Kind::Garbage => "garbage",
            Kind::Status(status) | Kind::Reported(Some(status)) => {
                return status.as_str().to_owned();
            }
            Kind::Reported(None) => "reported",
        };
        name.to_owned()
    }

    /// What the turn is told, where text was `said` before.
    pub(super) fn told(self, said: bool) -> Error {
        match self {
            Self { why, .. } if said => Error::Truncated(why),
            Self { ref why, retry_after, .. } if self.is_passing() => {
                Error::Unavailable { why: why.clone(), retry_after }
            }
            Self { why, .. } => Error::Refused(why),
        }
    }

    /// The name of the outcome in the metrics.
    pub(super) fn outcome(&self, said: bool) -> &'static str {
        match self.kind {
            Kind::Skipped => "breaker_open",
            _ if said => "truncated",
            _ if self.is_passing() => "unavailable",
            _ => "refused",
        }
    }
}

/// What a server says, for one line of the log: the beginning of it, without the key.
fn shown(text: &str, key: Option<&str>) -> String {
    let mut text = text.to_owned();
    if let Some(key) = key {
        text = text.replace(key, "***");
        // What was read may end in the middle of one.
        let cut = (1..key.len()).rev().filter(|&end| key.is_char_boundary(end));
        if let Some(end) = cut.into_iter().find(|&end| text.ends_with(&key[..end])) {
            text.truncate(text.len() - end);
        }
    }
    let text = text.trim();
    let more = if text.len() > SHOWN { "..." } else { "" };
    let text = &text[..text.floor_char_boundary(SHOWN)];
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).chain(more.chars()).collect()
}

/// When to try again: in seconds or by a date, but no later than is sensible.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let pause = match value.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(value).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(pause.min(LONGEST_PAUSE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pause(value: &str) -> Option<Duration> {
        let value = value.parse().expect("a header value");
        let headers = [(header::RETRY_AFTER, value)].into_iter().collect();
        retry_after(&headers, SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000))
    }

    #[test]
    fn a_pause_is_seconds_or_a_date_and_never_long() {
        assert_eq!(pause("3"), Some(Duration::from_secs(3)));
        assert_eq!(pause("86400"), Some(LONGEST_PAUSE));
        assert_eq!(pause("Sun, 09 Sep 2001 01:46:44 GMT"), Some(Duration::from_secs(4)));
        assert_eq!(pause("Sun, 09 Sep 2001 01:46:00 GMT"), Some(Duration::ZERO));
        assert_eq!(pause("soon"), None);
        assert_eq!(pause("-1"), None);
    }

    #[test]
    fn a_key_is_never_shown_wherever_the_text_is_cut() {
        let key = "sk-0123456789";
        for before in 480..520 {
            let text = format!("{}{key} is wrong\n", "x".repeat(before));
            let shown = shown(&text, Some(key));
            assert!(!shown.contains("sk-"), "{before}: {shown}");
            assert!(shown.len() <= SHOWN + 3);
        }
        assert_eq!(shown("one\ntwo\u{1b}[1m", None), "one two [1m");
    }

    #[test]
    fn what_can_pass_is_tried_again_and_nothing_else() {
        let told = |status, said| {
            let status = StatusCode::from_u16(status).expect("a status");
            Fault::status(status, &HeaderMap::new(), b"no", None).told(said)
        };
        for status in [408, 429, 500, 502, 503, 504, 529] {
            assert!(matches!(told(status, false), Error::Unavailable { .. }), "{status}");
        }
        for status in [301, 400, 401, 403, 404, 413, 422] {
            assert!(matches!(told(status, false), Error::Refused(_)), "{status}");
        }
        assert!(matches!(told(500, true), Error::Truncated(_)));
    }
}
