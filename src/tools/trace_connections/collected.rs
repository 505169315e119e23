//! One window's connections: what matched is counted, the worst are kept.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashSet, VecDeque},
};

use super::{ConnectionState, Direction, Directions, Input, Outcome, Outcomes, Row, report::worth, skel::types};
use crate::{
    answer::Endpoint,
    daemon::{kernel::pod, largest::Largest},
    filter::Filter,
    limits,
    numbers::{connections, direction::INBOUND},
    owner::Process,
};

pod!(types::connection);

/// How long after its end a connection may be handed in.
const LATE_NS: u64 = limits::LATE.as_nanos() as u64;

/// The identity of a connection: no socket can begin twice in one nanosecond.
pub type Key = (u64, u16, u16, [u8; 16], u32);

fn key(c: &types::connection) -> Key {
    (c.start_ns, c.endpoints.local_port, c.endpoints.remote_port, c.endpoints.remote, c.owner.netns)
}

/// What it is [worth], then how long it took to connect.
type Weight = (u8, u64, Reverse<u64>);

pub struct Collected {
    input: Input,
    opened_ns: u64,
    ended_ns: u64,
    counts: BTreeMap<Outcome, u64>,
    worst: Largest<types::connection, Weight>,
    /// Open, and of earlier periods.
    updates: Vec<types::connection>,
    /// Taken after the window's end, while the open ones were read: what closes meanwhile, or is orphaned, comes again.
    taken: HashSet<Key>,
    /// What ended just before the period, and was handed in when it was open: of this one, if the one before did not
    /// take it.
    late: Vec<types::connection>,
    /// What the period before took of its last moments.
    told: HashSet<Key>,
    /// What this one took of its latest moments, with when each ended.
    recent: VecDeque<(u64, Key)>,
}

impl Collected {
    pub fn new(input: &Input, opened_ns: u64) -> Self {
        let worst = Largest::new(input.limit.rows());
        Collected {
            input: input.clone(),
            opened_ns,
            ended_ns: u64::MAX,
            counts: BTreeMap::new(),
            worst,
            updates: Vec::new(),
            taken: HashSet::new(),
            late: Vec::new(),
            told: HashSet::new(),
            recent: VecDeque::new(),
        }
    }

    /// What it took of its last moments, for the next period.
    pub fn told(&self) -> HashSet<Key> {
        self.recent.iter().filter(|(end_ns, _)| end_ns + LATE_NS >= self.ended_ns).map(|(_, key)| *key).collect()
    }

    /// What the period before took of its last moments. Before that is known, what may be of it waits.
    pub fn follows(&mut self, told: HashSet<Key>) {
        self.told = told;
    }

    /// From now on, what begins is not of this window.
    pub fn ends(&mut self, ended_ns: u64) {
        self.ended_ns = ended_ns;
    }

    /// Takes a connection that has ended.
    pub fn add(&mut self, c: &types::connection) {
        if c.end_ns >= self.ended_ns {
            self.taken.insert(key(c));
        }
        if c.end_ns != 0 && c.end_ns < self.opened_ns {
            if c.end_ns + LATE_NS >= self.opened_ns && self.late.len() < limits::ROWS_MAX {
                self.late.push(*c);
            }
            return;
        }
        self.recent.push_back((c.end_ns, key(c)));
        while self.recent.front().is_some_and(|(end_ns, _)| end_ns + 2 * LATE_NS < c.end_ns) {
            self.recent.pop_front();
        }
        self.take(c);
    }

    /// Takes a connection that is open, unless it was taken already.
    pub fn add_open(&mut self, c: &types::connection) {
        if self.taken.insert(key(c)) {
            self.take(c);
        }
    }

    fn take(&mut self, c: &types::connection) {
        let within = |ns: u64| (self.opened_ns..self.ended_ns).contains(&ns);
        if !wants(&self.input, c) {
            return;
        }
        if !(within(c.start_ns) || within(c.established_ns) || within(c.end_ns)) {
            let is_older = c.end_ns == 0 && c.start_ns < self.opened_ns;
            if is_older && self.updates.len() < limits::ROWS_MAX {
                self.updates.push(*c);
            }
            return;
        }
        self.count(c);
    }

