//! The closed set of error kinds that every module maps its own errors to.
//!
//! A kind says what the caller can do about an error, not where it happened. `rpc::status` alone
//! turns a kind into a gRPC status; nothing below it knows about codes.

use std::fmt;

/// What kind of error it is, from the caller's point of view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The input breaks the contract; sending it again cannot help.
    Invalid,
    /// There is no credential that is valid.
    Unauthenticated,
    /// The credential is valid and does not allow it.
    Denied,
    /// There is no such thing, or it is somebody else's.
    NotFound,
    /// The same request was made before, with another payload.
    Conflict,
    /// What it needs is in use for now.
    Busy,
    /// The position to go on from is not there (any more).
    PositionLost,
    /// There is too much to do for now.
    Overloaded,
    /// The caller asks too much for now.
    RateLimited,
    /// The time for it is over.
    Deadline,
    /// The server, or this connection of it, is going away; another one can do it.
    Draining,
    /// The turn broke off, and what was shown of it cannot be continued.
    Interrupted,
    /// The turn took longer than turns may.
    TurnTimeout,
    /// The model cannot be reached.
    UpstreamUnavailable,
    /// The model's answer broke off.
    UpstreamTruncated,
    /// Something that the server depends on is down for now.
    DependencyDown,
    /// A fault of the server.
    Internal,
}

impl Kind {
    /// Every kind, so that mappings can be tested for completeness.
    pub const ALL: [Self; 17] = [
        Self::Invalid,
        Self::Unauthenticated,
        Self::Denied,
        Self::NotFound,
        Self::Conflict,
        Self::Busy,
        Self::PositionLost,
        Self::Overloaded,
        Self::RateLimited,
        Self::Deadline,
        Self::Draining,
        Self::Interrupted,
        Self::TurnTimeout,
        Self::UpstreamUnavailable,
        Self::UpstreamTruncated,
        Self::DependencyDown,
        Self::Internal,
    ];
}

/// One field of an input that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field, as in `google.rpc.BadRequest`: `upsert.questions[2]`.
    pub field: String,
    /// What is wrong with it and what would be right.
    pub description: String,
}

impl Violation {
    /// A violation of `field`.
    pub fn new(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self { field: field.into(), description: description.into() }
    }

    /// The same violation, seen from a message that holds the field's message as `parent`.
    #[must_use]
    pub fn within(self, parent: &str) -> Self {
        Self { field: format!("{parent}.{}", self.field), ..self }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.description)
    }
}
