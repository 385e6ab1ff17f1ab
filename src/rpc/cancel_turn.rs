//! `CancelTurn`: the stop button.

use std::sync::Arc;

use super::{Chatbot, Error, convert, proto};
use crate::{
    domain::{ConversationId, ConversationKey, RequestId},
    error::Violation,
};

impl Chatbot {
    pub(super) async fn stop(
        &self,
        principal: &Arc<str>,
        request: &proto::CancelTurnRequest,
    ) -> Result<proto::CancelTurnResponse, Error> {
        let (conversation, turn) = check(request, None)?;
        // That of a first message is known to nobody before its first event, but to whoever can derive it.
        let conversation = conversation.unwrap_or_else(|| ConversationId::derived(principal, turn));
        self.turns.cancel(&ConversationKey::new(Arc::clone(principal), conversation), turn).await?;
        Ok(proto::CancelTurnResponse {})
    }
}

/// The turn that is meant, and its conversation where that is said. `joined`: the one that goes without
/// saying.
pub(super) fn check(
    request: &proto::CancelTurnRequest,
    joined: Option<ConversationId>,
) -> Result<(Option<ConversationId>, RequestId), Error> {
    let mut check = convert::Check::default();
    let named = check.conversation_id("conversation_id", &request.conversation_id);
    let turn = check.request_id("turn_id", &request.turn_id);
    if let (Some(named), Some(joined)) = (named, joined)
        && named != joined
    {
        let what = "must be the conversation that was joined, or empty";
        check.found(Violation::new("conversation_id", what));
    }
    check.finish()?;
    Ok((named.or(joined), turn))
}
