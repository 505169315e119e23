//! MPTCP: the working sockets are below the one that a process holds, and have no file.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
};

use rustix::net::{AddressFamily, Protocol, SocketType};
use serde_json::{Value, json};

use crate::harness::*;

/// An MPTCP socket of this namespace; `None` on a kernel without MPTCP.
fn mptcp(netns: &Netns, at: SocketAddr) -> Option<std::os::fd::OwnedFd> {
    let family = if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let protocol = Protocol::from_raw(std::num::NonZero::new(libc::IPPROTO_MPTCP as u32).unwrap());
    netns.enter(|| rustix::net::socket(family, SocketType::STREAM, Some(protocol)).ok())
}

fn listen(netns: &Netns, at: SocketAddr, queue: i32) -> Option<TcpListener> {
    let socket = mptcp(netns, at)?;
    rustix::net::bind(&socket, &at).unwrap();
    rustix::net::listen(&socket, queue).unwrap();
    Some(socket.into())
}

fn dial(netns: &Netns, to: SocketAddr) -> TcpStream {
    let socket = mptcp(netns, to).unwrap();
    netns.enter(|| rustix::net::connect(&socket, &to)).unwrap();
    socket.into()
}

/// Both ends of an MPTCP connection, in `a` and `b`.
struct Connected {
    client: TcpStream,
    server: TcpStream,
    to: SocketAddr,
    _listener: TcpListener,
}

fn connected(pair: &Pair, address: &str) -> Option<Connected> {
    let listener = listen(&pair.b, SocketAddr::new(address.parse().unwrap(), 0), 8)?;
    let to = listener.local_addr().unwrap();
    let client = dial(&pair.a, to);
    let server = listener.accept().unwrap().0;
    Some(Connected { client, server, to, _listener: listener })
}

fn rows<'a>(answer: &'a Value, list: &str, netns: &Netns) -> Vec<&'a Value> {
    answer[list].as_array().unwrap().iter().filter(|row| row["owner"]["netns"] == netns.inode()).collect()
}

fn sum(rows: &[&Value], field: &str) -> u64 {
    rows.iter().map(|row| row[field].as_u64().unwrap_or_else(|| panic!("{field} of {row}"))).sum()
}

/// Every row belongs to this process.
fn assert_ours(rows: &[&Value], answer: &Value) {
    assert!(!rows.is_empty(), "{answer:#}");
    assert!(rows.iter().all(|row| row["owner"]["pid"] == std::process::id()), "{answer:#}");
}

#[test]
fn bytes_of_both_ends_are_counted_with_owner() {
    let pair = Pair::new();
    for address in [B, B6] {
        let Some(mut ends) = connected(&pair, address) else { return };
        let daemon = Daemon::of_sockets(); // it has not seen the opening of the sockets
        for bytes in [300_000, 200_000] {
            let arguments = json!({"group_by": "connection", "protocol": "tcp", "port": ends.to.port(), "limit": 100});
            let window = daemon.watch("top_traffic", arguments);
            std::thread::scope(|scope| {
                scope.spawn(|| ends.client.write_all(&vec![1; bytes]).unwrap());
                ends.server.read_exact(&mut vec![0; bytes]).unwrap();
            });
            until_acknowledged(&ends.client);
            let answer = window.end();
            let (sent, received) = (rows(&answer, "rows", &pair.a), rows(&answer, "rows", &pair.b));
            assert_ours(&[&sent[..], &received[..]].concat(), &answer);
            // MPTCP retransmits unacknowledged data; with one path, on that path.
            let moved = [sum(&sent, "tx_bytes"), sum(&received, "rx_bytes")];
            let expected = bytes as u64..=bytes as u64 * 6 / 5;
            assert!(moved.iter().all(|moved| expected.contains(moved)), "{moved:?} of {bytes}: {answer:#}");
        }
    }
}

#[test]
fn unread_data_is_in_the_receive_queue() {
    let pair = Pair::new();
    let Some(mut ends) = connected(&pair, B) else { return };
    ends.client.write_all(&[1; 50_000]).unwrap();
    until_acknowledged(&ends.client);
    let daemon = Daemon::of_sockets();
    let mut client = Client::connect(&daemon.socket);
    let mut queue = |left: u64| {
        let answer = client.call("snapshot_sockets", json!({"port": ends.to.port(), "limit": 50})).unwrap();
        let (a, b) = (rows(&answer, "sockets", &pair.a), rows(&answer, "sockets", &pair.b));
        assert_ours(&[&a[..], &b[..]].concat(), &answer);
        assert_eq!((sum(&b, "receive_queue_bytes"), sum(&b, "rx_bytes")), (left, 50_000), "{answer:#}");
        assert_eq!(sum(&a, "send_queue_bytes"), 0, "{answer:#}");
    };
    queue(50_000);
    ends.server.read_exact(&mut [0; 20_000]).unwrap();
    queue(30_000);
}

#[test]
fn blocked_data_is_in_the_send_queue() {
    let pair = Pair::new();
    let Some(mut ends) = connected(&pair, B) else { return };
    ends.client.set_nonblocking(true).unwrap();
    let daemon = Daemon::of_sockets();
    let mut client = Client::connect(&daemon.socket);
    let mut sent = 0u64;
    until("nothing moves", || {
        // A full socket of MPTCP may have room again soon.
        while let Ok(bytes) = ends.client.write(&[1; 65_536]) {
            sent += bytes as u64;
        }
        let answer = client.call("snapshot_sockets", json!({"port": ends.to.port(), "limit": 50})).unwrap();
        let queue = |netns, field| sum(&rows(&answer, "sockets", netns), field);
        let queues = (queue(&pair.a, "send_queue_bytes"), queue(&pair.b, "receive_queue_bytes"));
        (queues.0 > 0 && queues.1 > 0 && queues.0 + queues.1 == sent).then_some(())
    });
}

