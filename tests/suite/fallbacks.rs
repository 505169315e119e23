//! Every tool on a kernel that refuses a kind of program. This works on any kernel: a test refuses instead
//! (`NETMON_TEST_DENY`, which only debug builds read).

use std::{
    io::{Read, Write},
    net::{TcpStream, UdpSocket},
    time::Duration,
};

use netmon_mcp::{daemon::host::Sampler, tools::SAMPLERS};
use serde_json::{Value, json};

use crate::harness::*;

/// A daemon on a kernel that refuses `features`.
fn without(features: &str) -> (Daemon, Client) {
    let daemon = Daemon::start_in(&[], &[("NETMON_TEST_DENY", features)]);
    let client = Client::connect(&daemon.socket);
    (daemon, client)
}

/// The names of the unavailable tools, in order, with their reasons.
fn unavailable(client: &mut Client) -> Vec<(String, String)> {
    let status = client.call("status", json!({})).unwrap();
    let tools = status["tools"].as_array().unwrap().iter().filter(|tool| tool["available"] == false);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    tools.map(|tool| (text(&tool["name"]), text(&tool["reason"]))).collect()
}

fn feature(client: &mut Client, name: &str) -> Value {
    let status = client.call("status", json!({})).unwrap();
    let features = status["kernel_features"].as_array().unwrap();
    features.iter().find(|feature| feature["name"] == name).unwrap_or_else(|| panic!("{name} in {status}")).clone()
}

/// The codes of an answer's limits.
fn limits(answer: &Value) -> Vec<&str> {
    answer["measured"]["limits"].as_array().unwrap().iter().map(|limit| limit["code"].as_str().unwrap()).collect()
}

/// Sends bytes, and waits for their echo.
fn echo(stream: &TcpStream, bytes: usize) {
    let (mut writer, mut reader) = (stream, stream);
    let (sent, mut received) = (vec![7; bytes], vec![0; bytes]);
    std::thread::scope(|scope| {
        scope.spawn(|| writer.write_all(&sent).unwrap());
        reader.read_exact(&mut received).unwrap();
    });
}

/// Traffic of every kind between two namespaces while `tool` watches, and the answer.
fn watched(daemon: &Daemon, pair: &Pair, tool: &str) -> Value {
    let server = echo_server(&pair.b, B);
    let window = daemon.watch(tool, json!({}));
    let stream = connect(&pair.a, server).unwrap();
    echo(&stream, 100_000);
    drop(stream);
    let socket = pair.a.enter(|| UdpSocket::bind((A, 0)).unwrap());
    socket.send_to(&[0; 1_000], (B, 9)).unwrap(); // the port is closed: dropped there
    window.end()
}

/// Each feature that a test can deny, and the tools that require it.
const NEEDED: &[(&str, &[&str])] = &[
    ("tp_btf", &["profile_tcp", "top_traffic", "trace_connections", "trace_dns", "trace_drops", "trace_latency"]),
    ("fexit", &[]),
    ("iter/task_file", &[]),
    ("iter/tcp", &[]),
    ("iter/udp", &[]),
    ("iter/bpf_map", &[]),
    ("iter/task_file,iter/tcp", &["profile_tcp", "snapshot_sockets", "top_traffic"]),
    ("tc", &[]),
    ("xdp", &[]),
    ("tc,xdp", &[]),
    ("cgroup", &[]),
    ("bpf_loop", &[]),
    ("bpf_sock_from_file", &[]),
    ("bpf_sk_storage_get", &["profile_tcp", "top_traffic", "trace_connections", "trace_latency"]),
];

#[test]
fn tool_is_unavailable_only_without_required_programs() {
    // Without BTF no program loads; `diagnose` works without its own.
    let needs = |sampler: &&Sampler| !sampler.features.is_empty() && sampler.name != "diagnose";
    let mut with_programs: Vec<_> = SAMPLERS.iter().filter(needs).map(|sampler| sampler.name).collect();
    with_programs.sort_unstable();
    for (denied, tools) in NEEDED.iter().copied().chain([("btf", &with_programs[..])]) {
        let (_daemon, mut client) = without(denied);
        for name in denied.split(',') {
            let shown = feature(&mut client, name);
            assert_eq!(shown["available"], false, "{shown}");
            assert!(
                shown["reason"].as_str().is_some_and(|reason| reason.starts_with("EPERM") || name == "btf"),
                "{shown}"
            );
        }
        let lost = unavailable(&mut client);
        assert_eq!(lost.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), tools, "without {denied}");
        for (tool, reason) in lost {
            let named = denied.split(',').any(|name| reason.contains(name));
            assert!(named && !reason.contains("needs Linux"), "{tool} without {denied}: {reason}");
        }
    }
}

