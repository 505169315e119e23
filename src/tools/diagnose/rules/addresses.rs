//! Addresses that are missing, and prefixes that do not fit the network.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::place;
use crate::tools::diagnose::{
    evidence::Evidence,
    fabric::Fabric,
    finding::{Code, Finding, Severity},
    network::{Address, Link, Place, What, is_within},
    wants::{How, Want},
};

/// An interface that is up, and that traffic is for, has no address of a family.
pub fn address_missing(evidence: &Evidence) -> Vec<Finding> {
    let (fabric, wants) = (Fabric::of(&evidence.network), evidence.wants());
    let mut by_link = BTreeMap::<Place, (Vec<&Want>, BTreeSet<IpAddr>)>::new();
    for want in &wants {
        if let Some((at, address)) = lost(evidence, &fabric, want).or_else(|| without(&fabric, want)) {
            let (harmed, missing) = by_link.entry(at).or_default();
            harmed.push(want);
            missing.extend(address);
        }
    }
    let found = by_link.into_iter().filter_map(|(at, (harmed, missing))| {
        let link = fabric.link(at)?;
        let family = if harmed[0].to.is_ipv4() { "IPv4" } else { "IPv6" };
        let which =
            missing.first().map_or_else(|| format!("no {family} address"), |one| format!("lost its address {one}"));
        let has = if missing.is_empty() { "has " } else { "" };
        let summary = format!("{} {has}{which}, and traffic needs it", place::of(evidence, link));
        let finding = place::at(evidence, Finding::new(Code::AddressMissing, Severity::Warning, summary), link)
            .with("family", family)
            .with("missing", Some(&missing).filter(|missing| !missing.is_empty()));
        let finding = missing.iter().fold(finding, |finding, address| finding.at(*address));
        Some(place::wanted(finding, &harmed).step("ip address show"))
    });
    found.collect()
}

/// The address that went in the window and that this traffic needs: to send with, or to be reached at.
fn lost(evidence: &Evidence, fabric: &Fabric, want: &Want) -> Option<(Place, Option<IpAddr>)> {
    let gone = evidence.network.changes.iter().filter_map(|change| match &change.what {
        What::AddressGone(address) => Some(address),
        _ => None,
    });
    let had_way = |gone: &Address| {
        evidence.network.changes.iter().any(|change| match &change.what {
            What::RouteGone(route) => (route.netns, route.link) == gone.at && route.covers(want.to),
            _ => false,
        })
    };
    let is_missed = |gone: &&Address| {
        let here = want.netns == gone.at.0 && want.to.is_ipv4() == gone.address.is_ipv4();
        // It may have moved to another device, such as a bridge.
        let moved = fabric.owners(gone.address).any(|one| one.at.0 == gone.at.0);
        let works = fabric.link(gone.at).is_some_and(Link::works);
        let sends = here && (gone.covers(want.next()) || had_way(gone) || want.from == Some(gone.address));
        works && !moved && (sends || want.missed(fabric, gone.address))
    };
    gone.filter(|gone| !gone.is_link_local()).find(is_missed).map(|gone| (gone.at, Some(gone.address)))
}

/// The device without an address that this traffic should leave by, or arrive at.
fn without(fabric: &Fabric, want: &Want) -> Option<(Place, Option<IpAddr>)> {
    // Most hosts have no IPv6, and nothing is missing there.
    if want.how == How::NoRoute && want.to.is_ipv4() {
        let here: Vec<_> =
            fabric.links().filter(|link| link.at.0 == want.netns && is_bare(fabric, link, want.to)).collect();
        // The others on its wire have addresses of the network that it wants.
        let beside = |link: &&&Link| {
            let near = fabric.segment(link.at);
            let others = fabric.network.addresses.iter().filter(|one| one.at != link.at && near.contains(&one.at));
            others.into_iter().any(|one| one.covers(want.next()))
        };
        let has_none = || {
            let own = fabric.network.addresses.iter().filter(|one| one.at.0 == want.netns && one.address.is_ipv4());
            own.into_iter().all(|one| one.address.is_loopback())
        };
        return here.iter().find(beside).or_else(|| here.first().filter(|_| has_none())).map(|link| (link.at, None));
    }
    if want.how != How::Neighbor || fabric.owners(want.next()).next().is_some() {
        return None;
    }
    // Nobody on this host has the address that is searched on the wire, and one there has none.
    let from = fabric.egress(want.netns, want.next())?;
    let near = fabric.segment(from);
    let elsewhere =
        |link: &&Link| link.at.0 != want.netns && near.contains(&link.at) && is_bare(fabric, link, want.next());
    fabric.links().find(elsewhere).map(|link| (link.at, None))
}

