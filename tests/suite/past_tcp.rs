//! Data that bypasses TCP and UDP: through a sockmap, or from packet sockets.

use std::{
    ffi::c_void,
    io::{Read, Write},
    net::TcpStream,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr,
};

use libbpf_sys::{
    BPF_F_INGRESS, BPF_FUNC_msg_redirect_map, BPF_MAP_TYPE_SOCKMAP, BPF_PROG_TYPE_SK_MSG, BPF_SK_MSG_VERDICT, bpf_insn,
    bpf_map_create, bpf_map_update_elem, bpf_prog_attach, bpf_prog_load,
};
use serde_json::{Value, json};

use crate::harness::*;

fn instruction(code: u8, registers: u8, imm: i32) -> bpf_insn {
    let mut instruction = bpf_insn { code, imm, ..Default::default() };
    instruction.set_dst_reg(registers & 15);
    instruction.set_src_reg(registers >> 4);
    instruction
}

fn owned(fd: i32) -> OwnedFd {
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the call before has just created it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A sockmap whose program redirects data of the first socket to the second one, or passes it to TCP.
fn sockmap(from: &TcpStream, to: &TcpStream, redirects: bool) -> (OwnedFd, OwnedFd) {
    // SAFETY: the name is null, which means none; the other arguments are numbers.
    let map = owned(unsafe { bpf_map_create(BPF_MAP_TYPE_SOCKMAP, ptr::null(), 4, 4, 2, ptr::null()) });
    let redirect = [
        instruction(0x18, 0x12, map.as_raw_fd()), // r2 = the map
        instruction(0, 0, 0),
        instruction(0xb7, 3, 1),                    // r3 = the second socket
        instruction(0xb7, 4, BPF_F_INGRESS as i32), // r4 = to its reader
        instruction(0x85, 0, BPF_FUNC_msg_redirect_map as i32),
        instruction(0x95, 0, 0),
    ];
    let pass = [instruction(0xb7, 0, 1), instruction(0x95, 0, 0)];
    let code = if redirects { &redirect[..] } else { &pass[..] };
    // SAFETY: the instructions and the license live, and their count is right.
    let program = owned(unsafe {
        bpf_prog_load(
            BPF_PROG_TYPE_SK_MSG,
            ptr::null(),
            c"GPL".as_ptr(),
            code.as_ptr(),
            code.len() as u64,
            ptr::null_mut(),
        )
    });
    // SAFETY: both are open.
    assert_eq!(unsafe { bpf_prog_attach(program.as_raw_fd(), map.as_raw_fd(), BPF_SK_MSG_VERDICT, 0) }, 0);
    for (key, socket) in [(0u32, from), (1, to)] {
        let (key, socket) = (ptr::from_ref(&key).cast::<c_void>(), socket.as_raw_fd());
        // SAFETY: the key and the value have the sizes of the map's.
        assert_eq!(unsafe { bpf_map_update_elem(map.as_raw_fd(), key, ptr::from_ref(&socket).cast(), 0) }, 0);
    }
    (map, program)
}

/// A connection over the loopback of a namespace, with IPv6.
fn ends(netns: &Netns) -> (TcpStream, TcpStream) {
    let listener = listen(netns, "::1");
    let client = connect(netns, listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

/// Sends messages of several sizes; the reader also peeks.
fn talk(from: &mut TcpStream, to: &mut TcpStream, bytes: usize) {
    let mut left = bytes;
    for size in [1, 700, 40_000].into_iter().cycle() {
        let size = size.min(left);
        from.write_all(&vec![1; size]).unwrap();
        to.peek(&mut [0; 8]).unwrap();
        to.read_exact(&mut vec![0; size]).unwrap();
        left -= size;
        if left == 0 {
            break;
        }
    }
}

/// Bytes that sockets of a namespace sent and received.
fn moved(answer: &Value, netns: &Netns) -> (u64, u64) {
    let rows = answer["rows"].as_array().unwrap().iter().filter(|row| row["owner"]["netns"] == netns.inode());
    let sum = |field| rows.clone().map(|row| row[field].as_u64().unwrap()).sum();
    (sum("tx_bytes"), sum("rx_bytes"))
}

#[test]
fn sockmap_bytes_are_counted_once() {
    let netns = Netns::new();
    for redirects in [true, false] {
        let (mut from, mut to) = ends(&netns);
        let kept = sockmap(&from, &to, redirects);
        let daemon = Daemon::of("top_traffic");
        for protocol in ["all", "tcp"] {
            for bytes in [1_000_000, 123_456] {
                let arguments = json!({"group_by": "connection", "protocol": protocol, "limit": 1_000});
                let window = daemon.watch("top_traffic", arguments);
                talk(&mut from, &mut to, bytes);
                let answer = window.end();
                let all = bytes as u64;
                assert_eq!(moved(&answer, &netns), (all, all), "{redirects} {protocol}: {answer:#}");
                let limits = answer["measured"]["limits"].as_array().unwrap();
                assert!(limits.iter().all(|limit| limit["code"] != "sockmap_partly_counted"), "{answer:#}");
            }
        }
        drop(kept);
    }
}

#[test]
fn sockmap_sockets_closed_in_the_window_are_counted() {
    let (netns, daemon) = (Netns::new(), Daemon::of("top_traffic"));
    let window = daemon.watch("top_traffic", json!({"group_by": "netns", "limit": 1_000}));
    let (mut from, mut to) = ends(&netns);
    let _kept = sockmap(&from, &to, true);
    talk(&mut from, &mut to, 50_000);
    drop((from, to));
    let answer = window.end();
    let (sent, received) = moved(&answer, &netns);
    // The SYN takes a sequence number.
    assert!((49_990..=50_000).contains(&sent) && (49_990..=50_000).contains(&received), "{answer:#}");
}

#[test]
fn sending_packet_sockets_are_named_in_limits() {
    use rustix::net::{AddressFamily, SocketType, socket};
    let (netns, daemon) = (Netns::new(), Daemon::of("top_traffic"));
    let mut client = Client::connect(&daemon.socket);
    let mut count = || {
        let asked = json!({"pid": std::process::id(), "duration_ms": 100});
        let answer = client.call("top_traffic", asked).unwrap();
        let limits = answer["measured"]["limits"].as_array().unwrap().clone();
        let limit = limits.iter().find(|limit| limit["code"] == "packet_sockets_not_counted");
        limit.map_or(0, |limit| limit["count"].as_u64().unwrap())
    };
    assert_eq!(count(), 0);
    let _sends = netns.enter(|| socket(AddressFamily::PACKET, SocketType::RAW, None).unwrap());
    assert_eq!(count(), 1);
}
