//! The stop, with everybody attached who could hold it up.

use std::{
    fmt::Write as _,
    net::TcpStream,
    time::{Duration, Instant},
};

use chatbot::pb::health::v1::{HealthCheckResponse, health_check_response::ServingStatus};

use super::{
    OK, SOON, Server, UNAVAILABLE,
    leftovers::{eventually, never_reads},
    teach,
};
use crate::{
    frames::{End, Line, PREFACE, Peer, Seen},
    support::{folder, http_get, report, serve},
};

/// `server.drain_delay` and `server.drain_grace`.
const DELAY: Duration = Duration::from_millis(500);
const GRACE: Duration = Duration::from_secs(1);

/// Entries that answer one query with 600 KB.
pub(super) fn large_answers() -> tempfile::TempDir {
    let folder = folder();
    let (mut lines, text) = (String::new(), "wombat ".repeat(8_500));
    for id in 1..=10 {
        let _ = writeln!(
            lines,
            r#"{{"answer_id":{id},"questions":["What does wombat {id} say?"],"answer":"{text}"}}"#
        );
    }
    std::fs::write(folder.path().join("faq.jsonl"), lines).expect("the entries");
    folder
}

#[test]
fn a_stop_is_seen_at_once_and_ends_in_time_whoever_is_attached() {
    let folder = large_answers();
    let command = serve(&folder, &["server.drain_delay=500ms", "server.drain_grace=1s"]);
    let server = Server::run(command, folder);
    let silent = Peer::connect(server.main);
    let mut half = Peer::connect(server.main);
    half.write(&PREFACE[..12]);
    let mut no_settings = Peer::connect(server.main);
    no_settings.write(PREFACE);
    let mut deaf = Peer::polite(server.main);
    deaf.acks_pings = false;
    let stuck = never_reads(&server, 100);
    let mut watcher = Peer::polite(server.main);
    let watch = watcher.watch("");
    let mut teacher = Peer::polite(server.main);
    let lesson = teach(&mut teacher);
    assert_eq!(teacher.check(SOON).code(), OK);
    let mut idle = Peer::polite(server.main);
    // All that fits has been sent, and the rest waits: no call costs anything any more.
    eventually("the end of its writing", || {
        let used = server.processor_time();
        idle.wait_end(Duration::from_millis(200));
        server.processor_time() == used
    });
    assert!(server.in_flight() > 10.0);
    let silent_ops = TcpStream::connect(server.ops).expect("a connection");

    let start = Instant::now();
    server.process.signal("TERM");
    // Field 1 is NOT_SERVING.
    let not_serving =
        |seen: &Seen| seen.frame.stream == watch && seen.frame.payload.ends_with(&[8, 2]);
    let told = watcher.wait_for(SOON, not_serving).expect("NOT_SERVING is told").at - start;
    let ready = http_get(server.ops, "/readyz");
    assert!(ready.contains("503") && ready.contains("stopping"), "{ready}");
    let asked = start.elapsed();
    // For a while it serves whoever has not heard of it.
    let answered = Peer::polite(server.main).check(SOON).code();

    let goaway = watcher.wait_goaway(SOON).expect("a GOAWAY").at - start;
    assert_eq!(watcher.wait_end_of(watch, SOON).code(), UNAVAILABLE, "{watcher:?}");
    let statuses: Vec<_> = watcher.messages(watch);
    let statuses = statuses.into_iter().map(|seen: HealthCheckResponse| seen.status());
    let statuses: Vec<_> = statuses.collect();
    assert_eq!(statuses, [ServingStatus::Serving, ServingStatus::NotServing]);
    assert_eq!(idle.wait_end(SOON), Line::Fin, "{idle:?}");
    let taught = teacher.wait_end_of(lesson, SOON);
    let (status, lines, _) = server.process.wait();
    let ended = start.elapsed();
    report(&format!(
        "stop: told after {told:?}, probes by {asked:?}, GOAWAY after {goaway:?}, ended after \
         {ended:?} of {:?}; the open Teach: {taught:?}",
        DELAY + GRACE
    ));
    assert_eq!(answered, OK);
    assert!(told < DELAY, "{told:?}");
    assert!(goaway >= DELAY, "{goaway:?}");
    assert!(matches!(taught, End::Status(14, _)), "{taught:?}");
    assert_eq!(status.code(), Some(0), "{lines:#?}");
    assert!(ended < DELAY + GRACE + Duration::from_secs(1), "{ended:?} {lines:#?}");
    drop((silent, half, no_settings, deaf, stuck, silent_ops));
}
