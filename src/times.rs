//! Times by bucket, as `times.h` counts them: eight buckets an octave.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::numbers::times;

/// How many buckets there are.
pub const BUCKETS: usize = times::TIME_BUCKETS as usize;
/// Buckets of an octave.
const PARTS: u32 = 1 << times::SUBDIVISION;

/// How often a time fell into each bucket.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct Times {
    /// Only buckets that have something, by number.
    counts: Vec<(u8, u64)>,
    sum_us: u64,
    max_us: u32,
}

/// Times in microseconds.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
pub struct Percentiles {
    pub p50: u32,
    pub p90: u32,
    pub p99: u32,
    pub max: u32,
}

/// The bucket of a time: `time_bucket` of `times.h`.
fn bucket_of(us: u32) -> usize {
    if us < PARTS {
        return us as usize;
    }
    let octave = us.ilog2();
    let shift = octave - times::SUBDIVISION as u32;
    (((shift + 1) * PARTS + (us >> shift & (PARTS - 1))) as usize).min(BUCKETS - 1)
}

/// The first and the last microsecond of a bucket.
fn bounds(bucket: usize) -> (u32, u32) {
    let bucket = bucket.min(BUCKETS - 1) as u32;
    if bucket < PARTS {
        return (bucket, bucket);
    }
    let width = 1 << (bucket / PARTS - 1);
    let first = (PARTS + bucket % PARTS) * width;
    (first, first + (width - 1))
}

impl Times {
    /// The times since an earlier reading; `max_us` is of all times until now.
    pub fn between(before: Option<&[u32; BUCKETS]>, now: &[u32; BUCKETS], sum_us: u64, max_us: u32) -> Self {
        let count = |i: usize| now[i].wrapping_sub(before.map_or(0, |before| before[i]));
        let counts: Vec<_> = (0..BUCKETS).filter(|i| count(*i) > 0).map(|i| (i as u8, count(i).into())).collect();
        let Some((last, _)) = counts.last() else { return Self::default() };
        // The maximum of all times is that of this window only if it is in the last bucket.
        let (first, last) = bounds((*last).into());
        let end = if usize::from(counts[counts.len() - 1].0) == BUCKETS - 1 { u32::MAX } else { last };
        Times { counts, sum_us, max_us: max_us.clamp(first, end) }
    }

    /// A single time.
    pub fn once(us: u32) -> Self {
        Times { counts: vec![(bucket_of(us) as u8, 1)], sum_us: us.into(), max_us: us }
    }

    pub fn add(&mut self, other: &Times) {
        for (bucket, count) in &other.counts {
            match self.counts.binary_search_by_key(bucket, |(b, _)| *b) {
                Ok(i) => self.counts[i].1 += count,
                Err(i) => self.counts.insert(i, (*bucket, *count)),
            }
        }
        self.sum_us += other.sum_us;
        self.max_us = self.max_us.max(other.max_us);
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().map(|(_, count)| count).sum()
    }

    pub fn sum_us(&self) -> u64 {
        self.sum_us
    }

    /// How many are at least this, by the first of each bucket.
    pub fn at_least(&self, least: Duration) -> u64 {
        let is_so = |bucket: u8| Duration::from_micros(bounds(bucket.into()).0.into()) >= least;
        self.counts.iter().filter(|(bucket, _)| is_so(*bucket)).map(|(_, count)| count).sum()
    }

    /// How many are alike, of those of at least this: the most in two neighboring buckets.
    pub fn most_alike(&self, least: Duration) -> u64 {
        let is_so = |bucket: u8| Duration::from_micros(bounds(bucket.into()).0.into()) >= least;
        let count = |of: u8| self.counts.iter().find(|(bucket, _)| *bucket == of).map_or(0, |(_, count)| *count);
        let long = self.counts.iter().filter(|(bucket, _)| is_so(*bucket));
        long.map(|(bucket, _)| count(*bucket) + count(bucket.saturating_add(1))).max().unwrap_or(0)
    }

