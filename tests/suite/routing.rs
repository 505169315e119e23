//! `diagnose` and `trace_drops`: the reverse-path filter, and routing loops until the hop limit expires.

use std::{
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    harness::*,
    injected::{FAR, Routed},
};

fn findings<'a>(answer: &'a Value, code: &str, address: &str) -> Vec<&'a Value> {
    let findings = answer["findings"].as_array().unwrap().iter();
    findings.filter(|f| f["code"] == code && f.to_string().contains(&format!("{address}\""))).collect()
}

/// Sends datagrams of one socket.
fn talk(from: &Netns, local: &str, to: (&str, u16), count: usize) {
    let to = SocketAddr::new(to.0.parse().unwrap(), to.1);
    from.enter(|| {
        let socket = UdpSocket::bind((local.parse::<IpAddr>().unwrap(), 0)).unwrap();
        (0..count).for_each(|_| _ = socket.send_to(b"hello", to));
    });
}

/// Connects without success until the SYN is retransmitted.
fn connect_in_vain(from: &Netns, to: SocketAddr) {
    let there = from.clone();
    thread::spawn(move || there.enter(|| drop(TcpStream::connect_timeout(&to, Duration::from_secs(6)))));
    until("its SYN is sent again", || from.run("ss -tnoH state syn-sent").contains("timer:(on").then_some(()));
    let sent = || from.run("nstat -asz TcpRetransSegs").split_whitespace().nth(2).map(str::to_owned);
    until("its SYN is sent again", || sent().filter(|count| count != "0"));
}

/// `b` has another route back to `a`'s `second` address than the incoming one. Each test takes another address: a
/// daemon also sees the drops of parallel tests.
fn two_uplinks(strict: &str, second: &str) -> Pair {
    let pair = Pair::new();
    run(&format!("ip link add v1 netns {} type veth peer name v1 netns {}", pair.a.name(), pair.b.name()));
    for (netns, address) in [(&pair.a, "10.88.0.1/24"), (&pair.b, "10.88.0.2/24")] {
        netns.ip(&format!("addr add {address} dev v1"));
        netns.ip("link set v1 up");
    }
    pair.a.ip(&format!("addr add {second}/32 dev lo"));
    for name in ["all", "v0", "v1"] {
        pair.b.run(&format!("sysctl -qw net.ipv4.conf.{name}.rp_filter={strict}"));
    }
    // The filter also drops ARP from such a source.
    for (netns, peer, address) in [(&pair.a, &pair.b, "10.88.0.2"), (&pair.b, &pair.a, "10.88.0.1")] {
        let link = peer.ip("-br link show v1");
        netns.ip(&format!("neigh replace {address} lladdr {} dev v1", link.split_whitespace().nth(2).unwrap()));
    }
    pair
}

#[test]
fn reverse_path_filter_drops_are_found() {
    for strict in ["1", "2"] {
        let (pair, daemon) = (two_uplinks(strict, "10.66.0.1"), Daemon::start());
        if strict == "1" {
            pair.b.ip("route add 10.66.0.1 via 10.77.0.1"); // otherwise there is no route back
        }
        let _server = pair.b.enter(|| UdpSocket::bind(("10.88.0.2", 162)).unwrap());
        let window = daemon.watch("diagnose", json!({"limit": 40}));
        talk(&pair.a, "10.66.0.1", ("10.88.0.2", 162), 20);
        let answer = window.end();
        let found = findings(&answer, "reverse_path_filter", "10.66.0.1");
        assert_eq!(found.len(), 1, "{strict}: {answer:#}");
        assert_eq!((&found[0]["severity"], &found[0]["evidence"]["interface"]), (&json!("warning"), &json!("v1")));
        assert_eq!(found[0]["evidence"]["packets"], 20, "{answer:#}");
    }
}

#[test]
fn filtered_answer_explains_the_timeout() {
    let (pair, daemon) = (two_uplinks("0", "10.66.1.1"), Daemon::start());
    // The client asks over one link, the answer comes over the other, and the filter is strict.
    for name in ["all", "v0", "v1"] {
        pair.a.run(&format!("sysctl -qw net.ipv4.conf.{name}.rp_filter=1"));
    }
    pair.b.ip("addr add 10.67.0.1/32 dev lo");
    pair.a.ip("route add 10.67.0.1 via 10.77.0.2 src 10.66.1.1");
    pair.b.ip("route add 10.66.1.1 via 10.88.0.1");
    let to = echo_server(&pair.b, "10.67.0.1");
    let window = daemon.watch("diagnose", json!({"limit": 40}));
    connect_in_vain(&pair.a, to);
    let answer = window.end();
    let found = findings(&answer, "reverse_path_filter", "10.67.0.1");
    assert_eq!(found.len(), 1, "{answer:#}");
    assert_eq!(found[0]["evidence"]["explains"], json!(["connect_timeout"]), "{answer:#}");
    assert!(findings(&answer, "connect_timeout", "10.67.0.1").is_empty(), "{answer:#}");
}

