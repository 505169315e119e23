//! Round-trip times by bucket, as `round_trips.h` counts them: four buckets an octave.

use serde::{Deserialize, Serialize};

use crate::numbers;

/// How many buckets there are.
pub const BUCKETS: usize = numbers::round_trips::BUCKETS as usize;

/// How often a time fell into each bucket.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Histogram {
    /// Only buckets that have something, by number.
    counts: Vec<(u8, u64)>,
    min_us: u32,
    max_us: u32,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { counts: Vec::new(), min_us: u32::MAX, max_us: 0 }
    }
}

/// The bucket of a time: `bucket_of` of `round_trips.h`.
pub fn bucket_of(us: u32) -> usize {
    if us < 4 {
        return us as usize;
    }
    let octave = us.ilog2() as usize;
    ((octave - 1) * 4 + (us >> (octave - 2) & 3) as usize).min(BUCKETS - 1)
}

/// The first and the last microsecond of a bucket; a number beyond the last is the last's, which has no end.
fn bounds(bucket: usize) -> (u32, u32) {
    let bucket = bucket.min(BUCKETS - 1);
    if bucket < 4 {
        return (bucket as u32, bucket as u32);
    }
    let width = 1 << (bucket / 4 - 1);
    let first = (4 + bucket as u32 % 4) * width;
    (first, first + width - 1)
}

impl Histogram {
    /// What was counted between two readings of one socket; `min_us` and `max_us` are of its life until now.
    pub fn between(before: Option<&[u32; BUCKETS]>, now: &[u32; BUCKETS], min_us: u32, max_us: u32) -> Self {
        let count = |i: usize| now[i].saturating_sub(before.map_or(0, |before| before[i]));
        let counts: Vec<_> = (0..BUCKETS).filter(|i| count(*i) > 0).map(|i| (i as u8, count(i).into())).collect();
        let (Some((first, _)), Some((last, _))) = (counts.first(), counts.last()) else { return Self::default() };
        // The extremes of its life are those of this window only if they are in the outermost buckets.
        let (first, last) = (bounds((*first).into()), bounds((*last).into()));
        Histogram { counts, min_us: min_us.clamp(first.0, first.1), max_us: max_us.clamp(last.0, last.1) }
    }

    pub fn add(&mut self, other: &Histogram) {
        for (bucket, count) in &other.counts {
            match self.counts.binary_search_by_key(bucket, |(b, _)| *b) {
                Ok(i) => self.counts[i].1 += count,
                Err(i) => self.counts.insert(i, (*bucket, *count)),
            }
        }
        self.min_us = self.min_us.min(other.min_us);
        self.max_us = self.max_us.max(other.max_us);
    }

    pub fn samples(&self) -> u64 {
        self.counts.iter().map(|(_, count)| count).sum()
    }

    pub fn min_us(&self) -> u32 {
        self.min_us
    }

    pub fn max_us(&self) -> u32 {
        self.max_us
    }

    /// The time that a part of all samples (0 to 1) did not exceed: the last microsecond of its bucket.
    pub fn quantile_us(&self, part: f64) -> u32 {
        let (mut left, mut bound) = ((self.samples() as f64 * part).ceil() as u64, 0);
        for (bucket, count) in &self.counts {
            bound = bounds((*bucket).into()).1;
            if left <= *count {
                break;
            }
            left -= count;
        }
        bound.clamp(self.min_us.min(self.max_us), self.max_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(times: &[u32]) -> Histogram {
        let mut now = [0; BUCKETS];
        times.iter().for_each(|us| now[bucket_of(*us)] += 1);
        Histogram::between(None, &now, *times.iter().min().unwrap(), *times.iter().max().unwrap())
    }

    #[test]
    fn bucket_bounds_are_within_a_quarter() {
        for us in (0..5_000).chain((5_000..30_000_000).step_by(9_973)) {
            let (first, last) = bounds(bucket_of(us));
            assert!(first <= us && us <= last && last - first <= us / 4, "{us}: {first} to {last}");
        }
        assert_eq!(bucket_of(u32::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_upper_bounds_and_min_max_exact() {
        let times: Vec<u32> = (1..=1_000).map(|n| n * 10).collect();
        let h = of(&times);
        assert_eq!((h.samples(), h.min_us(), h.max_us()), (1_000, 10, 10_000));
        for (part, exact) in [(0.5, 5_000), (0.9, 9_000), (0.99, 9_900)] {
            let bound = h.quantile_us(part);
            assert!(bound >= exact && bound <= exact * 5 / 4, "{part}: {bound}");
        }
        assert_eq!(of(&[77]).quantile_us(0.5), 77);
    }

    #[test]
    fn histogram_between_readings_counts_new_samples() {
        let (mut before, mut now) = ([0; BUCKETS], [0; BUCKETS]);
        before[bucket_of(5)] = 3;
        now[bucket_of(5)] = 3;
        now[bucket_of(1_000)] = 2;
        let h = Histogram::between(Some(&before), &now, 5, 1_000);
        assert_eq!((h.samples(), h.min_us(), h.max_us()), (2, bounds(bucket_of(1_000)).0, 1_000));
        assert_eq!(Histogram::between(Some(&now), &now, 5, 1_000), Histogram::default());
    }

    #[test]
    fn adding_histograms_sums_both() {
        let mut sum = of(&[10, 20]);
        sum.add(&of(&[5, 20, 400]));
        assert_eq!((sum.samples(), sum.min_us(), sum.max_us()), (5, 5, 400));
        assert_eq!(sum, of(&[5, 10, 20, 20, 400]));
        sum.add(&Histogram::default());
        assert_eq!(sum.samples(), 5);
    }
}
