//! Sockets without a process' file: those that it uses by a number of its io_uring (registered files and direct
//! descriptors), and the kernel's own.

use std::{
    io::{Read, Write},
    net::{TcpStream, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
};

use io_uring::{IoUring, opcode, squeue, types};
use serde_json::{Value, json};

use crate::harness::*;

/// A ring that is the only holder of these sockets.
fn ring_of(sockets: Vec<OwnedFd>) -> IoUring {
    let ring = IoUring::new(8).unwrap();
    let numbers: Vec<_> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
    ring.submitter().register_files(&numbers).unwrap();
    ring
}

/// Runs the operation and waits for it.
fn perform(ring: &mut IoUring, operation: &squeue::Entry) -> i32 {
    // SAFETY: the operation's pointers refer to the caller, which waits here for its end.
    unsafe { ring.submission().push(operation).unwrap() };
    ring.submit_and_wait(1).unwrap();
    ring.completion().next().unwrap().result()
}

fn send(ring: &mut IoUring, slot: u32, bytes: usize) {
    let data = vec![1; bytes];
    let operation = opcode::Send::new(types::Fixed(slot), data.as_ptr(), bytes as u32).build();
    assert_eq!(perform(ring, &operation), bytes as i32);
}

fn receive(ring: &mut IoUring, slot: u32, bytes: usize) {
    let mut room = vec![0; bytes];
    let operation = opcode::Recv::new(types::Fixed(slot), room.as_mut_ptr(), bytes as u32);
    let operation = operation.flags(libc::MSG_WAITALL).build();
    assert_eq!(perform(ring, &operation), bytes as i32);
}

/// A connection from `a` to `b`.
fn ends(pair: &Pair, address: &str) -> (TcpStream, TcpStream) {
    let listener = listen(&pair.b, address);
    let client = connect(&pair.a, listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

fn rows<'a>(answer: &'a Value, list: &str, netns: &Netns) -> Vec<&'a Value> {
    answer[list].as_array().unwrap().iter().filter(|row| row["owner"]["netns"] == netns.inode()).collect()
}

/// The only row of a list in this namespace, which belongs to this test.
fn row<'a>(answer: &'a Value, list: &str, netns: &Netns) -> &'a Value {
    let rows = rows(answer, list, netns);
    assert_eq!(rows.len(), 1, "{answer:#}");
    assert_eq!(rows[0]["owner"]["pid"], std::process::id(), "{answer:#}");
    rows[0]
}

// In guests, since Linux 5.19.
#[test]
fn registered_io_uring_socket_has_owner_bytes_and_queues() {
    let pair = Pair::new();
    for address in [B, B6] {
        let (mut client, server) = ends(&pair, address);
        let port = client.peer_addr().unwrap().port();
        let mut ring = ring_of(vec![server.into()]);
        let daemon = Daemon::of_sockets(); // it has not seen the opening of the sockets
        let mut asking = Client::connect(&daemon.socket);
        for bytes in [20_000, 10_000] {
            let arguments = json!({"group_by": "connection", "port": port, "limit": 100});
            let window = daemon.watch("top_traffic", arguments);
            client.write_all(&vec![1; bytes]).unwrap();
            until_acknowledged(&client);
            send(&mut ring, 0, 2 * bytes);
            client.read_exact(&mut vec![0; 2 * bytes]).unwrap();
            let answer = window.end();
            let moved = row(&answer, "rows", &pair.b);
            assert_eq!((&moved["rx_bytes"], &moved["tx_bytes"]), (&json!(bytes), &json!(2 * bytes)), "{answer:#}");
            let answer = asking.call("snapshot_sockets", json!({"port": port, "limit": 50})).unwrap();
            assert_eq!(row(&answer, "sockets", &pair.b)["receive_queue_bytes"], bytes, "{answer:#}");
            receive(&mut ring, 0, bytes);
        }
        // It gets a cookie when it closes, and stays the same socket.
        let window = daemon.watch("top_traffic", json!({"group_by": "connection", "port": port, "limit": 100}));
        client.write_all(&[1; 700]).unwrap();
        until_acknowledged(&client);
        receive(&mut ring, 0, 700);
        perform(&mut ring, &opcode::Close::new(types::Fixed(0)).build());
        // Linux 6.1 closes the file after the ring has removed it. Meanwhile the socket is unreachable.
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        let answer = window.end();
        assert_eq!(row(&answer, "rows", &pair.b)["rx_bytes"], 700, "{answer:#}");
    }
}

