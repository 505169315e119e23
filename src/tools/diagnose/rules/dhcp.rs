//! Hosts that ask for an address by DHCP, and what they are told.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use crate::{
    answer::Owner,
    tools::diagnose::{
        control::{ACK, Control, DISCOVER, Dhcp, NAK, OFFER, REQUEST},
        evidence::{Evidence, Query, Socket},
        finding::{Code, Finding, Severity, quoted},
        network::{Address, Hardware, Place, is_within},
        wants::How,
    },
};

/// A client asks again after 4 s, give or take one (RFC 2131, 4.1), and impatient ones after 3 s: by then a server that
/// hears it has answered. A busy server looks whether an address is free first, which takes it a second.
const PATIENCE: Duration = Duration::from_secs(3);

/// What one client asked and was told, wherever it was seen.
#[derive(Default)]
struct Exchange<'a> {
    asked: Vec<(&'a Control, Dhcp)>,
    told: Vec<(&'a Control, Dhcp)>,
}

fn exchanges(evidence: &Evidence) -> BTreeMap<Hardware, Exchange<'_>> {
    let mut found = BTreeMap::<_, Exchange>::new();
    for seen in &evidence.network.control {
        let Some(message) = seen.dhcp() else { continue };
        let Some(client) = message.client.map(Hardware) else { continue };
        let exchange = found.entry(client).or_default();
        match message.kind {
            DISCOVER | REQUEST if !message.reply => exchange.asked.push((seen, message)),
            OFFER | ACK | NAK if message.reply => exchange.told.push((seen, message)),
            _ => {}
        }
    }
    found
}

impl Exchange<'_> {
    fn first_ms(&self) -> Option<u64> {
        self.asked.iter().map(|(seen, _)| seen.first_ms).min()
    }

    /// How long it has waited for an address in vain, at the window's end.
    fn waited(&self, evidence: &Evidence) -> Option<Duration> {
        let first = self.first_ms()?;
        let served = self.told.iter().any(|(seen, message)| message.kind != NAK && seen.last_ms >= first);
        let waited = evidence.window.saturating_sub(Duration::from_millis(first));
        (!served && waited >= PATIENCE).then_some(waited)
    }

    /// The device that asks: its own address is in the message, and else the first one that it left.
    fn place(&self, evidence: &Evidence, client: Hardware) -> Option<Place> {
        let own = |seen: &Control| {
            seen.leaves && evidence.network.links.iter().any(|l| l.at == seen.at && l.hardware == Some(client))
        };
        let seen = || self.asked.iter().map(|(seen, _)| *seen);
        seen().find(|seen| own(seen)).or_else(|| seen().min_by_key(|seen| (!seen.leaves, seen.first_ms))).map(|s| s.at)
    }

    /// How often it asked: at each device that a packet passes it is seen once.
    fn times(&self) -> u64 {
        let mut at = BTreeMap::<_, u64>::new();
        self.asked.iter().for_each(|(seen, _)| *at.entry((seen.at, seen.leaves)).or_default() += seen.count);
        at.into_values().max().unwrap_or_default()
    }

    /// The server's socket in a network namespace that the requests reached. A relay receives them before the server does.
    fn server<'e>(&self, evidence: &'e Evidence) -> Option<&'e Socket> {
        let relayed = self.asked.iter().any(|(_, message)| message.relay.is_some());
        let came = |netns: Option<u32>| {
            let mut asked = self.asked.iter().filter(|(seen, _)| !seen.leaves && Some(seen.at.0) == netns);
            asked.any(|(_, message)| message.relay.is_some() == relayed)
        };
        evidence.sockets.iter().find(|socket| is_server(socket) && came(socket.owner.netns))
    }
}

fn is_server(socket: &Socket) -> bool {
    const PORT: u16 = 67;
    !socket.tcp && socket.local.is_some_and(|local| local.port == PORT)
}

