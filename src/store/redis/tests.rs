//! What the store of many replicas promises beyond the contract, against real servers: what happens
//! when they end, hang, come back, or fail over and forget.

mod failures;
mod kept;
mod places;
mod server;
mod wakeups;

use redis::Value;
use server::{LONG, Server, installed};

use super::*;
use crate::{
    config::{Config, Sources, StoreUrl},
    domain::{ConversationId, EventBody, Failure, FailureReason, Message, RequestId, Sequence},
    health::{Health, Service},
    store::{
        After, Appended, Begin, Begun, ConversationLog as _, Owner, Store, TurnOptions,
        contract::{self, Replicas},
    },
};

const LEASE: Duration = Duration::from_millis(500);

/// An open store, whose tasks end with it.
struct Opened {
    store: Arc<Redis>,
    health: Health,
    life: Lifecycle,
}

impl Drop for Opened {
    fn drop(&mut self) {
        assert_eq!(self.life.crash(), None);
        self.life.closed().cancel();
    }
}

impl Opened {
    async fn ready(&self, ready: bool) {
        let mut state = self.health.watch();
        let reached = state.wait_for(|state| state.serving(Service::Readiness) == ready);
        tokio::time::timeout(LONG, reached).await.expect("in time").expect("a state");
    }
}

fn config(settings: &[&str]) -> config::Store {
    let mut overrides = vec!["store.lease=500ms".to_owned()];
    overrides.extend(settings.iter().map(|setting| (*setting).to_owned()));
    Config::load(&Sources { overrides, ..Sources::default() }).expect("good settings").store
}

async fn try_open(settings: &[&str]) -> Result<Opened, Error> {
    let config = config(settings);
    let StoreUrl::Redis(url) = &config.url else { panic!("{config:?}") };
    let mut registry = Registry::default();
    let health = Health::new(&mut registry);
    let dependency = health.dependency("store");
    health.started();
    let life = Lifecycle::new();
    let patience = Duration::from_secs(1);
    let store =
        Redis::open_within(patience, url, &config, dependency, &life, &mut registry).await?;
    Ok(Opened { store, health, life })
}

async fn open(url: &str, settings: &[&str]) -> Opened {
    let url = format!("store.url={url}");
    let settings: Vec<_> = [url.as_str()].into_iter().chain(settings.iter().copied()).collect();
    try_open(&settings).await.expect("a store")
}

/// Why the store could not be opened.
async fn refusal(settings: &[&str]) -> String {
    match try_open(settings).await {
        Ok(_) => panic!("it opened"),
        Err(error) => error.to_string(),
    }
}

async fn the_contract_holds(url: &str, settings: &[&str]) {
    let (here, there) = (open(url, settings).await, open(url, settings).await);
    let replicas = Replicas {
        here: Arc::clone(&here.store) as Arc<dyn Store>,
        there: Arc::clone(&there.store) as Arc<dyn Store>,
        lease: LEASE,
        new: true,
    };
    contract::holds(&replicas).await;
    contract::histories(&replicas, 50, 1).await;
}

fn fresh() -> ConversationKey {
    ConversationKey::new("alice", ConversationId(Uuid::new_v4()))
}

fn says(text: &str) -> Begin {
    let request = RequestId(Uuid::new_v4());
    Begin {
        message: Message { participant: "alice".into(), text: text.to_owned(), request }.into(),
        options: TurnOptions::default(),
        existing: false,
    }
}

fn delta(text: &str) -> EventBody {
    EventBody::Delta(text.into())
}

fn failed() -> EventBody {
    let (reason, partial_text) = (FailureReason::Internal, String::new());
    EventBody::Failed(Failure { reason, partial_text })
}

async fn owner(store: &Redis, key: &ConversationKey) -> Owner {
    match store.begin(key, &says("hello")).await.expect("a begin") {
        Begun::New { owner, .. } => owner,
        other => panic!("not new: {other:?}"),
    }
}

async fn stored(store: &Redis, owner: &Owner, number: u64, text: &str) -> Sequence {
    match store.append(owner, number, &[delta(text)]).await.expect("an append") {
        Appended::Stored { last, .. } => last,
        other => panic!("not stored: {other:?}"),
    }
}
