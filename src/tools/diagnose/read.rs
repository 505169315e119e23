//! From what the tools said to the evidence that the rules judge.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use serde_json::value::RawValue;

use super::{
    evidence::{
        Connection, Counters, Drop, Evidence, Link, Listener, Outcome, Query, Reason, Remote, Reset, Rtt, Socket,
        Talker, common, is_known, named,
    },
    finding::Place,
    gather::{ASKED, Asked, Heard, Reply},
    paths, rules,
};
use crate::{
    answer::{Endpoint, Measured, Transport},
    tools::{
        Tool, profile_tcp, snapshot_interfaces,
        snapshot_sockets::{self, State},
        top_traffic, trace_connections, trace_dns, trace_drops,
    },
};

/// The evidence, and how much of it there is.
pub struct Read {
    pub evidence: Evidence,
    /// The questions that were answered.
    pub heard: BTreeSet<&'static str>,
    pub blind_spots: Vec<String>,
    pub lost_events: u64,
}

/// Reads every reply. One that does not read is a blind spot, as is one that was not given.
///
/// `asked_for` is the window of the questions, `window` the one that it became.
pub fn read(replies: &Heard, asked_for: Duration, window: Duration) -> Read {
    let evidence = Evidence { window, ..Evidence::default() };
    let mut read = Read { evidence, heard: BTreeSet::new(), blind_spots: Vec::new(), lost_events: 0 };
    for asked in ASKED {
        match output(asked, replies, asked_for, &mut read.evidence) {
            Ok(measured) => read.note(asked, measured),
            Err(reason) => read.miss(asked, &reason),
        }
    }
    join(&mut read.evidence);
    read.blind_spots.extend(elsewhere(&read.evidence));
    read
}

impl Read {
    fn note(&mut self, asked: &Asked, measured: Measured) {
        self.heard.insert(asked.name);
        self.lost_events += measured.lost_events;
        if measured.rows_cut > 0 {
            self.blind_spots
                .push(format!("{}: {} rows were not judged, of the least weight", asked.tool, measured.rows_cut));
        }
        self.blind_spots.extend(measured.limits.iter().map(|limit| format!("{}: {limit}", asked.tool)));
    }

    fn miss(&mut self, asked: &Asked, reason: &str) {
        let codes: Vec<_> = rules::decided_by(asked.name).map(|code| code.to_string()).collect();
        self.blind_spots.push(format!("{} was not heard, so not judged: {} ({reason})", asked.tool, codes.join(", ")));
    }
}

/// One tool's answer, added to the evidence.
fn output(asked: &Asked, replies: &Heard, window: Duration, evidence: &mut Evidence) -> Result<Measured, String> {
    let samples = match replies.get(asked.name) {
        Some(Reply::Samples(samples)) => samples,
        Some(Reply::Error(reason)) => return Err(reason.clone()),
        None => return Err("the daemon did not ask it; it is of another release".into()),
    };
    match asked.name {
        "sockets" => one::<snapshot_sockets::T>(asked, samples, window).map(|output| sockets(output, evidence)),
        "tcp" => {
            let outputs: Result<Vec<_>, _> =
                samples.iter().map(|s| report::<snapshot_sockets::T>(asked, s, window)).collect();
            outputs.map(|outputs| readings(outputs, evidence))
        }
        "connections" => {
            one::<trace_connections::T>(asked, samples, window).map(|output| connections(output, evidence))
        }
        "profile" => one::<profile_tcp::T>(asked, samples, window).map(|output| profile(output, evidence)),
        "drops" => one::<trace_drops::T>(asked, samples, window).map(|output| drops(output, evidence)),
        "dns" => one::<trace_dns::T>(asked, samples, window).map(|output| dns(output, evidence)),
        "traffic" => one::<top_traffic::T>(asked, samples, window).map(|output| traffic(output, evidence)),
        "interfaces" => {
            one::<snapshot_interfaces::T>(asked, samples, window).map(|output| interfaces(output, evidence))
        }
        name => Err(format!("nobody reads {name}")),
    }
}

fn one<T: Tool>(asked: &Asked, samples: &[Box<RawValue>], window: Duration) -> Result<T::Output, String> {
    report::<T>(asked, samples.first().ok_or("it said nothing")?, window)
}

/// The tool's own answer to its own sample.
fn report<T: Tool>(asked: &Asked, sample: &RawValue, window: Duration) -> Result<T::Output, String> {
    let input = serde_json::from_value(asked.input(window)).map_err(|e| e.to_string())?;
    let sample = serde_json::from_str(sample.get()).map_err(|e| e.to_string())?;
    Ok(T::report(input, sample))
}

fn interfaces(output: snapshot_interfaces::Output, evidence: &mut Evidence) -> Measured {
    for link in &output.interfaces {
        let addresses = link.addresses.iter().filter_map(|address| address.split('/').next()?.parse::<IpAddr>().ok());
        evidence.own_addresses.extend(addresses);
    }
    evidence.links = output.interfaces.into_iter().map(link).collect();
    output.measured
}

