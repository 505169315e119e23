//! `trace_connections`: every connection against the processes, ports, bytes and errors of its two ends.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{harness::*, processes::Process};

const TOOL: &str = "trace_connections";
/// Runs `traffic` while a window with these arguments is open, and returns the answer with all rows, also of other tests.
fn watched(daemon: &Daemon, mut arguments: Value, traffic: impl FnOnce()) -> Value {
    arguments.as_object_mut().unwrap().entry("limit").or_insert(10_000.into());
    let window = daemon.watch(TOOL, arguments);
    traffic();
    let answer = window.end();
    Client::connect(&daemon.socket).until_detached(TOOL);
    answer
}

/// The connections of a namespace's processes.
fn of<'a>(answer: &'a Value, netns: &Netns, direction: &str) -> Vec<&'a Value> {
    let rows = answer["connections"].as_array().unwrap().iter();
    rows.filter(|c| c["owner"]["netns"] == netns.inode() && c["direction"] == direction).collect()
}

/// The only connection of a namespace's processes.
fn only<'a>(answer: &'a Value, netns: &Netns, direction: &str) -> &'a Value {
    let rows = of(answer, netns, direction);
    assert_eq!(rows.len(), 1, "{answer}");
    rows[0]
}

/// Connects on a separate thread.
fn begin_connect(netns: &Netns, to: SocketAddr) -> std::thread::JoinHandle<std::io::Result<TcpStream>> {
    let netns = netns.clone();
    std::thread::spawn(move || connect(&netns, to))
}

// In guests.
#[test]
fn bytes_and_owners_of_both_ends_are_exact() {
    let daemon = Daemon::of("trace_connections");
    // IPv4, IPv6, and IPv4 to an IPv6 socket.
    let cases = [(B, B), (B6, B6), (B, "::")].map(|(address, bound)| {
        let pair = Pair::new();
        let listener = listen(&pair.b, bound);
        let to = SocketAddr::new(address.parse().unwrap(), listener.local_addr().unwrap().port());
        (pair, listener, to)
    });
    let answer = watched(&daemon, json!({"limit": 10_000}), || {
        for (pair, listener, to) in &cases {
            let mut stream = connect(&pair.a, *to).unwrap();
            let (mut served, from) = listener.accept().unwrap();
            assert_eq!(from.port(), stream.local_addr().unwrap().port());
            stream.write_all(&[7; 100_000]).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(served.read_to_end(&mut Vec::new()).unwrap(), 100_000);
            served.write_all(&[8; 3_000]).unwrap();
            drop(served);
            assert_eq!(stream.read_to_end(&mut Vec::new()).unwrap(), 3_000);
        }
    });
    for (pair, _, to) in &cases {
        let (out, back) = (only(&answer, &pair.a, "outbound"), only(&answer, &pair.b, "inbound"));
        for (c, netns) in [(out, &pair.a), (back, &pair.b)] {
            assert_eq!(c["owner"]["pid"], std::process::id(), "{answer}");
            assert_eq!((&c["outcome"], &c["errno"], &c["closed"]), (&json!("established"), &json!(null), &json!(true)));
            assert!(c["duration_us"].as_u64().unwrap() > 0 && c["rtt_us"].as_u64().unwrap() > 0, "{answer}");
            assert_eq!(c["retransmits"], netns.retransmits(), "{answer}");
        }
        assert_eq!((&out["tx_bytes"], &out["rx_bytes"]), (&json!(100_000), &json!(3_000)), "{answer}");
        assert_eq!((&back["tx_bytes"], &back["rx_bytes"]), (&json!(3_000), &json!(100_000)), "{answer}");
        assert_eq!(out["remote"], json!({"address": to.ip(), "port": to.port()}), "{answer}");
        assert_eq!(back["local"], out["remote"], "{answer}");
        assert_eq!(back["remote"], out["local"], "{answer}");
        assert!(out["connect_latency_us"].as_u64().unwrap() > 0 && back["connect_latency_us"].is_null(), "{answer}");
    }
}