/// Whether a device speaks for itself and has nothing to say it with.
fn is_bare(fabric: &Fabric, link: &Link, family_of: IpAddr) -> bool {
    // A bridge needs no address to do its work.
    let is_end = fabric.is_station(link) && link.kind != "bridge" && link.works();
    is_end
        && !fabric
            .addresses(link.at)
            .iter()
            .any(|one| one.address.is_ipv4() == family_of.is_ipv4() && (family_of.is_ipv4() || !one.is_link_local()))
}

/// The prefix of an address is another one than that of the others on its wire, and traffic fails for that.
pub fn wrong_netmask(evidence: &Evidence) -> Vec<Finding> {
    let (fabric, wants) = (Fabric::of(&evidence.network), evidence.wants());
    let mut found = Vec::new();
    for address in evidence.network.addresses.iter().filter(|one| !one.is_link_local() && !one.address.is_loopback()) {
        let Some(link) = fabric.link(address.at).filter(|link| link.works()) else { continue };
        let Some(expected) = expected(&fabric, address).filter(|expected| *expected != address.prefix) else {
            continue;
        };
        let harmed: Vec<_> = wants.iter().filter(|want| misled(address, expected, want)).collect();
        if harmed.is_empty() {
            continue;
        }
        let effect = if address.prefix < expected {
            "the kernel searches hosts behind a router on the link"
        } else {
            "the kernel sends packets for hosts on the link to a router"
        };
        let summary = format!(
            "{} has {}/{}, but other hosts on the link have /{expected}: {effect}",
            place::of(evidence, link),
            address.address,
            address.prefix
        );
        let finding = place::at(evidence, Finding::new(Code::WrongNetmask, Severity::Warning, summary), link)
            .with("address", address.address)
            .with("prefix", address.prefix)
            .with("expected_prefix", expected)
            .at(address.address);
        found.push(place::wanted(finding, &harmed).step("ip address show").step("ip route show"));
    }
    found
}

/// The prefix that most others on its wire have; of as many, the one of the router that its routes lead to.
fn expected(fabric: &Fabric, address: &Address) -> Option<u8> {
    let mut count = BTreeMap::<u8, usize>::new();
    fabric.prefixes_beside(address).into_iter().for_each(|prefix| *count.entry(prefix).or_default() += 1);
    let routers = fabric.network.routes.iter().filter(|route| (route.netns, route.link) == address.at);
    let routers: Vec<u8> =
        routers.filter_map(|route| fabric.owners(route.gateway?).next()).map(|router| router.prefix).collect();
    let most = count.values().copied().max()?;
    let common: Vec<u8> = count.into_iter().filter(|(_, times)| *times == most).map(|(prefix, _)| prefix).collect();
    common.iter().find(|prefix| routers.contains(prefix)).or(common.first()).copied()
}

