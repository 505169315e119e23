//! Addresses that two have: IP addresses and those of the link layer, by mistake or on purpose.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::place;
use crate::tools::diagnose::{
    evidence::Evidence,
    fabric::Fabric,
    finding::{Code, Finding, Severity},
    network::{Address, Hardware, Link, Place},
    wants::Want,
};

/// `IFA_F_DADFAILED` of linux/if_addr.h.
const DAD_FAILED: u32 = 0x08;
/// `NUD_REACHABLE` and `NUD_PERMANENT` of linux/neighbour.h.
const REACHABLE: u32 = 0x02;
const PERMANENT: u32 = 0x80;

/// Two machines have one IP address.
pub fn duplicate_address(evidence: &Evidence) -> Vec<Finding> {
    let fabric = Fabric::of(&evidence.network);
    let mut by_address = BTreeMap::<IpAddr, Finding>::new();
    for address in evidence.network.addresses.iter().filter(|one| !one.address.is_loopback()) {
        let Some(link) = fabric.link(address.at) else { continue };
        let others = others(&fabric, address);
        let strangers = strangers(evidence, &fabric, address);
        let failed = address.flags & DAD_FAILED != 0;
        if (others.is_empty() && strangers.is_empty() && !failed) || !(link.works() || failed) {
            continue;
        }
        let also: Vec<_> = others.iter().map(|other| place::of(evidence, other)).collect();
        let with = match (also.first(), strangers.first()) {
            (Some(other), _) => other.clone(),
            (None, Some(stranger)) => stranger.to_string(),
            (None, None) => "another machine (found by duplicate address detection)".into(),
        };
        let summary = format!("duplicate address {}: {} and {with}", address.address, place::of(evidence, link));
        let hardware = [link.hardware].into_iter().chain(others.iter().map(|other| other.hardware)).flatten();
        let hardware: BTreeSet<_> = hardware.chain(strangers.iter().copied()).map(|one| one.to_string()).collect();
        let finding = place::at(evidence, Finding::new(Code::DuplicateAddress, Severity::Warning, summary), link)
            .with("address", address.address)
            .with("also_at", Some(also).filter(|also| !also.is_empty()))
            .with("link_layer_addresses", hardware)
            .at(address.address);
        by_address
            .entry(address.address)
            .or_insert_with(|| finding.step("ip address show").step(&format!("arping -D {}", address.address)));
    }
    for (address, places) in contested(evidence, &fabric, false) {
        by_address.entry(address).or_insert_with(|| seen(evidence, &fabric, Code::DuplicateAddress, address, &places));
    }
    by_address.into_values().collect()
}

/// Other devices on the same wire that have the same address, and can be reached.
fn others<'a>(fabric: &Fabric<'a>, address: &Address) -> Vec<&'a Link> {
    let twins: Vec<_> = fabric.owners(address.address).filter(|one| one.at.0 != address.at.0).collect();
    if twins.is_empty() {
        return Vec::new();
    }
    let near = fabric.segment(address.at);
    let twins = twins.into_iter().filter(|one| near.contains(&one.at) && one.flags & DAD_FAILED == 0);
    twins.filter_map(|one| fabric.link(one.at)).filter(|link| link.works()).collect()
}

/// Link-layer addresses of machines elsewhere that claim an address of ours on its wire.
fn strangers(evidence: &Evidence, fabric: &Fabric, address: &Address) -> BTreeSet<Hardware> {
    let claims = evidence.network.claims.iter().filter(|claim| claim.address == address.address);
    let claims: Vec<_> = claims.filter(|claim| fabric.with_hardware(claim.hardware).next().is_none()).collect();
    if claims.is_empty() {
        return BTreeSet::new();
    }
    let near = fabric.segment(address.at);
    let foreign = claims.into_iter().filter(|claim| near.contains(&claim.at) && !is_virtual(claim.hardware));
    foreign.map(|claim| claim.hardware).collect()
}

