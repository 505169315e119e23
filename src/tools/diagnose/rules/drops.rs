//! Packets that died in this host, and what that means.

use std::collections::BTreeSet;

use super::warning_from;
use crate::{
    answer::Owner,
    tools::diagnose::{
        evidence::{Connection, DroppedPackets, Evidence, Outcome, Query, common, groups, is_known},
        finding::{Code, Finding, HostPort, Severity, quoted},
    },
};

/// The first port that the kernel gives to clients (the default of net.ipv4.ip_local_port_range).
const CLIENT_PORTS: u16 = 32_768;
/// DNS. Resolvers that ask there take any port.
const DOMAIN: u16 = 53;

/// The service end of a packet: a local server, else the lower port.
pub(super) fn service(evidence: &Evidence, drop: &DroppedPackets) -> Option<HostPort> {
    let is_udp = drop.protocol == "udp";
    let serves = |end: &HostPort| match is_udp {
        true => evidence.receivers(*end, drop.owner.netns).any(|socket| socket.remote.is_none()),
        false => evidence.listener(*end, drop.owner.netns).is_some(),
    };
    // A merged port is one of many: a client's.
    let port = |end: &HostPort| end.port.unwrap_or(u16::MAX);
    // A client that does not connect its UDP socket receives like a server. Only its port shows what it is.
    let asks = |end: &HostPort, of: &HostPort| {
        let is_domain = port(of) == DOMAIN && port(end) != DOMAIN;
        is_udp && (is_domain || (port(of) < CLIENT_PORTS && port(end) >= CLIENT_PORTS))
    };
    match (drop.source, drop.destination) {
        (Some(source), Some(destination)) if serves(&source) == serves(&destination) => {
            Some(if port(&destination) <= port(&source) { destination } else { source })
        }
        (Some(source), Some(destination)) => {
            let (local, far) = if serves(&source) { (source, destination) } else { (destination, source) };
            Some(if asks(&local, &far) { far } else { local })
        }
        (source, destination) => destination.or(source),
    }
}

/// Whether the packet belongs to this host: a local sender, or a local service that a client wants to reach.
fn concerns_us(evidence: &Evidence, drop: &DroppedPackets) -> bool {
    /// Who only looks around sends one SYN to a port, or two; a client sends its own again after 1 s and 3 s. Of many
    /// sources the row names none.
    const INSISTS: u64 = 3;
    let ours = |end: Option<HostPort>| end.is_some_and(|end| evidence.is_ours(&end.address));
    let served = |end: HostPort| evidence.server(&drop.protocol, end, drop.owner.netns).is_some();
    let insists = drop.source.is_some() && drop.count >= INSISTS;
    let asked = |end: HostPort| {
        let waits = |query: &&Query| query.unanswered && is_known(&query.owner);
        evidence.queries.iter().filter(waits).filter_map(|query| query.server).any(|server| end.covers(&server.into()))
    };
    let wanted = drop.destination.is_some_and(|end| asked(end) || (insists && served(end)));
    is_known(&drop.owner) || ours(drop.source) || wanted
}

/// The owner of the packets: as the kernel reports it, else the server of their port, else the client that connects
/// there. All in the network namespace of the drop: another namespace cannot fix it.
fn party(evidence: &Evidence, rows: &[&DroppedPackets]) -> Owner {
    let said = whose(rows);
    if is_known(&said) {
        return said;
    }
    let mut ends = rows.iter().flat_map(|row| [row.destination, row.source].map(|end| (row, end)));
    let server = ends.find_map(|(row, end)| {
        let server = evidence.server(&row.protocol, end?, row.owner.netns)?;
        (server.netns == row.owner.netns).then_some(server)
    });
    let connects = |row: &DroppedPackets, c: &Connection| {
        let there = c.remote.map(HostPort::from).zip(row.destination).is_some_and(|(remote, at)| at.covers(&remote));
        c.outbound && c.owner.netns == row.owner.netns && there
    };
    let clients = || evidence.connections.iter().filter(|c| rows.iter().any(|row| connects(row, c)));
    let client = || Some(common(clients().map(|c| &c.owner))).filter(is_known);
    server.cloned().or_else(client).unwrap_or(said)
}

/// The finding's figures that all drops have.
pub(super) fn about(
    evidence: &Evidence,
    code: Code,
    severity: Severity,
    summary: String,
    rows: &[&DroppedPackets],
) -> Finding {
    let owner = party(evidence, rows);
    let interfaces: BTreeSet<_> = rows.iter().filter_map(|row| row.interface.as_ref()).collect();
    let first = rows[0];
    Finding::new(code, severity, summary)
        .owner(&owner)
        .with("packets", total(rows))
        .with("protocol", &first.protocol)
        .with("source", first.source)
        .with("destination", first.destination)
        .with("interfaces", (!interfaces.is_empty()).then_some(interfaces))
        .with("reason", &first.reason)
        .with("location", &first.location)
}

