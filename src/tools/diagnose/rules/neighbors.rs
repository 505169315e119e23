//! Next hops that do not answer ARP or neighbor discovery: a host on the link, or the router to everything behind it.

use std::{collections::BTreeSet, net::IpAddr};

use super::drops::{about, total};
use crate::answer::count;
use crate::tools::diagnose::{
    evidence::{DroppedPackets, Evidence, common, groups, is_known},
    finding::{Code, Finding, Severity, quoted},
};

/// Addresses that a finding names; more of them say no more.
const NAMED: usize = 3;

/// The kernel asked for a link-layer address in vain.
fn failed(drop: &DroppedPackets) -> bool {
    // IPv6 gives a failed neighbour no reason of its own.
    let at = |function: &&str| drop.location.starts_with(function);
    drop.reason == "NEIGH_FAILED" || ["ndisc_error_report", "arp_error_report", "neigh_invalidate"].iter().any(at)
}

fn waits(drop: &&DroppedPackets) -> bool {
    drop.reason.starts_with("NEIGH_") || failed(drop)
}

/// Whether traffic of this host needs the next hop.
fn is_missed(evidence: &Evidence, rows: &[&DroppedPackets]) -> bool {
    // Answers to forged sources of a flood are not needed.
    let answers = |row: &DroppedPackets, source| evidence.server("tcp", source, row.owner.netns).is_some();
    let asked = |row: &DroppedPackets| row.protocol != "tcp" || !row.source.is_some_and(|source| answers(row, source));
    // Who scans a network makes its router ask for hosts that never were.
    let sent =
        |row: &DroppedPackets| row.sent_here || row.source.is_some_and(|source| evidence.is_ours(&source.address));
    let ours = |row: &DroppedPackets| asked(row) && (is_known(&row.owner) || sent(row));
    // A queue that overflows while a neighbour is asked for the first time is a burst.
    rows.iter().any(|row| ours(row)) && rows.iter().any(|row| failed(row))
}

/// The router of a route that is in use does not answer. It is one fault, whatever is behind it.
pub fn gateway_unreachable(evidence: &Evidence) -> Vec<Finding> {
    let behind = evidence.drops.iter().filter(waits).filter(|drop| drop.next_hop.is_some());
    let place = |drop: &DroppedPackets| (drop.owner.netns, drop.interface.clone(), drop.next_hop);
    let mut found = Vec::new();
    for ((_, interface, gateway), rows) in groups(behind, place) {
        let Some(gateway) = gateway else { continue };
        // A router between a client and its gateway does not count: it forwards strangers' packets.
        let severity = if is_missed(evidence, &rows) { Severity::Warning } else { Severity::Info };
        let destinations: BTreeSet<IpAddr> = rows.iter().flat_map(|row| row.course.destinations.clone()).collect();
        let on = interface.as_ref().map_or_else(String::new, |interface| format!(" on {interface}"));
        let asked = if gateway.is_ipv4() { "ARP" } else { "neighbor discovery" };
        let summary = format!(
            "gateway {gateway}{on} does not answer {asked}, so the kernel dropped {} to {} behind it",
            count(total(&rows), "packet", "packets"),
            count(destinations.len() as u64, "address", "addresses"),
        );
        let finding = about(evidence, Code::GatewayUnreachable, severity, summary, &rows)
            .with("gateway", gateway)
            .with("destinations", destinations.len())
            .with("destinations_named", destinations.iter().take(NAMED).collect::<Vec<_>>());
        let finding = destinations.into_iter().fold(finding.at(gateway), Finding::at);
        found.push(
            finding
                .step(&format!("ip neigh show {gateway}"))
                .step("ip route show  # check the routes to it; is the gateway up, on this link and VLAN?"),
        );
    }
    found
}

/// Nobody answers ARP or neighbour discovery for a host on the link.
pub fn neighbor_unreachable(evidence: &Evidence) -> Vec<Finding> {
    let on_link = evidence.drops.iter().filter(waits).filter(|drop| drop.next_hop.is_none());
    let mut found = Vec::new();
    for (address, rows) in groups(on_link, |drop| drop.destination.map(|end| end.address)) {
        let severity = if is_missed(evidence, &rows) { Severity::Warning } else { Severity::Info };
        let to = address.map_or_else(|| "a neighbor".into(), |address| address.to_string());
        let summary = format!(
            "no neighbor answers for {to}: the kernel dropped {} that waited for its link-layer address",
            count(total(&rows), "packet", "packets")
        );
        let finding = about(evidence, Code::NeighborUnreachable, severity, summary, &rows);
        let finding = address.into_iter().fold(finding, Finding::at);
        found.push(next_hop(finding, &to));
    }
    let seen = evidence.drops.iter().filter(waits).flat_map(|drop| &drop.course.destinations);
    let places = found.iter().flat_map(|finding: &Finding| &finding.places).map(|place| &place.address);
    let told: BTreeSet<IpAddr> = seen.chain(places).copied().collect();
    found.extend(unreached(evidence).into_iter().filter(|finding| !told.contains(&finding.places[0].address)));
    found
}

