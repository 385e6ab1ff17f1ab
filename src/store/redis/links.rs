//! The connections for commands: one to the primary, or one to each primary of a cluster.
//!
//! One task keeps them. A connection that is lost is replaced at once and then once a second; one that
//! is suspected is asked, and dropped if it does not answer. While one is missing, the store is down
//! and says so to `health`, and commands fail at once: callers know better than a queue whether
//! to wait.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use redis::aio::MultiplexedConnection;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    connect::{Connection, Connector, Failure},
    facts::Facts,
    metrics::Metrics,
};
use crate::{
    config::{Address, Topology},
    health::Dependency,
};

/// How often a server that is gone is tried again.
pub(super) const RETRY: Duration = Duration::from_secs(1);
/// How often a server is asked for its role and its replicas.
const LOOK: Duration = Duration::from_secs(5);
/// Time for a server that is suspected to answer.
const SUSPECT: Duration = Duration::from_secs(1);
/// Links that wait for the keeper, which takes them at once: more than a cluster has primaries.
const NEW: usize = 1024;

/// Why there is no connection where none was tried to its end.
const NEVER: &str = "it is not connected yet";

/// A place to be connected to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Target {
    Primary,
    Node(Address),
}

/// The connection to a place, as far as there is one.
#[derive(Debug)]
pub(super) struct Link {
    target: Target,
    /// Or why there is none.
    current: watch::Sender<Result<MultiplexedConnection, String>>,
    suspected: Notify,
    retired: CancellationToken,
    replicas: AtomicU32,
    /// A replica was too slow since the last look.
    lagging: AtomicBool,
}

impl Link {
    fn new(target: Target) -> Self {
        Self {
            target,
            current: watch::Sender::new(Err(NEVER.to_owned())),
            suspected: Notify::new(),
            retired: CancellationToken::new(),
            replicas: AtomicU32::new(0),
            lagging: AtomicBool::new(false),
        }
    }

    /// The connection, or why there is none.
    pub(super) fn connection(&self) -> Result<MultiplexedConnection, String> {
        self.current.borrow().clone()
    }

    /// Something is wrong with it: it is looked at now.
    pub(super) fn suspect(&self) {
        self.suspected.notify_one();
    }

    /// Whether a replica is there to wait for.
    pub(super) fn has_replica(&self) -> bool {
        self.replicas() > 0 && !self.lagging.load(Ordering::Relaxed)
    }

    /// Replicas that are connected and in step, as the server has last said.
    pub(super) fn replicas(&self) -> u32 {
        self.replicas.load(Ordering::Relaxed)
    }

    /// A replica did not acknowledge in time. True the first time since the last look.
    pub(super) fn lags(&self) -> bool {
        !self.lagging.swap(true, Ordering::Relaxed)
    }

    /// Whether it is being connected for the first time.
    fn is_new(&self) -> bool {
        matches!(&*self.current.borrow(), Err(why) if why == NEVER)
    }

    fn is_up(&self) -> bool {
        self.current.borrow().is_ok()
    }
}

/// All connections for commands.
#[derive(Debug)]
pub(super) struct Links {
    connector: Arc<Connector>,
    kept: Mutex<HashMap<Target, Arc<Link>>>,
    /// The first slot of each range and the node that has it, in order. Empty without a cluster.
    slots: RwLock<Vec<(u16, Address)>>,
    /// Held by whoever asks for the slots.
    learning: tokio::sync::Mutex<()>,
    new: mpsc::Sender<BoxFuture<'static, ()>>,
    dependency: Dependency,
    metrics: Metrics,
}

/// Keeps the connections; to be run as long as the store is used.
pub(super) struct Keeper {
    new: mpsc::Receiver<BoxFuture<'static, ()>>,
}

impl Keeper {
    pub(super) async fn run(mut self, closing: CancellationToken) {
        let mut kept = FuturesUnordered::new();
        loop {
            tokio::select! {
                biased;
                () = closing.cancelled() => return,
                Some(new) = self.new.recv() => kept.push(new),
                Some(()) = kept.next() => {}
            }
        }
    }
}

