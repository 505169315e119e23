//! `top_traffic`: bytes against the sent ones and the interface's counters, owners against the sending processes.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    path::PathBuf,
    thread,
};

use serde_json::{Value, json};

use crate::{harness::*, processes::*};

mod floods;
mod remotes;

const TOOL: &str = "top_traffic";

/// Runs `traffic` within a window, and returns the answer. Rows, `other` and `total` must add up.
fn measure(daemon: &Daemon, arguments: Value, traffic: impl FnOnce()) -> Value {
    let _alone = without_scans();
    measure_amid_all(daemon, arguments, traffic)
}

fn measure_amid_all(daemon: &Daemon, arguments: Value, traffic: impl FnOnce()) -> Value {
    let window = daemon.watch(TOOL, arguments);
    traffic();
    let answer = window.end();
    adds_up(&answer);
    answer
}

fn adds_up(answer: &Value) {
    for bytes in ["rx_bytes", "tx_bytes"] {
        let rows: u64 = answer["rows"].as_array().unwrap().iter().map(|row| row[bytes].as_u64().unwrap()).sum();
        assert_eq!(rows + answer["other"][bytes].as_u64().unwrap(), answer["total"][bytes], "{bytes}: {answer}");
    }
}

/// The rows of a network namespace.
fn rows<'a>(answer: &'a Value, netns: &Netns) -> Vec<&'a Value> {
    answer["rows"].as_array().unwrap().iter().filter(|row| row["owner"]["netns"] == netns.inode()).collect()
}

/// The row of a socket, by its local port.
fn socket<'a>(answer: &'a Value, netns: &Netns, port: u16) -> &'a Value {
    let found = rows(answer, netns).into_iter().find(|row| row["local"]["port"] == port);
    found.unwrap_or_else(|| panic!("port {port} in {answer}"))
}

fn moved(row: &Value) -> (u64, u64) {
    (row["rx_bytes"].as_u64().unwrap(), row["tx_bytes"].as_u64().unwrap())
}

