//! `Ask`: the best answer in one message.

use tokio::time::Instant;

use std::sync::Arc;

use super::{Chatbot, Error, chat::Asked, convert, proto};
use crate::{domain::EventBody, store::TurnOptions};

impl Chatbot {
    pub(super) async fn answer(
        &self,
        principal: &Arc<str>,
        deadline: Option<Instant>,
        request: proto::AskRequest,
    ) -> Result<proto::AskResponse, Error> {
        let mut check = convert::Check::default();
        check.query("query", &request.query, self.limits.query_bytes);
        let request_id = check.optional_request_id("request_id", &request.request_id);
        let conversation = check.conversation_id("conversation_id", &request.conversation_id);
        let engine = check.engine("engine", request.engine, &self.turns);
        let language = check.language("language_code", &request.language_code);
        check.finish()?;
        let options = TurnOptions { engine, language, trace: None };
        let asked = Asked { conversation, request_id, text: request.query, options };
        let (key, events) = self.begin(principal, asked, None, deadline).await?;
        match events.end().await? {
            Some(EventBody::Completed(completion)) => Ok(proto::AskResponse {
                conversation_id: convert::id(key.id().0),
                answer: Some(convert::turn_completed(convert::id(request_id.0), completion)),
            }),
            Some(EventBody::Failed(failure)) => Err(Error::TurnFailed(failure.reason)),
            _ => Err(Error::Panicked),
        }
    }
}
