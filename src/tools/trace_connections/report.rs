//! From the connections of a window to the answer.

use std::{
    cmp::Reverse,
    collections::{HashMap, hash_map::Entry},
    time::Duration,
};

use super::{Connection, ConnectionState, Direction, Directions, Input, Outcome, Outcomes, Output, Row, Sample};
use crate::{
    answer::{self, Code, Endpoint, Limitation, Measured},
    filter::Filter,
    tcp::Unread,
};

/// The answer.
pub fn report(input: &Input, sample: Sample) -> Output {
    let mut measured = Measured::window(Duration::from_nanos(sample.ended_ns.saturating_sub(sample.opened_ns)));
    let alike: u64 = sample.rows.iter().map(|row| u64::from(row.alike)).sum();
    let (rows, cut) = answer::largest(sample.rows, input.limit.rows(), |row| weight(row, sample.ended_ns));
    (measured.lost_events, measured.rows_cut) = (sample.lost, sample.cut + cut);
    if input.direction != Directions::Inbound {
        measured.limits.extend(sample.shows.limit());
    }
    let why = "like others of the same process and service. A recording counts them without rows of their own.";
    measured.limits.extend(Limitation::counted(Code::ConnectionsMerged, alike, "connection", why));
    measured.limits.extend(sample.unread.limits());
    measured.limits.extend(sample.lacks);
    let connections = rows.into_iter().map(|row| connection(row, sample.ended_ns)).collect();
    let counts = |outcome| (outcome, sample.counts.get(&outcome).copied().unwrap_or(0));
    Output { connections, outcomes: Outcome::ALL.into_iter().map(counts).collect(), measured }
}

/// The connections that a question is about, of all.
pub fn narrow(input: &Input, mut sample: Sample) -> Sample {
    let all = sample.rows.len();
    if input.pid.is_some() || input.remote.is_some() {
        // Any of those that a mixed row stands for may be of this process, or to this remote.
        let wider = Input { pid: None, remote: None, ..input.clone() };
        for row in sample.rows.iter_mut().filter(|row| row.mixed && is_wanted(&wider, row)) {
            sample.cut += u64::from(std::mem::take(&mut row.alike));
        }
    }
    sample.rows.retain(|row| is_wanted(input, row));
    if sample.rows.len() < all {
        sample.counts.clear();
        for row in &sample.rows {
            *sample.counts.entry(Outcome::new(row.end, row.errno)).or_default() += 1 + u64::from(row.alike);
        }
    }
    sample
}

fn is_wanted(input: &Input, row: &Row) -> bool {
    let filter = Filter { process: input.process.as_ref(), pid: input.pid, remote: None, port: input.port };
    let direction = match input.direction {
        Directions::Any => true,
        Directions::Outbound => row.direction == Direction::Outbound,
        Directions::Inbound => row.direction == Direction::Inbound,
    };
    direction
        && (input.outcome == Outcomes::Any || Outcome::new(row.end, row.errno).is_failure())
        && filter.owner(row.process.pid, row.process.comm.as_bytes())
        && filter.ends([0; 16], [row.local.port, row.remote.port])
        && input.remote.is_none_or(|range| range.includes(row.remote.address))
}

/// The connections of both periods, each as it was at last.
pub fn merge(mut earlier: Sample, later: Sample) -> Sample {
    let mut places: HashMap<Key, usize> = earlier.rows.iter().enumerate().map(|(i, row)| (key(row), i)).collect();
    for row in later.rows {
        match places.entry(key(&row)) {
            Entry::Vacant(entry) => {
                // The period before may have counted it without a row.
                if earlier.cut > 0 && (earlier.opened_ns..later.opened_ns).contains(&row.start_ns) {
                    let count = earlier.counts.entry(Outcome::Established).or_default();
                    (*count, earlier.cut) = (count.saturating_sub(1), earlier.cut - 1);
                }
                entry.insert(earlier.rows.len());
                earlier.rows.push(row);
            }
            // It was counted twice.
            Entry::Occupied(entry) => {
                let before = std::mem::replace(&mut earlier.rows[*entry.get()], row);
                let count = earlier.counts.entry(Outcome::new(before.end, before.errno)).or_default();
                *count = count.saturating_sub(1);
            }
        }
    }
    for (outcome, count) in later.counts {
        *earlier.counts.entry(outcome).or_default() += count;
    }
    earlier.updates = later.updates;
    earlier.updates.retain(|update| match places.get(&key(update)) {
        Some(place) => {
            earlier.rows[*place] = update.clone();
            false
        }
        None => true,
    });
    earlier.cut += later.cut;
    earlier.lost += later.lost;
    earlier.unread = Unread { orphans: earlier.unread.orphans + later.unread.orphans, ..later.unread };
    earlier.ended_ns = later.ended_ns;
    // The clock begins anew when the host does.
    earlier.opened_ns = earlier.opened_ns.min(later.opened_ns);
    earlier
}

/// The identity of a connection: no socket can begin twice in one nanosecond.
type Key = (u64, Endpoint, Endpoint, u32);

fn key(row: &Row) -> Key {
    (row.start_ns, row.local, row.remote, row.process.netns)
}

/// How much a connection is worth a row. The death of an established one is rare, and refused connects may be very many.
pub fn worth(outcome: Outcome, end: ConnectionState) -> u8 {
    match end {
        ConnectionState::Broken => 3,
        _ if outcome.is_failure() => 2,
        _ => (outcome == Outcome::Connecting).into(),
    }
}

/// The most worth first, then what took longest to connect.
pub fn weight(row: &Row, ended_ns: u64) -> (u8, u64, Reverse<u64>) {
    let outcome = Outcome::new(row.end, row.errno);
    let end_ns = if row.end_ns == 0 { ended_ns } else { row.end_ns };
    let answered_ns = if row.established_ns == 0 { end_ns } else { row.established_ns };
    let latency_ns = if row.start_ns == 0 { 0 } else { answered_ns.saturating_sub(row.start_ns) };
    (worth(outcome, row.end), latency_ns, Reverse(row.start_ns))
}

fn connection(row: Row, now: u64) -> Connection {
    let closed = row.end_ns != 0;
    let outcome = Outcome::new(row.end, row.errno);
    let end = if closed { row.end_ns } else { now };
    let since = |from: u64, to: u64| (from != 0 && to >= from).then(|| (to - from) / 1_000);
    let answered = if row.end == ConnectionState::Failed { row.end_ns } else { row.established_ns };
    Connection {
        owner: row.process.owner(),
        direction: row.direction,
        local: (row.local.port != 0).then_some(row.local),
        remote: row.remote,
        outcome,
        established: row.end.came_about(),
        closing: row.closing,
        errno: (row.errno != 0).then(|| answer::errno_name(row.errno)),
        connect_latency_us: since(row.start_ns, answered).filter(|_| row.direction == Direction::Outbound),
        closed,
        duration_us: since(row.start_ns, end),
        rx_bytes: row.rx_bytes,
        tx_bytes: row.tx_bytes,
        rtt_us: (row.rtt_us != 0).then_some(row.rtt_us),
        retransmits: row.retransmits,
        alike: row.alike,
    }
}
