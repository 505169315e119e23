//! Routing protocols whose neighbors do not talk to each other any more: BGP by its connections, OSPF by its Hello packets.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use crate::{
    answer::{Endpoint, Owner},
    tools::{
        diagnose::{
            evidence::{Connection, DroppedPackets, Evidence, Outcome, common, program},
            finding::{Code, Finding, Severity, quoted},
            network::{Place, What},
            ospf::Hello,
        },
        snapshot_sockets::State,
    },
};

const BGP: u16 = 179;

pub fn routing_session_down(evidence: &Evidence) -> Vec<Finding> {
    let mut found = bgp(evidence);
    found.extend(ospf(evidence));
    found
}

/// Two ends of a session of BGP, whichever of them opened it.
type Peers = BTreeSet<IpAddr>;

fn peers(local: Option<Endpoint>, remote: Option<Endpoint>) -> Option<Peers> {
    let (local, remote) = (local?, remote?);
    (local.port == BGP || remote.port == BGP).then(|| [local.address, remote.address].into())
}

/// What happened to a session.
#[derive(Default)]
struct Session {
    owners: Vec<Owner>,
    /// The end that is not the owners'.
    remote: Option<IpAddr>,
    /// The owners opened it.
    is_client: bool,
    closed: u64,
    reset: u64,
    silent: u64,
    failed: u64,
}

impl Session {
    fn add(&mut self, owner: &Owner, remote: Option<Endpoint>, which: impl FnOnce(&mut Session) -> &mut u64) {
        *which(self) += 1;
        // Where both ends are here, it is told from the end that opened it.
        let is_client = remote.is_some_and(|remote| remote.port == BGP);
        if is_client && !self.is_client {
            (self.owners, self.remote, self.is_client) = (Vec::new(), None, true);
        }
        if is_client == self.is_client {
            self.remote = self.remote.or(remote.map(|remote| remote.address));
            self.owners.push(owner.clone());
        }
    }
}

/// Sessions that ended in the window, or that do not come up, and are not there at its end.
fn bgp(evidence: &Evidence) -> Vec<Finding> {
    let up: BTreeSet<Peers> = evidence
        .sockets
        .iter()
        .filter(|socket| socket.tcp && socket.state == Some(State::Established))
        .filter_map(|socket| peers(socket.local, socket.remote))
        .collect();
    let mut sessions = BTreeMap::<Peers, Session>::new();
    for row in &evidence.connections {
        let Some(peers) = peers(row.local, row.remote) else { continue };
        if row.outbound && has_failed(row) && speaks_bgp(evidence, &row.owner) {
            sessions.entry(peers).or_default().add(&row.owner, row.remote, |session| &mut session.failed);
        } else if row.outcome == Outcome::Established && lasted(evidence, row) {
            sessions.entry(peers).or_default().add(&row.owner, row.remote, |session| &mut session.closed);
        }
    }
    for row in &evidence.resets {
        let Some(peers) = peers(row.local, row.remote) else { continue };
        if speaks_bgp(evidence, &row.owner) {
            sessions.entry(peers).or_default().add(&row.owner, row.remote, |session| &mut session.reset);
        }
    }
    let mut is_silent = BTreeSet::new();
    for row in &evidence.silent {
        let Some(peers) = peers(row.local, row.remote) else { continue };
        is_silent.insert(peers.clone());
        sessions.entry(peers).or_default().add(&row.owner, row.remote, |session| &mut session.silent);
    }
    let down = sessions.into_iter().filter(|(peers, _)| !up.contains(peers) || is_silent.contains(peers));
    down.filter_map(|(_, session)| bgp_finding(evidence, &session)).collect()
}

fn has_failed(row: &Connection) -> bool {
    matches!(row.outcome, Outcome::Refused | Outcome::Unreachable | Outcome::TimedOut) || row.hangs()
}

/// Whether a connection that closed was a session. A scan ends at once; a session exchanges messages first.
fn lasted(evidence: &Evidence, row: &Connection) -> bool {
    const KNOCK: Duration = Duration::from_millis(500);
    row.lived.is_some_and(|lived| lived >= KNOCK) && speaks_bgp(evidence, &row.owner)
}

