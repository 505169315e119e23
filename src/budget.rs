//! Byte budgets: a total limit, and a limit per principal, so that no principal can use all of the memory.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex},
};

use crate::sync::lock;

/// The maximum size.
pub struct Budget<K> {
    total: usize,
    share: usize,
    held: Mutex<Holdings<K>>,
}

struct Holdings<K> {
    all: usize,
    by: HashMap<K, usize>,
}

/// Which of the two bounds was reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Full {
    /// The principal holds its share.
    Share,
    /// All principals together hold everything.
    Total,
}

impl<K: Eq + Hash + Clone> Budget<K> {
    /// One of `total` bytes, of which one principal may hold `share`.
    pub fn new(total: usize, share: usize) -> Arc<Self> {
        Arc::new(Budget { total, share, held: Mutex::new(Holdings { all: 0, by: HashMap::new() }) })
    }

    /// Holds `bytes` more, if both bounds allow it.
    fn take(&self, principal: &K, bytes: usize) -> Result<(), Full> {
        let mut held = lock(&self.held);
        let own = held.by.get(principal).copied().unwrap_or_default();
        if own.saturating_add(bytes) > self.share {
            return Err(Full::Share);
        }
        if held.all.saturating_add(bytes) > self.total {
            return Err(Full::Total);
        }
        held.all += bytes;
        *held.by.entry(principal.clone()).or_default() += bytes;
        Ok(())
    }

    fn give(&self, principal: &K, bytes: usize) {
        let mut held = lock(&self.held);
        held.all = held.all.saturating_sub(bytes);
        if let Some(own) = held.by.get_mut(principal) {
            *own = own.saturating_sub(bytes);
            if *own == 0 {
                held.by.remove(principal);
            }
        }
    }
}

/// Bytes of a budget, held until this is dropped.
pub struct Held<K: Eq + Hash + Clone> {
    budget: Arc<Budget<K>>,
    principal: K,
    bytes: usize,
}

impl<K: Eq + Hash + Clone> Held<K> {
    /// Nothing yet, for this principal.
    pub fn nothing(budget: &Arc<Budget<K>>, principal: K) -> Self {
        Held { budget: Arc::clone(budget), principal, bytes: 0 }
    }

    /// How much is held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Holds `bytes` in all from now on, which may be more or less than before.
    pub fn resize(&mut self, bytes: usize) -> Result<(), Full> {
        match bytes.checked_sub(self.bytes) {
            Some(more) => self.budget.take(&self.principal, more)?,
            None => self.budget.give(&self.principal, self.bytes - bytes),
        }
        self.bytes = bytes;
        Ok(())
    }
}

impl<K: Eq + Hash + Clone> Drop for Held<K> {
    fn drop(&mut self) {
        self.budget.give(&self.principal, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budget_enforces_share_and_total() {
        let budget = Budget::new(100, 60);
        let [mut a, mut b, mut c] = ["a", "b", "b"].map(|who| Held::nothing(&budget, who));
        assert_eq!(a.resize(60), Ok(()));
        assert_eq!(a.resize(61), Err(Full::Share));
        assert_eq!(b.resize(40), Ok(()));
        assert_eq!(c.resize(1), Err(Full::Total));
        assert_eq!(a.resize(50), Ok(()), "less is held");
        assert_eq!(c.resize(10), Ok(()));
        drop((a, b));
        assert_eq!(c.resize(60), Ok(()));
        drop(c);
        let held = lock(&budget.held);
        assert!(held.all == 0 && held.by.is_empty());
    }
}
