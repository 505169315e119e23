//! All other kernel drops, if they harm traffic of this host.

use std::collections::BTreeSet;

use super::drops::{about, service, total};
use crate::{
    answer::{Endpoint, count},
    tools::diagnose::{
        evidence::{DroppedPackets, Evidence, Outcome, groups},
        finding::{Code, Finding, HostPort, Severity},
    },
};

/// Packets of a conversation die of a bad checksum.
pub fn checksum_errors(evidence: &Evidence) -> Vec<Finding> {
    let found = of(evidence, is_checksum, Code::ChecksumErrors);
    found
        .into_iter()
        .map(|f| f.step("ethtool -k INTERFACE  # check the checksum offloads, then the cables and middleboxes"))
        .collect()
}

/// Packets of a conversation die for a reason that no other check is about.
pub fn kernel_drop(evidence: &Evidence) -> Vec<Finding> {
    of(evidence, |drop| !is_checksum(drop) && !is_judged_elsewhere(drop), Code::KernelDrop)
}

fn is_checksum(drop: &DroppedPackets) -> bool {
    drop.reason.ends_with("_CSUM")
}

/// Reasons that other rules read, and those by which TCP turns away what does not fit a connection, as it does all day.
fn is_judged_elsewhere(drop: &DroppedPackets) -> bool {
    let reason = drop.reason.as_str();
    let others = [
        "NETFILTER_DROP",
        "NO_SOCKET",
        "IP_RPFILTER",
        "IP_INNOROUTES",
        "IP_OUTNOROUTES",
        "PKT_TOO_BIG",
        "SOCKET_RCVBUFF",
        "SOCKET_BACKLOG",
        "PROTO_MEM",
        "CPU_BACKLOG",
        "FULL_RING",
        "DEV_READY",
        "DEV_HDR",
        "NOMEM",
        "XDP",
        "TC_INGRESS",
        "TC_EGRESS",
        "CAKE_FLOOD",
        "TCP_LISTEN_OVERFLOW",
    ];
    let kinds = ["NEIGH_", "QDISC_", "FQ_", "TAP_"];
    let of_tcp = reason.starts_with("TCP_")
        && !["TCP_MD5", "TCP_AO", "TCP_AUTH", "TCP_MINTTL"].iter().any(|kind| reason.starts_with(kind));
    let silent = reason == "NOT_SPECIFIED"
        && ["xdp", "__dev_forward_skb", "ndisc_error", "arp_error", "neigh_", "tcp_", "enqueue", "dequeue", "qdisc"]
            .iter()
            .any(|at| drop.location.contains(at));
    drop.benign
        || drop.course.expired
        || of_tcp
        || silent
        || others.contains(&reason)
        || kinds.iter().any(|kind| reason.starts_with(kind))
}

fn of(evidence: &Evidence, meant: impl Fn(&DroppedPackets) -> bool, code: Code) -> Vec<Finding> {
    let place =
        |drop: &DroppedPackets| (drop.owner.netns, drop.reason.clone(), drop.location.clone(), service(evidence, drop));
    let suffered = evidence.drops.iter().filter(|drop| meant(drop) && is_suffered(evidence, drop));
    let mut found = Vec::new();
    for ((_, reason, location, service), rows) in groups(suffered, place) {
        let to = service.map_or_else(String::new, |end| format!(" of {end}"));
        let summary = format!(
            "the kernel dropped {}{to}: {reason} at {location}. {}",
            count(total(&rows), "packet", "packets"),
            rows[0].explanation
        );
        let ends = rows.iter().flat_map(|row| [row.source, row.destination]).flatten().collect::<BTreeSet<_>>();
        let finding =
            about(evidence, code, Severity::Warning, summary, &rows).with("explanation", &rows[0].explanation);
        found.push(ends.into_iter().fold(finding, Finding::at).look_at("trace_drops", service.or(rows[0].destination)));
    }
    found
}

