//! Routers that change the mark by which packets are preferred.

use std::collections::BTreeSet;

use crate::tools::diagnose::{
    evidence::{Evidence, groups},
    finding::{Code, Finding, Severity},
    network::Remark,
};

/// A rule changes every packet. A single change may be another packet that reused the same memory.
const PACKETS: u64 = 3;

/// Packets leave a router with another DSCP than they came with.
pub fn dscp_remarked(evidence: &Evidence) -> Vec<Finding> {
    let key = |remark: &Remark| (remark.netns, remark.to, remark.before, remark.after);
    let found = groups(&evidence.network.remarks, key).into_iter().filter_map(|((netns, to, before, after), rows)| {
        let packets: u64 = rows.iter().map(|row| row.count).sum();
        (packets >= PACKETS).then(|| finding(evidence, (netns, to), (before, after), &rows, packets))
    });
    found.collect()
}

fn finding(
    evidence: &Evidence,
    (netns, to): (u32, u32),
    (before, after): (u8, u8),
    rows: &[&Remark],
    packets: u64,
) -> Finding {
    let name = |index: u32| {
        let link = evidence.network.links.iter().find(|link| link.at == (netns, index));
        link.map(|link| link.name.clone())
    };
    let first = rows[0];
    let out = name(to).unwrap_or_else(|| "an interface".into());
    let summary = format!(
        "packets marked {} leave {out} as {}: {packets} in the window, to {}",
        class(before),
        class(after),
        first.destination
    );
    // A higher mark harms none of the packets that get it.
    let severity = if after < before { Severity::Warning } else { Severity::Info };
    let finding = Finding::new(Code::DscpRemarked, severity, summary)
        .with("netns", netns)
        .with("namespace", evidence.netns_files.get(&netns).and_then(|file| file.rsplit('/').next()))
        .with("ingress", name(first.from))
        .with("interface", name(to))
        .with("source_address", first.source)
        .with("destination_address", first.destination)
        .with("protocol", protocol(first.protocol))
        .with("dscp_before", class(before))
        .with("dscp_after", class(after))
        .with("packets", packets);
    let to: BTreeSet<_> = rows.iter().map(|row| row.destination).collect();
    to.into_iter()
        .fold(finding, Finding::at)
        .step("nft list ruleset  # dscp set, at the hooks prerouting, forward and postrouting")
        .step(&format!("tc filter show dev {out}  # pedit, skbedit; and the qdisc: tc qdisc show"))
}

fn protocol(number: u8) -> String {
    match number {
        1 | 58 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        other => other.to_string(),
    }
}

/// The name of a mark (RFC 2474, 2597, 3246, 5865, 8622).
fn class(dscp: u8) -> String {
    match dscp {
        1 => "LE".into(),
        44 => "VA".into(),
        46 => "EF".into(),
        dscp if dscp.is_multiple_of(8) => format!("CS{}", dscp / 8),
        10..=38 if dscp.is_multiple_of(2) => format!("AF{}{}", dscp / 8, dscp % 8 / 2),
        dscp => dscp.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};
    use crate::tools::diagnose::network::Network;

    fn judged(before: u8, after: u8, count: u64) -> Vec<Finding> {
        let (source, destination) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let remark = Remark { netns: 7, from: 2, to: 3, source, destination, protocol: 17, before, after, count };
        let network = Network { remarks: vec![remark], ..Network::default() };
        dscp_remarked(&Evidence { network, ..quiet() })
    }

    #[test]
    fn mark_that_is_lowered_is_lost() {
        let found = judged(46, 0, 50);
        assert_eq!(told(&found), [(Code::DscpRemarked, Severity::Warning)]);
        assert_eq!(
            (&found[0].evidence["dscp_before"], &found[0].evidence["dscp_after"]),
            (&"EF".into(), &"CS0".into())
        );
        assert_eq!(told(&judged(10, 46, 50)), [(Code::DscpRemarked, Severity::Info)]);
        assert!(judged(46, 0, 1).is_empty());
    }

    #[test]
    fn marks_have_their_names() {
        assert_eq!(
            [0, 8, 10, 34, 38, 46, 48, 1, 5].map(class),
            ["CS0", "CS1", "AF11", "AF41", "AF43", "EF", "CS6", "LE", "5"]
        );
    }
}
