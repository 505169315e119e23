//! What only a stock kernel can do, and not every machine that the suite runs on: run by `make vm-test`, in guests.

#[allow(dead_code)] // this takes little of it
#[path = "../suite/harness/mod.rs"]
mod harness;

use std::net::UdpSocket;

use harness::*;
use serde_json::{Value, json};

/// Many times what all of it takes.
const TIME_LIMIT: std::time::Duration = std::time::Duration::from_secs(10 * 60);

/// Sends 100 datagrams to `to` while `interface` is watched at the other end, and returns how many were counted.
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

#[test]
fn a_vlan_is_counted() {
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
fn a_bond_is_counted() {
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

#[test]
fn an_ip_tunnel_is_counted_inside_or_it_is_said() {
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
        assert!(limits.contains("out of an IP tunnel") && answer["by_protocol"]["other"] == 100, "{answer}");
        return;
    }
    assert_eq!((packets, &answer["bytes"]), (100, &json!(100 * (50 + 8 + 20))), "{answer}");
    assert_eq!(answer["measured"]["limits"], json!([]), "{answer}");
}

/// Brings the last CPU back, whatever happens.
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

#[test]
fn a_cpu_that_is_unplugged_takes_no_count_along() {
    let pair = Pair::new();
    let daemon = daemon_for("network-monitor", &pair.b);
    let mut client = Client::connect(&daemon.socket);
    let arguments = json!({"operation": "incoming", "interface": "v0", "duration": 10});
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
