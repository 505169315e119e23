//! From what the kernel counted to rows that a person can act on.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::{self, Write},
    net::IpAddr,
    time::Duration,
};

use super::{Drop, End, Flow, Listener, ListenerDrops, Output, Path, Sample, reasons};
use crate::{
    answer::{self, Measured, Owner},
    filter::{Filter, Remote},
    packet, untrusted,
};

/// Rows that differ in one address only are shown as one from this number on: a flood, not a few peers.
const MANY: usize = 8;

pub fn report(include_benign: bool, limit: usize, filter: &Filter, sample: &Sample) -> Output {
    let mut measured = Measured::window(Duration::from_nanos(sample.window_ns));
    let rows = sample.flows.iter().filter_map(|flow| Some(row(flow, sample)).filter(|row| wants(filter, flow, row)));
    let mut rows = merge_ports(rows.collect());
    let mut untold = untold(sample);
    if !filter.is_any() && !untold.is_empty() {
        let packets: u64 = untold.drain(..).map(|row| row.count).sum();
        measured.limits.push(format!("{packets} more packets may be of these: there were more flows than are told apart."));
    }
    if !untold.is_empty() {
        let packets: u64 = untold.iter().map(|row| row.count).sum();
        measured.limits.push(format!("{packets} packets are counted by reason and location only: there were more flows than are told apart."));
        rows.extend(untold);
    }
    let packets = rows.iter().map(|row| row.count).sum();
    let benign_packets = rows.iter().filter(|row| row.benign).map(|row| row.count).sum();
    rows.retain(|row| include_benign || !row.benign);
    measured.limits.extend(limits(&rows, sample));
    measured.lost_events = sample.missed;
    let (drops, cut_drops) = answer::largest(rows, limit, |row| (!row.benign, row.count));
    let asked = |l: &&Listener| {
        let local = filter.port.is_none_or(|port| port == l.local.port);
        local && filter.owner(l.process.pid, l.process.comm.as_bytes())
    };
    let listeners = sample.listeners.iter().filter(asked).map(|l| ListenerDrops {
        owner: l.process.owner(),
        local: l.local,
        accept_queue: l.accept_queue,
        accept_queue_max: l.accept_queue_max,
        dropped: l.dropped,
        netns_overflows: l.overflows,
    });
    let (listeners, cut_listeners) = answer::largest(listeners.collect(), limit, |listener| listener.dropped);
    measured.rows_cut = cut_drops + cut_listeners;
    Output { drops, packets, benign_packets, counters: sample.counters.clone(), listeners, measured }
}

fn limits(rows: &[Drop], sample: &Sample) -> Vec<String> {
    let mut limits = Vec::new();
    if !sample.receivers && rows.iter().any(|row| row.owner.pid.is_none()) {
        limits.push("This kernel does not name the socket that a dropped packet was for (Linux 6.11 and newer do).".into());
    }
    if rows.iter().any(|row| row.reason == "NETFILTER_DROP" && row.rule.is_none()) {
        limits.push("The kernel does not tell which firewall rule dropped a packet: `nft monitor trace` does.".into());
    }
    let elsewhere = |netns: Option<u32>| netns.is_some_and(|netns| netns != sample.netns);
    if rows.iter().any(|row| elsewhere(row.owner.netns)) || sample.listeners.iter().any(|l| elsewhere(l.process.owner().netns)) {
        limits.push("`counters` are of netmond's own network namespace; some drops are of others.".into());
    }
    limits
}

/// What died in a place beyond the flows that were told apart there.
fn untold(sample: &Sample) -> Vec<Drop> {
    let mut told = HashMap::<_, u64>::new();
    for flow in &sample.flows {
        *told.entry((&flow.reason, &flow.location)).or_default() += flow.packets;
    }
    let rest = |place: &super::Place| {
        let count = place.packets.saturating_sub(told.get(&(&place.reason, &place.location)).copied().unwrap_or(0));
        let meaning = reasons::meaning(&place.reason, &place.location);
        (count > 0).then(|| Drop {
            reason: untrusted::clean(&place.reason),
            location: untrusted::clean(&place.location),
            protocol: None,
            kind: None,
            source: None,
            destination: None,
            interface: None,
            path: None,
            rule: None,
            owner: Owner::default(),
            count,
            explanation: meaning.explanation.into(),
            check: meaning.check.into(),
            benign: meaning.benign,
        })
    };
    sample.places.iter().filter_map(rest).collect()
}

