//! Translators that forget.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    thread,
    time::Duration,
};

use super::{Scenario, drops::routed, one, stage::*, traffic::*};
use crate::harness::*;

pub fn scenarios() -> Vec<Scenario> {
    [
        one("NAT loses an entry, TCP", tcp_entry_lost),
        one("NAT loses an entry, UDP", udp_entry_lost),
        one("quiet: NAT, early ends", early_ends),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A client, a router that translates what it sends, and a server. Returns where to listen.
fn translated(left: &Net, right: &Net) -> SocketAddr {
    let at = routed(left, right, V4);
    right.server.ip("route del default");
    let router = &left.server;
    router.run("nft add table ip nat");
    router.run("nft add chain ip nat out { type nat hook postrouting priority 100 ; }");
    router.run(&format!("nft add rule ip nat out oifname {} masquerade", right.interface()));
    at
}

/// How long an idle connection is kept.
fn keep(router: &Netns, seconds: u32) {
    let names = ["tcp_timeout_established", "udp_timeout", "udp_timeout_stream"];
    let set = |name: &str| format!("net.netfilter.nf_conntrack_{name}={seconds}");
    router.run(&format!("sysctl -qw {}", names.map(set).join(" ")));
}

/// The server has something to say after a while, when the router has forgotten whom it was for.
fn tcp_entry_lost(stage: &mut Stage) {
    let (left, right) = (stage.net(), stage.net());
    let at = translated(&left, &right);
    keep(&left.server, 1);
    let _server = Server::start(&right.server, at, |mut stream| {
        let mut request = [0; 100];
        while stream.read_exact(&mut request).is_ok() && stream.write_all(&request).is_ok() {
            thread::sleep(Duration::from_millis(2_200));
            if stream.write_all(&request).is_err() {
                break;
            }
        }
    });
    let mut held = Vec::new();
    stage.watch(|watch| {
        watch.every(Duration::from_millis(700), || {
            held.extend(try_connect(&left.client, at).ok().filter(|stream| exchange(stream, 100)));
        });
    });
    let expected = stage.expect("nat_mapping_lost").owned_in(&left.client).is("/netns", left.server.inode());
    expected.is("/remote/address", at.ip().to_string()).is("/remote/port", 80).is("/protocol", "tcp");
    expected.is("/translated_address/address", right.host(V4, 1).to_string()).at_least("/packets", 2.0);
}

fn udp_entry_lost(stage: &mut Stage) {
    let (left, right) = (stage.net(), stage.net());
    let at = translated(&left, &right);
    keep(&left.server, 1);
    let server = udp(&right.server, at);
    server.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let client = udp_to(&left.client, at);
    stage.watch(|watch| {
        let mut buffer = [0; 100];
        let _ = client.send(b"subscribe");
        let Ok((_, from)) = server.recv_from(&mut buffer) else { return };
        let _ = server.send_to(b"subscribed", from);
        thread::sleep(Duration::from_millis(2_200));
        watch.every(PAUSE, || drop(server.send_to(b"an event", from)));
    });
    let expected = stage.expect("nat_mapping_lost").owned_in(&left.client).is("/netns", left.server.inode());
    expected.is("/remote/address", at.ip().to_string()).is("/protocol", "udp").at_least("/packets", 5.0);
}

/// Clients behind a router, and one at the router itself, do not wait for the end of what they asked for.
fn early_ends(stage: &mut Stage) {
    let (left, right) = (stage.net(), stage.net());
    let at = translated(&left, &right);
    let _server = Server::start(&right.server, at, |mut stream| {
        let mut request = [0; 100];
        while stream.read_exact(&mut request).is_ok() {
            for _ in 0..5 {
                if stream.write_all(&request).is_err() {
                    return;
                }
                thread::sleep(Duration::from_millis(30));
            }
        }
    });
    let held = connected(&left.client, at);
    stage.watch(|watch| {
        watch.every(PAUSE, || {
            for netns in [&left.client, &left.server] {
                if let Ok(stream) = try_connect(netns, at) {
                    exchange(&stream, 100);
                }
            }
            exchange(&held, 100);
        });
    });
}
