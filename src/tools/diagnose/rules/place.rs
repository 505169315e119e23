//! How a finding names the node at fault: its network namespace, the interface, and the traffic that it harms.

use std::{collections::BTreeSet, fmt, net::IpAddr};

use crate::tools::diagnose::{
    evidence::{Evidence, is_known},
    finding::Finding,
    network::Link,
    wants::Want,
};

/// A network namespace as people call it.
pub struct Named {
    netns: u32,
    name: Option<String>,
}

impl Named {
    /// By its file (`ip netns`, Docker), else by a process in it.
    pub fn new(evidence: &Evidence, netns: u32) -> Named {
        let file =
            evidence.netns_files.get(&netns).and_then(|path| path.rsplit('/').next()).map(crate::untrusted::clean);
        let own = || (evidence.netns == Some(netns)).then(|| "of netmond".to_owned());
        let owners = evidence.sockets.iter().map(|socket| &socket.owner);
        let mut owners = owners.chain(evidence.listeners.iter().map(|listener| &listener.owner));
        let mut inhabitant = || owners.find(|owner| owner.netns == Some(netns))?.process.clone();
        Named { netns, name: file.or_else(own).or_else(|| Some(format!("of \"{}\"", inhabitant()?))) }
    }

    /// `eth0 in network namespace web`.
    pub fn link(&self, name: &str) -> String {
        format!("{name} in {self}")
    }

    /// Says which it is.
    pub fn on(&self, finding: Finding) -> Finding {
        finding.with("namespace", &self.name).with("netns", self.netns)
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "network namespace {name}"),
            None => write!(f, "network namespace {}", self.netns),
        }
    }
}

/// A device and where it is, in words.
pub fn of(evidence: &Evidence, link: &Link) -> String {
    Named::new(evidence, link.at.0).link(&link.name)
}

/// Says which device it is.
pub fn at(evidence: &Evidence, finding: Finding, link: &Link) -> Finding {
    Named::new(evidence, link.at.0).on(finding).with("interface", &link.name)
}

/// Adds the traffic that wanted it, and that this finding explains.
pub fn wanted(finding: Finding, wants: &[&Want]) -> Finding {
    /// Addresses and owners that a finding names; more of them say no more.
    const NAMED: usize = 3;
    let to: BTreeSet<IpAddr> = wants.iter().map(|want| want.to).collect();
    let mut owners: Vec<_> = wants.iter().map(|want| &want.owner).filter(|owner| is_known(owner)).collect();
    owners.dedup();
    owners.truncate(NAMED);
    let places: BTreeSet<IpAddr> = wants.iter().flat_map(|want| [want.to, want.next()]).collect();
    let mut finding = places.into_iter().fold(finding, Finding::at);
    finding.harms.extend(wants.iter().map(|want| want.netns));
    let named = |all: Vec<IpAddr>| Some(all).filter(|all| !all.is_empty());
    finding
        .with("wanted", named(to.iter().copied().take(NAMED).collect()))
        .with("affects", Some(owners).filter(|owners| !owners.is_empty()))
}
