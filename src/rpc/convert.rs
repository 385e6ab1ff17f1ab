//! Messages to domain values and back, and the rules of requests.

use std::sync::Arc;

use uuid::{Uuid, Version, fmt::Hyphenated};

use super::{
    Error,
    proto::{self, event::Event as Body},
    status,
};
use crate::{
    domain::{
        AnswerId, Change, Completion, ConversationId, EngineKind, Entry, Event, EventBody,
        FinishReason, Message, Position, RequestId, Source, primary_language, shown,
        text_violation,
    },
    error::Violation,
    knowledge::Hit,
    store,
    turn::Turns,
};

/// Collects what is wrong with a request, so that one answer tells all of it.
#[derive(Debug, Default)]
pub(super) struct Check(Vec<Violation>);

impl Check {
    pub(super) fn found(&mut self, violation: Violation) {
        self.0.push(violation);
    }

    pub(super) fn query(&mut self, field: &str, text: &str, most: usize) {
        self.0.extend(text_violation(text, most).map(|what| Violation::new(field, what)));
    }

    pub(super) fn language(&mut self, field: &str, tag: &str) -> Option<String> {
        primary_language(tag).unwrap_or_else(|what| {
            self.found(Violation::new(field, what));
            None
        })
    }

    /// The id of the request.
    pub(super) fn request_id(&mut self, field: &str, id: &str) -> RequestId {
        RequestId(self.uuid(field, id, ""))
    }

    /// The id of the request; a new one where the caller gives none.
    pub(super) fn optional_request_id(&mut self, field: &str, id: &str) -> RequestId {
        if id.is_empty() {
            return RequestId(Uuid::new_v4());
        }
        RequestId(self.uuid(field, id, ", or empty"))
    }

    fn uuid(&mut self, field: &str, id: &str, or: &str) -> Uuid {
        match Uuid::try_parse(id) {
            // Other spellings of a UUID would be other requests to a log.
            Ok(uuid) if id.len() == 36 && uuid.get_version() == Some(Version::Random) => uuid,
            _ => {
                let what = format!(
                    "must be a UUID of version 4 such as \
                     \"0b8e4c8e-6d3a-4c36-9d1c-2f1f0a3d5e77\"{or}, is {}",
                    shown(id)
                );
                self.found(Violation::new(field, what));
                Uuid::nil()
            }
        }
    }

    /// The id of a conversation, as the server has given it; `None` where the caller gives none.
    pub(super) fn conversation_id(&mut self, field: &str, id: &str) -> Option<ConversationId> {
        if id.is_empty() {
            return None;
        }
        match Uuid::try_parse(id) {
            Ok(uuid) if id.len() == 36 => Some(ConversationId(uuid)),
            _ => {
                let what = format!("must be an id that the server has given, is {}", shown(id));
                self.found(Violation::new(field, what));
                None
            }
        }
    }

    /// Which engine is wanted, if `turns` offer it; `None`: the server's default.
    pub(super) fn engine(&mut self, field: &str, number: i32, turns: &Turns) -> Option<EngineKind> {
        let (wanted, kind) = match proto::Engine::try_from(number) {
            Ok(proto::Engine::Unspecified) => return None,
            Ok(wanted @ proto::Engine::Retrieval) => (wanted, EngineKind::Retrieval),
            Ok(wanted @ proto::Engine::Generative) => (wanted, EngineKind::Generative),
            Ok(wanted @ proto::Engine::RetrievalAugmented) => (wanted, EngineKind::Augmented),
            Err(_) => {
                self.found(Violation::new(field, format!("{number} is no engine")));
                return None;
            }
        };
        if !turns.offers(kind) {
            let what = format!("{} is not offered here, ENGINE_RETRIEVAL is", wanted.as_str_name());
            self.found(Violation::new(field, what));
        }
        Some(kind)
    }

    pub(super) fn finish(self) -> Result<(), Error> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::Fields(self.0)) }
    }
}

/// The change that a request asks for; the error says by field why it is refused.
pub(super) fn change(request: proto::TeachRequest) -> Result<Change, String> {
    use proto::teach_request::Change as Requested;
    match request.change {
        None => Err("change: must be an upsert or a delete_answer_id".to_owned()),
        Some(Requested::DeleteAnswerId(id)) if id > 0 => Ok(Change::Delete(AnswerId(id))),
        Some(Requested::DeleteAnswerId(id)) => {
            Err(format!("delete_answer_id: must be positive, is {id}"))
        }
        Some(Requested::Upsert(entry)) => {
            let entry = Entry {
                answer_id: AnswerId(entry.answer_id),
                questions: entry.questions,
                answer: entry.answer,
                language_code: entry.language_code,
            };
            let wrong: Vec<String> = entry
                .violations()
                .into_iter()
                .map(|violation| violation.within("upsert").to_string())
                .collect();
            if wrong.is_empty() { Ok(Change::Upsert(entry)) } else { Err(wrong.join("; ")) }
        }
    }
}