// In guests, since Linux 5.19.
#[test]
fn io_uring_accepted_connection_has_owner_and_rtt() {
    let (pair, daemon) = (Pair::new(), Daemon::of_sockets());
    // Other tests have connections of A, too.
    let [from, at] = ["10.82.0.1", "10.82.0.2"];
    pair.a.ip(&format!("addr add {from}/24 dev v0"));
    pair.b.ip(&format!("addr add {at}/24 dev v0"));
    let listener = listen(&pair.b, at);
    let to = listener.local_addr().unwrap();
    let mut ring = IoUring::new(8).unwrap();
    ring.submitter().register_files_sparse(4).unwrap();
    let opened = daemon.watch("trace_connections", json!({"port": to.port(), "direction": "inbound"}));
    let profiled = daemon.watch("profile_tcp", json!({"remote": from}));
    let mut client = connect(&pair.a, to).unwrap();
    let descriptor = types::Fd(listener.as_raw_fd());
    let slot = types::DestinationSlot::try_from_slot_target(2).unwrap();
    let accept = opcode::Accept::new(descriptor, std::ptr::null_mut(), std::ptr::null_mut()).file_index(Some(slot));
    assert_eq!(perform(&mut ring, &accept.build()), 0);
    for _ in 0..10 {
        send(&mut ring, 2, 100);
        client.read_exact(&mut [0; 100]).unwrap();
        until("it is acknowledged", || {
            let queue = pair.b.run(&format!("ss -Htn state established sport = :{}", to.port()));
            (queue.split_whitespace().nth(1) == Some("0")).then_some(())
        });
    }
    let (opened, profiled) = (opened.end(), profiled.end());
    assert_eq!(row(&opened, "connections", &pair.b)["outcome"], "established", "{opened:#}");
    let remotes = profiled["remotes"].as_array().unwrap();
    let ours = |row: &&Value| row["owners"][0]["netns"] == pair.b.inode();
    let remote = remotes.iter().find(ours).unwrap_or_else(|| panic!("{profiled:#}"));
    assert_eq!(remote["owners"][0]["pid"], std::process::id(), "{profiled:#}");
    assert!(remote["rtt_us"]["samples"].as_u64().unwrap() >= 5, "{profiled:#}");
}

#[test]
fn udp_sockets_in_a_ring_are_listed() {
    let pair = Pair::new();
    let socket = pair.b.enter(|| UdpSocket::bind((B, 0)).unwrap());
    let to = socket.local_addr().unwrap();
    let sender = pair.a.enter(|| UdpSocket::bind((A, 0)).unwrap());
    sender.send_to(&[1; 100], to).unwrap();
    let _ring = ring_of(vec![socket.into()]);
    let daemon = Daemon::of_sockets();
    let mut client = Client::connect(&daemon.socket);
    until("the datagram is there", || {
        let answer = client.call("snapshot_sockets", json!({"port": to.port(), "protocol": "udp"})).unwrap();
        (row(&answer, "sockets", &pair.b)["receive_queue_bytes"].as_u64().unwrap() >= 100).then_some(())
    });
}

#[test]
fn unread_io_uring_sockets_are_counted() {
    let pair = Pair::new();
    let sockets = |netns: &Netns| netns.enter(|| (0..70).map(|_| UdpSocket::bind((B, 0)).unwrap().into()).collect());
    let _ring = ring_of(sockets(&pair.b));
    let daemon = Daemon::of_sockets();
    let asked = json!({"pid": std::process::id(), "protocol": "udp", "limit": 1_000});
    let answer = Client::connect(&daemon.socket).call("snapshot_sockets", asked).unwrap();
    assert_eq!(rows(&answer, "sockets", &pair.b).len(), 64, "{answer:#}");
    let limits = answer["measured"]["limits"].as_array().unwrap();
    let limit = limits.iter().find(|limit| limit["code"] == "ring_sockets_unread");
    assert_eq!(limit.unwrap_or_else(|| panic!("{answer:#}"))["count"], 6, "{answer:#}");
}

/// A tunnel's socket belongs to the kernel: no process can have it.
#[test]
fn kernel_socket_is_named() {
    let netns = Netns::new();
    netns.ip("link set lo up");
    netns.ip("link add x type vxlan id 9 dstport 4790 local 127.0.0.1");
    netns.ip("link set x up");
    let ours = netns.enter(|| UdpSocket::bind("127.0.0.1:4791").unwrap());
    let daemon = daemon_for("snapshot_sockets", &netns);
    let mut client = Client::connect(&daemon.socket);
    let mut socket = |port| {
        let answer = client.call("snapshot_sockets", json!({"port": port, "protocol": "udp"})).unwrap();
        let rows = rows(&answer, "sockets", &netns);
        assert_eq!(rows.len(), 1, "{answer:#}");
        rows[0].clone()
    };
    let kernels = socket(4_790);
    assert_eq!((&kernels["kernel"], &kernels["owner"]["pid"]), (&json!(true), &Value::Null), "{kernels:#}");
    assert_eq!(socket(4_791).get("kernel"), None);
    drop(ours);
}
