//! Routes that say no, and routes that went.

use std::{collections::BTreeMap, net::IpAddr};

use super::place::{self, Named};
use crate::{
    answer::count,
    tools::diagnose::{
        evidence::Evidence,
        fabric::Fabric,
        finding::{Code, Finding, Severity},
        network::{Route, RouteKind, What},
        wants::{How, Want},
    },
};

/// A rejecting route catches traffic: of a local sender, of a router on the path, or the answers of a server.
pub fn blackhole_route(evidence: &Evidence) -> Vec<Finding> {
    let (fabric, wants) = (Fabric::of(&evidence.network), evidence.wants());
    let mut by_route = BTreeMap::<&Route, Vec<&Want>>::new();
    for want in &wants {
        let route = refusing(&fabric, want.netns, want.to).or_else(|| {
            // Silence: the answers may find no way back.
            let silent = want.how == How::Silent || want.how == How::Neighbor;
            let server = fabric.target(fabric.egress(want.netns, want.next()), want.to).filter(|_| silent)?;
            refusing(&fabric, server.0, want.from?)
        });
        if let Some(route) = route.filter(|_| want.how != How::Device) {
            by_route.entry(route).or_default().push(want);
        }
    }
    let found = by_route.into_iter().map(|(route, harmed)| {
        let named = Named::new(evidence, route.netns);
        let summary = format!(
            "the route \"{route}\" in {named} rejects {}",
            count(harmed.iter().map(|want| want.count).sum(), "packet or connect", "packets or connects")
        );
        let finding = named
            .on(Finding::new(Code::BlackholeRoute, Severity::Warning, summary))
            .with("route", route.to_string())
            .with("kind", route.kind)
            .with("protocol", protocol(route.protocol));
        let finding = place::wanted(finding, &harmed);
        finding.step(&format!("ip route show match {}  # find out what set this route", harmed[0].to))
    });
    found.collect()
}

fn refusing<'a>(fabric: &Fabric<'a>, netns: u32, to: IpAddr) -> Option<&'a Route> {
    let refuses =
        |route: &&Route| matches!(route.kind, RouteKind::Blackhole | RouteKind::Unreachable | RouteKind::Prohibit);
    fabric.route(netns, to).filter(refuses)
}

/// Who made a route: `RTPROT_*` of linux/rtnetlink.h.
fn protocol(number: u8) -> Option<&'static str> {
    Some(match number {
        1 => "redirect",
        2 => "kernel",
        3 => "boot",
        4 => "static",
        9 => "ra",
        11 => "zebra",
        12 => "bird",
        16 => "dhcp",
        186 => "bgp",
        187 => "isis",
        188 => "ospf",
        189 => "rip",
        192 => "eigrp",
        _ => return None,
    })
}

/// A route disappeared in the window, and traffic has no way since.
pub fn route_withdrawn(evidence: &Evidence) -> Vec<Finding> {
    let (fabric, wants) = (Fabric::of(&evidence.network), evidence.wants());
    let mut found = Vec::new();
    for (after_ms, route) in evidence.network.changes.iter().filter_map(|change| match &change.what {
        What::RouteGone(route) => Some((change.after_ms, route)),
        _ => None,
    }) {
        // Routes that disappeared with their link or address are reported with these.
        let works = fabric.link((route.netns, route.link)).is_some_and(|link| link.works());
        let has_address = evidence
            .network
            .addresses
            .iter()
            .any(|one| one.at == (route.netns, route.link) && one.address.is_ipv4() == route.network.is_ipv4());
        let back = evidence.network.routes.iter().any(|one| {
            (one.netns, one.network, one.prefix) == (route.netns, route.network, route.prefix) && one.kind == route.kind
        });
        if route.kind != RouteKind::Unicast || !works || !has_address || back {
            continue;
        }
        let harmed: Vec<_> = wants.iter().filter(|want| misses(&fabric, route, want)).collect();
        if harmed.is_empty() {
            continue;
        }
        let named = Named::new(evidence, route.netns);
        let summary = format!("the route \"{route}\" in {named} disappeared in the window, and traffic needs it");
        let interface = fabric.link((route.netns, route.link)).map(|link| link.name.clone());
        let finding = named
            .on(Finding::new(Code::RouteWithdrawn, Severity::Warning, summary))
            .with("route", route.to_string())
            .with("prefix", format!("{}/{}", route.network, route.prefix))
            .with("interface", interface)
            .with("protocol", protocol(route.protocol))
            .with("withdrawn_after_ms", after_ms);
        found.push(place::wanted(finding, &harmed).step("ip route show").step("ip monitor route"));
    }
    found
}