pub(super) fn ranked_answer(hit: &Hit) -> proto::RankAnswersResponse {
    proto::RankAnswersResponse {
        answer_id: hit.entry.answer_id.0,
        score: hit.score,
        text: hit.entry.answer.clone(),
        confidence: hit.confidence,
    }
}

/// A position that a client has from us; one that cannot be read was never given by anybody.
pub(super) fn position(token: &str) -> Result<Option<Position>, Error> {
    if token.is_empty() {
        return Ok(None);
    }
    let position = token.parse().map_err(|_| store::Error::PositionUnknown)?;
    Ok(Some(position))
}

/// An id as messages have it.
pub(super) fn id(uuid: Uuid) -> String {
    let mut text = [0; Hyphenated::LENGTH];
    uuid.hyphenated().encode_lower(&mut text).to_owned()
}

/// An event of a conversation, for its readers.
pub(super) fn event(conversation: &str, event: Event) -> proto::Event {
    let turn = event.turn.map(|turn| id(turn.0)).unwrap_or_default();
    let body = match event.body {
        EventBody::Posted(message) => {
            let Message { participant, text, request } = Arc::unwrap_or_clone(message);
            let (participant_id, request_id) = (participant.as_ref().to_owned(), id(request.0));
            Body::MessagePosted(proto::MessagePosted { participant_id, text, request_id })
        }
        EventBody::Delta(text) => Body::TextDelta(text.as_ref().to_owned()),
        EventBody::Completed(completion) => {
            Body::TurnCompleted(turn_completed(turn.clone(), completion))
        }
        EventBody::Failed(failure) => {
            let (code, reason) = status::code(super::failure_kind(failure.reason));
            Body::TurnFailed(proto::TurnFailed {
                code: code.into(),
                reason: reason.to_owned(),
                partial_text: failure.partial_text,
            })
        }
    };
    proto::Event {
        sequence_number: i64::try_from(event.position.sequence.0).unwrap_or(i64::MAX),
        resume_token: event.position.to_string(),
        turn_id: turn,
        create_time: Some(event.time.into()),
        conversation_id: conversation.to_owned(),
        event: Some(body),
    }
}

pub(super) fn turn_completed(turn_id: String, completion: Arc<Completion>) -> proto::TurnCompleted {
    let completion = Arc::unwrap_or_clone(completion);
    let finish_reason = match completion.finish {
        FinishReason::Stop => proto::FinishReason::Stop,
        FinishReason::MaxTokens => proto::FinishReason::MaxTokens,
        FinishReason::ContentFilter => proto::FinishReason::ContentFilter,
        FinishReason::Cancelled => proto::FinishReason::Cancelled,
    };
    proto::TurnCompleted {
        turn_id,
        text: completion.text,
        answered: completion.answered,
        confidence: completion.confidence,
        sources: completion.sources.into_iter().map(source).collect(),
        usage: completion.usage.map(|usage| proto::Usage {
            input_tokens: usage.input_tokens.into(),
            output_tokens: usage.output_tokens.into(),
        }),
        finish_reason: finish_reason.into(),
        degraded: completion.degraded,
    }
}

fn source(source: Source) -> proto::Source {
    proto::Source { answer_id: source.answer_id.0, score: source.score, title: source.title }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_uuids_of_version_4_in_one_spelling() {
        let refused = |id: &str| {
            let mut check = Check::default();
            check.optional_request_id("request_id", id);
            check.finish().is_err()
        };
        assert!(!refused(""));
        assert!(!refused("0b8e4c8e-6d3a-4c36-9d1c-2f1f0a3d5e77"));
        assert!(!refused("0B8E4C8E-6D3A-4C36-9D1C-2F1F0A3D5E77"));
        for other in [
            "0b8e4c8e6d3a4c369d1c2f1f0a3d5e77",
            "{0b8e4c8e-6d3a-4c36-9d1c-2f1f0a3d5e77}",
            "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
            "00000000-0000-0000-0000-000000000000",
            "request",
        ] {
            assert!(refused(other), "{other}");
        }
    }

    #[test]
    fn a_bad_change_is_refused_by_its_fields() {
        use proto::teach_request::Change as Requested;
        let refusal = |change| change_of(change).expect_err("refused");
        assert_eq!(
            refusal(Some(Requested::DeleteAnswerId(-1))),
            "delete_answer_id: must be positive, is -1"
        );
        assert_eq!(refusal(None), "change: must be an upsert or a delete_answer_id");
        let empty = refusal(Some(Requested::Upsert(proto::KnowledgeEntry::default())));
        assert_eq!(
            empty,
            "upsert.answer_id: must be positive, is 0; \
             upsert.questions: must be 1 to 100 questions, are 0; \
             upsert.answer: must not be empty"
        );
    }

    fn change_of(change: Option<proto::teach_request::Change>) -> Result<Change, String> {
        super::change(proto::TeachRequest { change })
    }
}
