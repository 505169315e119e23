//! The answer, from what the kernel said.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    time::Duration,
};

use super::{Bytes, Gaps, Group, GroupBy, Input, Key, Other, Output, Past, Row, Sample};
use crate::{
    answer::{self, Code, Limitation, Measured, Owner},
    limits, untrusted,
};

/// The answer.
pub fn report(input: &Input, sample: Sample) -> Output {
    let window = Duration::from_nanos(sample.window_ns);
    let mut rows: Vec<_> = sample.rows.iter().map(row).collect();
    match input.group_by {
        GroupBy::Unit => rows = by_name(rows, |owner| owner.unit.clone()),
        GroupBy::Container => rows = by_name(rows, |owner| owner.container.clone()),
        _ => {}
    }
    rows.iter_mut().for_each(|row| rate(row, &sample.total, window));
    let (rows, cut) = answer::largest(rows, input.limit.rows(), |row| row.rx_bytes + row.tx_bytes);
    let mut measured = Measured::window(window);
    measured.rows_cut = cut + sample.rows_cut;
    (measured.limits, measured.lost_events) = (unseen(&sample.gaps), sample.gaps.missed);
    measured.limits.extend(sample.lacks.iter().cloned());
    let shown = rows.iter().fold(Bytes::default(), |mut sum, row| {
        sum += Bytes { rx_bytes: row.rx_bytes, tx_bytes: row.tx_bytes };
        sum
    });
    let other = Other {
        rows: measured.rows_cut,
        rx_bytes: sample.total.rx_bytes.saturating_sub(shown.rx_bytes),
        tx_bytes: sample.total.tx_bytes.saturating_sub(shown.tx_bytes),
    };
    Output { rows, other, total: sample.total, measured }
}

/// What was moved in both periods. A connection that both count is one. What could not be read in between was read at
/// the end, or was of a connection that `tcp_older` counts.
pub fn merge(earlier: Sample, mut later: Sample) -> Sample {
    let mut places: HashMap<Key, usize> = later.rows.iter().enumerate().map(|(i, group)| (group.key, i)).collect();
    for group in earlier.rows {
        match places.entry(group.key) {
            Entry::Vacant(entry) => {
                entry.insert(later.rows.len());
                later.rows.push(group);
            }
            Entry::Occupied(entry) => later.rows[*entry.get()].add(group),
        }
    }
    later.rows_cut = later.rows_cut.max(earlier.rows_cut);
    later.total += earlier.total;
    let (gaps, before) = (&mut later.gaps, earlier.gaps);
    gaps.udp_untracked += before.udp_untracked;
    gaps.udp_merged += before.udp_merged;
    gaps.tcp_untracked += before.tcp_untracked;
    gaps.tcp_unknown += before.tcp_unknown;
    gaps.udp_unasked = gaps.udp_unasked.max(before.udp_unasked);
    gaps.tcp_older = gaps.tcp_older.max(before.tcp_older);
    gaps.missed += before.missed;
    gaps.past = Past {
        sockmap: gaps.past.sockmap.max(before.past.sockmap),
        xdp: gaps.past.xdp.max(before.past.xdp),
        packet: gaps.past.packet.max(before.past.packet),
        calls: gaps.past.calls && before.past.calls,
    };
    later.window_ns += earlier.window_ns;
    later
}

/// What differs is not common to both.
fn keep<T: PartialEq>(common: &mut Option<T>, other: &Option<T>) {
    if common != other {
        *common = None;
    }
}

impl Group {
    /// Adds what its sockets did before.
    pub fn add(&mut self, before: Group) {
        let (mine, theirs) = (&mut self.process, &before.process);
        if (mine.pid, &mine.comm) != (theirs.pid, &theirs.comm) {
            (mine.pid, mine.comm) = (0, String::new());
        }
        keep(&mut mine.cgroup, &theirs.cgroup);
        if mine.netns != theirs.netns {
            mine.netns = 0;
        }
        keep(&mut self.protocol, &before.protocol);
        match (&mut self.remote, &before.remote) {
            (Some(mine), Some(theirs)) if mine.address == theirs.address => keep(&mut mine.port, &theirs.port),
            (mine, _) => *mine = None,
        }
        self.bytes += before.bytes;
        let (again, other): (Vec<u64>, Vec<u64>) = match before.sockets.as_slice() {
            [] | [_] => before.sockets.into_iter().partition(|cookie| self.sockets.contains(cookie)),
            _ => {
                let known: HashSet<u64> = self.sockets.iter().copied().collect();
                before.sockets.into_iter().partition(|cookie| known.contains(cookie))
            }
        };
        self.connections += before.connections - again.len() as u64;
        self.sockets.extend(other);
    }
}