/// Both ends of a TCP connection between two namespaces.
fn connected(from: &Netns, to: &Netns, address: &str) -> (TcpStream, TcpStream) {
    let listener = listen(to, address);
    let client = connect(from, listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

/// Sends this number of bytes, and returns when they have arrived.
fn transfer(from: &TcpStream, to: &TcpStream, bytes: usize) {
    thread::scope(|scope| {
        scope.spawn(|| { from }.write_all(&vec![0; bytes]).unwrap());
        let mut left = bytes;
        let mut buffer = vec![0; 65_536];
        while left > 0 {
            let room = left.min(buffer.len());
            let read = { to }.read(&mut buffer[..room]).unwrap();
            assert!(read > 0, "the sender ended with {left} bytes to come");
            left -= read;
        }
    });
}

fn port(stream: &TcpStream) -> u16 {
    stream.local_addr().unwrap().port()
}

const CONNECTIONS: fn() -> Value = || json!({"group_by": "connection", "limit": 10_000});

#[test]
fn shares_agree_with_interface_counters() {
    let pair = Pair::new();
    let daemon = Daemon::of("top_traffic");
    let flows: Vec<_> = [(B, 10), (B, 3), (B6, 1)].map(|(to, ratio)| (connected(&pair.a, &pair.b, to), ratio)).into();
    let sent_by = |netns: &Netns| {
        let link: Value = serde_json::from_str(&netns.ip("-s -j link show dev v0")).unwrap();
        link[0]["stats64"]["tx"]["bytes"].as_u64().unwrap()
    };
    let mut on_wire = 0;
    let answer = measure(&daemon, CONNECTIONS(), || {
        let before = sent_by(&pair.a);
        flows.iter().for_each(|((from, to), ratio)| transfer(from, to, ratio * 1_000_000));
        on_wire = sent_by(&pair.a) - before;
    });
    for ((from, to), ratio) in &flows {
        let bytes = ratio * 1_000_000;
        assert_eq!(moved(socket(&answer, &pair.a, port(from))), (0, bytes as u64), "{answer}");
        assert_eq!(moved(socket(&answer, &pair.b, port(to))), (bytes as u64, 0), "{answer}");
    }
    let sent: u64 = rows(&answer, &pair.a).iter().map(|row| moved(row).1).sum();
    // The interface also counts headers: at worst 66 bytes per packet of at most 1,448 bytes.
    assert!(on_wire >= sent && on_wire as f64 <= sent as f64 * (1.01 + 86.0 / 1_428.0), "{on_wire} {sent}");
}

// In guests.
#[test]
fn old_and_closing_sockets_are_counted_once() {
    let pair = Pair::new();
    let daemon = Daemon::of("top_traffic");
    let stays = connected(&pair.a, &pair.b, B);
    let closes = connected(&pair.a, &pair.b, B);
    let reset = connected(&pair.a, &pair.b, B);
    for (from, to) in [&stays, &closes, &reset] {
        transfer(from, to, 500_000); // before the window: not counted
    }
    let ports = [&stays, &closes, &reset].map(|(from, to)| (port(from), port(to)));
    let mut short = (0, 0);
    let answer = measure(&daemon, CONNECTIONS(), || {
        transfer(&stays.0, &stays.1, 1_000);
        transfer(&closes.0, &closes.1, 2_000);
        drop(closes);
        transfer(&reset.0, &reset.1, 3_000);
        rustix::net::sockopt::set_socket_linger(&reset.0, Some(std::time::Duration::ZERO)).unwrap();
        drop(reset.0); // the reset closes the other end, which is still held
        let (from, to) = connected(&pair.a, &pair.b, B);
        transfer(&from, &to, 4_000);
        short = (port(&from), port(&to));
    });
    let me = std::process::id();
    for ((from, to), bytes) in ports.into_iter().chain([short]).zip([1_000, 2_000, 3_000, 4_000]) {
        let (a, b) = (socket(&answer, &pair.a, from), socket(&answer, &pair.b, to));
        assert_eq!(moved(a), (0, bytes), "{a}");
        assert_eq!(moved(b), (bytes, 0), "{b}");
        assert_eq!((&a["owner"]["pid"], &b["owner"]["pid"]), (&json!(me), &json!(me)), "{a} {b}");
    }
    assert_eq!(rows(&answer, &pair.a).len(), 4, "{answer}");
    assert_eq!(rows(&answer, &pair.b).len(), 4, "{answer}");
}

#[test]
fn unaccepted_and_orphaned_sockets_are_counted() {
    let pair = Pair::new();
    let daemon = Daemon::of("top_traffic");
    let listener = listen(&pair.b, B);
    let mut kept = Vec::new();
    let answer = measure(&daemon, CONNECTIONS(), || {
        // The client closes, and the server has an unaccepted connection with unread bytes.
        let mut stream = connect(&pair.a, listener.local_addr().unwrap()).unwrap();
        stream.write_all(&[0; 5_000]).unwrap();
        until_acknowledged(&stream);
        kept.push(port(&stream));
    });
    let (sender, receiver) = (socket(&answer, &pair.a, kept[0]), rows(&answer, &pair.b)[0]);
    assert_eq!((moved(sender), moved(receiver)), ((0, 5_000), (5_000, 0)), "{answer}");
    assert_eq!(receiver["owner"]["pid"], std::process::id(), "the listener's process: {answer}");
}

// In guests, since Linux 6.3.
#[test]
fn udp_is_counted_over_every_family() {
    let pair = Pair::new();
    let daemon = Daemon::of("top_traffic");
    let bind = |netns: &Netns, address: &str| {
        let ip: IpAddr = address.parse().unwrap();
        netns.enter(|| UdpSocket::bind((ip, 0)).unwrap())
    };
    let mut ports = Vec::new();
    let answer = measure(&daemon, json!({"group_by": "connection", "limit": 10_000, "protocol": "udp"}), || {
        for (from, to) in [(A, B), (A6, B6)] {
            for connect in [true, false] {
                let (sender, receiver) = (bind(&pair.a, from), bind(&pair.b, to));
                let at = receiver.local_addr().unwrap();
                if connect {
                    sender.connect(at).unwrap();
                    (0..10).for_each(|_| assert_eq!(sender.send(&[0; 700]).unwrap(), 700));
                } else {
                    (0..10).for_each(|_| assert_eq!(sender.send_to(&[0; 700], at).unwrap(), 700));
                }
                receiver.peek(&mut [0; 1_000]).unwrap(); // peeked twice, received once
                (0..10).for_each(|_| assert_eq!(receiver.recv(&mut [0; 1_000]).unwrap(), 700));
                ports.push((sender.local_addr().unwrap().port(), at.port()));
            } // closed: their bytes remain
        }
        // IPv4 over an IPv6 socket, and loopback.
        let (sender, receiver) = (bind(&pair.a, "::"), bind(&pair.a, "127.0.0.1"));
        let mapped = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
        let to = SocketAddr::new(mapped.into(), receiver.local_addr().unwrap().port());
        sender.send_to(&[0; 900], to).unwrap();
        receiver.recv(&mut [0; 1_000]).unwrap();
    });
    for (from, to) in ports {
        let (a, b) = (socket(&answer, &pair.a, from), socket(&answer, &pair.b, to));
        assert_eq!((moved(a), moved(b)), ((0, 7_000), (7_000, 0)), "{a} {b}");
        assert_eq!(a["remote"]["port"], to, "{a}");
        assert_eq!((&a["owner"]["pid"], &a["protocol"]), (&json!(std::process::id()), &json!("udp")), "{a}");
    }
    let loopback: Vec<_> = rows(&answer, &pair.a).iter().map(|row| moved(row)).filter(|m| m.0 + m.1 == 900).collect();
    assert_eq!(loopback.len(), 2, "{answer}");
}

#[test]
fn error_queue_data_is_not_received() {
    let (pair, daemon) = (Pair::new(), Daemon::of("top_traffic"));
    let sender = pair.a.enter(|| UdpSocket::bind((A, 0)).unwrap());
    let (fd, on) = (sender.as_raw_fd(), std::ptr::from_ref(&1).cast());
    // SAFETY: the option's value is an int, and is only read.
    assert_eq!(unsafe { libc::setsockopt(fd, libc::IPPROTO_IP, libc::IP_RECVERR, on, 4) }, 0);
    let answer = measure(&daemon, json!({"group_by": "connection", "limit": 10_000, "protocol": "udp"}), || {
        sender.send_to(&[0; 300], (B, 9)).unwrap();
        let (mut buffer, flags) = ([0u8; 1_000], libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT);
        // SAFETY: it writes at most the buffer's length.
        let mut returned = || unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), flags) };
        until("the port is unreachable", || (returned() == 300).then_some(()));
    });
    let port = sender.local_addr().unwrap().port();
    assert_eq!(moved(socket(&answer, &pair.a, port)), (0, 300), "{answer}");
}

