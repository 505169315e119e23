//! `network-monitor`: counts against the kernel's own, connections against the made ones.

use std::{
    ffi::OsStr,
    io::{Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::unix::ffi::OsStrExt,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{harness::*, injected::meet};

mod super_packets;

const TOOL: &str = "network-monitor";

/// Sends `count` datagrams of `bytes` from one end of the pair to the other.
fn datagrams(from: &Netns, bind: &str, to: &str, count: usize, bytes: usize) {
    from.enter(|| {
        let socket = UdpSocket::bind((bind, 0)).unwrap();
        for _ in 0..count {
            socket.send_to(&vec![0; bytes], (to, 9)).unwrap();
        }
    });
}

/// Opens a window on `interface`, runs `traffic` in it, and returns the answer.
fn incoming(daemon: &Daemon, interface: &str, mode: &str, traffic: impl FnOnce()) -> Value {
    let arguments = json!({"operation": "incoming", "interface": interface, "duration": 60, "mode": mode});
    let window = daemon.watch(TOOL, arguments);
    traffic();
    window.end()
}

// In guests.
#[test]
fn incoming_counts_known_packets_of_both_families() {
    let pair = Pair::new();
    let daemon = daemon_for(TOOL, &pair.b);
    let mut client = Client::connect(&daemon.socket);
    // The neighbor is known: otherwise packets that wait for address resolution would arrive late.
    [B, B6].iter().for_each(|address| meet(&pair, address));
    let answer = incoming(&daemon, "v0", "tcx", || {
        datagrams(&pair.a, A, B, 400, 100);
        datagrams(&pair.a, A6, B6, 200, 100);
    });
    assert_eq!(answer["by_protocol"]["udp"], 600, "{answer}");
    let expected = 400 * (100 + 8 + 20 + 14) + 200 * (100 + 8 + 40 + 14);
    let bytes = answer["bytes"].as_u64().unwrap();
    assert!((expected..expected + 5_000).contains(&bytes), "{bytes} bytes, {expected} of them ours");
    assert!(answer["transmitted"]["packets"].as_u64().unwrap() < 600, "{answer}");
    client.until_detached(TOOL);
}

#[test]
fn loopback_and_l3_tunnel_are_counted() {
    let netns = Netns::new();
    let tunnel = Tunnel::new(&netns);
    let daemon = daemon_for(TOOL, &netns);
    let answer = incoming(&daemon, "lo", "tcx", || datagrams(&netns, "127.0.0.1", "127.0.0.1", 100, 50));
    assert_eq!(answer["by_protocol"]["udp"], 100, "lo: {answer}");
    let answer = incoming(&daemon, "tun7", "tcx", || (0..100).for_each(|_| tunnel.inject_udp(50)));
    let udp = &answer["by_protocol"]["udp"];
    assert_eq!((udp, &answer["bytes"]), (&json!(100), &json!(100 * (50 + 8 + 20))), "tun: {answer}");
}

#[test]
fn bridge_traffic_is_counted() {
    let pair = Pair::new();
    pair.b.ip("link add br0 type bridge");
    pair.b.ip(&format!("addr del {B}/24 dev v0"));
    pair.b.ip("link set v0 master br0");
    pair.b.ip("link set br0 up");
    pair.b.ip(&format!("addr add {B}/24 dev br0"));
    let daemon = daemon_for(TOOL, &pair.b);
    meet(&pair, B);
    let answer = incoming(&daemon, "br0", "tcx", || datagrams(&pair.a, A, B, 100, 50));
    assert_eq!(answer["by_protocol"]["udp"], 100, "{answer}");
}

#[test]
fn xdp_counts_or_names_a_conflict() {
    let pair = Pair::new();
    let daemon = daemon_for(TOOL, &pair.b);
    let mut client = Client::connect(&daemon.socket);
    meet(&pair, B);
    for mode in ["xdp", "xdp_native"] {
        let answer = incoming(&daemon, "v0", mode, || datagrams(&pair.a, A, B, 200, 50));
        assert_eq!(answer["by_protocol"]["udp"], 200, "{mode}: {answer}");
        client.until_detached(TOOL);
    }
    // The daemon's own other mode conflicts as well: an interface holds one program.
    let id =
        client.begin_call(TOOL, json!({"operation": "incoming", "interface": "v0", "duration": 30, "mode": "xdp"}));
    client.until_open(TOOL, 1);
    let mut other = Client::connect(&daemon.socket);
    let refused =
        other.call(TOOL, json!({"operation": "incoming", "interface": "v0", "mode": "xdp_native"})).unwrap_err();
    assert!(refused.contains("already has an XDP program") && refused.contains("leave out `mode`"), "{refused}");
    // tcx counts beside XDP, and says so where the program is not the daemon's own.
    let elsewhere = daemon_for(TOOL, &pair.b);
    for (daemon, expected) in [(&daemon, false), (&elsewhere, true)] {
        let asked = json!({"operation": "incoming", "interface": "v0", "duration": 0.2});
        let answer = Client::connect(&daemon.socket).call(TOOL, asked).unwrap();
        let limits = answer["measured"]["limits"].as_array().unwrap();
        let found = limits.iter().any(|limit| limit["code"] == "xdp_verdicts_not_seen");
        assert_eq!(found, expected, "{answer:#}");
    }
    let drops = daemon_for("trace_drops", &pair.b);
    let answer = Client::connect(&drops.socket).call("trace_drops", json!({"duration_ms": 100})).unwrap();
    let limits = answer["measured"]["limits"].as_array().unwrap();
    let limit = limits.iter().find(|limit| limit["code"] == "xdp_verdicts_not_seen");
    assert_eq!(limit.unwrap_or_else(|| panic!("{answer:#}"))["count"], 1, "{answer:#}");
    client.send(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": id}}));
    other.until_detached(TOOL);
}

#[test]
fn measuring_leaves_offloads_unchanged() {
    let pair = Pair::new();
    let features = |netns: &Netns| netns.run("ip -j -d link show dev v0");
    let before = (features(&pair.a), features(&pair.b));
    let daemon = daemon_for(TOOL, &pair.b);
    let mut during = None;
    incoming(&daemon, "v0", "tcx", || during = Some((features(&pair.a), features(&pair.b))));
    assert_eq!(Some(before), during);
}

#[test]
fn fifty_concurrent_windows_count_everything() {
    let pair = Pair::new();
    let daemon = daemon_for(TOOL, &pair.b);
    let mut client = Client::connect(&daemon.socket);
    let arguments = json!({"operation": "incoming", "interface": "v0", "duration": 60});
    meet(&pair, B);
    let windows: Vec<_> = (0..50).map(|_| daemon.watch(TOOL, arguments.clone())).collect();
    assert_eq!(client.links(TOOL).len(), 2, "they share one link each way");
    datagrams(&pair.a, A, B, 700, 50);
    for window in windows {
        assert_eq!(window.end()["by_protocol"]["udp"], 700);
    }
    client.until_detached(TOOL);
}

#[test]
fn vanished_interface_is_reported() {
    let pair = Pair::new();
    let daemon = daemon_for(TOOL, &pair.b);
    let mut client = Client::connect(&daemon.socket);
    let id = client.begin_call(TOOL, json!({"operation": "incoming", "interface": "v0", "duration": 30}));
    client.until_open(TOOL, 1);
    pair.b.ip("link del v0");
    let began = Instant::now();
    let text = client.end_call(id).unwrap_err();
    assert!(text.contains("v0 disappeared") && text.contains("snapshot_interfaces"), "{text}");
    assert!(began.elapsed() < Duration::from_secs(10), "it was noticed only at the end");
    client.until_detached(TOOL);
}

#[test]
fn invalid_duration_or_interface_names_allowed_values() {
    let daemon = Daemon::of("network-monitor");
    let mut client = Client::connect(&daemon.socket);
    for duration in
        [json!(0), json!(-1), json!(0.05), json!(1e300), json!(9_223_372_037u64), json!("abc"), json!("5"), json!(true)]
    {
        let text = client.call(TOOL, json!({"operation": "incoming", "duration": duration})).unwrap_err();
        assert!(text.contains("duration") && text.contains("from 0.1 to 60"), "{duration}: {text}");
    }
    for name in ["nosuch0", "", "x\u{1b}[31m", &"y".repeat(300)] {
        for operation in ["incoming", "outgoing"] {
            let text = client.call(TOOL, json!({"operation": operation, "interface": name})).unwrap_err();
            assert!(text.contains("unknown interface") && text.contains("lo") && !text.contains('\u{1b}'), "{text}");
        }
    }
    let text = client.call(TOOL, json!({"operation": "sideways"})).unwrap_err();
    assert!(text.contains("incoming") && text.contains("outgoing"), "{text}");
    let text = client.call(TOOL, json!({})).unwrap_err();
    assert!(text.contains("operation"), "{text}");
    let text = client.call(TOOL, json!({"operation": "incoming", "seconds": 5})).unwrap_err();
    assert!(text.contains("seconds") && text.contains("duration"), "{text}");
}

#[test]
fn default_interface_has_the_default_route() {
    let pair = Pair::new();
    pair.b.ip(&format!("route add default via {A}"));
    pair.b.ip("link add quiet type veth peer name quiet2");
    pair.b.ip("link set quiet up");
    let daemon = daemon_for(TOOL, &pair.b);
    let mut client = Client::connect(&daemon.socket);
    let interface = |client: &mut Client| {
        let answer = client.call(TOOL, json!({"operation": "incoming", "duration": 0.1})).unwrap();
        answer["interface"].as_str().unwrap().to_owned()
    };
    assert_eq!(interface(&mut client), "v0", "the IPv4 default route");
    pair.b.ip("route del default");
    pair.b.ip(&format!("-6 route add default via {A6}"));
    assert_eq!(interface(&mut client), "v0", "the IPv6 default route");
    pair.b.ip("-6 route del default");
    datagrams(&pair.b, B, A, 100, 1_000);
    assert_eq!(interface(&mut client), "v0", "the busiest");
}

/// Opens a call that no connect ends: connects are kept while it is open. Returns its id, and where to continue.
fn keep_connects(client: &mut Client) -> (i64, Value) {
    let kept = client.begin_call(TOOL, json!({"operation": "outgoing", "interface": "lo", "duration": 60}));
    client.until_open(TOOL, 1);
    let answer = client.call(TOOL, json!({"operation": "outgoing", "duration": 0.1})).unwrap();
    (kept, answer["next"].clone())
}

/// Waits for one outgoing connection during `traffic`, and returns it.
fn outgoing(netns: &Netns, traffic: impl FnOnce()) -> Value {
    let quiet = Netns::new();
    let daemon = daemon_for(TOOL, &quiet);
    let mut client = Client::connect(&daemon.socket);
    let (_, mut next) = keep_connects(&mut client);
    traffic();
    // Other tests connect as well: continue until ours appears.
    until("our connection is reported", || {
        let arguments = json!({"operation": "outgoing", "after": next, "limit": 1_000});
        let answer = client.call(TOOL, arguments).unwrap();
        next = answer["next"].clone();
        let connections = answer["connections"].as_array().unwrap();
        connections.iter().find(|c| c["owner"]["netns"] == netns.inode()).cloned()
    })
}

// In guests, since Linux 5.12.
#[test]
fn outgoing_reports_an_established_connection() {
    for (server, family) in [(B, "ipv4"), (B6, "ipv6")] {
        let pair = Pair::new();
        let to = echo_server(&pair.b, server);
        let mut local = None;
        let connection = outgoing(&pair.a, || {
            local = Some(connect(&pair.a, to).unwrap().local_addr().unwrap());
        });
        assert_eq!(connection["owner"]["pid"], std::process::id(), "{connection}");
        assert_eq!(connection["established"], true, "{connection}");
        assert_eq!(connection["family"], family, "{connection}");
        assert_eq!(connection["remote"], json!({"address": server, "port": to.port()}), "{connection}");
        assert_eq!(connection["local"]["port"], local.unwrap().port(), "{connection}");
        assert!(connection["connect_latency_us"].as_u64().unwrap() < 5_000_000, "{connection}");
    }
}

#[test]
fn ipv4_mapped_connection_is_ipv4() {
    let pair = Pair::new();
    let to = echo_server(&pair.b, B);
    let connection = outgoing(&pair.a, || {
        let mapped = format!("[::ffff:{B}]:{}", to.port()).parse().unwrap();
        connect(&pair.a, mapped).unwrap();
    });
    assert_eq!((&connection["family"], &connection["remote"]["address"]), (&json!("ipv4"), &json!(B)), "{connection}");
}

#[test]
fn refused_connection_is_not_established() {
    let pair = Pair::new();
    for server in [B, B6] {
        let connection = outgoing(&pair.a, || {
            let to = (server.parse::<std::net::IpAddr>().unwrap(), 9).into();
            assert!(connect(&pair.a, to).is_err());
        });
        assert_eq!(
            (&connection["established"], &connection["error"]),
            (&json!(false), &json!("ECONNREFUSED")),
            "{connection}"
        );
        assert_ne!(connection["local"]["port"], 0, "{connection}");
    }
}

#[test]
fn outgoing_times_out_with_an_empty_list() {
    let netns = Netns::new();
    let daemon = daemon_for(TOOL, &netns);
    let mut client = Client::connect(&daemon.socket);
    let began = Instant::now();
    // Only connections over this namespace's own loopback, on which no test connects.
    let answer = client.call(TOOL, json!({"operation": "outgoing", "interface": "lo", "duration": 0.5})).unwrap();
    assert_eq!(answer["connections"], json!([]), "{answer}");
    assert!(began.elapsed() >= Duration::from_millis(500));
}

/// The local ports that repeated calls report for 600 connects, the made ones, and the lost events meanwhile.
fn six_hundred_connects(client: &mut Client, pair: &Pair, to: SocketAddr) -> (Vec<u64>, Vec<u64>, u64) {
    let inode = pair.a.inode();
    let (kept, next) = keep_connects(client);
    let a = pair.a.clone();
    let port = move || u64::from(TcpStream::connect(to).unwrap().local_addr().unwrap().port());
    let maker = std::thread::spawn(move || a.enter(|| (0..600).map(|_| port()).collect::<Vec<_>>()));
    let mut seen: Vec<u64> = Vec::new();
    let mut answer = client.call(TOOL, json!({"operation": "outgoing", "after": next, "limit": 1})).unwrap();
    assert_eq!(answer["connections"].as_array().unwrap().len(), 1, "{answer}");
    let lost = loop {
        let connections = answer["connections"].as_array().unwrap();
        let ours = connections.iter().filter(|c| c["owner"]["netns"] == inode);
        seen.extend(ours.map(|c| c["local"]["port"].as_u64().unwrap()));
        let lost = answer["measured"]["lost_events"].as_u64().unwrap();
        if seen.len() >= 600 || lost > 0 {
            break lost;
        }
        // Without `after`: the daemon continues a client that asks again at once. The host's other connects are
        // included, thousands per second while other tests run: with the default `limit` the client would fall behind,
        // and get an error.
        answer = client.call(TOOL, json!({"operation": "outgoing", "duration": 10, "limit": 1_000})).unwrap();
        assert_ne!(answer["connections"], json!([]), "only {} of 600 were seen", seen.len());
    };
    let mut made = maker.join().unwrap();
    client.cancel(kept);
    client.until_detached(TOOL);
    made.sort_unstable();
    seen.sort_unstable();
    (seen, made, lost)
}

#[test]
fn outgoing_cursor_reports_each_connection_once() {
    let (pair, quiet) = (Pair::new(), Netns::new());
    let daemon = daemon_for(TOOL, &quiet);
    let mut client = Client::connect(&daemon.socket);
    let to = echo_server(&pair.b, B);
    // A flood of another test may exceed the ring. Lost events are counted, and this check covers calls without losses.
    let whole = (0..5).map(|_| six_hundred_connects(&mut client, &pair, to)).find(|(_, _, lost)| *lost == 0);
    let (seen, made, _) = whole.expect("one of five attempts in which the kernel lost no event");
    assert_eq!(seen, made);
}

#[test]
fn hostile_process_name_is_cleaned() {
    let pair = Pair::new();
    let to = echo_server(&pair.b, B);
    let cgroup = Cgroup::new("nmt-hostile.service");
    let connection = outgoing(&pair.a, || {
        // The name of a process is that of its program file.
        let folder = open_folder();
        let shell = folder.path().join(OsStr::from_bytes(b"a\nb\x1b[1m\xff\xe2\x80\xae"));
        std::os::unix::fs::symlink(path_of("bash"), &shell).unwrap();
        let procs = cgroup.path().join("cgroup.procs");
        let script = format!("echo $$ > {}; exec 3<>/dev/tcp/{}/{}", procs.display(), to.ip(), to.port());
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", pair.a.name())).arg(&shell).args(["-c", &script]);
        assert!(command.status().unwrap().success());
    });
    let name = connection["owner"]["process"].as_str().unwrap();
    assert!(name.starts_with("a\u{fffd}b\u{fffd}[1m\u{fffd}"), "{name:?}");
    assert!(!name.contains(['\n', '\u{1b}', '\u{202e}']), "{name:?}");
    assert_eq!(connection["owner"]["unit"], "nmt-hostile.service", "{connection}");
}