/// Whose packets they were.
pub(super) fn whose(rows: &[&DroppedPackets]) -> Owner {
    common(rows.iter().map(|row| &row.owner))
}

pub(super) fn total(rows: &[&DroppedPackets]) -> u64 {
    rows.iter().map(|row| row.count).sum()
}

/// The links of which packets tell already.
pub(super) fn seen_by_packets<'a>(
    evidence: &'a Evidence,
    drops: impl Iterator<Item = &'a DroppedPackets>,
) -> BTreeSet<&'a str> {
    let link = |drop: &DroppedPackets| evidence.link(drop.owner.netns, drop.interface.as_deref());
    drops.filter_map(link).map(|link| link.name.as_str()).collect()
}

/// Two lookups at the same time may clash (UDP: one is dropped and sent again); this many are not chance.
const CLASHES: u64 = 3;

/// Entries that could not be inserted since others are like them: of our own network namespace the counter is known, of
/// the others the largest.
pub(super) fn clashes(evidence: &Evidence, netns: Option<u32>) -> u64 {
    let ours = netns.is_some() && netns == evidence.netns;
    if ours { evidence.counters.conntrack_insert_failed } else { evidence.clashes }
}

/// Whether a packet died since its translation clashed with another one.
pub(super) fn is_clash(evidence: &Evidence, drop: &DroppedPackets) -> bool {
    is_of_tracking(drop) && clashes(evidence, drop.owner.netns) >= CLASHES
}

fn is_full_table(evidence: &Evidence, drop: &DroppedPackets) -> bool {
    // A rule's verdict is carried out in nft_do_chain or in nf_hook_slow; conntrack's own only in the latter, and then
    // its counter grows. That counter is of our own network namespace; of the others we know whether a table is full.
    let full = dropped_for_room(evidence) > 0 || evidence.conntrack_is_full;
    is_of_tracking(drop) && full && !is_clash(evidence, drop)
}

/// By a hook that gives no rule as its reason: tracking, translation, iptables.
pub(super) fn is_of_tracking(drop: &DroppedPackets) -> bool {
    drop.reason == "NETFILTER_DROP" && drop.location.starts_with("nf_hook_slow")
}

/// An entry that cannot be inserted since another one is like it is counted as a drop as well.
fn dropped_for_room(evidence: &Evidence) -> u64 {
    evidence.counters.conntrack_drops.saturating_sub(evidence.counters.conntrack_insert_failed)
}

/// The connection tracking table is full: new connections are dropped.
pub fn conntrack_full(evidence: &Evidence) -> Vec<Finding> {
    let rows: Vec<_> = evidence.drops.iter().filter(|drop| is_full_table(evidence, drop)).collect();
    let dropped = dropped_for_room(evidence).max(total(&rows));
    if dropped == 0 {
        return Vec::new();
    }
    let summary = format!("the connection tracking table is full: the kernel dropped {dropped} new connections");
    let finding = match rows.is_empty() {
        true => Finding::new(Code::ConntrackFull, Severity::Critical, summary),
        false => about(evidence, Code::ConntrackFull, Severity::Critical, summary, &rows),
    };
    let ends = rows.iter().flat_map(|row| [row.source, row.destination]).flatten().collect::<BTreeSet<_>>();
    let finding = ends.into_iter().fold(finding.with("conntrack_drops", dropped), Finding::at);
    vec![finding.step("sysctl net.netfilter.nf_conntrack_count net.netfilter.nf_conntrack_max")]
}

/// A rule of the packet filter drops packets of ours.
pub fn firewall_drop(evidence: &Evidence) -> Vec<Finding> {
    /// A client sends its SYN again after a second: a rule that matters drops more than one packet in a window.
    const PACKETS: u64 = 2;
    let rule = |drop: &&DroppedPackets| {
        drop.reason == "NETFILTER_DROP" && !is_full_table(evidence, drop) && !is_clash(evidence, drop)
    };
    let key = |drop: &DroppedPackets| (drop.protocol.clone(), service(evidence, drop), concerns_us(evidence, drop));
    let mut found = Vec::new();
    for ((protocol, service, ours), rows) in groups(evidence.drops.iter().filter(rule), key) {
        let count = total(&rows);
        // A firewall that keeps strangers from ports where nothing listens does its work.
        let severity = if ours { warning_from(count, PACKETS) } else { Severity::Info };
        let way = if rows[0].destination == service { "to" } else { "from" };
        let to = service.map_or_else(String::new, |end| format!(" {way} {end}"));
        let protocol = if protocol.is_empty() { protocol } else { format!("{protocol} ") };
        let does = if rejects(evidence, service) { "rejects" } else { "drops" };
        let summary = format!("a firewall rule {does} {protocol}packets{to}: {count} in the window");
        let rules: BTreeSet<_> = rows.iter().filter_map(|row| row.rule.as_ref()).collect();
        let finding = about(evidence, Code::FirewallDrop, severity, summary, &rows)
            .with("service", service)
            .with("rules", (!rules.is_empty()).then_some(rules));
        let finding = service.into_iter().fold(finding, Finding::at);
        found.push(finding.look_at("trace_drops", service.or(rows[0].destination)).step("nft list ruleset"));
    }
    found
}

