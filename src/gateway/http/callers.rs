//! Limits per client, and per source of connections that are not authenticated yet.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    identity::{Identity, Scope, Source},
    listen::Peer,
};
use crate::{
    budget::Budget,
    gateway::{Failure, Place, Places, memory::Reserved},
    limits,
    logging::Throttle,
    sync::lock,
};

/// One client, over however many connections and sessions.
pub struct Caller {
    pub identity: Identity,
    /// Tool calls at once.
    calls: Arc<Semaphore>,
    max_calls: usize,
    /// HTTP requests at once, streams included.
    requests: Arc<Semaphore>,
    max_requests: usize,
    /// Of these, those that use CPU all the time: a window sleeps.
    working: Arc<Semaphore>,
    /// Requests per second; 0: no limit.
    rate: u32,
    bucket: Mutex<Bucket>,
    /// Of bytes of its answers.
    answers: Mutex<Bucket>,
    /// Of its lines in the log: those about calls, and those about refusals.
    pub audited: Throttle,
    pub refused: Throttle,
}

/// A request's sender: the client, what it may use, and the connection that it came by.
#[derive(Clone)]
pub struct Sender {
    pub caller: Arc<Caller>,
    pub scope: Arc<Scope>,
    pub peer: Peer,
    /// The share of the answer in the memory for answers, until the client has read it.
    pub holds: Holds,
}

/// Memory that is held until an answer is sent.
pub type Holds = Arc<Mutex<Option<Reserved>>>;

/// Room for one tool call.
pub struct Room {
    _own: OwnedSemaphorePermit,
    _working: Option<OwnedSemaphorePermit>,
    _place: Place,
}

impl Caller {
    /// Room for a call of this client. A client that asks for more than its share waits for its own calls to
    /// end, so that the others do not wait for it. A call that `works` does not watch through a window.
    pub async fn call(&self, places: &Arc<Places>, works: bool) -> Result<Room, Failure> {
        if self.rate > 0
            && let Err(wait) = lock(&self.answers).owes(self.bytes_per_second(), Instant::now())
        {
            return Err(Failure::Busy(format!(
                "your answers exceed {:.1} MB per second: try again in {} s, and request fewer rows (limit)",
                self.bytes_per_second() / 1e6,
                wait.as_secs() + 1
            )));
        }
        let own = async {
            let own = Arc::clone(&self.calls).acquire_owned().await;
            (own, if works { Some(Arc::clone(&self.working).acquire_owned().await) } else { None })
        };
        let Ok((Ok(own), working)) = tokio::time::timeout(limits::CALL_WAIT, own).await else {
            return Err(Failure::Busy(format!(
                "limit of {} simultaneous calls per client reached (max_calls); try again when one has ended",
                self.max_calls
            )));
        };
        let others = self.max_calls - self.calls.available_permits() - 1;
        Ok(Room { _own: own, _working: working.and_then(Result::ok), _place: places.take(others)? })
    }

    /// Counts an answer of this many bytes.
    pub fn answered(&self, bytes: usize) {
        lock(&self.answers).spend(bytes as f64, self.bytes_per_second(), Instant::now());
    }

    fn bytes_per_second(&self) -> f64 {
        f64::from(self.rate) * limits::ANSWER_BYTES_PER_REQUEST
    }

    /// Room for a request of this client, until it is answered.
    pub fn begin(&self) -> Result<OwnedSemaphorePermit, String> {
        Arc::clone(&self.requests)
            .try_acquire_owned()
            .map_err(|_| format!("limit of {} pending requests per client reached", self.max_requests))
    }

    /// Takes one request off what this client may send, or says how long until it may again.
    pub fn request(&self) -> Result<(), Duration> {
        if self.rate == 0 {
            return Ok(());
        }
        lock(&self.bucket).take(f64::from(self.rate), limits::BURST_S, Instant::now())
    }
}

/// A token bucket.
struct Bucket {
    filled: Instant,
    tokens: f64,
}

impl Bucket {
    fn full() -> Mutex<Self> {
        Mutex::new(Bucket { filled: Instant::now(), tokens: f64::INFINITY })
    }

    /// Takes one token of a bucket that holds `burst` seconds' worth.
    fn take(&mut self, rate: f64, burst: f64, now: Instant) -> Result<(), Duration> {
        self.fill(rate, burst, now);
        if self.tokens < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - self.tokens) / rate));
        }
        self.tokens -= 1.0;
        Ok(())
    }

    /// Takes `amount`, which may be more than there is.
    fn spend(&mut self, amount: f64, rate: f64, now: Instant) {
        self.fill(rate, limits::ANSWERS_BURST_S, now);
        self.tokens -= amount;
    }

    /// The time until the spent budget is available again.
    fn owes(&mut self, rate: f64, now: Instant) -> Result<(), Duration> {
        self.fill(rate, limits::ANSWERS_BURST_S, now);
        if self.tokens >= 0.0 { Ok(()) } else { Err(Duration::from_secs_f64(-self.tokens / rate)) }
    }

    fn fill(&mut self, rate: f64, burst: f64, now: Instant) {
        let gained = now.saturating_duration_since(self.filled).as_secs_f64() * rate;
        self.tokens = (self.tokens + gained).min(rate * burst);
        self.filled = now;
    }
}

