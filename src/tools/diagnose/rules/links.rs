//! Links that are down, flapping or removed, and that traffic needs.

use std::{collections::BTreeSet, net::IpAddr};

use super::place::{self, Named};
use crate::{
    answer::count,
    tools::diagnose::{
        evidence::Evidence,
        fabric::Fabric,
        finding::{Code, Finding, Severity},
        network::{Link, Place, What},
        wants::{How, Want},
    },
};

/// What a link's state harms.
#[derive(Default)]
struct Harm<'a> {
    wants: Vec<&'a Want>,
    /// Open sockets with an address of the link.
    sockets: usize,
}

impl Harm<'_> {
    fn is_none(&self) -> bool {
        self.wants.is_empty() && self.sockets == 0
    }
}

/// A link that traffic needs is down: an administrator set it down, or it has no carrier.
pub fn link_down(evidence: &Evidence) -> Vec<Finding> {
    let (fabric, wants) = (Fabric::of(&evidence.network), evidence.wants());
    let down = fabric.links().filter(|link| !link.works() && is_cause(&fabric, link) && !flaps(evidence, link));
    let found = down.filter_map(|link| {
        let harm = harm(evidence, &fabric, &wants, link);
        // A link that was down before, and that no traffic of the window needs, is planned.
        let went = went_down(evidence, link.at);
        if harm.wants.is_empty() && (went.is_none() || harm.sockets == 0) {
            return None;
        }
        let why = if link.up { "has no carrier" } else { "is administratively down" };
        let summary = format!("{} {why}: {}", place::of(evidence, link), needed(&harm));
        let finding = Finding::new(Code::LinkDown, Severity::Warning, summary)
            .with("state", if link.up { "no carrier" } else { "set down" })
            .with("down_after_ms", went);
        Some(with_harm(evidence, &fabric, finding, link, &harm))
    });
    found.collect()
}

/// A device goes down and up again and again, or did so once and traffic failed meanwhile.
pub fn link_flap(evidence: &Evidence) -> Vec<Finding> {
    let (fabric, wants) = (Fabric::of(&evidence.network), evidence.wants());
    let flapping = fabric.links().filter(|link| flaps(evidence, link) && is_origin(evidence, &fabric, link));
    let found = flapping.filter_map(|link| {
        let (harm, times) = (harm(evidence, &fabric, &wants, link), times_down(evidence, link));
        // One time without failed traffic is maintenance.
        if harm.is_none() || (times < 2 && harm.wants.is_empty()) {
            return None;
        }
        let summary = format!(
            "{} went down {} in the window and came back: {}",
            place::of(evidence, link),
            count(times.into(), "time", "times"),
            needed(&harm)
        );
        let finding = Finding::new(Code::LinkFlap, Severity::Warning, summary).with("times_down", times);
        Some(with_harm(evidence, &fabric, finding, link, &harm))
    });
    found.collect()
}

/// A link is gone, or a namespace has only loopback, and its traffic needs a way out.
pub fn interface_removed(evidence: &Evidence) -> Vec<Finding> {
    let (fabric, wants) = (Fabric::of(&evidence.network), evidence.wants());
    let mut told = BTreeSet::<Place>::new();
    let mut found = Vec::new();
    let gone = evidence.network.changes.iter().filter_map(|change| match &change.what {
        What::LinkGone(link) if !link.loopback => Some((change.after_ms, link)),
        _ => None,
    });
    let mut gone: Vec<_> = gone.collect();
    // Of a pair, which disappears together, the end in the namespace that has no way since.
    gone.sort_by_key(|(_, link)| !wants.iter().any(|want| want.netns == link.at.0));
    for (after_ms, link) in gone {
        let harm = harm_of_gone(evidence, &fabric, &wants, link);
        // One end of a pair takes the other with it.
        if is_back(&fabric, link) || harm.is_none() || link.peer.is_some_and(|peer| told.contains(&peer)) {
            continue;
        }
        told.insert(link.at);
        let summary = format!(
            "{} was removed in the window: {}",
            Named::new(evidence, link.at.0).link(&link.name),
            needed(&harm)
        );
        let finding =
            Finding::new(Code::InterfaceRemoved, Severity::Warning, summary).with("removed_after_ms", after_ms);
        found.push(with_harm(evidence, &fabric, finding, link, &harm));
    }
    let out: BTreeSet<u32> = wants.iter().filter(|want| want.how == How::NoRoute).map(|want| want.netns).collect();
    let bare = |netns: &u32| {
        let mut links = evidence.network.links.iter().filter(|link| link.at.0 == *netns).peekable();
        links.peek().is_some() && links.all(|link| link.loopback) && !told.iter().any(|at| at.0 == *netns)
    };
    for netns in out.into_iter().filter(bare) {
        let harm = Harm { wants: wants.iter().filter(|want| want.netns == netns).collect(), sockets: 0 };
        let named = Named::new(evidence, netns);
        let summary = format!("{named} has no interface except loopback: {}", needed(&harm));
        let finding = named.on(Finding::new(Code::InterfaceRemoved, Severity::Warning, summary));
        found.push(place::wanted(finding, &harm.wants).step("ip link show  # an interface to other hosts is missing"));
    }
    found
}