#[test]
fn refused_programs_are_stated_in_limits_with_the_reason() {
    let pair = Pair::new();
    for (denied, tool, code) in [
        ("fexit", "trace_connections", "denied_connects_not_seen"),
        ("iter/task_file", "top_traffic", "other_namespaces_not_seen"),
        ("iter/task_file", "profile_tcp", "other_namespaces_not_seen"),
        ("iter/task_file", "trace_connections", "other_namespaces_not_seen"),
        ("iter/task_file", "trace_dns", "holders_unknown"),
        ("iter/task_file", "trace_drops", "holders_unknown"),
        ("iter/tcp", "top_traffic", "unheld_tcp_not_seen"),
        ("cgroup", "top_traffic", "udp_remotes_unknown"),
        ("iter/tcp", "profile_tcp", "unheld_tcp_not_seen"),
        ("iter/tcp", "trace_connections", "unheld_tcp_not_seen"),
        ("iter/bpf_map", "top_traffic", "orphans_unread"),
        ("iter/bpf_map", "profile_tcp", "orphans_unread"),
        ("iter/bpf_map", "trace_connections", "orphans_unread"),
        ("iter/bpf_map", "trace_drops", "locations_unknown"),
        ("sock_send_length", "top_traffic", "udp_not_counted"),
        ("fexit,fib_table_lookup", "trace_connections", "failed_connects_not_seen"),
        ("tcp_receive_reset", "profile_tcp", "resets_not_seen"),
        ("net_dev_start_xmit", "trace_latency", "segments_not_seen"),
        ("sched_switch", "trace_latency", "run_queue_not_seen"),
    ] {
        let (daemon, _) = without(denied);
        let answer = watched(&daemon, &pair, tool);
        assert!(limits(&answer).contains(&code), "{tool} without {denied}: {answer}");
    }
    for (denied, code) in
        [("iter/task_file", "owners_unknown"), ("iter/tcp", "unheld_tcp_not_seen"), ("iter/udp", "unheld_udp_not_seen")]
    {
        let (_daemon, mut client) = without(denied);
        let answer = client.call("snapshot_sockets", json!({})).unwrap();
        assert!(limits(&answer).contains(&code), "without {denied}: {answer}");
    }
}

#[test]
fn network_monitor_operations_fail_separately() {
    let call = |client: &mut Client, arguments: Value| client.call("network-monitor", arguments);
    let incoming = |mode: &str| json!({"operation": "incoming", "interface": "lo", "duration": 0.1, "mode": mode});
    let outgoing = json!({"operation": "outgoing", "duration": 0.1});
    let (_daemon, mut client) = without("tc");
    assert!(call(&mut client, incoming("tcx")).unwrap_err().contains("needs tc (EPERM"));
    assert!(call(&mut client, incoming("xdp")).is_ok() && call(&mut client, outgoing.clone()).is_ok());
    let (_daemon, mut client) = without("xdp");
    assert!(call(&mut client, incoming("xdp")).unwrap_err().contains("needs xdp (EPERM"));
    assert!(call(&mut client, incoming("tcx")).is_ok());
    let (_daemon, mut client) = without("bpf_sk_storage_get");
    assert!(call(&mut client, outgoing).unwrap_err().contains("bpf_sk_storage_get"));
    assert!(call(&mut client, incoming("tcx")).is_ok());
}

#[test]
fn own_namespace_is_measured_without_file_iterator() {
    let pair = Pair::new();
    let daemon = pair.a.enter(|| Daemon::start_in(&[], &[("NETMON_TEST_DENY", "iter/task_file")]));
    let server = echo_server(&pair.b, B);
    let stream = connect(&pair.a, server).unwrap(); // before the window: the daemon did not see who opened it
    let window = daemon.watch("top_traffic", json!({"group_by": "connection", "port": server.port()}));
    echo(&stream, 100_000);
    let answer = window.end();
    let rows = answer["rows"].as_array().unwrap();
    let ours = rows.iter().find(|row| row["owner"]["netns"] == pair.a.inode()).unwrap_or_else(|| panic!("{answer}"));
    assert_eq!((&ours["rx_bytes"], &ours["tx_bytes"]), (&json!(100_000), &json!(100_000)), "{answer}");
}

