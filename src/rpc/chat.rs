//! `Chat`: starts a turn or resumes it, and streams its events.

use std::sync::Arc;

use futures_util::{Stream, StreamExt as _, stream};
use tokio::time::Instant;
use tonic::Status;

use super::{Chatbot, Error, convert, proto};
use crate::{
    domain::{ConversationId, ConversationKey, Message, Position, RequestId},
    store::{self, Begin, TurnOptions},
    turn::{self, OnBusy, TurnTail},
};

impl Chatbot {
    pub(super) async fn chat(
        &self,
        principal: &Arc<str>,
        deadline: Option<Instant>,
        request: proto::ChatRequest,
    ) -> Result<impl Stream<Item = Result<proto::ChatResponse, Status>> + Send + use<>, Error> {
        let mut check = convert::Check::default();
        check.query("query", &request.query, self.limits.query_bytes);
        let request_id = check.request_id("request_id", &request.request_id);
        let conversation = check.conversation_id("conversation_id", &request.conversation_id);
        let engine = check.engine("engine", request.engine, &self.turns);
        let language = check.language("language_code", &request.language_code);
        check.finish()?;
        let seen = convert::position(&request.resume_token)?;
        let options = TurnOptions { engine, language, trace: None };
        let asked = Asked { conversation, request_id, text: request.query, options };
        let (key, events) = self.begin(principal, asked, seen, deadline).await?;
        Ok(responses(key.id(), events))
    }

    /// Begins the turn of a request, or finds it; what `Ask` and `Chat` have in common.
    pub(super) async fn begin(
        &self,
        principal: &Arc<str>,
        asked: Asked,
        seen: Option<Position>,
        deadline: Option<Instant>,
    ) -> Result<(ConversationKey, TurnTail), Error> {
        let request_id = asked.request_id;
        let (key, begin) = asked.begin(principal);
        let attached = self.turns.begin(&key, begin, OnBusy::Refuse, deadline).await;
        let attached = attached.map_err(|error| refused(error, request_id))?;
        let events = self.turns.tail_turn(&key, attached, seen);
        Ok((key, events))
    }
}

/// A checked request for an answer.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) conversation: Option<ConversationId>,
    pub(super) request_id: RequestId,
    pub(super) text: String,
    pub(super) options: TurnOptions,
}

impl Asked {
    /// Where it goes, and what is begun there.
    pub(super) fn begin(self, principal: &Arc<str>) -> (ConversationKey, Begin) {
        let Self { conversation, request_id, text, options } = self;
        let existing = conversation.is_some();
        let id = conversation.unwrap_or_else(|| ConversationId::derived(principal, request_id));
        let participant = Arc::clone(principal);
        let message = Arc::new(Message { participant, text, request: request_id });
        (ConversationKey::new(Arc::clone(principal), id), Begin { message, options, existing })
    }
}

/// Why a request was not begun.
pub(super) fn refused(error: turn::Error, request: RequestId) -> Error {
    match error {
        turn::Error::Log(store::Error::Reused) => Error::Reused(request),
        other => other.into(),
    }
}

/// The turn's events, then its status.
fn responses(
    conversation: ConversationId,
    events: TurnTail,
) -> impl Stream<Item = Result<proto::ChatResponse, Status>> + Send {
    let conversation = convert::id(conversation.0);
    // Events that are ready are handed out together, without a wake-up for each.
    let first = (conversation, Some(events));
    let batches = stream::unfold(first, |(conversation, events)| async move {
        let mut events = events?;
        let (batch, rest) = match events.next().await {
            Ok(Some(batch)) => {
                let to_response = |event| proto::ChatResponse {
                    event: Some(convert::event(&conversation, event)),
                };
                (batch.into_iter().map(|event| Ok(to_response(event))).collect(), Some(events))
            }
            Ok(None) => {
                let reason = events.failure()?;
                (vec![Err(Error::TurnFailed(reason).into())], None)
            }
            Err(error) => (vec![Err(Error::from(error).into())], None),
        };
        Some((stream::iter::<Vec<_>>(batch), (conversation, rest)))
    });
    batches.flatten()
}
