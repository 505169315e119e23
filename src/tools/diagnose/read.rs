//! What each tool's answer is to the evidence that the rules judge.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use serde_json::value::RawValue;

use super::{
    close_wait,
    evidence::{
        Connection, Counters, DroppedPackets, Evidence, Link, Listener, Outcome, Query, Reason, Reset, Rtt, Socket,
        Talker, TcpPath, common, is_known, named,
    },
    finding::HostPort,
    paths,
    questions::Asked,
    queues, silent,
};
use crate::{
    answer::{Code, Endpoint, Measured, Protocol},
    tools::{
        Tool, profile_tcp, snapshot_interfaces,
        snapshot_sockets::{self, State},
        top_traffic, trace_connections, trace_dns, trace_drops,
    },
};

pub fn one<T: Tool>(asked: &Asked, samples: &[Box<RawValue>], window: Duration) -> Result<T::Output, String> {
    report::<T>(asked, samples.first().ok_or("no sample")?, window)
}

/// The tool's own answer to its own sample.
pub fn report<T: Tool>(asked: &Asked, sample: &RawValue, window: Duration) -> Result<T::Output, String> {
    let input = serde_json::from_value(asked.input(window)).map_err(|e| e.to_string())?;
    let sample = serde_json::from_str(sample.get()).map_err(|e| e.to_string())?;
    Ok(T::report(input, sample))
}

pub fn interfaces(output: snapshot_interfaces::Output, evidence: &mut Evidence) -> Measured {
    for link in &output.interfaces {
        let addresses = link.addresses.iter().filter_map(|address| address.split('/').next()?.parse::<IpAddr>().ok());
        addresses.for_each(|address| evidence.note_address(address, None));
    }
    evidence.links = output.interfaces.into_iter().map(link).collect();
    output.measured
}

fn link(link: snapshot_interfaces::Link) -> Link {
    Link {
        name: link.name,
        kind: link.kind,
        speed_mbps: link.speed_mbps,
        half_duplex: link.half_duplex,
        wire: link.wire,
        packets_per_second: link.rx.packets_per_second + link.tx.packets_per_second,
        tx_bits_per_second: link.tx.bits_per_second,
        rx_errors: link.rx.errors_in_window,
        rx_dropped: link.rx.dropped_in_window,
        tx_errors: link.tx.errors_in_window,
        tx_dropped: link.tx.dropped_in_window,
        qdisc: link.qdisc.as_ref().map(|qdisc| qdisc.kind.clone()),
        qdisc_dropped: link.qdisc.as_ref().map_or(0, |qdisc| qdisc.dropped_in_window),
        backlog_bytes: link.qdisc.map_or(0, |qdisc| qdisc.backlog_bytes),
    }
}

pub fn sockets(output: snapshot_sockets::Output, evidence: &mut Evidence) -> Measured {
    let sockets = output.sockets.iter().map(|socket| (socket.local.address, socket.owner.netns));
    let listeners = output.listeners.iter().map(|row| (row.local.address, row.owner.netns));
    sockets.chain(listeners).for_each(|(address, netns)| evidence.note_address(address, netns));
    let rows_cut = cut_alive(&output);
    evidence.listeners = output.listeners.into_iter().map(listener).collect();
    evidence.sockets = output.sockets.into_iter().map(socket).collect();
    Measured { rows_cut, ..output.measured }
}

/// The number of cut rows that a check could need. TIME_WAIT is only a memory of a closed connection: those rows are the
/// last ones, and no check reads them.
fn cut_alive(output: &snapshot_sockets::Output) -> u64 {
    let all = output.states.get(&State::TimeWait).copied().unwrap_or_default();
    let shown = output.sockets.iter().filter(|socket| socket.state == State::TimeWait).count() as u64;
    output.measured.rows_cut.saturating_sub(all.saturating_sub(shown))
}

