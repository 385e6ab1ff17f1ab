//! The store of many replicas: Redis or Valkey.
//!
//! A replica has two connections to it (two and one more for each further primary of a cluster), one
//! for commands and one for wake-ups, however many conversations and readers it has. Each state change
//! is one script, an atomic step by the server's own clock; nothing here compares replicas' clocks.
//!
//! A server that fails over may lose its newest writes. That is not prevented (`store.wait_replicas`
//! makes it rarer) but noticed: an owner is fenced when its last append is missing, a reader's position
//! carries a tag, and epochs are not given out twice.

mod calls;
mod connect;
mod conversations;
mod facts;
mod links;
mod metrics;
mod scripts;
mod subscriber;

use std::{sync::Arc, time::Duration};

use prometheus_client::registry::Registry;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use self::{
    connect::{Connection, Connector, Failure},
    links::Links,
    metrics::Metrics,
    scripts::{Keys, Operation},
    subscriber::{Said, Subscriber, newer},
};
use super::{Error, Hint, KnowledgeLog, hints::Hints};
use crate::{
    config,
    domain::{Change, ConversationKey, Revision},
    health::Dependency,
    lifecycle::Lifecycle,
};

/// How long a server that cannot be reached is waited for at the start: pods start in any order.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is tried meanwhile.
const TRY: Duration = Duration::from_millis(500);
/// Least that requests are remembered.
const REQUESTS: Duration = Duration::from_hours(24);
/// How often the knowledge log's revision, and a cluster's slots, are looked at unasked.
const LOOK: Duration = Duration::from_secs(5);

/// The store of many replicas.
#[derive(Debug)]
pub struct Redis {
    links: Arc<Links>,
    hints: Hints,
    /// Marks this replica's own wake-ups.
    instance: String,
    revision: watch::Sender<Revision>,
    kept: Kept,
    prefix: String,
    wait_replicas: u32,
    metrics: Metrics,
}

/// How long things are kept.
#[derive(Debug, Clone, Copy)]
struct Kept {
    lease: Duration,
    retention: Duration,
    requests: Duration,
}

impl Redis {
    /// Connects to the store of `url` and checks that it will do. A server that cannot be reached is
    /// waited for half a minute. Its tasks run until `life` has closed.
    pub async fn open(
        url: &config::Redis,
        store: &config::Store,
        dependency: Dependency,
        life: &Lifecycle,
        registry: &mut Registry,
    ) -> Result<Arc<Self>, Error> {
        Self::open_within(PATIENCE, url, store, dependency, life, registry).await
    }

    async fn open_within(
        patience: Duration,
        url: &config::Redis,
        store: &config::Store,
        dependency: Dependency,
        life: &Lifecycle,
        registry: &mut Registry,
    ) -> Result<Arc<Self>, Error> {
        let settings = url.clone();
        let connector = tokio::task::spawn_blocking(move || Connector::new(&settings))
            .await
            .map_err(|error| Error::Down(format!("the certificates were lost: {error}")))?;
        let connector = Arc::new(connector.map_err(Error::Refused)?);
        let first = reach(&connector, patience).await?;
        let metrics = Metrics::new(registry);
        let (links, keeper) =
            Links::new(Arc::clone(&connector), first, dependency, metrics.clone()).await;
        life.spawn_foundation("store connections", keeper.run(life.closed().clone()));
        let this = Arc::new(Self {
            links,
            hints: Hints::default(),
            instance: Uuid::new_v4().simple().to_string(),
            revision: watch::Sender::default(),
            kept: Kept {
                lease: store.lease,
                retention: store.retention,
                requests: store.retention.max(REQUESTS),
            },
            prefix: url.key_prefix.clone(),
            wait_replicas: url.wait_replicas,
            metrics: metrics.clone(),
        });
        this.links.learn_slots().await.map_err(Error::Refused)?;
        this.look_at_knowledge().await?;
        let resumed = Arc::new(Notify::new());
        let subscriber = Subscriber {
            connector,
            hints: this.hints.clone(),
            instance: this.instance.clone(),
            revision: this.revision.clone(),
            resumed: Arc::clone(&resumed),
            metrics,
        };
        life.spawn_foundation("store wake-ups", subscriber.run(life.closed().clone()));
        life.spawn_foundation(
            "store",
            Arc::clone(&this).look_around(resumed, life.closed().clone()),
        );
        Ok(this)
    }