#[test]
fn route_back_is_read_in_the_namespace_of_a_process() {
    let pair = two_uplinks("1", "10.66.2.1");
    pair.b.ip("route add 10.66.2.1 via 10.77.0.1");
    let daemon = daemon_for("trace_drops", &pair.b);
    let window = daemon.watch("trace_drops", json!({"limit": 100}));
    talk(&pair.a, "10.66.2.1", ("10.88.0.2", 162), 3);
    let sample = window.sample();
    let flows = sample["flows"].as_array().unwrap();
    let flow =
        flows.iter().find(|flow| flow["process"]["netns"] == pair.b.inode()).unwrap_or_else(|| panic!("{sample:#}"));
    assert_eq!(flow["route_back"], "via 10.77.0.1 dev v0");
}

/// A client, and routers in a circle, each with the next one as its route to 198.51.100.0/24 and 2001:db8::/32.
fn circle(routers: usize) -> (Netns, Vec<Netns>) {
    let client = Netns::new();
    let routers: Vec<_> = (0..routers).map(|_| Netns::new()).collect();
    run(&format!("ip link add c0 netns {} type veth peer name d0 netns {}", client.name(), routers[0].name()));
    for (netns, device, host) in [(&client, "c0", 2), (&routers[0], "d0", 1)] {
        netns.ip(&format!("addr add 10.60.0.{host}/24 dev {device}"));
        netns.ip(&format!("addr add fd60::{host}/64 dev {device} nodad"));
        netns.ip(&format!("link set {device} up"));
    }
    client.ip("route add default via 10.60.0.1");
    client.ip("-6 route add default via fd60::1");
    for (i, router) in routers.iter().enumerate() {
        let next = &routers[(i + 1) % routers.len()];
        router.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        if routers.len() == 2 && i == 1 {
            continue; // both share one link
        }
        run(&format!("ip link add out{i} netns {} type veth peer name in{i} netns {}", router.name(), next.name()));
        for (netns, device, host) in [(router, format!("out{i}"), 1), (next, format!("in{i}"), 2)] {
            netns.ip(&format!("addr add 10.61.{i}.{host}/24 dev {device}"));
            netns.ip(&format!("addr add fd61:{i}::{host}/64 dev {device} nodad"));
            netns.ip(&format!("link set {device} up"));
        }
    }
    for (i, router) in routers.iter().enumerate() {
        let (link, host) = if routers.len() == 2 { (0, [2, 1][i]) } else { (i, 2) };
        router.ip(&format!("route add 198.51.100.0/24 via 10.61.{link}.{host}"));
        router.ip(&format!("-6 route add 2001:db8::/32 via fd61:{link}::{host}"));
    }
    (client, routers)
}

#[test]
fn two_or_three_routers_in_a_circle_are_a_loop() {
    for routers in [2, 3] {
        let ((client, all), daemon) = (circle(routers), Daemon::start());
        let window = daemon.watch("diagnose", json!({"limit": 40}));
        let packets = if routers == 2 { 6 } else { 200 };
        talk(&client, "0.0.0.0", ("198.51.100.7", 4_433), packets);
        talk(&client, "::", ("2001:db8::7", 4_433), packets);
        for counter in ["IpInHdrErrors", "Ip6InHdrErrors"] {
            let died = |router: &Netns| -> usize {
                router.run(&format!("nstat -asz {counter}")).split_whitespace().nth(2).unwrap().parse().unwrap()
            };
            until("all have died", || (all.iter().map(died).sum::<usize>() >= packets).then_some(()));
        }
        let answer = window.end();
        for address in ["198.51.100.7", "2001:db8::7"] {
            let found = findings(&answer, "routing_loop", address);
            assert_eq!(found.len(), 1, "{routers} {address}: {answer:#}");
            assert_eq!(found[0]["severity"], "warning", "{routers} {address}: {answer:#}");
            assert!(!found[0]["evidence"]["interfaces"].as_array().unwrap().is_empty(), "{answer:#}");
        }
    }
}