/// The sockets were read before, so the listeners are known, which tell clients from servers.
pub fn readings(outputs: Vec<snapshot_sockets::Output>, evidence: &mut Evidence) -> Measured {
    let mut measured = outputs.last().map(|output| output.measured.clone()).unwrap_or_default();
    measured.rows_cut = outputs.iter().map(cut_alive).max().unwrap_or_default();
    let rows = outputs.iter().flat_map(|output| &output.sockets).filter(|socket| is_known(&socket.owner));
    for listener in &mut evidence.listeners {
        listener.half_open_share = half_open_share(listener, &outputs);
        let queues = outputs.iter().filter_map(|reading| reading.listeners.iter().find(|row| is(row, listener)));
        let peak = queues.map(|row| row.accept_queue.into()).max().unwrap_or_default();
        listener.accept_queue_peak = listener.accept_queue.max(peak);
    }
    evidence.holders =
        rows.filter_map(|row| Some(((row.owner.netns, row.local, row.remote?), row.owner.clone()))).collect();
    evidence.queues = queues::courses(&outputs);
    let series = paths::series(outputs);
    evidence.remotes = paths::remotes(&series, evidence);
    silent::add_open(&series, evidence);
    evidence.closed_late = close_wait::closed_late(&series);
    evidence.jiffy = silent::jiffy(&series, evidence.window);
    // What is said of the sockets as a whole is said already.
    Measured { limits: Vec::new(), ..measured }
}

fn is(row: &snapshot_sockets::Listener, listener: &Listener) -> bool {
    row.socket == listener.socket
}

/// The share of readings in which a listener has its maximum of incomplete handshakes. Fewer than three readings prove
/// nothing.
fn half_open_share(listener: &Listener, readings: &[snapshot_sockets::Output]) -> f64 {
    let full = |row: &snapshot_sockets::Listener| row.half_open >= row.accept_queue_max.max(3);
    let count = readings
        .iter()
        .filter(|reading| reading.listeners.iter().find(|row| is(row, listener)).is_some_and(full))
        .count();
    count as f64 / readings.len().max(1) as f64
}

pub fn profile(output: profile_tcp::Output, evidence: &mut Evidence) -> Measured {
    let rtt = |rtt: profile_tcp::Rtt| Rtt {
        min_us: rtt.min.into(),
        p50_us: rtt.p50.into(),
        p99_us: rtt.p99.into(),
        samples: rtt.samples,
    };
    let remote = |row: profile_tcp::RemoteRow| TcpPath {
        owner: common(row.owners.iter().map(|row| &row.owner)),
        remote: Some(row.remote.address),
        port: row.remote.port,
        segments_out: row.segments_out,
        retransmits: row.retransmits,
        spurious: row.spurious,
        rtt: row.rtt_us.map(rtt),
        prompt: row.prompt,
        ..TcpPath::default()
    };
    let reason = |row: profile_tcp::ResetRow| Reason {
        netns: row.owner.netns,
        local: row.local,
        remote: row.remote,
        sent_by_us: row.sent_by == profile_tcp::Side::Local,
        reason: row.reason,
        explanation: row.explanation,
    };
    evidence.profiled = output.remotes.into_iter().map(remote).collect();
    evidence.services = output.services;
    evidence.reasons = output.resets.into_iter().map(reason).collect();
    output.measured
}

fn listener(row: snapshot_sockets::Listener) -> Listener {
    Listener {
        socket: row.socket,
        owner: row.owner,
        local: Some(row.local),
        accept_queue: row.accept_queue.into(),
        accept_queue_max: row.accept_queue_max.into(),
        accept_queue_peak: row.accept_queue.into(),
        dropped: 0,
        half_open: row.half_open.into(),
        half_open_share: 0.0,
    }
}

fn socket(row: snapshot_sockets::Socket) -> Socket {
    let tcp = row.tcp.as_ref();
    Socket {
        rx_bytes: row.rx_bytes.unwrap_or_default(),
        tx_bytes: row.tx_bytes.unwrap_or_default(),
        inbound: tcp.is_some_and(|tcp| tcp.inbound),
        silent_jiffies: tcp.map(|tcp| tcp.silent_jiffies),
        silence: None,
        owner: row.owner,
        tcp: row.protocol == Protocol::Tcp,
        state: Some(row.state),
        local: Some(row.local),
        remote: row.remote,
        send_queue_bytes: row.send_queue_bytes.into(),
        receive_queue_bytes: row.receive_queue_bytes.into(),
        retransmits: row.retransmits.unwrap_or_default().into(),
    }
}

pub fn connections(mut output: trace_connections::Output, evidence: &mut Evidence) -> Measured {
    output.measured.limits.retain(|limit| limit.code != Code::ConnectionsMerged); // here all have rows
    evidence.resets =
        output.connections.iter().filter(|row| row.outcome == trace_connections::Outcome::Reset).map(reset).collect();
    evidence.silent = output.connections.iter().filter(|row| is_lost(row)).map(silent::ended).collect();
    evidence.connections = output.connections.into_iter().flat_map(all_alike).collect();
    let locals = evidence.connections.iter().filter_map(|row| Some((row.local?.address, row.owner.netns)));
    locals.collect::<Vec<_>>().into_iter().for_each(|(address, netns)| evidence.note_address(address, netns));
    output.measured
}

