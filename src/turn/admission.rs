//! Admission: how many answers are generated at once, and how often one principal may ask.
//!
//! It is decided before a request is claimed and before its response begins, so that a refusal is a
//! status that gRPC's own retry understands. A slot is held until the generation ends, not until the
//! call does: a client that goes away frees nothing. Engines without a model need no slot, so the bot
//! still answers its FAQs when the model is saturated. Limits are this replica's own.
//!
//! The queue is short on purpose. Waiting in it helps against bursts; against a load that is too high
//! it only makes everybody late. What cannot get its slot in time is told so at once, with a time to
//! come back: its place in the line of all who were told so, since a slot becomes free only so often.
//! Were each told the time until the next slot, ten times as many callers as slots would all be back for
//! it, to be refused again: a thousand refusals a second, for nothing (measured).

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};
use uuid::Uuid;

/// Least time that a refused caller is told to wait.
const SHORTEST: Duration = Duration::from_millis(100);
/// Most time that a caller without a slot is told to wait: how long slots are held is a guess, and those
/// who come back are not obliged to.
const LONGEST: Duration = Duration::from_secs(30);
/// The weight of the newest duration in the moving average.
const WEIGHT: f64 = 0.1;
/// Principals that are remembered. Beyond it those whose bucket is full again, which are like new, are
/// forgotten.
const PRINCIPALS: usize = 10_000;

/// Why a turn is refused, as metrics have it.
const RATE_LIMITED: &str = "rate_limited";
const OVERLOADED: &str = "overloaded";

/// How much is admitted.
#[derive(Debug, Clone, Copy)]
pub struct Quota {
    /// Generations at a time.
    pub slots: usize,
    /// How long a request may wait for a slot.
    pub queue_time: Duration,
    /// Turns that a principal may begin in a second, on average; `None`: as many as it likes.
    pub turns_per_second: Option<f64>,
    /// Turns that a principal may begin at once.
    pub burst: u32,
}

/// Not now. When to come back is told, and already spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The principal has begun too many turns.
    RateLimited(Duration),
    /// All slots are taken, and none will be free in time.
    Overloaded(Duration),
}

#[derive(Debug)]
pub(super) struct Admission {
    quota: Quota,
    slots: Arc<Semaphore>,
    flow: Arc<Flow>,
    buckets: Mutex<HashMap<String, Bucket>>,
    metrics: Metrics,
}

/// How slots become free, and who waits for them.
#[derive(Debug, Default)]
struct Flow {
    /// Here, in the queue.
    waiting: AtomicUsize,
    pace: Mutex<Pace>,
}

#[derive(Debug, Default)]
struct Pace {
    /// From one slot that becomes free to the next, by the moving average of how long they are held; zero
    /// before the first.
    interval: Duration,
    /// When the last of those who were told to come back will find a slot.
    line: Option<Instant>,
}

/// A generation's place, until it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    permit: OwnedSemaphorePermit,
    /// Since when its generation runs, if it does.
    since: Option<Instant>,
    slots: usize,
    flow: Arc<Flow>,
    in_use: Gauge,
}

/// A principal's turns that are left, and when that was.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    turns: f64,
    at: Instant,
}

impl Admission {
    pub(super) fn new(quota: Quota, registry: &mut Registry) -> Self {
        Self {
            quota,
            slots: Arc::new(Semaphore::new(quota.slots)),
            flow: Arc::default(),
            buckets: Mutex::default(),
            metrics: Metrics::new(quota.slots, registry),
        }
    }

    /// Takes one of the principal's turns.
    pub(super) fn take_turn(&self, principal: &str) -> Result<(), Refusal> {
        let Some(rate) = self.quota.turns_per_second else { return Ok(()) };
        let burst = f64::from(self.quota.burst);
        let now = Instant::now();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= PRINCIPALS && !buckets.contains_key(principal) {
            buckets.retain(|_, bucket| bucket.turns_at(now, rate, burst) < burst);
        }
        let full = Bucket { turns: burst, at: now };
        let bucket = buckets.entry(principal.to_owned()).or_insert(full);
        bucket.turns = bucket.turns_at(now, rate, burst);
        bucket.at = now;
        if bucket.turns < 1.0 {
            let wait = Duration::from_secs_f64((1.0 - bucket.turns) / rate);
            return Err(Refusal::RateLimited(spread(wait)));
        }
        bucket.turns -= 1.0;
        Ok(())
    }

