//! The beat in which text is logged.
//!
//! A reader cannot see the difference between text that comes each 20 ms and each 50, but every event
//! costs a write to the log, a wake-up and a message. So pieces are gathered, and the turns of a replica
//! log theirs in the same beat: appends reach the store together, where they share a commit or a round
//! trip, and the events of all streams of a connection share its writes. Where there are many turns, parts
//! of them take turns within the beat: a thousand at once would wait for each other. The first piece of an
//! answer waits for nothing.

use std::time::Duration;

use tokio::time::Instant;

use crate::domain::ConversationDigest;

/// From one beat of a turn to its next.
const BEAT: Duration = Duration::from_millis(50);
/// Turns that log in one beat without waiting long for each other, and the parts of more than those.
const TOGETHER: i64 = 500;
const PARTS: u8 = 4;

/// The beats of a replica.
#[derive(Debug)]
pub(super) struct Tick {
    origin: Instant,
}

impl Tick {
    pub(super) fn new() -> Self {
        Self { origin: Instant::now() }
    }

    /// The first beat after `time` of a conversation's turn, of so many that run here.
    pub(super) fn after(
        &self,
        time: Instant,
        conversation: ConversationDigest,
        running: i64,
    ) -> Instant {
        let [.., last] = conversation.0;
        let part = if running > TOGETHER { last % PARTS } else { 0 };
        let first = self.origin + BEAT / u32::from(PARTS) * u32::from(part);
        let Some(since) = time.checked_duration_since(first) else { return first };
        let beats = since.as_nanos() / BEAT.as_nanos() + 1;
        // More than fits are years.
        first + BEAT.saturating_mul(u32::try_from(beats).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn turns_share_beats_and_none_waits_longer_than_one() {
        let tick = Tick::new();
        let origin = Instant::now();
        let after = |micros, part, running| {
            let time = origin + Duration::from_micros(micros);
            let mut digest = [7; 16];
            digest[15] = part;
            let beat = tick.after(time, ConversationDigest(digest), running);
            assert!(beat > time && beat <= time + BEAT, "{micros}, {part}");
            beat - origin
        };
        for (running, parts) in [(TOGETHER, 1), (TOGETHER + 1, PARTS)] {
            let mut beats = std::collections::HashSet::new();
            for micros in (1..1_000_000).step_by(777) {
                beats.extend((0..=u8::MAX).map(|part| after(micros, part, running)));
            }
            assert!(beats.len() <= 21 * usize::from(parts), "{}", beats.len());
            assert_eq!(after(49_999, 0, running), BEAT);
            assert_eq!(after(50_000, PARTS, running), BEAT * 2);
        }
    }
}
