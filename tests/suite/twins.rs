//! Sockets with the same address and port: workers of one service, members of a group, containers.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{command_line::begin, harness::*, processes::Process};

/// Findings of `diagnose` with a code about a port, in a window of 3 s with repeated `traffic`.
fn findings(daemon: &Daemon, code: &str, port: u16, traffic: impl Fn()) -> Vec<Value> {
    let asked = begin(&daemon.socket, "call diagnose duration_ms=3000 limit=100 --json");
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        traffic();
    }
    let output = asked.wait_with_output().unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let about = |finding: &Value| {
        let ends = ["local", "remote"].map(|end| &finding["evidence"][end]["port"]);
        finding["code"] == code && ends.into_iter().any(|end| *end == port)
    };
    answer["findings"].as_array().unwrap().iter().filter(|finding| about(finding)).cloned().collect()
}

fn pids(findings: &[Value]) -> Vec<u64> {
    findings.iter().map(|finding| finding["evidence"]["owner"]["pid"].as_u64().unwrap()).collect()
}

/// Connects, with a short timeout.
fn knock(netns: &Netns, to: SocketAddr) {
    let _ = netns.enter(|| TcpStream::connect_timeout(&to, Duration::from_millis(20)));
}

#[test]
fn stuck_listener_among_many_is_named() {
    let (pair, other) = (Pair::new(), Netns::new());
    let at = SocketAddr::new(B6.parse().unwrap(), 7_311);
    let workers: Vec<_> = [4_096, 2, 4_096]
        .map(|queue| {
            let mut worker = Process::in_netns(&pair.b, &format!("tcp-share {} {} {queue}", at.ip(), at.port()));
            worker.hear();
            worker
        })
        .into();
    // The same address and port, in a namespace without clients.
    other.ip(&format!("addr add {B6}/128 dev lo nodad"));
    let mut namesake = Process::in_netns(&other, &format!("tcp-share {} {} 2", at.ip(), at.port()));
    namesake.hear();
    let daemon = Daemon::start();
    let found = findings(&daemon, "listen_queue_overflow", at.port(), || knock(&pair.a, at));
    assert_eq!(pids(&found), [u64::from(workers[1].pid())], "{found:#?}");
    assert!(found[0]["evidence"]["dropped"].as_u64().unwrap() > 5, "{found:#?}");
}

#[test]
fn slow_multicast_member_is_named() {
    let pair = Pair::new();
    let group = SocketAddr::new(Ipv4Addr::new(239, 7, 7, 7).into(), 7_312);
    let role = format!("udp-join {} {}", group.ip(), group.port());
    // One reads enough: its buffer is large.
    let reader = pair.b.enter(|| {
        use rustix::net::{AddressFamily, SocketType, bind, socket, sockopt};
        let reader = socket(AddressFamily::INET, SocketType::DGRAM, None).unwrap();
        sockopt::set_socket_reuseaddr(&reader, true).unwrap();
        bind(&reader, &group).unwrap();
        let reader = UdpSocket::from(reader);
        reader.join_multicast_v4(&Ipv4Addr::new(239, 7, 7, 7), &B.parse().unwrap()).unwrap();
        reader
    });
    let mut slow = Process::in_netns(&pair.b, &role);
    slow.hear();
    let sender = pair.a.enter(|| UdpSocket::bind((A, 0)).unwrap());
    pair.a.ip("route add 239.0.0.0/8 dev v0");
    reader.set_nonblocking(true).unwrap();
    let daemon = Daemon::start();
    let found = findings(&daemon, "udp_receive_buffer_full", group.port(), || {
        sender.send_to(&[0; 100], group).unwrap();
        while reader.recv(&mut [0; 200]).is_ok() {}
        std::thread::sleep(Duration::from_millis(5));
    });
    assert_eq!(pids(&found), [u64::from(slow.pid())], "{found:#?}");
}

#[test]
fn listener_of_another_namespace_is_separate() {
    let (pair, other) = (Pair::new(), Netns::new());
    let at = SocketAddr::new(B.parse().unwrap(), 7_313);
    let _elsewhere = other.enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, at.port())).unwrap());
    let _other_port = listen(&pair.b, B); // makes the address known
    let daemon = Daemon::start();
    let found = findings(&daemon, "connection_refused", at.port(), || {
        knock(&pair.a, at);
        std::thread::sleep(Duration::from_millis(50));
    });
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0]["evidence"]["listening_here"], false, "{found:#?}");
}
