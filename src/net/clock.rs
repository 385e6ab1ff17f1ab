//! The clock that hyper gets for a connection.
//!
//! hyper notes the time of each frame that it reads, to know since when a peer is silent, and of each
//! call it reads three: of what a whole call costs here that was a fiftieth. It only has to know by the
//! second, so it gets the time of when the connection was looked at last, which a timer does too.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use hyper::rt::{Sleep, Timer};
use hyper_util::rt::TokioTimer;

/// A connection's clock; clones share it. It stands still until it is set.
#[derive(Debug, Clone)]
pub(super) struct Clock {
    begin: tokio::time::Instant,
    /// Nanoseconds since then.
    now: Arc<AtomicU64>,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self { begin: tokio::time::Instant::now(), now: Arc::default() }
    }

    /// Sets it to what time it is.
    pub(super) fn set(&self) {
        let nanos = u64::try_from(self.begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.now.store(nanos, Ordering::Relaxed);
    }
}

impl Timer for Clock {
    fn sleep(&self, time: Duration) -> Pin<Box<dyn Sleep>> {
        TokioTimer::new().sleep(time)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        TokioTimer::new().sleep_until(deadline)
    }

    fn now(&self) -> Instant {
        (self.begin + Duration::from_nanos(self.now.load(Ordering::Relaxed))).into()
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn Sleep>>, deadline: Instant) {
        TokioTimer::new().reset(sleep, deadline);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_tells_when_it_was_set_and_its_alarms_are_on_time() {
        let clock = Clock::new();
        let start = clock.now();
        clock.sleep(Duration::from_secs(3)).await;
        assert_eq!(clock.now(), start);
        clock.set();
        assert_eq!(clock.now() - start, Duration::from_secs(3));
        let mut alarm = clock.sleep_until(start + Duration::from_secs(9));
        clock.reset(&mut alarm, start + Duration::from_secs(5));
        alarm.await;
        clock.set();
        assert_eq!(clock.now() - start, Duration::from_secs(5));
    }
}