/// Whether a device has come back, or is another namespace's now, as that of a container is at its start.
fn is_back(fabric: &Fabric, gone: &Link) -> bool {
    let same = |link: &Link| link.hardware.is_some() && link.hardware == gone.hardware;
    fabric.named(gone.at.0, &gone.name).is_some() || fabric.links().any(same)
}

/// Whether the trouble begins at this device: not at the one above it, nor at the other end of its pair.
fn is_cause(fabric: &Fabric, link: &Link) -> bool {
    let master = link.master.and_then(|at| fabric.link(at));
    // A bond has other links; a bridge has not.
    let spared = master.is_some_and(|master| master.works() && master.kind != "bridge");
    let peer = link.peer.and_then(|at| fabric.link(at));
    !spared && (!link.up || peer.is_none_or(|peer| peer.up))
}

/// Of a pair that both lost their carrier, the end that was set down; the first one if no reading showed it.
fn is_origin(evidence: &Evidence, fabric: &Fabric, link: &Link) -> bool {
    let set_down = |at: Place| {
        evidence.network.changes.iter().any(|change| match &change.what {
            What::LinkDown(link) => link.at == at && !link.up,
            _ => false,
        })
    };
    let spared =
        link.master.and_then(|at| fabric.link(at)).is_some_and(|master| master.kind != "bridge" && master.works());
    let Some(peer) = link.peer.and_then(|at| fabric.link(at)) else { return !spared };
    match (set_down(link.at), set_down(peer.at)) {
        (true, false) => true,
        (false, true) => false,
        // A bridge port serves the host at its other end.
        _ if link.master.is_some() != peer.master.is_some() => link.master.is_none(),
        _ => link.at < peer.at,
    }
}

/// When it went down, if it did so in the window.
fn went_down(evidence: &Evidence, at: Place) -> Option<u64> {
    evidence.network.changes.iter().rev().find_map(|change| match &change.what {
        What::LinkDown(link) if link.at == at => Some(change.after_ms),
        _ => None,
    })
}

/// By the kernel's count of its carrier's losses, or by what the readings showed.
fn times_down(evidence: &Evidence, link: &Link) -> u32 {
    let is_this = |what: &What| matches!(what, What::LinkDown(down) if down.at == link.at);
    let seen = evidence.network.changes.iter().filter(|change| is_this(&change.what)).count();
    link.downs.max(seen as u32)
}

/// Down more than once, or down and up again.
fn flaps(evidence: &Evidence, link: &Link) -> bool {
    let times = times_down(evidence, link);
    times >= 2 || (times == 1 && link.works())
}

fn harm<'a>(evidence: &Evidence, fabric: &Fabric, wants: &'a [Want], link: &Link) -> Harm<'a> {
    Harm {
        wants: wants.iter().filter(|want| needs(evidence, fabric, want, link)).collect(),
        sockets: sockets(evidence, &addresses(evidence, fabric, link.at)),
    }
}

/// TCP connections, and sockets that are bound to an address.
fn sockets(evidence: &Evidence, addresses: &[(u32, IpAddr)]) -> usize {
    let is_there =
        |netns: Option<u32>, address: IpAddr| netns.is_some_and(|netns| addresses.contains(&(netns, address)));
    let open = evidence.sockets.iter().filter(|socket| socket.remote.is_some());
    open.filter(|socket| socket.local.is_some_and(|local| is_there(socket.owner.netns, local.address))).count()
}

/// The addresses that a device has, or had in the window, and those of the other end of its pair.
fn addresses(evidence: &Evidence, fabric: &Fabric, at: Place) -> Vec<(u32, IpAddr)> {
    let ends = [Some(at), fabric.link(at).and_then(|link| link.peer)];
    let gone = evidence.network.changes.iter().filter_map(|change| match &change.what {
        What::AddressGone(address) => Some(address),
        _ => None,
    });
    let all = evidence.network.addresses.iter().chain(gone);
    all.filter(|one| ends.contains(&Some(one.at)) && !one.is_link_local()).map(|one| (one.at.0, one.address)).collect()
}