#[test]
fn old_listener_and_its_worker_are_owners() {
    let pair = Pair::new();
    let mut server = Process::in_netns(&pair.b, &format!("tcp-serve-fork {B} 7000"));
    assert_eq!(server.hear(), "listening");
    let daemon = Daemon::of("trace_connections");
    let (mut worker, mut kept) = (String::new(), None);
    let answer = watched(&daemon, json!({"direction": "inbound", "port": 7000}), || {
        let to = SocketAddr::new(B.parse().unwrap(), 7000);
        drop(connect(&pair.a, to).unwrap());
        worker = server.hear();
        kept = Some(connect(&pair.a, to).unwrap());
        let held = || pair.b.run("ss -Htan state connected sport = :7000").lines().count();
        until("the worker has closed the first one", || (held() == 1).then_some(()));
    });
    let rows = of(&answer, &pair.b, "inbound");
    let owner_of = |closed: bool| rows.iter().find(|c| c["closed"] == closed).map(|c| c["owner"]["pid"].to_string());
    assert_eq!(rows.len(), 2, "{answer}");
    assert_eq!(owner_of(true), Some(worker), "who served it: {answer}");
    assert_eq!(owner_of(false), Some(server.pid().to_string()), "whose listener it is: {answer}");
}

// In guests.
#[test]
fn every_failure_has_an_outcome() {
    let pair = Pair::new();
    let daemon = Daemon::of("trace_connections");
    pair.b.run("nft add table inet t");
    pair.b.run("nft add chain inet t in { type filter hook input priority 0 ; }");
    pair.b.run("nft add rule inet t in tcp dport 7001 drop");
    pair.b.run("nft add rule inet t in tcp dport 7002 reject with icmpx admin-prohibited");
    pair.a.run("sysctl -qw net.ipv4.tcp_syn_retries=1");
    for (blackhole, kind) in
        [("10.80.1.0/24", "unreachable"), ("10.80.2.0/24", "prohibit"), ("10.80.3.0/24", "blackhole")]
    {
        pair.a.ip(&format!("route add {kind} {blackhole}"));
    }
    pair.a.ip("-6 route add prohibit fd80:2::/64");
    let cases = [
        (format!("{B}:7000"), "refused", "ECONNREFUSED"),
        (format!("[{B6}]:7000"), "refused", "ECONNREFUSED"),
        (format!("{B}:7001"), "timed_out", "ETIMEDOUT"),
        (format!("{B}:7002"), "unreachable", "EHOSTUNREACH"),
        ("192.0.2.1:7000".into(), "unreachable", "ENETUNREACH"),
        ("[2001:db8::1]:7000".into(), "unreachable", "ENETUNREACH"),
        ("10.80.1.1:7000".into(), "unreachable", "EHOSTUNREACH"),
        ("10.80.2.1:7000".into(), "denied", "EACCES"),
        ("10.80.3.1:7000".into(), "unreachable", "EINVAL"),
        ("[fd80:2::1]:7000".into(), "denied", "EACCES"),
    ];
    let answer = watched(&daemon, json!({"direction": "outbound", "outcome": "failed", "limit": 100}), || {
        // One by one: newer kernels do not run a program for a thread that preempts it, which happens on an emulated
        // processor.
        let (silent, others): (Vec<_>, Vec<_>) = cases.iter().map(|(to, ..)| to).partition(|to| to.ends_with(":7001"));
        let waiting = begin_connect(&pair.a, silent[0].parse().unwrap());
        until("a SYN is sent", || pair.a.run("ss -Htan state syn-sent").contains(":7001").then_some(()));
        others.iter().for_each(|to| drop(connect(&pair.a, to.parse().unwrap()).unwrap_err()));
        drop(waiting.join().unwrap().unwrap_err());
    });
    let rows = of(&answer, &pair.a, "outbound");
    for (to, outcome, errno) in &cases {
        let to: SocketAddr = to.parse().unwrap();
        let of_it: Vec<_> =
            rows.iter().filter(|c| c["remote"] == json!({"address": to.ip(), "port": to.port()})).collect();
        assert_eq!(of_it.len(), 1, "{to}: {answer:#}");
        assert_eq!((&of_it[0]["outcome"], &of_it[0]["errno"]), (&json!(outcome), &json!(errno)), "{to}");
        assert_eq!(of_it[0]["owner"]["pid"], std::process::id(), "{to}");
        assert_eq!(of_it[0]["closed"], true, "{to}");
    }
    assert_eq!(rows.len(), cases.len(), "{answer:#}");
}

