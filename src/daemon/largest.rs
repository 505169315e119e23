//! The largest of any number of items, in bounded memory.

/// Keeps the `limit` heaviest items.
pub struct Largest<T, W> {
    limit: usize,
    seen: u64,
    kept: Vec<(W, T)>,
}

impl<T, W: Ord> Largest<T, W> {
    pub fn new(limit: usize) -> Self {
        Largest { limit, seen: 0, kept: Vec::new() }
    }

    /// Takes an item, and lets go of the lightest now and then: a push costs O(1) on average.
    pub fn push(&mut self, weight: W, item: T) {
        self.seen += 1;
        self.kept.push((weight, item));
        if self.kept.len() >= 2 * self.limit + 64 {
            self.kept.select_nth_unstable_by(self.limit, |a, b| b.0.cmp(&a.0));
            self.kept.truncate(self.limit);
        }
    }

    /// The heaviest, in order, and how many were let go.
    pub fn finish(mut self) -> (Vec<T>, u64) {
        self.kept.sort_by(|a, b| b.0.cmp(&a.0));
        self.kept.truncate(self.limit);
        let cut = self.seen - self.kept.len() as u64;
        (self.kept.into_iter().map(|(_, item)| item).collect(), cut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn largest_rows_stay_in_order() {
        for limit in [1, 3, 100] {
            let mut largest = Largest::new(limit);
            (0..1_000u32).map(|n| n * 7 % 1_000).for_each(|n| largest.push(n, n));
            let (kept, cut) = largest.finish();
            assert_eq!(kept, (0..limit as u32).map(|n| 999 - n).collect::<Vec<_>>());
            assert_eq!(cut, 1_000 - limit as u64);
        }
    }

    #[test]
    fn rows_below_the_limit_are_all_kept() {
        let mut largest = Largest::new(10);
        largest.push(1, "a");
        largest.push(2, "b");
        assert_eq!(largest.finish(), (vec!["b", "a"], 0));
    }
}