    /// Those whose bucket begins below this. The sum of the others is not known exactly: the middle of each bucket counts.
    pub fn below(&self, end: Duration) -> Times {
        let is_so = |bucket: u8| Duration::from_micros(bounds(bucket.into()).0.into()) < end;
        let (kept, left): (Vec<_>, Vec<_>) = self.counts.iter().partition(|(bucket, _)| is_so(*bucket));
        let middle = |(first, last): (u32, u32)| u64::from(first + (last - first) / 2);
        let beyond: u64 = left.iter().map(|(bucket, count)| middle(bounds((*bucket).into())) * count).sum();
        let most = kept.last().map_or(0, |(bucket, _)| bounds((*bucket).into()).1);
        Times { counts: kept, sum_us: self.sum_us.saturating_sub(beyond), max_us: self.max_us.min(most) }
    }

    pub fn percentiles(&self) -> Percentiles {
        let of = |part| self.quantile_us(part);
        Percentiles { p50: of(0.5), p90: of(0.9), p99: of(0.99), max: self.max_us }
    }

    /// The time that a part of all times (0 to 1) did not exceed: the middle of its bucket, at most a sixteenth off.
    fn quantile_us(&self, part: f64) -> u32 {
        let (mut left, mut middle) = ((self.count() as f64 * part).ceil() as u64, 0);
        for (bucket, count) in &self.counts {
            let (first, last) = bounds((*bucket).into());
            middle = first + (last - first) / 2;
            if left <= *count {
                break;
            }
            left -= count;
        }
        middle.min(self.max_us)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A histogram of these times.
    pub fn of(times: &[u32]) -> Times {
        let mut now = [0; BUCKETS];
        times.iter().for_each(|us| now[bucket_of(*us)] += 1);
        let sum_us = times.iter().map(|us| u64::from(*us)).sum();
        Times::between(None, &now, sum_us, times.iter().copied().max().unwrap_or(0))
    }

    #[test]
    fn buckets_are_within_an_eighth() {
        for us in (0..5_000).chain((5_000..250_000_000).step_by(99_971)) {
            let (first, last) = bounds(bucket_of(us));
            assert!(first <= us && us <= last && last - first <= us / 8, "{us}: {first} to {last}");
        }
    }

    #[test]
    fn percentiles_are_within_a_sixteenth_and_max_is_exact() {
        let times: Vec<u32> = (1..=1_000).map(|n| n * 100).collect();
        let found = of(&times).percentiles();
        for (found, exact) in [(found.p50, 50_000u32), (found.p90, 90_000), (found.p99, 99_000)] {
            assert!(found.abs_diff(exact) <= exact / 15, "{found} for {exact}");
        }
        assert_eq!(found.max, 100_000);
        assert_eq!(of(&[77]).percentiles(), Percentiles { p50: 75, p90: 75, p99: 75, max: 77 });
    }

    #[test]
    fn difference_has_only_new_times() {
        let mut before = [0; BUCKETS];
        before[bucket_of(5)] = 3;
        before[bucket_of(900_000)] = 1;
        let mut now = before;
        now[bucket_of(1_000)] = 2;
        let new = Times::between(Some(&before), &now, 2_000, 900_000);
        assert_eq!((new.count(), new.sum_us()), (2, 2_000));
        assert!(new.percentiles().max < 1_100, "{new:?}");
        assert_eq!(Times::between(Some(&now), &now, 0, 900_000), Times::default());
    }

    #[test]
    fn alike_times_are_in_neighboring_buckets() {
        let times = of(&[25_000_000, 25_100_000, 26_000_000, 5_000_000, 9_000_000, 900_000, 900_001]);
        assert_eq!(times.most_alike(Duration::from_secs(4)), 3, "{times:?}");
        assert_eq!((times.at_least(Duration::from_secs(4)), times.at_least(Duration::from_secs(40))), (5, 0));
        assert_eq!((Times::default().most_alike(Duration::ZERO), Times::once(77)), (0, of(&[77])));
    }

    #[test]
    fn adding_sums_both() {
        let mut sum = of(&[10, 20]);
        sum.add(&of(&[5, 20, 400]));
        assert_eq!(sum, of(&[5, 10, 20, 20, 400]));
    }
}
