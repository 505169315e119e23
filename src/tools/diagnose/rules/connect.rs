//! Connections that do not come about: no answer, no route, no IPv6.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    answer::{Endpoint, Family, Owner, count},
    tools::diagnose::{
        evidence::{Connection, DroppedPackets, Evidence, Outcome, common, groups, is_known, program},
        finding::{Code, Finding, Severity, quoted},
    },
};

/// A program and where it connects to.
pub(super) type Key = (Owner, Option<Endpoint>);

pub(super) fn outbound(evidence: &Evidence) -> impl Iterator<Item = &Connection> {
    evidence.connections.iter().filter(|connection| connection.outbound && connection.remote.is_some())
}

pub(super) fn by_target<'a>(rows: impl IntoIterator<Item = &'a Connection>) -> Vec<(Key, Vec<&'a Connection>)> {
    groups(rows, |connection| (program(&connection.owner), connection.remote))
}

/// How often the same program reached the same target in the window.
pub(super) fn successes(evidence: &Evidence, (who, remote): &Key) -> usize {
    let same = |c: &&Connection| c.outcome == Outcome::Established && c.remote == *remote && program(&c.owner) == *who;
    outbound(evidence).filter(same).count()
}

/// Whether the same program reached the same port over the other address family: what `connect` to a name does when
/// one of its addresses does not answer.
pub(super) fn other_family_works(evidence: &Evidence, (who, remote): &Key) -> bool {
    let Some(remote) = remote else { return false };
    outbound(evidence).any(|c| {
        let other = c.remote.is_some_and(|r| r.port == remote.port && r.family() != remote.family());
        other && c.outcome == Outcome::Established && program(&c.owner) == *who
    })
}

pub(super) fn to_target(finding: Finding, remote: Endpoint) -> Finding {
    finding.with("remote", remote).at(remote).look(
        "trace_connections",
        &[("outcome", "failed".into()), ("remote", remote.address.to_string()), ("port", remote.port.to_string())],
    )
}

/// Nobody answers.
pub fn connect_timeout(evidence: &Evidence) -> Vec<Finding> {
    let hanging: Vec<_> = outbound(evidence).filter(|connection| connection.hangs()).collect();
    let mut found = Vec::new();
    for (key, rows) in by_target(hanging) {
        let Some(remote) = key.1 else { continue };
        let owner = common(rows.iter().map(|row| &row.owner));
        let established = successes(evidence, &key);
        let retransmits: u64 = rows.iter().map(|row| row.retransmits).sum();
        // A SYN lost among many answered ones is loss, which `retransmits` judges; two lost in a row, or no answer at
        // all, is silence.
        let certain = rows.iter().any(|row| row.outcome == Outcome::TimedOut || row.retransmits >= 2);
        if !certain && established > 0 {
            continue;
        }
        // One attempt with one SYN sent again may be a lost packet still.
        let severity = if certain || rows.len() >= 2 || rows[0].waited >= Duration::from_secs(2) {
            Severity::Warning
        } else {
            Severity::Info
        };
        let waited = rows.iter().map(|row| row.waited).max().unwrap_or_default();
        let summary = format!(
            "{remote} does not answer {}: {} or timed out",
            quoted(&owner),
            count(rows.len() as u64, "connect is waiting", "connects are waiting")
        );
        let finding = Finding::new(Code::ConnectTimeout, severity, summary)
            .owner(&owner)
            .with("attempts", rows.len())
            .with("established", established)
            .with("syn_retransmits", retransmits)
            .with("longest_wait_ms", waited.as_millis() as u64);
        found.push(to_target(finding, remote).look_at("trace_drops", Some(remote)));
    }
    found
}

