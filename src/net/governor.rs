//! The governor: who may open a connection, and who has to go.
//!
//! It hands out permits, at most so many in all and so many to one peer. A connection over a cap is
//! reset at once, so that its client fails fast instead of hanging in a queue. Near the total cap the
//! connections that have been idle longest are asked to leave; they cost nobody anything. A peer that
//! collects idle connections is named in the log: its client most likely opens a channel per call
//! and never closes it, which is the leak that this service was born from.

use std::{
    cmp::Reverse,
    collections::HashMap,
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use ipnet::IpNet;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::peer::Peer;

/// The share of the total cap from which idle connections are evicted, in percent.
const CROWDED: usize = 90;
/// A peer with this many idle connections is named. It is looked at when it has this many
/// connections, or twice as many, and so on: a look counts over all connections there are.
const SUSPICIOUS: usize = 50;
/// How often one peer is named.
const NAME_AGAIN: Duration = Duration::from_mins(10);
/// How often the table is searched for something to evict; a search looks at every connection.
const EVICT_AGAIN: Duration = Duration::from_millis(20);

/// Why a connection was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Refusal {
    /// There are too many in all.
    Total,
    /// There are too many from this peer.
    Peer,
}

/// Hands out permits; clones share it.
#[derive(Debug, Clone)]
pub(super) struct Governor(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    most: usize,
    most_per_peer: usize,
    exempt: Vec<IpNet>,
    born: Instant,
    table: Mutex<Table>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Table {
    peers: HashMap<Peer, Site>,
    connections: HashMap<u64, Arc<Activity>>,
    next: u64,
    last_eviction: Option<Instant>,
}

#[derive(Debug, Default)]
struct Site {
    connections: usize,
    /// It has no limit of its own.
    exempt: bool,
    named: Option<Instant>,
}

/// What a connection is doing, for those who decide about it.
pub(super) struct Activity {
    peer: Peer,
    born: Instant,
    /// Calls that have not ended; health and reflection are none.
    calls: AtomicUsize,
    /// When the last call ended, or the connection began, in milliseconds since `born`.
    idle_since: AtomicU64,
    evict: CancellationToken,
}

impl fmt::Debug for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Activity").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Activity {
    fn now(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A call begins; it ends when the guard is dropped.
    pub(super) fn call(self: &Arc<Self>) -> CallGuard {
        self.calls.fetch_add(1, Ordering::AcqRel);
        CallGuard(Arc::clone(self))
    }

    /// For how long there has been no call; `None` while there is one.
    pub(super) fn idle(&self) -> Option<Duration> {
        (self.calls.load(Ordering::Acquire) == 0).then(|| {
            let since = self.idle_since.load(Ordering::Acquire);
            Duration::from_millis(self.now().saturating_sub(since))
        })
    }

    /// Ends when the connection has to make room.
    pub(super) async fn evicted(&self) {
        self.evict.cancelled().await;
    }
}

/// A call that has not ended.
#[derive(Debug)]
pub(super) struct CallGuard(Arc<Activity>);

impl Drop for CallGuard {
    fn drop(&mut self) {
        // The last one looks at the clock. First the time, then the count: who sees no call must see when
        // the last one ended.
        let ended = |calls: usize| {
            if calls == 1 {
                self.0.idle_since.store(self.0.now(), Ordering::Release);
            }
            Some(calls - 1)
        };
        let _ = self.0.calls.fetch_update(Ordering::AcqRel, Ordering::Acquire, ended);
    }
}

/// A peer and what it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Crowd {
    pub(super) peer: Peer,
    pub(super) connections: usize,
    /// Whether it has no limit of its own, such as a proxy.
    pub(super) exempt: bool,
}

/// The right to have a connection; given back when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    governor: Governor,
    id: u64,
    activity: Arc<Activity>,
}