#[test]
fn no_local_port_is_its_own_outcome() {
    let pair = Pair::new();
    let range = "net.ipv4.ip_local_port_range=40000 40001";
    assert!(pair.a.command("sysctl").args(["-qw", range]).status().unwrap().success());
    let to = echo_server(&pair.b, B);
    let daemon = Daemon::of("trace_connections");
    let answer = watched(&daemon, json!({"direction": "outbound", "port": to.port()}), || {
        let streams: Vec<_> = (0..4).map(|_| connect(&pair.a, to)).collect();
        let failed = streams.iter().filter(|s| s.is_err()).count();
        assert_eq!(failed, 2, "{streams:?}");
    });
    let rows = of(&answer, &pair.a, "outbound");
    let full: Vec<_> = rows.iter().filter(|c| c["outcome"] == "no_local_port").collect();
    assert_eq!((rows.len(), full.len()), (4, 2), "{answer:#}");
    assert!(full.iter().all(|c| c["errno"] == "EADDRNOTAVAIL" && c["local"].is_null()), "{answer:#}");
}

// In guests.
#[test]
fn no_route_is_found_with_policy_routing() {
    let pair = Pair::new();
    pair.a.ip("rule add from all lookup 100 priority 100");
    pair.a.ip("-6 rule add from all lookup 100 priority 100");
    let to = echo_server(&pair.b, B);
    let to6 = echo_server(&pair.b, B6);
    let daemon = Daemon::of("trace_connections");
    let answer = watched(&daemon, json!({"direction": "outbound", "limit": 10_000}), || {
        for _ in 0..3 {
            connect(&pair.a, "192.0.2.1:7000".parse().unwrap()).unwrap_err();
            connect(&pair.a, "[2001:db8::1]:7000".parse().unwrap()).unwrap_err();
            drop(connect(&pair.a, to).unwrap());
            drop(connect(&pair.a, to6).unwrap());
        }
    });
    let rows = of(&answer, &pair.a, "outbound");
    let count = |outcome: &str| rows.iter().filter(|c| c["outcome"] == outcome).count();
    assert_eq!((count("unreachable"), count("established"), rows.len()), (6, 6, 12), "{answer:#}");
}

// In guests.
#[test]
fn resets_name_their_side() {
    let pair = Pair::new();
    let daemon = Daemon::of("trace_connections");
    let listener = listen(&pair.b, B);
    let to = listener.local_addr().unwrap();
    let answer = watched(&daemon, json!({"port": to.port()}), || {
        let stream = connect(&pair.a, to).unwrap();
        let (mut served, _) = listener.accept().unwrap();
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap(); // close() then sends a reset
        drop(stream);
        served.read(&mut [0]).unwrap_err();
    });
    for (netns, direction, errno) in [(&pair.a, "outbound", json!(null)), (&pair.b, "inbound", json!("ECONNRESET"))] {
        let c = only(&answer, netns, direction);
        assert_eq!((&c["outcome"], &c["errno"], &c["closed"]), (&json!("reset"), &errno, &json!(true)), "{answer:#}");
    }
    assert_eq!(answer["outcomes"]["reset"], 2, "{answer}");
}

#[test]
fn short_lived_processes_are_named() {
    let pair = Pair::new();
    let to = echo_server(&pair.b, B);
    let daemon = Daemon::of("trace_connections");
    let mut pids = Vec::new();
    let answer = watched(&daemon, json!({"direction": "outbound", "port": to.port(), "limit": 100}), || {
        for _ in 0..20 {
            let mut command = pair.a.command("bash");
            let child = command.args(["-c", &format!("exec 3<>/dev/tcp/{}/{}", to.ip(), to.port())]).spawn().unwrap();
            pids.push(u64::from(child.id()));
            child.wait_with_output().unwrap();
        }
    });
    let mut found: Vec<u64> =
        of(&answer, &pair.a, "outbound").iter().map(|c| c["owner"]["pid"].as_u64().unwrap()).collect();
    found.sort();
    pids.sort();
    assert_eq!(found, pids, "{answer:#}");
    assert!(answer["connections"].as_array().unwrap().iter().all(|c| c["owner"]["process"] == "bash"), "{answer:#}");
}