#[test]
fn full_accept_queue_has_an_owner() {
    let pair = Pair::new();
    let at = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 7_301);
    let Some(_listener) = listen(&pair.b, at, 2) else { return };
    let daemon = Daemon::with(&["snapshot_sockets", "top_traffic", "trace_drops"]);
    let window = daemon.watch("trace_drops", json!({"port": at.port()}));
    // The clients use plain TCP.
    let target = SocketAddr::new(B.parse().unwrap(), at.port());
    let mut kept: Vec<_> = (0..3).map(|_| connect(&pair.a, target).unwrap()).collect();
    kept.extend(pair.a.enter(|| {
        let knock = |_| TcpStream::connect_timeout(&target, std::time::Duration::from_millis(200)).ok();
        (0..3).filter_map(knock).collect::<Vec<_>>()
    }));
    let answer = window.end();
    let drops = rows(&answer, "listeners", &pair.b);
    assert_ours(&drops, &answer);
    assert_eq!((drops.len(), &drops[0]["accept_queue"], &drops[0]["accept_queue_max"]), (1, &json!(3), &json!(2)));
    assert!(sum(&drops, "dropped") >= 1, "{answer:#}");
    let answer = Client::connect(&daemon.socket).call("snapshot_sockets", json!({"port": at.port()})).unwrap();
    let listeners = rows(&answer, "listeners", &pair.b);
    assert_ours(&listeners, &answer);
    assert_eq!((listeners.len(), &listeners[0]["accept_queue"]), (1, &json!(3)), "{answer:#}");
    // Connections that wait there belong to the listener.
    let arguments = json!({"group_by": "connection", "port": at.port(), "limit": 50});
    let window = daemon.watch("top_traffic", arguments);
    kept[0].write_all(&[1; 700]).unwrap();
    until_acknowledged(&kept[0]);
    let answer = window.end();
    let waiting = rows(&answer, "rows", &pair.b);
    assert_ours(&waiting, &answer);
    assert_eq!(sum(&waiting, "rx_bytes"), 700, "{answer:#}");
}

/// The kernel opens the second path in its own thread.
#[test]
fn second_subflow_is_credited_to_the_connecting_process() {
    let pair = Pair::new();
    pair.a.ip("addr add 10.77.0.11/24 dev v0");
    if mptcp(&pair.a, SocketAddr::new(A.parse().unwrap(), 0)).is_none() {
        return;
    }
    for netns in [&pair.a, &pair.b] {
        netns.ip("mptcp limits set subflows 2 add_addr_accepted 2");
    }
    pair.a.ip("mptcp endpoint add 10.77.0.11 dev v0 subflow");
    let daemon = Daemon::of_sockets();
    let window = daemon.watch("trace_connections", json!({"limit": 100}));
    let mut ends = connected(&pair, B).unwrap();
    let port = ends.to.port();
    ends.client.write_all(&[1; 1_000]).unwrap();
    ends.server.read_exact(&mut [0; 1_000]).unwrap();
    ends.server.write_all(&[1; 1]).unwrap(); // the first acknowledgment of data lets other paths begin
    ends.client.read_exact(&mut [0; 1]).unwrap();
    until("there are two paths", || {
        let paths = pair.a.run(&format!("ss -Htn state established dport = :{port}"));
        (paths.lines().count() == 2).then_some(())
    });
    let answer = window.end();
    for netns in [&pair.a, &pair.b] {
        let paths = rows(&answer, "connections", netns);
        assert_ours(&paths, &answer);
        assert_eq!(paths.len(), 2, "{answer:#}");
    }
}

#[test]
fn round_trips_are_profiled_with_their_owner() {
    let pair = Pair::new();
    let Some(mut ends) = connected(&pair, B) else { return };
    let daemon = Daemon::of_sockets();
    let window = daemon.watch("profile_tcp", json!({"remote": B, "port": ends.to.port()}));
    for _ in 0..10 {
        ends.client.write_all(&[1; 100]).unwrap();
        ends.server.read_exact(&mut [0; 100]).unwrap();
        until_acknowledged(&ends.client);
    }
    let answer = window.end();
    let remotes = answer["remotes"].as_array().unwrap();
    let remote = remotes.iter().find(|row| row["remote"]["address"] == B).unwrap_or_else(|| panic!("{answer:#}"));
    assert_eq!(remote["owners"][0]["pid"], std::process::id(), "{answer:#}");
    assert!(remote["rtt_us"]["samples"].as_u64().unwrap() >= 5, "{answer:#}");
}

/// Some kernels do not count the IPv6 paths of MPTCP in /proc/net/sockstat6.
#[test]
fn socket_without_a_process_is_found_beside_a_listener() {
    let pair = Pair::new();
    let at = SocketAddr::new(B6.parse().unwrap(), 0);
    let Some(_listener) = listen(&pair.b, at, 8) else { return };
    let daemon = daemon_for("snapshot_sockets", &pair.b);
    let mut client = Client::connect(&daemon.socket);
    let other = pair.b.enter(|| TcpListener::bind(at).unwrap());
    let ends = (connect(&pair.b, other.local_addr().unwrap()).unwrap(), other.accept().unwrap());
    drop((other, ends));
    until("it is found", || {
        client.call("snapshot_sockets", json!({})).unwrap()["states"]["time_wait"].as_u64().filter(|count| *count == 1)
    });
}
