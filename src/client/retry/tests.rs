use tonic::metadata::MetadataMap;
use tonic_types::ErrorDetails;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn retry() -> Retry {
    Retry::new(Patience::default(), 1)
}

fn refused(code: Code, reason: &str, retry_after: Option<Duration>) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, "chatbot.v1.Chatbot", []);
    if let Some(after) = retry_after {
        details.set_retry_info(Some(after));
    }
    Status::with_error_details(code, "no", details)
}

fn pushed_back(code: Code, value: &str) -> Status {
    let mut metadata = MetadataMap::new();
    metadata.insert(PUSHBACK, value.parse().expect("a value"));
    Status::with_metadata(code, "no", metadata)
}

#[tokio::test]
async fn what_is_exhausted_is_tried_again_only_if_told_and_not_before_its_time() {
    let now = Instant::now();
    let bare = Status::resource_exhausted("full");
    assert_eq!(retry().after(&bare, true, now), None);
    let unsaid = refused(Code::ResourceExhausted, "OVERLOADED", None);
    assert_eq!(retry().after(&unsaid, true, now), None);
    for status in [
        refused(Code::ResourceExhausted, "RATE_LIMITED", Some(SECOND)),
        pushed_back(Code::ResourceExhausted, "1000"),
    ] {
        let again = retry().after(&status, true, now).expect("again");
        assert!(again.at >= now + SECOND && again.at < now + SECOND * 2, "{again:?}");
        assert!(!again.elsewhere, "a new connection would change nothing");
    }
    for never in ["-1", "soon", ""] {
        assert_eq!(retry().after(&pushed_back(Code::Unavailable, never), true, now), None);
    }
}

#[tokio::test]
async fn a_server_that_leaves_is_left() {
    let now = Instant::now();
    let leaving = refused(Code::Unavailable, "DRAINING", Some(SECOND));
    let again = retry().after(&leaving, true, now).expect("again");
    assert!(again.elsewhere && again.at >= now + SECOND);
    // A proxy's word, without details.
    let again = retry().after(&Status::unavailable("no healthy upstream"), true, now);
    assert!(again.expect("again").at < now + SECOND);
    assert_eq!(retry().after(&leaving, false, now), None, "it may have begun");
}

#[tokio::test]
async fn the_end_of_a_turn_stays_its_end() {
    let now = Instant::now();
    for reason in ["INTERRUPTED", "UPSTREAM_UNAVAILABLE", "UPSTREAM_TRUNCATED"] {
        let ended = refused(Code::Unavailable, reason, Some(SECOND));
        assert_eq!(retry().after(&ended, true, now), None, "{reason}");
    }
    for status in [
        refused(Code::InvalidArgument, "FIELD_INVALID", None),
        refused(Code::NotFound, "CONVERSATION_NOT_FOUND", None),
        refused(Code::Internal, "INTERNAL", None),
        Status::cancelled("by the server"),
    ] {
        assert_eq!(retry().after(&status, true, now), None, "{status:?}");
    }
    let busy = refused(Code::Aborted, "TURN_IN_PROGRESS", Some(SECOND));
    assert!(retry().after(&busy, true, now).expect("again").at >= now + SECOND);
}

fn not_connected() -> Status {
    Status::from_error(Box::new(tonic::ConnectError("refused".into())))
}

#[tokio::test]
async fn waits_double_and_end_with_the_budget() {
    let start = Instant::now();
    let mut retry = retry();
    let mut now = start;
    let mut waits = Vec::new();
    while let Some(again) = retry.after(&not_connected(), false, now) {
        waits.push(again.at - now);
        now = again.at;
        assert!(waits.len() < 100, "it never ends");
    }
    assert!(now - start <= Patience::default().budget);
    assert!(now - start + Patience::default().longest_wait > Patience::default().budget);
    for (index, wait) in waits.iter().enumerate() {
        let full = Patience::default().first_wait * (1 << index.min(16));
        let full = full.min(Patience::default().longest_wait);
        assert!(*wait <= full && *wait >= full.mul_f64(0.49), "{index}: {wait:?} of {full:?}");
    }
    // And whoever hears something again has all the patience again.
    retry.progress();
    assert!(retry.after(&not_connected(), false, now).is_some());
}

#[tokio::test]
async fn every_address_is_tried_before_any_wait() {
    let now = Instant::now();
    let mut retry = Retry::new(Patience::default(), 3);
    let mut tries = || retry.after(&not_connected(), false, now).expect("again");
    assert_eq!(tries(), Again { at: now, elsewhere: true });
    assert_eq!(tries(), Again { at: now, elsewhere: true });
    assert!(tries().at > now);
}

#[tokio::test]
async fn without_patience_only_what_costs_no_time_is_tried() {
    let now = Instant::now();
    let impatient = Patience { budget: Duration::ZERO, ..Patience::default() };
    let mut retry = Retry::new(impatient, 2);
    assert!(retry.after(&not_connected(), true, now).is_some(), "the other address");
    assert_eq!(retry.after(&not_connected(), true, now), None);
    let mut retry = Retry::new(impatient, 1);
    assert_eq!(retry.lost(now, false), None);
    // A connection that was recycled under a request that nobody has seen.
    let mut retry = Retry::new(impatient, 1);
    for _ in 0..FREE_REPLAYS {
        assert_eq!(retry.lost(now, true).map(|again| again.at), Some(now));
    }
    assert_eq!(retry.lost(now, true), None);
}

#[tokio::test]
async fn a_lost_stream_is_opened_again_at_once_and_then_with_care() {
    let now = Instant::now();
    let mut retry = retry();
    assert_eq!(retry.lost(now, false), Some(Again { at: now, elsewhere: false }));
    let second = retry.lost(now, false).expect("again");
    assert!(second.at > now);
    assert!(retry.lost(now, false).expect("again").elsewhere, "three in a row");
    retry.progress();
    assert_eq!(retry.lost(now, false).map(|again| again.at), Some(now));
}