#[test]
fn multicast_is_counted_per_receiver() {
    let pair = Pair::new();
    let daemon = Daemon::of("top_traffic");
    let group = Ipv4Addr::new(239, 1, 2, 3);
    let receiver = pair.b.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 5_353)).unwrap());
    pair.b.enter(|| receiver.join_multicast_v4(&group, &B.parse().unwrap()).unwrap());
    let sender = pair.a.enter(|| UdpSocket::bind((A, 0)).unwrap());
    pair.a.ip("route add 239.0.0.0/8 dev v0");
    let answer = measure(&daemon, json!({"group_by": "port", "protocol": "udp", "limit": 10_000}), || {
        sender.send_to(&[0; 333], (group, 5_353)).unwrap();
        receiver.recv(&mut [0; 1_000]).unwrap();
    });
    let row = answer["rows"].as_array().unwrap().iter().find(|row| row["port"] == 5_353).unwrap();
    assert!(moved(row).0 >= 333, "{answer}");
}

#[test]
fn same_port_in_two_namespaces_has_two_owners() {
    let pair = Pair::new();
    let daemon = Daemon::of("top_traffic");
    let mut senders = Vec::new();
    for (netns, tcp, udp) in [(&pair.a, 40_000, 1_000), (&pair.b, 80_000, 2_000)] {
        let mut server = Process::in_netns(netns, "tcp-listen 127.0.0.1 5997");
        assert_eq!(server.hear(), "listening");
        let mut sender = Process::in_netns(netns, &format!("tcp-send 127.0.0.1 5997 {tcp}"));
        assert_eq!(sender.hear(), "connected");
        let mut datagram = Process::in_netns(netns, &format!("udp-send 127.0.0.1 5997 {udp}"));
        assert_eq!(datagram.hear(), "ready");
        senders.push((netns, server, sender, datagram, tcp, udp));
    }
    let pids: Vec<_> =
        senders.iter().map(|(_, server, sender, datagram, ..)| [server, sender, datagram].map(|p| p.pid())).collect();
    let answer = measure(&daemon, json!({"limit": 10_000}), || {
        for (_, server, sender, mut datagram, tcp, _) in senders.drain(..).map(|s| (s.0, s.1, s.2, s.3, s.4, s.5)) {
            let (mut server, mut sender) = (server, sender);
            sender.go();
            assert_eq!(sender.hear(), "sent");
            sender.go();
            sender.join(); // it has ended, and is still named
            assert_eq!(server.hear(), tcp.to_string());
            datagram.go();
            assert_eq!(datagram.hear(), "sent");
        }
    });
    let of = |pid: u32| {
        let row = answer["rows"].as_array().unwrap().iter().find(|row| row["owner"]["pid"] == pid);
        row.unwrap_or_else(|| panic!("{pid} in {answer}"))
    };
    for ([server, sender, datagram], (netns, tcp, udp)) in
        pids.into_iter().zip([(&pair.a, 40_000, 1_000), (&pair.b, 80_000, 2_000)])
    {
        assert_eq!(moved(of(sender)), (0, tcp), "{answer}");
        assert_eq!(moved(of(datagram)), (0, udp), "{answer}");
        assert_eq!(moved(of(server)), (tcp, 0), "{answer}");
        assert_eq!(of(server)["owner"]["netns"], netns.inode(), "{answer}");
    }
}