/// A speaker of BGP listens as well, in its own network namespace; a scan does not.
fn speaks_bgp(evidence: &Evidence, owner: &Owner) -> bool {
    const NAMES: [&str; 5] = ["bgpd", "bird", "gobgpd", "exabgp", "bird6"];
    let listens = |local: Option<Endpoint>| local.is_some_and(|local| local.port == BGP);
    owner.process.as_deref().is_some_and(|name| NAMES.contains(&name))
        || evidence.listeners.iter().any(|l| listens(l.local) && program(&l.owner) == program(owner))
}

fn bgp_finding(evidence: &Evidence, session: &Session) -> Option<Finding> {
    let remote = session.remote?;
    let owner = common(&session.owners);
    let how = match session {
        Session { silent: 1.., .. } => "nothing comes back any more",
        Session { reset: 1.., .. } => "it was reset",
        Session { failed: 1.., closed: 0, .. } => "it does not come up",
        _ => "it was closed",
    };
    let summary = format!("the BGP session of {} with {remote} is down: {how}", quoted(&owner));
    let count = |count: u64| (count > 0).then_some(count);
    let finding = Finding::new(Code::RoutingSessionDown, Severity::Warning, summary)
        .owner(&owner)
        .with("protocol", "bgp")
        .with("peer", remote)
        .with("failed_connects", count(session.failed))
        .with("resets", count(session.reset))
        .with("closed", count(session.closed))
        .with("silent_connections", count(session.silent))
        .at(Endpoint { address: remote, port: BGP });
    let finding = via(evidence, finding, owner.netns, remote);
    Some(finding.look("trace_connections", &[("port", BGP.to_string()), ("remote", remote.to_string())]).step(
        "the log of the routing daemon at both ends: is it running, and do AS numbers, addresses and keys agree?",
    ))
}

/// What somebody wanted behind routes that are gone with the neighbor.
fn via(evidence: &Evidence, finding: Finding, netns: Option<u32>, gateway: IpAddr) -> Finding {
    let gone = evidence.network.changes.iter().filter_map(|change| match &change.what {
        What::RouteGone(route) if route.gateway == Some(gateway) && Some(route.netns) == netns => Some(route),
        _ => None,
    });
    let gone: Vec<_> = gone.collect();
    let wants = evidence.wants().into_iter().filter(|want| gone.iter().any(|route| route.covers(want.to)));
    let to: BTreeSet<_> = wants.map(|want| want.to).collect();
    to.into_iter().fold(finding, Finding::at)
}

/// A Hello packet at a device.
struct Seen {
    hello: Hello,
    source: IpAddr,
    first_ms: u64,
    last_ms: u64,
}

/// Routers that hear each other's Hello, and are no neighbors.
fn ospf(evidence: &Evidence) -> Vec<Finding> {
    let mut places = BTreeMap::<Place, (Vec<Seen>, Vec<Seen>)>::new();
    for packet in &evidence.network.control {
        let Some(hello) = Hello::of(packet) else { continue };
        let (first_ms, last_ms) = (packet.first_ms, packet.last_ms);
        let (own, heard) = places.entry(packet.at).or_default();
        let seen = Seen { hello, source: packet.source.into(), first_ms, last_ms };
        if packet.leaves { own.push(seen) } else { heard.push(seen) }
    }
    let mut told = BTreeSet::new();
    let mut found = Vec::new();
    for (at, (own, heard)) in &places {
        for (own, other) in own.iter().flat_map(|own| heard.iter().map(move |other| (own, other))) {
            // A bridge sends what is another's.
            let Some(why) = apart(own, other).filter(|_| is_own(evidence, *at, own)) else { continue };
            let pair: BTreeSet<_> = [(own.hello.router, own.source), (other.hello.router, other.source)].into();
            if told.insert(pair) {
                found.push(ospf_finding(evidence, *at, own, other, &why));
            }
        }
    }
    found
}

fn is_own(evidence: &Evidence, at: Place, seen: &Seen) -> bool {
    evidence.network.addresses.iter().any(|one| one.at == at && one.address == seen.source)
}

