//! "Nobody listens here", by TCP and by UDP.

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    connect::{by_target, other_family_works, outbound, successes, to_target},
    warning_from,
};
use crate::{
    answer::{Endpoint, Owner},
    tools::diagnose::{
        evidence::{Connection, Evidence, Outcome, common, groups, program},
        finding::{Code, Finding, HostPort, Severity, quoted},
    },
};

/// Connects or datagrams that were refused: nothing listens.
pub fn connection_refused(evidence: &Evidence) -> Vec<Finding> {
    /// One refusal is a restarting service, two are a retry; three refusals are a fault.
    const REFUSALS: u64 = 3;
    let refused: Vec<_> = outbound(evidence).filter(|c| c.outcome == Outcome::Refused).collect();
    let (scanners, mut found) = scans(&refused);
    let by_others = refused.into_iter().filter(|c| !scanners.contains(&scan_key(c)));
    found.extend(by_target(by_others).into_iter().filter_map(|(key, rows)| {
        let remote = key.1?;
        let owner = common(rows.iter().map(|row| &row.owner));
        let fallback = other_family_works(evidence, &key);
        let severity = if fallback { Severity::Info } else { warning_from(rows.len() as u64, REFUSALS) };
        let ours = evidence.is_ours(&remote.address);
        let listening = ours.then(|| evidence.listener(remote, owner.netns).is_some());
        let summary = format!(
            "{remote} refused {} {} times: nothing listens there, or a firewall rejects it",
            quoted(&owner),
            rows.len()
        );
        let finding = Finding::new(Code::ConnectionRefused, severity, summary)
            .owner(&owner)
            .with("protocol", "tcp")
            .with("refused", rows.len())
            .with("established", successes(evidence, &key))
            .with("listening_here", listening);
        let finding = to_target(finding, remote);
        Some(if ours {
            finding.look("snapshot_sockets", &[("state", "listen".into()), ("port", remote.port.to_string())])
        } else {
            finding
        })
    }));
    found.extend(udp_refused(evidence));
    found
}

type ScanKey = (Owner, Option<IpAddr>);

fn scan_key(connection: &Connection) -> ScanKey {
    (program(&connection.owner), connection.remote.map(|remote| remote.address))
}

/// Who tries many closed ports of one host, hardly any twice, looks around; nothing is broken.
fn scans(refused: &[&Connection]) -> (BTreeSet<ScanKey>, Vec<Finding>) {
    /// A client with several services has a handful of ports, and comes back to each.
    const PORTS: usize = 8;
    const TRIES_A_PORT: usize = 2;
    let mut found = Vec::new();
    let mut scanners = BTreeSet::new();
    for (key, rows) in groups(refused.iter().copied(), scan_key) {
        let ports: BTreeSet<_> = rows.iter().filter_map(|row| row.remote).map(|remote| remote.port).collect();
        if ports.len() < PORTS || rows.len() > ports.len() * TRIES_A_PORT {
            continue;
        }
        let Some(address) = key.1 else { continue };
        let owner = common(rows.iter().map(|row| &row.owner));
        let summary = format!("port scan by {}: {} closed ports of {address}", quoted(&owner), ports.len());
        found.push(
            Finding::new(Code::ConnectionRefused, Severity::Info, summary)
                .owner(&owner)
                .with("remote_address", address)
                .with("ports", ports.len())
                .with("refused", rows.len())
                .look("trace_connections", &[("outcome", "failed".into()), ("remote", address.to_string())]),
        );
        scanners.insert(key);
    }
    (scanners, found)
}

