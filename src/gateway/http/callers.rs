//! Who asks: by name, with what each may use of us.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::listen::Peer;
use crate::{bpf::lock, gateway::Failure, limits};

/// One client, over however many connections and sessions.
pub struct Caller {
    /// The name of its token, its user id, or where it came from.
    pub name: String,
    calls: Semaphore,
    max_calls: usize,
    bucket: Mutex<Bucket>,
}

/// A request's sender: the client, and the connection that it used.
#[derive(Clone)]
pub struct Sender {
    pub caller: Arc<Caller>,
    pub peer: Peer,
}

impl Caller {
    /// Room for a call of this client. One that asks for more than its share waits for its own calls to
    /// end, so that the others do not wait for it.
    pub async fn call(&self) -> Result<SemaphorePermit<'_>, Failure> {
        match tokio::time::timeout(limits::CALL_WAIT, self.calls.acquire()).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Failure::Busy(format!(
                "{} of your calls are under way, which is a client's limit (max_calls); try again when one has ended",
                self.max_calls
            ))),
        }
    }

    /// Takes one request off what this client may send, or says how long until it may again.
    pub fn request(&self, rate: u32) -> Result<(), Duration> {
        if rate == 0 { Ok(()) } else { lock(&self.bucket).take(f64::from(rate), Instant::now()) }
    }
}

/// A token bucket: it holds [`limits::BURST_S`] seconds' worth.
struct Bucket {
    filled: Instant,
    tokens: f64,
}

impl Bucket {
    fn take(&mut self, rate: f64, now: Instant) -> Result<(), Duration> {
        let gained = now.saturating_duration_since(self.filled).as_secs_f64() * rate;
        self.tokens = (self.tokens + gained).min(rate * limits::BURST_S);
        self.filled = now;
        if self.tokens < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - self.tokens) / rate));
        }
        self.tokens -= 1.0;
        Ok(())
    }
}

/// Every client that has come, by name.
pub struct Callers {
    max_calls: usize,
    known: Mutex<HashMap<String, Arc<Caller>>>,
}

impl Callers {
    pub fn new(max_calls: usize) -> Self {
        Callers { max_calls: max_calls.max(1), known: Mutex::default() }
    }

    pub fn get(&self, name: &str) -> Arc<Caller> {
        let mut known = lock(&self.known);
        if let Some(caller) = known.get(name) {
            return Arc::clone(caller);
        }
        if known.len() >= limits::CALLERS {
            known.retain(|_, caller| Arc::strong_count(caller) > 1); // who asks nothing now is forgotten
        }
        let caller = Arc::new(Caller {
            name: name.into(),
            calls: Semaphore::new(self.max_calls),
            max_calls: self.max_calls,
            bucket: Mutex::new(Bucket { filled: Instant::now(), tokens: f64::INFINITY }),
        });
        known.insert(name.into(), Arc::clone(&caller));
        caller
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket { filled: start, tokens: f64::INFINITY };
        let burst = (10.0 * limits::BURST_S) as usize;
        assert_eq!((0..burst * 2).filter(|_| bucket.take(10.0, start).is_ok()).count(), burst);
        let wait = bucket.take(10.0, start).unwrap_err();
        assert!(wait <= Duration::from_millis(100), "{wait:?}");
        let later = start + Duration::from_secs(1);
        assert_eq!((0..100).filter(|_| bucket.take(10.0, later).is_ok()).count(), 10);
    }
}
