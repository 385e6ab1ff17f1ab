//! What peers leave behind: nothing.

use std::time::{Duration, Instant};

use chatbot::pb::chatbot::v1::RankAnswersRequest;

use super::{OK, SOON, Server, stop::large_answers, teach};
use crate::{
    frames::{End, Frame, INITIAL_WINDOW_SIZE, Line, PREFACE, Peer, RANK},
    support::{LONG, folder, report, serve},
};

const MIB: i64 = 1024 * 1024;

/// Asks for far more than the connection can hold, and never reads.
pub(super) fn never_reads(server: &Server, calls: usize) -> Peer {
    let mut peer = Peer::connect(server.main);
    assert!(peer.handshake(&[(INITIAL_WINDOW_SIZE, 0x7fff_ffff)], SOON));
    peer.send(&[Frame::window(0, 0x7fff_0000)]);
    for _ in 0..calls {
        peer.request(RANK, &wombats());
    }
    peer
}

/// The question that [`large_answers`] are for.
fn wombats() -> RankAnswersRequest {
    RankAnswersRequest { query: "what does wombat say".to_owned(), ..Default::default() }
}

/// Looks until `ready`, a few times a second; how long that took.
pub(super) fn eventually(what: &str, mut ready: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !ready() {
        assert!(start.elapsed() < LONG, "{what} did not come in time");
        std::thread::park_timeout(Duration::from_millis(50));
    }
    start.elapsed()
}

#[test]
fn nothing_is_left_of_peers_that_have_gone() {
    let folder = large_answers();
    let server = Server::run(serve(&folder, &[]), folder);
    let metric = |name: &str| server.metric(name).expect("a number");
    let descriptors = metric("chatbot_net_fds_open");
    for _ in 0..10 {
        let silent = Peer::connect(server.main);
        let mut half = Peer::connect(server.main);
        half.write(&PREFACE[..12]);
        let mut watcher = Peer::polite(server.main);
        watcher.watch("");
        let mut teacher = Peer::polite(server.main);
        teach(&mut teacher);
        let stuck = never_reads(&server, 20);
        drop((silent, half, watcher, teacher, stuck));
    }
    let after = eventually("the end of all calls and connections", || {
        server.in_flight() == 0.0
            && metric("chatbot_net_connections") == 0.0
            && metric("chatbot_net_fds_open") <= descriptors + 1.0
    });
    report(&format!("leftovers: nothing left of 50 peers after {after:?}"));
}

/// Of a peer that reads nothing. Each of its calls has found ten answers of 60 KB, and holds one beside
/// its send buffer; what one peer can cost at most is told where connections have their limits.
#[test]
fn answers_that_nobody_takes_end_and_cost_a_bounded_amount() {
    let folder = large_answers();
    let server = Server::run(serve(&folder, &["server.stall_timeout=3s"]), folder);
    let mut friend = Peer::polite(server.main);
    // Whatever is made at the first call has been made.
    assert_eq!(friend.check(SOON).code(), OK);
    let before = server.memory();
    let stuck = never_reads(&server, 100);
    let (mut most_calls, mut most) = (0.0_f64, 0);
    let after = eventually("the beginning and the end of its calls", || {
        let calls = server.in_flight();
        most_calls = most_calls.max(calls);
        most = most.max(server.memory() - before);
        most_calls > 50.0 && calls == 0.0
    });
    report(&format!(
        "stalled: {} KiB at most for {most_calls} calls, ended after {after:?}",
        most / 1024
    ));
    assert!(most < 32 * MIB, "{most} bytes more");
    assert_eq!(friend.check(SOON).code(), OK);
    drop(stuck);
}

/// Of a peer that reads, but has closed the window of its calls.
#[test]
fn a_closed_window_ends_a_call_and_not_its_neighbours() {
    let folder = large_answers();
    let server = Server::run(serve(&folder, &["server.stall_timeout=1s"]), folder);
    let mut peer = Peer::connect(server.main);
    assert!(peer.handshake(&[(INITIAL_WINDOW_SIZE, 100)], SOON));
    let start = Instant::now();
    let closed = peer.request(RANK, &wombats());
    let open = peer.request(RANK, &wombats());
    peer.send(&[Frame::window(open, 1_000_000), Frame::window(0, 1_000_000)]);
    assert_eq!(peer.wait_end_of(open, SOON).code(), OK, "{peer:?}");
    let end = peer.wait_end_of(closed, SOON);
    report(&format!("stalled: a closed window for {:?}: {end:?}", start.elapsed()));
    assert!(matches!(end, End::Reset(_) | End::Status(..)), "{end:?} {peer:?}");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert_eq!(peer.wait_end(Duration::from_millis(1)), Line::Open);
}

/// A Watch has nothing to send for hours; that is no stall, whatever the window.
#[test]
fn a_quiet_watch_is_not_taken_for_a_stalled_one() {
    let folder = folder();
    let server = Server::run(serve(&folder, &["server.stall_timeout=500ms"]), folder);
    let mut peer = Peer::connect(server.main);
    // Its first message has seven bytes: the window is closed by it.
    assert!(peer.handshake(&[(INITIAL_WINDOW_SIZE, 7)], SOON));
    let watch = peer.watch("");
    assert_eq!(peer.wait_end_of(watch, Duration::from_secs(2)), End::Open, "{peer:?}");
}