/// Of VRRP (RFC 5798): it moves from router to router on purpose.
fn is_virtual(hardware: Hardware) -> bool {
    hardware.0.starts_with(&[0, 0, 0x5e, 0, 1]) || hardware.0.starts_with(&[0, 0, 0x5e, 0, 2])
}

/// Addresses of foreign links that two hosts claim alternately, by place. `lies` are those where one of the two is
/// another host, known by an address of its own.
fn contested(evidence: &Evidence, fabric: &Fabric, lies: bool) -> BTreeMap<IpAddr, Vec<Contest>> {
    let mut found = BTreeMap::<_, Vec<_>>::new();
    for claim in evidence.network.claims.iter().filter(|claim| fabric.owners(claim.address).next().is_none()) {
        let same = |other: &&crate::tools::diagnose::network::Claim| {
            (other.at, other.address) == (claim.at, claim.address) && other.hardware > claim.hardware
        };
        for other in evidence.network.claims.iter().filter(same) {
            // An address that moves once, to a machine that takes over, is claimed by one after the other.
            let in_turn = claim.last_ms > other.first_ms && other.last_ms > claim.first_ms;
            let virtual_one = is_virtual(claim.hardware) || is_virtual(other.hardware);
            let liar = [claim.hardware, other.hardware]
                .into_iter()
                .find(|one| has_another(evidence, fabric, *one, claim.address));
            if in_turn && !virtual_one && liar.is_some() == lies {
                let contest = Contest { at: claim.at, hardware: [claim.hardware, other.hardware], liar };
                found.entry(claim.address).or_default().push(contest);
            }
        }
    }
    found
}

/// Two that claim one address.
struct Contest {
    at: Place,
    hardware: [Hardware; 2],
    liar: Option<Hardware>,
}

/// Whether a machine claims, or has, another address of the same family as well.
fn has_another(evidence: &Evidence, fabric: &Fabric, hardware: Hardware, address: IpAddr) -> bool {
    let other = |one: IpAddr| one != address && one.is_ipv4() == address.is_ipv4();
    let claims = evidence.network.claims.iter().any(|claim| claim.hardware == hardware && other(claim.address));
    let own = |link: &Link| fabric.addresses(link.at).iter().any(|one| other(one.address));
    claims || fabric.with_hardware(hardware).any(own)
}

fn seen(evidence: &Evidence, fabric: &Fabric, code: Code, address: IpAddr, contests: &[Contest]) -> Finding {
    let hardware: BTreeSet<_> = contests.iter().flat_map(|one| one.hardware).map(|one| one.to_string()).collect();
    let all = hardware.iter().cloned().collect::<Vec<_>>().join(" and ");
    let summary = format!("{all} alternately claim {address}");
    let finding = Finding::new(code, Severity::Warning, summary)
        .with("address", address)
        .with("link_layer_addresses", hardware)
        .with("claimed_by", contests.iter().find_map(|one| one.liar).map(|liar| liar.to_string()))
        .at(address);
    let link = contests.iter().find_map(|one| fabric.link(one.at));
    let finding = link.map_or(finding.clone(), |link| place::at(evidence, finding, link));
    finding.step(&format!("ip neigh show {address}")).step(&format!("arping {address}"))
}

