//! Filters of requests: a process by name or number, a remote, a port. With real traffic of two processes.

use serde_json::{Value, json};

use crate::{harness::*, injected::nft, processes::*};

/// Sends each of these requests during `traffic`, and returns the answers.
fn asked(daemon: &Daemon, tool: &str, questions: &[Value], traffic: impl FnOnce()) -> Vec<Value> {
    let windows: Vec<_> = questions.iter().map(|question| daemon.watch(tool, question.clone())).collect();
    traffic();
    windows.into_iter().map(Watching::end).collect()
}

fn comm(process: &Process) -> String {
    std::fs::read_to_string(format!("/proc/{}/comm", process.pid())).unwrap().trim().to_owned()
}

#[test]
fn filtered_traffic_adds_up() {
    let pair = Pair::new();
    let to = [7_201, 7_202];
    let mut servers = to.map(|port| Process::in_netns(&pair.b, &format!("tcp-listen {B} {port}")));
    servers.iter_mut().for_each(|server| assert_eq!(server.hear(), "listening"));
    let mut senders = [(7_201, 30_000), (7_202, 50_000)]
        .map(|(port, bytes)| Process::in_netns(&pair.a, &format!("tcp-send {B} {port} {bytes}")));
    senders.iter_mut().for_each(|sender| assert_eq!(sender.hear(), "connected"));
    let mut datagrams = Process::in_netns(&pair.a, &format!("udp-send {B} 7201 700"));
    assert_eq!(datagrams.hear(), "ready");
    let daemon = Daemon::start();
    let pid = |process: &Process| process.pid();
    let questions = [
        (json!({"pid": pid(&senders[0])}), (0, 30_000)),
        (json!({"pid": pid(&servers[1])}), (50_000, 0)),
        (json!({"pid": pid(&datagrams)}), (0, 700)),
        (json!({"port": 7_202, "remote": B}), (0, 50_000)),
        (json!({"port": 7_202, "remote": "10.77.0.1/32"}), (50_000, 0)),
        (json!({"port": 7_202, "process": comm(&senders[0]), "pid": pid(&senders[0])}), (0, 0)),
        (json!({"process": "no-such-process"}), (0, 0)),
        (json!({"port": 7_202, "remote": "fd77::/64"}), (0, 0)),
    ];
    let only: Vec<_> = questions.iter().map(|(question, _)| question.clone()).collect();
    let answers = asked(&daemon, "top_traffic", &only, || {
        senders.iter_mut().for_each(Process::go);
        senders.iter_mut().for_each(|sender| assert_eq!(sender.hear(), "sent"));
        datagrams.go();
        assert_eq!(datagrams.hear(), "sent");
    });
    for (answer, (question, (rx_bytes, tx_bytes))) in answers.iter().zip(&questions) {
        let total = json!({"rx_bytes": rx_bytes, "tx_bytes": tx_bytes});
        assert_eq!(answer["total"], total, "{question}: {answer:#}");
        assert_eq!(answer["rows"].as_array().unwrap().len(), usize::from(rx_bytes + tx_bytes > 0), "{answer:#}");
        assert_eq!((&answer["other"]["rx_bytes"], &answer["other"]["tx_bytes"]), (&json!(0), &json!(0)), "{answer:#}");
    }
}

#[test]
fn drops_are_filtered() {
    let (pair, daemon) = (Pair::new(), Daemon::start());
    nft(&pair.a, "output", "udp dport { 7203, 7204 } drop");
    let mut senders = [(7_203, 10), (7_204, 20)]
        .map(|(port, bytes)| Process::in_netns(&pair.a, &format!("udp-send {B} {port} {bytes}")));
    senders.iter_mut().for_each(|sender| assert_eq!(sender.hear(), "ready"));
    let name = comm(&senders[0]);
    let questions = [
        (json!({"pid": senders[0].pid()}), vec![7_203]),
        (json!({"port": 7_204}), vec![7_204]),
        (json!({"remote": "10.77.0.0/24", "process": name, "port": 7_203}), vec![7_203]),
        (json!({"port": 7_203, "pid": senders[1].pid()}), vec![]),
        (json!({"port": 7_203, "remote": "10.99.0.0/16"}), vec![]),
        (json!({"process": "no-such-process"}), vec![]),
    ];
    let only: Vec<_> = questions.iter().map(|(question, _)| question.clone()).collect();
    let answers = asked(&daemon, "trace_drops", &only, || {
        for sender in &mut senders {
            sender.go();
            assert_eq!(sender.hear(), "sent");
        }
    });
    for (answer, (question, ports)) in answers.iter().zip(&questions) {
        let rows = answer["drops"].as_array().unwrap();
        let found: Vec<_> = rows.iter().map(|row| row["destination"]["port"].as_u64().unwrap()).collect();
        assert_eq!(found, *ports, "{question}: {answer:#}");
        assert_eq!(answer["packets"], ports.len(), "{question}: {answer:#}");
    }
}

#[test]
fn invalid_filter_error_shows_an_example() {
    let daemon = Daemon::start();
    let mut client = Client::connect(&daemon.socket);
    for tool in ["top_traffic", "trace_drops", "trace_connections", "profile_tcp", "trace_latency"] {
        for (arguments, hint) in [
            (json!({"remote": "10.0.0.0/99"}), "10.0.0.0/8"),
            (json!({"process": ""}), "1 to 64 bytes"),
            (json!({"port": 65_536}), "port"),
            (json!({"pid": -1}), "pid"),
        ] {
            let error = client.call(tool, arguments).unwrap_err();
            assert!(error.contains(hint), "{tool}: {error}");
        }
    }
}