/// The routing table has no way, or says no.
pub fn no_route(evidence: &Evidence) -> Vec<Finding> {
    let mut found = Vec::new();
    // A socket without an owner that began before the window is left over from a deleted network namespace.
    let is_left_over = |c: &Connection| c.before && !is_known(&c.owner);
    let unreachable = |c: &&Connection| c.outcome == Outcome::Unreachable && !c.no_neighbor() && !is_left_over(c);
    for (key, rows) in by_target(outbound(evidence).filter(unreachable)) {
        let Some(remote) = key.1 else { continue };
        let owner = common(rows.iter().map(|row| &row.owner));
        // A host without IPv6 rejects IPv6 connects at once, and the connect over IPv4 follows at once.
        let severity = if other_family_works(evidence, &key) { Severity::Info } else { Severity::Warning };
        let prohibited = rows[0].errno.as_deref() == Some("EACCES");
        let why = if prohibited { "a route or a policy prohibits it" } else { "no route" };
        let summary = format!(
            "{} cannot reach {remote}: {} failed ({why})",
            quoted(&owner),
            count(rows.len() as u64, "connect", "connects")
        );
        let finding = Finding::new(Code::NoRoute, severity, summary)
            .owner(&owner)
            .with("attempts", rows.len())
            .with("errno", rows[0].errno.clone());
        found.push(to_target(finding, remote).step(&format!("ip route get {}", remote.address)));
    }
    // If both the client and its router are on this host, one missing route is reported once, at the client.
    for router in forwarded_without_route(evidence) {
        let same = |client: &&mut Finding| client.places[0].address == router.places[0].address;
        match found.iter_mut().find(same) {
            Some(client) => {
                let known = ["owner", "interface", "packets"].into_iter();
                let at = known.filter_map(|key| Some((key.to_owned(), router.evidence.get(key)?.clone())));
                client.evidence.insert("dropped_at_router".into(), at.collect::<serde_json::Map<_, _>>().into());
            }
            None => found.push(router),
        }
    }
    found
}

/// This host forwards, and has no route for what arrives.
fn forwarded_without_route(evidence: &Evidence) -> Vec<Finding> {
    // The kernel continues to send for sockets without a process, also in a deleted network namespace.
    let is_left_over = |drop: &DroppedPackets| drop.sent_here && !is_known(&drop.owner);
    let strays = evidence.drops.iter().filter(|drop| drop.reason == "IP_INNOROUTES" || drop.reason == "IP_OUTNOROUTES");
    let strays = strays.filter(|drop| !is_left_over(drop));
    let mut found = Vec::new();
    for (address, rows) in groups(strays, |drop| drop.destination.map(|d| d.address)) {
        let Some(address) = address.filter(|address| !address.is_multicast()) else { continue };
        // Strangers may send to any address; a local sender is our client.
        let ours = rows.iter().any(|row| row.source.is_some_and(|source| evidence.is_ours(&source.address)));
        let count: u64 = rows.iter().map(|row| row.count).sum();
        let summary = format!("{count} packets to {address} were dropped: no route");
        found.push(
            Finding::new(Code::NoRoute, if ours { Severity::Warning } else { Severity::Info }, summary)
                .owner(&common(rows.iter().map(|row| &row.owner)))
                .with("remote_address", address)
                .with("source", rows[0].source)
                .with("interface", &rows[0].interface)
                .with("packets", count)
                .at(address)
                .step(&format!("ip route get {address}")),
        );
    }
    found
}