/// Two devices on one wire have the same link-layer address.
pub fn duplicate_mac(evidence: &Evidence) -> Vec<Finding> {
    let fabric = Fabric::of(&evidence.network);
    let mut by_hardware = BTreeMap::<Hardware, Vec<&Link>>::new();
    // A bridge has the address of one of its ports, and devices on top of another one have that one's.
    let shares =
        |link: &Link| ["bridge", "vlan", "macvlan", "ipvlan", "bond", "team", "vrf"].contains(&link.kind.as_str());
    for link in fabric.links().filter(|link| fabric.is_station(link) && link.works() && !shares(link)) {
        link.hardware.into_iter().for_each(|hardware| by_hardware.entry(hardware).or_default().push(link));
    }
    let mut found = Vec::new();
    for (hardware, links) in by_hardware.into_iter().filter(|(_, links)| links.len() > 1) {
        let near = fabric.segment(links[0].at);
        let same: Vec<_> = links.into_iter().filter(|link| near.contains(&link.at)).collect();
        let [first, rest @ ..] = &same[..] else { continue };
        if rest.is_empty() {
            continue;
        }
        let others: Vec<_> = rest.iter().map(|link| place::of(evidence, link)).collect();
        let summary = format!(
            "{} and {} have the same link-layer address {hardware} on one link",
            place::of(evidence, first),
            others.join(" and ")
        );
        let finding = place::at(evidence, Finding::new(Code::DuplicateMac, Severity::Warning, summary), first)
            .with("link_layer_address", hardware.to_string())
            .with("also_at", others)
            .with("also_netns", rest.iter().map(|link| link.at.0).collect::<Vec<_>>());
        let addresses = same.iter().flat_map(|link| fabric.addresses(link.at)).filter(|one| !one.is_link_local());
        let finding = addresses.fold(finding, |finding, one| finding.at(one.address));
        found.push(finding.step("ip link show").step("bridge fdb show"));
    }
    found
}

/// Somebody says that an address of another one is his, or a table of neighbors says so.
pub fn arp_poisoning(evidence: &Evidence) -> Vec<Finding> {
    let (fabric, wants) = (Fabric::of(&evidence.network), evidence.wants());
    let mut by_address = BTreeMap::<IpAddr, Finding>::new();
    for claim in &evidence.network.claims {
        let Some(owner) = rightful(&fabric, claim.at, claim.address) else { continue };
        let false_one =
            !fabric.network.links.iter().any(|link| link.at.0 == owner.at.0 && link.hardware == Some(claim.hardware));
        // An unknown host may have the address as well.
        let known = has_another(evidence, &fabric, claim.hardware, claim.address);
        let has_it = fabric.with_hardware(claim.hardware).any(|link| has(&fabric, link.at.0, claim.address));
        if false_one && known && !has_it && !is_virtual(claim.hardware) {
            let finding = poisoned(evidence, &fabric, owner, claim.at, claim.hardware);
            by_address.entry(claim.address).or_insert_with(|| finding.with("claims", claim.count));
        }
    }
    for neighbor in &evidence.network.neighbors {
        let (Some(hardware), Some(owner)) = (neighbor.hardware, rightful(&fabric, neighbor.at, neighbor.address))
        else {
            continue;
        };
        let right = fabric.network.links.iter().any(|link| link.at.0 == owner.at.0 && link.hardware == Some(hardware));
        // An unconfirmed entry is dropped when it is used: its owner may be new.
        let uses = |want: &&Want| want.netns == neighbor.at.0 && want.next() == neighbor.address;
        let in_use: Vec<_> = wants.iter().filter(uses).collect();
        let holds = neighbor.state & PERMANENT != 0 && !in_use.is_empty() || neighbor.state & REACHABLE != 0;
        let has_it = fabric.with_hardware(hardware).any(|link| has(&fabric, link.at.0, neighbor.address));
        if right || !holds || has_it || is_virtual(hardware) {
            continue;
        }
        let finding = poisoned(evidence, &fabric, owner, neighbor.at, hardware)
            .with("entry", if neighbor.state & PERMANENT != 0 { "static" } else { "learned" });
        by_address.entry(neighbor.address).or_insert_with(|| place::wanted(finding, &in_use));
    }
    for (address, contests) in contested(evidence, &fabric, true) {
        by_address.entry(address).or_insert_with(|| seen(evidence, &fabric, Code::ArpPoisoning, address, &contests));
    }
    by_address.into_values().collect()
}

