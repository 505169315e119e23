//! Failed traffic of this host in the window: what a cause has to explain.

use std::net::IpAddr;

use super::{
    evidence::{Connection, DroppedPackets, Evidence, Outcome},
    fabric::Fabric,
};
use crate::answer::Owner;

/// Traffic that failed, or fails.
#[derive(Clone, Debug, PartialEq)]
pub struct Want {
    /// Where it failed: the sender's namespace, or the router's that dropped it.
    pub netns: u32,
    pub to: IpAddr,
    pub from: Option<IpAddr>,
    /// The router that it was to go to, where the packets tell.
    pub hop: Option<IpAddr>,
    pub interface: Option<String>,
    pub owner: Owner,
    pub how: How,
    pub count: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Rejected at once: there is no route, or it rejects the traffic.
    NoRoute,
    /// Nobody answered for the link-layer address of the next hop.
    Neighbor,
    /// Nothing came back.
    Silent,
    /// It died at a device or its queue.
    Device,
}

impl Want {
    /// Where it had to go first.
    pub fn next(&self) -> IpAddr {
        self.hop.unwrap_or(self.to)
    }

    /// Whether it needs an address that a device has lost: it goes there, and its wire has no other device with it.
    pub fn missed(&self, fabric: &Fabric, address: IpAddr) -> bool {
        [self.to, self.next()].contains(&address) && !fabric.is_near(self.netns, self.next(), address)
    }
}

impl Evidence {
    /// All of it.
    pub fn wants(&self) -> Vec<Want> {
        let connections = self.connections.iter().filter_map(of_connection);
        let silent = self.silent.iter().filter_map(|row| {
            want(row.owner.clone(), row.remote?.address, row.local.map(|local| local.address), How::Silent)
        });
        let queries = self.queries.iter().filter(|query| query.unanswered);
        let queries = queries.filter_map(|query| want(query.owner.clone(), query.server?.address, None, How::Silent));
        let drops = self.drops.iter().flat_map(|drop| self.of_drop(drop));
        connections.chain(silent).chain(queries).chain(drops).filter(|want| !is_local(want.to)).collect()
    }

    fn of_drop(&self, drop: &DroppedPackets) -> Vec<Want> {
        let Some(how) = how(drop) else { return Vec::new() };
        // A scan makes a router ask for hosts that never were.
        let known = |address: IpAddr| self.network.addresses.iter().any(|one| one.address == address);
        let ours = drop.sent_here || drop.source.is_some_and(|at| self.is_ours(&at.address) || known(at.address));
        let (true, Some(netns)) = (ours, drop.owner.netns) else { return Vec::new() };
        let all = drop.course.destinations.iter().copied().chain(drop.destination.map(|end| end.address));
        let mut all: Vec<_> = all.collect();
        all.sort_unstable();
        all.dedup();
        let want = |to| Want {
            netns,
            to,
            from: drop.source.map(|source| source.address),
            hop: drop.next_hop,
            interface: drop.interface.clone(),
            owner: drop.owner.clone(),
            how,
            count: drop.count,
        };
        all.into_iter().map(want).collect()
    }
}

/// Loopback is always there, and a group may have no members.
fn is_local(address: IpAddr) -> bool {
    address.is_loopback() || address.is_multicast() || address.is_unspecified()
}

fn want(owner: Owner, to: IpAddr, from: Option<IpAddr>, how: How) -> Option<Want> {
    let from = from.filter(|from| !from.is_unspecified());
    Some(Want { netns: owner.netns?, to, from, hop: None, interface: None, owner, how, count: 1 })
}

fn of_connection(row: &Connection) -> Option<Want> {
    /// A kernel without a route says so at once; what comes later came from a router, or is a neighbor that does not answer.
    const AT_ONCE: std::time::Duration = std::time::Duration::from_millis(100);
    let how = match (row.outcome, row.errno.as_deref()) {
        _ if !row.outbound => return None,
        // A blackhole route's.
        (Outcome::Other, Some("EINVAL")) => How::NoRoute,
        (Outcome::Unreachable, _) if row.waited <= AT_ONCE => How::NoRoute,
        (Outcome::Unreachable, _) => How::Neighbor,
        (Outcome::Lost, _) => How::Silent,
        _ if row.hangs() => How::Silent,
        _ => return None,
    };
    want(row.owner.clone(), row.remote?.address, row.local.map(|local| local.address), how)
}

/// Why a packet died, if the state of the network may be why.
fn how(drop: &DroppedPackets) -> Option<How> {
    let at = |functions: &[&str]| functions.iter().any(|function| drop.location.starts_with(function));
    if drop.reason.starts_with("NEIGH_") || at(&["ndisc_error_report", "arp_error_report", "neigh_invalidate"]) {
        return Some(How::Neighbor);
    }
    if is_unrouted(drop) {
        return Some(How::NoRoute);
    }
    let device = drop.reason.starts_with("QDISC_") || drop.reason.starts_with("DEV_") || at(&["noop_enqueue"]);
    device.then_some(How::Device)
}

/// Whether a packet was dropped without a route, or by a route that rejects it.
pub fn is_unrouted(drop: &DroppedPackets) -> bool {
    let at = |functions: &[&str]| functions.iter().any(|function| drop.location.starts_with(function));
    ["IP_INNOROUTES", "IP_OUTNOROUTES"].contains(&drop.reason.as_str())
        || at(&["ip_error", "ip6_pkt_drop", "ip6_pkt_discard", "ip6_pkt_prohibit", "dst_discard"])
}