#[test]
fn routing_loop_explains_a_failed_connect() {
    let ((client, _routers), daemon) = (circle(3), Daemon::start());
    let window = daemon.watch("diagnose", json!({"limit": 40}));
    let error = connect(&client, SocketAddr::new("198.51.100.9".parse().unwrap(), 443)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::HostUnreachable, "the router where it died says so");
    let answer = window.end();
    let found = findings(&answer, "routing_loop", "198.51.100.9");
    assert_eq!(found.len(), 1, "{answer:#}");
    assert_eq!(found[0]["severity"], "warning", "{answer:#}");
    assert_eq!(found[0]["evidence"]["explains"], json!(["no_route"]), "{answer:#}");
}

/// Probes like traceroute: three per hop, each to another port.
fn trace(from: &Netns, to: &str) {
    let to: IpAddr = to.parse().unwrap();
    from.enter(|| {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        for probe in 0..30u16 {
            let socket = UdpSocket::bind(any).unwrap();
            let hops = u32::from(probe / 3) + 1;
            if to.is_ipv4() {
                socket.set_ttl(hops).unwrap();
            } else {
                rustix::net::sockopt::set_ipv6_unicast_hops(&socket, Some(hops as u8)).unwrap();
            }
            let _ = socket.send_to(b"probe", (to, 33_434 + probe));
        }
    });
}

#[test]
fn traceroute_through_a_router_is_not_a_loop() {
    let (net, daemon) = (Routed::new(), Daemon::start());
    let both = [daemon.watch("trace_drops", json!({"limit": 10_000})), daemon.watch("diagnose", json!({"limit": 40}))];
    trace(&net.a, FAR);
    let [drops, answer] = both.map(Watching::end);
    let died = |row: &&Value| row["owner"]["netns"] == net.router.inode() && row["path"] == "forward";
    let rows: Vec<_> = drops["drops"].as_array().unwrap().iter().filter(died).collect();
    assert_eq!(rows.iter().map(|row| row["count"].as_u64().unwrap()).sum::<u64>(), 3, "{drops:#}");
    assert!(rows.iter().all(|row| row["explanation"].as_str().unwrap().contains("TTL")), "{drops:#}");
    let found = findings(&answer, "routing_loop", FAR);
    assert!(found.iter().all(|finding| finding["severity"] == "info"), "{answer:#}");
}

#[test]
fn bad_header_and_expired_hops_are_separate() {
    let (pair, daemon) = (Pair::new(), Daemon::start());
    let window = daemon.watch("trace_drops", json!({"limit": 10_000}));
    let mut packet = vec![0u8; 28];
    packet[0] = 0x44; // a header of 16 bytes
    (packet[8], packet[9]) = (1, 17);
    packet[12..20].copy_from_slice(&[10, 77, 0, 1, 10, 77, 0, 2]);
    pair.a.enter(|| raw_frame("v0", &packet));
    let answer = window.end();
    let bad = |row: &&Value| row["owner"]["netns"] == pair.a.inode() && row["reason"] == "IP_INHDR"; // the sender's
    let row = answer["drops"].as_array().unwrap().iter().find(bad).unwrap_or_else(|| panic!("{answer:#}"));
    assert!(row["explanation"].as_str().unwrap().contains("Invalid headers"), "{row:#}");
}

/// Sends an IPv4 packet unchanged, to all hosts on the link.
fn raw_frame(device: &str, packet: &[u8]) {
    use std::os::fd::AsRawFd;
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::PACKET,
        rustix::net::SocketType::DGRAM,
        rustix::net::Protocol::from_raw(std::num::NonZeroU32::new(0x0008).unwrap()).into(),
    )
    .unwrap();
    let index = rustix::net::netdevice::name_to_index(&socket, device).unwrap();
    // SAFETY: all zeros are a valid address of this kind.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    (to.sll_family, to.sll_protocol, to.sll_ifindex) = (libc::AF_PACKET as u16, 0x0008, index as i32);
    (to.sll_halen, to.sll_addr) = (6, [255, 255, 255, 255, 255, 255, 0, 0]);
    let length = size_of_val(&to) as libc::socklen_t;
    // SAFETY: both buffers live, and have the given lengths.
    let sent = unsafe {
        libc::sendto(socket.as_raw_fd(), packet.as_ptr().cast(), packet.len(), 0, (&raw const to).cast(), length)
    };
    assert_eq!(sent, packet.len() as isize, "{}", std::io::Error::last_os_error());
}
