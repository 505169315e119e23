//! UDP sockets that talk to several remotes: each remote has its own bytes.

use std::collections::BTreeMap;

use super::*;

/// Bytes sent to and received from each of these remotes, in one network namespace.
fn by_remote(answer: &Value, netns: &Netns) -> BTreeMap<String, (u64, u64)> {
    let of = |row: &&Value| (row["remote"]["address"].as_str().unwrap_or("none").to_owned(), moved(row));
    rows(answer, netns).iter().map(of).collect()
}

fn question(group_by: &str) -> Value {
    json!({"protocol": "udp", "group_by": group_by, "limit": 10_000})
}

/// A namespace with unique addresses on loopback: rows by remote cover the whole host.
fn with_addresses(prefix: &str) -> Netns {
    let netns = Netns::new();
    (1..=4).for_each(|i| drop(netns.ip(&format!("addr add {prefix}{i} dev lo"))));
    netns
}

fn sum(bytes: [(&str, (u64, u64)); 3]) -> BTreeMap<String, (u64, u64)> {
    bytes.into_iter().map(|(remote, moved)| (remote.to_owned(), moved)).collect()
}

// In guests, since Linux 6.3.
#[test]
fn udp_sender_has_a_row_per_remote() {
    for (prefix, any) in [("10.71.0.", "0.0.0.0"), ("fd71::", "::")] {
        let (netns, daemon) = (with_addresses(prefix), Daemon::of("top_traffic"));
        for closes in [false, true] {
            let mut kept = None;
            let answer = measure(&daemon, question("remote"), || {
                let socket = netns.enter(|| UdpSocket::bind((any.parse::<IpAddr>().unwrap(), 0)).unwrap());
                for round in 0..30 {
                    let (host, bytes) = [(1, 100), (2, 50), (3, 10)][round % 3];
                    let to = SocketAddr::new(format!("{prefix}{host}").parse().unwrap(), 9);
                    socket.send_to(&vec![0; bytes], to).unwrap();
                }
                kept = Some(socket).filter(|_| !closes);
            });
            let [a, b, c] = [1, 2, 3].map(|host| format!("{prefix}{host}"));
            let expected = sum([(&a, (0, 1_000)), (&b, (0, 500)), (&c, (0, 100))]);
            assert_eq!(by_remote(&answer, &netns), expected, "closes: {closes}: {answer:#}");
        }
    }
}

#[test]
fn connected_udp_socket_may_send_and_reconnect() {
    let (netns, daemon) = (with_addresses("10.72.0."), Daemon::of("top_traffic"));
    let socket = netns.enter(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    let to = |host: u8| SocketAddr::from(([10, 72, 0, host], 9));
    let _receivers = [1, 2, 3].map(|host| netns.enter(|| UdpSocket::bind(to(host)).unwrap()));
    let traffic = || {
        socket.connect(to(1)).unwrap();
        socket.send(&[0; 100]).unwrap();
        socket.send_to(&[0; 30], to(2)).unwrap();
        socket.connect(to(3)).unwrap();
        socket.send(&[0; 7]).unwrap();
    };
    let answer = measure(&daemon, question("remote"), traffic);
    let expected = sum([("10.72.0.1", (0, 100)), ("10.72.0.2", (0, 30)), ("10.72.0.3", (0, 7))]);
    assert_eq!(by_remote(&answer, &netns), expected, "{answer:#}");
    // It is still one socket, and a row with several remotes names none.
    let answer = measure(&daemon, question("connection"), traffic);
    let row = socket_row(&answer, &netns, &socket);
    assert_eq!((moved(row), &row["connections"], row.get("remote")), ((0, 137), &json!(1), None), "{answer:#}");
}

fn socket_row<'a>(answer: &'a Value, netns: &Netns, socket: &UdpSocket) -> &'a Value {
    super::socket(answer, netns, socket.local_addr().unwrap().port())
}

// In guests, since Linux 6.3.
#[test]
fn udp_server_has_a_row_per_sender() {
    let (netns, daemon) = (with_addresses("10.73.0."), Daemon::of("top_traffic"));
    let server = netns.enter(|| UdpSocket::bind("10.73.0.4:0").unwrap());
    let to = server.local_addr().unwrap();
    let clients =
        [1u8, 2, 3].map(|host| netns.enter(|| UdpSocket::bind(SocketAddr::from(([10, 73, 0, host], 0))).unwrap()));
    let answer = measure(&daemon, question("remote"), || {
        for round in 1..=10 {
            for (client, times) in clients.iter().zip(1..) {
                client.send_to(&vec![0; round * times], to).unwrap();
                let (bytes, from) = server.recv_from(&mut [0; 1_000]).unwrap();
                server.send_to(&vec![0; bytes * 2], from).unwrap();
                client.recv_from(&mut [0; 1_000]).unwrap();
            }
        }
    });
    let found = by_remote(&answer, &netns);
    for (host, bytes) in [(1, 55), (2, 110), (3, 165)] {
        assert_eq!(found[&format!("10.73.0.{host}")], (bytes, bytes * 2), "{answer:#}");
    }
    assert_eq!(found["10.73.0.4"], (660, 330), "{answer:#}");
}