/// What a finding says of its client.
fn about(evidence: &Evidence, code: Code, client: Hardware, exchange: &Exchange, summary: String) -> Finding {
    let place = exchange.place(evidence, client);
    let netns = place.map(|(netns, _)| netns);
    let link = evidence.network.links.iter().find(|link| Some(link.at) == place);
    let finding = Finding::new(code, Severity::Warning, summary)
        .with("client", client.to_string())
        .with("interface", link.map(|link| &link.name))
        .with("netns", netns)
        .with("requests", exchange.times());
    // Without an address the client reaches nothing.
    let wants = evidence.wants().into_iter().filter(|want| Some(want.netns) == netns);
    let to: BTreeSet<IpAddr> = wants.map(|want| want.to).collect();
    to.into_iter().fold(finding, Finding::at)
}

/// Nobody answers a client.
pub fn dhcp_unanswered(evidence: &Evidence) -> Vec<Finding> {
    let found = exchanges(evidence).into_iter().filter_map(|(client, exchange)| {
        let waited = exchange.waited(evidence).filter(|_| refusal(evidence, &exchange).is_none())?;
        let server = exchange.server(evidence);
        let why = server.map_or_else(
            || "no server of this host has it".to_owned(),
            |server| format!("{} does not read it", quoted(&server.owner)),
        );
        let summary = format!(
            "DHCP requests of {client} are not answered: {} in {:.0} s; {why}",
            exchange.times(),
            waited.as_secs_f64()
        );
        let finding = about(evidence, Code::DhcpUnanswered, client, &exchange, summary)
            .with("waited_seconds", waited.as_secs())
            .with("server", server.map(|server| &server.owner));
        Some(finding.step(
            "is a DHCP server running on this link, or a relay, and does a firewall let UDP ports 67 and 68 pass?",
        ))
    });
    found.collect()
}

/// Why a server that is there gives a client no address, and whose it is.
fn refusal(evidence: &Evidence, exchange: &Exchange) -> Option<(&'static str, Option<Owner>)> {
    let server = exchange.server(evidence);
    let owner = server.map(|server| server.owner.clone());
    if exchange.told.iter().any(|(_, message)| message.kind == NAK) {
        return Some(("it refuses the address that the client asks for", owner));
    }
    if let Some(server) = server {
        // A server that does not read its socket hangs.
        return (server.receive_queue_bytes == 0).then_some(("it gets the requests and offers nothing", owner));
    }
    let places: BTreeSet<Place> = exchange.asked.iter().map(|(seen, _)| seen.at).collect();
    let served =
        |other: &Exchange| other.told.iter().any(|(seen, message)| places.contains(&seen.at) && message.kind != NAK);
    exchanges(evidence).values().any(served).then_some(("it answers others on the same link", None))
}

/// A server is there, and has no address for a client.
pub fn dhcp_no_pool(evidence: &Evidence) -> Vec<Finding> {
    let found = exchanges(evidence).into_iter().filter_map(|(client, exchange)| {
        let waited = exchange.waited(evidence)?;
        let (why, owner) = refusal(evidence, &exchange)?;
        let name = owner.as_ref().map_or_else(|| "a DHCP server".into(), quoted);
        let summary = format!("{name} has no address for {client}: {why}");
        let refusals = exchange.told.iter().map(|(seen, _)| seen.count).max();
        let finding = about(evidence, Code::DhcpNoPool, client, &exchange, summary)
            .owner(&owner.unwrap_or_default())
            .with("server", exchange.told.iter().find_map(|(_, message)| message.server))
            .with("waited_seconds", waited.as_secs())
            .with("refusals", refusals);
        Some(finding.step("the server's ranges: is there one for this network, and is an address of it free? Its log and its leases say"))
    });
    found.collect()
}

/// An option that contradicts the network.
struct Wrong {
    option: &'static str,
    value: Ipv4Addr,
    why: String,
}