/// A source of requests without good credentials.
pub struct Stranger {
    failures: Mutex<Bucket>,
    pub refused: Throttle,
}

impl Stranger {
    /// Whether it has failed so often that its signatures are not checked for now; counts nothing.
    pub fn is_tiresome(&self) -> bool {
        let mut failures = lock(&self.failures);
        failures.fill(limits::FAILURES_PER_SECOND, limits::BURST_S, Instant::now());
        failures.tokens < 1.0
    }

    /// Counts credentials that were not good.
    pub fn failed(&self) {
        let _ = lock(&self.failures).take(limits::FAILURES_PER_SECOND, limits::BURST_S, Instant::now());
    }
}

/// Entries by key. Unused entries are removed when there are many.
struct Known<K, V>(Mutex<HashMap<K, Arc<V>>>);

impl<K: Eq + Hash + Clone, V> Known<K, V> {
    fn get(&self, key: &K, make: impl FnOnce() -> V) -> Arc<V> {
        let mut known = lock(&self.0);
        if let Some(value) = known.get(key) {
            return Arc::clone(value);
        }
        if known.len() >= limits::CALLERS {
            known.retain(|_, value| Arc::strong_count(value) > 1);
        }
        let value = Arc::new(make());
        known.insert(key.clone(), Arc::clone(&value));
        value
    }
}

/// Every client that has come.
pub struct Callers {
    max_calls: usize,
    max_requests: usize,
    pub rate: u32,
    callers: Known<Identity, Caller>,
    strangers: Known<Source, Stranger>,
    /// Bytes of requests that are not whole yet.
    pub bodies: Arc<Budget<Identity>>,
}

impl Callers {
    /// `max_calls` calls and `max_requests` requests at the same time, and `rate` requests per second, each.
    pub fn new(max_calls: usize, max_requests: usize, rate: u32) -> Self {
        Callers {
            max_calls: max_calls.max(1),
            max_requests: max_requests.max(1),
            rate,
            callers: Known(Mutex::default()),
            strangers: Known(Mutex::default()),
            bodies: Budget::new(limits::BODIES_BYTES, limits::BODIES_BYTES_OF_A_CALLER),
        }
    }

    pub fn get(&self, identity: &Identity) -> Arc<Caller> {
        self.callers.get(identity, || Caller {
            identity: identity.clone(),
            calls: Arc::new(Semaphore::new(self.max_calls)),
            max_calls: self.max_calls,
            requests: Arc::new(Semaphore::new(self.max_requests)),
            max_requests: self.max_requests,
            working: Arc::new(Semaphore::new(limits::WORKING_CALLS)),
            rate: self.rate,
            bucket: Bucket::full(),
            answers: Bucket::full(),
            audited: Throttle::new(limits::LOG_LINES_PER_SECOND),
            refused: Throttle::new(limits::REFUSALS_PER_SECOND),
        })
    }

    pub fn stranger(&self, source: Source) -> Arc<Stranger> {
        self.strangers
            .get(&source, || Stranger { failures: Bucket::full(), refused: Throttle::new(limits::REFUSALS_PER_SECOND) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_gives_its_burst_then_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket { filled: start, tokens: f64::INFINITY };
        let burst = (10.0 * limits::BURST_S) as usize;
        assert_eq!((0..burst * 2).filter(|_| bucket.take(10.0, limits::BURST_S, start).is_ok()).count(), burst);
        let wait = bucket.take(10.0, limits::BURST_S, start).unwrap_err();
        assert!(wait <= Duration::from_millis(100), "{wait:?}");
        let later = start + Duration::from_secs(1);
        assert_eq!((0..100).filter(|_| bucket.take(10.0, limits::BURST_S, later).is_ok()).count(), 10);
    }

    #[test]
    fn answer_bytes_are_charged_after_sending() {
        let (start, rate) = (Instant::now(), 1e6);
        let mut bucket = Bucket { filled: start, tokens: f64::INFINITY };
        bucket.spend(rate * limits::ANSWERS_BURST_S, rate, start);
        assert_eq!(bucket.owes(rate, start), Ok(()));
        bucket.spend(rate * 3.0, rate, start);
        assert!(bucket.owes(rate, start).unwrap_err() > Duration::from_secs(2));
        assert_eq!(bucket.owes(rate, start + Duration::from_secs(4)), Ok(()));
    }

    #[test]
    fn requests_are_limited_per_client() {
        let callers = Callers::new(1, 2, 1);
        let (one, other) = (callers.get(&Identity::Uid(1)), callers.get(&Identity::Uid(2)));
        let begun = (one.begin().unwrap(), one.begin().unwrap());
        assert!(one.begin().unwrap_err().contains("limit of 2 pending requests") && other.begin().is_ok());
        drop(begun);
        assert!(one.begin().is_ok());
    }

    #[test]
    fn source_with_many_failures_is_throttled() {
        let callers = Callers::new(1, 1, 1);
        let stranger = callers.stranger(Source::Loopback);
        assert!(!stranger.is_tiresome());
        (0..(limits::FAILURES_PER_SECOND * limits::BURST_S) as usize + 1).for_each(|_| stranger.failed());
        assert!(callers.stranger(Source::Loopback).is_tiresome() && !callers.stranger(Source::Uid(1)).is_tiresome());
    }
}
