//! One call of a script: the right server, its acknowledgement by replicas, and what errors mean.

use std::time::{Duration, Instant};

use redis::{
    ErrorKind, Pipeline, RedisError, RedisResult, ServerErrorKind, Value,
    aio::MultiplexedConnection, from_redis_value, from_redis_value_ref,
};
use tracing::warn;

use super::{
    Error, Redis,
    links::Link,
    scripts::{Keys, Operation},
};
use crate::config::Address;

/// Time for the replicas that have to acknowledge a write.
const ACKNOWLEDGED: Duration = Duration::from_secs(1);
/// Time for one that should but need not. The connection does nothing else meanwhile.
const HOPED_FOR: Duration = Duration::from_millis(200);
/// Servers that one call is sent to, one naming the next.
const REDIRECTS: usize = 4;

/// What came of one try.
enum Tried {
    Done(Result<Value, Error>),
    /// Another node has the slot, for good or for this call.
    Elsewhere {
        node: Address,
        once: bool,
    },
}

/// How much a write is worth waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Worth {
    /// Nothing: it comes again soon.
    Little,
    /// What the settings ask for.
    Usual,
    /// Nobody can repeat it later: it waits for a replica where there is one, even if the settings do
    /// not ask for it.
    Much,
}

/// What a call waits for after its write.
#[derive(Debug, Clone, Copy)]
enum Wait {
    No,
    Hope,
    Must(u32),
}

impl Redis {
    /// Runs a script.
    pub(super) async fn call(
        &self,
        operation: Operation,
        keys: &Keys,
        names: &[String],
        args: &[String],
        worth: Worth,
    ) -> Result<Reply, Error> {
        let start = Instant::now();
        let outcome = self.call_where_it_is(operation, keys, names, args, worth).await;
        self.metrics.command(operation).observe(start.elapsed().as_secs_f64());
        outcome.and_then(Reply::new)
    }

    async fn call_where_it_is(
        &self,
        operation: Operation,
        keys: &Keys,
        names: &[String],
        args: &[String],
        worth: Worth,
    ) -> Result<Value, Error> {
        let unknown = || Error::Down("no node of the cluster is connected".to_owned());
        let mut link = self.links.of_slot(keys.slot).ok_or_else(unknown)?;
        let mut asking = false;
        for _ in 0..REDIRECTS {
            let wait = self.wait(&link, operation, worth)?;
            let call = Call { operation, names, args, wait, asking };
            match self.attempt(&link, &call).await {
                Tried::Done(outcome) => return outcome,
                Tried::Elsewhere { node, once } => {
                    asking = once;
                    if !once {
                        // The cluster has moved slots: more calls will need to know.
                        let _ = self.links.learn_slots().await;
                    }
                    let reached = self.links.to_node(node.clone()).await;
                    link = reached.ok_or_else(|| {
                        Error::Down(format!("{node} has the conversation and cannot be reached"))
                    })?;
                }
            }
        }
        Err(Error::Down("the cluster sends calls in circles".to_owned()))
    }

    /// What the call has to wait for. It is refused where that would be in vain: the connection does
    /// nothing else while it waits, so that all others would wait with it.
    fn wait(&self, link: &Link, operation: Operation, worth: Worth) -> Result<Wait, Error> {
        let must = self.wait_replicas;
        if !operation.writes() || worth == Worth::Little {
            return Ok(Wait::No);
        }
        if must == 0 {
            let hope = worth == Worth::Much && link.has_replica();
            return Ok(if hope { Wait::Hope } else { Wait::No });
        }
        match (link.connection(), link.replicas()) {
            (Err(why), _) => Err(Error::Down(why)),
            (Ok(_), replicas) if replicas < must => {
                // One may have come since the last look.
                link.suspect();
                Err(Error::Down(format!(
                    "{replicas} of {must} replicas (store.wait_replicas) are connected"
                )))
            }
            _ => Ok(Wait::Must(must)),
        }
    }

    async fn attempt(&self, link: &Link, call: &Call<'_>) -> Tried {
        let mut connection = match link.connection() {
            Ok(connection) => connection,
            Err(why) => return Tried::Done(Err(Error::Down(why))),
        };
        let mut replies = call.send(&mut connection, false).await;
        // A server that was started anew, or a replica that was promoted, knows no script.
        if let Ok(Replies { script: Err(error), .. }) = &replies
            && error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
        {
            replies = call.send(&mut connection, true).await;
        }
        let Replies { script, acknowledged } = match replies {
            Ok(replies) => replies,
            Err(error) => {
                link.suspect();
                return Tried::Done(Err(Error::Down(error.to_string())));
            }
        };
        match script {
            Ok(reply) => Tried::Done(self.acknowledged(link, call, acknowledged).map(|()| reply)),
            Err(error) => refused(link, &error),
        }
    }

