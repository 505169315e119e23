//! Listeners that a service manager creates, like a user's systemd: they belong to the service that it starts.

use std::net::SocketAddr;

use serde_json::json;

use crate::{harness::*, processes::Process};

#[test]
fn activated_service_owns_its_listener() {
    let pair = Pair::new();
    // With another descriptor than the manager's, as systemd passes it; and with the same one.
    for (port, number) in [(7_321, 100), (7_322, 0)] {
        let at = SocketAddr::new(B.parse().unwrap(), port);
        let mut manager = Process::in_netns(&pair.b, &format!("tcp-activate {B} {port} {number}"));
        let service: u32 = manager.hear().parse().unwrap();
        let daemon = Daemon::start();
        let listens = |answer: &serde_json::Value| {
            let owners = answer["listeners"].as_array().unwrap().iter().filter(|row| row["local"]["port"] == port);
            assert_eq!(owners.map(|row| row["owner"]["pid"].clone()).collect::<Vec<_>>(), [service], "{answer:#}");
        };
        listens(&Client::connect(&daemon.socket).call("snapshot_sockets", json!({"port": port})).unwrap());
        // Connections that wait for accept(), and drops of the full queue, belong to the service, too.
        let (drops, traffic, connections) = (
            daemon.watch("trace_drops", json!({"port": port})),
            daemon.watch("top_traffic", json!({"port": port, "group_by": "connection"})),
            daemon.watch("trace_connections", json!({"port": port, "direction": "inbound"})),
        );
        let mut stream = connect(&pair.a, at).unwrap();
        std::io::Write::write_all(&mut stream, &[0; 100]).unwrap();
        until_acknowledged(&stream);
        let answer = traffic.end();
        let rows = answer["rows"].as_array().unwrap().iter().filter(|row| row["local"]["port"] == port);
        assert_eq!(rows.map(|row| &row["owner"]["pid"]).collect::<Vec<_>>(), [&json!(service)], "{answer:#}");
        let answer = connections.end();
        assert_eq!(answer["connections"][0]["owner"]["pid"], service, "{answer:#}");
        drop(drops.end());
        manager.go();
    }
}
