//! Tests that need a stock kernel, which some machines of the suite lack: `make vm-test` runs them in guests.

// A test that cannot continue fails.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

#[allow(dead_code)] // only a part of the suite's harness is used
#[path = "../suite/harness/mod.rs"]
mod harness;

use std::{
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use harness::*;
use serde_json::{Value, json};

/// Many times the total duration.
const TIME_LIMIT: Duration = Duration::from_secs(10 * 60);

/// Sends 100 datagrams to `to` while `interface` is measured at the other end, and returns the counted number.
fn counted(pair: &Pair, interface: &str, to: &str) -> (u64, Value) {
    let daemon = daemon_for("network-monitor", &pair.b);
    let mut client = Client::connect(&daemon.socket);
    let arguments = json!({"operation": "incoming", "interface": interface, "duration": 4});
    let id = client.begin_call("network-monitor", arguments);
    client.until_open("network-monitor", 1);
    pair.a.enter(|| {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
        for _ in 0..100 {
            socket.send_to(&[0; 50], (to, 9)).unwrap();
        }
    });
    let answer = client.end_call(id).unwrap();
    (answer["by_protocol"]["udp"].as_u64().unwrap(), answer)
}

// In guests.
#[test]
fn vlan_traffic_is_counted() {
    let pair = Pair::new();
    for (netns, address) in [(&pair.a, "10.78.0.1"), (&pair.b, "10.78.0.2")] {
        netns.ip("link add link v0 name vlan7 type vlan id 7");
        netns.ip(&format!("addr add {address}/24 dev vlan7"));
        netns.ip("link set vlan7 up");
    }
    let (packets, answer) = counted(&pair, "vlan7", "10.78.0.2");
    assert_eq!(packets, 100, "{answer}");
}

#[test]
fn bond_traffic_is_counted() {
    let pair = Pair::new();
    pair.b.ip("link add bond0 type bond mode active-backup miimon 100");
    pair.b.ip("link set v0 down");
    pair.b.ip("link set v0 master bond0");
    pair.b.ip("link set bond0 up");
    pair.b.ip(&format!("addr add {B}/24 dev bond0"));
    until("the bond carries", || pair.b.ip("-br link show dev bond0").contains(" UP ").then_some(()));
    let (packets, answer) = counted(&pair, "bond0", B);
    assert_eq!(packets, 100, "{answer}");
}

// In guests.
#[test]
fn ip_tunnel_counts_inner_headers_or_states_the_limit() {
    let pair = Pair::new();
    for (netns, address) in [(&pair.a, "10.79.0.1"), (&pair.b, "10.79.0.2")] {
        let remote = if address.ends_with('1') { B } else { A };
        let local = if address.ends_with('1') { A } else { B };
        netns.ip(&format!("link add tun7 type ipip local {local} remote {remote}"));
        netns.ip(&format!("addr add {address}/24 dev tun7"));
        netns.ip("link set tun7 up");
    }
    let (packets, answer) = counted(&pair, "tun7", "10.79.0.2");
    if run("uname -r").starts_with("5.10.") {
        let limits = answer["measured"]["limits"].to_string();
        assert!(limits.contains("tunnel_headers_counted") && answer["by_protocol"]["other"] == 100, "{answer}");
        return;
    }
    assert_eq!((packets, &answer["bytes"]), (100, &json!(100 * (50 + 8 + 20))), "{answer}");
    assert_eq!(answer["measured"]["limits"], json!([]), "{answer}");
}

/// Brings the last CPU back in any case.
struct Unplugged;

impl Unplugged {
    const ONLINE: &str = "/sys/devices/system/cpu/cpu1/online";

    fn new() -> Unplugged {
        std::fs::write(Self::ONLINE, "0").unwrap();
        Unplugged
    }
}

impl Drop for Unplugged {
    fn drop(&mut self) {
        std::fs::write(Self::ONLINE, "1").unwrap();
    }
}

// In guests.
#[test]
fn counts_survive_cpu_hotplug() {
    let pair = Pair::new();
    let daemon = daemon_for("network-monitor", &pair.b);
    let mut client = Client::connect(&daemon.socket);
    let arguments = json!({"operation": "incoming", "interface": "v0", "duration": 6});
    let id = client.begin_call("network-monitor", arguments);
    client.until_open("network-monitor", 1);
    let socket = pair.a.enter(|| UdpSocket::bind(("0.0.0.0", 0)).unwrap());
    let send = || {
        for _ in 0..100 {
            socket.send_to(&[0; 50], (B, 9)).unwrap();
        }
    };
    send();
    let unplugged = Unplugged::new();
    send();
    drop(unplugged);
    send();
    let answer = client.end_call(id).unwrap();
    assert_eq!(answer["by_protocol"]["udp"], 300, "{answer}");
}

/// The rows of `trace_drops` about a namespace.
fn drops_in<'a>(answer: &'a Value, netns: &Netns) -> Vec<&'a Value> {
    answer["drops"].as_array().unwrap().iter().filter(|row| row["owner"]["netns"] == netns.inode()).collect()
}

/// Sends one or more SYNs without an answer.
fn knock(from: &Netns, at: SocketAddr) {
    assert!(from.enter(|| TcpStream::connect_timeout(&at, Duration::from_millis(300))).is_err());
}

