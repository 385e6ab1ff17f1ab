//! Caps: in total and per peer, and who has to go when there is no room.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use super::{OK, SOON, Server, UNAVAILABLE, finish, teach};
use crate::frames::{Line, Peer};

const LEAKY: Ipv4Addr = Ipv4Addr::new(127, 0, 5, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 5, 2);
const PROXY: Ipv4Addr = Ipv4Addr::new(127, 0, 5, 3);

/// A connection that has been served, if it was not refused.
fn served(source: Ipv4Addr, server: &Server) -> Option<Peer> {
    let mut peer = Peer::try_from(source, server.main).ok()?;
    if peer.handshake(&[], SOON) && peer.check(SOON).code() == OK {
        return Some(peer);
    }
    assert_ne!(peer.wait_end(Duration::from_secs(1)), Line::Open, "refused means closed: {peer:?}");
    None
}

/// Tries until a connection is served; how long that took.
fn served_in_time(source: Ipv4Addr, server: &Server) -> (Peer, Duration) {
    let start = Instant::now();
    while start.elapsed() < SOON {
        if let Some(peer) = served(source, server) {
            return (peer, start.elapsed());
        }
    }
    panic!("{source} was never served");
}

#[test]
fn a_peer_has_so_many_connections_and_the_others_are_reset_at_once() {
    let mut server = Server::start(&[
        "server.max_connections_per_peer=8",
        &format!("server.exempt_peers={PROXY}"),
    ]);
    let start = Instant::now();
    let mut live: Vec<_> = (0..20).filter_map(|_| served(LEAKY, &server)).collect();
    assert!(start.elapsed() < SOON, "refused after {:?}", start.elapsed());
    assert_eq!(live.len(), 8);
    // Its owner can read of it: a client that does not close its channels looks like this.
    server.process.wait_for(&["many idle connections", "127.0.5.1"]);
    assert_eq!(server.metric(r#"chatbot_net_refused_total{reason="peer"}"#), Some(12.0));
    for peer in &mut live {
        assert_eq!(peer.check(SOON).code(), OK, "{peer:?}");
    }
    assert!(served(OTHER, &server).is_some());
    let proxied: Vec<_> = (0..20).filter_map(|_| served(PROXY, &server)).collect();
    assert_eq!(proxied.len(), 20);
    // A place that was given back can be had again.
    live.pop();
    let (_, after) = served_in_time(LEAKY, &server);
    assert!(after < Duration::from_secs(1), "{after:?}");
}

#[test]
fn near_the_cap_the_longest_idle_go_and_the_busy_stay() {
    let server = Server::start(&["server.max_connections=16", "server.age_grace=1s"]);
    let mut busy = served(LEAKY, &server).expect("a connection");
    let stream = teach(&mut busy);
    let mut watcher = served(OTHER, &server).expect("a connection");
    let watch = watcher.watch("");
    let mut idle: Vec<_> = (0..13).filter_map(|_| served(OTHER, &server)).collect();
    let (mut newest, after) = served_in_time(PROXY, &server);
    assert!(after < Duration::from_secs(3), "{after:?}");

    // A Watch is no activity: its connection has been idle for longest.
    assert!(watcher.wait_goaway(SOON).is_some(), "{watcher:?}");
    assert_eq!(watcher.wait_end_of(watch, SOON).code(), UNAVAILABLE, "{watcher:?}");
    assert_eq!(watcher.wait_end(SOON), Line::Fin, "{watcher:?}");
    // Whoever had to go as well, it was in the order of their idleness.
    let away: Vec<_> =
        idle.iter_mut().map(|peer| peer.wait_goaway(Duration::from_millis(50)).is_some()).collect();
    assert!(away.is_sorted_by(|earlier, later| earlier >= later), "{away:?}");
    assert!(!away[12], "the newest idle one was sent away: {away:?}");
    assert_eq!(newest.check(SOON).code(), OK);
    assert_eq!(busy.goaways(), []);
    assert_eq!(finish(&mut busy, stream), OK);
}

#[test]
fn a_connection_that_is_refused_costs_nobody_theirs() {
    let server = Server::start(&["server.max_connections=20", "server.max_connections_per_peer=9"]);
    // As many as there may be before somebody has to go.
    let others: Vec<_> = (0..9).filter_map(|_| served(OTHER, &server)).collect();
    let its: Vec<_> = (0..9).filter_map(|_| served(LEAKY, &server)).collect();
    for _ in 0..10 {
        assert!(served(LEAKY, &server).is_none());
    }
    for mut peer in others.into_iter().chain(its) {
        assert_eq!(peer.wait_goaway(Duration::from_millis(20)), None, "{peer:?}");
    }
}

#[test]
fn with_every_connection_busy_a_new_one_is_reset() {
    let server = Server::start(&["server.max_connections=16"]);
    let mut busy = Vec::new();
    while busy.len() < 16 {
        let (mut peer, _) = served_in_time(OTHER, &server);
        let stream = teach(&mut peer);
        busy.push((peer, stream));
    }
    for _ in 0..10 {
        let start = Instant::now();
        assert!(served(LEAKY, &server).is_none());
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    }
    for (peer, stream) in &mut busy {
        assert_eq!(peer.goaways(), []);
        assert_eq!(finish(peer, *stream), OK, "{peer:?}");
    }
    assert!(server.metric(r#"chatbot_net_refused_total{reason="total"}"#) >= Some(10.0));
}