impl Links {
    /// Keeps `first`, and whatever else is needed.
    pub(super) fn new(
        connector: Arc<Connector>,
        first: Connection,
        dependency: Dependency,
        metrics: Metrics,
    ) -> (Arc<Self>, Keeper) {
        let (new, receiver) = mpsc::channel(NEW);
        let links = Arc::new(Self {
            connector,
            kept: Mutex::default(),
            slots: RwLock::default(),
            learning: tokio::sync::Mutex::default(),
            new,
            dependency,
            metrics,
        });
        let target = match links.connector.settings().topology {
            Topology::Single | Topology::Sentinel { .. } => Target::Primary,
            Topology::Cluster => Target::Node(first.address.clone()),
        };
        let _ = links.keep(target, Some(first));
        (links, Keeper { new: receiver })
    }

    /// The link to the server that has the slot.
    pub(super) fn of_slot(&self, slot: u16) -> Option<Arc<Link>> {
        let links = self.lock();
        if let Some(link) = links.get(&Target::Primary) {
            return Some(Arc::clone(link));
        }
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let range = slots.partition_point(|(first, _)| *first <= slot).checked_sub(1);
        let node = range.and_then(|range| slots.get(range)).map(|(_, node)| node.clone());
        node.and_then(|node| links.get(&Target::Node(node)))
            // Whoever is sent there by another node waits for it.
            .filter(|link| !link.is_new())
            // Any node knows better.
            .or_else(|| links.values().find(|link| link.is_up()))
            .map(Arc::clone)
    }

    /// The link to a node that another one has named, once it is up.
    pub(super) async fn to_node(self: &Arc<Self>, address: Address) -> Option<Arc<Link>> {
        let link = self.keep(Target::Node(address), None)?;
        let mut current = link.current.subscribe();
        let up = tokio::time::timeout(SUSPECT, current.wait_for(Result::is_ok)).await;
        matches!(up, Ok(Ok(_))).then_some(link)
    }

    /// Asks a node for the cluster's slots, connects to the primaries and lets go of the others. Does
    /// nothing without a cluster, and leaves it to whoever is at it already.
    pub(super) async fn learn_slots(self: &Arc<Self>) -> Result<(), String> {
        if self.connector.settings().topology != Topology::Cluster {
            return Ok(());
        }
        let Ok(_learning) = self.learning.try_lock() else { return Ok(()) };
        let slots = self.ask_slots().await?;
        let primaries: Vec<Address> = slots.iter().map(|(_, node)| node.clone()).collect();
        *self.slots.write().unwrap_or_else(PoisonError::into_inner) = slots;
        self.lock().retain(|target, link| {
            let stays = matches!(target, Target::Node(node) if primaries.contains(node));
            if !stays {
                link.retired.cancel();
            }
            stays
        });
        // All before the first is waited for: a caller who leaves then leaves nothing half done.
        for node in &primaries {
            let _ = self.keep(Target::Node(node.clone()), None);
        }
        for node in primaries {
            if self.to_node(node.clone()).await.is_none() {
                return Err(format!("{node} cannot be reached"));
            }
        }
        self.report();
        Ok(())
    }

    async fn ask_slots(&self) -> Result<Vec<(u16, Address)>, String> {
        let links: Vec<_> = self.lock().values().cloned().collect();
        let mut why = "no node is connected".to_owned();
        for link in links {
            let mut connection = match link.connection() {
                Ok(connection) => connection,
                Err(reason) => {
                    why = reason;
                    continue;
                }
            };
            match redis::cmd("CLUSTER").arg("SLOTS").query_async(&mut connection).await {
                Ok(reply) => {
                    let slots = slots_of(&reply);
                    if !slots.is_empty() {
                        return Ok(slots);
                    }
                    "no node has slots".clone_into(&mut why);
                }
                Err(error) => why = error.to_string(),
            }
        }
        // All that were known are gone: those of the settings may know others.
        let mut seed = match self.connector.primary(None).await {
            Ok(seed) => seed,
            Err(Failure::Down(reason) | Failure::Refused(reason)) => {
                return Err(format!("{why}; {reason}"));
            }
        };
        let ask =
            async { redis::cmd("CLUSTER").arg("SLOTS").query_async(&mut seed.commands).await };
        let reply = Connection::drive(&mut seed.driver, ask).await;
        reply.map(|reply| slots_of(&reply)).map_err(|error| error.to_string())
    }