/// The device on the wire of `at` that has an address, in another namespace.
fn rightful<'a>(fabric: &Fabric<'a>, at: Place, address: IpAddr) -> Option<&'a Link> {
    let mut owners = fabric.owners(address).peekable();
    owners.peek()?;
    let near = fabric.segment(at);
    owners.find(|one| near.contains(&one.at)).and_then(|one| fabric.link(one.at))
}

fn has(fabric: &Fabric, netns: u32, address: IpAddr) -> bool {
    fabric.owners(address).any(|one| one.at.0 == netns)
}

/// `at` is where the false address is believed, or seen.
fn poisoned(evidence: &Evidence, fabric: &Fabric, owner: &Link, at: Place, hardware: Hardware) -> Finding {
    let liar = fabric.with_hardware(hardware).find(|link| fabric.is_station(link));
    let addresses = fabric.addresses(owner.at);
    let address = addresses.iter().find(|one| !one.is_link_local()).map(|one| one.address);
    let who = liar.map_or_else(|| hardware.to_string(), |link| format!("{} ({hardware})", place::of(evidence, link)));
    let victim = fabric.link(at).map(|link| place::of(evidence, link));
    let shown = address.map_or_else(|| "an address".into(), |address| address.to_string());
    let summary = format!("false address claim: {shown} of {} is at {who}", place::of(evidence, owner));
    let finding = Finding::new(Code::ArpPoisoning, Severity::Warning, summary);
    // The node at fault is the liar; if it is unknown, the node that believes it.
    let finding = match liar.or(fabric.link(at)) {
        Some(link) => place::at(evidence, finding, link),
        None => finding,
    };
    let finding =
        addresses.iter().filter(|one| !one.is_link_local()).fold(finding, |finding, one| finding.at(one.address));
    finding
        .with("address", address)
        .with("link_layer_address", owner.hardware.map(|right| right.to_string()))
        .with("false_link_layer_address", hardware.to_string())
        .with("seen_at", victim)
        .step(&address.map_or_else(|| "ip neigh show".into(), |address| format!("ip neigh show {address}")))
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};
    use crate::{
        answer::Owner,
        tools::diagnose::{
            evidence::Outcome,
            fabric::tests::{address, bridged, link},
            network::{Claim, Neighbor, Network},
        },
    };

    /// Namespace 3 is on the same bridge, as 10.0.0.3.
    fn three() -> Network {
        let mut network = bridged();
        network.links.push(Link { master: Some((9, 2)), peer: Some((3, 2)), ..link(9, 5, "port") });
        network.links.push(Link { peer: Some((9, 5)), kind: "veth".into(), ..link(3, 2, "eth0") });
        network.addresses.push(address((3, 2), "10.0.0.3/24"));
        network
    }

    fn claim(text: &str, hardware: Hardware, first_ms: u64, last_ms: u64) -> Claim {
        Claim { at: (1, 2), address: text.parse().unwrap(), hardware, first_ms, last_ms, count: 3 }
    }

    fn on(network: Network) -> Evidence {
        Evidence { network, ..quiet() }
    }

    const FAR: Hardware = Hardware([2, 9, 9, 9, 9, 9]);
    const FARTHER: Hardware = Hardware([2, 9, 9, 9, 9, 8]);

    #[test]
    fn duplicate_address_on_one_segment_is_one_finding() {
        let mut network = three();
        network.addresses.push(address((3, 2), "10.0.0.2/24"));
        let found = duplicate_address(&on(network.clone()));
        assert_eq!(told(&found), [(Code::DuplicateAddress, Severity::Warning)]);
        assert_eq!(found[0].evidence["link_layer_addresses"].as_array().unwrap().len(), 2);
        assert!(arp_poisoning(&on(network.clone())).is_empty());
        network.addresses.retain(|one| one.at.0 != 3);
        network.addresses.push(address((5, 2), "10.0.0.2/24"));
        assert!(duplicate_address(&on(network)).is_empty(), "another wire");
    }

    #[test]
    fn own_address_claimed_by_another_host_is_duplicate() {
        let mut network = three();
        network.claims = vec![claim("10.0.0.2", FAR, 100, 200)];
        assert_eq!(told(&duplicate_address(&on(network.clone()))), [(Code::DuplicateAddress, Severity::Warning)]);
        network.claims[0].hardware = Hardware([0, 0, 0x5e, 0, 1, 7]);
        assert!(duplicate_address(&on(network)).is_empty(), "a router's virtual address");
    }

    #[test]
    fn address_moving_once_is_a_failover() {
        let at = |first, last| claim("10.0.0.99", FARTHER, first, last);
        let mut network = three();
        network.claims = vec![claim("10.0.0.99", FAR, 0, 1_000), at(2_000, 9_000)];
        assert!(duplicate_address(&on(network.clone())).is_empty());
        network.claims[1] = at(500, 9_000);
        assert_eq!(told(&duplicate_address(&on(network.clone()))), [(Code::DuplicateAddress, Severity::Warning)]);
        network.claims.push(claim("10.0.0.98", FAR, 0, 9_000));
        assert!(duplicate_address(&on(network.clone())).is_empty(), "one is known by another address");
        assert_eq!(told(&arp_poisoning(&on(network))), [(Code::ArpPoisoning, Severity::Warning)]);
    }

    #[test]
    fn arp_poisoning_names_the_claiming_namespace() {
        let mut network = three();
        let liar = network.links.iter().find(|link| link.at == (3, 2)).unwrap().hardware.unwrap();
        network.claims = vec![claim("10.0.0.2", liar, 100, 200)];
        let found = arp_poisoning(&on(network.clone()));
        assert_eq!(
            (told(&found), &found[0].evidence["netns"]),
            (vec![(Code::ArpPoisoning, Severity::Warning)], &3.into())
        );
        assert!(duplicate_address(&on(network.clone())).is_empty());
        let owner = network.links.iter().find(|link| link.at == (2, 2)).unwrap().hardware.unwrap();
        network.claims[0].hardware = owner;
        assert!(arp_poisoning(&on(network)).is_empty(), "that is an ARP refresh");
    }

    #[test]
    fn wrong_neighbor_entry_matters_only_in_use() {
        let mut network = three();
        let neighbor = |state| Neighbor { at: (1, 2), address: [10, 0, 0, 2].into(), hardware: Some(FAR), state };
        network.neighbors = vec![neighbor(PERMANENT)];
        assert!(arp_poisoning(&on(network.clone())).is_empty(), "nobody uses it");
        let owner = Owner { netns: Some(1), ..owner("client", 7) };
        let client = crate::tools::diagnose::evidence::Connection {
            owner,
            retransmits: 2,
            ..connection("10.0.0.2", 80, Outcome::Unanswered)
        };
        let mut used = Evidence { connections: vec![client], ..on(network) };
        let found = arp_poisoning(&used);
        assert_eq!(
            (told(&found), &found[0].evidence["netns"]),
            (vec![(Code::ArpPoisoning, Severity::Warning)], &1.into())
        );
        used.network.neighbors = vec![neighbor(0x04)];
        assert!(arp_poisoning(&used).is_empty(), "a stale one, of a machine that was replaced, mends itself");
    }

    #[test]
    fn duplicate_mac_of_two_ends_is_reported() {
        let mut network = three();
        let hardware = network.links[0].hardware;
        let other = network.links.iter_mut().find(|link| link.at == (3, 2)).unwrap();
        other.hardware = hardware;
        assert_eq!(told(&duplicate_mac(&on(network.clone()))), [(Code::DuplicateMac, Severity::Warning)]);
        network.links.retain(|link| link.at != (3, 2));
        network.links[4].hardware = hardware; // a bridge port; not an end
        assert!(duplicate_mac(&on(network)).is_empty());
    }
}