impl Permit {
    pub(super) fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Inner { table, freed, .. } = &*self.governor.0;
        {
            let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
            table.connections.remove(&self.id);
            if let Some(site) = table.peers.get_mut(&self.activity.peer) {
                site.connections -= 1;
                if site.connections == 0 {
                    table.peers.remove(&self.activity.peer);
                }
            }
        }
        freed.notify_waiters();
    }
}

impl Governor {
    pub(super) fn new(most: usize, most_per_peer: usize, exempt: Vec<IpNet>) -> Self {
        Self(Arc::new(Inner {
            most,
            most_per_peer,
            exempt,
            born: Instant::now(),
            table: Mutex::default(),
            freed: Notify::new(),
        }))
    }

    /// A permit for a connection from `address`. Near the total cap another connection is asked to leave.
    pub(super) fn admit(&self, address: SocketAddr) -> Result<Permit, Refusal> {
        let peer = Peer::of(address);
        let address = address.ip().to_canonical();
        let inner = &*self.0;
        let mut table = inner.table.lock().unwrap_or_else(PoisonError::into_inner);
        // The peer's own cap first: who is refused by it must not cost another peer a connection.
        let exempt = inner.exempt.iter().any(|network| network.contains(&address));
        let its = table.peers.get(&peer).map_or(0, |site| site.connections);
        if !exempt && its >= inner.most_per_peer {
            return Err(Refusal::Peer);
        }
        if (table.connections.len() + 1) * 100 > inner.most * CROWDED {
            table.evict_longest_idle();
        }
        if table.connections.len() >= inner.most {
            return Err(Refusal::Total);
        }
        let site = table.peers.entry(peer).or_default();
        site.connections += 1;
        // Of a site with several addresses all are told by one of them.
        site.exempt |= exempt;
        let may_be_leaking = site.connections.is_multiple_of(SUSPICIOUS.min(inner.most_per_peer))
            && site.named.is_none_or(|named| named.elapsed() > NAME_AGAIN);
        let activity = Arc::new(Activity {
            peer,
            born: inner.born,
            calls: AtomicUsize::new(0),
            idle_since: AtomicU64::new(0),
            evict: CancellationToken::new(),
        });
        activity.idle_since.store(activity.now(), Ordering::Release);
        let id = table.next;
        table.next += 1;
        table.connections.insert(id, Arc::clone(&activity));
        let leaking = may_be_leaking.then(|| table.idle_of(peer, inner.most_per_peer)).flatten();
        let connections = table.connections.len();
        drop(table);
        if let Some(idle) = leaking {
            let most = inner.most_per_peer;
            warn!(
                %peer,
                idle,
                connections,
                most,
                "a peer has many idle connections, is its client closing its channels?"
            );
        }
        Ok(Permit { governor: self.clone(), id, activity })
    }

    /// Ends when a permit is given back.
    pub(super) async fn freed(&self) {
        self.0.freed.notified().await;
    }

    /// Connections there are.
    pub(super) fn connections(&self) -> usize {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner).connections.len()
    }

    /// Connections that one peer may have.
    pub(super) fn most_per_peer(&self) -> usize {
        self.0.most_per_peer
    }

    /// The peers with the most connections, most first.
    pub(super) fn top(&self, count: usize) -> Vec<Crowd> {
        let table = self.0.table.lock().unwrap_or_else(PoisonError::into_inner);
        let crowd = |(peer, site): (&Peer, &Site)| Crowd {
            peer: *peer,
            connections: site.connections,
            exempt: site.exempt,
        };
        let mut peers: Vec<_> = table.peers.iter().map(crowd).collect();
        drop(table);
        peers.sort_unstable_by_key(|crowd| (Reverse(crowd.connections), crowd.peer));
        peers.truncate(count);
        peers
    }
}

