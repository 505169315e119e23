//! `trace_drops`: real faults in the test's namespaces, each with its reason, place, endpoints and owner.

use std::{
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};
use serde_json::{Value, json};

use crate::{harness::*, injected::*};

mod listeners;
mod neighbors;
mod owners;

const TOOL: &str = "trace_drops";

/// The answer of a window during `fault`.
fn answer_to<T>(daemon: &Daemon, fault: impl FnOnce() -> T) -> Value {
    let _no_scans = without_scans();
    answer_amid_all(daemon, fault)
}

fn answer_amid_all<T>(daemon: &Daemon, fault: impl FnOnce() -> T) -> Value {
    let window = daemon.watch(TOOL, json!({"limit": 10_000}));
    fault();
    window.end()
}

/// The rows that are about a namespace.
fn rows(answer: &Value, netns: &Netns) -> Vec<Value> {
    let all = answer["drops"].as_array().unwrap();
    all.iter().filter(|row| row["owner"]["netns"] == netns.inode()).cloned().collect()
}

/// The only row with this reason about a namespace.
fn row(answer: &Value, netns: &Netns, reason: &str) -> Value {
    let mut rows: Vec<_> = rows(answer, netns).into_iter().filter(|row| row["reason"] == reason).collect();
    assert_eq!(rows.len(), 1, "{reason} in {answer:#}");
    rows.remove(0)
}

/// The TCP rows of a namespace. A new namespace announces itself over IPv6, and some of these packets are dropped.
fn tcp(answer: &Value, netns: &Netns) -> Vec<Value> {
    rows(answer, netns).into_iter().filter(|row| row["protocol"] == "tcp").collect()
}

/// The owner is this process. A child before exec, with the name of the thread that forked it, also holds our sockets. Its
/// number is the lower one if numbers wrapped.
fn is_own(row: &Value) {
    let (owner, thread) = (&row["owner"], std::fs::read_to_string("/proc/thread-self/comm").unwrap());
    assert!(owner["pid"] == std::process::id() || owner["process"] == thread.trim_end(), "{row:#}");
}

/// Sends datagrams of `bytes` from a namespace; returns their source address.
fn send(from: &Netns, to: SocketAddr, count: usize, bytes: usize) -> SocketAddr {
    from.enter(|| {
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
        let socket = UdpSocket::bind((any, 0)).unwrap();
        for _ in 0..count {
            let _ = socket.send_to(&vec![0; bytes], to); // a filter may refuse it at once
        }
        socket.local_addr().unwrap()
    })
}

