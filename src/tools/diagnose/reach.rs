//! Finds the socket of an address and a port: several network namespaces may have the same ones, and several sockets
//! may share them.

use std::net::IpAddr;

use super::{
    evidence::{Evidence, Listener, Socket},
    finding::HostPort,
};
use crate::answer::{Endpoint, Owner};

impl Evidence {
    /// Whether what is sent to `at` in the network namespace `from` reaches a socket that is bound to `local` in `netns`.
    /// An address that several namespaces have is the sender's own, if that is one of them. A `from` of `None` is any.
    pub fn reaches(&self, at: &HostPort, from: Option<u32>, local: &Endpoint, netns: Option<u32>) -> bool {
        let has = |netns| self.at_home.contains(&(at.address, netns));
        let is_known = || self.at_home.range((at.address, None)..).next().is_some_and(|(home, _)| *home == at.address);
        let meant = match from {
            None => true,
            Some(_) if at.address.is_loopback() || has(from) => netns == from,
            Some(_) => has(netns) || !is_known(),
        };
        meant && at.is_taken_by(local)
    }

    /// The listener that a connection from the network namespace `from` to `at` would reach.
    pub fn listener(&self, at: impl Into<HostPort>, from: Option<u32>) -> Option<&Listener> {
        let at = at.into();
        let reached = |l: &&Listener| l.local.is_some_and(|local| self.reaches(&at, from, &local, l.owner.netns));
        self.listeners.iter().find(reached)
    }

    /// The UDP sockets that a datagram from the network namespace `from` to `at` would reach: one, or all that have
    /// joined the same group.
    pub fn receivers(&self, at: HostPort, from: Option<u32>) -> impl Iterator<Item = &Socket> {
        self.sockets.iter().filter(move |socket| {
            !socket.tcp && socket.local.is_some_and(|local| self.reaches(&at, from, &local, socket.owner.netns))
        })
    }

    /// Notes that a network namespace has an address.
    pub fn note_address(&mut self, address: IpAddr, netns: Option<u32>) {
        if !address.is_unspecified() && !address.is_multicast() {
            self.own_addresses.insert(address);
            self.at_home.insert((address, netns));
        }
    }

    /// Who serves `at`, of those in the network namespace where a packet for it was seen. Elsewhere the same address is
    /// another host's, unless a service of ours is bound to it.
    pub fn server(&self, protocol: &str, at: HostPort, netns: Option<u32>) -> Option<&Owner> {
        let meant = |owner: &Owner, local: &Endpoint| {
            let bound = local.address == at.address && !at.address.is_loopback();
            at.is_taken_by(local) && (netns.is_none() || owner.netns == netns || bound)
        };
        let serves = |owner: &Owner, local: Option<Endpoint>| local.is_some_and(|local| meant(owner, &local));
        match protocol {
            "tcp" => self.listeners.iter().find(|l| serves(&l.owner, l.local)).map(|l| &l.owner),
            "udp" => self.sockets.iter().find(|s| !s.tcp && serves(&s.owner, s.local)).map(|s| &s.owner),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: &str, port: u16) -> Endpoint {
        Endpoint { address: address.parse().unwrap(), port }
    }

    fn owner(pid: u32, netns: u32) -> Owner {
        Owner { pid: Some(pid), netns: Some(netns), ..Owner::default() }
    }

    /// The pid of the listener that a namespace reaches.
    fn reached(evidence: &Evidence, to: Endpoint, from: u32) -> Option<u32> {
        evidence.listener(to, Some(from)).and_then(|listener| listener.owner.pid)
    }

    #[test]
    fn listener_is_found_in_the_namespace_of_the_address() {
        let any =
            |pid, netns| Listener { owner: owner(pid, netns), local: Some(at("0.0.0.0", 80)), ..Listener::default() };
        let mut evidence = Evidence { listeners: vec![any(1, 10), any(2, 20)], ..Evidence::default() };
        for (address, netns) in [("10.0.0.1", 10), ("10.0.0.2", 20), ("172.17.0.1", 10), ("172.17.0.1", 20)] {
            evidence.note_address(address.parse().unwrap(), Some(netns));
        }
        assert_eq!(reached(&evidence, at("127.0.0.1", 80), 20), Some(2));
        assert_eq!(reached(&evidence, at("127.0.0.1", 80), 30), None, "nothing listens there");
        assert_eq!(reached(&evidence, at("10.0.0.2", 80), 10), Some(2));
        assert_eq!(reached(&evidence, at("10.0.0.2", 80), 30), Some(2));
        assert_eq!(reached(&evidence, at("172.17.0.1", 80), 20), Some(2), "both have it: its own");
        assert_eq!(reached(&evidence, at("10.0.0.2", 81), 10), None);
    }

    #[test]
    fn multicast_group_has_several_receivers() {
        let joined = |pid| Socket { owner: owner(pid, 10), local: Some(at("239.1.1.1", 5_000)), ..Socket::default() };
        let evidence = Evidence { sockets: vec![joined(1), joined(2)], ..Evidence::default() };
        assert_eq!(evidence.receivers(at("239.1.1.1", 5_000).into(), Some(10)).count(), 2);
    }
}