#[test]
fn threads_sharing_a_socket_keep_remotes_separate() {
    let (netns, daemon) = (with_addresses("10.74.0."), Daemon::of("top_traffic"));
    let socket = netns.enter(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    let answer = measure(&daemon, question("remote"), || {
        thread::scope(|scope| {
            for host in 1..=3u8 {
                let socket = &socket;
                scope.spawn(move || {
                    let bytes = vec![0; 10 * usize::from(host)];
                    (0..2_000)
                        .for_each(|_| _ = socket.send_to(&bytes, SocketAddr::from(([10, 74, 0, host], 9))).unwrap());
                });
            }
        });
    });
    let found = by_remote(&answer, &netns);
    // A thread interrupted on its way may lose its note, and its datagram the remote's name; no datagram gets a wrong
    // one.
    let unnamed = found.get("none").copied().unwrap_or_default().1;
    for host in 1..=3 {
        let (sent, named) = (20_000 * host, found[&format!("10.74.0.{host}")].1);
        assert!(named <= sent && named + unnamed >= sent && unnamed < 3_000, "{host}: {answer:#}");
    }
}

#[test]
fn socket_with_many_remotes_leaves_room_for_others() {
    const REMOTES: u32 = 6_000;
    let _flooding = scanning();
    let netns = Netns::new();
    netns.ip("addr add 10.75.0.1/16 dev lo");
    let daemon = Daemon::of("top_traffic");
    let socket = netns.enter(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    let answer = measure_amid_all(&daemon, question("remote"), || {
        for host in 1..=REMOTES {
            let address = std::net::Ipv4Addr::from(u32::from_be_bytes([10, 75, 0, 0]) + host);
            socket.send_to(&[0; 10], (address, 9)).unwrap();
        }
    });
    let found = by_remote(&answer, &netns);
    assert_eq!(found.len(), 4_097, "{}", answer["measured"]);
    assert_eq!(found["none"].1, u64::from(REMOTES - 4_096) * 10);
    assert_eq!(found.values().map(|moved| moved.1).sum::<u64>(), u64::from(REMOTES) * 10);
    assert!(answer["measured"]["limits"].to_string().contains("udp_remotes_merged"), "{}", answer["measured"]);
    // The next window counts the same number again.
    let answer = measure_amid_all(&daemon, question("remote"), || {
        socket.send_to(&[0; 10], "10.75.99.1:9").unwrap();
    });
    assert_eq!(by_remote(&answer, &netns), BTreeMap::from([("10.75.99.1".to_owned(), (0, 10))]), "{answer:#}");
}

// In guests, since Linux 6.3.
#[test]
fn receiver_without_source_address_is_in_limits() {
    let (netns, daemon) = (with_addresses("10.75.0."), Daemon::of("top_traffic"));
    let receiver = netns.enter(|| UdpSocket::bind("10.75.0.2:0").unwrap());
    let sender = netns.enter(|| UdpSocket::bind("10.75.0.1:0").unwrap());
    let to = receiver.local_addr().unwrap();
    for (asks, expected) in [(false, Some(1)), (true, None)] {
        let asked = json!({"protocol": "udp", "group_by": "remote", "port": to.port(), "limit": 10_000});
        let answer = measure(&daemon, asked, || {
            sender.send_to(&[0; 100], to).unwrap();
            match asks {
                true => drop(receiver.recv_from(&mut [0; 200]).unwrap()),
                false => drop(receiver.recv(&mut [0; 200]).unwrap()),
            }
        });
        let limits = answer["measured"]["limits"].as_array().unwrap();
        let limit = limits.iter().find(|limit| limit["code"] == "udp_remotes_unknown");
        assert_eq!(limit.map(|limit| limit["count"].as_u64().unwrap()), expected, "{answer:#}");
    }
}

#[test]
fn unit_rows_state_the_cgroup_v1_limit() {
    let daemon = Daemon::of("top_traffic");
    let mut client = Client::connect(&daemon.socket);
    let v1 = !std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    for (group_by, expected) in [("unit", v1), ("container", v1), ("process", false)] {
        let answer = client.call("top_traffic", json!({"group_by": group_by, "duration_ms": 100})).unwrap();
        let limits = answer["measured"]["limits"].as_array().unwrap();
        let found = limits.iter().any(|limit| limit["code"] == "cgroup_v1_not_seen");
        assert_eq!(found, expected, "{group_by}: {answer:#}");
    }
}
