//! The ages of a connection and of a call: every one of them ends, politely, whatever the peer does.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use super::{DEADLINE_EXCEEDED, OK, SOON, Server, TOLERANCE, UNAVAILABLE, finish, question, teach};
use crate::{
    frames::{ASK, CHECK, End, Frame, Line, PREFACE, Peer, SETTINGS, TEACH, WATCH},
    support::report,
};
use chatbot::pb::health::v1::HealthCheckRequest;

const SECOND: Duration = Duration::from_secs(1);

/// What one connection of the age test saw.
struct Aged {
    /// From the connection to its first GOAWAY.
    age: Duration,
    watch: Option<End>,
    /// The call that was sent after the first GOAWAY.
    late: End,
    /// Whether the last GOAWAY says that the call was not processed.
    refused: bool,
    line: Line,
    peer: Peer,
}

fn age(server: SocketAddr, watches: bool) -> Aged {
    let mut peer = Peer::polite(server);
    let watch = watches.then(|| peer.watch(""));
    let goaway = peer.wait_goaway(SOON).expect("a GOAWAY");
    let stream = peer.request(CHECK, &HealthCheckRequest::default());
    let late = peer.wait_end_of(stream, SOON);
    let watch = watch.map(|stream| peer.wait_end_of(stream, SOON));
    let line = peer.wait_end(SOON);
    let last = peer.goaways().last().expect("a GOAWAY").last_stream;
    Aged { age: goaway.at - peer.since, watch, late, refused: last < stream, line, peer }
}

