//! Established connections with a peer that no longer answers.

use std::net::IpAddr;

use super::tcp::is_near;
use crate::tools::diagnose::{
    evidence::{Evidence, common, groups, program},
    finding::{Code, Finding, HostPort, Severity, quoted},
    gone::Silent,
    silent::answers,
};

/// Nothing comes back on connections that were established.
pub fn peer_gone(evidence: &Evidence) -> Vec<Finding> {
    let place = |row: &Silent| {
        let remote = row.remote?;
        Some(HostPort { address: remote.address, port: (!row.inbound).then_some(remote.port) })
    };
    // If both ends are on this host, the client's end identifies the service.
    let is_other_end = |row: &Silent| {
        row.inbound && evidence.silent.iter().any(|other| (other.local, other.remote) == (row.remote, row.local))
    };
    let silent = evidence.silent.iter().filter(|row| !is_other_end(row));
    let mut found = Vec::new();
    for ((_, remote), rows) in groups(silent, |row| (program(&row.owner), place(row))) {
        let Some(remote) = remote else { continue };
        let owner = common(rows.iter().map(|row| &row.owner));
        let ended: Vec<_> = rows.iter().filter(|row| row.errno.is_some()).collect();
        let new = evidence.connections.iter().filter(|c| rows[0].remote.is_some_and(|at| answers(c, at))).count();
        let connections = crate::answer::count(rows.len() as u64, "established connection", "established connections");
        let else_ = if new > 0 { "; new connects succeed" } else { "" };
        let summary =
            format!("{remote} no longer answers {}: no packets return on {connections}{else_}", quoted(&owner));
        let finding = Finding::new(Code::PeerGone, severity(&rows, remote.address), summary)
            .owner(&owner)
            .with("remote", remote)
            .with("connections", rows.len())
            .with("ended", ended.len())
            .with("errno", ended.first().and_then(|row| row.errno.as_ref()))
            .with("silent_seconds", rows.iter().filter_map(|row| row.silence).max().map(|silence| silence.as_secs()))
            .with("retransmits", rows.iter().map(|row| row.retransmits).sum::<u64>())
            .with("unanswered_probes", rows.iter().map(|row| row.probes).sum::<u64>())
            .with("new_connects", new)
            .at(remote);
        let mut arguments = vec![("outcome", "failed".to_owned()), ("remote", remote.address.to_string())];
        arguments.extend(remote.port.map(|port| ("port", port.to_string())));
        found.push(finding.look("trace_connections", &arguments).step(
            "sysctl net.ipv4.tcp_keepalive_time  # keep it below the idle timeout of NATs, firewalls and load balancers",
        ));
    }
    found
}

/// A client somewhere on the internet goes without a word every day. What a process has closed it does not miss.
fn severity(rows: &[&Silent], remote: IpAddr) -> Severity {
    let matters = |row: &&&Silent| !row.closing && (!row.inbound || is_near(&remote));
    if rows.iter().any(|row| matters(&row)) { Severity::Warning } else { Severity::Info }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{super::tests::*, *};
    use crate::tools::diagnose::{evidence::Outcome, rules::connect::connect_timeout};

    fn silent(remote: &str) -> Silent {
        Silent {
            owner: owner("client", 7),
            local: Some(endpoint("10.0.0.9", 40_000)),
            remote: Some(endpoint(remote, 80)),
            silence: Some(Duration::from_secs(4)),
            retransmits: 3,
            ..Silent::default()
        }
    }

    fn judged(silent: Vec<Silent>) -> Vec<Finding> {
        peer_gone(&Evidence { silent, ..quiet() })
    }

    #[test]
    fn connections_to_one_remote_are_one_finding() {
        let ended = Silent { errno: Some("ETIMEDOUT".into()), ..silent("192.0.2.1") };
        let found = judged(vec![silent("192.0.2.1"), ended]);
        assert_eq!(told(&found), [(Code::PeerGone, Severity::Warning)]);
        let figures =
            ["connections", "ended", "silent_seconds", "retransmits"].map(|key| found[0].evidence[key].as_u64());
        assert_eq!(figures, [Some(2), Some(1), Some(4), Some(6)]);
    }

    #[test]
    fn local_connection_is_one_finding() {
        let client = silent("10.0.0.1");
        let server = Silent { inbound: true, local: client.remote, remote: client.local, ..silent("10.0.0.1") };
        let found = judged(vec![server, client]);
        assert_eq!((found.len(), &found[0].evidence["remote"]["port"]), (1, &80.into()));
    }

    #[test]
    fn remote_clients_and_closed_sockets_are_info() {
        let inbound = |remote: &str| Silent { inbound: true, ..silent(remote) };
        assert_eq!(told(&judged(vec![inbound("192.0.2.1")])), [(Code::PeerGone, Severity::Info)]);
        assert_eq!(told(&judged(vec![inbound("10.0.0.1")])), [(Code::PeerGone, Severity::Warning)]);
        let closed = Silent { closing: true, ..silent("10.0.0.1") };
        assert_eq!(told(&judged(vec![closed])), [(Code::PeerGone, Severity::Info)]);
    }

    #[test]
    fn lost_connection_is_not_a_connect_timeout() {
        let lost = connection("10.0.0.1", 80, Outcome::Lost);
        let new = connection("10.0.0.1", 80, Outcome::Established);
        let evidence = Evidence { connections: vec![lost, new], silent: vec![silent("10.0.0.1")], ..quiet() };
        assert!(connect_timeout(&evidence).is_empty());
        let found = peer_gone(&evidence);
        assert_eq!(found[0].evidence["new_connects"], 1);
        assert!(found[0].summary.ends_with("new connects succeed"), "{}", found[0].summary);
    }
}
