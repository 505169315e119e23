//! Links, and their shapers, to which more is sent than they take.

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    drops::{seen_by_packets, whose},
    warning_from,
};
use crate::{
    answer::Owner,
    tools::diagnose::{
        evidence::{DroppedPackets, Evidence, Link, QueueCourse, Talker, groups},
        fabric::Fabric,
        finding::{Code, Finding, HostPort, Severity},
    },
};

/// A queue that takes this long to drain delays everyone behind it as much as a distant continent.
const BACKLOG_S: f64 = 0.1;
/// Packets that a burst may lose at a queue without anyone to notice.
const QUEUE_DROPS: u64 = 10;

fn is_queue(drop: &&DroppedPackets) -> bool {
    let reason = drop.reason.as_str();
    reason.starts_with("QDISC_") || reason.starts_with("FQ_") || reason == "CAKE_FLOOD"
}

impl QueueCourse {
    /// A queue of more than a moment in half of the readings: what comes in is more than what goes out. Some disciplines hold
    /// packets that could go: until the time that their sender asked for, or to make a link look longer.
    fn is_standing(&self) -> bool {
        const SHARE: f64 = 0.5;
        let holds = ["fq", "etf", "taprio", "netem"].contains(&self.kind.as_str());
        !holds && self.standing_share >= SHARE
    }
}

/// A network namespace, and an interface of it.
type Device = (Option<u32>, Option<String>);

/// The links with queues that dropped packets, and those packets.
fn dropping(evidence: &Evidence) -> Vec<(Device, Vec<&DroppedPackets>)> {
    groups(evidence.drops.iter().filter(is_queue), |drop| (drop.owner.netns, drop.interface.clone()))
}

/// More is sent than the link, or its shaper, takes.
pub fn link_saturated(evidence: &Evidence) -> Vec<Finding> {
    let mut found = by_drops(evidence);
    found.extend(by_queues(evidence));
    found.extend(by_counters(evidence));
    found
}

fn by_drops(evidence: &Evidence) -> Vec<Finding> {
    let mut found = Vec::new();
    for ((netns, interface), rows) in dropping(evidence) {
        let dropped: u64 = rows.iter().map(|row| row.count).sum();
        let link = evidence.link(netns, interface.as_deref());
        let queue = evidence.queues.iter().find(|queue| is_before(queue, netns, interface.as_deref()));
        let name = interface.clone().unwrap_or_else(|| "an interface".into());
        let summary = format!("{name} is saturated: its queue dropped {dropped} packets");
        let severity = if queue.is_some_and(QueueCourse::is_standing) {
            Severity::Warning
        } else {
            warning_from(dropped, QUEUE_DROPS)
        };
        let finding = Finding::new(Code::LinkSaturated, severity, summary)
            .owner(&whose(&rows))
            .with("interface", interface)
            .with("queue_drops", dropped)
            .with("reason", &rows[0].reason)
            .with("source", rows[0].source)
            .with("destination", rows[0].destination);
        let finding = with_link(with_queue(at_ends(finding, &rows), queue), link);
        found.push(finding);
    }
    found
}

/// The loss is of whole paths: whatever else goes to the same address suffers with it.
fn at_ends(finding: Finding, rows: &[&DroppedPackets]) -> Finding {
    let ends = rows.iter().flat_map(|row| [row.source, row.destination]).flatten().collect::<BTreeSet<_>>();
    ends.into_iter().fold(finding, |finding, end| finding.at(end).at(end.address))
}

fn is_before(queue: &QueueCourse, netns: Option<u32>, interface: Option<&str>) -> bool {
    Some(queue.netns) == netns && Some(queue.interface.as_str()) == interface
}

