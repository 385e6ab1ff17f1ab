//! What every store promises, as tests that take any store.
//!
//! A store is tested as two replicas see it. Conversations are fresh and of random principals, so a
//! server that holds others will do. Time is real: stores have clocks of their own. Whoever waits for
//! the end of a lease asks the store whether it is over.

mod conversations;
mod histories;
mod knowledge;
mod turns;

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;
use uuid::Uuid;

pub(super) use self::{histories::histories, knowledge::upsert};
use super::{
    Active, After, Appended, Begin, Begun, Error, Found, Owner, Reaped, Store, TurnOptions,
};
use crate::{
    domain::{
        Completion, ConversationId, ConversationKey, Event, EventBody, Failure, FailureReason,
        FinishReason, Message, Position, RequestId, Sequence,
    },
    telemetry::TurnTrace,
};

/// Time for what takes no time.
const SOON: Duration = Duration::from_secs(10);
/// More events than any conversation here has.
const ALL: usize = 10_000;

/// A store under test, as two replicas see it; the same one twice if only one server can have it.
#[derive(Debug, Clone)]
pub(super) struct Replicas {
    pub(super) here: Arc<dyn Store>,
    pub(super) there: Arc<dyn Store>,
    /// The lease that both were opened with. Half a second is short, and long enough for a machine
    /// that has other things to do.
    pub(super) lease: Duration,
    /// Nothing was ever taught in it, and nobody else uses it.
    pub(super) new: bool,
}

/// Runs every promise.
pub(super) async fn holds(replicas: &Replicas) {
    knowledge::holds(replicas).await;
    let (conversations, turns) = (conversations::holds(replicas), turns::holds(replicas));
    tokio::join!(conversations, turns);
}

fn fresh() -> ConversationKey {
    ConversationKey::new(format!("principal {}", Uuid::new_v4()), ConversationId(Uuid::new_v4()))
}

fn request() -> RequestId {
    RequestId(Uuid::new_v4())
}

fn says(request: RequestId, text: &str) -> Begin {
    Begin {
        message: Message { participant: "alice".into(), text: text.to_owned(), request }.into(),
        options: TurnOptions::default(),
        existing: false,
    }
}

fn delta(text: &str) -> EventBody {
    EventBody::Delta(text.into())
}

fn completed(text: &str) -> EventBody {
    let completion = Completion {
        text: text.to_owned(),
        answered: true,
        confidence: 0.1,
        sources: Vec::new(),
        usage: None,
        finish: FinishReason::Stop,
        degraded: false,
    };
    EventBody::Completed(completion.into())
}

fn interrupted(partial_text: &str) -> EventBody {
    let partial_text = partial_text.to_owned();
    EventBody::Failed(Failure { reason: FailureReason::Interrupted, partial_text })
}

/// Begins a turn that has to be new.
async fn new_turn(store: &dyn Store, key: &ConversationKey, begin: &Begin) -> (Owner, Sequence) {
    match store.begin(key, begin).await.expect("a begin") {
        Begun::New { owner, start, logged } => {
            assert!(matches!(&logged[..], [message] if message.position.sequence == start));
            (owner, start)
        }
        other => panic!("not new: {other:?}"),
    }
}

/// Appends what has to be stored.
async fn stored(store: &dyn Store, owner: &Owner, number: u64, events: &[EventBody]) -> Sequence {
    match store.append(owner, number, events).await.expect("an append") {
        Appended::Stored { last, .. } => last,
        other => panic!("not stored: {other:?}"),
    }
}

/// The whole conversation.
async fn log(store: &dyn Store, key: &ConversationKey) -> Vec<Event> {
    let page = store.read(key, After::Sequence(Sequence(0)), ALL, false).await;
    page.expect("a read").events
}

async fn bodies(store: &dyn Store, key: &ConversationKey) -> Vec<EventBody> {
    log(store, key).await.into_iter().map(|event| event.body).collect()
}

async fn active(store: &dyn Store, key: &ConversationKey) -> Option<Active> {
    store.read(key, After::Sequence(Sequence(0)), 1, false).await.expect("a read").active
}

/// Waits until the active turn's lease is over, as the store sees it.
async fn lease_over(store: &dyn Store, key: &ConversationKey, lease: Duration) {
    let over = async {
        while !active(store, key).await.expect("an active turn").orphaned {
            tokio::time::sleep(lease / 20).await;
        }
    };
    timeout(lease * 10 + SOON, over).await.expect("leases end");
}

/// Takes over what has to be there to take over, once its lease is over.
async fn reaped(store: &dyn Store, key: &ConversationKey, lease: Duration) -> Reaped {
    lease_over(store, key, lease).await;
    store.reap(key).await.expect("a reap").expect("an orphan")
}
