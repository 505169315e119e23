//! Listeners that overflow.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    time::Duration,
};

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with};

use super::{stage::*, traffic::*};
use crate::harness::*;

pub fn overflow(stage: &mut Stage, family: Family) {
    let net = stage.net();
    let at: SocketAddr = (net.server_ip(family), 80).into();
    let _listener = listener(&net.server, at, 2);
    let mut held = Vec::new();
    stage.watch(|watch| watch.every(PAUSE, || held.extend(try_connect(&net.client, at))));
    let expected = stage.expect("listen_queue_overflow").owned_in(&net.server).is("/accept_queue_max", 2);
    expected.is("/local/port", 80).at_least("/accept_queue", 3.0).at_least("/dropped", 1.0);
}

/// The same across a bridge, as between containers.
pub fn overflow_behind_bridge(stage: &mut Stage) {
    let net = stage.bridged();
    let at: SocketAddr = (net.server_ip(V4), 80).into();
    let _listener = listener(&net.server, at, 2);
    let mut held = Vec::new();
    stage.watch(|watch| watch.every(PAUSE, || held.extend(try_connect(&net.client, at))));
    stage.expect("listen_queue_overflow").owned_in(&net.server).is("/local/port", 80).at_least("/dropped", 1.0);
}

/// The queue was full before the window; the listener has the wildcard address, like most servers.
pub fn overflow_since_before(stage: &mut Stage) {
    let net = stage.net();
    let _listener = listener(&net.server, ([0, 0, 0, 0], 80).into(), 1);
    let at: SocketAddr = (net.server_ip(V4), 80).into();
    let mut held: Vec<_> = (0..4).filter_map(|_| try_connect(&net.client, at).ok()).collect();
    stage.watch(|watch| watch.every(Duration::from_secs(1), || held.extend(try_connect(&net.client, at))));
    stage.expect("listen_queue_overflow").owned_in(&net.server).is("/accept_queue_max", 1).is("/local/port", 80);
}

/// The server has no route to its client: the kernel drops the SYNs and counts them at the listener, whose queue is
/// empty.
pub fn no_route_back(stage: &mut Stage, family: Family) {
    let net = stage.net();
    let at: SocketAddr = (net.server_ip(family), 8443).into();
    let _listener = listener(&net.server, at, 100);
    let from =
        if family == V4 { format!("10.221.{}.9/32", net.number()) } else { format!("fd21:{}::9/128", net.number()) };
    net.client.ip(&format!("addr add {from} dev lo"));
    let from: SocketAddr = (from.split('/').next().unwrap().parse::<IpAddr>().unwrap(), 0).into();
    let mut waiting = Vec::new();
    stage.watch(|watch| {
        watch.every(Duration::from_secs(1), || {
            let domain = if family == V4 { AddressFamily::INET } else { AddressFamily::INET6 };
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = net.client.enter(|| socket_with(domain, SocketType::STREAM, flags, None).unwrap());
            rustix::net::bind(&socket, &from).unwrap();
            assert_eq!(rustix::net::connect(&socket, &at), Err(rustix::io::Errno::INPROGRESS));
            waiting.push(socket);
        });
    });
    stage.expect("connect_timeout").owned_in(&net.client).is("/remote/port", 8443);
}

/// SYNs from addresses that never answer.
pub fn syn_flood(stage: &mut Stage, family: Family, cookies: bool, backlog: i32) {
    let net = stage.net();
    net.server.run(&format!("sysctl -qw net.ipv4.tcp_syncookies={}", u8::from(cookies)));
    let at: SocketAddr = (net.server_ip(family), 80).into();
    let _listener = listener(&net.server, at, backlog);
    // The flood's senders do not exist. Its answers go to the client, which lacks the addresses.
    let prefix = if family == V4 { 25 } else { 121 };
    net.server.ip(&format!("route add {}/{prefix} via {}", net.host(family, 128), net.host(family, 1)));
    let raw = raw(&net.client, family);
    stage.watch(|watch| {
        let mut number = 0u32;
        watch.every(Duration::from_millis(5), || {
            number += 1;
            // Enough senders to fill the queue, and few enough to leave other drops visible.
            let sender = number % 64;
            let from = net.host(family, 130 + sender as u8);
            sendto(&raw, &syn(from, sender, at), SendFlags::empty(), &SocketAddr::new(at.ip(), 0)).unwrap();
        });
    });
    stage.expect("syn_flood").owned_in(&net.server).is("/local/port", 80).at_least("/half_open", backlog.into());
}

/// Data sent to a raw socket of this protocol begins with an IP header with any source.
pub fn raw(netns: &Netns, family: Family) -> OwnedFd {
    let domain = if family == V4 { AddressFamily::INET } else { AddressFamily::INET6 };
    netns.enter(|| socket_with(domain, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::RAW)).unwrap())
}

/// A SYN with its IP header, made by hand.
pub fn syn(from: IpAddr, number: u32, to: SocketAddr) -> Vec<u8> {
    const TCP: u8 = 6;
    let mut segment = [0u8; 20];
    segment[0..2].copy_from_slice(&(1_024 + (number % 60_000) as u16).to_be_bytes());
    segment[2..4].copy_from_slice(&to.port().to_be_bytes());
    segment[4..8].copy_from_slice(&number.to_be_bytes());
    segment[12] = 5 << 4; // words of header
    segment[13] = 2; // SYN
    segment[14] = 0xff;
    let checksum = checksum(&from, &to.ip(), &segment);
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
    let mut packet = match from {
        // The kernel fills in the checksum.
        IpAddr::V4(_) => vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, TCP, 0, 0],
        IpAddr::V6(_) => vec![0x60, 0, 0, 0, 0, 20, TCP, 64],
    };
    packet.extend(octets(&from));
    packet.extend(octets(&to.ip()));
    packet.extend(segment);
    packet
}

fn octets(ip: &IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn checksum(from: &IpAddr, to: &IpAddr, segment: &[u8]) -> u16 {
    let bytes = [octets(from), octets(to), vec![0, 6, 0, segment.len() as u8], segment.to_vec()].concat();
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}
