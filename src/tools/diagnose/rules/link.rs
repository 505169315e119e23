//! Links that are full, that lose, that one owner has for itself.

use std::collections::BTreeSet;

use super::{
    degraded,
    drops::{seen_by_packets, whose},
    saturated::link_saturated,
    warning_from,
};
use crate::{
    answer::bit_rate,
    tools::diagnose::{
        evidence::{DroppedPackets, Evidence, Link, Talker, common, groups, is_known, program},
        finding::{Code, Finding, Severity, quoted},
    },
};

/// A device loses a few now and then, as it comes up and where frames are malformed.
const DEVICE_DROPS: u64 = 10;

impl Evidence {
    /// What is known of an interface, which is read in our own network namespace only: containers all have an eth0.
    pub(super) fn link(&self, netns: Option<u32>, interface: Option<&str>) -> Option<&Link> {
        let here = netns.is_none() || self.netns.is_none() || netns == self.netns;
        self.links.iter().find(|link| here && Some(link.name.as_str()) == interface)
    }
}

impl Link {
    /// How long what is queued takes at the rate at which it goes out now.
    pub(super) fn backlog_s(&self) -> f64 {
        if self.tx_bits_per_second > 0.0 { self.backlog_bytes as f64 * 8.0 / self.tx_bits_per_second } else { 0.0 }
    }

    /// A device that knows its speed from a wire; virtual ones make it up.
    pub(super) fn wire_bits_per_second(&self) -> Option<f64> {
        self.speed_mbps.filter(|_| self.kind == "ethernet").map(|mbps| mbps as f64 * 1e6)
    }
}

/// Packets die at a device: no room, bad frames, a program at the driver or at tc.
pub fn interface_drops(evidence: &Evidence) -> Vec<Finding> {
    let at_device = |drop: &&DroppedPackets| {
        let reason = drop.reason.as_str();
        let named = ["XDP", "TC_INGRESS", "TC_EGRESS", "FULL_RING", "DEV_READY", "DEV_HDR", "NOMEM", "TAP_"];
        let at_driver = drop.location.contains("xdp") || drop.location.contains("__dev_forward_skb");
        named.iter().any(|name| reason.starts_with(name)) || (reason == "NOT_SPECIFIED" && at_driver)
    };
    let mut found = Vec::new();
    let place = |drop: &DroppedPackets| (drop.owner.netns, drop.interface.clone(), drop.reason.clone());
    for ((_, interface, reason), rows) in groups(evidence.drops.iter().filter(at_device), place) {
        let count: u64 = rows.iter().map(|row| row.count).sum();
        let name = interface.clone().unwrap_or_else(|| "an interface".into());
        let why = match rows[0].location.contains("xdp") || reason.starts_with("XDP") {
            true => "by an XDP program or its driver",
            false if reason.starts_with("TC_") => "by a tc program or filter",
            false => "because the queue was full or the packets were invalid",
        };
        let finding = Finding::new(
            Code::InterfaceDrops,
            warning_from(count, DEVICE_DROPS),
            format!("{count} packets were dropped at {name} {why}"),
        )
        .owner(&whose(&rows))
        .with("interface", &interface)
        .with("packets", count)
        .with("reason", reason)
        .with("location", &rows[0].location)
        .with("source", rows[0].source)
        .with("destination", rows[0].destination);
        let ends = rows.iter().flat_map(|row| [row.source, row.destination]).flatten().collect::<BTreeSet<_>>();
        let finding = ends.into_iter().fold(finding, Finding::at).look_at("trace_drops", rows[0].destination);
        found.push(next(finding, interface.as_deref()));
    }
    found.extend(counted_drops(evidence, &seen_by_packets(evidence, evidence.drops.iter().filter(at_device))));
    found
}