    /// Gives a turn back that began nothing.
    pub(super) fn give_back(&self, principal: &str) {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = buckets.get_mut(principal) {
            bucket.turns += 1.0;
        }
    }

    /// A slot, now or within the time that the caller and the settings leave.
    pub(super) async fn slot(&self, deadline: Option<Instant>) -> Result<Slot, Refusal> {
        if let Some(slot) = self.free_slot() {
            return Ok(slot);
        }
        let start = Instant::now();
        let left = deadline.map(|deadline| deadline.saturating_duration_since(start));
        let limit = left.map_or(self.quota.queue_time, |left| left.min(self.quota.queue_time));
        let waiting = Waiting::join(self);
        // The first may be lucky: the slot of a turn that was just stopped is on its way. For the others
        // it is arithmetic, and a queue longer than the slots is no burst.
        let late = waiting.position > 1 && waiting.estimate() > limit;
        if late || waiting.position > self.quota.slots {
            return Err(waiting.refusal());
        }
        let permit = timeout(limit, Arc::clone(&self.slots).acquire_owned()).await;
        self.metrics.waited.observe(start.elapsed().as_secs_f64());
        match permit {
            Ok(Ok(permit)) => Ok(self.hold(permit)),
            Ok(Err(_)) | Err(_) => Err(waiting.refusal()),
        }
    }

    /// A slot, if one is free.
    pub(super) fn free_slot(&self) -> Option<Slot> {
        let permit = Arc::clone(&self.slots).try_acquire_owned().ok()?;
        Some(self.hold(permit))
    }

    fn hold(&self, permit: OwnedSemaphorePermit) -> Slot {
        let in_use = self.metrics.in_use.clone();
        in_use.inc();
        let (slots, flow) = (self.quota.slots, Arc::clone(&self.flow));
        Slot { permit, since: None, slots, flow, in_use }
    }

    /// Counts a refusal that the caller is told.
    pub(super) fn refused(&self, refusal: Refusal) {
        let reason = match refusal {
            Refusal::RateLimited(_) => RATE_LIMITED,
            Refusal::Overloaded(_) => OVERLOADED,
        };
        self.metrics.refused.get_or_create(&Reason { reason }).inc();
    }
}

impl Bucket {
    fn turns_at(&self, now: Instant, rate: f64, burst: f64) -> f64 {
        (self.turns + (now - self.at).as_secs_f64() * rate).min(burst)
    }
}

impl Slot {
    /// Its generation begins.
    pub(super) fn runs(mut self) -> Self {
        self.since = Some(Instant::now());
        self
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.in_use.dec();
        // A slot that was not needed says nothing about how long others take.
        let Some(since) = self.since else { return };
        let mut pace = self.flow.pace();
        pace.held(since.elapsed(), self.slots);
        // Another one is free still, since before this one.
        let free = self.permit.semaphore().available_permits();
        if free > 0 && self.flow.waiting.load(Ordering::Relaxed) == 0 {
            pace.nobody_came();
        }
    }
}

impl Flow {
    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pace {
    #[expect(clippy::cast_precision_loss, reason = "small counts")]
    fn held(&mut self, time: Duration, slots: usize) {
        let interval = time.div_f64(slots as f64);
        self.interval = if self.interval.is_zero() {
            interval
        } else {
            self.interval.mul_f64(1.0 - WEIGHT) + interval.mul_f64(WEIGHT)
        };
    }

    /// A slot has been free and nobody has come for it: whoever of the line it was for has gone, or was counted more
    /// than once because he came before his time. Nobody is kept waiting for him.
    fn nobody_came(&mut self) {
        self.line = self.line.and_then(|last| last.checked_sub(self.interval));
    }

    /// The next place in the line, not before `earliest`.
    fn place(&mut self, now: Instant, earliest: Duration) -> Duration {
        let told = self.line.map_or(now, |last| last + self.interval);
        let place = told.max(now + earliest).min(now + LONGEST);
        self.line = Some(place);
        place - now
    }
}

/// One who waits for a slot, until it is dropped.
struct Waiting<'a> {
    admission: &'a Admission,
    /// From 1.
    position: usize,
}