    /// Learns what no wake-up has told.
    async fn look_around(self: Arc<Self>, resumed: Arc<Notify>, closing: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = closing.cancelled() => return,
                () = resumed.notified() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
            let look = async {
                // Failures were told where the connections are kept.
                let _ = self.links.learn_slots().await;
                let _ = self.look_at_knowledge().await;
            };
            tokio::select! {
                () = closing.cancelled() => return,
                () = look => {}
            }
        }
    }

    async fn look_at_knowledge(&self) -> Result<(), Error> {
        self.read_knowledge(Revision(0), 0).await.map(drop)
    }

    fn conversation_keys(&self, key: &ConversationKey) -> Keys {
        Keys::of_conversation(&self.prefix, key.digest())
    }

    fn said(&self, what: Said) -> String {
        what.payload(&self.instance)
    }
}

/// The first connection.
async fn reach(connector: &Connector, patience: Duration) -> Result<Connection, Error> {
    let deadline = Instant::now() + patience;
    let mut last = String::new();
    loop {
        let why = match connector.primary(None).await {
            Ok(connection) => {
                let Connection { address, facts, .. } = &connection;
                info!(%address, version = facts.version, "the store is connected");
                if let Some(why) = facts.warning() {
                    warn!(%address, why, "the store may lose conversations");
                }
                return Ok(connection);
            }
            Err(Failure::Refused(why)) => return Err(Error::Refused(why)),
            Err(Failure::Down(why)) => why,
        };
        if Instant::now() + TRY > deadline {
            return Err(Error::Refused(format!("{why} (tried for {} s)", patience.as_secs())));
        }
        if why != last {
            warn!(why, "the store cannot be reached, trying again");
            last = why;
        }
        tokio::time::sleep(TRY).await;
    }
}

#[async_trait::async_trait]
impl KnowledgeLog for Redis {
    async fn append_knowledge(&self, changes: Vec<Change>) -> Result<Revision, Error> {
        let keys = Keys::of_knowledge(&self.prefix);
        let mut args = vec![keys.channel()];
        for change in &changes {
            args.push(change.answer_id().to_string());
            args.push(json(change)?);
        }
        let names = ["revision", "order", "changes"].map(|name| keys.named(name));
        let reply = self.call(Operation::Teach, &keys, &names, &args, true).await?;
        let revision = Revision(reply.number(1)?);
        newer(&self.revision, revision);
        Ok(revision)
    }

    async fn read_knowledge(
        &self,
        after: Revision,
        most: usize,
    ) -> Result<Vec<(Revision, Change)>, Error> {
        let keys = Keys::of_knowledge(&self.prefix);
        let most = i32::try_from(most).unwrap_or(i32::MAX);
        let args = [after.0.to_string(), most.to_string()];
        let names = ["revision", "order", "changes"].map(|name| keys.named(name));
        let reply = self.call(Operation::Learn, &keys, &names, &args, false).await?;
        newer(&self.revision, Revision(reply.number(1)?));
        let rows = reply.texts(2)?;
        rows.chunks_exact(2)
            .map(|row| {
                let unreadable =
                    |why: String| Error::Corrupt(format!("knowledge revision {}: {why}", row[0]));
                let revision = row[0].parse().map_err(|_| unreadable("no number".to_owned()))?;
                let change =
                    serde_json::from_str(&row[1]).map_err(|error| unreadable(error.to_string()))?;
                Ok((Revision(revision), change))
            })
            .collect()
    }

    fn knowledge_revision(&self) -> watch::Receiver<Revision> {
        self.revision.subscribe()
    }
}

fn json(value: &impl serde::Serialize) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|error| Error::Corrupt(error.to_string()))
}

#[cfg(test)]
mod tests;
