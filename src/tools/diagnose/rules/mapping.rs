//! Address translation that has forgotten a connection.

use std::collections::BTreeSet;

use super::drops::total;
use crate::{
    answer::{Endpoint, Owner},
    tools::diagnose::{
        evidence::{Connection, DroppedPackets, Evidence, Outcome, Socket, groups},
        finding::{Code, Finding, HostPort, Severity, quoted},
    },
};

/// Packets of a client's connection in another network namespace that reached the translator's own address.
struct Lost<'a> {
    netns: u32,
    /// The translator's address and port.
    mapped: HostPort,
    remote: HostPort,
    row: &'a DroppedPackets,
    owners: BTreeSet<Owner>,
}

/// Packets come back to a translator, and it has no entry for them any more: nothing listens there, and they are refused.
pub fn nat_mapping_lost(evidence: &Evidence) -> Vec<Finding> {
    let lost = evidence.drops.iter().filter_map(|row| lost(evidence, row));
    let lost: Vec<_> = lost.collect();
    let mut found = Vec::new();
    for ((netns, remote), rows) in groups(&lost, |lost| (lost.netns, lost.remote)) {
        let packets = total(&rows.iter().map(|lost| lost.row).collect::<Vec<_>>());
        let owners: BTreeSet<_> = rows.iter().flat_map(|lost| lost.owners.iter().cloned()).collect();
        let Some(owner) = owners.first() else { continue };
        let mapped = rows[0].mapped;
        let summary = format!(
            "the translation of a connection of {} to {remote} is lost: {packets} packets from there came to {}, which has no \
             entry for them",
            quoted(owner),
            mapped.address
        );
        let finding = Finding::new(Code::NatMappingLost, Severity::Warning, summary)
            .owner(owner)
            .with("netns", netns)
            .with("translated_address", mapped)
            .with("remote", remote)
            .with("protocol", &rows[0].row.protocol)
            .with("packets", packets)
            .with("affects", (owners.len() > 1).then(|| owners.iter().skip(1).take(3).collect::<Vec<_>>()))
            .at(remote);
        found.push(
            rows.iter()
                .fold(finding, |finding, lost| finding.at(lost.mapped))
                .step("sysctl net.netfilter.nf_conntrack_tcp_timeout_established net.netfilter.nf_conntrack_udp_timeout_stream  # an idle connection is forgotten after so many seconds")
                .step("keepalives more often than that; and whether somebody flushed the entries, or the address changed"),
        );
    }
    found
}

fn lost<'a>(evidence: &Evidence, row: &'a DroppedPackets) -> Option<Lost<'a>> {
    let of = |protocol: &str, flags: &[&str]| {
        row.protocol == protocol && !row.kind.split(' ').any(|flag| flags.contains(&flag))
    };
    // A SYN belongs to no connection yet; a RST or FIN may come after the end of one.
    let is_stray = row.reason == "NO_SOCKET" && (of("tcp", &["SYN", "RST", "FIN"]) || of("udp", &[]));
    let (netns, remote, mapped) = (row.owner.netns?, row.source?, row.destination?);
    if !is_stray || remote.port.is_none() || talks(evidence, netns, &remote) {
        return None;
    }
    let there = |at: Option<Endpoint>| at.is_some_and(|at| remote.covers(&at.into()));
    let elsewhere = |owner: &Owner| owner.netns.is_some_and(|other| other != netns);
    let tcp = row.protocol == "tcp";
    let held = |s: &&Socket| s.tcp == tcp && !s.inbound && there(s.remote) && elsewhere(&s.owner);
    let was =
        |c: &&Connection| tcp && c.outbound && there(c.remote) && elsewhere(&c.owner) && was_established(c.outcome);
    let sockets = evidence.sockets.iter().filter(held).map(|socket| &socket.owner);
    let connections = evidence.connections.iter().filter(was).map(|connection| &connection.owner);
    let owners: BTreeSet<_> = sockets.chain(connections).cloned().collect();
    (!owners.is_empty()).then_some(Lost { netns, mapped, remote, row, owners })
}

fn was_established(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Established | Outcome::Lost)
}

/// Whether a program in the namespace itself talks to the remote: late packets may be its own.
fn talks(evidence: &Evidence, netns: u32, remote: &HostPort) -> bool {
    let is = |owner: &Owner, at: Option<Endpoint>| {
        owner.netns == Some(netns) && at.is_some_and(|at| remote.covers(&at.into()))
    };
    evidence.connections.iter().any(|c| is(&c.owner, c.remote))
        || evidence.sockets.iter().any(|s| is(&s.owner, s.remote))
        || evidence.talkers.iter().any(|t| is(&t.owner, t.remote))
        || evidence.queries.iter().any(|q| is(&q.owner, q.server))
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};

    fn at(netns: u32) -> Owner {
        Owner { netns: Some(netns), ..owner("client", netns) }
    }

    /// From 192.0.2.1:80 to the router's 10.0.0.1.
    fn stray(kind: &str) -> DroppedPackets {
        DroppedPackets {
            owner: Owner { netns: Some(7), ..Owner::default() },
            source: Some(endpoint("192.0.2.1", 80).into()),
            kind: kind.into(),
            ..drop_of("NO_SOCKET", "tcp", ("10.0.0.1", 40_000), 2)
        }
    }

    fn client(netns: u32) -> Socket {
        Socket {
            owner: at(netns),
            tcp: true,
            local: Some(endpoint("172.16.0.2", 40_000)),
            remote: Some(endpoint("192.0.2.1", 80)),
            ..Socket::default()
        }
    }

    fn judged(drop: DroppedPackets, sockets: Vec<Socket>) -> Vec<Finding> {
        nat_mapping_lost(&Evidence { drops: vec![drop], sockets, ..quiet() })
    }

    #[test]
    fn answer_that_reaches_the_translator_itself_has_lost_its_entry() {
        let found = judged(stray("PSH ACK"), vec![client(8)]);
        assert_eq!(told(&found), [(Code::NatMappingLost, Severity::Warning)]);
        assert_eq!((&found[0].evidence["netns"], &found[0].evidence["owner"]["netns"]), (&7.into(), &8.into()));
    }

    #[test]
    fn late_packets_of_ones_own_connections_are_no_loss() {
        assert!(judged(stray("PSH ACK"), vec![]).is_empty(), "nobody talks to it");
        assert!(judged(stray("PSH ACK"), vec![client(7)]).is_empty(), "its own");
        assert!(judged(stray("PSH ACK"), vec![client(7), client(8)]).is_empty(), "may be its own");
        assert!(judged(stray("SYN"), vec![client(8)]).is_empty(), "a scan");
        assert!(judged(stray("RST"), vec![client(8)]).is_empty(), "the end of one");
        let served = Socket { inbound: true, ..client(8) };
        assert!(judged(stray("PSH ACK"), vec![served]).is_empty(), "it is asked, and asks nobody");
    }
}
