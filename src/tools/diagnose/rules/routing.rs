//! Packets that routes send astray: refused since the way back differs, or sent in a circle until their hops are used up.

use std::{collections::BTreeSet, net::IpAddr};

use super::drops::{about, total};
use crate::answer::count;
use crate::tools::diagnose::{
    evidence::{DroppedPackets, Evidence, Outcome, groups},
    finding::{Code, Finding, HostPort, Severity},
};

/// The filter of sources refuses packets of a conversation: the route to their source leads elsewhere.
pub fn reverse_path_filter(evidence: &Evidence) -> Vec<Finding> {
    let filtered = evidence.drops.iter().filter(|drop| drop.reason == "IP_RPFILTER");
    let place =
        |drop: &DroppedPackets| (drop.owner.netns, drop.interface.clone(), drop.source.map(|source| source.address));
    let mut found = Vec::new();
    for ((_, interface, source), rows) in groups(filtered, place) {
        // The filter exists to drop forged sources: only real conversations count.
        let converses = rows.iter().any(|row| is_conversation(evidence, row));
        let severity = if converses { Severity::Warning } else { Severity::Info };
        let from = source.map_or_else(|| "several sources".into(), |source| source.to_string());
        let on = interface.as_ref().map_or_else(|| "an interface".into(), String::clone);
        let summary = format!(
            "the reverse-path filter of {on} dropped {} from {from}: the route back uses another interface",
            count(total(&rows), "packet", "packets")
        );
        let back = rows.iter().find_map(|row| row.course.route_back.as_ref());
        let finding = about(evidence, Code::ReversePathFilter, severity, summary, &rows)
            .with("interface", &interface)
            .with("route_back", back);
        let ends = rows.iter().flat_map(|row| [row.source, row.destination]).flatten().collect::<BTreeSet<_>>();
        let finding = ends.into_iter().fold(finding, Finding::at);
        let finding =
            source.into_iter().fold(finding, |f, source| f.at(source).step(&format!("ip route get {source}")));
        found.push(finding.step(&format!(
            "sysctl net.ipv4.conf.all.rp_filter net.ipv4.conf.{}.rp_filter  # 1 requires the same interface, 2 allows \
                any",
            interface.filter(|name| crate::untrusted::is_plain(name)).unwrap_or_else(|| "default".into())
        )));
    }
    found
}

/// Whether a local socket waits for the dropped packet.
fn is_conversation(evidence: &Evidence, drop: &DroppedPackets) -> bool {
    /// A forger has no reason to use a source twice; a real client sends again.
    const INSISTS: u64 = 3;
    let (Some(source), Some(destination)) = (drop.source, drop.destination) else {
        return drop.course.sources.iter().any(|source| asks(evidence, drop, (*source).into()));
    };
    let pings = drop.kind == "echo request" && evidence.is_ours(&destination.address);
    let served = || pings || evidence.server(&drop.protocol, destination, drop.owner.netns).is_some();
    asks(evidence, drop, source) || (drop.count >= INSISTS && (evidence.is_ours(&source.address) || served()))
}

/// Whether a local socket waits for packets from `source`.
fn asks(evidence: &Evidence, drop: &DroppedPackets, source: HostPort) -> bool {
    let there = |remote: Option<crate::answer::Endpoint>| remote.is_some_and(|remote| source.covers(&remote.into()));
    let here = |local: Option<crate::answer::Endpoint>| {
        drop.destination.zip(local).is_none_or(|(at, local)| at.port.is_none() || at.port == Some(local.port))
    };
    let waits = evidence.connections.iter().filter(|c| c.outbound && c.outcome != Outcome::Established);
    waits.into_iter().any(|c| there(c.remote) && here(c.local))
        || evidence.sockets.iter().any(|socket| there(socket.remote) && here(socket.local))
        || evidence.queries.iter().any(|query| query.unanswered && there(query.server))
}

/// Routes lead in a circle: what is sent there goes round until its hops are used up.
pub fn routing_loop(evidence: &Evidence) -> Vec<Finding> {
    let expired = evidence.drops.iter().filter(|drop| drop.course.expired);
    let mut found = Vec::new();
    for (address, rows) in groups(expired, |drop| drop.destination.map(|end| end.address)) {
        let circles = circles(evidence, address, &rows);
        let severity = if circles { Severity::Warning } else { Severity::Info };
        let to = address.map_or_else(|| "several addresses".into(), |address| address.to_string());
        let count = total(&rows);
        let summary = match circles {
            true => format!("routing loop for packets to {to}: the TTL (hop limit) of {count} expired here"),
            false => {
                format!("the TTL (hop limit) of {count} packets to {to} expired here: a traceroute, or a routing loop")
            }
        };
        let interfaces: BTreeSet<_> =
            rows.iter().flat_map(|row| [&row.interface, &row.course.output]).flatten().collect();
        let gateways: BTreeSet<_> = rows.iter().filter_map(|row| row.next_hop).collect();
        let routers: BTreeSet<_> = rows.iter().filter_map(|row| row.owner.netns).collect();
        let finding = about(evidence, Code::RoutingLoop, severity, summary, &rows)
            .with("interfaces", interfaces)
            .with("next_hops", gateways)
            .with("routers", routers);
        let all: BTreeSet<IpAddr> = rows.iter().flat_map(|row| row.course.destinations.clone()).collect();
        let finding = all.into_iter().chain(address).fold(finding, Finding::at);
        found.push(finding.step(&match address {
            Some(address) => format!("ip route get {address}  # at each router of the loop"),
            None => "ip route show  # at each router of the loop".into(),
        }));
    }
    found
}

