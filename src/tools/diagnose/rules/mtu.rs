//! Packets that are too big for a link on their way.

use std::{collections::BTreeSet, net::IpAddr};

use super::drops::{about, total};
use crate::tools::diagnose::{
    evidence::{Connection, DroppedPackets, Evidence, Outcome, Socket, TcpPath, groups},
    finding::{Code, Finding, HostPort, Severity, quoted},
};

/// Packets too big for the next link die, and their sender does not learn it.
pub fn mtu_black_hole(evidence: &Evidence) -> Vec<Finding> {
    let mut found = too_big(evidence);
    let told: BTreeSet<_> = found.iter().flat_map(|f: &Finding| f.places.iter().map(|place| place.address)).collect();
    found.extend(swallowed(evidence).filter(|finding| finding.places.iter().all(|at| !told.contains(&at.address))));
    found
}

/// They die on this host.
fn too_big(evidence: &Evidence) -> Vec<Finding> {
    /// The first packet that is too big tells the sender the path's MTU; it then sends smaller ones. A sender that
    /// continues did not get the ICMP message.
    const PACKETS: u64 = 3;
    let too_big = evidence.drops.iter().filter(|drop| drop.reason == "PKT_TOO_BIG");
    let mut found = Vec::new();
    // Not by the port of the sender: of many connections some rows have none.
    let ends = |drop: &DroppedPackets| (drop.source.map(|source| source.address), drop.destination);
    for ((source, destination), rows) in groups(too_big, ends) {
        let (Some(address), Some(destination)) = (source, destination) else { continue };
        let one = rows[0].source.filter(|_| rows.iter().all(|drop| drop.source == rows[0].source));
        let source = one.unwrap_or(HostPort { address, port: None });
        // Whose connection hangs for long tries once a minute or two: what it tried before counts.
        let hangs = |s: &&Socket| {
            let local =
                s.local.is_some_and(|local| local.address == address && source.port.is_none_or(|p| p == local.port));
            s.send_queue_bytes > 0 && local && s.remote.map(HostPort::from) == Some(destination)
        };
        let before: u64 = evidence.sockets.iter().filter(hangs).map(|socket| socket.retransmits).sum();
        let count = total(&rows);
        if count.max(before) < PACKETS {
            continue;
        }
        let summary = format!(
            "packets from {source} to {destination} exceed the MTU of a link on the path, and {source} keeps sending \
                them: {count} were dropped"
        );
        let finding = about(evidence, Code::MtuBlackHole, Severity::Warning, summary, &rows).at(source).at(destination);
        found.push(sizes(finding, destination.address));
    }
    found
}

/// Full segments are dropped elsewhere, without an ICMP message: they are retransmitted again and again, while small
/// ones pass. If this host drops packets to that remote, that is the cause instead.
fn swallowed(evidence: &Evidence) -> impl Iterator<Item = Finding> {
    /// What a connection sends that is sent in full segments, for the most part.
    const FULL: u64 = 4_000;
    let dies_here = |address: IpAddr| {
        let fault = ["NETFILTER_DROP", "NOT_SPECIFIED", "QDISC_", "TC_", "XDP"];
        let mut there =
            evidence.drops.iter().filter(move |drop| drop.destination.is_some_and(|at| at.address == address));
        there.any(|drop| fault.iter().any(|reason| drop.reason.starts_with(reason)))
    };
    let passes = |row: &TcpPath, address: IpAddr| {
        let reached = |c: &&Connection| c.remote.is_some_and(|remote| remote.address == address);
        row.hears || evidence.connections.iter().filter(reached).any(|c| c.outcome == Outcome::Established)
    };
    // What is as big arrives there by another connection.
    let takes_full = |address: IpAddr| {
        let closed = |c: &Connection| c.arrived >= FULL && c.remote.is_some_and(|remote| remote.address == address);
        evidence.remotes.iter().any(|row| row.passes_full && row.remote == Some(address))
            || evidence.connections.iter().any(closed)
    };
    evidence.remotes.iter().filter(|row| row.stuck > 0).filter_map(move |row| {
        let fits = |address: &IpAddr| passes(row, *address) && !dies_here(*address) && !takes_full(*address);
        let address = row.remote.filter(fits)?;
        let place = HostPort { address, port: row.port };
        let summary = format!(
            "{place} never acknowledges full segments from {}, but small ones pass: a link on the path has a smaller MTU",
            quoted(&row.owner)
        );
        let finding = Finding::new(Code::MtuBlackHole, Severity::Warning, summary)
            .owner(&row.owner)
            .with("destination", place)
            .with("stuck_connections", row.stuck)
            .with("retransmits", row.retransmits)
            .with("segments_out", row.segments_out)
            .at(place);
        Some(sizes(finding, address))
    })
}