impl Table {
    fn evict_longest_idle(&mut self) {
        if self.last_eviction.is_some_and(|last| last.elapsed() < EVICT_AGAIN) {
            return;
        }
        self.last_eviction = Some(Instant::now());
        let idle = self
            .connections
            .values()
            .filter(|activity| !activity.evict.is_cancelled() && activity.idle().is_some());
        let longest = idle.min_by_key(|activity| activity.idle_since.load(Ordering::Acquire));
        if let Some(activity) = longest {
            activity.evict.cancel();
        }
    }

    /// How many idle connections a peer has, if that is worth naming it.
    fn idle_of(&mut self, peer: Peer, most: usize) -> Option<usize> {
        let its = self.connections.values().filter(|activity| activity.peer == peer);
        let idle = its.filter(|activity| activity.idle().is_some()).count();
        if idle < SUSPICIOUS.min(most) {
            return None;
        }
        self.peers.get_mut(&peer)?.named = Some(Instant::now());
        Some(idle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(last: u8) -> SocketAddr {
        ([10, 0, 0, last], 1).into()
    }

    #[test]
    fn permits_are_limited_in_all_and_by_peer_and_come_back() {
        let governor = Governor::new(3, 2, Vec::new());
        let first = governor.admit(peer(1)).expect("a permit");
        let _second = governor.admit(peer(1)).expect("a permit");
        assert_eq!(governor.admit(peer(1)).expect_err("two is the most"), Refusal::Peer);
        let _third = governor.admit(peer(2)).expect("a permit");
        assert_eq!(governor.admit(peer(3)).expect_err("three in all"), Refusal::Total);
        let top = Crowd { peer: Peer::of(peer(1)), connections: 2, exempt: false };
        assert_eq!(governor.top(1), [top]);
        drop(first);
        let _fourth = governor.admit(peer(1)).expect("one came back");
        assert_eq!(governor.connections(), 3);
    }

    #[test]
    fn an_exempt_network_has_no_limit_of_its_own() {
        let governor = Governor::new(10, 1, vec!["10.0.0.0/30".parse().expect("a network")]);
        let _permits: Vec<_> = (0..5).map(|_| governor.admit(peer(1)).expect("exempt")).collect();
        assert!(governor.top(1)[0].exempt);
        let proxy = "[2001:db8::7]:1".parse().expect("an address");
        let other = Governor::new(10, 1, vec!["2001:db8::7/128".parse().expect("a network")]);
        let _proxied: Vec<_> = (0..5).map(|_| other.admit(proxy).expect("exempt")).collect();
        let _one = governor.admit(peer(9)).expect("the first");
        assert_eq!(governor.admit(peer(9)).expect_err("not exempt"), Refusal::Peer);
    }

    #[test]
    fn near_the_cap_the_longest_idle_has_to_go_and_a_busy_one_never() {
        let governor = Governor::new(10, 10, Vec::new());
        let permits: Vec<_> = (0..9).map(|_| governor.admit(peer(1)).expect("a permit")).collect();
        // The first is busy, the second has been idle longest.
        let _call = permits[0].activity().call();
        for (age, permit) in permits.iter().enumerate().skip(2) {
            permit.activity().idle_since.store(100 + age as u64, Ordering::Release);
        }
        permits[1].activity().idle_since.store(0, Ordering::Release);
        let _last = governor.admit(peer(2)).expect("a permit");
        let evicted: Vec<_> =
            permits.iter().map(|permit| permit.activity().evict.is_cancelled()).collect();
        assert_eq!(evicted.iter().position(|evicted| *evicted), Some(1));
        assert_eq!(evicted.iter().filter(|evicted| **evicted).count(), 1);
    }

    #[test]
    fn a_connection_is_idle_from_its_last_calls_end() {
        let governor = Governor::new(10, 10, Vec::new());
        let permit = governor.admit(peer(1)).expect("a permit");
        let (first, second) = (permit.activity().call(), permit.activity().call());
        drop(first);
        assert_eq!(permit.activity().idle(), None);
        drop(second);
        assert!(permit.activity().idle().is_some());
    }
}
