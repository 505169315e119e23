//! How the links of this host are connected: which share a link layer, which owns an address, which a packet leaves by.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    net::IpAddr,
};

use super::network::{Address, Hardware, Link, Network, Place, Route, RouteKind};

/// An index of a [`Network`].
pub struct Fabric<'a> {
    pub network: &'a Network,
    links: HashMap<Place, &'a Link>,
    ports: HashMap<Place, Vec<Place>>,
    addresses: HashMap<Place, Vec<&'a Address>>,
}

impl<'a> Fabric<'a> {
    pub fn of(network: &'a Network) -> Self {
        let (mut ports, mut addresses) = (HashMap::<_, Vec<_>>::new(), HashMap::<_, Vec<_>>::new());
        for link in &network.links {
            link.master.into_iter().for_each(|master| ports.entry(master).or_default().push(link.at));
        }
        network.addresses.iter().for_each(|address| addresses.entry(address.at).or_default().push(address));
        Fabric { network, links: network.links.iter().map(|link| (link.at, link)).collect(), ports, addresses }
    }

    pub fn link(&self, at: Place) -> Option<&'a Link> {
        self.links.get(&at).copied()
    }

    pub fn links(&self) -> impl Iterator<Item = &'a Link> {
        self.network.links.iter().filter(|link| !link.loopback)
    }

    pub fn named(&self, netns: u32, name: &str) -> Option<&'a Link> {
        self.network.links.iter().find(|link| link.at.0 == netns && link.name == name)
    }

    /// The addresses of a device.
    pub fn addresses(&self, at: Place) -> &[&'a Address] {
        self.addresses.get(&at).map_or(&[], Vec::as_slice)
    }

    /// The owners of an address: on a host with containers there may be several.
    pub fn owners(&self, address: IpAddr) -> impl Iterator<Item = &'a Address> {
        self.network.addresses.iter().filter(move |one| one.address == address)
    }

    /// The devices with a link-layer address.
    pub fn with_hardware(&self, hardware: Hardware) -> impl Iterator<Item = &'a Link> {
        self.links().filter(move |link| link.hardware == Some(hardware))
    }

    /// The links that are directly connected to a link, even if packets cannot pass: the other end of its pair, its
    /// bridge, its ports.
    fn joined(&self, at: Place) -> impl Iterator<Item = Place> {
        let link = self.link(at);
        let ends = link.into_iter().flat_map(|link| [link.peer, link.master]).flatten();
        ends.chain(self.ports.get(&at).into_iter().flatten().copied()).filter(|at| self.links.contains_key(at))
    }

    /// The devices from one to another on one wire, both included.
    pub fn path(&self, from: Place, to: Place) -> Option<Vec<Place>> {
        let reached = self.reached(from, Some(to));
        let mut path = vec![to];
        while let Some(before) = reached.get(path.last()?)? {
            path.push(*before);
        }
        Some(path)
    }

    /// Every device on one wire with this one.
    pub fn segment(&self, at: Place) -> BTreeSet<Place> {
        self.reached(at, None).into_keys().collect()
    }

    /// Breadth first: each device, and the one before it.
    fn reached(&self, from: Place, to: Option<Place>) -> BTreeMap<Place, Option<Place>> {
        let (mut reached, mut next) = (BTreeMap::from([(from, None)]), VecDeque::from([from]));
        while let Some(at) = next.pop_front().filter(|_| to.is_none_or(|to| !reached.contains_key(&to))) {
            for other in self.joined(at) {
                reached.entry(other).or_insert_with(|| {
                    next.push_back(other);
                    Some(at)
                });
            }
        }
        reached
    }

    /// The route that a namespace takes to an address, of its main table: the longest prefix, then the least metric.
    pub fn route(&self, netns: u32, to: IpAddr) -> Option<&'a Route> {
        let fits = self.network.routes.iter().filter(|route| route.netns == netns && route.covers(to));
        fits.filter(|route| route.kind != RouteKind::Throw)
            .max_by_key(|route| (route.prefix, std::cmp::Reverse(route.metric)))
    }

    /// The device by which packets to a next hop leave a namespace. That of a network that it is part of, even while it is
    /// down and has no route.
    pub fn egress(&self, netns: u32, to: IpAddr) -> Option<Place> {
        let on_link = self.network.addresses.iter().filter(|one| one.at.0 == netns && one.covers(to));
        let on_link = on_link.max_by_key(|one| one.prefix).map(|one| one.at);
        let routed = || Some((netns, self.route(netns, to)?.link)).filter(|at| at.1 != 0);
        on_link.or_else(routed)
    }

    /// The device that has an address, as it is reached from another one: on the same wire, else the only one of the host.
    pub fn target(&self, from: Option<Place>, address: IpAddr) -> Option<Place> {
        let owners: Vec<Place> = self.owners(address).map(|one| one.at).collect();
        let near = from.map(|from| self.segment(from)).unwrap_or_default();
        match owners.iter().find(|at| near.contains(at)) {
            Some(at) => Some(*at),
            None if owners.len() == 1 => owners.first().copied(),
            None => None,
        }
    }

    /// Whether a device has an address on the wire by which packets to a next hop leave a namespace. Other namespaces may
    /// have the same address: this traffic does not mean them.
    pub fn is_near(&self, netns: u32, next: IpAddr, address: IpAddr) -> bool {
        let near = self.egress(netns, next).map(|from| self.segment(from)).unwrap_or_default();
        self.owners(address).any(|one| near.contains(&one.at))
    }

    /// Whether a device speaks for itself on its wire, and is not a part of a bridge or a bond.
    pub fn is_station(&self, link: &Link) -> bool {
        link.master.is_none() && !link.loopback
    }

    /// The prefixes that others on the wire of a device use for the network of one of its addresses.
    pub fn prefixes_beside(&self, address: &Address) -> Vec<u8> {
        let near = self.segment(address.at);
        let others = self.network.addresses.iter().filter(|one| one.at.0 != address.at.0 && near.contains(&one.at));
        let same = |one: &&Address| {
            let wider = one.prefix.min(address.prefix);
            super::network::is_within(one.address, address.address, wider) && !one.is_link_local()
        };
        others.filter(same).map(|one| one.prefix).collect()
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A working device.
    pub fn link(netns: u32, index: u32, name: &str) -> Link {
        let hardware = Some(Hardware([2, 0, 0, 0, netns as u8, index as u8]));
        Link { at: (netns, index), name: name.into(), up: true, carrier: true, hardware, ..Link::default() }
    }

    pub fn address(at: Place, text: &str) -> Address {
        let (address, prefix) = text.split_once('/').unwrap();
        Address { at, address: address.parse().unwrap(), prefix: prefix.parse().unwrap(), flags: 0 }
    }

    /// Namespaces 1 and 2, each with an `eth0` (index 2), joined by the bridge of namespace 9: 10.0.0.1 and 10.0.0.2.
    pub fn bridged() -> Network {
        let port = |index, to| Link { master: Some((9, 2)), peer: Some((to, 2)), ..link(9, index, "port") };
        let end = |netns, index| Link { peer: Some((9, index)), kind: "veth".into(), ..link(netns, 2, "eth0") };
        let bridge = Link { kind: "bridge".into(), ..link(9, 2, "br0") };
        Network {
            links: vec![end(1, 3), end(2, 4), bridge, port(3, 1), port(4, 2), link(5, 2, "eth0")],
            addresses: vec![address((1, 2), "10.0.0.1/24"), address((2, 2), "10.0.0.2/24")],
            ..Network::default()
        }
    }

    #[test]
    fn bridge_connects_its_ports() {
        let network = bridged();
        let fabric = Fabric::of(&network);
        assert_eq!(fabric.path((1, 2), (2, 2)).unwrap(), [(2, 2), (9, 4), (9, 2), (9, 3), (1, 2)]);
        assert_eq!(fabric.segment((1, 2)).len(), 5);
        assert_eq!(fabric.path((1, 2), (5, 2)), None, "another wire");
    }

    #[test]
    fn address_resolves_on_the_same_segment() {
        let mut network = bridged();
        network.addresses.push(address((5, 2), "10.0.0.2/24"));
        let fabric = Fabric::of(&network);
        assert_eq!(fabric.egress(1, [10, 0, 0, 2].into()), Some((1, 2)));
        assert_eq!(fabric.target(Some((1, 2)), [10, 0, 0, 2].into()), Some((2, 2)));
        assert_eq!(fabric.target(None, [10, 0, 0, 2].into()), None, "two have it");
    }

    #[test]
    fn address_is_near_on_the_wire_of_the_sender() {
        let mut network = bridged();
        network.addresses.push(address((5, 2), "10.0.0.9/24"));
        let fabric = Fabric::of(&network);
        let is_near = |address: [u8; 4]| fabric.is_near(1, address.into(), address.into());
        assert_eq!([is_near([10, 0, 0, 2]), is_near([10, 0, 0, 9])], [true, false]);
    }
}