    fn count(&mut self, c: &types::connection) {
        let outcome = Outcome::new(end(c.end), c.error);
        *self.counts.entry(outcome).or_default() += 1;
        let answered = if c.established_ns != 0 { c.established_ns } else { c.end_ns };
        let latency = if c.start_ns == 0 { 0 } else { answered.saturating_sub(c.start_ns) };
        self.worst.push((worth(outcome, end(c.end)), latency, Reverse(c.start_ns)), *c);
    }

    /// `is_first` if no period came before it: what ended before it is not of any.
    pub fn finish(mut self, is_first: bool) -> Period {
        let late = std::mem::take(&mut self.late);
        for c in late.iter().filter(|_| !is_first) {
            if !self.told.contains(&key(c)) && wants(&self.input, c) {
                self.count(c);
            }
        }
        let (rows, cut) = self.worst.finish();
        let [rows, updates] = [rows, self.updates].map(|all| all.iter().map(row).collect());
        Period { rows, updates, cut, counts: self.counts }
    }
}

/// The connections of a period.
pub struct Period {
    /// The worst.
    pub rows: Vec<Row>,
    /// Those that began before it and are open: what they have moved by now.
    pub updates: Vec<Row>,
    /// How many are not among the rows.
    pub cut: u64,
    /// How many there were of each outcome.
    pub counts: BTreeMap<Outcome, u64>,
}

/// Whether a question is about this connection. The kernel has asked the same where all windows agree.
fn wants(input: &Input, c: &types::connection) -> bool {
    let direction = match input.direction {
        Directions::Any => true,
        Directions::Outbound => direction(c.direction) == Direction::Outbound,
        Directions::Inbound => direction(c.direction) == Direction::Inbound,
    };
    let filter = Filter { process: input.process.as_ref(), pid: input.pid, remote: input.remote, port: input.port };
    direction
        && (input.outcome == Outcomes::Any || Outcome::new(end(c.end), c.error).is_failure())
        && filter.owner(c.owner.pid, &c.owner.comm.map(|c| c as u8))
        && filter.ends(c.endpoints.remote, [c.endpoints.local_port, c.endpoints.remote_port])
}

fn row(c: &types::connection) -> Row {
    let comm = c.owner.comm.map(|c| c as u8);
    Row {
        process: Process::new(c.owner.pid, &comm, c.owner.cgroup, c.owner.netns),
        direction: direction(c.direction),
        local: Endpoint::new(c.endpoints.local, c.endpoints.local_port),
        remote: Endpoint::new(c.endpoints.remote, c.endpoints.remote_port),
        end: end(c.end),
        errno: c.error,
        closing: c.closing != 0,
        start_ns: c.start_ns,
        established_ns: c.established_ns,
        end_ns: c.end_ns,
        rx_bytes: c.rx_bytes,
        tx_bytes: c.tx_bytes,
        rtt_us: c.rtt_us,
        retransmits: c.retransmits,
        alike: 0,
        mixed: false,
    }
}

fn direction(direction: u8) -> Direction {
    if i64::from(direction) == INBOUND { Direction::Inbound } else { Direction::Outbound }
}

