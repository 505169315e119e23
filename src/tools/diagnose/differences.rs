//! What differs between two readings of the network namespaces.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::network::{Address, Link, Neighbor, Place, Route, What};

/// What one walk found.
#[derive(Default)]
pub struct Snapshot {
    pub links: BTreeMap<Place, Link>,
    pub addresses: BTreeSet<Address>,
    pub neighbors: BTreeMap<(Place, IpAddr), Neighbor>,
    pub routes: BTreeSet<Route>,
    pub cut: u64,
}

/// The kernel gives the number of a removed network namespace to a new one, so that another network may be at the same
/// place. Only what is on the same device is compared.
pub fn changes(before: &Snapshot, now: &Snapshot) -> Vec<What> {
    let mut found = Vec::new();
    let same = Same::of(before, now);
    for link in before.links.values() {
        match now.links.get(&link.at) {
            None if same.namespace(link.at.0) => found.push(What::LinkGone(link.clone())),
            Some(other) if link.device() == other.device() => match (link.works(), other.works()) {
                (true, false) => found.push(What::LinkDown(other.clone())),
                (false, true) => found.push(What::LinkUp(other.clone())),
                _ => {}
            },
            _ => {}
        }
    }
    // An address that only gets another flag is there.
    let is_there = |gone: &Address| now.addresses.iter().any(|one| (one.at, one.address) == (gone.at, gone.address));
    let gone = before.addresses.difference(&now.addresses).filter(|gone| same.place(gone.at) && !is_there(gone));
    found.extend(gone.cloned().map(What::AddressGone));
    let gone = before.routes.difference(&now.routes).filter(|gone| match gone.link {
        0 => same.namespace(gone.netns),
        link => same.place((gone.netns, link)),
    });
    found.extend(gone.cloned().map(What::RouteGone));
    for (key, neighbor) in now.neighbors.iter().filter(|(key, _)| same.place(key.0)) {
        let from = before.neighbors.get(key).and_then(|before| before.hardware);
        if let (Some(from), Some(to)) = (from, neighbor.hardware)
            && from != to
        {
            found.push(What::NeighborMoved { at: neighbor.at, address: neighbor.address, from, to });
        }
    }
    found
}

/// Where both readings are of the same thing.
struct Same<'a> {
    before: &'a Snapshot,
    now: &'a Snapshot,
    /// Namespaces that are there, and not known to be others.
    namespaces: BTreeSet<u32>,
}

impl<'a> Same<'a> {
    fn of(before: &'a Snapshot, now: &'a Snapshot) -> Self {
        let is_other = |link: &&Link| now.links.get(&link.at).is_some_and(|other| other.device() != link.device());
        let others: BTreeSet<u32> = before.links.values().filter(is_other).map(|link| link.at.0).collect();
        let there = now.links.keys().map(|(netns, _)| *netns).filter(|netns| !others.contains(netns));
        Same { before, now, namespaces: there.collect() }
    }

    fn namespace(&self, netns: u32) -> bool {
        self.namespaces.contains(&netns)
    }

    /// The same device is there, or was, and its namespace is there without it.
    fn place(&self, at: Place) -> bool {
        match (self.before.links.get(&at), self.now.links.get(&at)) {
            (Some(before), Some(now)) => before.device() == now.device(),
            _ => self.namespace(at.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            fabric::tests::{address, link},
            network::{Hardware, RouteKind},
        },
        *,
    };

    /// Namespace 1 with one device.
    fn snapshot(link: Link, address_text: &str, neighbor: u8) -> Snapshot {
        let at = link.at;
        let gateway: IpAddr = [10, 0, 0, 254].into();
        let neighbor = Neighbor { at, address: gateway, hardware: Some(Hardware([neighbor; 6])), state: 2 };
        let route = Route {
            netns: at.0,
            network: [0; 4].into(),
            prefix: 0,
            kind: RouteKind::Unicast,
            link: at.1,
            gateway: Some(gateway),
            metric: u32::from(neighbor.hardware.unwrap().0[0]),
            protocol: 3,
        };
        Snapshot {
            links: [(at, link)].into(),
            addresses: [address(at, address_text)].into(),
            neighbors: [((at, gateway), neighbor)].into(),
            routes: [route].into(),
            cut: 0,
        }
    }

    #[test]
    fn changes_are_those_of_one_device() {
        let first = || link(1, 2, "eth0");
        let other = || Link { hardware: Some(Hardware([9; 6])), up: false, ..first() };
        let before = snapshot(first(), "10.0.0.1/24", 1);
        let same = changes(&before, &snapshot(Link { up: false, ..first() }, "10.0.0.2/24", 2));
        assert!(
            matches!(
                same.as_slice(),
                [What::LinkDown(_), What::AddressGone(_), What::RouteGone(_), What::NeighborMoved { .. }]
            ),
            "{same:?}"
        );
        assert_eq!(changes(&before, &snapshot(other(), "10.0.0.2/24", 2)), [], "another namespace with its number");
    }

    #[test]
    fn device_is_gone_where_its_namespace_is_not() {
        let with_loopback = |mut snapshot: Snapshot| {
            let lo = Link { loopback: true, hardware: None, ..link(1, 1, "lo") };
            snapshot.links.insert(lo.at, lo);
            snapshot
        };
        let before = || with_loopback(snapshot(link(1, 2, "eth0"), "10.0.0.1/24", 1));
        let gone = changes(&before(), &with_loopback(Snapshot::default()));
        assert!(matches!(gone.as_slice(), [What::LinkGone(_), What::AddressGone(_), What::RouteGone(_)]), "{gone:?}");
        assert_eq!(changes(&before(), &Snapshot::default()), [], "the namespace as well");
    }
}