/// A row of a recording may stand for several connections.
fn all_alike(row: trace_connections::Connection) -> impl Iterator<Item = Connection> {
    let number = row.alike as usize + 1;
    std::iter::repeat_n(connection(row), number)
}

/// Who resets sees no error.
fn reset(row: &trace_connections::Connection) -> Reset {
    let sent_by_us = row.errno.is_none();
    Reset { owner: row.owner.clone(), local: row.local, remote: Some(row.remote), sent_by_us, count: 1 }
}

/// TCP gave an established connection up: what it says is that time was over, or what a router had said meanwhile.
fn is_lost(row: &trace_connections::Connection) -> bool {
    use trace_connections::Outcome as Kernel;
    row.established && matches!(row.outcome, Kernel::TimedOut | Kernel::Unreachable | Kernel::Refused)
}

fn connection(row: trace_connections::Connection) -> Connection {
    use trace_connections::Outcome as Kernel;
    let time = |us: Option<u64>| us.map(Duration::from_micros);
    let outcome = match row.outcome {
        Kernel::Connecting => Outcome::Unanswered,
        Kernel::Established => Outcome::Established,
        // It did come about, if it was in the window.
        Kernel::Reset if row.connect_latency_us.is_some() && row.established => Outcome::Established,
        _ if is_lost(&row) => Outcome::Lost,
        Kernel::TimedOut => Outcome::TimedOut,
        Kernel::Refused => Outcome::Refused,
        Kernel::Unreachable => Outcome::Unreachable,
        // A route of type prohibit, or a policy, which a route's tool does not show; both reject everything.
        Kernel::Denied if row.errno.as_deref() == Some("EACCES") => Outcome::Unreachable,
        Kernel::NoLocalPort => Outcome::NoLocalPort,
        // The process gave up before an answer came.
        Kernel::Other if row.errno.is_none() => Outcome::Unanswered,
        Kernel::Reset | Kernel::Denied | Kernel::Other => Outcome::Other,
    };
    Connection {
        owner: row.owner,
        outbound: row.direction == trace_connections::Direction::Outbound,
        local: row.local,
        remote: Some(row.remote),
        outcome,
        errno: row.errno,
        waited: time(row.connect_latency_us.or(row.duration_us)).unwrap_or_default(),
        before: row.duration_us.is_none(),
        lived: time(row.duration_us).filter(|_| row.closed),
        retransmits: row.retransmits.into(),
        arrived: if row.closed && row.outcome == Kernel::Established { row.tx_bytes } else { 0 },
    }
}

/// A device's counters are read in one network namespace only.
pub fn elsewhere(evidence: &Evidence) -> Option<String> {
    let namespaces: BTreeSet<_> = evidence.sockets.iter().filter_map(|socket| socket.owner.netns).collect();
    (namespaces.len() > 1).then(|| {
        "Interface counters cover only netmond's network namespace; other namespaces: queues and traced drops only."
            .into()
    })
}

/// What only two tools together show.
pub fn join(evidence: &mut Evidence) {
    waiting(evidence);
    let silence = |socket: &Socket| Some(evidence.jiffy? * socket.silent_jiffies?);
    evidence.sockets.iter_mut().for_each(|socket| socket.silence = silence(socket));
    let Evidence { connections, profiled, .. } = evidence;
    // Who is not answered sends its SYN again; that is silence, and not loss.
    for row in profiled {
        let to = connections.iter().filter(|c| c.outbound && c.outcome != Outcome::Established);
        let to = to.filter(|c| c.remote.is_some_and(|r| (Some(r.address), Some(r.port)) == (row.remote, row.port)));
        row.retransmits = row.retransmits.saturating_sub(to.map(|c| c.retransmits).sum());
    }
    silent::join(evidence);
    let Evidence { listeners, dropped, holders, connections, resets, drops, .. } = evidence;
    // A connection that began before anyone watched ends without a name.
    let ends = connections.iter_mut().map(|row| (row.local, row.remote, &mut row.owner));
    for (local, remote, owner) in ends.chain(resets.iter_mut().map(|row| (row.local, row.remote, &mut row.owner))) {
        if let (Some(local), Some(remote), false) = (local, remote, is_known(owner)) {
            *owner = holders.get(&(owner.netns, local, remote)).unwrap_or(owner).clone();
        }
    }
    for listener in listeners {
        let counted = dropped.get(&listener.socket).copied().unwrap_or_default();
        listener.dropped = counted.saturating_sub(listener.strays(drops));
    }
}

