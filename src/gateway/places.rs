//! Tool calls at once: the last places are kept for clients that have few calls under way.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use super::Failure;
use crate::limits;

/// The places, taken and free.
#[derive(Default)]
pub struct Places {
    taken: AtomicUsize,
}

/// A place, until this is dropped.
pub struct Place(Arc<Places>);

impl Places {
    /// A place for a client that has `others` calls under way already.
    pub fn take(self: &Arc<Self>, others: usize) -> Result<Place, Failure> {
        let kept = if others < limits::CALLS_FEW { 0 } else { limits::CALLS_KEPT };
        let allowed = limits::CALLS - kept;
        let taken = self
            .taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| (taken < allowed).then_some(taken + 1));
        taken.map(|_| Place(Arc::clone(self))).map_err(|taken| {
            Failure::Busy(format!("limit of {taken} simultaneous calls reached; try again when one has ended"))
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_reserved_for_clients_with_few_calls() {
        let places = Arc::new(Places::default());
        let many: Vec<_> = (0..).map_while(|_| places.take(limits::CALLS_FEW).ok()).collect();
        assert_eq!(many.len(), limits::CALLS - limits::CALLS_KEPT);
        let few: Vec<_> = (0..).map_while(|_| places.take(0).ok()).collect();
        assert_eq!(few.len(), limits::CALLS_KEPT);
        drop((many, few));
        assert!(places.take(limits::CALLS_FEW).is_ok());
    }
}
