//! Plain data that several modules speak of: what the bot knows, what was said, and who is at the
//! other end of a connection. Nothing here does IO.

mod conversation;
mod entry;

use std::sync::Arc;

pub use self::{
    conversation::{
        Completion, ConversationDigest, ConversationId, ConversationKey, EngineKind, Event,
        EventBody, Failure, FailureReason, FinishReason, Message, Position, RequestId, Sequence,
        Source, Usage,
    },
    entry::{
        AnswerId, Change, ENTRY_BYTES, Entry, QUESTION_BYTES, QUESTIONS, Revision,
        primary_language, shown, text_violation,
    },
};

/// The certificate that a peer has proven to own, as DER. Whoever terminates TLS puts it into the
/// extensions of each request of the connection, after its chain was verified and never otherwise:
/// it counts as a credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate(pub Arc<[u8]>);
