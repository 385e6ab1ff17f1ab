//! The circuit breaker: a server that fails again and again is left alone for a while.
//!
//! Without it each turn waits for its own timeout, three times, while the knowledge base could have
//! answered at once, and a server that is starting up is met by all of them together. After some
//! failures in a row nothing is sent for a pause; then one request tries, and what comes of it decides
//! for all. A request that has brought its first piece is a success, whatever becomes of it later.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Failures in a row that open it.
const FAILURES: u32 = 5;
/// How long it stays open.
const PAUSE: Duration = Duration::from_secs(10);

/// Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Breaker(Arc<Mutex<State>>);

/// How it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Requests pass; so many have failed in a row.
    Closed(u32),
    /// None passes until then.
    Open(Instant),
    /// One has passed, and the others wait for what comes of it.
    Probing,
}

impl Default for State {
    fn default() -> Self {
        Self::Closed(0)
    }
}

/// Leave to send one request. Dropped without a word, nothing is learnt.
#[derive(Debug)]
pub(super) struct Permit {
    breaker: Breaker,
    probe: bool,
}

impl Breaker {
    /// Leave to send a request, unless it is open.
    pub(super) fn pass(&self) -> Option<Permit> {
        let mut state = self.lock();
        let probe = match *state {
            State::Closed(_) => false,
            State::Open(until) if until <= Instant::now() => {
                *state = State::Probing;
                true
            }
            State::Open(_) | State::Probing => return None,
        };
        Some(Permit { breaker: self.clone(), probe })
    }

    /// Whether nothing would pass now.
    pub(super) fn is_open(&self) -> bool {
        match *self.lock() {
            State::Closed(_) => false,
            State::Open(until) => until > Instant::now(),
            State::Probing => true,
        }
    }

    /// 0: closed, 1: open, 2: probing.
    pub(super) fn number(&self) -> i64 {
        match *self.lock() {
            State::Closed(_) => 0,
            State::Open(_) => 1,
            State::Probing => 2,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit {
    /// The server answers.
    pub(super) fn succeeded(mut self) {
        *self.breaker.lock() = State::default();
        self.probe = false;
    }

    /// The server does not.
    pub(super) fn failed(mut self) {
        let mut state = self.breaker.lock();
        *state = match *state {
            State::Closed(failures) if failures + 1 < FAILURES => State::Closed(failures + 1),
            State::Closed(_) => State::Open(Instant::now() + PAUSE),
            State::Probing if self.probe => State::Open(Instant::now() + PAUSE),
            // One from before it opened tells nothing new.
            other => other,
        };
        drop(state);
        self.probe = false;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.probe {
            // Cancelled; the next one tries.
            let mut state = self.breaker.lock();
            if *state == State::Probing {
                *state = State::Open(Instant::now());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(breaker: &Breaker) -> Permit {
        breaker.pass().expect("leave")
    }

    fn opened() -> Breaker {
        let breaker = Breaker::default();
        for _ in 0..FAILURES {
            pass(&breaker).failed();
        }
        assert!(breaker.is_open() && breaker.pass().is_none());
        breaker
    }

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_open_it_and_others_do_not() {
        let breaker = Breaker::default();
        for _ in 0..20 {
            for _ in 1..FAILURES {
                pass(&breaker).failed();
            }
            drop(pass(&breaker));
            pass(&breaker).succeeded();
        }
        assert_eq!(breaker.number(), 0);
        assert_eq!(opened().number(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn after_the_pause_one_request_decides_for_all() {
        let breaker = opened();
        tokio::time::advance(PAUSE / 2).await;
        assert!(breaker.pass().is_none());
        tokio::time::advance(PAUSE / 2).await;
        let probe = pass(&breaker);
        assert_eq!(breaker.number(), 2);
        assert!(breaker.pass().is_none(), "one at a time");
        probe.failed();
        assert!(breaker.pass().is_none(), "open again");
        tokio::time::advance(PAUSE).await;
        pass(&breaker).succeeded();
        let (_one, _two) = (pass(&breaker), pass(&breaker));
        assert_eq!(breaker.number(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_cancelled_lets_the_next_one_try() {
        let breaker = opened();
        tokio::time::advance(PAUSE).await;
        drop(pass(&breaker));
        pass(&breaker).succeeded();
        assert_eq!(breaker.number(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn late_news_of_old_requests_does_not_end_a_probe() {
        let breaker = Breaker::default();
        let old = pass(&breaker);
        for _ in 0..FAILURES {
            pass(&breaker).failed();
        }
        tokio::time::advance(PAUSE).await;
        let probe = pass(&breaker);
        old.failed();
        assert_eq!(breaker.number(), 2);
        probe.succeeded();
        assert_eq!(breaker.number(), 0);
    }
}