fn row(flow: &Flow, sample: &Sample) -> Drop {
    let packet = packet::parse(flow.protocol, &flow.header.0);
    let (source, destination, kind) = match &packet {
        Some(p) => {
            let end = |address, port| Some(End { address, port }).filter(|end| end.address.is_some());
            (end(p.source, p.ports.map(|p| p.0)), end(p.destination, p.ports.map(|p| p.1)), p.kind.clone())
        }
        None => (None, None, None),
    };
    let protocol = packet.map(|p| p.protocol).or_else(|| family_name(flow.family).map(str::to_owned));
    let mut row = Drop {
        reason: untrusted::clean(&flow.reason),
        location: untrusted::clean(&flow.location),
        protocol,
        kind,
        path: path(flow, source.is_some()),
        source,
        destination,
        interface: flow.interface.as_deref().map(untrusted::clean),
        rule: flow.rule.as_deref().map(untrusted::clean),
        owner: flow.process.owner(),
        count: flow.packets,
        explanation: String::new(),
        check: String::new(),
        benign: false,
    };
    explain(&mut row, flow, sample);
    row
}

/// Whether a question is about these packets. Their owner is who the row says, if it says one.
fn wants(filter: &Filter, flow: &Flow, row: &Drop) -> bool {
    let ends = [row.source, row.destination];
    let address = |range: &Remote| ends.iter().flatten().filter_map(|end| end.address).any(|ip| range.includes(ip));
    let port = |port: u16| ends.iter().flatten().any(|end| end.port == Some(port));
    filter.owner(row.owner.pid.unwrap_or(0), if row.owner.pid.is_some() { flow.process.comm.as_bytes() } else { b"" })
        && filter.remote.as_ref().is_none_or(address)
        && filter.port.is_none_or(port)
}

/// A socket's family, where a "packet" is nothing of the network's.
fn family_name(family: u16) -> Option<&'static str> {
    match family {
        1 => Some("unix"),
        16 => Some("netlink"),
        17 => Some("packet"),
        40 => Some("vsock"),
        _ => None,
    }
}

fn path(flow: &Flow, is_packet: bool) -> Option<Path> {
    let forwards = |function: &String| matches!(function.as_str(), "ip_forward" | "ip6_forward" | "ip_mr_input" | "ip6_mr_input");
    match (is_packet, flow.arrived) {
        (false, _) => None,
        (true, false) => Some(Path::Output),
        (true, true) if flow.input.as_ref().is_some_and(forwards) => Some(Path::Forward),
        (true, true) => Some(Path::Input),
    }
}

/// The table's words, or better ones where the packet tells more than its reason.
fn explain(row: &mut Drop, flow: &Flow, sample: &Sample) {
    let meaning = reasons::meaning(&row.reason, &row.location);
    (row.explanation, row.check, row.benign) = (meaning.explanation.into(), meaning.check.into(), meaning.benign);
    let mut say = |explanation: &str, check: &str, benign| {
        (row.explanation, row.check, row.benign) = (explanation.into(), check.into(), benign);
    };
    let multicast = |address: IpAddr| address.is_multicast() || address == IpAddr::from([255; 4]);
    let is = |protocol: &str| row.protocol.as_deref() == Some(protocol);
    let to_many = row.destination.and_then(|end| end.address).is_some_and(multicast);
    match flow.reason.as_str() {
        _ if ["unix", "netlink", "packet", "vsock"].into_iter().any(is) => say("Not a network packet.", "Nothing to do.", true),
        "NO_SOCKET" if to_many => {
            say("Multicast or broadcast that no socket of this host asked for.", "Nothing to do.", true);
        }
        "IP_INNOROUTES" if to_many && is("icmpv6") => {
            say("IPv6 starts on the interface: it has no route for its own multicast yet.", "Nothing to do.", true);
        }
        "NO_SOCKET" if is("tcp") && row.kind.as_ref().is_some_and(|kind| !kind.split(' ').any(|flag| flag == "SYN")) => {
            say("It belongs to a connection that is over.", "Nothing to do, unless a peer keeps on sending.", true);
        }
        "NETFILTER_DROP" if flow.location == "nf_hook_slow" => {
            let own = flow.process.netns == sample.netns;
            match (own, sample.counters.conntrack_drops) {
                (true, Some(1..)) => say(
                    "The connection tracking table is full (conntrack_drops grew).",
                    "net.netfilter.nf_conntrack_max; who opens so many connections: trace_connections.",
                    false,
                ),
                (true, _) => say("A firewall rule (iptables) dropped it.", "`iptables-save -c`, `ip6tables-save -c`.", false),
                (false, _) => say(
                    "A firewall rule (iptables) dropped it, or that namespace's connection tracking table is full.",
                    "There: `iptables-save -c`; `cat /proc/net/stat/nf_conntrack`.",
                    false,
                ),
            }
        }
        "NETFILTER_DROP" => {
            let hook = match row.path {
                Some(Path::Input) => " on its way in",
                Some(Path::Output) => " on its way out",
                Some(Path::Forward) => " that was to be forwarded",
                None => "",
            };
            // A chain's policy is the rule that it ends with.
            let of = row.rule.as_ref().map_or_else(String::new, |rule| format!(" of {rule}"));
            row.explanation = format!("A firewall rule{of} dropped a packet{hook}.");
        }
        "SOCKET_RCVBUFF" if !flow.receiver => {
            row.owner = Owner { netns: row.owner.netns, ..Owner::default() }; // the sender's socket is not the full one
        }
        _ => {}
    }
}

