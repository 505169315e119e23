//! The links, addresses, neighbors and routes of every network namespace of the host, and how they changed in the window.

use std::{fmt, net::IpAddr};

use serde::{Deserialize, Serialize};

use super::control::{self, Control};
use crate::answer::Limitation;

/// A device of a network namespace: the inode of the namespace, and the device's index there.
pub type Place = (u32, u32);

/// What was there at the window's end, and what had changed by then.
#[derive(Serialize, Deserialize, Default, Clone, Debug)]
#[serde(default)]
pub struct Network {
    pub links: Vec<Link>,
    pub addresses: Vec<Address>,
    pub neighbors: Vec<Neighbor>,
    pub routes: Vec<Route>,
    pub claims: Vec<Claim>,
    pub control: Vec<Control>,
    pub remarks: Vec<Remark>,
    pub changes: Vec<Change>,
    /// Objects and changes that there was no room for.
    pub cut: u64,
    /// What this kernel does not show.
    pub lacks: Vec<Limitation>,
}

#[derive(Serialize, Deserialize, Default, Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub at: Place,
    pub name: String,
    /// Of a virtual one, what kind it is: `veth`, `bridge`; empty of a device with a driver of its own.
    pub kind: String,
    pub loopback: bool,
    /// An administrator has set it up.
    pub up: bool,
    /// There is a carrier, and the device below, if any, has one.
    pub carrier: bool,
    /// The bridge or bond that it is part of.
    pub master: Option<Place>,
    /// The other end of a veth pair.
    pub peer: Option<Place>,
    pub hardware: Option<Hardware>,
    /// The number of carrier losses since the link exists; in [`Network`] in the window.
    pub downs: u32,
}

/// What tells a device from a later one at the same place: the kernel gives the number of a removed network namespace
/// to a new one.
pub type Device = (Place, Option<Hardware>);

impl Link {
    pub fn device(&self) -> Device {
        (self.at, self.hardware)
    }
}

/// A link-layer address of Ethernet.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hardware(pub [u8; 6]);

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    pub at: Place,
    pub address: IpAddr,
    pub prefix: u8,
    /// `IFA_F_*` of linux/if_addr.h.
    pub flags: u32,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Neighbor {
    pub at: Place,
    pub address: IpAddr,
    pub hardware: Option<Hardware>,
    /// `NUD_*` of linux/neighbour.h.
    pub state: u32,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    pub netns: u32,
    pub network: IpAddr,
    pub prefix: u8,
    pub kind: RouteKind,
    /// The device that it leads to; 0 is none.
    pub link: u32,
    pub gateway: Option<IpAddr>,
    pub metric: u32,
    /// Who made it: `RTPROT_*` of linux/rtnetlink.h.
    pub protocol: u8,
}

/// `RTN_*` of linux/rtnetlink.h.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "snake_case")]
pub enum RouteKind {
    Unicast,
    Blackhole,
    Unreachable,
    Prohibit,
    Throw,
}

/// Somebody on the link of a device says that an IP address is his. Times are from the window's begin.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub at: Place,
    pub address: IpAddr,
    pub hardware: Hardware,
    pub first_ms: u64,
    pub last_ms: u64,
    pub count: u64,
}

/// Packets that left with another DSCP mark than they arrived with.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    pub netns: u32,
    /// The devices that they came in and left by.
    pub from: u32,
    pub to: u32,
    /// As they left.
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    pub before: u8,
    pub after: u8,
    pub count: u64,
}

/// The differences between a reading and the one before it.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// From the window's begin to the reading.
    pub after_ms: u64,
    pub what: What,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// The device is gone, and its namespace is not.
    LinkGone(Link),
    /// An administrator has set it down, or its carrier went; as it is then.
    LinkDown(Link),
    LinkUp(Link),
    AddressGone(Address),
    RouteGone(Route),
    /// The link-layer address of a neighbor is another one than it was.
    NeighborMoved {
        at: Place,
        address: IpAddr,
        from: Hardware,
        to: Hardware,
    },
}

impl Network {
    /// The combined state of two adjacent periods; the first one has this length.
    pub fn then(self, later: Network, length: std::time::Duration) -> Network {
        let length = length.as_millis() as u64;
        let downs = |link: Link| {
            let before = self.links.iter().find(|before| before.device() == link.device());
            Link { downs: link.downs.saturating_add(before.map_or(0, |before| before.downs)), ..link }
        };
        let heard_here = |claim: &Claim| {
            let device = |network: &[Link]| network.iter().find(|link| link.at == claim.at).map(Link::device);
            device(&self.links) == device(&later.links)
        };
        let mut claims: Vec<_> = self.claims.into_iter().filter(heard_here).collect();
        for claim in later.claims {
            let later = Claim { first_ms: claim.first_ms + length, last_ms: claim.last_ms + length, ..claim };
            let same =
                |one: &&mut Claim| (one.at, one.address, one.hardware) == (later.at, later.address, later.hardware);
            match claims.iter_mut().find(same) {
                Some(known) => known.last_ms = later.last_ms,
                None => claims.push(later),
            }
        }
        let mut remarks = self.remarks;
        for later in later.remarks {
            let same =
                |one: &&mut Remark| Remark { count: 0, ..(**one).clone() } == Remark { count: 0, ..later.clone() };
            match remarks.iter_mut().find(same) {
                Some(known) => known.count += later.count,
                None => remarks.push(later),
            }
        }
        let changes = later.changes.into_iter().map(|change| Change { after_ms: change.after_ms + length, ..change });
        Network {
            links: later.links.into_iter().map(downs).collect(),
            claims,
            remarks,
            control: control::then(self.control, later.control, length),
            changes: self.changes.into_iter().chain(changes).collect(),
            cut: self.cut + later.cut,
            ..later
        }
    }
}