/// Standing queues, in all network namespaces, without traced drops.
fn by_queues(evidence: &Evidence) -> Vec<Finding> {
    let told = dropping(evidence);
    let is_told =
        |queue: &QueueCourse| told.iter().any(|((netns, interface), _)| is_before(queue, *netns, interface.as_deref()));
    let fabric = Fabric::of(&evidence.network);
    let full = |queue: &&QueueCourse| queue.is_standing() || queue.dropped >= QUEUE_DROPS;
    let found = evidence.queues.iter().filter(full).filter(|queue| !is_told(queue)).map(|queue| {
        let summary = format!(
            "{} is saturated: packets wait {} ms in its queue, {} were dropped",
            queue.interface,
            queue.delay.as_millis(),
            queue.dropped
        );
        let sends = |row: &&Talker| row.owner.netns == Some(queue.netns) && row.tx_bits_per_second > 0.0;
        let senders = || evidence.talkers.iter().filter(sends).filter(|row| is_outside(row));
        let most = senders().max_by(|a, b| a.tx_bits_per_second.total_cmp(&b.tx_bits_per_second));
        let owner =
            most.map_or_else(|| Owner { netns: Some(queue.netns), ..Owner::default() }, |row| row.owner.clone());
        let finding = Finding::new(Code::LinkSaturated, Severity::Warning, summary)
            .owner(&owner)
            .with("interface", &queue.interface)
            .with("netns", queue.netns)
            .with("queue_drops", queue.dropped)
            .with("tx_bits_per_second", queue.bits_per_second.round())
            .with("destination", most.and_then(|row| row.remote));
        // A router's own sockets prove nothing: a sender with a part of the link's rate is assumed to pass it.
        let rate = queue.bits_per_second;
        let has_part = |row: &&Talker| row.tx_bits_per_second >= 0.1 * rate && row.tx_bits_per_second <= 1.2 * rate;
        let others = evidence.talkers.iter().filter(|row| most.is_none() && has_part(row) && is_outside(row));
        let others = others.filter(|row| row.remote.is_none_or(|to| leads_there(&fabric, queue, to.address)));
        let to: BTreeSet<_> =
            senders().chain(others).filter_map(|row| row.remote).map(|remote| HostPort::from(remote.address)).collect();
        next(to.into_iter().fold(with_queue(finding, Some(queue)), Finding::at))
    });
    found.collect()
}

/// Whether a router sends packets to an address out of this link. A namespace without addresses is a bridge and passes
/// them all.
fn leads_there(fabric: &Fabric, queue: &QueueCourse, to: IpAddr) -> bool {
    let network = fabric.network;
    let is_router = network.addresses.iter().any(|one| one.at.0 == queue.netns && !one.address.is_loopback());
    let link = network.links.iter().find(|link| link.at.0 == queue.netns && link.name == queue.interface);
    match (link, fabric.egress(queue.netns, to)) {
        (Some(link), Some(egress)) if is_router => egress == link.at || link.master == Some(egress),
        (Some(_), None) => !is_router,
        _ => true,
    }
}

fn is_outside(row: &Talker) -> bool {
    row.remote.is_some_and(|remote| !remote.address.is_loopback())
}

fn with_queue(finding: Finding, queue: Option<&QueueCourse>) -> Finding {
    let Some(queue) = queue else { return finding };
    finding
        .with("qdisc", &queue.kind)
        .with("queue_delay_ms", queue.delay.as_millis() as u64)
        .with("backlog_bytes", queue.backlog_bytes)
}

/// What the devices of our own network namespace count.
fn by_counters(evidence: &Evidence) -> Vec<Finding> {
    let told = seen_by_packets(evidence, evidence.drops.iter().filter(is_queue));
    let in_readings = |link: &Link| {
        let course = evidence.queues.iter().find(|queue| is_before(queue, evidence.netns, Some(&link.name)));
        course.is_some_and(|queue| queue.is_standing() || queue.dropped >= QUEUE_DROPS)
    };
    let queues = |link: &Link| link.qdisc_dropped >= QUEUE_DROPS || link.backlog_s() >= BACKLOG_S;
    // 95 %: the rest is what frames need on the wire.
    let full_wire =
        |link: &Link| link.wire_bits_per_second().is_some_and(|speed| link.tx_bits_per_second >= 0.95 * speed);
    let full = |link: &&Link| queues(link) || full_wire(link);
    let links = evidence.links.iter().filter(full);
    let found = links.filter(|link| !told.contains(link.name.as_str()) && !in_readings(link)).map(|link| {
        let summary = format!(
            "{} is saturated: its queue holds {:.0} ms of packets, {} were dropped",
            link.name,
            link.backlog_s() * 1e3,
            link.qdisc_dropped
        );
        // A busy link that nothing waits for harms nobody.
        let severity = if queues(link) { Severity::Warning } else { Severity::Info };
        let finding = Finding::new(Code::LinkSaturated, severity, summary).with("interface", &link.name);
        with_link(finding.with("queue_drops", link.qdisc_dropped), Some(link))
    });
    found.collect()
}