/// The drivers' counters, for links without traced drops.
fn counted_drops(evidence: &Evidence, told: &BTreeSet<&str>) -> Vec<Finding> {
    let mut found = Vec::new();
    // A packet that arrived over a veth still has its sender, in another network namespace.
    let is_link = |drop: &DroppedPackets, link: &Link| {
        let netns = drop.owner.netns.filter(|_| !is_known(&drop.owner));
        evidence.link(netns, drop.interface.as_deref()).is_some_and(|at| at.name == link.name)
    };
    for link in evidence.links.iter().filter(|link| !told.contains(link.name.as_str())) {
        // The kernel counts a frame of an unknown protocol (LLDP, a stray VLAN) as dropped by the device.
        let strange = evidence.drops.iter().filter(|drop| drop.reason == "UNHANDLED_PROTO");
        let strange = strange.filter(|drop| is_link(drop, link));
        let strange: u64 = strange.map(|drop| drop.count).sum();
        let rx_dropped = link.rx_dropped.saturating_sub(strange);
        let count = link.rx_errors + rx_dropped + link.tx_errors + link.tx_dropped;
        if count == 0 || link.kind == "loopback" || degraded::is_degraded(evidence, link) {
            continue;
        }
        let finding = Finding::new(
            Code::InterfaceDrops,
            warning_from(count, DEVICE_DROPS),
            format!("the driver of {} dropped {count} packets", link.name),
        )
        .with("interface", &link.name)
        .with("rx_errors", link.rx_errors)
        .with("rx_dropped", rx_dropped)
        .with("tx_errors", link.tx_errors)
        .with("tx_dropped", link.tx_dropped);
        found.push(next(finding, Some(&link.name)));
    }
    found
}

fn next(finding: Finding, interface: Option<&str>) -> Finding {
    let interface: Vec<_> = interface.iter().map(|name| ("interface", (*name).to_owned())).collect();
    finding.look("snapshot_interfaces", &interface).step("ip -s -s link show").step("bpftool net show")
}

/// One owner has most of a busy link, at the others' cost. Each network namespace has links of its own.
pub fn bandwidth_hog(evidence: &Evidence) -> Vec<Finding> {
    // Loopback traffic uses no bandwidth of others. If both ends are on this host, the sender counts.
    let ends: BTreeSet<_> = evidence.talkers.iter().map(|row| (row.local, row.remote)).collect();
    let receives =
        |row: &Talker| row.rx_bits_per_second > row.tx_bits_per_second && ends.contains(&(row.remote, row.local));
    let outside = |row: &&Talker| row.remote.is_none_or(|remote| !remote.address.is_loopback()) && !receives(row);
    let full: Vec<_> = link_saturated(evidence).into_iter().filter(|f| f.severity <= Severity::Warning).collect();
    let namespaces = groups(evidence.talkers.iter().filter(outside), |row| row.owner.netns);
    namespaces.into_iter().filter_map(|(_, rows)| hog(&rows, &full)).collect()
}

impl Talker {
    fn rate(&self) -> f64 {
        self.tx_bits_per_second.max(self.rx_bits_per_second)
    }

    /// Whether it sends over the link of a finding; unknown if the link has no traced packets.
    fn is_over(&self, link: &Finding) -> bool {
        let ends = [self.local, self.remote].into_iter().flatten().map(|end| end.address);
        link.places.is_empty() || ends.into_iter().any(|end| link.places.iter().any(|place| place.address == end))
    }
}