/// How to find the size that passes.
fn sizes(finding: Finding, destination: IpAddr) -> Finding {
    /// Of an Ethernet frame: what is left for data behind the headers of IP and ICMP.
    const ETHERNET: u32 = 1_500;
    let size = ETHERNET - if destination.is_ipv4() { 20 + 8 } else { 40 + 8 };
    finding.step(&format!(
        "ping -M do -s {size} {destination}  # find the largest size that passes; allow ICMP \"fragmentation needed\" \
            and \"packet too big\""
    ))
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};

    #[test]
    fn ping_fills_an_ethernet_frame_of_either_family() {
        for (address, size) in [("192.0.2.1", "-s 1472 "), ("2001:db8::1", "-s 1452 ")] {
            let finding =
                sizes(Finding::new(Code::MtuBlackHole, Severity::Warning, String::new()), address.parse().unwrap());
            assert!(finding.next_step.contains(size), "{}", finding.next_step);
        }
    }

    fn evidence(drops: Vec<DroppedPackets>) -> Evidence {
        Evidence { drops, ..quiet() }
    }

    #[test]
    fn rows_with_and_without_sender_port_merge() {
        let row = |port| DroppedPackets {
            source: Some(HostPort { address: [10, 0, 0, 2].into(), port }),
            ..drop_of("PKT_TOO_BIG", "tcp", ("10.0.0.1", 80), 4)
        };
        let found = mtu_black_hole(&evidence(vec![row(None), row(Some(40_000))]));
        assert_eq!(told(&found), [(Code::MtuBlackHole, Severity::Warning)]);
    }

    #[test]
    fn single_too_big_packet_is_pmtu_discovery() {
        let judged = |count| mtu_black_hole(&evidence(vec![drop_of("PKT_TOO_BIG", "tcp", ("10.0.0.1", 80), count)]));
        assert!(judged(1).is_empty());
        assert_eq!(told(&judged(4)), [(Code::MtuBlackHole, Severity::Warning)]);
    }

    #[test]
    fn mtu_black_hole_needs_a_live_peer() {
        let remote = Some("10.0.0.1".parse().unwrap());
        let row = TcpPath { remote, port: Some(80), stuck: 2, retransmits: 8, segments_out: 8, ..TcpPath::default() };
        let with = |hears| Evidence { remotes: vec![TcpPath { hears, ..row.clone() }], ..quiet() };
        assert!(mtu_black_hole(&with(false)).is_empty(), "nothing passes");
        assert_eq!(told(&mtu_black_hole(&with(true))), [(Code::MtuBlackHole, Severity::Warning)]);
        let connections = vec![connection("10.0.0.1", 80, Outcome::Established)];
        let reached = Evidence { connections, ..with(false) };
        assert_eq!(told(&mtu_black_hole(&reached)), [(Code::MtuBlackHole, Severity::Warning)]);
        let closed = Connection { arrived: 4_096, ..connection("10.0.0.1", 443, Outcome::Established) };
        let elsewhere = Evidence { connections: vec![closed], ..with(true) };
        assert!(mtu_black_hole(&elsewhere).is_empty(), "4 kB arrive by another connection");
        let open = TcpPath { remote, port: Some(443), passes_full: true, ..TcpPath::default() };
        let remotes = vec![TcpPath { hears: true, ..row.clone() }, open];
        assert!(mtu_black_hole(&Evidence { remotes, ..quiet() }).is_empty(), "so they do by one that is open");
        let drops = vec![drop_of("NETFILTER_DROP", "tcp", ("10.0.0.1", 80), 8)];
        assert!(mtu_black_hole(&Evidence { drops, ..with(true) }).is_empty(), "a firewall's work");
    }
}
