//! From what the kernel counted to rows that a person can act on.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, hash_map::Entry},
    net::IpAddr,
    time::Duration,
};

use super::{Course, DropSite, Dropped, Flow, Listener, ListenerDrops, Output, PartialEndpoint, Path, Sample, reasons};
use crate::{
    answer::{self, Code, Limitation, Measured, Owner},
    filter::{AddressRange, Filter, Port},
    limits, packet, untrusted,
};

/// Rows that differ in one address only are shown as one from this number on: a flood, not a few peers.
pub const MANY: usize = 8;

/// The answer.
pub fn report(include_benign: bool, limit: usize, filter: &Filter, sample: &Sample) -> Output {
    let mut measured = Measured::window(Duration::from_nanos(sample.window_ns));
    let rows = sample.flows.iter().filter_map(|flow| Some(row(flow, sample)).filter(|row| wants(filter, flow, row)));
    let mut rows = merge_ports(rows.collect());
    let mut untold = untold(sample);
    if !filter.matches_everything() && !untold.is_empty() {
        let packets: u64 = untold.drain(..).map(|row| row.count).sum();
        let why = "not filtered. There were too many flows; they may belong to these rows.";
        measured.limits.extend(Limitation::counted(Code::DropsUnfiltered, packets, "packet", why));
    }
    if !untold.is_empty() {
        let packets: u64 = untold.iter().map(|row| row.count).sum();
        let why = "counted by reason and location only. There were too many flows.";
        measured.limits.extend(Limitation::counted(Code::DropsMerged, packets, "packet", why));
        rows.extend(untold);
    }
    let packets = rows.iter().map(|row| row.count).sum();
    let benign_packets = rows.iter().filter(|row| row.benign).map(|row| row.count).sum();
    rows.retain(|row| include_benign || !row.benign);
    measured.limits.extend(limitations(&rows, sample));
    measured.limits.extend(sample.lacks.iter().cloned());
    measured.lost_events = sample.missed;
    let (drops, cut_drops) = answer::largest(rows, limit, |row| (!row.benign, row.count));
    let asked = |l: &&Listener| {
        let local = filter.port.is_none_or(|port| port.get() == l.local.port);
        local && filter.owner(l.process.pid, l.process.comm.as_bytes())
    };
    let listeners = sample.listeners.iter().filter(asked).map(|l| ListenerDrops {
        socket: l.socket,
        owner: l.process.owner(),
        local: l.local,
        accept_queue: l.accept_queue,
        accept_queue_max: l.accept_queue_max,
        dropped: l.dropped,
        netns_overflows: sample.overflows.get(&l.process.netns).copied(),
    });
    let (listeners, cut_listeners) = answer::largest(listeners.collect(), limit, |listener| listener.dropped);
    measured.rows_cut = cut_drops + cut_listeners;
    Output { drops, packets, benign_packets, counters: sample.counters.clone(), listeners, measured }
}

/// What died in both periods. Flows and places are the same by what they are, listeners by their socket.
pub fn merge(earlier: Sample, mut later: Sample) -> Sample {
    let mut sites: BTreeMap<(String, String), u64> = BTreeMap::new();
    for site in earlier.places.into_iter().chain(later.places) {
        *sites.entry((site.reason, site.location)).or_default() += site.packets;
    }
    later.places =
        sites.into_iter().map(|((reason, location), packets)| DropSite { reason, location, packets }).collect();
    let mut flows: HashMap<u64, Flow> = later.flows.into_iter().map(|flow| (flow.id, flow)).collect();
    for before in earlier.flows {
        match flows.entry(before.id) {
            Entry::Vacant(entry) => drop(entry.insert(before)),
            Entry::Occupied(mut entry) => {
                let flow = entry.get_mut();
                flow.packets += before.packets;
                if flow.process.pid == 0 {
                    flow.process = before.process;
                }
                if flow.rule != before.rule {
                    flow.rule = None;
                }
            }
        }
    }
    later.flows = flows.into_values().collect();
    later.flows.sort_by_key(|flow| (Reverse(flow.packets), flow.id));
    later.flows.truncate(limits::DROP_FLOWS);
    // A queue that is no longer full is not news; its drops are.
    for before in earlier.listeners.into_iter().filter(|before| before.dropped > 0) {
        let same = |l: &&mut Listener| {
            (l.socket, l.local, l.process.netns) == (before.socket, before.local, before.process.netns)
        };
        match later.listeners.iter_mut().find(same) {
            Some(listener) => listener.dropped += before.dropped,
            None => later.listeners.push(before),
        }
    }
    later.listeners.sort_by_key(|listener| Reverse(listener.dropped));
    earlier.overflows.into_iter().for_each(|(netns, count)| *later.overflows.entry(netns).or_default() += count);
    later.counters = earlier.counters.plus(&later.counters);
    later.missed += earlier.missed;
    later.window_ns += earlier.window_ns;
    later
}