/// Whether it made a connect, a query or a datagram of this host fail.
fn is_suffered(evidence: &Evidence, drop: &DroppedPackets) -> bool {
    /// One or two bad frames are not a fault; a real client sends again.
    const INSISTS: u64 = 3;
    let (Some(source), Some(destination)) = (drop.source, drop.destination) else { return false };
    let are = |a: Option<Endpoint>, b: Option<Endpoint>| {
        let is = |end: HostPort, at: Option<Endpoint>| at.is_some_and(|at| end.covers(&at.into()));
        (is(source, a) && is(destination, b)) || (is(source, b) && is(destination, a))
    };
    let hangs = evidence.connections.iter().filter(|c| c.outbound && (c.hangs() || c.outcome == Outcome::Unreachable));
    let asked = |server: Option<Endpoint>| {
        server.is_some_and(|server| [source, destination].iter().any(|end| end.covers(&server.into())))
    };
    let unanswered = evidence.queries.iter().filter(|query| query.unanswered);
    // Nothing waits for a datagram. A filter rejects on purpose.
    let refused = ["SOCKET_FILTER", "BPF_CGROUP", "SECURITY_HOOK"].iter().any(|reason| drop.reason.starts_with(reason));
    let served = drop.protocol == "udp"
        && !refused
        && drop.count >= INSISTS
        && evidence.server("udp", destination, drop.owner.netns).is_some();
    hangs.into_iter().any(|c| are(c.local, c.remote))
        || unanswered.into_iter().any(|query| asked(query.server))
        || served
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};
    use crate::tools::diagnose::evidence::{Connection, Socket};

    fn evidence(drops: Vec<DroppedPackets>) -> Evidence {
        Evidence { drops, ..quiet() }
    }

    #[test]
    fn unknown_drop_reason_is_reported_with_its_connect() {
        let drop =
            DroppedPackets { location: "new_code".into(), ..drop_of("SOMETHING_NEW", "tcp", ("10.0.0.1", 443), 3) };
        assert!(kernel_drop(&evidence(vec![drop.clone()])).is_empty(), "nobody suffers");
        let connections = vec![Connection { retransmits: 2, ..connection("10.0.0.1", 443, Outcome::Unanswered) }];
        let found = kernel_drop(&Evidence { connections, ..evidence(vec![drop]) });
        assert_eq!(told(&found), [(Code::KernelDrop, Severity::Warning)]);
        assert!(found[0].summary.contains("SOMETHING_NEW at new_code"), "{}", found[0].summary);
    }

    #[test]
    fn bad_udp_checksums_for_a_service_are_reported() {
        let sockets = vec![Socket { local: Some(endpoint("0.0.0.0", 514)), ..Socket::default() }];
        let judged = |count| {
            let drops = vec![drop_of("UDP_CSUM", "udp", ("10.0.0.1", 514), count)];
            let evidence = Evidence { sockets: sockets.clone(), ..evidence(drops) };
            assert!(kernel_drop(&evidence).is_empty());
            told(&checksum_errors(&evidence))
        };
        assert!(judged(2).is_empty());
        assert_eq!(judged(3), [(Code::ChecksumErrors, Severity::Warning)]);
    }

    #[test]
    fn qdisc_drop_without_reason_is_not_a_kernel_drop() {
        let connections = vec![Connection { retransmits: 2, ..connection("10.0.0.1", 443, Outcome::Unanswered) }];
        let full = drop_of("NOT_SPECIFIED", "tcp", ("10.0.0.1", 443), 200);
        let drops = vec![DroppedPackets { location: "tbf_enqueue".into(), ..full }];
        assert!(kernel_drop(&Evidence { connections, ..evidence(drops) }).is_empty());
    }

    #[test]
    fn reasons_of_other_rules_are_not_kernel_drops() {
        let connections = vec![Connection { retransmits: 2, ..connection("10.0.0.1", 443, Outcome::Unanswered) }];
        for reason in ["TCP_INVALID_SEQUENCE", "NETFILTER_DROP", "NEIGH_FAILED", "NO_SOCKET", "IP_RPFILTER"] {
            let drops = vec![drop_of(reason, "tcp", ("10.0.0.1", 443), 3)];
            let evidence = Evidence { connections: connections.clone(), ..evidence(drops) };
            assert!(kernel_drop(&evidence).is_empty(), "{reason}");
        }
    }
}