#[test]
fn old_connection_is_reported_when_it_closes() {
    let pair = Pair::new();
    let listener = listen(&pair.b, B);
    let to = listener.local_addr().unwrap();
    let stream = connect(&pair.a, to).unwrap();
    let (served, _) = listener.accept().unwrap();
    let daemon = Daemon::of("trace_connections");
    let answer = watched(&daemon, json!({"port": to.port()}), || {
        drop(stream);
        drop(served);
    });
    for (netns, direction) in [(&pair.a, "outbound"), (&pair.b, "inbound")] {
        let c = only(&answer, netns, direction);
        assert_eq!(
            (&c["closed"], &c["connect_latency_us"], &c["duration_us"]),
            (&json!(true), &json!(null), &json!(null))
        );
        // Or a child that another test started and that had our sockets until its exec.
        let closer = c["owner"]["pid"].as_u64().unwrap();
        let is_ours = closer == u64::from(std::process::id()) || !Path::new(&format!("/proc/{closer}")).exists();
        assert!(is_ours, "who closed it: {answer:#}");
    }
}

#[test]
fn connecting_is_an_outcome() {
    let pair = Pair::new();
    pair.b.run("nft add table inet t");
    pair.b.run("nft add chain inet t in { type filter hook input priority 0 ; policy drop ; }");
    let daemon = Daemon::of("trace_connections");
    let to = SocketAddr::new(B.parse().unwrap(), 7000);
    let answer = watched(&daemon, json!({"remote": "10.77.0.0/24"}), || {
        begin_connect(&pair.a, to);
        let sent = || pair.a.run("ss -Htan state syn-sent").contains("10.77.0.2").then_some(());
        until("a SYN is sent", sent);
    });
    let c = only(&answer, &pair.a, "outbound");
    assert_eq!(
        (&c["outcome"], &c["closed"], &c["errno"]),
        (&json!("connecting"), &json!(false), &json!(null)),
        "{answer:#}"
    );
    assert!(c["connect_latency_us"].is_null(), "{answer:#}");
}

#[test]
fn concurrent_windows_keep_their_filters() {
    let pair = Pair::new();
    let (one, two) = (echo_server(&pair.b, B), echo_server(&pair.b, B));
    let daemon = Daemon::of("trace_connections");
    let questions =
        [json!({"port": one.port()}), json!({"port": two.port()}), json!({"remote": A, "direction": "inbound"})];
    let windows = questions.map(|mut arguments| {
        arguments["limit"] = 10_000.into();
        daemon.watch(TOOL, arguments)
    });
    (0..5).for_each(|_| drop(connect(&pair.a, one).unwrap()));
    (0..3).for_each(|_| drop(connect(&pair.a, two).unwrap()));
    let answers = windows.map(Watching::end);
    // Other tests have the same addresses in other namespaces.
    let ours = |answer: &Value| {
        [&pair.a, &pair.b].map(|netns| ["inbound", "outbound"].map(|way| of(answer, netns, way).len()))
    };
    assert_eq!(answers.each_ref().map(ours), [[[0, 5], [5, 0]], [[0, 3], [3, 0]], [[0, 0], [8, 0]]]);
}

/// `OutRsts` of a namespace.
///
/// The kernel itself may answer the last segment of a connection with a reset: between the full socket and its
/// TIME_WAIT socket, a lookup from another CPU may find neither.
fn resets_sent(netns: &Netns) -> u64 {
    let text = netns.enter(|| std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap());
    let mut lines = text.lines().filter(|line| line.starts_with("Tcp:")).map(str::split_whitespace);
    let (mut names, mut values) = (lines.next().unwrap(), lines.next().unwrap());
    values.nth(names.position(|name| name == "OutRsts").unwrap()).unwrap().parse().unwrap()
}