/// Whether traffic would have taken a route, there or on its way back.
fn misses(fabric: &Fabric, route: &Route, want: &Want) -> bool {
    let no_better =
        |to: IpAddr| route.covers(to) && fabric.route(route.netns, to).is_none_or(|now| now.prefix < route.prefix);
    if want.netns == route.netns {
        return no_better(want.to);
    }
    let server = fabric.target(fabric.egress(want.netns, want.next()), want.to);
    server.is_some_and(|at| at.0 == route.netns) && want.from.is_some_and(no_better)
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};
    use crate::{
        answer::Owner,
        tools::diagnose::{
            evidence::{Connection, DroppedPackets, Outcome},
            fabric::tests::bridged,
            network::{Change, Network},
        },
    };

    fn route(netns: u32, network: &str, prefix: u8, kind: RouteKind) -> Route {
        let network = network.parse().unwrap();
        Route { netns, network, prefix, kind, link: 2, gateway: None, metric: 0, protocol: 4 }
    }

    fn client(to: &str, outcome: Outcome) -> Connection {
        let owner = Owner { netns: Some(1), ..owner("client", 7) };
        Connection { owner, retransmits: 2, local: Some(endpoint("10.0.0.1", 40_000)), ..connection(to, 80, outcome) }
    }

    fn with(routes: Vec<Route>, connections: Vec<Connection>) -> Evidence {
        Evidence { network: Network { routes, ..bridged() }, connections, ..quiet() }
    }

    fn netns(found: &[Finding]) -> Vec<u64> {
        found.iter().map(|finding| finding.evidence["netns"].as_u64().unwrap()).collect()
    }

    #[test]
    fn rejecting_route_names_its_prefix() {
        let refused = client("192.0.2.7", Outcome::Unreachable);
        let found =
            blackhole_route(&with(vec![route(1, "192.0.2.0", 24, RouteKind::Unreachable)], vec![refused.clone()]));
        assert_eq!(told(&found), [(Code::BlackholeRoute, Severity::Warning)]);
        assert_eq!(found[0].evidence["route"], "unreachable 192.0.2.0/24");
        let longer = [route(1, "192.0.2.0", 24, RouteKind::Blackhole), route(1, "192.0.2.7", 32, RouteKind::Unicast)];
        assert!(blackhole_route(&with(longer.to_vec(), vec![refused])).is_empty(), "a longer prefix is preferred");
        let hole = route(1, "192.0.2.0", 24, RouteKind::Blackhole);
        let well = client("192.0.2.7", Outcome::Established);
        assert!(blackhole_route(&with(vec![hole], vec![well])).is_empty(), "it caught nothing");
    }

    #[test]
    fn rejecting_route_names_its_namespace() {
        let forwarded = DroppedPackets {
            owner: Owner { netns: Some(2), ..Owner::default() },
            location: "ip_error".into(),
            sent_here: true,
            ..drop_of("NOT_SPECIFIED", "tcp", ("192.0.2.7", 80), 4)
        };
        let router =
            Evidence { drops: vec![forwarded], ..with(vec![route(2, "192.0.2.0", 24, RouteKind::Blackhole)], vec![]) };
        assert_eq!(netns(&blackhole_route(&router)), [2]);
        let silent = client("10.0.0.2", Outcome::Unanswered);
        let server = with(vec![route(2, "10.0.0.1", 32, RouteKind::Blackhole)], vec![silent]);
        assert_eq!(netns(&blackhole_route(&server)), [2], "it swallows the answers");
    }

    #[test]
    fn withdrawn_route_is_reported_if_used() {
        let refused = client("192.0.2.7", Outcome::Unreachable);
        let mut evidence = with(vec![], vec![refused]);
        let what = What::RouteGone(route(1, "192.0.2.0", 24, RouteKind::Unicast));
        evidence.network.changes = vec![Change { after_ms: 500, what }];
        let found = route_withdrawn(&evidence);
        assert_eq!((told(&found), netns(&found)), (vec![(Code::RouteWithdrawn, Severity::Warning)], vec![1]));
        assert_eq!(found[0].evidence["prefix"], "192.0.2.0/24");
        let mut other = evidence.clone();
        other.network.links[0].up = false;
        assert!(route_withdrawn(&other).is_empty(), "it went with its link");
        evidence.network.routes = vec![route(1, "192.0.2.0", 24, RouteKind::Unicast)];
        assert!(route_withdrawn(&evidence).is_empty(), "it is back");
    }
}