/// Whether clients of the service get a rejection instead of a timeout.
fn rejects(evidence: &Evidence, service: Option<HostPort>) -> bool {
    let told = |c: &&Connection| matches!(c.outcome, Outcome::Refused | Outcome::Unreachable);
    let there = |c: &Connection| c.outbound && c.remote.map(HostPort::from) == service;
    service.is_some() && evidence.connections.iter().filter(told).any(there)
}

/// A process does not read its UDP socket as fast as datagrams arrive.
pub fn udp_receive_buffer_full(evidence: &Evidence) -> Vec<Finding> {
    /// A burst of a few may overrun a socket once.
    const DATAGRAMS: u64 = 5;
    let full = |drop: &&DroppedPackets| {
        drop.protocol == "udp" && matches!(drop.reason.as_str(), "SOCKET_RCVBUFF" | "PROTO_MEM" | "SOCKET_BACKLOG")
    };
    let mut found = Vec::new();
    // Several sockets may have joined a group, or share a port: the kernel names the one that had no room.
    for ((local, owner), rows) in
        groups(evidence.drops.iter().filter(full), |drop| (drop.destination, drop.owner.clone()))
    {
        let Some(local) = local else { continue };
        let count = total(&rows);
        let mut sockets = evidence.receivers(local, owner.netns);
        let socket = match owner.pid {
            Some(_) => sockets.find(|socket| socket.owner.pid == owner.pid),
            None => sockets.next().filter(|_| sockets.next().is_none()),
        };
        let mut finding =
            about(evidence, Code::UdpReceiveBufferFull, warning_from(count, DATAGRAMS), String::new(), &rows);
        if let Some(socket) = socket {
            finding = finding.owner(&socket.owner).with("receive_queue_bytes", socket.receive_queue_bytes);
        }
        let owner = socket.map(|s| s.owner.clone()).unwrap_or_else(|| whose(&rows));
        finding.summary = format!(
            "{} reads {local} too slowly: its receive buffer was full and {count} datagrams were dropped",
            quoted(&owner)
        );
        let finding = finding.with("local", local).at(local);
        found.push(
            finding
                .look(
                    "snapshot_sockets",
                    &[("protocol", "udp".into()), ("port", local.port.unwrap_or_default().to_string())],
                )
                .step("sysctl net.core.rmem_max  # the maximum of SO_RCVBUF"),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};
    use crate::tools::diagnose::evidence::{Counters, Listener, Socket};

    fn evidence(drops: Vec<DroppedPackets>) -> Evidence {
        Evidence { drops, ..quiet() }
    }

    #[test]
    fn firewall_drop_warns_for_own_services_and_addresses() {
        let drops = vec![drop_of("NETFILTER_DROP", "tcp", ("10.0.0.1", 80), 3)];
        let strangers = evidence(drops.clone());
        assert_eq!(told(&firewall_drop(&strangers)), [(Code::FirewallDrop, Severity::Info)]);
        let listeners = vec![Listener { local: Some(endpoint("0.0.0.0", 80)), ..Listener::default() }];
        let served = Evidence { listeners, ..strangers.clone() };
        assert_eq!(told(&firewall_drop(&served)), [(Code::FirewallDrop, Severity::Warning)]);
        let own_addresses = ["10.0.0.9".parse().unwrap()].into();
        let sent = Evidence { own_addresses, ..strangers };
        assert_eq!(told(&firewall_drop(&sent)), [(Code::FirewallDrop, Severity::Warning)]);
    }

    #[test]
    fn both_directions_of_one_service_are_one_finding() {
        let rule = |name: &str| Some(name.to_owned());
        let request = DroppedPackets {
            owner: owner("client", 7),
            rule: rule("inet t in"),
            ..drop_of("NETFILTER_DROP", "tcp", ("10.0.0.1", 80), 2)
        };
        let reply = DroppedPackets {
            source: request.destination,
            destination: request.source,
            rule: rule("inet t out"),
            ..request.clone()
        };
        let found = firewall_drop(&evidence(vec![request, reply]));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].evidence["rules"], serde_json::json!(["inet t in", "inet t out"]));
    }

    /// A resolver's UDP socket without a connection receives, as a server's does.
    #[test]
    fn service_of_a_datagram_is_not_the_client_that_waits_for_it() {
        let service_of = |from, to, local, remote| {
            let row = DroppedPackets { source: Some(from), ..drop_of("NETFILTER_DROP", "udp", ("10.0.0.53", 53), 3) };
            let row = DroppedPackets { destination: Some(to), ..row };
            let socket = Socket { local: Some(local), remote, ..Socket::default() };
            firewall_drop(&Evidence { sockets: vec![socket], ..evidence(vec![row]) })[0].evidence["service"]["port"]
                .clone()
        };
        let (client, any) = (endpoint("10.0.0.9", 47_688), endpoint("0.0.0.0", 47_688));
        let [dns, quic, tunnel] = [53, 443, 51_820].map(|port| endpoint("10.0.0.53", port));
        assert_eq!(service_of(client.into(), dns.into(), any, None), 53);
        assert_eq!(service_of(dns.into(), client.into(), any, None), 53, "its answer");
        assert_eq!(service_of(client.into(), quic.into(), client, Some(quic)), 443, "a connected socket");
        assert_eq!(service_of(client.into(), tunnel.into(), tunnel, None), 51_820, "a server at a client's port");
        let low = |port| endpoint("10.0.0.9", port);
        assert_eq!(service_of(low(2_048).into(), dns.into(), low(2_048), None), 53, "a resolver with a low port");
        assert_eq!(service_of(low(1_194).into(), client.into(), low(1_194), None), 1_194);
    }

    #[test]
    fn full_conntrack_table_is_not_a_firewall_drop() {
        let drops = vec![DroppedPackets {
            location: "nf_hook_slow+0xa0".into(),
            ..drop_of("NETFILTER_DROP", "tcp", ("10.0.0.1", 80), 9)
        }];
        let counters = Counters { conntrack_drops: 9, ..Counters::default() };
        let full = Evidence { counters, ..evidence(drops.clone()) };
        assert_eq!(told(&conntrack_full(&full)), [(Code::ConntrackFull, Severity::Critical)]);
        assert!(firewall_drop(&full).is_empty());
        assert!(conntrack_full(&evidence(drops)).is_empty());
    }

    #[test]
    fn full_udp_buffer_names_its_process() {
        let drops = vec![drop_of("SOCKET_RCVBUFF", "udp", ("10.0.0.1", 514), 40)];
        let sockets =
            vec![Socket { owner: owner("syslogd", 5), local: Some(endpoint("0.0.0.0", 514)), ..Socket::default() }];
        let found = udp_receive_buffer_full(&Evidence { sockets, ..evidence(drops) });
        assert_eq!(told(&found), [(Code::UdpReceiveBufferFull, Severity::Warning)]);
        assert_eq!(found[0].evidence["owner"]["process"], "syslogd");
    }

    #[test]
    fn firewall_drops_of_single_probes_are_info() {
        let listeners = vec![Listener { local: Some(endpoint("0.0.0.0", 22)), ..Listener::default() }];
        let knock = |count, address: &str| DroppedPackets {
            source: Some(endpoint(address, 40_000).into()),
            ..drop_of("NETFILTER_DROP", "tcp", ("10.0.0.1", 22), count)
        };
        let scanned = (1..9).map(|i| knock(1, &format!("192.0.2.{i}"))).collect();
        let judged = |drops| told(&firewall_drop(&Evidence { listeners: listeners.clone(), ..evidence(drops) }));
        assert_eq!(judged(scanned), [(Code::FirewallDrop, Severity::Info)]);
        assert_eq!(judged(vec![knock(4, "192.0.2.1")]), [(Code::FirewallDrop, Severity::Warning)], "it insists");
    }

    #[test]
    fn drop_before_a_listener_names_its_process() {
        let there = |process| Owner { netns: Some(3), ..owner(process, 5) };
        let row = DroppedPackets {
            owner: Owner { netns: Some(3), ..Owner::default() },
            ..drop_of("NETFILTER_DROP", "tcp", ("10.0.0.1", 80), 5)
        };
        let local = Some(endpoint("0.0.0.0", 80));
        let listeners = vec![Listener { owner: there("nginx"), local, ..Listener::default() }];
        let found = firewall_drop(&Evidence { listeners, ..evidence(vec![row]) });
        assert_eq!(found[0].evidence["owner"]["process"], "nginx");
    }
}