#[test]
fn thousand_connects_per_second_are_counted_once() {
    let netns = Netns::new();
    let listener = listen(&netns, "127.0.0.1");
    let to = listener.local_addr().unwrap();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let daemon = Daemon::of("trace_connections");
    let arguments = json!({"port": to.port(), "direction": "outbound", "limit": 10_000});
    let answer = watched(&daemon, arguments, || {
        let begun = std::time::Instant::now();
        netns.enter(|| {
            for n in 0..10_000u32 {
                let mut stream = TcpStream::connect(to).unwrap();
                let _ = stream.read(&mut [0]); // so that the peer closes first, and the port is free at once
                std::thread::sleep((Duration::from_micros(1_000) * n).saturating_sub(begun.elapsed()));
            }
        });
    });
    let [established, reset] = ["established", "reset"].map(|outcome| answer["outcomes"][outcome].as_u64().unwrap());
    let counts = format!("{} {}", answer["outcomes"], answer["measured"]);
    // A busy machine may lose some; then the answer says so.
    let lost = answer["measured"]["lost_events"].as_u64().unwrap();
    assert!(lost < 100, "{counts}");
    assert!((10_000_u64.saturating_sub(lost)..=10_000).contains(&(established + reset)), "{counts}");
    let sent = resets_sent(&netns);
    assert!(reset <= sent, "{sent} resets were sent: {counts}");
    assert_eq!(answer["measured"]["rows_cut"], 0);
    let rows = of(&answer, &netns, "outbound");
    let ports: std::collections::HashSet<_> = rows
        .iter()
        .map(|c| (c["local"]["port"].as_u64(), c["duration_us"].as_u64(), c["connect_latency_us"].as_u64()))
        .collect();
    assert_eq!(rows.len() as u64, established + reset);
    assert!(ports.len() > 9_900, "rows are of different connections: {}", ports.len());
}

#[test]
fn lost_events_are_counted() {
    let pair = Pair::new();
    let to = echo_server(&pair.b, B);
    let daemon = Daemon::of("trace_connections");
    let answer = watched(&daemon, json!({"port": to.port(), "limit": 3}), || {
        (0..10).for_each(|_| drop(connect(&pair.a, to).unwrap()));
    });
    assert_eq!(answer["outcomes"]["established"], 20, "{answer}");
    assert_eq!((answer["connections"].as_array().unwrap().len(), &answer["measured"]["rows_cut"]), (3, &json!(17)));
}

#[test]
fn invalid_filter_error_shows_an_example() {
    let daemon = Daemon::of("trace_connections");
    let mut client = Client::connect(&daemon.socket);
    for (arguments, says) in [
        (json!({"remote": "10.0.0.0/33"}), "10.0.0.0/8"),
        (json!({"process": ""}), "1 to 64 bytes"),
        (json!({"port": 70_000}), "port"),
        (json!({"limit": 100_000}), "1 to 10000"),
        (json!({"direction": "sideways"}), "inbound"),
    ] {
        let error = client.call(TOOL, arguments.clone()).unwrap_err();
        assert!(error.contains(says), "{arguments}: {error}");
    }
}

#[test]
fn process_filter_compares_the_whole_name() {
    let pair = Pair::new();
    let to = echo_server(&pair.b, B);
    let daemon = Daemon::of("trace_connections");
    let one = || {
        let line = format!("exec 3<>/dev/tcp/{}/{}", to.ip(), to.port());
        assert!(pair.a.command("bash").args(["-c", &line]).status().unwrap().success());
        drop(connect(&pair.a, to).unwrap());
    };
    let answer = watched(&daemon, json!({"process": "bash", "port": to.port()}), one);
    assert_eq!(only(&answer, &pair.a, "outbound")["owner"]["process"], "bash");
    let answer = watched(&daemon, json!({"process": "bas", "port": to.port()}), one);
    assert_eq!(answer["connections"], json!([]));
}
