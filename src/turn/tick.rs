//! The beat in which text is logged.
//!
//! A reader cannot see the difference between text that comes each 20 ms and each 50, but every event
//! costs a write to the log, a wake-up and a message. So pieces are gathered, and all turns of a replica
//! log theirs in the same beat: appends reach the store together, where they share a commit or a round
//! trip, and the events of all streams of a connection share its writes. The first piece of an answer waits
//! for nothing.

use std::time::Duration;

use tokio::time::Instant;

/// From one beat to the next.
pub(super) const BEAT: Duration = Duration::from_millis(50);

/// The beats of a replica.
#[derive(Debug)]
pub(super) struct Tick {
    origin: Instant,
}

impl Tick {
    pub(super) fn new() -> Self {
        Self { origin: Instant::now() }
    }

    /// The first beat after `time`.
    pub(super) fn after(&self, time: Instant) -> Instant {
        let since = time.saturating_duration_since(self.origin);
        let beats = since.as_nanos() / BEAT.as_nanos() + 1;
        // More than fits are years.
        self.origin + BEAT.saturating_mul(u32::try_from(beats).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_turns_share_the_beat_and_none_waits_longer_than_one() {
        let tick = Tick::new();
        let origin = Instant::now();
        for (time, beat) in [(0, 50), (1, 50), (49, 50), (50, 100), (99, 100), (100_049, 100_050)] {
            let [time, beat] = [time, beat].map(|millis| origin + Duration::from_millis(millis));
            assert_eq!(tick.after(time), beat);
        }
    }
}