/// Whether traffic fails for the sake of this prefix, and would not with the one that is expected.
fn misled(address: &Address, expected: u8, want: &Want) -> bool {
    let should_be_on_link = |other: IpAddr| is_within(other, address.address, expected);
    let here = want.netns == address.at.0;
    if address.prefix < expected {
        // It asks for the link-layer address of a host that does not exist.
        return here
            && want.how == How::Neighbor
            && want.hop.is_none()
            && address.covers(want.to)
            && !should_be_on_link(want.to);
    }
    let excluded = |other: IpAddr| should_be_on_link(other) && !address.covers(other);
    // Its own traffic to a host of the link or to the router, or its answers to one of them.
    (here && (excluded(want.to) || excluded(want.next())))
        || (want.to == address.address && want.from.is_some_and(excluded))
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};
    use crate::{
        answer::Owner,
        tools::diagnose::{
            evidence::{Connection, DroppedPackets, Outcome},
            fabric::tests::{address, bridged, link},
            network::{Change, Network},
        },
    };

    fn failing(netns: u32, to: &str, outcome: Outcome) -> Connection {
        let owner = Owner { netns: Some(netns), ..owner("client", 7) };
        Connection { owner, retransmits: 2, local: Some(endpoint("10.0.0.1", 40_000)), ..connection(to, 80, outcome) }
    }

    /// A packet of namespace 1 whose neighbor resolution failed.
    fn searched(to: &str) -> DroppedPackets {
        let owner = Owner { netns: Some(1), ..Owner::default() };
        DroppedPackets { owner, sent_here: true, ..drop_of("NEIGH_FAILED", "tcp", (to, 80), 3) }
    }

    fn places(found: &[Finding]) -> Vec<u64> {
        found.iter().map(|finding| finding.evidence["netns"].as_u64().unwrap()).collect()
    }

    #[test]
    fn missing_client_address_is_found_by_failed_connects() {
        let mut network = bridged();
        network.addresses.remove(0);
        let evidence = Evidence { connections: vec![failing(1, "10.0.0.2", Outcome::Unreachable)], network, ..quiet() };
        let found = address_missing(&evidence);
        assert_eq!((told(&found), places(&found)), (vec![(Code::AddressMissing, Severity::Warning)], vec![1]));
        let idle = Evidence { connections: vec![], ..evidence };
        assert!(address_missing(&idle).is_empty(), "nobody wants out");
    }

    #[test]
    fn missing_server_address_is_found_by_neighbor_searches() {
        let mut network = bridged();
        network.addresses.remove(1);
        let evidence = Evidence { drops: vec![searched("10.0.0.2")], network, ..quiet() };
        assert_eq!(places(&address_missing(&evidence)), [2]);
        let absent = Evidence { network: bridged(), drops: vec![searched("10.0.0.77")], ..quiet() };
        assert!(address_missing(&absent).is_empty(), "all have one; that host is not there");
    }

    #[test]
    fn address_removed_in_the_window_is_reported() {
        let mut network = bridged();
        let what = What::AddressGone(network.addresses.remove(1));
        network.addresses.push(address((2, 2), "10.0.9.2/24"));
        network.changes = vec![Change { after_ms: 1_000, what }];
        let evidence = Evidence { connections: vec![failing(1, "10.0.0.2", Outcome::Unanswered)], network, ..quiet() };
        let found = address_missing(&evidence);
        assert_eq!((places(&found), &found[0].evidence["missing"]), (vec![2], &serde_json::json!(["10.0.0.2"])));
        let mut moved = evidence.clone();
        moved.network.links.push(link(2, 9, "br0"));
        moved.network.addresses.push(address((2, 9), "10.0.0.2/24"));
        assert!(address_missing(&moved).is_empty(), "a bridge has it now");
    }

    #[test]
    fn host_without_ipv6_has_no_missing_address() {
        let evidence = Evidence {
            connections: vec![failing(1, "2001:db8::1", Outcome::Unreachable)],
            network: bridged(),
            ..quiet()
        };
        assert!(address_missing(&evidence).is_empty());
    }

    fn masked(client: &str, server: &str) -> Network {
        let mut network = bridged();
        network.addresses = vec![address((1, 2), client), address((2, 2), server)];
        network
    }

    #[test]
    fn short_prefix_searches_remote_hosts_on_link() {
        let network = masked("10.0.0.1/16", "10.0.0.2/24");
        let evidence = Evidence { drops: vec![searched("10.0.5.5")], network, ..quiet() };
        let found = wrong_netmask(&evidence);
        assert_eq!((told(&found), places(&found)), (vec![(Code::WrongNetmask, Severity::Warning)], vec![1]));
        assert_eq!((&found[0].evidence["prefix"], &found[0].evidence["expected_prefix"]), (&16.into(), &24.into()));
        let near = Evidence { drops: vec![searched("10.0.0.77")], ..evidence };
        assert!(wrong_netmask(&near).is_empty(), "that one is searched rightly");
    }

    #[test]
    fn long_prefix_has_no_route_back() {
        let network = masked("10.0.0.1/24", "10.0.0.2/30");
        let far = masked("10.0.0.100/24", "10.0.0.2/30");
        let client =
            Connection { local: Some(endpoint("10.0.0.100", 40_000)), ..failing(1, "10.0.0.2", Outcome::Unanswered) };
        let evidence = Evidence { connections: vec![client], network: far, ..quiet() };
        assert_eq!(places(&wrong_netmask(&evidence)), [2]);
        let near = Evidence { connections: vec![failing(1, "10.0.0.2", Outcome::Unanswered)], network, ..evidence };
        assert!(wrong_netmask(&near).is_empty(), "both are within the shorter one");
    }
}