/// Datagrams from this host to a closed port: ICMP reports it.
fn udp_refused(evidence: &Evidence) -> Vec<Finding> {
    /// As for TCP; a stray datagram or two follow the end of any service.
    const REFUSALS: u64 = 3;
    // A late answer of a DNS server finds its asker gone; multicast discovery and traceroute ask into the blue.
    let meant = |source: HostPort, destination: HostPort| {
        let asks = destination.port.is_some_and(|port| !(33_434..33_534).contains(&port));
        let answers = source.port.is_some_and(|port| [53, 5353, 5355, 1900].contains(&port));
        asks && !answers && !destination.address.is_multicast()
    };
    let strays = evidence.drops.iter().filter(|drop| drop.protocol == "udp" && drop.reason == "NO_SOCKET");
    let strays = strays.filter(|drop| matches!((drop.source, drop.destination), (Some(s), Some(d)) if meant(s, d)));
    let mut found = Vec::new();
    for ((source, destination), rows) in groups(strays, |drop| (drop.source.map(|s| s.address), drop.destination)) {
        let (Some(source), Some(destination)) = (source, destination) else { continue };
        let count: u64 = rows.iter().map(|row| row.count).sum();
        let sender = rows.iter().find_map(|row| sender(evidence, row.source?, destination, row.owner.netns));
        if sender.is_none() && !evidence.is_ours(&source) {
            continue; // strangers knock at closed ports all day
        }
        let owner = sender.unwrap_or_default();
        let summary = format!("{} sent {count} datagrams to {destination}, which has no open socket", quoted(&owner));
        found.push(
            Finding::new(Code::ConnectionRefused, warning_from(count, REFUSALS), summary)
                .owner(&owner)
                .with("protocol", "udp")
                .with("source_address", source)
                .with("remote", destination)
                .with("refused", count)
                .at(destination)
                .look(
                    "snapshot_sockets",
                    &[("protocol", "udp".into()), ("port", destination.port.unwrap_or_default().to_string())],
                ),
        );
    }
    found
}

/// Who sends from `source` to `destination`, where it was dropped in `netns`, if the socket is open still or was seen in
/// the traffic.
fn sender(evidence: &Evidence, source: HostPort, destination: HostPort, netns: Option<u32>) -> Option<Owner> {
    let is = |owner: &Owner, local: Option<Endpoint>, remote: Option<Endpoint>| {
        // An address of the loopback is another one in each network namespace.
        if source.address.is_loopback() && netns.is_some() && owner.netns != netns {
            return false;
        }
        // The kernel's row has no port if there were several; then every sender to the address counts.
        let sends = local.is_some_and(|local| source.port.is_none_or(|port| port == local.port));
        sends && remote.map_or(source.port.is_some(), |remote| HostPort::from(remote) == destination)
    };
    let socket = evidence.sockets.iter().find(|s| !s.tcp && is(&s.owner, s.local, s.remote)).map(|s| &s.owner);
    socket.or_else(|| evidence.talkers.iter().find(|t| is(&t.owner, t.local, t.remote)).map(|t| &t.owner)).cloned()
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};
    use crate::tools::diagnose::evidence::Socket;

    fn refusals(count: usize, port: impl Fn(usize) -> u16) -> Evidence {
        let connections = (0..count).map(|i| connection("10.0.0.1", port(i), Outcome::Refused)).collect();
        Evidence { connections, ..quiet() }
    }

    #[test]
    fn repeated_refusals_warn() {
        assert_eq!(told(&connection_refused(&refusals(3, |_| 80))), [(Code::ConnectionRefused, Severity::Warning)]);
        assert_eq!(told(&connection_refused(&refusals(1, |_| 80))), [(Code::ConnectionRefused, Severity::Info)]);
    }

    #[test]
    fn port_scan_is_one_info_finding() {
        let found = connection_refused(&refusals(200, |i| 1_000 + i as u16));
        assert_eq!(told(&found), [(Code::ConnectionRefused, Severity::Info)]);
        assert_eq!(found[0].evidence["ports"], 200);
    }

    #[test]
    fn refused_localhost_over_ipv6_is_info() {
        let mut evidence = refusals(5, |_| 80);
        evidence.connections.push(connection("::1", 80, Outcome::Established));
        assert_eq!(told(&connection_refused(&evidence)), [(Code::ConnectionRefused, Severity::Info)]);
    }

    #[test]
    fn udp_to_a_closed_port_is_refused() {
        let drops = vec![drop_of("NO_SOCKET", "udp", ("10.0.0.1", 9_999), 5)];
        let strange = Evidence { drops, ..quiet() };
        assert!(connection_refused(&strange).is_empty(), "somebody else's knocking");
        let local = Some(endpoint("10.0.0.9", 40_000));
        let sockets = vec![Socket { owner: owner("sender", 3), local, ..Socket::default() }];
        let found = connection_refused(&Evidence { sockets, ..strange });
        assert_eq!(told(&found), [(Code::ConnectionRefused, Severity::Warning)]);
        assert_eq!(found[0].evidence["owner"]["process"], "sender");
    }
}