fn limitations(rows: &[Dropped], sample: &Sample) -> Vec<Limitation> {
    let mut limits = Vec::new();
    if !sample.receivers && rows.iter().any(|row| row.owner.pid.is_none()) {
        let text = "The receiving socket of a dropped packet is unavailable before Linux 6.11.";
        limits.push(Limitation::new(Code::DropReceiversUnknown, text));
    }
    if rows.iter().any(|row| row.reason == "NETFILTER_DROP" && row.rule.is_none()) {
        let text = "The firewall rule is unavailable from the kernel: run `nft monitor trace`.";
        limits.push(Limitation::new(Code::FirewallRulesUnknown, text));
    }
    let elsewhere = |netns: Option<u32>| netns.is_some_and(|netns| netns != sample.netns);
    if rows.iter().any(|row| elsewhere(row.owner.netns))
        || sample.listeners.iter().any(|l| elsewhere(l.process.owner().netns))
    {
        let text = "`counters` cover only netmond's network namespace; some drops are in others.";
        limits.push(Limitation::new(Code::CountersOfOneNamespace, text));
    }
    let why = "with an XDP program. Packets that it drops are not listed: they have no packet buffer yet.";
    limits.extend(Limitation::counted(Code::XdpVerdictsNotSeen, sample.xdp_interfaces, "interface", why));
    limits
}

/// Drops of a place beyond the flows with rows of their own.
fn untold(sample: &Sample) -> Vec<Dropped> {
    let mut told = HashMap::<_, u64>::new();
    for flow in &sample.flows {
        *told.entry((&flow.reason, &flow.location)).or_default() += flow.packets;
    }
    let rest = |place: &super::DropSite| {
        let count = place.packets.saturating_sub(told.get(&(&place.reason, &place.location)).copied().unwrap_or(0));
        let meaning = reasons::meaning(&place.reason, &place.location);
        (count > 0).then(|| Dropped {
            reason: untrusted::clean(&place.reason),
            location: untrusted::clean(&place.location),
            protocol: None,
            kind: None,
            source: None,
            destination: None,
            interface: None,
            path: None,
            next_hop: None,
            rule: None,
            owner: Owner::default(),
            count,
            explanation: meaning.explanation.into(),
            check: meaning.check.into(),
            benign: meaning.benign,
            course: Course::default(),
        })
    };
    sample.places.iter().filter_map(rest).collect()
}

/// What a flow's packets are to a person.
pub fn row(flow: &Flow, sample: &Sample) -> Dropped {
    // A packet with an unreadable header counts, too, whoever made it.
    let packet = packet::parse(flow.protocol, &flow.header.0).or_else(|| packet::parse(flow.protocol, &[]));
    let (source, destination, kind) = match &packet {
        Some(p) => {
            let end = |address, port| Some(PartialEndpoint { address, port }).filter(|end| end.address.is_some());
            (end(p.source, p.ports.map(|p| p.0)), end(p.destination, p.ports.map(|p| p.1)), p.kind.clone())
        }
        None => (None, None, None),
    };
    let (path, hops) = (path(flow, source.is_some()), packet.as_ref().and_then(|p| p.hops));
    let protocol = packet.map(|p| p.protocol).or_else(|| family_name(flow.family).map(str::to_owned));
    let addresses = |end: Option<PartialEndpoint>| end.and_then(|end| end.address).into_iter().collect();
    let course = Course {
        sources: addresses(source),
        destinations: addresses(destination),
        expired: reasons::is_expired(&flow.reason, path, hops),
        returns: flow.returns,
        output: flow.output.as_deref().map(untrusted::clean),
        route_back: flow.route_back.as_deref().map(untrusted::clean),
    };
    let mut row = Dropped {
        reason: untrusted::clean(&flow.reason),
        location: untrusted::clean(&flow.location),
        protocol,
        kind,
        path,
        next_hop: flow.gateway,
        source,
        destination,
        interface: flow.interface.as_deref().map(untrusted::clean),
        rule: flow.rule.as_deref().map(untrusted::clean),
        owner: flow.process.owner(),
        count: flow.packets,
        explanation: String::new(),
        check: String::new(),
        benign: false,
        course,
    };
    explain(&mut row, flow, sample);
    row
}

/// Whether a question matches these packets. The row's owner counts, if it has one.
fn wants(filter: &Filter, flow: &Flow, row: &Dropped) -> bool {
    let ends = [row.source, row.destination];
    let address =
        |range: &AddressRange| ends.iter().flatten().filter_map(|end| end.address).any(|ip| range.includes(ip));
    let port = |port: Port| ends.iter().flatten().any(|end| end.port == Some(port.get()));
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
    let forwards =
        |function: &String| matches!(function.as_str(), "ip_forward" | "ip6_forward" | "ip_mr_input" | "ip6_mr_input");
    match (is_packet, flow.arrived) {
        (false, _) => None,
        (true, false) => Some(Path::Output),
        (true, true) if flow.input.as_ref().is_some_and(forwards) => Some(Path::Forward),
        (true, true) => Some(Path::Input),
    }
}