#[test]
fn overlapping_windows_are_independent() {
    let pair = Pair::new();
    let daemon = Daemon::of("top_traffic");
    let (from, to) = connected(&pair.a, &pair.b, B);
    let (sender, receiver) =
        (pair.a.enter(|| UdpSocket::bind((A, 0)).unwrap()), pair.b.enter(|| UdpSocket::bind((B, 0)).unwrap()));
    let move_bytes = |bytes: usize| {
        transfer(&from, &to, bytes);
        sender.send_to(&vec![0; bytes], receiver.local_addr().unwrap()).unwrap();
        receiver.recv(&mut vec![0; bytes]).unwrap();
    };
    let long = daemon.watch(TOOL, CONNECTIONS());
    move_bytes(1_000);
    let short = daemon.watch(TOOL, CONNECTIONS());
    move_bytes(200);
    let short = short.end();
    move_bytes(30);
    let long = long.end();
    for (answer, bytes) in [(&short, 200), (&long, 1_230)] {
        adds_up(answer);
        for (netns, port, expected) in [
            (&pair.a, port(&from), (0, bytes)),
            (&pair.b, port(&to), (bytes, 0)),
            (&pair.a, sender.local_addr().unwrap().port(), (0, bytes)),
            (&pair.b, receiver.local_addr().unwrap().port(), (bytes, 0)),
        ] {
            assert_eq!(moved(socket(answer, netns, port)), expected, "{answer}");
        }
    }
    Client::connect(&daemon.socket).until_detached(TOOL);
}

#[test]
fn groups_are_named() {
    let pair = Pair::new();
    let daemon = Daemon::of("top_traffic");
    // Other tests also have A and B.
    const REMOTE: &str = "10.78.0.2";
    pair.a.ip("addr add 10.78.0.1/24 dev v0");
    pair.b.ip(&format!("addr add {REMOTE}/24 dev v0"));
    let (from, to) = connected(&pair.a, &pair.b, REMOTE);
    let find = |answer: &Value, matches: &dyn Fn(&Value) -> bool| {
        answer["rows"].as_array().unwrap().iter().find(|row| matches(row)).unwrap_or_else(|| panic!("{answer}")).clone()
    };
    let send = || transfer(&from, &to, 10_000);
    let answer = measure(&daemon, json!({"group_by": "netns", "limit": 10_000}), send);
    let row = find(&answer, &|row| row["netns_name"] == pair.a.name());
    assert_eq!((moved(&row), &row["owner"]["netns"]), ((0, 10_000), &json!(pair.a.inode())), "{answer}");
    let answer = measure(&daemon, json!({"group_by": "remote", "limit": 10_000}), send);
    let row = find(&answer, &|row| row["remote"]["address"] == REMOTE && row["owner"]["netns"] == pair.a.inode());
    assert_eq!(row["remote"]["port"], port(&to), "{answer}");
    let answer = measure(&daemon, json!({"group_by": "port", "limit": 10_000}), send);
    let service = port(&from).min(port(&to));
    let row = find(&answer, &|row| row["port"] == service);
    assert_eq!(moved(&row), (10_000, 10_000), "both ends: {answer}");
}

/// A cgroup of the test, removed when dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(name: &str) -> Cgroup {
        let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
        let root =
            roots.into_iter().find(|root| root.join("cgroup.controllers").exists()).expect("cgroup v2 is mounted");
        let path = root.join(name);
        fs::create_dir(&path).unwrap();
        Cgroup(path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn units_and_containers_come_from_the_cgroup() {
    let pair = Pair::new();
    let daemon = Daemon::of("top_traffic");
    let receiver = pair.b.enter(|| UdpSocket::bind((B, 0)).unwrap());
    let port = receiver.local_addr().unwrap().port();
    let id = format!("{:064x}", u64::from(std::process::id()));
    let unit = format!("docker-{id}.scope");
    let cgroup = Cgroup::new(&unit);
    // The socket belongs to the cgroup of its creation.
    let role = format!("udp-send {B} {port} 4321");
    for (group_by, name) in [("unit", &unit), ("container", &id)] {
        let mut sender = Process::in_cgroup(&pair.a, &cgroup.0, &role);
        assert_eq!(sender.hear(), "ready");
        let answer = measure(&daemon, json!({"group_by": group_by, "limit": 10_000}), || {
            sender.go();
            assert_eq!(sender.hear(), "sent");
        });
        let row = answer["rows"].as_array().unwrap().iter().find(|row| row["owner"][group_by] == **name);
        assert_eq!(row.map(moved), Some((0, 4_321)), "{answer}");
        sender.go();
        sender.join();
    }
}
