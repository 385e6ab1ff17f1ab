//! `Chat`: starts a turn or resumes it, and streams its events.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    vec,
};

use futures_util::{Stream, stream};
use tokio::time::Instant;
use tonic::Status;

use super::{Chatbot, Error, convert, proto};
use crate::{
    domain::{ConversationId, ConversationKey, Event, Message, Position, RequestId},
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
    let batches = stream::unfold(Some(events), |events| async move {
        let mut events = events?;
        match events.next().await {
            Ok(Some(batch)) => Some((Ok(batch), Some(events))),
            Ok(None) => Some((Err(Error::TurnFailed(events.failure()?)), None)),
            Err(error) => Some((Err(error.into()), None)),
        }
    });
    Responses { conversation: convert::id(conversation.0), batches, ready: Vec::new().into_iter() }
}

pin_project_lite::pin_project! {
    /// Messages of events that are ready, one after the other without a wake-up. By hand, since each stream of
    /// the library that it would be made of copies each message once more.
    struct Responses<S> {
        conversation: String,
        #[pin]
        batches: S,
        ready: vec::IntoIter<Event>,
    }
}

impl<S: Stream<Item = Result<Vec<Event>, Error>>> Stream for Responses<S> {
    type Item = Result<proto::ChatResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut this = self.project();
        loop {
            if let Some(event) = this.ready.next() {
                let event = Some(convert::event(this.conversation, event));
                return Poll::Ready(Some(Ok(proto::ChatResponse { event })));
            }
            match ready!(this.batches.as_mut().poll_next(context)) {
                Some(Ok(batch)) => *this.ready = batch.into_iter(),
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => return Poll::Ready(None),
            }
        }
    }
}