/// Connects that failed with that error, without a traced drop: over IPv6 the kernel keeps the SYN for the next try.
fn unreached(evidence: &Evidence) -> Vec<Finding> {
    let mut found = Vec::new();
    for (remote, rows) in groups(evidence.connections.iter().filter(|c| c.outbound && c.no_neighbor()), |c| c.remote) {
        let Some(remote) = remote else { continue };
        let owner = common(rows.iter().map(|row| &row.owner));
        let summary = format!(
            "the next hop from {} to {remote} does not answer: {} failed",
            quoted(&owner),
            count(rows.len() as u64, "connect", "connects")
        );
        let finding = Finding::new(Code::NeighborUnreachable, Severity::Warning, summary)
            .owner(&owner)
            .with("packets", rows.len())
            .with("protocol", "tcp")
            .with("destination", remote)
            .with("errno", &rows[0].errno)
            .at(remote.address);
        found.push(next_hop(finding, &remote.address.to_string()));
    }
    found
}

fn next_hop(finding: Finding, to: &str) -> Finding {
    finding
        .step(&format!("ip route get {to}"))
        .step("ip neigh show nud failed  # is the next hop listed, and is it on that link?")
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};
    use crate::tools::diagnose::evidence::{Connection, Listener, Outcome};
    use crate::tools::trace_drops::Course;

    fn evidence(drops: Vec<DroppedPackets>) -> Evidence {
        Evidence { drops, ..quiet() }
    }

    fn behind(gateway: &str, destinations: &[&str]) -> DroppedPackets {
        let all = destinations.iter().map(|address| address.parse().unwrap()).collect();
        DroppedPackets {
            owner: owner("client", 7),
            next_hop: Some(gateway.parse().unwrap()),
            interface: Some("eth0".into()),
            course: Course { destinations: all, ..Course::default() },
            ..drop_of("NEIGH_FAILED", "tcp", (destinations[0], 80), 3)
        }
    }

    #[test]
    fn gateway_is_one_finding_for_all_destinations() {
        let drops = vec![behind("10.0.0.254", &["192.0.2.1", "192.0.2.2"]), behind("10.0.0.254", &["192.0.2.3"])];
        let connections: Vec<_> = (1..4)
            .map(|i| Connection { retransmits: 2, ..connection(&format!("192.0.2.{i}"), 443, Outcome::Unanswered) })
            .collect();
        let evidence = Evidence { connections, ..evidence(drops) };
        assert!(neighbor_unreachable(&evidence).is_empty());
        let mut heard = crate::tools::diagnose::heard::Heard::default();
        crate::tools::diagnose::asked::ASKED.iter().for_each(|asked| heard.insert(asked.name, true));
        let (found, _) = super::super::judge(&evidence, &heard);
        assert_eq!(told(&found), [(Code::GatewayUnreachable, Severity::Warning)], "{found:#?}");
        assert_eq!(found[0].evidence["gateway"], "10.0.0.254");
        assert_eq!(found[0].evidence["explains"], serde_json::json!(["connect_timeout"]));
        assert!(
            found[0].summary.contains("9 packets") || found[0].summary.contains("6 packets"),
            "{}",
            found[0].summary
        );
    }

    #[test]
    fn two_gateways_are_two_findings() {
        let drops = vec![behind("10.0.0.254", &["192.0.2.1"]), behind("fe80::1", &["2001:db8::1"])];
        let found = gateway_unreachable(&evidence(drops));
        assert_eq!(found.len(), 2);
        assert!(found.iter().any(|finding| finding.summary.contains("neighbor discovery")));
    }

    #[test]
    fn gateway_used_only_by_strangers_is_info() {
        let strangers = DroppedPackets { owner: Default::default(), ..behind("10.0.0.254", &["192.0.2.1"]) };
        assert_eq!(
            told(&gateway_unreachable(&evidence(vec![strangers]))),
            [(Code::GatewayUnreachable, Severity::Info)]
        );
    }

    #[test]
    fn unreachable_neighbor_of_own_packets_warns() {
        let drops =
            vec![DroppedPackets { owner: owner("client", 7), ..drop_of("NEIGH_FAILED", "tcp", ("10.0.0.50", 80), 3) }];
        assert_eq!(told(&neighbor_unreachable(&evidence(drops))), [(Code::NeighborUnreachable, Severity::Warning)]);
        let scanned = vec![drop_of("NEIGH_FAILED", "tcp", ("10.0.0.50", 80), 3)];
        assert_eq!(told(&neighbor_unreachable(&evidence(scanned))), [(Code::NeighborUnreachable, Severity::Info)]);
    }

    #[test]
    fn replies_to_spoofed_sources_are_info() {
        let listeners = vec![Listener { local: Some(endpoint("10.0.0.1", 80)), ..Listener::default() }];
        let source = Some(endpoint("10.0.0.1", 80).into());
        let drops = vec![DroppedPackets { source, ..drop_of("NEIGH_FAILED", "tcp", ("10.0.0.50", 999), 50) }];
        let own_addresses = ["10.0.0.1".parse().unwrap()].into();
        let flooded = Evidence { listeners, own_addresses, ..evidence(drops) };
        assert_eq!(told(&neighbor_unreachable(&flooded)), [(Code::NeighborUnreachable, Severity::Info)]);
    }
}