/// Why two routers are no neighbors: settings that must be equal (RFC 2328, 10.5), or a Hello that does not name whose
/// Hello had come before it.
fn apart(own: &Seen, other: &Seen) -> Option<String> {
    /// The way of a packet to the one who reads it, and to who answers.
    const MOMENT_MS: u64 = 100;
    let (a, b) = (&own.hello, &other.hello);
    if a.router == b.router {
        return Some(format!("both have the router id {}", a.router));
    }
    if a.area != b.area {
        return Some(format!("areas {} and {}", a.area, b.area));
    }
    if (a.interval, a.dead) != (b.interval, b.dead) {
        return Some(format!("Hello and dead intervals {}/{} s and {}/{} s", a.interval, a.dead, b.interval, b.dead));
    }
    if a.mask != b.mask {
        return Some(format!("network masks {} and {}", a.mask, b.mask));
    }
    if own.last_ms > other.first_ms + MOMENT_MS && !a.neighbors.contains(&b.router) {
        return Some(format!("{} does not accept the Hello of {}", a.router, b.router));
    }
    if other.last_ms > own.first_ms + MOMENT_MS && !b.neighbors.contains(&a.router) {
        return Some(format!("{} does not accept the Hello of {}", b.router, a.router));
    }
    None
}

fn ospf_finding(evidence: &Evidence, at: Place, own: &Seen, other: &Seen, why: &str) -> Finding {
    let link = evidence.network.links.iter().find(|link| link.at == at);
    let name = link.map_or("an interface", |link| link.name.as_str());
    let summary = format!(
        "OSPF routers {} and {} are no neighbors on {name}, though they hear each other: {why}",
        own.hello.router, other.hello.router
    );
    let finding = Finding::new(Code::RoutingSessionDown, Severity::Warning, summary)
        .with("protocol", "ospf")
        .with("netns", at.0)
        .with("namespace", evidence.netns_files.get(&at.0).and_then(|file| file.rsplit('/').next()))
        .with("interface", link.map(|link| &link.name))
        .with("peer", other.source)
        .with("router_ids", [own.hello.router, other.hello.router])
        .with("cause", why)
        .at(other.source)
        .at(own.source);
    let finding = via(evidence, finding, Some(at.0), other.source);
    let is_dropped = |drop: &&DroppedPackets| {
        let from = drop.source.map(|source| source.address);
        drop.protocol == "ospf" && (from == Some(own.source) || from == Some(other.source))
    };
    let finding = match evidence.drops.iter().find(is_dropped) {
        None => finding,
        Some(drop) => finding
            .with("dropped_in_netns", drop.owner.netns)
            .with("drop_reason", &drop.reason)
            .with("packets", drop.count),
    };
    finding.step("compare the interface's OSPF settings at both ends, and whether a firewall drops IP protocol 89: nft list ruleset")
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{connection, endpoint, owner, quiet, told},
        *,
    };
    use crate::tools::diagnose::{
        evidence::{Listener, Reset, Socket},
        gone::Silent,
        network::{Address, Network},
        ospf::tests::hello,
    };

    fn speaker() -> Vec<Listener> {
        vec![Listener { owner: owner("client", 7), local: Some(endpoint("0.0.0.0", 179)), ..Listener::default() }]
    }

    fn judged(connections: Vec<Connection>, listeners: Vec<Listener>, sockets: Vec<Socket>) -> Vec<Finding> {
        routing_session_down(&Evidence { connections, listeners, sockets, ..quiet() })
    }

    #[test]
    fn speaker_whose_peer_refuses_has_lost_its_session() {
        let refused = || connection("10.0.0.1", 179, Outcome::Refused);
        let found = judged(vec![refused()], speaker(), vec![]);
        assert_eq!(told(&found), [(Code::RoutingSessionDown, Severity::Warning)]);
        assert_eq!((&found[0].evidence["peer"], &found[0].evidence["protocol"]), (&"10.0.0.1".into(), &"bgp".into()));
        assert!(judged(vec![refused()], vec![], vec![]).is_empty(), "a scan");
        assert!(judged(vec![connection("10.0.0.1", 80, Outcome::Refused)], speaker(), vec![]).is_empty());
    }

    #[test]
    fn session_that_is_there_again_is_up() {
        let closed =
            Connection { lived: Some(Duration::from_secs(3)), ..connection("10.0.0.1", 179, Outcome::Established) };
        assert_eq!(judged(vec![closed.clone()], speaker(), vec![]).len(), 1);
        let knock = Connection { lived: Some(Duration::from_millis(2)), ..closed.clone() };
        assert!(judged(vec![knock], speaker(), vec![]).is_empty());
        let again = Socket {
            tcp: true,
            state: Some(State::Established),
            local: Some(endpoint("10.0.0.9", 179)),
            remote: Some(endpoint("10.0.0.1", 41_000)),
            ..Socket::default()
        };
        assert!(judged(vec![closed], speaker(), vec![again]).is_empty());
    }

    #[test]
    fn session_with_two_silent_ends_is_told_from_the_client() {
        let of = |netns: u32| Owner { netns: Some(netns), ..owner("router", 7) };
        let (client, server) = (Some(endpoint("10.0.0.1", 41_000)), Some(endpoint("10.0.0.2", 179)));
        let ends = [(of(1), client, server), (of(2), server, client)];
        let ends = ends.map(|(owner, local, remote)| Silent { owner, local, remote, ..Silent::default() });
        for silent in [ends.to_vec(), ends.iter().rev().cloned().collect()] {
            let found = routing_session_down(&Evidence { silent, listeners: speaker(), ..quiet() });
            let evidence = &found[0].evidence;
            assert_eq!(
                (found.len(), &evidence["owner"]["netns"], &evidence["peer"]),
                (1, &1.into(), &"10.0.0.2".into())
            );
            assert_eq!(evidence["silent_connections"], 2);
        }
    }

    #[test]
    fn reset_of_a_session_is_told_with_its_peer() {
        let (local, remote) = (Some(endpoint("10.0.0.9", 40_000)), Some(endpoint("10.0.0.1", 179)));
        let reset = Reset { owner: owner("client", 7), local, remote, count: 1, ..Reset::default() };
        let found = routing_session_down(&Evidence { resets: vec![reset], listeners: speaker(), ..quiet() });
        assert_eq!(found[0].evidence["resets"], 1);
    }

    /// Two routers on one link: what the first one sends, and what it hears.
    fn link(own: (u64, [u8; 4], &[u8]), other: (u64, [u8; 4], &[u8])) -> Vec<Finding> {
        let at = (7, 2);
        let mut control = vec![hello(1, own.1, own.2), hello(2, other.1, other.2)];
        (control[0].leaves, control[0].first_ms, control[0].last_ms) = (true, 0, own.0);
        (control[1].first_ms, control[1].last_ms) = (0, other.0);
        control.iter_mut().for_each(|packet| packet.at = at);
        let addresses = vec![Address { at, address: [10, 0, 0, 1].into(), prefix: 24, flags: 0 }];
        let network = Network { control, addresses, ..Network::default() };
        routing_session_down(&Evidence { network, ..quiet() })
    }

    #[test]
    fn routers_that_do_not_name_each_other_are_apart() {
        assert!(link((5_000, [0; 4], &[2]), (5_000, [0; 4], &[1])).is_empty());
        let found = link((5_000, [0; 4], &[]), (5_000, [0; 4], &[1]));
        assert_eq!(told(&found), [(Code::RoutingSessionDown, Severity::Warning)]);
        assert!(found[0].summary.contains("0.0.0.1 does not accept the Hello of 0.0.0.2"), "{}", found[0].summary);
        assert!(link((50, [0; 4], &[]), (50, [0; 4], &[])).is_empty(), "they hear each other just now");
    }

    #[test]
    fn areas_must_be_equal() {
        let found = link((50, [0, 0, 0, 1], &[]), (50, [0; 4], &[]));
        assert_eq!(found[0].evidence["cause"], "areas 0.0.0.1 and 0.0.0.0");
    }
}
