use serde_json::json;

use super::*;

fn input(value: serde_json::Value) -> Input {
    serde_json::from_value(value).unwrap()
}

#[test]
fn limits_name_tunnels_and_xdp() {
    use crate::answer::Code::{InnerHeadersNotCounted, XdpVerdictsNotSeen};
    let rx = Count::default();
    let (blind, after_xdp) = (true, true);
    let sample =
        Sample::Incoming { interface: "eth0".into(), rx, tx: None, window_ns: 1, outer: false, blind, after_xdp };
    let output = NetworkMonitor::report(input(json!({"operation": "incoming"})), sample);
    let codes: Vec<_> = output.measured.limits.iter().map(|limit| limit.code).collect();
    assert_eq!(codes, [InnerHeadersNotCounted, XdpVerdictsNotSeen]);
}

#[test]
fn rates_use_the_measured_window() {
    let rx = Count { packets: 10_000, bytes: 1_000_000, tcp: 9_000, udp: 1_000, ..Count::default() };
    let (interface, blind, after_xdp) = ("eth0".into(), false, false);
    let sample = Sample::Incoming { interface, rx, tx: None, window_ns: 500_000_000, outer: false, blind, after_xdp };
    let output = NetworkMonitor::report(input(json!({"operation": "incoming"})), sample);
    let rates = output.received.clone().unwrap();
    assert_eq!((rates.packets_per_second, rates.bits_per_second, rates.packets), (20_000.0, 16_000_000.0, 10_000));
    assert_eq!(output.measured.window_ms, 500.0);
    assert!(NetworkMonitor::text(&output).contains("9000 TCP, 1000 UDP"), "{}", NetworkMonitor::text(&output));
}

#[test]
fn refused_connect_is_named_and_process_name_cleaned() {
    let connect = Connect {
        process: Process {
            pid: 7,
            comm: "evil\n\u{1b}[31m".into(),
            cgroup: Some("/system.slice/x.service".into()),
            netns: 1,
        },
        local: Endpoint { address: "10.0.0.1".parse().unwrap(), port: 40000 },
        remote: Endpoint { address: "10.0.0.2".parse().unwrap(), port: 80 },
        established: false,
        errno: libc::ECONNREFUSED,
        latency_ns: 1_500_000,
        interface: None,
    };
    let sample = Sample::Outgoing {
        connects: vec![connect],
        cut: 0,
        lost: 0,
        connecting: 0,
        next: "1-1".into(),
        continued: false,
        window_ns: 1,
    };
    let output = NetworkMonitor::report(input(json!({"operation": "outgoing"})), sample);
    let connection = &output.connections.as_ref().unwrap()[0];
    assert_eq!(connection.error.as_deref(), Some("ECONNREFUSED"));
    assert_eq!(connection.owner.unit.as_deref(), Some("x.service"));
    assert!(
        !NetworkMonitor::text(&output).contains('\u{1b}') && NetworkMonitor::text(&output).lines().count() == 2,
        "{}",
        NetworkMonitor::text(&output)
    );
}

#[test]
fn default_answer_fits_its_budget() {
    let scope =
        format!("/kubepods.slice/kubepods-burstable.slice/cri-containerd-{}.scope", "0123456789abcdef".repeat(4));
    let end = |last| Endpoint {
        address: format!("fd00:1234:5678:9abc:def0:1234:5678:{last}").parse().unwrap(),
        port: 44_321,
    };
    let connect = Connect {
        process: Process { pid: 4_194_304, comm: "fifteen-letters".into(), cgroup: Some(scope), netns: 4_026_532_000 },
        local: end("9abc"),
        remote: end("9abd"),
        established: false,
        errno: libc::ENETUNREACH,
        latency_ns: 60_000_000_000,
        interface: Some("interface-of-15".into()),
    };
    let connects = vec![connect; limits::CONNECTS_SHOWN];
    let sample = Sample::Outgoing {
        connects,
        cut: 9_999,
        lost: 9,
        connecting: 9,
        next: "1-1".into(),
        continued: false,
        window_ns: 1,
    };
    let output = NetworkMonitor::report(input(json!({"operation": "outgoing"})), sample);
    let bytes = serde_json::to_string(&output).unwrap().len() + NetworkMonitor::text(&output).len();
    assert!(bytes <= 2 * limits::ANSWER_UNASKED, "{bytes} bytes with the longest names there are");
}

#[test]
fn no_connects_give_an_empty_list() {
    let sample = Sample::Outgoing {
        connects: vec![],
        cut: 0,
        lost: 0,
        connecting: 2,
        next: "1-1".into(),
        continued: false,
        window_ns: 1_000_000_000,
    };
    let output = NetworkMonitor::report(input(json!({"operation": "outgoing"})), sample);
    assert_eq!(serde_json::to_value(&output).unwrap()["connections"], json!([]));
    assert!(NetworkMonitor::text(&output).starts_with("No process opened a TCP connection in 1.0 s"));
}