/// IPv6 fails where IPv4 works: every connect to a name with both costs a wait.
pub fn ipv6_broken(evidence: &Evidence) -> Vec<Finding> {
    /// A client that gives up on IPv6 after a moment tries it again for every connection: three failures in a row are
    /// not chance.
    const RACES: usize = 3;
    // Localhost over IPv6, where the service listens on 127.0.0.1 only, is refused everywhere.
    let refused =
        |c: &Connection| c.outcome == Outcome::Refused && c.remote.is_some_and(|remote| !remote.address.is_loopback());
    let fails = |c: &&Connection| c.hangs() || c.lost_the_race() || c.outcome == Outcome::Unreachable || refused(c);
    let over_ipv6 = |c: &&Connection| c.remote.is_some_and(|remote| remote.family() == Family::Ipv6);
    let key = |c: &Connection| (program(&c.owner), c.remote.map(|remote| remote.port));
    let mut found = Vec::new();
    for ((who, port), rows) in groups(outbound(evidence).filter(over_ipv6).filter(fails), key) {
        let same = |c: &&Connection| c.outcome == Outcome::Established && key(c) == (who.clone(), port);
        let (v6, v4): (Vec<_>, Vec<_>) = outbound(evidence).filter(same).partition(over_ipv6);
        let (false, true) = (v4.is_empty(), v6.is_empty()) else { continue };
        let (races, rows): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.lost_the_race() && !row.hangs());
        let races = if races.len() < RACES { Vec::new() } else { races };
        let waits = races.len() + rows.iter().filter(|row| row.hangs()).count();
        let rows = [rows, races].concat();
        if rows.is_empty() {
            continue;
        }
        // Without IPv6 at all the connect fails at once, with ENETUNREACH, and costs nothing: only a wait, a route or a
        // router that says no, or a host that has a global IPv6 address and no way to use it, is broken. A refusal costs
        // nothing either.
        let says_no = rows.iter().any(|row| matches!(row.errno.as_deref(), Some("EHOSTUNREACH" | "EACCES")));
        let has_ipv6 = evidence
            .sockets
            .iter()
            .any(|s| s.owner.netns == who.netns && s.local.is_some_and(|l| is_global_ipv6(&l.address)));
        let no_way = has_ipv6 && rows.iter().any(|row| row.outcome == Outcome::Unreachable);
        let severity = if waits > 0 || says_no || no_way { Severity::Warning } else { Severity::Info };
        let owner = common(rows.iter().map(|row| &row.owner));
        let summary = format!(
            "{} reaches port {} over IPv4 but not over IPv6: {} IPv6 connects failed",
            quoted(&owner),
            port.unwrap_or_default(),
            rows.len()
        );
        let mut finding = Finding::new(Code::Ipv6Broken, severity, summary)
            .owner(&owner)
            .with("failed_ipv6", rows.len())
            .with("waited_ipv6", waits)
            .with("established_ipv4", v4.len())
            .with("remote", rows[0].remote)
            .with("remote_ipv4", v4[0].remote)
            .with("errno", rows[0].errno.clone());
        for remote in rows.iter().filter_map(|row| row.remote).collect::<BTreeSet<_>>() {
            finding = finding.at(remote);
        }
        found.push(
            finding
                .look(
                    "trace_connections",
                    &[("outcome", "failed".into()), ("port", port.unwrap_or_default().to_string())],
                )
                .step("ip -6 route show default"),
        );
    }
    found
}

