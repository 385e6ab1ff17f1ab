//! `CancelTurn`: the stop button.

use super::{Chatbot, Error, convert, proto};
use crate::{
    domain::{ConversationId, ConversationKey, RequestId},
    error::Violation,
};

impl Chatbot {
    pub(super) async fn stop(
        &self,
        principal: &str,
        request: &proto::CancelTurnRequest,
    ) -> Result<proto::CancelTurnResponse, Error> {
        let (conversation, turn) = check(request, None)?;
        self.turns.cancel(&ConversationKey::new(principal, conversation), turn).await?;
        Ok(proto::CancelTurnResponse {})
    }
}

/// The turn that is meant. `joined`: the conversation that goes without saying.
pub(super) fn check(
    request: &proto::CancelTurnRequest,
    joined: Option<ConversationId>,
) -> Result<(ConversationId, RequestId), Error> {
    let mut check = convert::Check::default();
    let named = check.conversation_id("conversation_id", &request.conversation_id);
    let turn = check.request_id("turn_id", &request.turn_id);
    match (named, joined) {
        (None, None) if request.conversation_id.is_empty() => {
            check.found(Violation::new("conversation_id", "must not be empty"));
        }
        (Some(named), Some(joined)) if named != joined => {
            let what = "must be the conversation that was joined, or empty";
            check.found(Violation::new("conversation_id", what));
        }
        _ => {}
    }
    check.finish()?;
    // Unreachable without a violation above.
    let conversation = named.or(joined).ok_or_else(|| Error::Fields(Vec::new()))?;
    Ok((conversation, turn))
}