    /// Whether enough replicas have the write.
    fn acknowledged(&self, link: &Link, call: &Call<'_>, by: Option<u32>) -> Result<(), Error> {
        let by = by.unwrap_or(0);
        match call.wait {
            Wait::Must(replicas) if by < replicas => {
                self.metrics.unacknowledged.inc();
                Err(Error::Down(format!(
                    "{by} of {replicas} replicas (store.wait_replicas) have acknowledged a write"
                )))
            }
            Wait::Hope if by == 0 => {
                self.metrics.unacknowledged.inc();
                if link.lags() {
                    let operation = call.operation.name();
                    warn!(operation, "no replica acknowledges writes, a failover would lose them");
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

struct Call<'a> {
    operation: Operation,
    names: &'a [String],
    args: &'a [String],
    wait: Wait,
    asking: bool,
}

struct Replies {
    script: RedisResult<Value>,
    /// Replicas that have the write; `None` if none was waited for.
    acknowledged: Option<u32>,
}

impl Call<'_> {
    /// Sends the script, by its name or as a whole, and the wait right behind it, so that no other
    /// write of this connection comes between them unseen.
    async fn send(
        &self,
        connection: &mut MultiplexedConnection,
        whole: bool,
    ) -> RedisResult<Replies> {
        let mut pipeline = Pipeline::new();
        pipeline.ignore_errors();
        if self.asking {
            pipeline.cmd("ASKING");
        }
        if whole {
            pipeline.cmd("EVAL").arg(self.operation.text());
        } else {
            pipeline.cmd("EVALSHA").arg(self.operation.sha());
        }
        pipeline.arg(self.names.len()).arg(self.names).arg(self.args);
        let limit = match self.wait {
            Wait::No => None,
            Wait::Hope => Some((1, HOPED_FOR)),
            Wait::Must(replicas) => Some((replicas, ACKNOWLEDGED)),
        };
        if let Some((replicas, limit)) = limit {
            let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
            pipeline.cmd("WAIT").arg(replicas).arg(limit);
        }
        let replies: Vec<RedisResult<Value>> = pipeline.query_async(connection).await?;
        let mut replies = replies.into_iter().skip(usize::from(self.asking));
        let missing = || RedisError::from((ErrorKind::UnexpectedReturnType, "a reply is missing"));
        let script = replies.next().ok_or_else(missing)?;
        let acknowledged = replies.next().and_then(Result::ok).and_then(|reply| {
            let by: u32 = from_redis_value(reply).ok()?;
            Some(by)
        });
        Ok(Replies { script, acknowledged })
    }
}

/// What it means that the server refused a script.
fn refused(link: &Link, error: &RedisError) -> Tried {
    let kind = error.kind();
    if let (ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::Ask), Some(node)) =
        (kind, error.redirect_node().and_then(|(node, _)| node.rsplit_once(':')))
        && let Ok(port) = node.1.parse()
    {
        let host = node.0.trim_matches(['[', ']']).to_owned();
        let once = kind == ErrorKind::Server(ServerErrorKind::Ask);
        return Tried::Elsewhere { node: Address { host, port }, once };
    }
    let code = error.code().unwrap_or_default();
    let why = match code {
        "READONLY" | "MASTERDOWN" | "LOADING" => {
            // Another one may be the primary now.
            link.suspect();
            error.to_string()
        }
        "OOM" => format!("its memory is full; raise its maxmemory and keep noeviction ({error})"),
        "WRONGTYPE" => return Tried::Done(Err(Error::Corrupt(error.to_string()))),
        _ => error.to_string(),
    };
    Tried::Done(Err(Error::Down(why)))
}

/// A script's reply: a word that says what became of it, then values.
#[derive(Debug)]
pub(super) struct Reply(Vec<Value>);

impl Reply {
    fn new(value: Value) -> Result<Self, Error> {
        match value {
            Value::Array(values) => Ok(Self(values)),
            // Its value may be what somebody has said.
            _ => Err(Error::Corrupt("a script's reply is no list".to_owned())),
        }
    }

    pub(super) fn word(&self) -> Result<String, Error> {
        self.text(0)
    }

    pub(super) fn text(&self, index: usize) -> Result<String, Error> {
        self.0
            .get(index)
            .and_then(|value| from_redis_value_ref(value).ok())
            .ok_or_else(|| self.unexpected(index))
    }

    pub(super) fn number(&self, index: usize) -> Result<u64, Error> {
        self.text(index)?.parse().map_err(|_| self.unexpected(index))
    }

    pub(super) fn flag(&self, index: usize) -> Result<bool, Error> {
        Ok(self.text(index)? == "1")
    }

    /// All texts from `index` on.
    pub(super) fn texts(&self, index: usize) -> Result<Vec<String>, Error> {
        (index..self.0.len()).map(|index| self.text(index)).collect()
    }

    pub(super) fn value(&self, index: usize) -> Result<&Value, Error> {
        self.0.get(index).ok_or_else(|| self.unexpected(index))
    }

    /// The reply is nothing that the script can say.
    pub(super) fn unexpected(&self, index: usize) -> Error {
        // Its values may be what people said, which belongs into no log.
        let length = self.0.len();
        Error::Corrupt(format!("value {index} of a script's {length} is missing or unreadable"))
    }
}
