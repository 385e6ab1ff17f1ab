//! The attacks that HTTP/2 is known for, one connection each. The defence is a limit that the
//! server has to set by itself: most of them are off where they are not set.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use super::{OK, SOON, Server, teach};
use crate::{
    frames::{
        ASK, CANCEL, CHECK, CONTINUATION, DATA, END_HEADERS, ENHANCE_YOUR_CALM, End, Frame,
        HEADERS, INITIAL_WINDOW_SIZE, Line, MAX_CONCURRENT_STREAMS, MAX_HEADER_LIST_SIZE, Peer,
        REFUSED_STREAM, SETTINGS, TEACH,
    },
    support::report,
};

const MIB: i64 = 1024 * 1024;
const VICTIM: Ipv4Addr = Ipv4Addr::new(127, 0, 7, 1);

/// What the server told the peer to keep to.
fn advertised(peer: &Peer, id: u16) -> Option<u32> {
    peer.seen.iter().find(|seen| seen.frame.kind == SETTINGS)?.frame.setting(id)
}

#[test]
fn the_limits_are_told() {
    let server = Server::start(&[]);
    let peer = Peer::polite(server.main);
    assert_eq!(advertised(&peer, MAX_CONCURRENT_STREAMS), Some(100));
    assert!(advertised(&peer, MAX_HEADER_LIST_SIZE).is_some_and(|bytes| bytes <= 16_384));
    // Left out, it is 65,535.
    let window = advertised(&peer, INITIAL_WINDOW_SIZE).unwrap_or(65_535);
    assert!((65_535..=65_536).contains(&window), "{window}");
}

#[test]
fn rapid_resets_end_the_connection() {
    let server = Server::start(&[]);
    let mut peer = Peer::polite(server.main);
    let mut frames = Vec::new();
    for _ in 0..200 {
        let (stream, headers) = peer.call(TEACH, &[]);
        frames.extend(headers);
        frames.push(Frame::reset(stream, CANCEL));
    }
    peer.send(&frames);
    let goaway = peer.wait_goaway(SOON).expect("a GOAWAY");
    let streams = goaway.last_stream.div_ceil(2);
    report(&format!("rapid reset: GOAWAY {} after {streams} streams", goaway.code));
    assert_eq!(goaway.code, ENHANCE_YOUR_CALM);
    assert!(streams <= 100, "{streams}");
    assert_ne!(peer.wait_end(SOON), Line::Open);
    assert_eq!(Peer::polite(server.main).check(SOON).code(), OK);
}

#[test]
fn headers_without_end_end_the_connection() {
    for part in [&[][..], &[0, 1, b'x', 1, b'y'], &[0; 8_000]] {
        let server = Server::start(&[]);
        let mut peer = Peer::polite(server.main);
        let (stream, mut first) = peer.call(CHECK, &[]);
        first[0].flags &= !END_HEADERS;
        assert_eq!(first[0].kind, HEADERS);
        peer.send(&first);
        let flood = vec![Frame::new(CONTINUATION, 0, stream, part); 100];
        let mut sent = 0;
        while sent < 10_000
            && peer.send(&flood)
            && peer.wait_end(Duration::from_millis(1)) == Line::Open
        {
            sent += flood.len();
        }
        assert_ne!(peer.wait_end(SOON), Line::Open, "{peer:?}");
        report(&format!(
            "continuation flood of {} bytes each: cut after {sent} frames, {:?}",
            part.len(),
            peer.goaways().first().map(|goaway| goaway.code)
        ));
        assert_eq!(Peer::polite(server.main).check(SOON).code(), OK);
    }
}

#[test]
fn headers_that_are_too_large_are_refused() {
    let server = Server::start(&[]);
    for size in [17_000, 60_000, 500_000] {
        let mut peer = Peer::polite(server.main);
        let value = "x".repeat(size);
        let stream = peer.open(CHECK, &[("x-large", &value)]);
        let end = peer.wait_end_of(stream, SOON);
        report(&format!("a header of {size} bytes: {end:?}"));
        match end {
            End::Http(status) => assert_eq!(status, "431"),
            End::Status(code, _) => assert_ne!(code, 0),
            End::Reset(_) | End::Lost(_) => {}
            End::Open => panic!("{size} bytes: {peer:?}"),
        }
        // The connection is of use, or it is gone.
        let next = peer.check(SOON);
        assert!(next.code() == OK || matches!(next, End::Lost(_)), "{next:?} {peer:?}");
    }
    let mut peer = Peer::polite(server.main);
    let value = "x".repeat(8_000);
    let stream = peer.open(CHECK, &[("x-large", &value)]);
    peer.finish_body(stream, &chatbot::pb::health::v1::HealthCheckRequest::default());
    assert_eq!(peer.wait_end_of(stream, SOON).code(), OK);
}

#[test]
fn resets_that_the_server_is_made_to_send_end_the_connection() {
    let server = Server::start(&[]);
    let mut peer = Peer::polite(server.main);
    let mut sent = 0;
    while sent < 3_000 && peer.goaways().is_empty() {
        let mut frames = Vec::new();
        let mut last = 0;
        for _ in 0..50 {
            let (stream, headers) = peer.call(TEACH, &[]);
            frames.extend(headers);
            frames.push(Frame::window(stream, 0x7fff_ffff));
            last = stream;
        }
        sent += 50;
        if !peer.send(&frames) || matches!(peer.wait_end_of(last, SOON), End::Lost(_)) {
            break;
        }
    }
    let goaway = peer.wait_goaway(SOON).unwrap_or_else(|| panic!("no GOAWAY after {sent} resets"));
    report(&format!("forced resets: GOAWAY {} after at most {sent}", goaway.code));
    assert_eq!(goaway.code, ENHANCE_YOUR_CALM);
    assert!(sent <= 1_500, "{sent}");
}