    /// The link to a place. A new one is found by the others and handed to the keeper in one step, so
    /// that a place never has two, and none that nobody connects. `None` if the keeper is gone.
    fn keep(self: &Arc<Self>, target: Target, connection: Option<Connection>) -> Option<Arc<Link>> {
        let mut links = self.lock();
        if let Some(link) = links.get(&target) {
            return Some(Arc::clone(link));
        }
        let keeper = self.new.try_reserve().ok()?;
        let link = Arc::new(Link::new(target.clone()));
        if let Some(connection) = &connection {
            // What is asked before the keeper runs waits in the connection's queue.
            let _ = link.current.send_replace(Ok(connection.commands.clone()));
        }
        let (this, kept) = (Arc::clone(self), Arc::clone(&link));
        keeper.send(Box::pin(async move {
            tokio::select! {
                () = kept.retired.cancelled() => {}
                () = this.look_after(&kept, connection) => {}
            }
        }));
        links.insert(target, Arc::clone(&link));
        Some(link)
    }

    /// Connects again and again.
    async fn look_after(&self, link: &Link, connection: Option<Connection>) {
        let mut next = connection;
        let mut told = false;
        loop {
            let connection = match next.take() {
                Some(connection) => Ok(connection),
                None => match &link.target {
                    Target::Primary => self.connector.primary(None).await,
                    Target::Node(address) => self.connector.connect(address, None).await,
                },
            };
            match connection {
                Ok(connection) => {
                    if told {
                        self.metrics.reconnects.inc();
                        info!(address = %connection.address, "the store is connected again");
                    }
                    told = true;
                    let since = Instant::now();
                    let why = self.use_up(link, connection).await;
                    warn!(why, "the store's connection is lost");
                    let _ = link.current.send_replace(Err(why));
                    self.report();
                    // A server that takes connections only to close them must not be hammered.
                    if since.elapsed() < RETRY {
                        tokio::time::sleep(RETRY).await;
                    }
                }
                Err(Failure::Down(why) | Failure::Refused(why)) => {
                    if link.connection().is_err_and(|before| before != why) {
                        warn!(why, "the store cannot be reached, trying again");
                    }
                    let _ = link.current.send_replace(Err(why));
                    self.report();
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Offers the connection until it is over, and says why it is.
    async fn use_up(&self, link: &Link, connection: Connection) -> String {
        let Connection { commands, driver, address, facts } = connection;
        link.replicas.store(facts.replicas, Ordering::Relaxed);
        let _ = link.current.send_replace(Ok(commands.clone()));
        self.report();
        tokio::select! {
            () = driver => format!("{address} has closed the connection"),
            why = doubt(link, commands, &address) => why,
        }
    }

    /// The store is up if everything that it needs is connected.
    fn report(&self) {
        let links = self.lock();
        if !links.is_empty() && links.values().all(|link| link.is_up()) {
            self.dependency.up();
        } else {
            self.dependency.down();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Target, Arc<Link>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks at the server from time to time, and when it is suspected, until it will not do any more.
async fn doubt(link: &Link, mut commands: MultiplexedConnection, address: &Address) -> String {
    let mut ticks = tokio::time::interval(LOOK);
    ticks.tick().await;
    loop {
        tokio::select! {
            () = link.suspected.notified() => {}
            _ = ticks.tick() => {}
        }
        let mut ask = redis::cmd("INFO");
        ask.arg("replication");
        let asked = tokio::time::timeout(SUSPECT, ask.query_async::<String>(&mut commands)).await;
        let facts = match asked {
            Ok(Ok(info)) => Facts::of_info(&info),
            Ok(Err(error)) => return format!("{address}: {error}"),
            Err(_) => return format!("{address} does not answer"),
        };
        if !facts.primary {
            return format!("{address} is a replica now, which takes no writes");
        }
        link.replicas.store(facts.replicas, Ordering::Relaxed);
        link.lagging.store(false, Ordering::Relaxed);
    }
}

/// The first slot of each range and its primary: the reply is `[[first, last, [host, port, …], …], …]`.
fn slots_of(reply: &redis::Value) -> Vec<(u16, Address)> {
    let redis::Value::Array(ranges) = reply else { return Vec::new() };
    let mut slots: Vec<_> = ranges
        .iter()
        .filter_map(|range| {
            let redis::Value::Array(range) = range else { return None };
            let [first, _, redis::Value::Array(primary), ..] = range.as_slice() else {
                return None;
            };
            let host: String = redis::from_redis_value_ref(primary.first()?).ok()?;
            let port: u16 = redis::from_redis_value_ref(primary.get(1)?).ok()?;
            let first: u16 = redis::from_redis_value_ref(first).ok()?;
            Some((first, Address { host, port }))
        })
        .collect();
    slots.sort_by_key(|(first, _)| *first);
    slots
}
