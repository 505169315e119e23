//! How long servers take to reply, as `replies.h` counts it: by what clients connect to, in jiffies.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Clock, Histogram, SLOW_REPLY};
use crate::answer::Endpoint;

/// The replies of one service in the window.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct Replies {
    pub netns: u32,
    pub local: Endpoint,
    pub jiffies: Histogram,
}

/// The same with times.
#[derive(Clone, Debug)]
pub struct Service {
    pub netns: u32,
    pub local: Endpoint,
    pub replies: u64,
    /// Of these, those that took [`SLOW_REPLY`] or longer.
    pub slow: u64,
    /// At most 25 % too high.
    pub p50: Duration,
    pub p99: Duration,
}

/// What was counted in both periods.
pub fn merge(earlier: Vec<Replies>, mut later: Vec<Replies>) -> Vec<Replies> {
    for before in earlier {
        match later.iter_mut().find(|row| (row.netns, row.local) == (before.netns, before.local)) {
            Some(row) => row.jiffies.add(&before.jiffies),
            None => later.push(before),
        }
    }
    later
}

/// Without the kernel's clock there are no times.
pub fn services(rows: &[Replies], clock: Clock) -> Vec<Service> {
    if clock.jiffies == 0 {
        return Vec::new();
    }
    let time = |jiffies: u32| Duration::from_nanos(u64::from(jiffies) * clock.ns / clock.jiffies);
    let slow = (SLOW_REPLY.as_nanos() as u64 * clock.jiffies).div_ceil(clock.ns.max(1)) as u32;
    let service = |row: &Replies| Service {
        netns: row.netns,
        local: row.local,
        replies: row.jiffies.samples(),
        slow: row.jiffies.at_least(slow),
        p50: time(row.jiffies.quantile_us(0.5)),
        p99: time(row.jiffies.quantile_us(0.99)),
    };
    rows.iter().map(service).collect()
}

#[cfg(test)]
mod tests {
    use super::{
        super::histogram::{BUCKETS, bucket_of},
        *,
    };

    fn row(jiffies: &[u32]) -> Vec<Replies> {
        let mut buckets = [0; BUCKETS];
        jiffies.iter().for_each(|jiffies| buckets[bucket_of(*jiffies)] += 1);
        let local = Endpoint { address: [10, 0, 0, 1].into(), port: 80 };
        vec![Replies { netns: 7, local, jiffies: Histogram::between(None, &buckets, 0, u32::MAX) }]
    }

    /// 250 jiffies a second.
    const CLOCK: Clock = Clock { jiffies: 2_500, ns: 10_000_000_000 };

    #[test]
    fn replies_of_a_second_are_slow_at_any_hz() {
        let found = &services(&row(&[1, 625, 625]), CLOCK)[0];
        assert_eq!((found.netns, found.local.port, found.replies, found.slow), (7, 80, 3, 2));
        assert!((2_500..3_200).contains(&found.p99.as_millis()), "{found:?}");
        assert!(services(&row(&[625]), Clock::default()).is_empty(), "no clock, no times");
    }

    #[test]
    fn periods_of_one_service_are_added() {
        let both = services(&merge(row(&[1]), row(&[500])), CLOCK);
        assert_eq!((both.len(), both[0].replies, both[0].slow), (1, 2, 1));
    }
}