fn end(end: u8) -> ConnectionState {
    match i64::from(end) {
        connections::OPEN => ConnectionState::Open,
        connections::CONNECTING => ConnectionState::Connecting,
        connections::CLOSED => ConnectionState::Closed,
        connections::ABORTED => ConnectionState::Aborted,
        connections::BROKEN => ConnectionState::Broken,
        _ => ConnectionState::Failed,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn input(value: serde_json::Value) -> Input {
        serde_json::from_value(value).unwrap()
    }

    fn connection(start_ns: u64, established_ns: u64, end_ns: u64, end: u8) -> types::connection {
        let mut c = types::connection { start_ns, established_ns, end_ns, end, direction: 1, ..Default::default() };
        c.endpoints.remote = "::ffff:10.0.0.2".parse::<std::net::Ipv6Addr>().unwrap().octets();
        (c.endpoints.local_port, c.endpoints.remote_port) = (40_000, 80);
        c
    }

    #[test]
    fn window_lists_connections_opened_or_closed_in_it() {
        let mut window = Collected::new(&input(json!({})), 100);
        window.add(&connection(10, 20, 90, 2)); // before
        window.add(&connection(10, 20, 110, 2)); // closed within
        window.add(&connection(0, 0, 110, 2)); // the same, opened before monitoring
        window.ends(200);
        window.add(&connection(110, 120, 205, 2)); // opened within
        window.add(&connection(201, 202, 205, 2)); // after
        window.add_open(&connection(90, 120, 0, 0)); // established within
        window.add_open(&connection(10, 20, 0, 0)); // open before and after
        let Period { rows, cut, counts, .. } = window.finish(true);
        assert_eq!((rows.len(), cut, counts[&Outcome::Established]), (4, 0, 4));
    }

    #[test]
    fn late_connection_goes_to_the_next_period_once() {
        const SECOND: u64 = 1_000_000_000;
        let at = |end_ns: u64| connection(end_ns - SECOND, end_ns - SECOND + 1, end_ns, 2);
        let (taken, late) = (at(2 * SECOND - 2), at(2 * SECOND - 1));
        let mut first = Collected::new(&input(json!({})), SECOND / 2);
        first.add(&taken);
        first.ends(2 * SECOND);
        let mut next = Collected::new(&input(json!({})), 2 * SECOND);
        [taken, late].iter().for_each(|c| next.add(c));
        next.follows(first.told());
        next.ends(3 * SECOND);
        let ends = |period: Period| period.rows.iter().map(|row| row.end_ns).collect::<Vec<_>>();
        assert_eq!((ends(first.finish(true)), ends(next.finish(false))), (vec![taken.end_ns], vec![late.end_ns]));
    }

    #[test]
    fn connection_closing_during_the_read_is_one_row() {
        let mut window = Collected::new(&input(json!({})), 100);
        window.ends(200);
        window.add(&connection(110, 120, 201, 2));
        window.add_open(&connection(110, 120, 0, 0));
        let rows = window.finish(true).rows;
        assert_eq!(rows.iter().map(|row| row.end).collect::<Vec<_>>(), [ConnectionState::Closed]);
    }

    #[test]
    fn worst_connections_are_kept_and_all_counted() {
        let mut window = Collected::new(&input(json!({"limit": 2})), 1);
        (2..1_000).for_each(|n| window.add(&connection(n, n + 1, n + 2, 2)));
        window.add(&types::connection { error: libc::ECONNREFUSED, ..connection(5, 0, 6, 5) });
        window.add_open(&connection(7, 0, 0, 1));
        let Period { rows, cut, counts, .. } = window.finish(true);
        assert_eq!(
            rows.iter().map(|row| row.end).collect::<Vec<_>>(),
            [ConnectionState::Failed, ConnectionState::Connecting]
        );
        assert_eq!((cut, counts[&Outcome::Established], counts[&Outcome::Refused]), (998, 998, 1));
    }

    #[test]
    fn death_of_an_established_connection_is_kept_among_refused_ones() {
        let mut window = Collected::new(&input(json!({"limit": 2})), 1);
        let refused = |n| types::connection { error: libc::ECONNREFUSED, ..connection(n, 0, n + 9, 5) };
        window.add(&types::connection { error: libc::ETIMEDOUT, ..connection(1, 2, 3, 4) });
        (2..1_000).for_each(|n| window.add(&refused(n)));
        let rows = window.finish(true).rows;
        assert!(rows.iter().any(|row| row.errno == libc::ETIMEDOUT), "{rows:?}");
    }

    #[test]
    fn all_filters_must_match() {
        let wanted = |value| wants(&input(value), &connection(1, 2, 3, 2));
        assert!(wanted(json!({"direction": "outbound", "remote": "10.0.0.0/8", "port": 80})));
        for other in [
            json!({"direction": "inbound"}),
            json!({"remote": "10.0.0.3"}),
            json!({"port": 443}),
            json!({"pid": 1}),
            json!({"process": "curl"}),
            json!({"outcome": "failed"}),
        ] {
            assert!(!wanted(other.clone()), "{other}");
        }
    }
}
