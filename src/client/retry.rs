//! Whether, when and where a failed call is sent again.
//!
//! Pure arithmetic over what has failed so far, so that all of it can be tested without a network.
//! A server's word goes first: what it says must not be repeated is not, and what it says may be
//! repeated after some time is not repeated sooner.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::replay::Fate;

/// gRPC's own way to say when to try again: milliseconds in the trailers; anything else means never.
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// How often a call that the server has not seen is sent again though there is no time left to wait: it
/// was nobody's fault.
const FREE_REPLAYS: u32 = 5;

/// How patient a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// The longest time without any progress. Zero: nothing is waited for.
    pub budget: Duration,
    /// The wait after the second failure in a row; the first costs none.
    pub first_wait: Duration,
    /// The longest wait of the client's own choice. It doubles up to here.
    pub longest_wait: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            budget: Duration::from_mins(1),
            first_wait: Duration::from_millis(100),
            longest_wait: Duration::from_secs(5),
        }
    }
}

/// What to do about a failure: send it again, no sooner than `at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Again {
    pub(super) at: Instant,
    /// On another connection, at the next address where there is one.
    pub(super) elsewhere: bool,
}

/// The failures of one call, or of one stream since it last told something.
#[derive(Debug, Clone)]
pub(super) struct Retry {
    patience: Patience,
    /// How many addresses there are: each gets a try before any wait.
    addresses: u32,
    failures: u32,
    since: Option<Instant>,
}

impl Retry {
    pub(super) fn new(patience: Patience, addresses: usize) -> Self {
        let addresses = u32::try_from(addresses).unwrap_or(u32::MAX);
        Self { patience, addresses, failures: 0, since: None }
    }

    /// Something new was heard: all is well.
    pub(super) fn progress(&mut self) {
        self.failures = 0;
        self.since = None;
    }

    /// What to do about a call that ended with `status`; `None`: nothing, it has failed.
    pub(super) fn after(
        &mut self,
        status: &Status,
        idempotent: bool,
        now: Instant,
    ) -> Option<Again> {
        let fate = Fate::of(status);
        match fate {
            Fate::Answered => {
                let word = Word::of(status);
                if word == Word::Never || !idempotent {
                    return None;
                }
                self.failures += 1;
                let wait = match word {
                    // Not before its time; and those who were told the same do not come at once.
                    Word::After(wait) => wait.mul_f64(1.0 + random() / 5.0),
                    Word::Never | Word::Sometime => self.wait(),
                };
                let at = now + wait;
                // A server that leaves, or has no log, is not the only one. One without room for this
                // caller is none the better for a new connection.
                let elsewhere = status.code() == Code::Unavailable;
                self.within_budget(now, at).then_some(Again { at, elsewhere })
            }
            Fate::NotConnected => {
                self.failures += 1;
                if self.failures < self.addresses {
                    return Some(Again { at: now, elsewhere: true });
                }
                let at = now + self.wait();
                self.within_budget(now, at).then_some(Again { at, elsewhere: true })
            }
            _ if !fate.allows_replay(idempotent) => None,
            _ => self.lost(now, fate != Fate::Ambiguous),
        }
    }

    /// What to do about a server that says nothing, or whose stream broke. `harmless`: what was sent was
    /// not looked at.
    pub(super) fn lost(&mut self, now: Instant, harmless: bool) -> Option<Again> {
        self.failures += 1;
        let at = if self.failures == 1 || (harmless && self.failures <= FREE_REPLAYS) {
            now
        } else {
            now + self.wait()
        };
        let free = harmless && self.failures <= FREE_REPLAYS;
        // The connection is replaced by itself; only from the third failure on another server is to blame.
        (self.within_budget(now, at) || free).then_some(Again { at, elsewhere: self.failures > 2 })
    }

    fn within_budget(&mut self, now: Instant, at: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        at.duration_since(since) <= self.patience.budget && !self.patience.budget.is_zero()
    }

    /// Doubles with each failure; a random half of it is taken off, so that clients which were cut together
    /// do not come back together.
    fn wait(&self) -> Duration {
        let doublings = self.failures.saturating_sub(1).min(16);
        let wait = self.patience.first_wait.saturating_mul(1 << doublings);
        let wait = wait.min(self.patience.longest_wait);
        wait.mul_f64(1.0 - random() / 2.0)
    }
}

/// What a server that has refused a call says about a repetition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Never,
    /// Not before this time.
    After(Duration),
    Sometime,
}

impl Word {
    fn of(status: &Status) -> Self {
        if is_end_of_turn(status) {
            return Self::Never;
        }
        if let Some(value) = status.metadata().get(PUSHBACK) {
            let value = value.to_str().ok().and_then(|value| value.parse().ok());
            return value.map_or(Self::Never, |value| Self::After(Duration::from_millis(value)));
        }
        let told = status.get_details_retry_info().and_then(|retry| retry.retry_delay);
        match told {
            Some(wait) => Self::After(wait),
            None if status.code() == Code::Unavailable => Self::Sometime,
            None => Self::Never,
        }
    }
}

/// The reason of a status of this contract.
pub(super) fn reason(status: &Status) -> Option<String> {
    status.get_details_error_info().map(|info| info.reason)
}

/// Whether the status tells the end of the turn: it stays so, however often it is asked for.
fn is_end_of_turn(status: &Status) -> bool {
    reason(status).is_some_and(|reason| {
        ["INTERRUPTED", "UPSTREAM_UNAVAILABLE", "UPSTREAM_TRUNCATED", "TURN_TIMEOUT", "INTERNAL"]
            .contains(&reason.as_str())
    })
}

/// From 0 to 1. The keys of a hash map are random enough for this, and need no further library.
fn random() -> f64 {
    let bits = RandomState::new().hash_one(0_u8) >> 32;
    f64::from(u32::try_from(bits).unwrap_or_default()) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests;
