//! Every tool on a kernel that refuses a kind of program. This works on any kernel: a test refuses instead
//! (`NETMON_TEST_DENY`, which only debug builds read).

use std::{
    io::{Read, Write},
    net::{TcpStream, UdpSocket},
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