fn is_global_ipv6(address: &std::net::IpAddr) -> bool {
    matches!(address, std::net::IpAddr::V6(ip) if ip.segments()[0] >> 13 == 1) // 2000::/3
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};
    use crate::tools::diagnose::evidence::Socket;

    fn evidence(connections: Vec<Connection>) -> Evidence {
        Evidence { connections, ..quiet() }
    }

    fn waiting(remote: &str, retransmits: u64, waited_ms: u64) -> Connection {
        let waited = Duration::from_millis(waited_ms);
        Connection { retransmits, waited, ..connection(remote, 443, Outcome::Unanswered) }
    }

    #[test]
    fn unanswered_syns_are_a_timeout() {
        for rows in
            [vec![waiting("10.0.0.1", 2, 3_000)], vec![waiting("10.0.0.1", 0, 1_000), waiting("10.0.0.1", 0, 950)]]
        {
            assert_eq!(told(&connect_timeout(&evidence(rows))), [(Code::ConnectTimeout, Severity::Warning)]);
        }
    }

    #[test]
    fn lost_syn_is_not_a_timeout_if_others_connect() {
        let rows = vec![waiting("10.0.0.1", 1, 1_100), connection("10.0.0.1", 443, Outcome::Established)];
        assert!(connect_timeout(&evidence(rows)).is_empty());
        let rows = vec![waiting("10.0.0.1", 0, 300)];
        assert!(connect_timeout(&evidence(rows)).is_empty(), "a browser that preferred the other family");
    }

    #[test]
    fn missing_ipv6_route_is_info_if_ipv4_works() {
        let alone = vec![connection("2001:db8::1", 443, Outcome::Unreachable)];
        assert_eq!(told(&no_route(&evidence(alone.clone()))), [(Code::NoRoute, Severity::Warning)]);
        let both = [alone, vec![connection("192.0.2.1", 443, Outcome::Established)]].concat();
        assert_eq!(told(&no_route(&evidence(both.clone()))), [(Code::NoRoute, Severity::Info)]);
        assert_eq!(told(&ipv6_broken(&evidence(both.clone()))), [(Code::Ipv6Broken, Severity::Info)]);
        let local = Some(endpoint("2001:db8::9", 50_000));
        let sockets = vec![Socket { local, ..Socket::default() }];
        let found = ipv6_broken(&Evidence { sockets, ..evidence(both) });
        assert_eq!(told(&found), [(Code::Ipv6Broken, Severity::Warning)]);
    }

    #[test]
    fn ipv6_is_broken_if_it_waits_and_ipv4_works() {
        let v4 = connection("192.0.2.1", 443, Outcome::Established);
        let found = ipv6_broken(&evidence(vec![waiting("2001:db8::1", 1, 2_000), v4.clone()]));
        assert_eq!(told(&found), [(Code::Ipv6Broken, Severity::Warning)]);
        let v6 = connection("2001:db8::1", 443, Outcome::Established);
        assert!(ipv6_broken(&evidence(vec![v4.clone(), v6])).is_empty());
        let raced = |times| [vec![waiting("2001:db8::1", 0, 250); times], vec![v4.clone()]].concat();
        assert!(ipv6_broken(&evidence(raced(1))).is_empty(), "happy eyeballs");
        assert_eq!(told(&ipv6_broken(&evidence(raced(5)))), [(Code::Ipv6Broken, Severity::Warning)], "never in time");
        let refused = |address| vec![connection(address, 443, Outcome::Refused), v4.clone()];
        assert_eq!(told(&ipv6_broken(&evidence(refused("fd00::1")))), [(Code::Ipv6Broken, Severity::Info)]);
        assert!(ipv6_broken(&evidence(refused("::1"))).is_empty(), "localhost");
    }

    #[test]
    fn forwarding_without_route_warns_for_own_addresses() {
        let drops = vec![drop_of("IP_INNOROUTES", "tcp", ("192.0.2.7", 80), 4)];
        let stranger = Evidence { drops, ..quiet() };
        assert_eq!(told(&no_route(&stranger)), [(Code::NoRoute, Severity::Info)]);
        let own_addresses = ["10.0.0.9".parse().unwrap()].into();
        assert_eq!(told(&no_route(&Evidence { own_addresses, ..stranger })), [(Code::NoRoute, Severity::Warning)]);
    }

    #[test]
    fn leftover_packets_of_a_deleted_namespace_are_ignored() {
        let left = DroppedPackets { sent_here: true, ..drop_of("IP_OUTNOROUTES", "tcp", ("10.0.0.1", 80), 4) };
        let own_addresses = ["10.0.0.9".parse().unwrap()].into();
        let old = connection("10.0.0.1", 80, Outcome::Unreachable);
        let old = Connection { before: true, owner: Owner::default(), ..old };
        let evidence = Evidence { drops: vec![left], own_addresses, ..evidence(vec![old]) };
        assert!(no_route(&evidence).is_empty());
    }

    #[test]
    fn rejecting_ipv6_route_is_broken_ipv6() {
        let errno = Some("EHOSTUNREACH".into());
        let v6 = Connection { errno, ..connection("fd00::1", 443, Outcome::Unreachable) };
        let found = ipv6_broken(&evidence(vec![v6, connection("10.0.0.1", 443, Outcome::Established)]));
        assert_eq!(told(&found), [(Code::Ipv6Broken, Severity::Warning)]);
    }

    #[test]
    fn missing_route_at_own_router_names_client_interface() {
        let drops = vec![DroppedPackets {
            interface: Some("c0".into()),
            ..drop_of("IP_INNOROUTES", "tcp", ("192.0.2.7", 80), 4)
        }];
        let connections = vec![connection("192.0.2.7", 80, Outcome::Unreachable)];
        let found = no_route(&Evidence { drops, ..evidence(connections) });
        assert_eq!(told(&found), [(Code::NoRoute, Severity::Warning)]);
        assert_eq!(found[0].evidence["dropped_at_router"]["interface"], "c0");
    }
}
