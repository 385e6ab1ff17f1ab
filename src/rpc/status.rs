//! Errors to gRPC statuses: the one place where a code and a reason are chosen.
//!
//! Each status carries exactly one `google.rpc.ErrorInfo` (AIP-193), so that programs need not read
//! messages. Causes inside the server are logged here, once, and never sent.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};
use tracing::{error, warn};

use super::Error;
use crate::{error::Kind, knowledge, pb, turn};

/// When to try again what failed for a reason that passes.
const RETRY: Duration = Duration::from_secs(1);

/// The code and the reason of a kind.
pub(super) fn code(kind: Kind) -> (Code, &'static str) {
    match kind {
        Kind::Invalid => (Code::InvalidArgument, "FIELD_INVALID"),
        Kind::Unauthenticated => (Code::Unauthenticated, "CREDENTIAL_MISSING"),
        Kind::Denied => (Code::PermissionDenied, "SCOPE_MISSING"),
        Kind::NotFound => (Code::NotFound, "CONVERSATION_NOT_FOUND"),
        Kind::Conflict => (Code::AlreadyExists, "REQUEST_ID_REUSED"),
        Kind::Busy => (Code::Aborted, "TURN_IN_PROGRESS"),
        Kind::PositionLost => (Code::OutOfRange, "RESUME_TOKEN_INVALID"),
        Kind::RateLimited => (Code::ResourceExhausted, "RATE_LIMITED"),
        Kind::Overloaded => (Code::ResourceExhausted, "OVERLOADED"),
        Kind::Deadline => (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
        Kind::Draining => (Code::Unavailable, "DRAINING"),
        Kind::Interrupted => (Code::Unavailable, "INTERRUPTED"),
        Kind::TurnTimeout => (Code::DeadlineExceeded, "TURN_TIMEOUT"),
        Kind::UpstreamUnavailable => (Code::Unavailable, "UPSTREAM_UNAVAILABLE"),
        Kind::UpstreamTruncated => (Code::Unavailable, "UPSTREAM_TRUNCATED"),
        Kind::DependencyDown => (Code::Unavailable, "LOG_UNAVAILABLE"),
        Kind::Internal => (Code::Internal, "INTERNAL"),
    }
}

fn details(reason: &str) -> ErrorDetails {
    ErrorDetails::with_error_info(reason, pb::CHATBOT_SERVICE, [])
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let kind = error.kind();
        let (code, reason) = code(kind);
        let mut details = details(reason);
        let message = match &error {
            Error::Fields(violations) => {
                let wrong: Vec<String> = violations.iter().map(ToString::to_string).collect();
                for violation in violations {
                    details.add_bad_request_violation(&violation.field, &violation.description);
                }
                wrong.join("; ")
            }
            Error::Timeout
            | Error::Credential(_)
            | Error::Scope(_)
            | Error::Deadline
            | Error::NotReceived(_)
            | Error::Leaving
            | Error::Full
            | Error::TurnFailed(_)
            | Error::Knowledge(knowledge::Error::Behind(_)) => error.to_string(),
            Error::Reused(turn) | Error::Turn(turn::Error::InProgress(turn)) => {
                let turn = ("turn_id".to_owned(), turn.to_string());
                details = ErrorDetails::with_error_info(reason, pb::CHATBOT_SERVICE, [turn]);
                error.to_string()
            }
            Error::Turn(_) | Error::Store(_) if told(kind) => error.to_string(),
            Error::Panicked | Error::Knowledge(_) | Error::Store(_) | Error::Turn(_) => {
                let cause = causes(&error);
                if kind == Kind::Internal {
                    error!(cause, "call failed");
                    "internal error, see the server's log".to_owned()
                } else {
                    warn!(cause, "call failed");
                    "the log is not available, try again".to_owned()
                }
            }
        };
        if matches!(code, Code::Unavailable | Code::Aborted | Code::ResourceExhausted) {
            details.set_retry_info(Some(retry_after(&error)));
        }
        let mut status = Self::with_error_details(code, message, details);
        // The only word that gRPC's own retry listens to (gRFC A6); less than nothing is never.
        let pushback = match error {
            // The same request would be told the same again.
            Error::TurnFailed(_) => Some("-1".to_owned()),
            _ if code == Code::ResourceExhausted => {
                Some(retry_after(&error).as_millis().to_string())
            }
            _ => None,
        };
        if let Some(pushback) = pushback.and_then(|pushback| pushback.parse().ok()) {
            status.metadata_mut().insert("grpc-retry-pushback-ms", pushback);
        }
        status
    }
}

/// When to try again.
fn retry_after(error: &Error) -> Duration {
    match error {
        Error::Turn(
            turn::Error::RateLimited { retry_after } | turn::Error::Overloaded { retry_after },
        ) => *retry_after,
        _ => RETRY,
    }
}

/// Whether an error of this kind is about what the caller has sent, and says nothing of the server.
fn told(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::NotFound
            | Kind::PositionLost
            | Kind::Draining
            | Kind::Invalid
            | Kind::RateLimited
            | Kind::Overloaded
    )
}