/// Connects that began before the window and still wait: only their sockets show them.
fn waiting(evidence: &mut Evidence) {
    let waits = |socket: &&Socket| socket.state == Some(State::SynSent) && socket.retransmits > 0;
    let seen: BTreeSet<_> = evidence.connections.iter().map(|row| (row.owner.netns, row.local, row.remote)).collect();
    let is_seen = |socket: &Socket| seen.contains(&(socket.owner.netns, socket.local, socket.remote));
    let unseen = evidence.sockets.iter().filter(waits).filter(|socket| !is_seen(socket));
    let rows = unseen.map(|socket| Connection {
        owner: socket.owner.clone(),
        outbound: true,
        local: socket.local,
        remote: socket.remote,
        outcome: Outcome::Unanswered,
        // The first is after a second, and they come no faster.
        waited: Duration::from_secs(socket.retransmits),
        retransmits: socket.retransmits,
        ..Connection::default()
    });
    let rows: Vec<_> = rows.collect();
    evidence.connections.extend(rows);
}

pub fn drops(output: trace_drops::Output, evidence: &mut Evidence) -> Measured {
    let counters = output.counters;
    evidence.counters = Counters {
        listen_overflows: counters.listen_overflows.unwrap_or_default(),
        listen_drops: counters.listen_drops.unwrap_or_default(),
        syn_cookies_sent: counters.syn_cookies_sent.unwrap_or_default(),
        conntrack_drops: counters.conntrack_drops.unwrap_or_default(),
        conntrack_insert_failed: counters.conntrack_insert_failed.unwrap_or_default(),
        softnet_dropped: counters.softnet_dropped.unwrap_or_default(),
        softnet_time_squeeze: counters.softnet_time_squeeze.unwrap_or_default(),
    };
    evidence.dropped = output.listeners.iter().map(|row| (row.socket, row.dropped)).collect();
    evidence.overflows =
        output.listeners.iter().filter_map(|row| Some((row.owner.netns, row.netns_overflows?))).collect();
    evidence.drops = named(output.drops.into_iter().map(drop).collect());
    output.measured
}

fn drop(row: trace_drops::Dropped) -> DroppedPackets {
    let place = |end: Option<trace_drops::PartialEndpoint>| {
        end.and_then(|end| Some(HostPort { address: end.address?, port: end.port }))
    };
    DroppedPackets {
        owner: row.owner,
        reason: row.reason,
        location: row.location,
        protocol: row.protocol.unwrap_or_default(),
        kind: row.kind.unwrap_or_default(),
        source: place(row.source),
        destination: place(row.destination),
        interface: row.interface,
        sent_here: row.path == Some(trace_drops::Path::Output),
        next_hop: row.next_hop,
        explanation: row.explanation,
        benign: row.benign,
        course: row.course,
        rule: row.rule,
        count: row.count,
    }
}

pub fn dns(output: trace_dns::Output, evidence: &mut Evidence) -> Measured {
    let query = |row: trace_dns::Query| Query {
        owner: row.owner,
        server: Some(row.server),
        name: row.name,
        unanswered: !row.answered && !row.pending,
        lost: row.lost,
        rcode: row.rcode,
        latency: row.latency_us.map(Duration::from_micros),
    };
    evidence.queries = output.queries.into_iter().map(query).collect();
    output.measured
}

pub fn traffic(output: top_traffic::Output, evidence: &mut Evidence) -> Measured {
    let remote = |remote: top_traffic::CommonRemote| Some(Endpoint { address: remote.address, port: remote.port? });
    let talker = |row: top_traffic::Row| Talker {
        owner: row.owner,
        local: row.local,
        remote: row.remote.and_then(remote),
        rx_bits_per_second: row.rx_bits_per_second,
        tx_bits_per_second: row.tx_bits_per_second,
    };
    evidence.talkers = output.rows.into_iter().map(talker).collect();
    output.measured
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_rows_in_time_wait_are_not_missing() {
        let output = |cut: u64, waits: u64| -> snapshot_sockets::Output {
            serde_json::from_value(serde_json::json!({
                "sockets": [], "listeners": [], "states": {"time_wait": waits, "established": 9},
                "measured": {"window_ms": 1.0, "lost_events": 0, "rows_cut": cut, "limits": []},
            }))
            .unwrap()
        };
        assert_eq!([output(7, 7), output(7, 9), output(9, 7)].map(|output| cut_alive(&output)), [0, 0, 2]);
    }
}
