//! One window's connections: what matched is counted, the worst are kept.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashSet},
};

use super::{Direction, Directions, End, Input, Outcome, Outcomes, Row, skel::types};
use crate::{answer::Endpoint, attribution::Process, bpf::Pod, filter::Filter, largest::Largest};

// SAFETY: integers, arrays of integers, and structs of such, with explicit padding.
unsafe impl Pod for types::connection {}

/// What tells one connection from another: no socket can begin twice in one nanosecond.
type Key = (u64, u16, u16, u32);

fn key(c: &types::connection) -> Key {
    (c.start_ns, c.endpoints.local_port, c.endpoints.remote_port, c.owner.netns)
}

/// Failures weigh most, then what has no answer yet, then what took longest to connect.
type Weight = (bool, bool, u64, Reverse<u64>);

pub struct Collected {
    input: Input,
    opened_ns: u64,
    ended_ns: u64,
    counts: BTreeMap<Outcome, u64>,
    worst: Largest<types::connection, Weight>,
    /// Closed after the window's end, while the open ones were read: they may be among those.
    closed_late: HashSet<Key>,
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
            closed_late: HashSet::new(),
        }
    }

    /// From now on, what begins is not of this window.
    pub fn ends(&mut self, ended_ns: u64) {
        self.ended_ns = ended_ns;
    }

    /// Takes a connection that has ended.
    pub fn add(&mut self, c: &types::connection) {
        if c.end_ns >= self.ended_ns {
            self.closed_late.insert(key(c));
        }
        self.take(c);
    }

    /// Takes a connection that is open, unless it has closed in the meantime.
    pub fn add_open(&mut self, c: &types::connection) {
        if !self.closed_late.contains(&key(c)) {
            self.take(c);
        }
    }

    fn take(&mut self, c: &types::connection) {
        let within = |ns: u64| (self.opened_ns..=self.ended_ns).contains(&ns);
        if !(within(c.start_ns) || within(c.established_ns) || within(c.end_ns)) || !wants(&self.input, c) {
            return;
        }
        let outcome = Outcome::new(end(c.end), c.error);
        *self.counts.entry(outcome).or_default() += 1;
        let answered = if c.established_ns != 0 { c.established_ns } else { c.end_ns };
        let latency = if c.start_ns == 0 { 0 } else { answered.saturating_sub(c.start_ns) };
        self.worst.push((outcome.is_failure(), outcome == Outcome::Connecting, latency, Reverse(c.start_ns)), *c);
    }

    /// The worst, how many were cut, and how many there were of each outcome.
    pub fn finish(self) -> (Vec<Row>, u64, BTreeMap<Outcome, u64>) {
        let (rows, cut) = self.worst.finish();
        (rows.iter().map(row).collect(), cut, self.counts)
    }
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
        start_ns: c.start_ns,
        established_ns: c.established_ns,
        end_ns: c.end_ns,
        rx_bytes: c.rx_bytes,
        tx_bytes: c.tx_bytes,
        rtt_us: c.rtt_us,
        retransmits: c.retransmits,
    }
}

/// `enum direction` of connections.h.
fn direction(direction: u8) -> Direction {
    if direction == 2 { Direction::Inbound } else { Direction::Outbound }
}

/// `enum end` of connections.h.
fn end(end: u8) -> End {
    match end {
        0 => End::Open,
        1 => End::Connecting,
        2 => End::Closed,
        3 => End::Aborted,
        4 => End::Broken,
        _ => End::Failed,
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
    fn a_window_takes_what_opened_or_closed_in_it() {
        let mut window = Collected::new(&input(json!({})), 100);
        window.add(&connection(10, 20, 90, 2)); // before
        window.add(&connection(10, 20, 110, 2)); // closed within
        window.add(&connection(0, 0, 110, 2)); // the same, opened before anyone watched
        window.ends(200);
        window.add(&connection(110, 120, 205, 2)); // opened within
        window.add(&connection(201, 202, 205, 2)); // after
        window.add_open(&connection(90, 120, 0, 0)); // established within
        window.add_open(&connection(10, 20, 0, 0)); // open all the time
        let (rows, cut, counts) = window.finish();
        assert_eq!((rows.len(), cut, counts[&Outcome::Established]), (4, 0, 4));
    }

    #[test]
    fn what_closes_while_the_open_ones_are_read_is_one_row() {
        let mut window = Collected::new(&input(json!({})), 100);
        window.ends(200);
        window.add(&connection(110, 120, 201, 2));
        window.add_open(&connection(110, 120, 0, 0));
        let (rows, ..) = window.finish();
        assert_eq!(rows.iter().map(|row| row.end).collect::<Vec<_>>(), [End::Closed]);
    }

    #[test]
    fn the_worst_are_kept_and_all_are_counted() {
        let mut window = Collected::new(&input(json!({"limit": 2})), 1);
        (2..1_000).for_each(|n| window.add(&connection(n, n + 1, n + 2, 2)));
        window.add(&types::connection { error: libc::ECONNREFUSED, ..connection(5, 0, 6, 5) });
        window.add_open(&connection(7, 0, 0, 1));
        let (rows, cut, counts) = window.finish();
        assert_eq!(rows.iter().map(|row| row.end).collect::<Vec<_>>(), [End::Failed, End::Connecting]);
        assert_eq!((cut, counts[&Outcome::Established], counts[&Outcome::Refused]), (998, 998, 1));
    }

    #[test]
    fn filters_are_all_to_hold() {
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