/// The table's texts, or better ones if the packet has more details than its reason.
fn explain(row: &mut Dropped, flow: &Flow, sample: &Sample) {
    let meaning = reasons::meaning(&row.reason, &row.location);
    (row.explanation, row.check, row.benign) = (meaning.explanation.into(), meaning.check.into(), meaning.benign);
    let mut say = |explanation: &str, check: &str, benign| {
        (row.explanation, row.check, row.benign) = (explanation.into(), check.into(), benign);
    };
    let multicast = |address: IpAddr| address.is_multicast() || address == IpAddr::from([255; 4]);
    let is = |protocol: &str| row.protocol.as_deref() == Some(protocol);
    let to_many = row.destination.and_then(|end| end.address).is_some_and(multicast);
    match flow.reason.as_str() {
        _ if ["unix", "netlink", "packet", "vsock"].into_iter().any(is) => {
            say("Not a network packet.", "Nothing to do.", true)
        }
        _ if row.course.expired => {
            let (explanation, check) = reasons::EXPIRED;
            say(explanation, check, false);
        }
        "NO_SOCKET" if matches!(row.kind.as_deref(), Some("echo reply")) => {
            say("A late answer to a ping; raw sockets have their own copy.", "Nothing to do.", true);
        }
        "NO_SOCKET" if to_many => {
            say("Multicast or broadcast without a receiver on this host.", "Nothing to do.", true);
        }
        "IP_INNOROUTES" if to_many && is("icmpv6") => {
            say("IPv6 is starting on the interface: no multicast route yet.", "Nothing to do.", true);
        }
        "NO_SOCKET"
            if is("tcp") && row.kind.as_ref().is_some_and(|kind| !kind.split(' ').any(|flag| flag == "SYN")) =>
        {
            say("It belongs to a closed connection.", "Nothing to do, unless a peer keeps sending.", true);
        }
        "NETFILTER_DROP" if flow.location == "nf_hook_slow" => {
            let own = flow.process.netns == sample.netns;
            match (own, sample.counters.conntrack_drops) {
                (true, Some(1..)) => say(
                    "The connection tracking table is full (conntrack_drops grew).",
                    "net.netfilter.nf_conntrack_max; trace_connections shows who opens the connections.",
                    false,
                ),
                (true, _) => {
                    say("A firewall rule (iptables) dropped it.", "`iptables-save -c`, `ip6tables-save -c`.", false)
                }
                (false, _) => say(
                    "A firewall rule (iptables) dropped it, or the connection tracking table of its namespace is full.",
                    "In that namespace: `iptables-save -c`; `cat /proc/net/stat/nf_conntrack`.",
                    false,
                ),
            }
        }
        "NETFILTER_DROP" => {
            let hook = match row.path {
                Some(Path::Input) => " on input",
                Some(Path::Output) => " on output",
                Some(Path::Forward) => " on forward",
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
pub type Erase = fn(&mut Dropped);

fn port(end: &mut Option<PartialEndpoint>) {
    if let Some(end) = end {
        end.port = None;
    }
}

fn address(end: &mut Option<PartialEndpoint>) {
    if let Some(end) = end {
        end.address = None;
    }
}

pub fn source_port(row: &mut Dropped) {
    port(&mut row.source);
}

/// A service's ports tell what fails; the higher port of two is the client's.
pub fn client_port(row: &mut Dropped) {
    let number = |end: &Option<PartialEndpoint>| end.as_ref().and_then(|end| end.port);
    if number(&row.source).is_some_and(|source| number(&row.destination).is_some_and(|port| port > source)) {
        port(&mut row.destination);
    }
}

/// Makes one row of those that differ only in an ephemeral port, or come from very many addresses.
fn merge_ports(rows: Vec<Dropped>) -> Vec<Dropped> {
    let steps: [(usize, Erase); 6] = [
        (1, |_| ()),
        (2, source_port),
        (2, client_port),
        (MANY, |row| port(&mut row.destination)),
        (MANY, |row| (port(&mut row.source), address(&mut row.source)).1),
        (MANY, |row| (port(&mut row.source), address(&mut row.destination)).1),
    ];
    steps.into_iter().fold(rows, |rows, (least, erase)| fold(rows, least, erase))
}

/// By what rows are the same.
pub fn key(row: Dropped) -> impl Ord {
    let Dropped { reason, location, protocol, kind, source, destination, interface, path, rule, owner, .. } = row;
    let Course { expired, returns, output, .. } = row.course;
    let course = (row.next_hop, expired, returns, output);
    (reason, location, protocol, kind, source, destination, interface, path, rule, owner, course)
}

fn fold(rows: Vec<Dropped>, least: usize, erase: Erase) -> Vec<Dropped> {
    let mut groups = BTreeMap::<_, Vec<Dropped>>::new();
    for row in rows {
        let mut alike = row.clone();
        erase(&mut alike);
        groups.entry(key(alike)).or_default().push(row);
    }
    let mut merged = Vec::new();
    for mut group in groups.into_values() {
        if group.len() < least {
            merged.append(&mut group);
        } else if let Some(mut row) = group.pop() {
            row.count += group.iter().map(|row| row.count).sum::<u64>();
            for other in &mut group {
                row.course.sources.append(&mut other.course.sources);
                row.course.destinations.append(&mut other.course.destinations);
            }
            if !group.is_empty() {
                erase(&mut row);
            }
            merged.push(row);
        }
    }
    merged
}
