//! `network-monitor`: counts against the kernel's own, connections against those that were made.

use std::{net::UdpSocket, time::Duration};

use serde_json::json;

use crate::harness::*;

#[test]
fn incoming_counts_every_packet_of_a_known_number() {
    let pair = Pair::new();
    let daemon = daemon_in(&pair.b);
    let mut client = Client::connect(&daemon.socket);
    let id = client.begin_call("network-monitor", json!({"operation": "incoming", "interface": "v0", "duration": 2}));
    client.until_open("network-monitor", 1);
    pair.a.enter(|| {
        let socket = UdpSocket::bind((A, 0)).unwrap();
        for _ in 0..1_000 {
            socket.send_to(&[0; 100], (B, 9)).unwrap();
            std::thread::sleep(Duration::from_micros(100));
        }
    });
    let answer = client.end_call(id).unwrap();
    assert_eq!(answer["by_protocol"]["udp"], 1_000, "{answer}");
    assert!(answer["bytes"].as_u64().unwrap() >= 1_000 * (100 + 8 + 20 + 14), "{answer}");
    client.until_detached("network-monitor");
}

#[test]
fn outgoing_reports_the_connection_that_was_made() {
    for (server, family) in [(B, "ipv4"), (B6, "ipv6")] {
        let pair = Pair::new();
        let daemon = Daemon::start();
        let mut client = Client::connect(&daemon.socket);
        let to = echo_server(&pair.b, server);
        let id = client.begin_call("network-monitor", json!({"operation": "outgoing", "duration": 20}));
        client.until_open("network-monitor", 1);
        let stream = connect(&pair.a, to).unwrap();
        let answer = client.end_call(id).unwrap();
        let connection =
            answer["connections"].as_array().unwrap().iter().find(|c| c["owner"]["netns"] == pair.a.inode());
        let connection = connection.unwrap_or_else(|| panic!("{answer}"));
        assert_eq!(connection["owner"]["pid"], std::process::id(), "{answer}");
        assert_eq!(connection["established"], true, "{answer}");
        assert_eq!(connection["family"], family, "{answer}");
        assert_eq!(connection["remote"]["port"], to.port(), "{answer}");
        assert_eq!(connection["local"]["port"], stream.local_addr().unwrap().port(), "{answer}");
    }
}