fn send(from: &Netns, at: SocketAddr, count: usize) {
    from.enter(|| {
        let any: IpAddr = if at.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
        let socket = UdpSocket::bind((any, 0)).unwrap();
        for _ in 0..count {
            let _ = socket.send_to(&[0; 10], at); // a rule may refuse it at once
        }
    });
}

// In guests, since Linux 6.1.
#[test]
fn firewall_drop_names_its_chain() {
    let pair = Pair::new();
    // Before the daemon starts: nf_tables must be loaded by then.
    for command in [
        "add table inet walls",
        "add chain inet walls before { type filter hook input priority -10 ; }",
        "add chain inet walls entrance { type filter hook input priority 0 ; }",
        "add chain inet walls guards",
        "add rule inet walls entrance jump guards",
        "add rule inet walls guards meta l4proto {tcp, udp} th dport 83 drop",
        "add chain inet walls closed { type filter hook input priority 10 ; policy accept ; }",
        "add rule inet walls closed udp dport 84 drop",
        "add table ip walls",
        "add chain ip walls last { type filter hook input priority 20 ; policy accept ; }",
        "add rule ip walls last udp dport 85 drop",
    ] {
        pair.b.run(&format!("nft {command}"));
    }
    pair.a.run("nft add table inet fence");
    pair.a.run("nft add chain inet fence exit { type filter hook output priority 0 ; }");
    pair.a.run("nft add rule inet fence exit udp dport 86 drop");
    let daemon = daemon_for("trace_drops", &pair.b);
    let mut client = Client::connect(&daemon.socket);
    let id = client.begin_call("trace_drops", json!({"duration_ms": 4_000, "limit": 1_000}));
    client.until_open("trace_drops", 1);
    assert_eq!(client.links("trace_drops").len(), 2, "{:?}", client.links("trace_drops"));
    for address in [B, B6] {
        let to = |port| SocketAddr::new(address.parse().unwrap(), port);
        knock(&pair.a, to(83));
        send(&pair.a, to(83), 5);
        send(&pair.a, to(84), 6);
        send(&pair.a, to(86), 7);
    }
    send(&pair.a, SocketAddr::new(B.parse().unwrap(), 85), 8);
    let answer = client.end_call(id).unwrap();
    let found = |netns: &Netns, address: &str, protocol: &str, port: u16, count: u64, rule: &str| {
        let at = json!({"address": address, "port": port});
        let mine = |row: &&&Value| row["destination"] == at && row["protocol"] == protocol;
        let rows = drops_in(&answer, netns);
        let row = rows.iter().find(mine).unwrap_or_else(|| panic!("{address} {protocol} {port} in {answer:#}"));
        assert_eq!((&row["reason"], &row["rule"]), (&json!("NETFILTER_DROP"), &json!(rule)), "{row:#}");
        assert!(row["explanation"].as_str().unwrap().contains(&format!("firewall rule of {rule} dropped")), "{row:#}");
        assert!(row["count"].as_u64().unwrap() >= count, "{row:#}");
    };
    for address in [B, B6] {
        found(&pair.b, address, "tcp", 83, 1, "inet walls entrance");
        found(&pair.b, address, "udp", 83, 5, "inet walls entrance");
        found(&pair.b, address, "udp", 84, 6, "inet walls closed");
        found(&pair.a, address, "udp", 86, 7, "inet fence exit");
    }
    found(&pair.b, B, "udp", 85, 8, "ip walls last");
    assert!(!answer["measured"]["limits"].to_string().contains("firewall_rules_unknown"), "{answer:#}");
    client.until_detached("trace_drops");
}

/// Drops datagrams to two ports, in a reloaded table.
fn wall(netns: &Netns, chain: &str) {
    const TABLE: &str = "a_table_with_a_name_of_more_than_32_bytes";
    netns.run("nft flush ruleset");
    netns.run(&format!("nft add table inet {TABLE}"));
    netns.run(&format!("nft add chain inet {TABLE} {chain} {{ type filter hook input priority 0 ; }}"));
    netns.run(&format!("nft add rule inet {TABLE} {chain} udp dport {{87, 88}} drop"));
}

// In guests, since Linux 6.1.
#[test]
fn reloaded_chains_keep_their_names() {
    let pair = Pair::new();
    wall(&pair.b, "one");
    let daemon = daemon_for("trace_drops", &pair.b);
    let window = daemon.watch("trace_drops", json!({"limit": 1_000}));
    let [same, other] = [87, 88].map(|port| {
        let socket = pair.a.enter(|| UdpSocket::bind(("0.0.0.0", 0)).unwrap());
        socket.connect((B, port)).unwrap();
        socket
    });
    same.send(b"x").unwrap();
    other.send(b"x").unwrap();
    wall(&pair.b, "one");
    same.send(b"x").unwrap();
    wall(&pair.b, "two");
    other.send(b"x").unwrap();
    let answer = window.end();
    for (port, rule) in [(87, json!("inet a_table_with_a_name_of_more_tha… one")), (88, json!(null))] {
        let rows = drops_in(&answer, &pair.b);
        let row = rows.iter().find(|row| row["destination"]["port"] == port).unwrap_or_else(|| panic!("{answer:#}"));
        assert_eq!((&row["count"], &row["rule"]), (&json!(2), &rule), "{row:#}");
    }
    assert!(answer["measured"]["limits"].to_string().contains("firewall_rules_unknown"), "{answer:#}");
}
