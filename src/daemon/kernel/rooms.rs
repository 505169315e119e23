//! Iterators copy sockets that they reach by number, each into a room of its object (`below.h`).

use std::sync::{Condvar, Mutex, PoisonError};

use crate::{limits, sync::lock};

/// How many readers there may be at once.
pub struct Rooms {
    free: Mutex<usize>,
    left: Condvar,
}

/// One reader's.
pub struct Room<'a>(&'a Rooms);

/// Those of every object: each object has so many.
pub static ROOMS: Rooms = Rooms::new(limits::READERS);

impl Rooms {
    const fn new(rooms: usize) -> Self {
        Rooms { free: Mutex::new(rooms), left: Condvar::new() }
    }

    /// Waits for one to be free.
    pub fn take(&self) -> Room<'_> {
        let free = lock(&self.free);
        *self.left.wait_while(free, |free| *free == 0).unwrap_or_else(PoisonError::into_inner) -= 1;
        Room(self)
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        *lock(&self.0.free) += 1;
        self.0.left.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        thread,
    };

    use super::*;

    #[test]
    fn concurrent_readers_stay_within_the_limit() {
        let (rooms, reading, most) = (Rooms::new(2), AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    let _room = rooms.take();
                    most.fetch_max(reading.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    thread::yield_now();
                    reading.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        assert!((1..=2).contains(&most.load(Ordering::SeqCst)), "{most:?}");
        assert_eq!(*lock(&rooms.free), 2);
    }
}