/// The owner of most of what some talkers send, if it is much. `full` are the links that have room for no more.
fn hog(talkers: &[&Talker], full: &[Finding]) -> Option<Finding> {
    /// Most: the others together have less than a fifth.
    const SHARE: f64 = 0.8;
    /// Below this no link of today is busy.
    const BUSY_BITS: f64 = 50e6;
    /// Below this rate nothing fills a link, whatever drops packets there.
    const FILLS_BITS: f64 = 50e3;
    let sum = |rows: &[&Talker]| rows.iter().map(|row| row.rate()).sum::<f64>();
    let owners = groups(talkers.iter().copied(), |row| program(&row.owner));
    let (_, rows) = owners.iter().max_by(|a, b| sum(&a.1).total_cmp(&sum(&b.1)))?;
    let (most, total) = (sum(rows), sum(talkers));
    let largest = rows.iter().max_by(|a, b| a.rate().total_cmp(&b.rate()))?;
    let saturated = full.iter().find(|link| largest.is_over(link));
    let much = if saturated.is_some() { FILLS_BITS } else { BUSY_BITS };
    if most < SHARE * total || most < much {
        return None;
    }
    let others = owners.iter().filter(|(_, rows)| sum(rows) > 0.0).count() - 1;
    // A link with free capacity harms no one, and the only user of a full link harms only itself.
    let severity = if saturated.is_some() && others > 0 { Severity::Warning } else { Severity::Info };
    let owner = common(rows.iter().map(|row| &row.owner));
    let percent = 100.0 * most / total;
    let summary =
        format!("{} uses {percent:.0} % of the traffic in its network namespace, {}", quoted(&owner), bit_rate(most));
    Some(
        Finding::new(Code::BandwidthHog, severity, summary)
            .owner(&owner)
            .with("share", (most / total * 1e3).round() / 1e3)
            .with("bits_per_second", most.round())
            .with("remote", largest.remote)
            .with("others", others)
            .with("saturated_interface", saturated.and_then(|finding| finding.evidence.get("interface")))
            .look("top_traffic", &[("group_by", "connection".into())]),
    )
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};

    fn talker(process: &str, bits: f64) -> Talker {
        Talker {
            owner: owner(process, 1),
            remote: Some(endpoint("10.0.0.1", 80)),
            tx_bits_per_second: bits,
            ..Talker::default()
        }
    }

    fn link(name: &str) -> Link {
        Link { name: name.into(), kind: "ethernet".into(), tx_bits_per_second: 1e6, ..Link::default() }
    }

    #[test]
    fn interface_drops_name_the_interface() {
        let links = vec![Link { rx_dropped: 40, ..link("eth0") }];
        let found = interface_drops(&Evidence { links, ..quiet() });
        assert_eq!(
            (told(&found), &found[0].evidence["interface"]),
            (vec![(Code::InterfaceDrops, Severity::Warning)], &"eth0".into())
        );
    }

    #[test]
    fn bandwidth_hog_warns_only_on_a_full_link() {
        let talkers = vec![talker("backup", 900e6), talker("web", 10e6)];
        let roomy = Evidence { talkers: talkers.clone(), ..quiet() };
        assert_eq!(told(&bandwidth_hog(&roomy)), [(Code::BandwidthHog, Severity::Info)]);
        let links = vec![Link { qdisc_dropped: 1_000, ..link("eth0") }];
        assert_eq!(told(&bandwidth_hog(&Evidence { links, ..roomy })), [(Code::BandwidthHog, Severity::Warning)]);
        let links = vec![Link { qdisc_dropped: 1_000, ..link("eth0") }];
        let little = Evidence { links, talkers: vec![talker("cron", 1.4e3)], ..quiet() };
        assert!(bandwidth_hog(&little).is_empty());
        let drops = vec![DroppedPackets {
            interface: Some("v0".into()),
            ..drop_of("QDISC_OVERLIMIT", "udp", ("10.9.9.9", 9), 500)
        }];
        let elsewhere = Evidence { drops, talkers, ..quiet() };
        assert_eq!(told(&bandwidth_hog(&elsewhere)), [(Code::BandwidthHog, Severity::Info)], "another link is full");
        let even = vec![talker("a", 300e6), talker("b", 300e6)];
        assert!(bandwidth_hog(&Evidence { talkers: even, ..quiet() }).is_empty());
    }

    #[test]
    fn frames_of_unknown_protocols_are_not_drops() {
        let links = vec![Link { rx_dropped: 150, ..link("eth0") }];
        let strange = DroppedPackets {
            reason: "UNHANDLED_PROTO".into(),
            interface: Some("eth0".into()),
            count: 150,
            ..DroppedPackets::default()
        };
        assert!(interface_drops(&Evidence { links, drops: vec![strange], ..quiet() }).is_empty());
    }
}
