//! The descriptors run out: nobody notices but those who took them.

use std::{
    io::ErrorKind,
    net::Ipv4Addr,
    process::Command,
    time::{Duration, Instant},
};

use super::{OK, SOON, Server, finish, teach};
use crate::{
    frames::{Line, Peer, dial},
    support::{folder, http_get, report, serve, skip},
};

const ATTACK: u16 = 10_000;
/// Sources of the attack; each stays below the cap per peer.
const SOURCES: u16 = 50;
const ATTACK_DEADLINE: Duration = Duration::from_secs(40);

/// With so few descriptors, hard and soft.
fn limited(inner: &Command) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -S -n 64 && ulimit -H -n 64 && exec \"$0\" \"$@\""]);
    command.arg(inner.get_program()).args(inner.get_args());
    command
}

/// Sets the soft limit of a server that runs, as nothing but this test does.
fn set_limit(server: &Server, soft: f64) {
    let process = server.process.id().to_string();
    let set = Command::new("prlimit")
        .args(["--pid", &process, &format!("--nofile={soft}:")])
        .status()
        .expect("prlimit runs");
    assert!(set.success());
}

/// The budget keeps this from happening; if it was wrong, this is what happens.
#[test]
fn without_a_descriptor_left_new_connections_are_reset_and_nothing_spins() {
    if Command::new("prlimit").arg("--version").output().is_err() {
        return skip("prlimit", "it is part of util-linux");
    }
    let mut server = Server::start(&[]);
    let metric = |server: &Server, name| server.metric(name).expect("a number");
    let mut friend = Peer::polite(server.main);
    let stream = teach(&mut friend);
    let soft = metric(&server, "chatbot_net_fds_limit_soft");
    set_limit(&server, metric(&server, "chatbot_net_fds_open") + 1.0);
    server.process.new_lines();

    let (start, used_before) = (Instant::now(), server.processor_time());
    let dial = |_| Peer::try_from(Ipv4Addr::new(127, 0, 1, 2), server.main).ok();
    let mut leaked: Vec<_> = (0..10).filter_map(dial).collect();
    let at_once = 10 - leaked.len();
    assert_eq!(friend.wait_end(Duration::from_secs(2)), Line::Open, "{friend:?}");
    let share = server.processor_time().saturating_sub(used_before).as_secs_f64()
        / start.elapsed().as_secs_f64();
    assert_eq!(friend.check(SOON).code(), OK, "{friend:?}");
    let ended = leaked
        .iter_mut()
        .filter_map(|peer| (peer.wait_end(Duration::from_millis(10)) != Line::Open).then_some(()));
    let reset = at_once + ended.count();
    let lines = server.process.new_lines();
    report(&format!(
        "descriptors: none left, {reset} of 10 reset, {:.1} % of a core, {} log lines",
        share * 100.0,
        lines.len()
    ));
    assert!(share < 0.05, "{share} of a core");
    assert!((5..10).contains(&reset), "{reset} were reset");
    assert!((1..=4).contains(&lines.len()), "{lines:#?}");

    set_limit(&server, soft);
    let raised = Instant::now();
    assert_eq!(Peer::polite(server.main).check(SOON).code(), OK);
    assert!(raised.elapsed() < Duration::from_secs(1), "{:?}", raised.elapsed());
    assert!(metric(&server, "chatbot_net_accept_shortages_total") > 0.0);
    assert_eq!(finish(&mut friend, stream), OK, "{friend:?}");
}

#[test]
fn ten_thousand_leaked_connections_cost_nothing_and_disturb_nobody() {
    let room = usize::try_from(chatbot::net::fds::raise().soft).expect("a number");
    let folder = folder();
    let mut server = Server::run(limited(&serve(&folder, &[])), folder);
    let mut friend = Peer::polite(server.main);
    let stream = teach(&mut friend);
    assert_eq!(friend.check(SOON).code(), OK);
    server.process.new_lines();

    let (start, used_before) = (Instant::now(), server.processor_time());
    let mut held = Vec::new();
    let (mut dialled, mut failed, mut slowest) = (0, 0, Duration::ZERO);
    for number in 0..ATTACK {
        let [high, low] = (number % SOURCES).to_be_bytes();
        match dial(Ipv4Addr::new(127, 0, 16 + high, 2 + low), server.main) {
            Ok(stream) if held.len() + 1_000 < room => held.push(stream),
            // This side has no room to hold it; the server has had to deal with it.
            Ok(_) => dialled += 1,
            Err(error) => {
                assert_ne!(error.kind(), ErrorKind::AddrNotAvailable);
                failed += 1;
            }
        }
        assert!(start.elapsed() < ATTACK_DEADLINE, "{number} connections in {ATTACK_DEADLINE:?}");
        if number % 1_000 == 999 {
            let asked = Instant::now();
            assert_eq!(friend.check(SOON).code(), OK, "{friend:?}");
            assert_eq!(Peer::polite(server.ops).check(SOON).code(), OK);
            assert!(http_get(server.ops, "/livez").contains("200 OK"));
            slowest = slowest.max(asked.elapsed());
        }
    }
    let attack = start.elapsed();
    let used_by_attack = server.processor_time().saturating_sub(used_before);

    // Nobody connects any more, but all of them are there.
    let (quiet, used_before) = (Instant::now(), server.processor_time());
    assert_eq!(friend.wait_end(Duration::from_millis(1_500)), Line::Open, "{friend:?}");
    let used = server.processor_time().saturating_sub(used_before);
    let share = used.as_secs_f64() / quiet.elapsed().as_secs_f64();
    report(&format!(
        "descriptors: {} held, {dialled} dropped, {failed} failed in {attack:?}, {used_by_attack:?} \
         of processor time; then {:.1} % of a core; slowest three checks {slowest:?}",
        held.len(),
        share * 100.0,
    ));
    assert!(share < 0.05, "{share} of a core with nobody connecting");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    let lines = server.process.new_lines();
    let allowed = usize::try_from(start.elapsed().as_secs()).expect("a number") + 3;
    assert!(lines.len() <= allowed, "more than a line a second: {lines:#?}");
    assert!(!lines.is_empty(), "nobody was told");

    drop(held);
    let closed = Instant::now();
    let recovered = loop {
        assert!(closed.elapsed() < SOON, "nobody is served after the attack");
        if let Ok(mut peer) = Peer::try_from(Ipv4Addr::new(127, 0, 1, 1), server.main)
            && peer.handshake(&[], SOON)
            && peer.check(SOON).code() == OK
        {
            break closed.elapsed();
        }
    };
    report(&format!("descriptors: a new client was served {recovered:?} after the attack"));
    assert!(recovered < Duration::from_secs(1), "{recovered:?}");
    assert_eq!(finish(&mut friend, stream), OK, "{friend:?}");
}