fn to(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

#[test]
fn closed_tcp_port() {
    for (address, place) in [(B, "tcp_v4_rcv"), (B6, "tcp_v6_rcv")] {
        let (pair, daemon) = (Pair::new(), Daemon::of("trace_drops"));
        let answer = answer_to(&daemon, || assert!(connect(&pair.a, to(address, 81)).is_err()));
        let row = row(&answer, &pair.b, "NO_SOCKET");
        assert_eq!((&row["location"], &row["protocol"], &row["kind"]), (&json!(place), &json!("tcp"), &json!("SYN")));
        assert_eq!(row["destination"], json!({"address": address, "port": 81}));
        assert_eq!((&row["interface"], &row["count"], &row["benign"]), (&json!("v0"), &json!(1), &json!(false)));
        assert!(row["explanation"].as_str().unwrap().contains("Nothing listens"), "{row:#}");
    }
}

// In guests.
#[test]
fn closed_udp_port_counts_every_datagram() {
    let daemon = Daemon::of("trace_drops");
    // The function, and the function that contains it since Linux 7.
    let cases = [(B, ["__udp4_lib_rcv", "udp_rcv"]), (B6, ["__udp6_lib_rcv", "udpv6_rcv"])]
        .map(|(address, places)| (Pair::new(), address, places));
    // The neighbor is known: otherwise at most 237 of them would wait for its address.
    for (pair, address, _) in &cases {
        meet(pair, address);
    }
    let mut from = Vec::new();
    let answer = answer_to(&daemon, || {
        from.extend(cases.iter().map(|(pair, address, _)| send(&pair.a, to(address, 82), 500, 100)));
    });
    assert_eq!(answer["measured"]["lost_events"], 0);
    for ((pair, _, places), from) in cases.iter().zip(from) {
        let row = row(&answer, &pair.b, "NO_SOCKET");
        assert!(places.iter().any(|place| row["location"] == *place), "{row:#}");
        assert_eq!(row["count"], 500, "{row:#}");
        assert_eq!(row["source"]["port"], from.port());
    }
}

// In guests.
#[test]
fn firewall_on_input_and_output() {
    let daemon = Daemon::of("trace_drops");
    let cases = [("input", "tcp"), ("input", "udp"), ("output", "tcp"), ("output", "udp")].map(|(hook, protocol)| {
        let pair = Pair::new();
        let filtered = if hook == "input" { pair.b.clone() } else { pair.a.clone() };
        nft(&filtered, hook, &format!("{protocol} dport 83 drop"));
        (pair, filtered, hook, protocol)
    });
    let answer = answer_to(&daemon, || {
        for (pair, _, _, protocol) in &cases {
            if *protocol == "udp" {
                send(&pair.a, to(B, 83), 3, 10);
            } else {
                let timeout = Duration::from_millis(300);
                assert!(pair.a.enter(|| TcpStream::connect_timeout(&to(B, 83), timeout)).is_err());
            }
        }
    });
    for (_, filtered, hook, protocol) in &cases {
        let row = row(&answer, filtered, "NETFILTER_DROP");
        assert_eq!((&row["protocol"], &row["path"]), (&json!(protocol), &json!(hook)), "{row:#}");
        assert_eq!(row["destination"], json!({"address": B, "port": 83}));
        assert!(row["explanation"].as_str().unwrap().contains("firewall rule"), "{row:#}");
        if *hook == "output" {
            is_own(&row);
        }
    }
}

#[test]
fn firewall_on_forward_and_loopback() {
    let (net, daemon) = (Routed::new(), Daemon::of("trace_drops"));
    nft(&net.router, "forward", "udp dport 84 drop");
    nft(&net.b, "input", "iif lo udp dport 84 drop");
    let answer = answer_to(&daemon, || {
        send(&net.a, to(FAR, 84), 5, 10);
        send(&net.b, to("127.0.0.1", 84), 6, 10);
    });
    let forwarded = row(&answer, &net.router, "NETFILTER_DROP");
    assert_eq!((&forwarded["path"], &forwarded["count"]), (&json!("forward"), &json!(5)), "{forwarded:#}");
    assert_eq!((&forwarded["source"]["address"], &forwarded["interface"]), (&json!("10.78.0.2"), &json!("l0")));
    let looped = row(&answer, &net.b, "NETFILTER_DROP");
    assert_eq!((&looped["count"], &looped["interface"]), (&json!(6), &json!("lo")), "{looped:#}");
}

#[test]
fn full_accept_queue() {
    let pair = Pair::new();
    let daemon = daemon_for(TOOL, &pair.b);
    let listener = pair.b.enter(|| {
        // Close-on-exec: programs of other tests would otherwise also hold it.
        let listener = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        bind(&listener, &to(B, 85)).unwrap();
        rustix::net::listen(&listener, 1).unwrap();
        listener
    });
    let overflow = || {
        pair.a.enter(|| {
            let open = || TcpStream::connect_timeout(&to(B, 85), Duration::from_millis(100));
            let held: Vec<_> = (0..8).map(|_| open()).collect();
            assert!(held.iter().any(Result::is_err), "the queue is full");
        })
    };
    let of_kernel = || -> u64 {
        let counted = pair.b.run("nstat -asz TcpExtListenDrops");
        counted.split_whitespace().skip_while(|word| *word != "TcpExtListenDrops").nth(1).unwrap().parse().unwrap()
    };
    overflow();
    let before = of_kernel();
    assert!(before > 0);
    let answer = answer_to(&daemon, overflow);
    let dropped = of_kernel() - before;
    assert!(answer["counters"]["listen_overflows"].as_u64().unwrap() > 0, "{answer:#}");
    let listeners = answer["listeners"].as_array().unwrap();
    let mine = listeners.iter().find(|l| l["owner"]["netns"] == pair.b.inode()).unwrap_or_else(|| panic!("{answer:#}"));
    assert_eq!((&mine["local"]["port"], &mine["accept_queue_max"]), (&json!(85), &json!(1)), "{mine:#}");
    // Those before the window do not count.
    assert!((1..=dropped).contains(&mine["dropped"].as_u64().unwrap()), "{dropped}: {mine:#}");
    is_own(mine);
    drop(listener);
}

#[test]
fn syn_cookies_are_counted_without_a_drop() {
    let pair = Pair::new();
    pair.b.run("sysctl -qw net.ipv4.tcp_syncookies=2"); // always, not only when the queue is full
    let daemon = daemon_for(TOOL, &pair.b);
    let server = echo_server(&pair.b, B);
    let answer = answer_to(&daemon, || (0..7).for_each(|_| drop(connect(&pair.a, server).unwrap())));
    assert_eq!(answer["counters"]["syn_cookies_sent"], 7, "{answer:#}");
    assert_eq!((&answer["counters"]["listen_drops"], tcp(&answer, &pair.b)), (&json!(0), vec![]), "{answer:#}");
}

// In guests, since Linux 6.12.
#[test]
fn full_udp_receive_buffer_names_its_owner() {
    let (pair, daemon) = (Pair::new(), Daemon::of("trace_drops"));
    let receiver = pair.b.enter(|| UdpSocket::bind((B, 86)).unwrap());
    sockopt::set_socket_recv_buffer_size(&receiver, 2_304).unwrap();
    let answer = answer_to(&daemon, || send(&pair.a, to(B, 86), 200, 500));
    let row = row(&answer, &pair.b, "SOCKET_RCVBUFF");
    assert_eq!(row["destination"], json!({"address": B, "port": 86}), "{row:#}");
    assert!((150..200).contains(&row["count"].as_u64().unwrap()), "{row:#}");
    is_own(&row);
}

#[test]
fn full_queueing_discipline() {
    full_queue(&["tc qdisc add dev v0 root tbf rate 100kbit burst 2000 limit 3000"]);
}

#[test]
fn rate_limited_class() {
    full_queue(&[
        "tc qdisc add dev v0 root handle 1: htb default 1",
        "tc class add dev v0 parent 1: classid 1:1 htb rate 100kbit burst 2000",
        "tc qdisc add dev v0 parent 1:1 pfifo limit 3",
    ]);
}

/// More data than a queue holds.
fn full_queue(tc: &[&str]) {
    let (pair, daemon) = (Pair::new(), Daemon::of("trace_drops"));
    tc.iter().for_each(|line| drop(pair.a.run(line)));
    let answer = answer_to(&daemon, || send(&pair.a, to(B, 87), 100, 1_000));
    let dropped: Vec<_> = rows(&answer, &pair.a);
    let row = dropped.iter().find(|row| row["destination"]["port"] == 87).unwrap_or_else(|| panic!("{answer:#}"));
    assert!(row["reason"].as_str().unwrap().starts_with("QDISC"), "{row:#}");
    assert!(
        row["count"].as_u64().unwrap() > 80 && row["explanation"].as_str().unwrap().contains("queue was full"),
        "{row:#}"
    );
    is_own(row);
}

#[test]
fn full_conntrack_table_is_not_a_rule() {
    let pair = Pair::new();
    let daemon = daemon_for(TOOL, &pair.b);
    nft(&pair.b, "input", "ct state new accept");
    let _limit = ConntrackMax::set(200);
    let answer = answer_to(&daemon, || {
        pair.a.enter(|| (0..300).for_each(|_| drop(UdpSocket::bind((A, 0)).unwrap().send_to(b"x", (B, 88)))))
    });
    let row = row(&answer, &pair.b, "NETFILTER_DROP");
    assert_eq!(row["location"], "nf_hook_slow", "{row:#}");
    assert!(row["explanation"].as_str().unwrap().contains("connection tracking table is full"), "{row:#}");
    assert_eq!(answer["counters"]["conntrack_drops"], row["count"], "{answer:#}");
}

#[test]
fn drops_by_tc_and_xdp_programs() {
    const TC_ACT_SHOT: i32 = 2;
    const XDP_DROP: i32 = 1;
    let cases = [
        (libbpf_sys::BPF_PROG_TYPE_SCHED_CLS, TC_ACT_SHOT, libbpf_sys::BPF_TCX_INGRESS, "TC_INGRESS"),
        (libbpf_sys::BPF_PROG_TYPE_SCHED_CLS, TC_ACT_SHOT, libbpf_sys::BPF_TCX_EGRESS, "TC_EGRESS"),
        (libbpf_sys::BPF_PROG_TYPE_XDP, XDP_DROP, libbpf_sys::BPF_XDP, "XDP"),
    ];
    for (kind, verdict, at, what) in cases {
        let (pair, daemon) = (Pair::new(), Daemon::of("trace_drops"));
        let netns = if at == libbpf_sys::BPF_TCX_EGRESS { &pair.a } else { &pair.b };
        let link = pair.b.ip("-o link show v0");
        let mac = link.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap();
        pair.a.ip(&format!("neigh replace {B} lladdr {mac} dev v0")); // ARP would also be dropped
        let _link = netns.enter(|| attach_constant(kind, verdict, at));
        let answer = answer_to(&daemon, || send(&pair.a, to(B, 91), 7, 10));
        let rows: Vec<_> = answer["drops"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|row| row["destination"] == json!({"address": B, "port": 91}))
            .collect();
        assert_eq!(rows.len(), 1, "{answer:#}");
        assert!(
            rows[0]["explanation"].as_str().unwrap().contains(if what == "XDP" { "XDP program" } else { "tc filter" }),
            "{:#}",
            rows[0]
        );
        assert_eq!(rows[0]["count"], 7, "{:#}", rows[0]);
        if what != "XDP" {
            assert_eq!(rows[0]["reason"], what);
            is_own(rows[0]); // on veth the packet still carries its sender's socket
        }
    }
}

/// A datagram to each of this number of closed ports.
fn scan(pair: &Pair, ports: usize) {
    pair.a.enter(|| {
        let socket = UdpSocket::bind((A, 0)).unwrap();
        for i in 0..ports {
            socket.send_to(b"x", (B, 10_000 + i as u16)).unwrap();
        }
    });
}

#[test]
fn scan_is_counted_and_leaves_room_for_others() {
    const PACKETS: usize = 30_000;
    let (pair, daemon) = (Pair::new(), Daemon::of("trace_drops"));
    nft(&pair.b, "input", "udp dport 7 drop");
    let _scanning = scanning();
    let answer = answer_amid_all(&daemon, || {
        scan(&pair, PACKETS);
        send(&pair.a, to(B, 7), 5, 10);
    });
    // A few may have hit a full CPU backlog, which is counted as well.
    let counted = answer["packets"].as_u64().unwrap() + answer["measured"]["lost_events"].as_u64().unwrap();
    assert!(counted >= PACKETS as u64, "{counted} of {PACKETS}");
    assert!(answer["measured"]["limits"].to_string().contains("drops_merged"), "{answer:#}");
    assert_eq!(row(&answer, &pair.b, "NETFILTER_DROP")["count"], 5, "a rule's drops have room beside a scan");
}

#[test]
fn scan_slots_are_freed_when_their_windows_end() {
    let (pair, daemon) = (Pair::new(), Daemon::of("trace_drops"));
    let _scanning = scanning();
    let open = || daemon.watch(TOOL, json!({"limit": 10_000}));
    let first = open();
    scan(&pair, 3_000);
    let second = open();
    first.end();
    let third = open();
    send(&pair.a, to(B, 93), 5, 10);
    let answer = third.end();
    second.end();
    let mine = rows(&answer, &pair.b).into_iter().find(|row| row["destination"] == json!({"address": B, "port": 93}));
    assert_eq!(mine.unwrap_or_else(|| panic!("{answer:#}"))["count"], 5);
}

#[test]
fn clean_traffic_has_no_drops() {
    let (pair, daemon) = (Pair::new(), Daemon::of("trace_drops"));
    let server = echo_server(&pair.b, B);
    let answer = answer_to(&daemon, || {
        for _ in 0..20 {
            let mut stream = connect(&pair.a, server).unwrap();
            std::io::Write::write_all(&mut stream, b"hello").unwrap();
            std::io::Read::read_exact(&mut stream, &mut [0; 5]).unwrap();
        }
        let listener = listen(&pair.a, A);
        drop(listener);
    });
    let (a, b) = (tcp(&answer, &pair.a), tcp(&answer, &pair.b));
    assert!(a.is_empty() && b.is_empty(), "{a:#?} {b:#?}");
}

#[test]
fn windows_share_a_program_and_its_counts() {
    let no_scans = without_scans();
    let (pair, daemon) = (Pair::new(), Daemon::of("trace_drops"));
    let mut client = Client::connect(&daemon.socket);
    let windows = [(); 3].map(|()| daemon.watch(TOOL, json!({"limit": 10_000})));
    send(&pair.a, to(B, 92), 40, 10);
    let links = client.links(TOOL);
    assert_eq!(links.iter().filter(|name| name.starts_with("drop")).count(), 1, "{links:?}");
    for window in windows {
        let answer = window.end();
        assert_eq!(row(&answer, &pair.b, "NO_SOCKET")["count"], 40);
    }
    drop(no_scans);
    client.until_detached(TOOL);
    // A later window excludes the counts of an earlier one.
    let answer = answer_to(&daemon, || ());
    assert!(rows(&answer, &pair.b).is_empty(), "{answer:#}");
}
