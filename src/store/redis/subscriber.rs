//! The connection for wake-ups: one, however many readers there are.
//!
//! It is subscribed to exactly the conversations that somebody here waits for. Whoever is woken reads
//! the log, so a lost wake-up costs a second and an extra one costs nothing: after each subscription
//! its readers are woken once, for what came before it.

use std::{collections::HashSet, sync::Arc, time::Duration};

use redis::{
    PushInfo, PushKind, RedisResult, Value, aio::MultiplexedConnection, from_redis_value_ref,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{
    super::hints::Hints,
    connect::{Connection, Connector, Failure},
    links::RETRY,
    metrics::Metrics,
    scripts::{Keys, Subject},
};
use crate::domain::{ConversationDigest, Revision};

/// Changes of interest within this time share a command.
const TOGETHER: Duration = Duration::from_millis(5);
/// Channels in one command.
const CHANNELS: usize = 500;
/// How often a silent connection is asked whether it is alive.
const ALIVE: Duration = Duration::from_secs(5);

/// What a wake-up says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    Grown,
    Cancelled,
}

impl Said {
    /// The text of it. Replicas leave out what they have said themselves: their readers were woken
    /// without the way round.
    pub(super) fn payload(self, instance: &str) -> String {
        let letter = match self {
            Self::Grown => 'g',
            Self::Cancelled => 'c',
        };
        format!("{letter}{instance}")
    }
}

/// Receives wake-ups.
pub(super) struct Subscriber {
    pub(super) connector: Arc<Connector>,
    pub(super) hints: Hints,
    pub(super) instance: String,
    pub(super) revision: watch::Sender<Revision>,
    /// Told whenever the knowledge log may have grown unheard.
    pub(super) resumed: Arc<tokio::sync::Notify>,
    pub(super) metrics: Metrics,
}

impl Subscriber {
    pub(super) async fn run(self, closing: CancellationToken) {
        let this = Arc::new(self);
        loop {
            let why = tokio::select! {
                biased;
                () = closing.cancelled() => return,
                why = this.listen() => why,
            };
            this.metrics.subscriptions.set(0);
            // Told by the link for commands already, if the server is gone.
            debug!(why, "no wake-ups from other replicas, trying again");
            tokio::select! {
                () = closing.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    /// Listens until the connection is over, and says why it is.
    async fn listen(self: &Arc<Self>) -> String {
        let this = Arc::clone(self);
        let pushed = Arc::new(move |push: PushInfo| this.pushed(&push));
        match self.connector.primary(Some(pushed)).await {
            Ok(Connection { commands, driver, .. }) => tokio::select! {
                () = driver => "the connection was closed".to_owned(),
                outcome = self.keep_subscribed(commands) => match outcome {
                    Ok(()) => "it ended".to_owned(),
                    Err(error) => error.to_string(),
                },
            },
            Err(Failure::Down(why) | Failure::Refused(why)) => why,
        }
    }

    async fn keep_subscribed(&self, mut commands: MultiplexedConnection) -> RedisResult<()> {
        let prefix = &self.connector.settings().key_prefix;
        commands.subscribe(Keys::of_knowledge(prefix).channel()).await?;
        self.resumed.notify_one();
        let mut subscribed = HashSet::new();
        loop {
            let (joined, left) = self.hints.difference(&subscribed);
            for part in joined.chunks(CHANNELS) {
                commands.subscribe(channels(prefix, part)).await?;
                for conversation in part {
                    subscribed.insert(*conversation);
                    // What was said until now was not heard, a request to stop included.
                    self.hints.cancelled(*conversation);
                }
            }
            for part in left.chunks(CHANNELS) {
                commands.unsubscribe(channels(prefix, part)).await?;
                for conversation in part {
                    subscribed.remove(conversation);
                }
            }
            self.metrics.subscriptions.set(i64::try_from(subscribed.len()).unwrap_or(i64::MAX));
            loop {
                tokio::select! {
                    () = self.hints.changed() => break,
                    () = tokio::time::sleep(ALIVE) => redis::cmd("PING").exec_async(&mut commands).await?,
                }
            }
            tokio::time::sleep(TOGETHER).await;
        }
    }

    fn pushed(&self, push: &PushInfo) {
        if push.kind != PushKind::Message {
            return;
        }
        let [channel, payload] = push.data.as_slice() else { return };
        let (Some(channel), Some(payload)) = (text(channel), text(payload)) else { return };
        match Subject::of_channel(&self.connector.settings().key_prefix, &channel) {
            Some(Subject::Conversation(conversation)) => {
                if payload == Said::Grown.payload(&self.instance)
                    || payload == Said::Cancelled.payload(&self.instance)
                {
                    return;
                }
                self.metrics.hints.inc();
                if payload.starts_with('c') {
                    self.hints.cancelled(conversation);
                } else {
                    self.hints.grown(conversation);
                }
            }
            Some(Subject::Knowledge) => {
                self.metrics.hints.inc();
                // One that cannot be read says at least that something is there to look up.
                match payload.parse().map(Revision) {
                    Ok(newest) => newer(&self.revision, newest),
                    Err(_) => self.resumed.notify_one(),
                }
            }
            None => {}
        }
    }
}

/// Tells those who follow the knowledge log, if it is news.
pub(super) fn newer(revision: &watch::Sender<Revision>, newest: Revision) {
    revision.send_if_modified(|known| {
        let news = newest > *known;
        *known = (*known).max(newest);
        news
    });
}

fn channels(prefix: &str, conversations: &[ConversationDigest]) -> Vec<String> {
    conversations
        .iter()
        .map(|conversation| Keys::of_conversation(prefix, *conversation).channel())
        .collect()
}

fn text(value: &Value) -> Option<String> {
    from_redis_value_ref(value).ok()
}