impl Link {
    /// Whether packets can pass.
    pub fn works(&self) -> bool {
        self.up && self.carrier
    }
}

impl Address {
    /// Whether an address is on the same network by this one's prefix.
    pub fn covers(&self, other: IpAddr) -> bool {
        is_within(other, self.address, self.prefix)
    }

    /// One that is good for this link only.
    pub fn is_link_local(&self) -> bool {
        match self.address {
            IpAddr::V4(address) => address.is_link_local(),
            IpAddr::V6(address) => address.is_unicast_link_local(),
        }
    }
}

impl Route {
    /// Whether an address is behind it.
    pub fn covers(&self, address: IpAddr) -> bool {
        is_within(address, self.network, self.prefix)
    }
}

/// As `ip route` has it.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.kind {
            RouteKind::Unicast => {}
            RouteKind::Blackhole => f.write_str("blackhole ")?,
            RouteKind::Unreachable => f.write_str("unreachable ")?,
            RouteKind::Prohibit => f.write_str("prohibit ")?,
            RouteKind::Throw => f.write_str("throw ")?,
        }
        if self.prefix == 0 { f.write_str("default") } else { write!(f, "{}/{}", self.network, self.prefix) }?;
        self.gateway.map_or(Ok(()), |gateway| write!(f, " via {gateway}"))
    }
}

impl fmt::Display for Hardware {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Whether the first `prefix` bits of both are the same.
pub fn is_within(address: IpAddr, network: IpAddr, prefix: u8) -> bool {
    let prefix = u32::from(prefix);
    match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            (a.to_bits() ^ b.to_bits()).checked_shr(32 - prefix.min(32)).unwrap_or(0) == 0
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            (a.to_bits() ^ b.to_bits()).checked_shr(128 - prefix.min(128)).unwrap_or(0) == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn losses_of_another_device_at_the_same_place_do_not_add() {
        let with = |hardware, downs| Network {
            links: vec![Link { at: (1, 2), hardware: Some(Hardware(hardware)), downs, ..Link::default() }],
            ..Network::default()
        };
        let downs = |later: Network| with([1; 6], 2).then(later, Duration::from_secs(1)).links[0].downs;
        assert_eq!(downs(with([1; 6], 3)), 5);
        assert_eq!(downs(with([9; 6], 3)), 3, "the kernel gave the number of a removed namespace to a new one");
    }

    #[test]
    fn claims_that_an_earlier_device_heard_are_dropped() {
        let with = |hardware| Network {
            links: vec![Link { at: (1, 2), hardware: Some(Hardware(hardware)), ..Link::default() }],
            claims: vec![Claim {
                at: (1, 2),
                address: [10, 0, 0, 1].into(),
                hardware: Hardware([7; 6]),
                first_ms: 0,
                last_ms: 5,
                count: 1,
            }],
            ..Network::default()
        };
        let claims =
            |later: Network| with([1; 6]).then(Network { claims: vec![], ..later }, Duration::from_secs(1)).claims;
        assert_eq!((claims(with([1; 6])).len(), claims(with([9; 6])).len()), (1, 0));
    }

    #[test]
    fn prefix_decides_if_an_address_is_on_link() {
        let within = |address: &str, network: &str, prefix| {
            is_within(address.parse().unwrap(), network.parse().unwrap(), prefix)
        };
        assert!(within("10.0.0.9", "10.0.0.1", 24) && !within("10.0.1.9", "10.0.0.1", 24));
        assert!(within("192.0.2.1", "0.0.0.0", 0) && within("2001:db8::1", "::", 0));
        assert!(within("10.0.0.1", "10.0.0.1", 32) && !within("10.0.0.2", "10.0.0.1", 32));
        assert!(!within("10.0.0.1", "::", 0), "the other family");
    }

    #[test]
    fn route_is_formatted_like_ip_route() {
        let route = Route {
            netns: 1,
            network: [10, 50, 0, 0].into(),
            prefix: 16,
            kind: RouteKind::Blackhole,
            link: 0,
            gateway: None,
            metric: 0,
            protocol: 3,
        };
        assert_eq!(route.to_string(), "blackhole 10.50.0.0/16");
        let default = Route {
            network: [0; 4].into(),
            prefix: 0,
            kind: RouteKind::Unicast,
            gateway: Some([10, 0, 0, 1].into()),
            ..route
        };
        assert_eq!(default.to_string(), "default via 10.0.0.1");
    }
}