impl<'a> Waiting<'a> {
    fn join(admission: &'a Admission) -> Self {
        let before = admission.flow.waiting.fetch_add(1, Ordering::Relaxed);
        admission.metrics.waiting.inc();
        Self { admission, position: before + 1 }
    }

    /// How long until its slot is free, if slots are held as long as they were.
    fn estimate(&self) -> Duration {
        let position = u32::try_from(self.position).unwrap_or(u32::MAX);
        self.admission.flow.pace().interval.saturating_mul(position)
    }

    /// Behind those who wait, and behind those who were told before.
    fn refusal(&self) -> Refusal {
        let earliest = self.estimate();
        let wait = self.admission.flow.pace().place(Instant::now(), earliest);
        Refusal::Overloaded(spread(wait))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.admission.flow.waiting.fetch_sub(1, Ordering::Relaxed);
        self.admission.metrics.waiting.dec();
    }
}

/// A time from three quarters to five quarters of `wait`.
fn spread(wait: Duration) -> Duration {
    let random = f64::from(u8::try_from(Uuid::new_v4().as_u128() & 0xff).unwrap_or(0)) / 255.0;
    wait.max(SHORTEST).mul_f64(0.75 + random / 2.0)
}

#[derive(Debug)]
struct Metrics {
    in_use: Gauge,
    waiting: Gauge,
    waited: Histogram,
    refused: Family<Reason, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

impl Metrics {
    fn new(slots: usize, registry: &mut Registry) -> Self {
        let metrics = Self {
            in_use: Gauge::default(),
            waiting: Gauge::default(),
            waited: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            refused: Family::default(),
        };
        // A counter that begins with its first event hides that event: a rate needs a value before it.
        for reason in [RATE_LIMITED, OVERLOADED] {
            drop(metrics.refused.get_or_create(&Reason { reason }));
        }
        let registry = registry.sub_registry_with_prefix("turn");
        let total: Gauge = Gauge::default();
        total.set(i64::try_from(slots).unwrap_or(i64::MAX));
        registry.register("slots", "Generations that there may be at a time", total);
        registry.register("slots_in_use", "Generations that hold a slot", metrics.in_use.clone());
        registry.register("waiting", "Requests that wait for a slot", metrics.waiting.clone());
        registry.register_with_unit(
            "waited",
            "Time that requests have waited for a slot, in vain or not",
            Unit::Seconds,
            metrics.waited.clone(),
        );
        registry.register("refused", "Turns that were refused", metrics.refused.clone());
        metrics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(slots: usize, rate: Option<f64>, burst: u32) -> Admission {
        let queue_time = Duration::from_millis(250);
        let quota = Quota { slots, queue_time, turns_per_second: rate, burst };
        Admission::new(quota, &mut Registry::default())
    }

    #[tokio::test(start_paused = true)]
    async fn a_principal_has_its_burst_and_then_its_rate() {
        let admission = admission(1, Some(2.0), 3);
        for _ in 0..3 {
            admission.take_turn("alice").expect("a burst");
        }
        let Err(Refusal::RateLimited(wait)) = admission.take_turn("alice") else {
            panic!("too many")
        };
        // Half a second, give or take a quarter.
        assert!((375..=625).contains(&wait.as_millis()), "{wait:?}");
        admission.take_turn("bob").expect("somebody else");
        tokio::time::advance(Duration::from_millis(500)).await;
        admission.take_turn("alice").expect("one more");
        assert!(admission.take_turn("alice").is_err());
        admission.give_back("alice");
        admission.take_turn("alice").expect("given back");
        tokio::time::advance(Duration::from_hours(1)).await;
        for _ in 0..3 {
            admission.take_turn("alice").expect("no more than a burst");
        }
        assert!(admission.take_turn("alice").is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn principals_are_forgotten_when_they_are_like_new() {
        let admission = admission(1, Some(1.0), 1);
        for number in 0..PRINCIPALS {
            admission.take_turn(&number.to_string()).expect("its first");
        }
        tokio::time::advance(Duration::from_secs(2)).await;
        admission.take_turn("one more").expect("its first");
        assert_eq!(admission.buckets.lock().expect("a lock").len(), 1);
    }

    /// Takes all four slots, and has them for two seconds: one is free every half second.
    async fn hold(admission: &Admission) -> [Slot; 4] {
        let slots = [(); 4].map(|()| admission.free_slot().expect("free").runs());
        tokio::time::advance(Duration::from_secs(2)).await;
        slots
    }

    /// The seconds after which one without a slot is told to come back: a time, give or take a quarter.
    async fn told(admission: &Admission) -> f64 {
        match admission.slot(Some(Instant::now())).await {
            Err(Refusal::Overloaded(wait)) => wait.as_secs_f64(),
            other => panic!("{other:?}"),
        }
    }

    fn about(time: f64) -> std::ops::RangeInclusive<f64> {
        time * 0.749..=time * 1.251
    }

    #[tokio::test(start_paused = true)]
    async fn the_refused_are_told_to_come_as_slots_become_free() {
        let admission = admission(4, None, 1);
        drop(hold(&admission).await);
        let _slots = hold(&admission).await;
        for number in 1..=40 {
            let wait = told(&admission).await;
            assert!(about(f64::from(number) / 2.0).contains(&wait), "{number}: {wait}");
        }
        // Time passes for the line as for everybody, and nobody is told to wait for ever.
        tokio::time::advance(Duration::from_secs(19)).await;
        assert!(about(1.5).contains(&told(&admission).await));
        for _ in 0..100 {
            assert!(told(&admission).await <= LONGEST.as_secs_f64() * 1.251);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_those_who_do_not_come_back() {
        let admission = admission(4, None, 1);
        drop(hold(&admission).await);
        let slots = hold(&admission).await;
        for _ in 0..40 {
            told(&admission).await;
        }
        // Twelve slots are had by whoever asks, and nobody else, in six seconds; three of four are free when
        // the next one is.
        drop(slots);
        for _ in 0..3 {
            drop(hold(&admission).await);
        }
        let _slots = [(); 4].map(|()| admission.free_slot().expect("free").runs());
        let wait = told(&admission).await;
        assert!(about(20.0 - 6.0 - 12.0 / 2.0 + 0.5).contains(&wait), "{wait}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_waits_and_an_overload_is_told_at_once() {
        let admission = admission(2, None, 1);
        let slots = [admission.slot(None).await, admission.slot(None).await];
        let slots = slots.map(|slot| slot.expect("free").runs());
        // Nothing is known about how long slots are held: it is tried, for the queue's time.
        let start = Instant::now();
        assert!(matches!(admission.slot(None).await, Err(Refusal::Overloaded(_))));
        assert_eq!(start.elapsed(), Duration::from_millis(250));
        // One that is freed in time is had.
        let [first, second] = slots;
        let freed = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            drop(first);
        };
        let (slot, ()) = tokio::join!(admission.slot(None), freed);
        let slot = slot.expect("in time");
        // Slots are held for 300 ms: the first in the queue may wait, the fourth need not begin to.
        drop(second);
        let second = admission.slot(None).await.expect("free");
        let start = Instant::now();
        let four = futures_util::future::join_all((0..4).map(|_| admission.slot(None))).await;
        assert!(four.iter().all(Result::is_err));
        assert_eq!(start.elapsed(), Duration::from_millis(250));
        // A deadline that is nearer than a slot is not waited for.
        let soon = Instant::now() + Duration::from_millis(1);
        let start = Instant::now();
        let Err(Refusal::Overloaded(wait)) = admission.slot(Some(soon)).await else {
            panic!("no slot")
        };
        assert_eq!(start.elapsed(), Duration::from_millis(1));
        assert!(wait >= Duration::from_millis(75), "{wait:?}");
        drop((slot, second));
        assert_eq!(admission.flow.waiting.load(Ordering::Relaxed), 0);
        assert_eq!(admission.slots.available_permits(), 2);
    }
}