/// What a row keeps when the field in which packets differ is left out.
type Erase = fn(&mut Drop);

/// Makes one row of those that differ only in an ephemeral port, or come from very many addresses.
fn merge_ports(rows: Vec<Drop>) -> Vec<Drop> {
    fn port(end: &mut Option<End>) {
        if let Some(end) = end {
            end.port = None;
        }
    }
    fn address(end: &mut Option<End>) {
        if let Some(end) = end {
            end.address = None;
        }
    }
    // A service's ports tell what fails; the higher port of two is the client's.
    fn client_port(row: &mut Drop) {
        let number = |end: &Option<End>| end.as_ref().and_then(|end| end.port);
        if number(&row.source).is_some_and(|source| number(&row.destination).is_some_and(|port| port > source)) {
            port(&mut row.destination);
        }
    }
    let steps: [(usize, Erase); 6] = [
        (1, |_| ()),
        (2, |row| port(&mut row.source)),
        (2, client_port),
        (MANY, |row| port(&mut row.destination)),
        (MANY, |row| (port(&mut row.source), address(&mut row.source)).1),
        (MANY, |row| (port(&mut row.source), address(&mut row.destination)).1),
    ];
    steps.into_iter().fold(rows, |rows, (least, erase)| merge(rows, least, erase))
}

fn merge(rows: Vec<Drop>, least: usize, erase: Erase) -> Vec<Drop> {
    let mut groups = BTreeMap::<_, Vec<Drop>>::new();
    for row in rows {
        let mut alike = row.clone();
        erase(&mut alike);
        let Drop { reason, location, protocol, kind, source, destination, interface, path, rule, owner, .. } = alike;
        let key = (reason, location, protocol, kind, source, destination, interface, path, rule, owner);
        groups.entry(key).or_default().push(row);
    }
    let mut merged = Vec::new();
    for mut group in groups.into_values() {
        if group.len() < least {
            merged.append(&mut group);
        } else if let Some(mut row) = group.pop() {
            row.count += group.iter().map(|row| row.count).sum::<u64>();
            if !group.is_empty() {
                erase(&mut row);
            }
            merged.push(row);
        }
    }
    merged
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match (self.address, self.port) {
            (Some(IpAddr::V6(address)), Some(port)) => write!(f, "[{address}]:{port}"),
            (Some(address), Some(port)) => write!(f, "{address}:{port}"),
            (Some(address), None) => write!(f, "{address}"),
            (None, Some(port)) => write!(f, "*:{port}"),
            (None, None) => f.write_str("*"),
        }
    }
}

pub fn text(output: &Output) -> String {
    let mut text = String::new();
    let seconds = output.measured.window_ms / 1e3;
    if output.drops.is_empty() && output.listeners.is_empty() {
        let _ = writeln!(text, "No packet was dropped that should have arrived, in {seconds:.1} s.");
    } else if !output.drops.is_empty() {
        let rows = output.drops.iter().map(|d| {
            let what = [d.protocol.as_deref(), d.kind.as_deref()].into_iter().flatten().collect::<Vec<_>>().join(" ");
            let (from, to) = (answer::or_dash(&d.source), answer::or_dash(&d.destination));
            [d.count.to_string(), d.reason.clone(), d.location.clone(), what, from, to, answer::or_dash(&d.interface), d.owner.to_string()]
        });
        text += &answer::table([">packets", "reason", "where", "what", "source", "destination", "interface", "process"], rows);
        text.push('\n');
        let mut said = HashSet::new();
        for drop in output.drops.iter().filter(|drop| said.insert((&drop.reason, &drop.explanation))).take(6) {
            let _ = writeln!(text, "{}: {} {}", drop.reason, drop.explanation, drop.check);
        }
    }
    if output.benign_packets > 0 {
        let _ = writeln!(text, "{} packets were dropped in ordinary operation.", output.benign_packets);
    }
    let grown: Vec<_> = output.counters.grown().map(|(name, count)| format!("{count} {name}")).collect();
    if !grown.is_empty() {
        let _ = writeln!(text, "Counters: {}.", grown.join(", "));
    }
    for l in output.listeners.iter().take(5) {
        let (queue, max) = (l.accept_queue, l.accept_queue_max);
        let _ = writeln!(text, "Listener {} of {} dropped {}; its accept queue holds {queue} of {max}.", l.local, l.owner, l.dropped);
    }
    text + &output.measured.text()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
