//! `Ask`: the best answer in one message.

use super::{Chatbot, Error, NO_CONVERSATIONS, convert, proto};
use crate::engine::Question;

impl Chatbot {
    pub(super) fn answer(&self, request: &proto::AskRequest) -> Result<proto::AskResponse, Error> {
        let mut check = convert::Check::default();
        check.query("query", &request.query, self.limits.query_bytes);
        let request_id = check.optional_request_id("request_id", &request.request_id);
        check.engine("engine", request.engine);
        let language = check.language("language_code", &request.language_code);
        check.finish()?;
        if !request.conversation_id.is_empty() {
            return Err(Error::Unimplemented(NO_CONVERSATIONS));
        }
        let question = Question { text: &request.query, language: language.as_deref() };
        let answer = self.retrieval.answer(question)?;
        Ok(proto::AskResponse {
            conversation_id: String::new(),
            answer: Some(convert::turn_completed(request_id.to_string(), answer)),
        })
    }
}