/// A response of nothing but a status.
pub(super) fn answer<B: Default>(status: Status) -> http::Response<B> {
    status.into_http()
}

/// The message of an error and of all that caused it.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// The status of a request that the library could not read: what it calls `OUT_OF_RANGE` or
/// `INTERNAL` is the peer's mistake, and both codes mean something else in this contract.
pub(super) fn of_peer(status: Status) -> Status {
    let message = match status.code() {
        _ if !status.details().is_empty() => return status,
        Code::OutOfRange => format!("the message is too large ({})", status.message()),
        Code::Internal => format!("not a message of this contract ({})", status.message()),
        Code::Unimplemented => {
            let details = details("NOT_IMPLEMENTED");
            return Status::with_error_details(Code::Unimplemented, status.message(), details);
        }
        _ => return status,
    };
    Status::with_error_details(Code::InvalidArgument, message, details("MESSAGE_INVALID"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        auth::{Refusal, Scope},
        error::Violation,
    };

    #[test]
    fn every_kind_has_a_code_and_a_reason_of_its_own() {
        let mut reasons: Vec<_> = Kind::ALL.into_iter().map(|kind| code(kind).1).collect();
        reasons.sort_unstable();
        reasons.dedup();
        assert_eq!(reasons.len(), Kind::ALL.len());
    }

    #[test]
    fn a_status_has_one_error_info_and_names_the_fields() {
        let status = Status::from(Error::Fields(vec![
            Violation::new("query", "must not be empty"),
            Violation::new("max_answers", "must be 0 to 100, is -1"),
        ]));
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(
            status.message(),
            "query: must not be empty; max_answers: must be 0 to 100, is -1"
        );
        let details = status.get_error_details();
        let info = details.error_info().expect("an ErrorInfo");
        assert_eq!(
            (info.reason.as_str(), info.domain.as_str()),
            ("FIELD_INVALID", "chatbot.v1.Chatbot")
        );
        let fields: Vec<_> = details
            .bad_request()
            .expect("a BadRequest")
            .field_violations
            .iter()
            .map(|violation| violation.field.as_str())
            .collect();
        assert_eq!(fields, ["query", "max_answers"]);
    }

    #[test]
    fn a_refusal_tells_what_is_needed_and_not_what_was_wrong() {
        for (error, code, reason, message) in [
            (
                Error::Credential(Refusal::Missing),
                Code::Unauthenticated,
                "CREDENTIAL_MISSING",
                "a credential is required: a bearer token or a client certificate",
            ),
            (
                Error::Credential(Refusal::Invalid),
                Code::Unauthenticated,
                "CREDENTIAL_MISSING",
                "the credential is not valid",
            ),
            (
                Error::Scope(Scope::Teach),
                Code::PermissionDenied,
                "SCOPE_MISSING",
                "the credential does not have the scope teach",
            ),
        ] {
            let status = Status::from(error);
            assert_eq!((status.code(), status.message()), (code, message));
            let details = status.get_error_details();
            assert_eq!(details.error_info().map(|info| info.reason.as_str()), Some(reason));
            assert!(details.retry_info().is_none());
        }
    }

    #[test]
    fn what_is_down_can_be_tried_again_and_causes_stay_here() {
        let secret = crate::store::Error::Down("disk /secret/path is full".to_owned());
        let status = Status::from(Error::Store(secret));
        assert_eq!(status.code(), Code::Unavailable);
        assert!(!status.message().contains("secret"));
        let details = status.get_error_details();
        assert_eq!(details.error_info().map(|info| info.reason.as_str()), Some("LOG_UNAVAILABLE"));
        assert_eq!(details.retry_info().and_then(|retry| retry.retry_delay), Some(RETRY));
    }

    #[test]
    fn the_end_of_a_turn_is_not_asked_for_again_by_libraries() {
        let pushback = |error: Error| {
            let status = Status::from(error);
            let pushback = status.metadata().get("grpc-retry-pushback-ms");
            pushback.map(|pushback| pushback.to_str().expect("text").to_owned())
        };
        let failed = Error::TurnFailed(crate::domain::FailureReason::Interrupted);
        assert_eq!(pushback(failed).as_deref(), Some("-1"));
        assert_eq!(pushback(Error::Full).as_deref(), Some("1000"));
        assert_eq!(pushback(Error::Leaving), None);
    }

    #[test]
    fn an_unreadable_message_is_the_peers_mistake() {
        for code in [Code::OutOfRange, Code::Internal] {
            let status = of_peer(Status::new(code, "library text"));
            assert_eq!(status.code(), Code::InvalidArgument);
            assert!(status.message().contains("library text"));
        }
        let ours = Status::from(Error::Store(crate::store::Error::Corrupt(String::new())));
        assert_eq!(of_peer(ours).code(), Code::Internal);
        assert_eq!(of_peer(Status::cancelled("gone")).code(), Code::Cancelled);
    }
}