/// Whether wanted traffic uses a link.
fn needs(evidence: &Evidence, fabric: &Fabric, want: &Want, link: &Link) -> bool {
    if want.netns == link.at.0 && want.interface.as_deref() == Some(link.name.as_str()) {
        return true;
    }
    let from = fabric.egress(want.netns, want.next());
    let target = fabric.target(from, want.next()).or_else(|| fabric.target(from, want.to));
    match (from, target) {
        (Some(from), Some(to)) if fabric.path(from, to).is_some_and(|path| path.contains(&link.at)) => true,
        // Further away: the link whose address is otherwise unreachable.
        (_, Some(to)) if to == link.at || fabric.link(to).is_some_and(|end| end.peer == Some(link.at)) => true,
        (Some(from), _) if from == link.at || fabric.link(from).is_some_and(|end| end.peer == Some(link.at)) => true,
        // The routes went with the link; what it was for was everything.
        (None, _) if want.netns == link.at.0 && want.how == How::NoRoute => {
            let had_way = evidence.network.changes.iter().any(|change| match &change.what {
                What::RouteGone(route) => (route.netns, route.link) == link.at && route.covers(want.to),
                _ => false,
            });
            let same_family =
                |address: &&crate::tools::diagnose::network::Address| address.address.is_ipv4() == want.to.is_ipv4();
            had_way || (!link.up && fabric.addresses(link.at).iter().any(same_family))
        }
        _ => false,
    }
}

fn harm_of_gone<'a>(evidence: &Evidence, fabric: &Fabric, wants: &'a [Want], link: &Link) -> Harm<'a> {
    let gone: Vec<_> = evidence.network.changes.iter().map(|change| &change.what).collect();
    let address = |what: &&What| match what {
        What::AddressGone(address) if address.at == link.at => Some((address.at.0, address.address)),
        _ => None,
    };
    let addresses: Vec<_> = gone.iter().filter_map(address).collect();
    let had_way = |want: &Want| {
        want.netns == link.at.0
            && gone.iter().any(|what| match what {
                What::RouteGone(route) => (route.netns, route.link) == link.at && route.covers(want.to),
                _ => false,
            })
    };
    let is_target = |want: &Want| addresses.iter().any(|(_, address)| want.missed(fabric, *address));
    Harm {
        wants: wants.iter().filter(|want| had_way(want) || is_target(want)).collect(),
        sockets: sockets(evidence, &addresses),
    }
}

/// Who needs it, in words.
fn needed(harm: &Harm) -> String {
    let to: BTreeSet<IpAddr> = harm.wants.iter().map(|want| want.to).collect();
    match to.first() {
        Some(first) if to.len() == 1 => format!("traffic to {first} needs it"),
        Some(first) => format!(
            "traffic to {first} and {} needs it",
            count(to.len() as u64 - 1, "other address", "other addresses")
        ),
        None => format!(
            "{} an address of this interface",
            count(harm.sockets as u64, "open socket has", "open sockets have")
        ),
    }
}

fn with_harm(evidence: &Evidence, fabric: &Fabric, finding: Finding, link: &Link, harm: &Harm) -> Finding {
    let finding = place::at(evidence, finding, link);
    let peer = link.peer.and_then(|at| fabric.link(at)).map(|peer| place::of(evidence, peer));
    let own: Vec<_> =
        addresses(evidence, fabric, link.at).into_iter().filter(|(netns, _)| *netns == link.at.0).collect();
    let mut finding = own.iter().fold(finding, |finding, (_, address)| finding.at(*address));
    finding.harms.extend(near(fabric, link));
    let finding = finding
        .with("peer", peer)
        .with(
            "addresses",
            Some(own.into_iter().map(|(_, address)| address).collect::<Vec<_>>()).filter(|all| !all.is_empty()),
        )
        .with("sockets", Some(harm.sockets).filter(|sockets| *sockets > 0));
    let shown = if crate::untrusted::is_plain(&link.name) { format!(" dev {}", link.name) } else { String::new() };
    place::wanted(finding, &harm.wants).step(&format!("ip -s link show{shown}"))
}

