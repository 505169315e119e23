//! Connections that close while windows are open. The kernel reports each through a ring buffer, at a fifth of the cost
//! of a hash entry; they are kept here until no window needs them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use crate::{
    daemon::{
        events::{Events, Subscription},
        kernel::{Link, Pod, Ring},
        shared::{Held, Shared},
    },
    limits,
    sync::lock,
    wire::Error,
};

/// A connection that closed, as a program hands it in.
pub trait Ended: Pod {
    /// The sum of those that do not fit.
    type Beyond: Clone + Default + Send;

    fn cookie(&self) -> u64;
    /// When it closed (CLOCK_MONOTONIC).
    fn closed_ns(&self) -> u64;
    fn add_to(&self, beyond: &mut Self::Beyond);
}

/// Those that are kept, for all windows of a tool.
pub struct Closed<T: Ended> {
    events: Arc<Events<T>>,
    held: Arc<Shared<(), Subscription<T>>>,
    kept: Arc<Mutex<Kept<T>>>,
    limit: usize,
}

struct Kept<T: Ended> {
    /// By cookie.
    rows: HashMap<u64, T>,
    beyond: T::Beyond,
}

impl<T: Ended> Closed<T> {
    /// `attach` attaches the programs that write the ring buffer; `limit` are kept.
    pub fn new(
        ring: Ring,
        limit: usize,
        attach: impl Fn() -> Result<Vec<Link>, Error> + Send + Sync + 'static,
    ) -> Result<Arc<Self>, Error> {
        Ok(Arc::new(Closed { events: Events::new(ring, attach)?, held: Shared::new(), kept: Arc::default(), limit }))
    }

    /// Keeps what closes from now on. The programs are attached until the last window drops this.
    pub fn hold(&self) -> Result<Held<(), Subscription<T>>, Error> {
        self.held.hold((), || {
            let (kept, limit) = (Arc::clone(&self.kept), self.limit);
            self.events.subscribe(move |row| lock(&kept).add(row, limit))
        })
    }

    /// All that are kept.
    pub fn read(&self, held: &Held<(), Subscription<T>>) -> Vec<T> {
        held.with(Subscription::drain);
        lock(&self.kept).rows.values().copied().collect()
    }

    /// The sum of those for which there was no room since there was no window.
    pub fn beyond(&self, held: &Held<(), Subscription<T>>) -> T::Beyond {
        held.with(Subscription::drain);
        lock(&self.kept).beyond.clone()
    }

    /// Drops the connections that closed before the oldest window began; without a window, all.
    pub fn clear(&self, oldest_ns: Option<u64>) {
        lock(&self.kept).clear(oldest_ns);
    }
}

impl<T: Ended> Default for Kept<T> {
    fn default() -> Self {
        Kept { rows: HashMap::new(), beyond: T::Beyond::default() }
    }
}

impl<T: Ended> Kept<T> {
    fn add(&mut self, row: &T, limit: usize) {
        if self.rows.len() < limit {
            self.rows.insert(row.cookie(), *row);
        } else {
            row.add_to(&mut self.beyond);
        }
    }

    fn clear(&mut self, oldest_ns: Option<u64>) {
        match oldest_ns {
            Some(oldest) => self.rows.retain(|_, row| row.closed_ns() + limits::LATE.as_nanos() as u64 >= oldest),
            None => *self = Kept::default(),
        }
    }
}

/// Connections that a session has reported as closed and that another reading may find again: one that closes just
/// before a reading may be reported just after it.
#[derive(Default)]
pub struct Told {
    /// When the last reading was.
    since_ns: u64,
    /// The maximum time between such a close and the reading that missed it.
    late_ns: u64,
    /// When each closed, by cookie.
    closed: HashMap<u64, u64>,
}

impl Told {
    /// For a session that opened at this time: connections that closed before are not included.
    pub fn since(opened_ns: u64) -> Self {
        Told { since_ns: opened_ns, ..Told::default() }
    }

    /// Whether the connection is one to tell of.
    pub fn wants(&self, row: &impl Ended) -> bool {
        row.closed_ns() + self.late_ns >= self.since_ns && !self.closed.contains_key(&row.cookie())
    }

    /// Remembers one that was told of.
    pub fn note(&mut self, row: &impl Ended) {
        self.closed.insert(row.cookie(), row.closed_ns());
    }

    /// After a reading that began then.
    pub fn advance(&mut self, now_ns: u64) {
        (self.since_ns, self.late_ns) = (now_ns, limits::LATE.as_nanos() as u64);
        let since_ns = self.since_ns - self.late_ns;
        self.closed.retain(|_, closed_ns| *closed_ns >= since_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Its closing time, which is also its cookie.
    #[derive(Clone, Copy)]
    struct Example(u64);

    crate::daemon::kernel::pod!(Example);

    const SECOND: u64 = 1_000_000_000;

    impl Ended for Example {
        type Beyond = u64;

        fn cookie(&self) -> u64 {
            self.0
        }

        fn closed_ns(&self) -> u64 {
            self.0
        }

        fn add_to(&self, beyond: &mut u64) {
            *beyond += 1;
        }
    }

    #[test]
    fn overflow_count_resets_when_the_last_window_closes() {
        let mut kept = Kept::default();
        (0..10).for_each(|n| kept.add(&Example(n * SECOND), 8));
        assert_eq!((kept.rows.len(), kept.beyond), (8, 2));
        kept.clear(Some(5 * SECOND));
        assert_eq!((kept.rows.len(), kept.beyond), (3, 2));
        kept.clear(None);
        assert_eq!((kept.rows.len(), kept.beyond), (0, 0));
    }

    #[test]
    fn late_connection_is_reported_once() {
        let (mut told, moment) = (Told::since(SECOND), 1_000_000);
        assert!(!told.wants(&Example(SECOND - moment)), "before the session");
        let [early, late] = [2 * SECOND - 2 * moment, 2 * SECOND - moment].map(Example);
        assert!(told.wants(&early));
        told.note(&early);
        told.advance(2 * SECOND);
        assert!(!told.wants(&early) && told.wants(&late), "handed in after the reading that began then");
        told.note(&late);
        told.advance(2 * SECOND + moment);
        assert!(!told.wants(&early) && !told.wants(&late));
        told.advance(4 * SECOND);
        assert!(told.closed.is_empty() && !told.wants(&late));
    }
}
