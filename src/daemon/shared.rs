//! Resources that several windows share: the first window creates them, the last one drops them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use crate::{daemon::kernel::Link, sync::lock};

/// What windows share, by key: links for the most part, and how many windows hold them.
pub struct Shared<K: Ord, V = Vec<Link>> {
    held: Mutex<BTreeMap<K, (usize, V)>>,
}

/// A window's share, until it is dropped.
pub struct Held<K: Ord, V = Vec<Link>> {
    shared: Arc<Shared<K, V>>,
    key: K,
}

impl<K: Ord + Clone, V> Shared<K, V> {
    /// Nothing is held yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Shared { held: Mutex::default() })
    }

    /// Ensures that the resource of `key` exists until its last share is dropped. Only the first window calls `make`;
    /// if that fails, nothing is held.
    pub fn hold<E>(self: &Arc<Self>, key: K, make: impl FnOnce() -> Result<V, E>) -> Result<Held<K, V>, E> {
        let mut held = lock(&self.held);
        match held.get_mut(&key) {
            Some((windows, _)) => *windows += 1,
            None => {
                held.insert(key.clone(), (1, make()?));
            }
        }
        Ok(Held { shared: Arc::clone(self), key })
    }
}

impl<K: Ord, V> Held<K, V> {
    /// Looks at what is shared.
    pub fn with<R>(&self, see: impl FnOnce(&V) -> R) -> R {
        see(&lock(&self.shared.held)[&self.key].1)
    }
}

impl<K: Ord, V> Drop for Held<K, V> {
    fn drop(&mut self) {
        // Dropped under the lock: a window that opens now must not count what the old link still sees.
        let mut held = lock(&self.shared.held);
        if let Some((windows, _)) = held.get_mut(&self.key) {
            *windows -= 1;
            if *windows == 0 {
                held.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    #[test]
    fn first_holder_creates_and_last_drops() {
        let (shared, thing) = (Shared::new(), Rc::new(()));
        let make = || Ok::<_, ()>(Rc::clone(&thing));
        let first = shared.hold("key", make).unwrap();
        let second = shared.hold("key", || Err(())).unwrap();
        assert_eq!(Rc::strong_count(&thing), 2);
        drop(first);
        assert!(second.with(|held| Rc::ptr_eq(held, &thing)));
        drop(second);
        assert_eq!(Rc::strong_count(&thing), 1);
    }

    #[test]
    fn failed_creation_leaves_nothing_held() {
        let shared = Shared::<(), u32>::new();
        assert!(shared.hold((), || Err(())).is_err());
        assert_eq!(shared.hold((), || Ok::<_, ()>(7)).unwrap().with(|n| *n), 7);
    }
}