#[test]
fn a_connection_of_age_is_asked_to_go_and_loses_nothing() {
    let server = Server::start(&["server.max_age=2s", "server.age_grace=2s"]);
    let main = server.main;
    let aged: Vec<Aged> = thread::scope(|scope| {
        let threads: Vec<_> =
            (0..100).map(|index| scope.spawn(move || age(main, index % 2 == 0))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let youngest = aged.iter().map(|aged| aged.age).min().expect("a hundred");
    let oldest = aged.iter().map(|aged| aged.age).max().expect("a hundred");
    report(&format!(
        "age: 100 connections of 2 s ± 10 % were asked to go at {youngest:?} to {oldest:?}"
    ));
    assert!(youngest >= Duration::from_millis(1_800), "{youngest:?}");
    assert!(oldest <= Duration::from_millis(2_200) + TOLERANCE, "{oldest:?}");
    assert!(
        oldest.saturating_sub(youngest) >= Duration::from_millis(200),
        "not spread: {youngest:?}, {oldest:?}"
    );
    for Aged { watch, late, refused, line, peer, .. } in aged {
        if let Some(watch) = watch {
            assert_eq!(watch.code(), UNAVAILABLE, "{watch:?} {peer:?}");
        }
        assert!(late.code() == OK || refused, "{late:?} {peer:?}");
        assert_eq!(line, Line::Fin, "{peer:?}");
    }
}

#[test]
fn an_idle_connection_goes_whatever_it_says_meanwhile() {
    let server = Server::start(&["server.idle_timeout=1s", "server.age_grace=1s"]);
    let mut silent = Peer::polite(server.main);
    let mut pinging = Peer::polite(server.main);
    let mut watching = Peer::polite(server.main);
    let watch = watching.watch("");
    let mut busy = Peer::polite(server.main);
    let stream = teach(&mut busy);

    // PINGs every 100 ms, until it is asked to go.
    let mut asked = None;
    while asked.is_none() && pinging.since.elapsed() < SOON {
        pinging.send(&[Frame::ping(*b"still on")]);
        asked = pinging.wait_goaway(Duration::from_millis(100));
    }
    let goaways = [asked, silent.wait_goaway(SOON), watching.wait_goaway(SOON)];
    for (peer, goaway) in [&silent, &pinging, &watching].into_iter().zip(&goaways) {
        let goaway = goaway.as_ref().unwrap_or_else(|| panic!("no GOAWAY: {peer:?}"));
        assert_eq!(goaway.code, 0, "{peer:?}");
    }
    let after = goaways[0].as_ref().expect("a GOAWAY").at - pinging.since;
    report(&format!("idle: 1 s without a call, asked to go after {after:?}"));
    assert!(after >= SECOND && after < SECOND * 2, "{after:?}");
    assert_eq!(watching.wait_end_of(watch, SOON).code(), UNAVAILABLE, "{watching:?}");
    for peer in [&mut silent, &mut pinging, &mut watching] {
        assert_eq!(peer.wait_end(SOON), Line::Fin, "{peer:?}");
    }

    // An open call is activity; the time counts from its end.
    assert_eq!(busy.goaways(), []);
    assert_eq!(finish(&mut busy, stream), OK, "{busy:?}");
    let finished = Instant::now();
    assert!(busy.wait_goaway(SOON).is_some(), "{busy:?}");
    assert!(finished.elapsed() >= SECOND.saturating_sub(TOLERANCE), "{:?}", finished.elapsed());
    assert_eq!(busy.wait_end(SOON), Line::Fin, "{busy:?}");
}

#[test]
fn who_does_not_begin_to_speak_is_cut() {
    let server = Server::start(&["server.preface_timeout=1s"]);
    let browsers = Server::start(&[
        "server.preface_timeout=1s",
        "web.allowed_origins=https://chat.example.com",
    ]);
    let mut silent = Peer::connect(server.main);
    let mut half = Peer::connect(server.main);
    half.write(&PREFACE[..12]);
    let mut no_settings = Peer::connect(server.main);
    no_settings.write(PREFACE);
    // HTTP/1.1 is spoken for browsers; one that never ends its head.
    let mut browser = Peer::connect(browsers.main);
    browser.write(b"POST / HTTP/1.1\r\nHost: chatbot.test\r\nX-Slow: very, very slow");
    let mut silent_browser = Peer::connect(browsers.main);
    for (what, peer) in [
        ("silent", &mut silent),
        ("half", &mut half),
        ("no settings", &mut no_settings),
        ("half a browser", &mut browser),
        ("a silent browser", &mut silent_browser),
    ] {
        assert_ne!(peer.wait_end(SOON), Line::Open, "{what}: {peer:?}");
        let after = peer.since.elapsed();
        report(&format!("preface: {what} was cut after {after:?}"));
        assert!(after >= SECOND && after < SECOND * 2, "{what} after {after:?}");
    }
}

#[test]
fn who_does_not_answer_the_last_ping_is_cut_after_the_grace() {
    let server = Server::start(&[
        "server.preface_timeout=1s",
        "server.idle_timeout=1s",
        "server.age_grace=1s",
    ]);
    let mut deaf = Peer::polite(server.main);
    deaf.acks_pings = false;
    let mut stuck = Peer::connect(server.main);
    stuck.write(PREFACE);
    // The head of a frame whose rest never comes.
    stuck.write(&[0, 0, 6, SETTINGS, 0, 0, 0, 0, 0]);
    let goaway = deaf.wait_goaway(SOON).expect("a GOAWAY");
    assert_ne!(deaf.wait_end(SOON), Line::Open, "{deaf:?}");
    let after = goaway.at.elapsed();
    report(&format!("deaf: cut {after:?} after its GOAWAY, the grace is 1 s"));
    assert!(after < SECOND * 2, "{after:?}");
    assert_ne!(stuck.wait_end(SOON), Line::Open, "{stuck:?}");
    assert!(stuck.since.elapsed() < SECOND * 3, "{:?}", stuck.since.elapsed());
}

/// The peer has sent its call before it saw the GOAWAY.
#[test]
fn a_call_that_crosses_the_goaway_of_an_idle_connection_is_answered() {
    let server = Server::start(&["server.idle_timeout=500ms"]);
    let mut peer = Peer::polite(server.main);
    // With its PING unanswered the server knows that the GOAWAY may not have arrived.
    peer.acks_pings = false;
    assert!(peer.wait_goaway(SOON).is_some(), "{peer:?}");
    let stream = peer.open(ASK, &[]);
    // With this one's answer, that one has begun.
    assert_eq!(peer.check(SOON).code(), OK, "{peer:?}");
    peer.finish_body(stream, &question());
    let end = peer.wait_end_of(stream, SOON);
    peer.ack_pings();
    let line = peer.wait_end(SOON);
    assert_eq!((end.code(), line), (OK, Line::Fin), "{end:?} {peer:?}");
}

#[test]
fn who_does_not_answer_while_calling_is_dead() {
    let server =
        Server::start(&["server.keepalive_interval=500ms", "server.keepalive_timeout=500ms"]);
    let mut dead = Peer::polite(server.main);
    teach(&mut dead);
    dead.acks_pings = false;
    let mut alive = Peer::polite(server.main);
    let stream = teach(&mut alive);
    let start = Instant::now();
    while start.elapsed() < SECOND * 2 {
        assert_eq!(alive.wait_end(SECOND / 10), Line::Open, "{alive:?}");
    }
    assert_ne!(dead.wait_end(SECOND), Line::Open, "{dead:?}");
    assert_eq!(finish(&mut alive, stream), OK, "{alive:?}");
}

#[test]
fn a_deadline_ends_a_call_at_any_of_its_stages() {
    let server = Server::start(&[]);
    let mut peer = Peer::polite(server.main);
    let deadline = [("grpc-timeout", "300m")];
    let (watch, frames) = peer.call(WATCH, &deadline);
    peer.send(&frames);
    peer.finish_body(watch, &HealthCheckRequest::default());
    let start = Instant::now();
    let stalled = peer.open(TEACH, &deadline);
    for (what, stream) in [("Watch", watch), ("a stalled Teach", stalled)] {
        let end = peer.wait_end_of(stream, SOON);
        let after = start.elapsed();
        assert_eq!(end.code(), DEADLINE_EXCEEDED, "{what}: {end:?} {peer:?}");
        assert!(after >= SECOND / 4 && after < SECOND * 2, "{what} after {after:?}");
    }
    assert_eq!(peer.check(SOON).code(), OK);
}