// In guests, since Linux 6.12.
/// The verifier of some kernels does not trust a socket that a file leads to.
#[test]
fn untrusted_sockets_of_files_are_read_as_copies() {
    let (pair, own) = (Pair::new(), std::process::id());
    let server = echo_server(&pair.b, B);
    let stream = connect(&pair.a, server).unwrap();
    let full = listen(&pair.b, B);
    let waits = connect(&pair.a, full.local_addr().unwrap()).unwrap();
    (&waits).write_all(&[0; 700]).unwrap();
    until_acknowledged(&waits);
    let (daemon, mut client) = without("bpf_sock_from_file");
    let at_server = |answer: &Value, table: &str, port: u16| -> Vec<Value> {
        let rows = answer[table].as_array().unwrap().iter();
        let is_there = |row: &&Value| row["owner"]["netns"] == pair.b.inode() && row["local"]["port"] == port;
        rows.filter(is_there).cloned().collect()
    };
    let sockets = client.call("snapshot_sockets", json!({"port": server.port()})).unwrap();
    for table in ["sockets", "listeners"] {
        let rows = at_server(&sockets, table, server.port());
        assert_eq!(rows.iter().map(|row| &row["owner"]["pid"]).collect::<Vec<_>>(), [&json!(own)], "{sockets}");
    }
    let by_connection = |port: u16| json!({"group_by": "connection", "port": port});
    let (traffic, waiting) = (
        daemon.watch("top_traffic", by_connection(server.port())),
        daemon.watch("top_traffic", by_connection(full.local_addr().unwrap().port())),
    );
    let (tcp, connections) = (
        daemon.watch("profile_tcp", json!({"port": server.port()})),
        daemon.watch("trace_connections", json!({"port": server.port()})),
    );
    echo(&stream, 100_000);
    (&waits).write_all(&[0; 300]).unwrap();
    until_acknowledged(&waits);
    let accepted = connect(&pair.a, server).unwrap();
    echo(&accepted, 1_000);
    rustix::net::sockopt::set_socket_linger(&accepted, Some(Duration::ZERO)).unwrap(); // close() then sends a reset
    drop(accepted);
    let rows = at_server(&traffic.end(), "rows", server.port());
    let mut moved: Vec<_> = rows.iter().map(|row| (row["rx_bytes"].as_u64(), row["owner"]["pid"].clone())).collect();
    moved.sort_by_key(|(bytes, _)| *bytes);
    assert_eq!(moved, [(Some(1_000), json!(own)), (Some(100_000), json!(own))], "{rows:?}");
    let rows = at_server(&waiting.end(), "rows", full.local_addr().unwrap().port());
    assert_eq!(
        rows.iter().map(|row| (&row["rx_bytes"], &row["owner"]["pid"])).collect::<Vec<_>>(),
        [(&json!(300), &json!(own))]
    );
    let answer = connections.end();
    let rows = at_server(&answer, "connections", server.port());
    assert_eq!(
        rows.iter().map(|row| (&row["direction"], &row["owner"]["pid"])).collect::<Vec<_>>(),
        [(&json!("inbound"), &json!(own))],
        "{answer}"
    );
    let answer = tcp.end();
    let remotes = answer["remotes"].as_array().unwrap();
    assert!(
        remotes.iter().any(|row| row["connections"] == 2 && row["rtt_us"]["samples"].as_u64() > Some(0)),
        "{answer}"
    );
}

#[test]
fn tools_without_bpf_work_when_all_bpf_is_refused() {
    let all = "tp_btf,fexit,iter/task_file,iter/tcp,iter/udp,iter/bpf_map,tc,xdp";
    let (_daemon, mut client) = without(all);
    assert_eq!(unavailable(&mut client).len(), 8);
    assert!(client.call("snapshot_interfaces", json!({"duration_ms": 100})).is_ok());
    let answer = client.call("diagnose", json!({"duration_ms": 2_000})).unwrap();
    assert_ne!(answer["healthy"], true, "{answer}");
    let checks = &answer["checks"];
    assert!(checks["judged"].as_u64().unwrap() < checks["total"].as_u64().unwrap(), "{answer}");
}

#[test]
fn refused_programs_prevent_healthy() {
    for denied in ["iter/task_file", "fexit,fib_table_lookup", "tp_btf"] {
        let (_daemon, mut client) = without(denied);
        let answer = client.call("diagnose", json!({"duration_ms": 2_000})).unwrap();
        assert_ne!(answer["healthy"], true, "without {denied}: {answer}");
        let checks = &answer["checks"];
        assert!(checks["judged"].as_u64().unwrap() < checks["total"].as_u64().unwrap(), "without {denied}: {answer}");
        assert!(!answer["blind_spots"].as_array().unwrap().is_empty(), "without {denied}: {answer}");
    }
}

#[test]
fn probe_without_descriptors_leaves_support_unknown() {
    let (_daemon, mut client) = without("iter/tcp=EMFILE,fexit=ENOMEM");
    for (name, errno) in [("iter/tcp", "EMFILE"), ("fexit", "ENOMEM")] {
        let shown = feature(&mut client, name);
        assert!(shown["available"].is_null() && shown["reason"].as_str().unwrap().starts_with(errno), "{shown}");
    }
    let answer = client.call("snapshot_sockets", json!({})).unwrap();
    assert!(!limits(&answer).contains(&"unheld_tcp_not_seen"), "iter/tcp was loaded: {answer}");
}