fn with_link(finding: Finding, link: Option<&Link>) -> Finding {
    let finding = match link {
        Some(link) => finding
            .with("tx_bits_per_second", link.tx_bits_per_second.round())
            .with("qdisc", &link.qdisc)
            .with("backlog_bytes", link.backlog_bytes)
            .with("backlog_ms", (link.backlog_s() * 1e3).round())
            .with("speed_mbps", link.speed_mbps),
        None => finding,
    };
    next(finding)
}

fn next(finding: Finding) -> Finding {
    finding.look("top_traffic", &[("group_by", "connection".into())]).step("tc -s qdisc show")
}

/// Many senders to one receiver overrun the queue before it.
pub fn incast(evidence: &Evidence) -> Vec<Finding> {
    /// Fewer are a backup and a few clients on a link that is busy.
    const SENDERS: usize = 5;
    /// Of what is dropped, so much is for the one receiver.
    const SHARE: f64 = 0.8;
    let mut found = Vec::new();
    for ((_, interface), rows) in dropping(evidence) {
        let receiver = |row: &DroppedPackets| match row.destination {
            Some(end) => Some(end.address),
            None if row.course.destinations.len() == 1 => row.course.destinations.first().copied(),
            None => None,
        };
        let dropped = |rows: &[&DroppedPackets]| rows.iter().map(|row| row.count).sum::<u64>();
        let by_receiver = groups(rows.iter().copied(), receiver);
        let Some((Some(to), most)) = by_receiver.iter().max_by_key(|(_, rows)| dropped(rows)) else { continue };
        let named = most.iter().filter_map(|row| row.source).map(|source| source.address);
        let senders: BTreeSet<_> =
            most.iter().flat_map(|row| row.course.sources.iter().copied()).chain(named).collect();
        let (count, all) = (dropped(most), dropped(&rows));
        if senders.len() < SENDERS || (count as f64) < SHARE * all as f64 {
            continue;
        }
        let name = interface.clone().unwrap_or_else(|| "an interface".into());
        let summary = format!(
            "{} senders to {to} overflow the queue of {name} together: {count} packets were dropped",
            senders.len()
        );
        let finding = Finding::new(Code::Incast, warning_from(count, QUEUE_DROPS), summary)
            .owner(&whose(most))
            .with("interface", interface)
            .with("senders", senders.len())
            .with("receiver_address", to)
            .with("queue_drops", count)
            .with("source_addresses", senders.iter().take(5).collect::<Vec<_>>())
            .at(*to);
        let queue_step = "use a longer queue or ECN, or spread the senders' answers over time";
        found.push(next(at_ends(finding, most)).step(queue_step));
    }
    found
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{super::tests::*, *};
    use crate::tools::diagnose::{
        evidence::Talker,
        fabric::tests::{address as address_at, link as link_at},
        network::Network,
    };

    fn link(name: &str) -> Link {
        Link { name: name.into(), kind: "ethernet".into(), tx_bits_per_second: 1e6, ..Link::default() }
    }

    fn queue(kind: &str, standing_share: f64) -> Evidence {
        let queue = QueueCourse {
            netns: 7,
            interface: "v0".into(),
            kind: kind.into(),
            delay: Duration::from_millis(40),
            standing_share,
            bits_per_second: 20e6,
            ..QueueCourse::default()
        };
        Evidence { queues: vec![queue], ..quiet() }
    }

    #[test]
    fn standing_queue_is_a_saturated_link() {
        let owner = Owner { netns: Some(7), ..owner("backup", 9) };
        let talker =
            Talker { owner, remote: Some(endpoint("10.0.0.1", 80)), tx_bits_per_second: 19e6, ..Talker::default() };
        let found = link_saturated(&Evidence { talkers: vec![talker], ..queue("tbf", 0.9) });
        assert_eq!(told(&found), [(Code::LinkSaturated, Severity::Warning)]);
        let evidence = &found[0].evidence;
        assert_eq!((&evidence["queue_delay_ms"], &evidence["owner"]["process"]), (&40.into(), &"backup".into()));
        assert!(link_saturated(&queue("tbf", 0.3)).is_empty(), "a burst");
        assert!(link_saturated(&queue("fq", 0.9)).is_empty(), "a sender that paces");
    }

    #[test]
    fn full_queue_of_a_router_concerns_who_is_routed_through_it() {
        let names = [link_at(7, 2, "v0"), link_at(7, 3, "v1")];
        let addresses = ["10.0.0.254/24", "10.0.1.254/24"];
        let addresses = names.iter().zip(addresses).map(|(link, text)| address_at(link.at, text)).collect();
        let network = Network { links: names.to_vec(), addresses, ..Network::default() };
        let talker = |to| Talker {
            owner: Owner { netns: Some(8), ..owner("client", 9) },
            remote: Some(endpoint(to, 80)),
            tx_bits_per_second: 10e6,
            ..Talker::default()
        };
        let talkers = vec![talker("10.0.0.1"), talker("10.0.1.1")];
        let concerned = |network| {
            let found = link_saturated(&Evidence { talkers: talkers.clone(), network, ..queue("tbf", 0.9) });
            found[0].places.iter().map(|place| place.address.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(concerned(network), ["10.0.0.1"]);
        assert_eq!(concerned(Network::default()), ["10.0.0.1", "10.0.1.1"], "a bridge");
    }

    #[test]
    fn many_senders_to_one_receiver_are_incast() {
        let dropped = |senders: u8| {
            let row = |n: u8| DroppedPackets {
                interface: Some("br0".into()),
                source: Some(endpoint(&format!("10.0.0.{}", 100 + n), 40_000).into()),
                ..drop_of("QDISC_OVERLIMIT", "tcp", ("10.0.0.1", 80), 20)
            };
            Evidence { drops: (0..senders).map(row).collect(), ..quiet() }
        };
        let found = incast(&dropped(8));
        assert_eq!(told(&found), [(Code::Incast, Severity::Warning)]);
        assert_eq!(found[0].evidence["senders"], 8);
        assert!(incast(&dropped(3)).is_empty());
        let mut download = dropped(8);
        download.drops.iter_mut().for_each(|drop| std::mem::swap(&mut drop.source, &mut drop.destination));
        assert!(incast(&download).is_empty(), "one sender, many receivers");
    }

    #[test]
    fn dropping_queue_is_a_saturated_link() {
        let drops = |count| Evidence {
            drops: vec![DroppedPackets {
                interface: Some("v0".into()),
                ..drop_of("QDISC_OVERLIMIT", "udp", ("10.0.0.1", 9), count)
            }],
            ..quiet()
        };
        assert_eq!(told(&link_saturated(&drops(500))), [(Code::LinkSaturated, Severity::Warning)]);
        assert_eq!(told(&link_saturated(&drops(2))), [(Code::LinkSaturated, Severity::Info)]);
    }

    #[test]
    fn saturation_depends_on_queue_delay() {
        let judged = |link| told(&link_saturated(&Evidence { links: vec![link], ..quiet() }));
        assert_eq!(judged(Link { backlog_bytes: 50_000, ..link("eth0") }), [(Code::LinkSaturated, Severity::Warning)]);
        assert_eq!(judged(Link { backlog_bytes: 50_000, tx_bits_per_second: 1e9, ..link("eth0") }), []);
        let veth = Link { kind: "veth".into(), speed_mbps: Some(10_000), tx_bits_per_second: 20e9, ..link("v0") };
        assert_eq!(judged(veth), [], "a veth has no speed");
    }

    #[test]
    fn interfaces_are_separate_per_namespace() {
        let in_netns = |netns| DroppedPackets {
            owner: Owner { netns: Some(netns), ..Owner::default() },
            interface: Some("eth0".into()),
            ..drop_of("QDISC_OVERLIMIT", "udp", ("10.0.0.1", 9), 500)
        };
        let links = vec![Link { qdisc: Some("ours".into()), qdisc_dropped: 1_000, ..link("eth0") }];
        let found =
            link_saturated(&Evidence { drops: vec![in_netns(2), in_netns(3)], links, netns: Some(1), ..quiet() });
        let qdiscs: Vec<_> = found.iter().map(|finding| finding.evidence.get("qdisc").is_some()).collect();
        assert_eq!(qdiscs, [false, false, true], "two of others, and ours, which drops as well");
    }
}