/// An option of a lease contradicts the network.
pub fn dhcp_bad_option(evidence: &Evidence) -> Vec<Finding> {
    let mut found = Vec::new();
    for (client, exchange) in exchanges(evidence) {
        let place = exchange.place(evidence, client).or_else(|| exchange.told.first().map(|(seen, _)| seen.at));
        let netns = place.map(|(netns, _)| netns);
        let Some((wrong, message)) =
            exchange.told.iter().find_map(|(_, message)| Some((wrong(evidence, netns, message)?, message)))
        else {
            continue;
        };
        let summary = format!("DHCP tells {client} a wrong {}: {} {}", wrong.option, wrong.value, wrong.why);
        let owner = message.server.and_then(|server| {
            let has = |one: &Address, netns| one.address == IpAddr::from(server) && Some(one.at.0) == netns;
            let home = |socket: &&Socket| evidence.network.addresses.iter().any(|one| has(one, socket.owner.netns));
            evidence.sockets.iter().filter(|socket| is_server(socket)).find(home)
        });
        let finding = about(evidence, Code::DhcpBadOption, client, &exchange, summary)
            .owner(&owner.map(|socket| socket.owner.clone()).unwrap_or_default())
            .with("option", wrong.option)
            .with("value", wrong.value)
            .with("offered_address", message.yours)
            .with("offered_prefix", message.prefix())
            .with("server", message.server)
            .at(IpAddr::from(wrong.value));
        found.push(finding.step(
            "correct the option at the server, and renew the lease; a server that nobody knows of is a rogue one",
        ));
    }
    found
}

/// Clouds give prefixes of one host: then the router is outside of the network on purpose.
const HOST: u8 = 32;