/// The namespaces on its wire. Others may have the same addresses.
fn near(fabric: &Fabric, link: &Link) -> BTreeSet<u32> {
    let ends = || std::iter::once(link.at).chain(link.peer);
    ends().chain(ends().flat_map(|end| fabric.segment(end))).map(|(netns, _)| netns).collect()
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};
    use crate::{
        answer::Owner,
        tools::diagnose::{
            evidence::{Connection, Outcome, Socket},
            fabric::tests::{address, bridged, link},
            network::{Change, Network},
        },
    };

    /// A client of namespace 1 that gets no answer from 10.0.0.2.
    fn evidence(network: Network) -> Evidence {
        let client = Connection {
            owner: Owner { netns: Some(1), ..owner("client", 7) },
            retransmits: 2,
            ..connection("10.0.0.2", 80, Outcome::Unanswered)
        };
        Evidence { network, connections: vec![client], ..quiet() }
    }

    fn with(change: impl Fn(&mut Link), at: Place) -> Evidence {
        let mut network = bridged();
        network.links.iter_mut().filter(|link| link.at == at).for_each(change);
        evidence(network)
    }

    fn place(finding: &Finding) -> (u64, &str) {
        (finding.evidence["netns"].as_u64().unwrap(), finding.evidence["interface"].as_str().unwrap())
    }

    #[test]
    fn link_down_anywhere_on_the_path_is_named() {
        for (at, name) in [((1, 2), "eth0"), ((2, 2), "eth0"), ((9, 2), "br0"), ((9, 4), "port")] {
            let found = link_down(&with(|link| link.up = false, at));
            assert_eq!(told(&found), [(Code::LinkDown, Severity::Warning)], "{at:?}");
            assert_eq!(place(&found[0]), (u64::from(at.0), name));
        }
        assert!(link_down(&with(|link| link.up = false, (5, 2))).is_empty(), "nobody needs that one");
    }

    #[test]
    fn veth_end_set_down_is_named_instead_of_its_peer() {
        let mut evidence = with(|link| link.up = false, (2, 2));
        evidence.network.links.iter_mut().filter(|link| link.at == (9, 4)).for_each(|link| link.carrier = false);
        let found = link_down(&evidence);
        assert_eq!((found.len(), place(&found[0])), (1, (2, "eth0")));
    }

    #[test]
    fn down_member_of_a_working_bond_is_ignored() {
        let mut network = bridged();
        network.links.push(Link { kind: "bond".into(), ..link(1, 8, "bond0") });
        network.links[0] = Link { up: false, master: Some((1, 8)), ..network.links[0].clone() };
        assert!(link_down(&evidence(network)).is_empty());
    }

    #[test]
    fn link_down_without_users_is_ignored() {
        let idle = Evidence { connections: vec![], ..with(|link| link.up = false, (2, 2)) };
        assert!(link_down(&idle).is_empty());
        let flapped = Evidence { connections: vec![], ..with(|link| link.downs = 3, (2, 2)) };
        assert!(link_flap(&flapped).is_empty());
    }

    #[test]
    fn repeated_link_down_with_users_is_a_flap() {
        let mut evidence = with(|link| link.downs = 3, (2, 2));
        evidence.connections.clear();
        let owner = Owner { netns: Some(2), ..Owner::default() };
        let (local, remote) = (Some(endpoint("10.0.0.2", 80)), Some(endpoint("10.0.0.1", 40_000)));
        evidence.sockets = vec![Socket { owner, local, remote, ..Socket::default() }];
        let found = link_flap(&evidence);
        assert_eq!((told(&found), place(&found[0])), (vec![(Code::LinkFlap, Severity::Warning)], (2, "eth0")));
        evidence.network.links.iter_mut().for_each(|link| link.downs = link.downs.min(1));
        assert!(link_flap(&evidence).is_empty(), "once, and nothing failed");
    }

    #[test]
    fn removed_interface_with_users_is_reported() {
        let mut network = bridged();
        let gone = network.links.remove(0);
        let own = network.addresses.remove(0);
        let change = |what| Change { after_ms: 900, what };
        network.changes = vec![change(What::LinkGone(gone)), change(What::AddressGone(own))];
        network.links.push(Link { loopback: true, ..link(1, 1, "lo") });
        let mut evidence = evidence(network);
        evidence.sockets = vec![Socket {
            owner: Owner { netns: Some(1), ..Owner::default() },
            local: Some(endpoint("10.0.0.1", 40_000)),
            remote: Some(endpoint("10.0.0.2", 80)),
            ..Socket::default()
        }];
        let found = interface_removed(&evidence);
        assert_eq!((told(&found), place(&found[0])), (vec![(Code::InterfaceRemoved, Severity::Warning)], (1, "eth0")));
        evidence.network.changes.clear();
        evidence.connections[0].outcome = Outcome::Unreachable;
        assert_eq!(told(&interface_removed(&evidence)), [(Code::InterfaceRemoved, Severity::Warning)], "it has none");
    }

    #[test]
    fn route_lost_with_a_link_is_matched_by_address() {
        let mut evidence = with(|link| link.up = false, (1, 2));
        evidence.connections[0].outcome = Outcome::Unreachable;
        evidence.connections[0].remote = Some(endpoint("192.0.2.1", 443));
        assert_eq!(link_down(&evidence).len(), 1);
        evidence.network.addresses = vec![address((2, 2), "10.0.0.2/24")];
        assert!(link_down(&evidence).is_empty(), "nothing says that it led there");
    }
}