fn link(link: snapshot_interfaces::Link) -> Link {
    Link {
        name: link.name,
        kind: link.kind,
        speed_mbps: link.speed_mbps,
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

fn sockets(output: snapshot_sockets::Output, evidence: &mut Evidence) -> Measured {
    let locals = output.sockets.iter().map(|socket| socket.local).chain(output.listeners.iter().map(|row| row.local));
    evidence.own_addresses.extend(
        locals.map(|local| local.address).filter(|address| !address.is_unspecified() && !address.is_multicast()),
    );
    evidence.listeners = output.listeners.into_iter().map(listener).collect();
    evidence.sockets = output.sockets.into_iter().map(socket).collect();
    output.measured
}

/// The sockets were read before, so the listeners are known, which tell clients from servers.
fn readings(outputs: Vec<snapshot_sockets::Output>, evidence: &mut Evidence) -> Measured {
    let measured = outputs.last().map(|output| output.measured.clone()).unwrap_or_default();
    let rows = outputs.iter().flat_map(|output| &output.sockets).filter(|socket| is_known(&socket.owner));
    for listener in &mut evidence.listeners {
        listener.half_open_share = half_open_share(listener, &outputs);
        let queues = outputs.iter().filter_map(|reading| reading.listeners.iter().find(|row| is(row, listener)));
        let peak = queues.map(|row| row.accept_queue.into()).max().unwrap_or_default();
        listener.accept_queue_peak = listener.accept_queue.max(peak);
    }
    evidence.holders = rows.filter_map(|row| Some(((row.local, row.remote?), row.owner.clone()))).collect();
    evidence.remotes = paths::remotes(outputs, evidence);
    // What is said of the sockets as a whole is said already.
    Measured { limits: Vec::new(), ..measured }
}

fn is(row: &snapshot_sockets::Listener, listener: &Listener) -> bool {
    (row.owner.netns, Some(row.local)) == (listener.owner.netns, listener.local)
}

/// In which share of the readings a listener had as many incomplete handshakes as it takes. Fewer than three are no crowd.
fn half_open_share(listener: &Listener, readings: &[snapshot_sockets::Output]) -> f64 {
    let full = |row: &snapshot_sockets::Listener| row.half_open >= row.accept_queue_max.max(3);
    let count = readings.iter().filter(|reading| reading.listeners.iter().find(|row| is(row, listener)).is_some_and(full)).count();
    count as f64 / readings.len().max(1) as f64
}

fn profile(output: profile_tcp::Output, evidence: &mut Evidence) -> Measured {
    let rtt = |rtt: profile_tcp::Rtt| Rtt {
        min_us: rtt.min.into(),
        p50_us: rtt.p50.into(),
        p99_us: rtt.p99.into(),
        samples: rtt.samples,
    };
    let remote = |row: profile_tcp::RemoteRow| Remote {
        owner: common(row.owners.iter().map(|row| &row.owner)),
        remote: Some(row.remote.address),
        port: row.remote.port,
        segments_out: row.segments_out,
        retransmits: row.retransmits,
        spurious: row.spurious,
        rtt: row.rtt_us.map(rtt),
        ..Remote::default()
    };
    let reason = |row: profile_tcp::ResetRow| Reason {
        local: row.local,
        remote: row.remote,
        sent_by_us: row.sent_by == profile_tcp::End::Local,
        reason: row.reason,
        explanation: row.explanation,
    };
    evidence.profiled = output.remotes.into_iter().map(remote).collect();
    evidence.reasons = output.resets.into_iter().map(reason).collect();
    output.measured
}

fn listener(row: snapshot_sockets::Listener) -> Listener {
    Listener {
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
    Socket {
        owner: row.owner,
        tcp: row.protocol == Transport::Tcp,
        state: Some(row.state),
        local: Some(row.local),
        remote: row.remote,
        send_queue_bytes: row.send_queue_bytes.into(),
        receive_queue_bytes: row.receive_queue_bytes.into(),
        retransmits: row.retransmits.unwrap_or_default().into(),
    }
}

fn connections(output: trace_connections::Output, evidence: &mut Evidence) -> Measured {
    evidence.resets =
        output.connections.iter().filter(|row| row.outcome == trace_connections::Outcome::Reset).map(reset).collect();
    evidence.connections = output.connections.into_iter().map(connection).collect();
    let locals = evidence.connections.iter().filter_map(|row| row.local).map(|local| local.address);
    evidence.own_addresses.extend(locals.filter(|address| !address.is_unspecified()));
    output.measured
}

/// Who resets sees no error.
fn reset(row: &trace_connections::Connection) -> Reset {
    let sent_by_us = row.errno.is_none();
    Reset { owner: row.owner.clone(), local: row.local, remote: Some(row.remote), sent_by_us, count: 1 }
}

fn connection(row: trace_connections::Connection) -> Connection {
    use trace_connections::Outcome as Kernel;
    let time = |us: Option<u64>| us.map(Duration::from_micros);
    // A connection that was established and then broke did come about.
    let came_about = match row.direction {
        trace_connections::Direction::Inbound => true,
        trace_connections::Direction::Outbound => row.rtt_us.is_some() || row.connect_latency_us < row.duration_us,
    };
    let outcome = match row.outcome {
        Kernel::Connecting => Outcome::Unanswered,
        Kernel::Established => Outcome::Established,
        Kernel::Reset | Kernel::TimedOut if row.connect_latency_us.is_some() && came_about => Outcome::Established,
        Kernel::TimedOut => Outcome::TimedOut,
        Kernel::Refused => Outcome::Refused,
        Kernel::Unreachable => Outcome::Unreachable,
        // A route of type prohibit, or a policy, which a route's tool does not show; both say no to all who ask.
        Kernel::Denied if row.errno.as_deref() == Some("EACCES") => Outcome::Unreachable,
        Kernel::NoLocalPort => Outcome::NoLocalPort,
        // The process gave up before anybody answered.
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
    }
}

/// A device's counters are read in one network namespace only.
fn elsewhere(evidence: &Evidence) -> Option<String> {
    let namespaces: BTreeSet<_> = evidence.sockets.iter().filter_map(|socket| socket.owner.netns).collect();
    (namespaces.len() > 1).then(|| {
        "Counters of interfaces and of queues are of netmond's own network namespace; in the others only packets seen to be \
         dropped tell of them."
            .into()
    })
}

/// What only two tools together show.
fn join(evidence: &mut Evidence) {
    waiting(evidence);
    let Evidence { listeners, dropped, holders, connections, resets, profiled, drops, .. } = evidence;
    // Who is not answered sends its SYN again; that is silence, and not loss.
    for row in profiled {
        let to = connections.iter().filter(|c| c.outbound && c.outcome != Outcome::Established);
        let to = to.filter(|c| c.remote.is_some_and(|r| (Some(r.address), Some(r.port)) == (row.remote, row.port)));
        row.retransmits = row.retransmits.saturating_sub(to.map(|c| c.retransmits).sum());
    }
    // A connection that began before anyone watched ends without a name.
    let ends = connections.iter_mut().map(|row| (row.local, row.remote, &mut row.owner));
    for (local, remote, owner) in ends.chain(resets.iter_mut().map(|row| (row.local, row.remote, &mut row.owner))) {
        if let (Some(local), Some(remote), false) = (local, remote, is_known(owner)) {
            *owner = holders.get(&(local, remote)).unwrap_or(owner).clone();
        }
    }
    for listener in listeners {
        let key = listener.local.map(|local| (listener.owner.netns, local));
        let counted = key.and_then(|key| dropped.get(&key)).copied().unwrap_or_default();
        listener.dropped = counted.saturating_sub(listener.strays(drops));
    }
}

/// Connects that began before the window and still wait: only their sockets show them.
fn waiting(evidence: &mut Evidence) {
    let waits = |socket: &&Socket| socket.state == Some(State::SynSent) && socket.retransmits > 0;
    let seen: BTreeSet<_> = evidence.connections.iter().map(|row| (row.local, row.remote)).collect();
    let unseen = evidence.sockets.iter().filter(waits).filter(|socket| !seen.contains(&(socket.local, socket.remote)));
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

fn drops(output: trace_drops::Output, evidence: &mut Evidence) -> Measured {
    let counters = output.counters;
    evidence.counters = Counters {
        listen_overflows: counters.listen_overflows.unwrap_or_default(),
        listen_drops: counters.listen_drops.unwrap_or_default(),
        syn_cookies_sent: counters.syn_cookies_sent.unwrap_or_default(),
        conntrack_drops: counters.conntrack_drops.unwrap_or_default(),
        softnet_dropped: counters.softnet_dropped.unwrap_or_default(),
    };
    evidence.dropped = output.listeners.iter().map(|row| ((row.owner.netns, row.local), row.dropped)).collect();
    evidence.overflows = output.listeners.iter().filter_map(|row| Some((row.owner.netns, row.netns_overflows?))).collect();
    evidence.drops = named(output.drops.into_iter().map(drop).collect());
    output.measured
}

fn drop(row: trace_drops::Drop) -> Drop {
    let place =
        |end: Option<trace_drops::End>| end.and_then(|end| Some(Place { address: end.address?, port: end.port }));
    Drop {
        owner: row.owner,
        reason: row.reason,
        location: row.location,
        protocol: row.protocol.unwrap_or_default(),
        kind: row.kind.unwrap_or_default(),
        source: place(row.source),
        destination: place(row.destination),
        interface: row.interface,
        sent_here: row.path == Some(trace_drops::Path::Output),
        rule: row.rule,
        count: row.count,
    }
}

fn dns(output: trace_dns::Output, evidence: &mut Evidence) -> Measured {
    let query = |row: trace_dns::Query| Query {
        owner: row.owner,
        server: Some(row.server),
        name: row.name,
        unanswered: !row.answered && !row.pending,
        rcode: row.rcode,
        latency: row.latency_us.map(Duration::from_micros),
    };
    evidence.queries = output.queries.into_iter().map(query).collect();
    output.measured
}

fn traffic(output: top_traffic::Output, evidence: &mut Evidence) -> Measured {
    let remote = |remote: top_traffic::Remote| Some(Endpoint { address: remote.address, port: remote.port? });
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