fn wrong(evidence: &Evidence, netns: Option<u32>, message: &Dhcp) -> Option<Wrong> {
    let yours: IpAddr = message.yours.filter(|_| message.kind != NAK)?.into();
    let prefix = message.prefix();
    // The server is on the link itself.
    let served = message.server.filter(|_| message.relay.is_none()).map(IpAddr::from);
    let own = served.and_then(|server| evidence.network.addresses.iter().find(|one| one.address == server));
    let own = own.filter(|own| own.prefix < HOST && own.covers(yours));
    if let (Some(own), Some(mask), Some(prefix)) = (own, message.mask, prefix)
        && prefix < HOST
        && prefix != own.prefix
    {
        let why = format!("is /{prefix}, and the server's own network is {}/{}", own.address, own.prefix);
        return Some(Wrong { option: "subnet_mask", value: mask, why });
    }
    let outside = |router: &&Ipv4Addr| prefix.is_some_and(|p| p < HOST && !is_within((**router).into(), yours, p));
    if let Some(router) = message.routers.iter().find(outside) {
        let why = format!("is not in the client's network {yours}/{}", prefix.unwrap_or_default());
        return Some(Wrong { option: "router", value: *router, why });
    }
    let wants = evidence.wants();
    let gone = |router: &&Ipv4Addr| {
        let to = IpAddr::from(**router);
        wants.iter().any(|want| want.how == How::Neighbor && Some(want.netns) == netns && want.next() == to)
    };
    if let Some(router) = message.routers.iter().find(gone) {
        return Some(Wrong { option: "router", value: *router, why: "does not answer ARP".into() });
    }
    let silent = |resolver: &&Ipv4Addr| {
        let to = |query: &&Query| {
            query.owner.netns == netns && query.server.is_some_and(|at| at.address == IpAddr::from(**resolver))
        };
        let asked: Vec<_> = evidence.queries.iter().filter(to).collect();
        asked.iter().any(|query| query.unanswered) && asked.iter().all(|query| query.rcode.is_none())
    };
    let resolver = message.resolvers.iter().find(silent)?;
    Some(Wrong { option: "domain_name_server", value: *resolver, why: "answers no query".into() })
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{endpoint, owner, quiet, told},
        *,
    };
    use crate::tools::diagnose::{
        control::tests::{control, message},
        network::{Address, Network},
    };

    fn ask(client: u8, first_ms: u64) -> Control {
        control(7, true, first_ms, message(1, client, [0; 4], &[53, 1, DISCOVER]))
    }

    fn evidence(control: Vec<Control>) -> Evidence {
        Evidence { network: Network { control, ..Network::default() }, ..quiet() }
    }

    fn server(unread: u64) -> Socket {
        let owner = Owner { netns: Some(8), ..owner("dhcpd", 5) };
        Socket { owner, local: Some(endpoint("0.0.0.0", 67)), receive_queue_bytes: unread, ..Socket::default() }
    }

    fn ack(client: u8, options: &[u8]) -> Control {
        let all = [&[53, 1, ACK, 54, 4, 10, 0, 0, 1][..], options].concat();
        control(7, false, 1_000, message(2, client, [10, 0, 0, 9], &all))
    }

    #[test]
    fn client_that_waits_for_more_than_three_seconds_is_not_answered() {
        let found = dhcp_unanswered(&evidence(vec![ask(1, 100)]));
        assert_eq!(told(&found), [(Code::DhcpUnanswered, Severity::Warning)]);
        assert_eq!((&found[0].evidence["requests"], &found[0].evidence["netns"]), (&2.into(), &7.into()));
        assert!(dhcp_unanswered(&evidence(vec![ask(1, 8_000)])).is_empty(), "it asks just now");
        assert!(dhcp_unanswered(&evidence(vec![ask(1, 100), ack(1, &[])])).is_empty());
        let other = evidence(vec![ask(1, 100), ack(2, &[])]);
        assert!(dhcp_unanswered(&other).is_empty());
        assert_eq!(told(&dhcp_no_pool(&other)), [(Code::DhcpNoPool, Severity::Warning)]);
    }

    #[test]
    fn server_that_reads_and_offers_nothing_has_no_pool() {
        let arrives = Control { at: (8, 2), leaves: false, ..ask(1, 100) };
        let with = |server| Evidence { sockets: vec![server], ..evidence(vec![ask(1, 100), arrives.clone()]) };
        let found = dhcp_no_pool(&with(server(0)));
        assert_eq!(found[0].evidence["owner"]["process"], "dhcpd");
        assert!(dhcp_unanswered(&with(server(0))).is_empty());
        let hangs = dhcp_unanswered(&with(server(600)));
        assert_eq!(hangs[0].evidence["server"]["process"], "dhcpd");
        assert!(dhcp_no_pool(&with(server(600))).is_empty());
    }

    #[test]
    fn refusal_without_an_address_later_is_no_pool() {
        let nak = control(7, false, 200, message(2, 1, [0; 4], &[53, 1, NAK]));
        assert_eq!(told(&dhcp_no_pool(&evidence(vec![ask(1, 100), nak.clone()]))).len(), 1);
        assert!(
            dhcp_no_pool(&evidence(vec![ask(1, 100), nak, ack(1, &[])])).is_empty(),
            "it came from another network"
        );
    }

    fn wrong_of(options: &[u8]) -> Vec<Finding> {
        dhcp_bad_option(&evidence(vec![ask(1, 100), ack(1, options)]))
    }

    #[test]
    fn router_outside_of_the_network_is_wrong() {
        let found = wrong_of(&[1, 4, 255, 255, 255, 0, 3, 4, 10, 0, 7, 1]);
        assert_eq!(told(&found), [(Code::DhcpBadOption, Severity::Warning)]);
        assert_eq!((&found[0].evidence["option"], &found[0].evidence["value"]), (&"router".into(), &"10.0.7.1".into()));
        assert!(wrong_of(&[1, 4, 255, 255, 255, 0, 3, 4, 10, 0, 0, 1]).is_empty());
        assert!(wrong_of(&[1, 4, 255, 255, 255, 255, 3, 4, 10, 0, 7, 1]).is_empty(), "as clouds have it");
    }

    #[test]
    fn mask_other_than_the_servers_is_wrong() {
        let mut evidence = evidence(vec![ask(1, 100), ack(1, &[1, 4, 255, 255, 0, 0])]);
        let address = |prefix| Address { at: (8, 2), address: [10, 0, 0, 1].into(), prefix, flags: 0 };
        evidence.network.addresses = vec![address(24)];
        assert_eq!(dhcp_bad_option(&evidence)[0].evidence["option"], "subnet_mask");
        evidence.network.addresses = vec![address(16)];
        assert!(dhcp_bad_option(&evidence).is_empty());
    }
}