/// A traceroute makes a router drop a few packets of each of its rounds; a loop kills all that is sent.
fn circles(evidence: &Evidence, address: Option<IpAddr>, rows: &[&DroppedPackets]) -> bool {
    /// Probes of one traceroute for one router.
    const PROBES: u64 = 3;
    /// More packets a second than any traceroute sends to one router (mtr sends one).
    const STEADY: f64 = 4.0;
    let there = |remote: Option<crate::answer::Endpoint>| remote.map(|remote| remote.address) == address;
    let to = || evidence.connections.iter().filter(|c| c.outbound && there(c.remote));
    if address.is_some() && to().any(|c| matches!(c.outcome, Outcome::Established | Outcome::Refused)) {
        return false; // some get through
    }
    // A router sends them back where they came from.
    let back: u64 = rows.iter().filter(|row| row.course.returns).map(|row| row.count).sum();
    // The connects that hang are these packets: the same ports, and no fewer tries than a kernel makes.
    let dies = |local: crate::answer::Endpoint| {
        rows.iter().any(|row| row.protocol == "tcp" && row.source.is_some_and(|source| source.covers(&local.into())))
    };
    let hangs = to().any(|c| (c.hangs() || c.outcome == Outcome::Unreachable) && c.local.is_some_and(dies));
    back > PROBES || hangs || total(rows) as f64 >= STEADY * evidence.window.as_secs_f64().max(1.0)
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};
    use crate::tools::diagnose::evidence::{Connection, Socket};
    use crate::tools::trace_drops::Course;

    fn evidence(drops: Vec<DroppedPackets>) -> Evidence {
        Evidence { drops, ..quiet() }
    }

    fn expired(count: u64, returns: bool) -> DroppedPackets {
        let destinations = ["192.0.2.7".parse().unwrap()].into();
        let course = Course { expired: true, returns, destinations, output: Some("wan".into()), ..Course::default() };
        DroppedPackets {
            interface: Some("lan".into()),
            course,
            ..drop_of("IP_INHDR", "udp", ("192.0.2.7", 4_433), count)
        }
    }

    fn judged(drops: Vec<DroppedPackets>) -> Severity {
        told(&routing_loop(&evidence(drops)))[0].1
    }

    #[test]
    fn packets_returned_to_their_interface_are_a_loop() {
        let found = routing_loop(&evidence(vec![expired(9, true)]));
        assert_eq!(told(&found), [(Code::RoutingLoop, Severity::Warning)]);
        assert_eq!(found[0].evidence["interfaces"], serde_json::json!(["lan", "wan"]));
    }

    #[test]
    fn traceroute_is_not_a_loop() {
        assert_eq!(judged(vec![expired(3, true)]), Severity::Info, "through a router on a stick");
        assert_eq!(judged(vec![expired(10, false)]), Severity::Info, "mtr for 10 s");
        assert_eq!(judged(vec![expired(300, false)]), Severity::Warning, "all of a conversation");
    }

    #[test]
    fn connect_with_expired_hops_is_in_a_loop() {
        let dies = DroppedPackets { protocol: "tcp".into(), ..expired(3, false) };
        let connections = vec![Connection { retransmits: 2, ..connection("192.0.2.7", 443, Outcome::Unanswered) }];
        let waiting = Evidence { connections, ..evidence(vec![dies.clone()]) };
        assert_eq!(told(&routing_loop(&waiting)), [(Code::RoutingLoop, Severity::Warning)]);
        let connections = vec![connection("192.0.2.7", 443, Outcome::Established)];
        let traced = Evidence { connections, ..evidence(vec![DroppedPackets { count: 30, ..dies }]) };
        assert_eq!(told(&routing_loop(&traced)), [(Code::RoutingLoop, Severity::Info)], "others get through");
    }

    fn filtered(count: u64) -> DroppedPackets {
        let source = Some(endpoint("10.1.0.1", 40_000).into());
        let course = Course { route_back: Some("dev eth0".into()), ..Course::default() };
        DroppedPackets { source, course, ..drop_of("IP_RPFILTER", "udp", ("10.0.0.1", 514), count) }
    }

    #[test]
    fn reverse_path_drops_of_spoofed_sources_are_info() {
        assert_eq!(
            told(&reverse_path_filter(&evidence(vec![filtered(50)]))),
            [(Code::ReversePathFilter, Severity::Info)]
        );
        let receivers = vec![Socket { local: Some(endpoint("0.0.0.0", 514)), ..Socket::default() }];
        let served = |count| Evidence { sockets: receivers.clone(), ..evidence(vec![filtered(count)]) };
        assert_eq!(told(&reverse_path_filter(&served(1))), [(Code::ReversePathFilter, Severity::Info)]);
        assert_eq!(
            told(&reverse_path_filter(&served(3))),
            [(Code::ReversePathFilter, Severity::Warning)],
            "it insists"
        );
        assert_eq!(reverse_path_filter(&served(3))[0].evidence["route_back"], "dev eth0");
    }

    #[test]
    fn filtered_answer_warns_at_once() {
        let answer = DroppedPackets {
            source: Some(endpoint("192.0.2.7", 443).into()),
            ..drop_of("IP_RPFILTER", "tcp", ("10.0.0.9", 40_000), 1)
        };
        let connections = vec![connection("192.0.2.7", 443, Outcome::Unanswered)];
        let found = reverse_path_filter(&Evidence { connections, ..evidence(vec![answer]) });
        assert_eq!(told(&found), [(Code::ReversePathFilter, Severity::Warning)]);
    }
}