/// Sends 50,000 of `frame` and reads what is answered; the server has to stay as it is.
fn flood(name: &str, frame: &Frame, answered: impl Fn(&Peer) -> usize) {
    const BATCH: usize = 1_000;
    let server = Server::start(&[]);
    let mut victim = Peer::polite_from(VICTIM, server.main);
    let mut peer = Peer::polite(server.main);
    let before = server.memory();
    let batch = vec![frame.clone(); BATCH];
    let (start, mut slowest, mut sent) = (Instant::now(), Duration::ZERO, 0);
    while sent < 50_000 && start.elapsed() < SOON * 2 && peer.send(&batch) {
        sent += BATCH;
        while answered(&peer) < sent && start.elapsed() < SOON * 2 {
            if peer.wait_end(Duration::from_millis(1)) != Line::Open {
                break;
            }
        }
        if sent % 10_000 == 0 {
            let asked = Instant::now();
            assert_eq!(victim.check(SOON).code(), OK, "{victim:?}");
            slowest = slowest.max(asked.elapsed());
        }
    }
    let grown = server.memory() - before;
    report(&format!(
        "{name} flood: {sent} in {:?}, {:?}, slowest check of another peer {slowest:?}, {} KiB more",
        start.elapsed(),
        peer.wait_end(Duration::from_millis(1)),
        grown / 1024
    ));
    assert!(sent == 50_000 || peer.wait_end(SOON) != Line::Open, "{sent} were taken");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    assert!(grown < 16 * MIB, "{grown} bytes more");

    // The same by a peer that reads nothing: it has to wait, or is cut.
    let mut deaf = Peer::polite(server.main);
    deaf.write_within(Duration::from_millis(200));
    let mut sent = 0;
    while sent < 200_000 && deaf.send(&batch) {
        sent += BATCH;
    }
    assert_eq!(victim.check(SOON).code(), OK, "{victim:?}");
    let grown = server.memory() - before;
    report(&format!("{name} flood, unread: {sent} taken, {} KiB more", grown / 1024));
    assert!(grown < 16 * MIB, "{grown} bytes more");
}

#[test]
fn a_flood_of_pings_disturbs_nobody() {
    flood("PING", &Frame::ping(*b"floodflo"), |peer| peer.pongs);
}

#[test]
fn a_flood_of_settings_disturbs_nobody() {
    flood("SETTINGS", &Frame::settings(&[]), |peer| peer.settings_acks);
}

/// Half a million frames that the server can only throw away.
#[test]
fn a_flood_of_frames_for_nothing_ends_the_connection() {
    const PRIORITY: u8 = 2;
    const UNKNOWN: u8 = 0x42;
    for frame in [
        Frame::new(PRIORITY, 0, 1, [0, 0, 0, 0, 16]),
        Frame::new(UNKNOWN, 0, 0, [0; 8]),
        // So small that the window does not overflow.
        Frame::window(0, 1),
    ] {
        let server = Server::start(&[]);
        let mut peer = Peer::polite(server.main);
        // It does not help to have a call.
        teach(&mut peer);
        let batch = vec![frame.clone(); 1_000];
        let mut sent = 0;
        while sent < 500_000 && peer.send(&batch) {
            sent += batch.len();
        }
        let line = peer.wait_end(SOON);
        report(&format!("a flood of frames of type {}: {line:?} after {sent}", frame.kind));
        assert_ne!(line, Line::Open, "{peer:?}");
        assert_eq!(Peer::polite(server.main).check(SOON).code(), OK);
    }
}

#[test]
fn calls_over_the_limit_are_refused_and_the_others_are_not() {
    let server = Server::start(&[]);
    let mut peer = Peer::polite(server.main);
    let streams: Vec<_> = (0..120).map(|_| peer.open(TEACH, &[])).collect();
    let (within, over) = streams.split_at(100);
    for stream in over {
        assert_eq!(peer.wait_end_of(*stream, SOON), End::Reset(REFUSED_STREAM), "{stream}");
    }
    for stream in within {
        peer.send(&[Frame::new(DATA, crate::frames::END_STREAM, *stream, [])]);
        assert_eq!(peer.wait_end_of(*stream, SOON).code(), OK, "{stream}");
    }
}

#[test]
fn messages_that_never_end_are_refused_in_time_and_bounded() {
    const DECLARED: u32 = 250 * 1024;
    let server = Server::start(&["server.receive_timeout=1s"]);
    let mut peer = Peer::polite(server.main);
    let before = server.memory();
    let mut half = vec![0];
    half.extend(DECLARED.to_be_bytes());
    // A query that goes on and on.
    half.extend([0x0a, 0xfb, 0xcf, 0x0f]);
    half.resize(125 * 1024, b'x');
    let start = Instant::now();
    let mut sent = 0;
    let mut streams = Vec::new();
    for _ in 0..60 {
        let stream = peer.open(ASK, &[]);
        sent += peer.send_data(stream, &half, Duration::from_millis(500));
        streams.push((stream, Instant::now()));
    }
    let grown = server.memory() - before;
    for (stream, stalled) in streams {
        let end = peer.wait_end_of(stream, SOON);
        let after = stalled.elapsed();
        assert!(matches!(end, End::Status(code, _) if code != 0), "{stream}: {end:?}");
        assert!(after < SOON, "{stream} after {after:?}");
    }
    report(&format!(
        "half messages: {sent} bytes of 60 calls taken, {} KiB more, all refused after {:?}",
        grown / 1024,
        start.elapsed()
    ));
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    assert!(grown < 48 * MIB, "{grown} bytes more");
    assert_eq!(peer.check(SOON).code(), OK);
}
