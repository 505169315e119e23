//! `snapshot_interfaces` against the output of `ip`.

use serde_json::{Value, json};

use crate::harness::*;

const TOOL: &str = "snapshot_interfaces";

// In guests.
#[test]
fn every_field_agrees_with_ip() {
    let pair = Pair::new();
    pair.b.ip(&format!("route add default via {A}"));
    pair.b.ip("link set v0 mtu 1400");
    pair.b.ip("link add br0 type bridge");
    let _tunnel = Tunnel::new(&pair.b);
    run(&format!("tc -n {} qdisc add dev v0 root tbf rate 1mbit burst 3000 limit 6000", pair.b.name()));
    let daemon = daemon_for(TOOL, &pair.b);
    let window = daemon.watch(TOOL, json!({}));
    pair.b.enter(|| {
        let socket = std::net::UdpSocket::bind((B, 0)).unwrap();
        (0..50).for_each(|_| drop(socket.send_to(&[0; 1000], (A, 9))));
    });
    let links = || -> Value { serde_json::from_str(&pair.b.ip("-j -d -s link show")).unwrap() };
    let before = links();
    let answer = window.end();
    let after = links(); // IPv6 neighbor discovery sends packets occasionally
    assert_eq!(answer["primary"], "v0", "{answer}");
    let truth: Value = serde_json::from_str(&pair.b.ip("-j -d -s addr show")).unwrap();
    let ours = answer["interfaces"].as_array().unwrap();
    assert_eq!(ours.len(), truth.as_array().unwrap().len());
    for interface in ours {
        let by_name =
            |all: &Value| all.as_array().unwrap().iter().find(|i| i["ifname"] == interface["name"]).unwrap().clone();
        let (ip, before, after) = (by_name(&truth), by_name(&before), by_name(&after));
        let counted = |way: &str, what: &str| {
            let [from, to] = [&before, &after].map(|link| link["stats64"][way][what].as_u64().unwrap());
            (from..=to).contains(&interface[way][what].as_u64().unwrap())
        };
        assert_eq!((&interface["index"], &interface["mtu"]), (&ip["ifindex"], &ip["mtu"]), "{interface}");
        assert_eq!(interface["state"].as_str().unwrap().to_uppercase(), ip["operstate"], "{interface}");
        assert!(counted("rx", "packets") && counted("tx", "bytes"), "{interface} is between {before} and {after}");
        let addresses: Vec<String> = ip["addr_info"]
            .as_array()
            .unwrap()
            .iter()
            .map(|a| format!("{}/{}", a["local"].as_str().unwrap(), a["prefixlen"]))
            .collect();
        assert_eq!(interface["addresses"], json!(addresses), "{interface}");
        assert_eq!(interface["default_route"], interface["name"] == "v0");
    }
    let kind = |name: &str| ours.iter().find(|i| i["name"] == name).unwrap()["kind"].as_str().unwrap().to_owned();
    assert_eq!([kind("lo"), kind("v0"), kind("br0"), kind("tun7")], ["loopback", "veth", "bridge", "tun"]);
    let v0 = ours.iter().find(|i| i["name"] == "v0").unwrap();
    assert_eq!(v0["qdisc"]["kind"], "tbf", "{v0}");
    assert!(v0["qdisc"]["dropped"].as_u64().unwrap() > 0, "50 kB in a moment through a limit of 6 kB: {v0}");
    assert!(v0["tx"]["bits_per_second"].as_f64().unwrap() > 0.0, "{v0}");
}

#[test]
fn interface_argument_selects_one_interface() {
    let daemon = Daemon::of(TOOL);
    let mut client = Client::connect(&daemon.socket);
    let answer = client.call(TOOL, json!({"interface": "lo", "duration_ms": 100})).unwrap();
    let interfaces = answer["interfaces"].as_array().unwrap();
    assert_eq!((interfaces.len(), &interfaces[0]["name"]), (1, &json!("lo")));
}