/// A row without the figures that follow from others.
fn row(group: &Group) -> Row {
    Row {
        owner: group.process.owner(),
        protocol: group.protocol,
        local: group.local,
        remote: group.remote,
        port: group.port,
        netns_name: group.netns_name.as_deref().map(untrusted::clean),
        rx_bytes: group.bytes.rx_bytes,
        tx_bytes: group.bytes.tx_bytes,
        rx_bits_per_second: 0.0,
        tx_bits_per_second: 0.0,
        connections: group.connections,
        share: 0.0,
    }
}

fn rate(row: &mut Row, total: &Bytes, window: Duration) {
    row.rx_bits_per_second = answer::per_second(row.rx_bytes * 8, window);
    row.tx_bits_per_second = answer::per_second(row.tx_bytes * 8, window);
    let share = (row.rx_bytes + row.tx_bytes) as f64 / total.sum().max(1) as f64;
    row.share = (share * 1e4).round() / 1e4;
}

/// Puts the cgroups of one unit (or container) together.
fn by_name(rows: Vec<Row>, name: impl Fn(&Owner) -> Option<String>) -> Vec<Row> {
    let mut merged: HashMap<Option<String>, Row> = HashMap::new();
    for row in rows {
        match merged.entry(name(&row.owner)) {
            Entry::Vacant(entry) => drop(entry.insert(row)),
            Entry::Occupied(mut entry) => add(entry.get_mut(), row),
        }
    }
    merged.into_values().collect()
}

fn add(sum: &mut Row, row: Row) {
    // A process' number without its name, or the other way round, would be half an owner.
    if (sum.owner.pid, &sum.owner.process) != (row.owner.pid, &row.owner.process) {
        (sum.owner.pid, sum.owner.process) = (None, None);
    }
    keep(&mut sum.owner.unit, &row.owner.unit);
    keep(&mut sum.owner.container, &row.owner.container);
    keep(&mut sum.owner.netns, &row.owner.netns);
    keep(&mut sum.protocol, &row.protocol);
    sum.rx_bytes += row.rx_bytes;
    sum.tx_bytes += row.tx_bytes;
    sum.connections += row.connections;
}

fn unseen(gaps: &Gaps) -> Vec<Limitation> {
    let sockets = format!("only in `other`. Limit: {} sockets per window.", limits::UDP_SOCKETS_COUNTED);
    let closed = format!("only in `other`. Limit: {} closed connections per window.", limits::TCP_CLOSED_KEPT);
    let remotes = format!("without a remote. Limit: {} remotes per socket and window.", limits::UDP_REMOTES_COUNTED);
    let unasked = "some remotes unknown. The process does not request sender addresses.";
    let unknown = "bytes missing. They opened before the window and closed while the table was full.";
    let older = "missing. They opened before the window and were unreadable when it began.";
    let counted = [
        Limitation::counted(Code::UdpSocketsMerged, gaps.udp_untracked, "datagram", &sockets),
        Limitation::counted(Code::UdpRemotesMerged, gaps.udp_merged, "datagram", &remotes),
        Limitation::counted(Code::UdpRemotesUnknown, gaps.udp_unasked, "UDP socket", unasked),
        Limitation::counted(Code::ClosedConnectionsMerged, gaps.tcp_untracked, "connection", &closed),
        Limitation::counted(Code::ClosedConnectionsUncounted, gaps.tcp_unknown, "connection", unknown),
        Limitation::counted(Code::OlderConnections, gaps.tcp_older, "connection", older),
    ];
    counted.into_iter().flatten().chain(past(&gaps.past)).chain(gaps.unread.limits()).collect()
}

/// What goes past TCP and UDP.
fn past(past: &Past) -> impl Iterator<Item = Limitation> {
    let sockmap = match past.calls {
        true => "partly counted. A BPF program reads their data first; redirected data may be missing.",
        false => {
            "partly counted. Data that BPF programs redirect is missing: requires the tracepoints sock_send_length \
             and sock_recv_length (Linux 6.3)."
        }
    };
    let xdp = "not counted. Their packets bypass TCP and UDP.";
    let packet = "not counted. Their packets bypass TCP and UDP.";
    let counted = [
        Limitation::counted(Code::SockmapPartlyCounted, past.sockmap, "connection in a BPF sockmap", sockmap),
        Limitation::counted(Code::XdpSocketsNotCounted, past.xdp, "AF_XDP socket", xdp),
        Limitation::counted(Code::PacketSocketsNotCounted, past.packet, "AF_PACKET socket that can send", packet),
    ];
    counted.into_iter().flatten()
}
