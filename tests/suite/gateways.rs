//! `diagnose`: an unreachable gateway is one fault for all destinations behind it, and differs from an unreachable
//! on-link host.

use std::{
    net::{SocketAddr, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{harness::*, injected::Routed};

/// More than the rows of drops with separate addresses.
const TARGETS: usize = 12;

/// The findings above `info` about any of these addresses.
fn about<'a>(answer: &'a Value, addresses: &[String]) -> Vec<&'a Value> {
    let findings = answer["findings"].as_array().unwrap().iter();
    let of = |finding: &&Value| addresses.iter().any(|address| finding.to_string().contains(&format!("{address}\"")));
    findings.filter(|finding| finding["severity"] != "info").filter(of).collect()
}

/// Makes the kernel probe neighbors every 100 ms instead of every second.
fn ask_quickly(netns: &Netns, interface: &str) {
    for family in ["ipv4", "ipv6"] {
        netns.run(&format!("sysctl -qw net.{family}.neigh.{interface}.retrans_time_ms=100"));
    }
}

/// Connects from a namespace to each target, until the test ends: without answer for 3 s.
fn browse(netns: &Netns, targets: &[String]) {
    for target in targets {
        let (netns, to) = (netns.clone(), SocketAddr::new(target.parse().unwrap(), 443));
        thread::spawn(move || netns.enter(|| drop(TcpStream::connect_timeout(&to, Duration::from_secs(3)))));
    }
}

fn until_failed(netns: &Netns, neighbor: &str) {
    until("the neighbor has failed", || netns.ip(&format!("neigh show {neighbor}")).contains("FAILED").then_some(()));
}

/// The one finding of a window in which a client connects to all targets and asks a DNS server, all behind the gateway.
fn of_a_dead_gateway(client: &Netns, asked: &Netns, gateway: &str, targets: &[String]) -> Value {
    let (daemon, _no_scans) = (Daemon::start(), without_scans()); // a scan takes the places of these drops
    let window = daemon.watch("diagnose", json!({"limit": 40}));
    browse(client, targets);
    let resolver = SocketAddr::new(targets[0].parse().unwrap(), 53);
    let local = if resolver.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = client.enter(|| UdpSocket::bind(local).unwrap());
    let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x07example\x03com\0\0\x01\0\x01";
    socket.send_to(query, resolver).unwrap();
    until_failed(asked, gateway);
    socket.send_to(query, resolver).unwrap();
    thread::sleep(Duration::from_millis(1_200)); // a connect counts as hanging after 0.9 s
    until_failed(asked, gateway);
    let answer = window.end();
    let mut all = targets.to_vec();
    all.push(gateway.to_owned());
    let mut found = about(&answer, &all);
    // Other tests have the same addresses in other namespaces.
    found.retain(|finding| [client, asked].iter().any(|netns| finding["evidence"]["owner"]["netns"] == netns.inode()));
    assert_eq!(found.len(), 1, "{answer:#}");
    assert_eq!(found[0]["code"], "gateway_unreachable", "{answer:#}");
    assert_eq!(found[0]["evidence"]["gateway"], gateway, "{answer:#}");
    found[0].clone()
}

fn targets(prefix: &str) -> Vec<String> {
    (1..=TARGETS).map(|i| format!("{prefix}{i}")).collect()
}

#[test]
fn dead_gateway_of_either_family_is_one_finding() {
    for (route, gateway, prefix) in [
        ("-4 route add default via 10.77.0.254", "10.77.0.254", "192.0.2."),
        ("-6 route add default via fd77::fe", "fd77::fe", "2001:db8::"),
        // IPv4 over a router with an IPv6 address.
        ("-4 route add default via inet6 fd77::fe dev v0", "fd77::fe", "192.0.2."),
    ] {
        let pair = Pair::new();
        pair.a.ip(route);
        ask_quickly(&pair.a, "v0");
        let found = of_a_dead_gateway(&pair.a, &pair.a, gateway, &targets(prefix));
        assert_eq!(found["evidence"]["interfaces"], json!(["v0"]), "{found:#}");
        assert!(found["evidence"]["destinations"].as_u64().unwrap() >= TARGETS as u64, "{found:#}");
    }
}

#[test]
fn dead_gateway_on_a_bridge_is_named() {
    let pair = Pair::new();
    for line in
        ["link add br0 type bridge", "link set v0 master br0", "addr add 10.90.0.1/24 dev br0", "link set br0 up"]
    {
        pair.a.ip(line);
    }
    ask_quickly(&pair.a, "br0");
    pair.a.ip("route add default via 10.90.0.254");
    let found = of_a_dead_gateway(&pair.a, &pair.a, "10.90.0.254", &targets("192.0.2."));
    assert_eq!(found["evidence"]["interfaces"], json!(["br0"]), "{found:#}");
}

#[test]
fn dead_gateway_of_a_router_names_the_client() {
    let net = Routed::new();
    ask_quickly(&net.router, "r0");
    net.router.ip("route add default via 10.79.0.254");
    let found = of_a_dead_gateway(&net.a, &net.router, "10.79.0.254", &targets("192.0.2."));
    assert_eq!(found["evidence"]["interfaces"], json!(["r0"]), "{found:#}");
    assert_eq!(found["evidence"]["owner"]["netns"], net.router.inode(), "{found:#}");
}

#[test]
fn open_connection_names_its_dead_gateway() {
    let net = Routed::new();
    let at = echo_server(&net.b, crate::injected::FAR);
    let stream = connect(&net.a, at).unwrap();
    ask_quickly(&net.a, "v0");
    let daemon = Daemon::start();
    net.router.ip("link set l0 arp off"); // it answers no ARP request any more
    net.a.ip("neigh flush dev v0");
    let window = daemon.watch("diagnose", json!({"limit": 40}));
    std::io::Write::write_all(&mut &stream, &[0; 100]).unwrap();
    // TCP tries again when the neighbor fails (RFC 6069), so this is rarely visible.
    until("TCP has tried in vain", || (net.a.retransmits() > 8).then_some(()));
    let answer = window.end();
    let found = about(&answer, &["10.78.0.1".into(), crate::injected::FAR.into()]);
    let codes: Vec<_> = found.iter().map(|finding| &finding["code"]).collect();
    assert_eq!(codes, ["gateway_unreachable"], "{answer:#}");
}

#[test]
fn silent_on_link_host_is_not_a_gateway() {
    let (pair, daemon) = (Pair::new(), Daemon::start());
    pair.a.ip("route add default via 10.77.0.2");
    ask_quickly(&pair.a, "v0");
    let window = daemon.watch("diagnose", json!({"limit": 40}));
    browse(&pair.a, &["10.77.0.99".into()]);
    until_failed(&pair.a, "10.77.0.99");
    let answer = window.end();
    let found = about(&answer, &["10.77.0.99".into()]);
    assert_eq!(found.len(), 1, "{answer:#}");
    assert_eq!(found[0]["code"], "neighbor_unreachable", "{answer:#}");
}
