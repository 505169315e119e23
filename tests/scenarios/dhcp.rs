//! Hosts that ask for an address.

use std::{
    net::{IpAddr, Ipv4Addr, UdpSocket},
    os::fd::AsRawFd,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use super::{Scenario, network::mac, one, stage::*, traffic::*};
use crate::harness::*;

pub fn scenarios() -> Vec<Scenario> {
    [
        one("DHCP unanswered", unanswered),
        one("DHCP unanswered, server hangs", server_hangs),
        one("DHCP without a pool", without_pool),
        one("DHCP refused", refused),
        one("DHCP, router elsewhere", wrong_router),
        one("DHCP, wrong mask", wrong_mask),
        one("DHCP, silent resolver", wrong_resolver),
        one("quiet: DHCP leases", leases),
        one("quiet: DHCP asks late", asks_late),
    ]
    .into_iter()
    .flatten()
    .collect()
}

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;
const NAK: u8 = 6;

/// A message of RFC 2131: the client's address is told in `yours`.
fn message(op: u8, xid: u32, client: [u8; 6], yours: Ipv4Addr, kind: u8, options: &[u8]) -> Vec<u8> {
    let mut data = vec![0; 240];
    data[..4].copy_from_slice(&[op, 1, 6, 0]);
    data[4..8].copy_from_slice(&xid.to_be_bytes());
    data[10] = 0x80; // broadcast
    data[16..20].copy_from_slice(&yours.octets());
    data[28..34].copy_from_slice(&client);
    data[236..].copy_from_slice(&[99, 130, 83, 99]);
    data.extend([53, 1, kind]);
    data.extend(options);
    data.push(255);
    data.resize(data.len().max(300), 0);
    data
}

/// A socket of DHCP, at one interface.
fn socket(netns: &Netns, interface: &str, port: u16) -> UdpSocket {
    let socket = udp(netns, ([0; 4], port).into());
    socket.set_broadcast(true).unwrap();
    // SAFETY: the name is valid for its length.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            interface.as_ptr().cast(),
            interface.len() as u32,
        )
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    socket
}

/// A host without an address that asks for one, again and again.
struct Client {
    socket: UdpSocket,
    hardware: [u8; 6],
    xid: u32,
}

impl Client {
    fn new(netns: &Netns, interface: &str, xid: u32) -> Client {
        netns.ip(&format!("-4 addr flush dev {interface}"));
        Client { socket: socket(netns, interface, 68), hardware: mac(netns, interface), xid }
    }

    fn ask(&self, kind: u8) {
        let data = message(1, self.xid, self.hardware, Ipv4Addr::UNSPECIFIED, kind, &[]);
        let _ = self.socket.send_to(&data, (Ipv4Addr::BROADCAST, 67));
    }

    fn every_second(&self, watch: &Watch, kind: u8) {
        watch.every(Duration::from_secs(1), || self.ask(kind));
    }

    fn mac(&self) -> String {
        self.hardware.map(|byte| format!("{byte:02x}")).join(":")
    }
}

fn v4(address: IpAddr) -> Ipv4Addr {
    let IpAddr::V4(address) = address else { unreachable!() };
    address
}

/// Answers what comes: `reply` gets the client and the kind of its message, and says of which kind the answer is.
fn serve(watch: &Watch, net: &Net, options: &[u8], reply: impl Fn([u8; 6], u8) -> Option<u8>) {
    let socket = socket(&net.server, &net.interface(), 67);
    let mut buffer = [0; 600];
    let all = [&[54, 4][..], &v4(net.server_ip(V4)).octets(), options].concat();
    while watch.goes_on() {
        let Ok((length, _)) = socket.recv_from(&mut buffer) else { continue };
        let (Some(xid), Some(client), true) = (buffer[..length].get(4..8), buffer.get(28..34), length > 242) else {
            continue;
        };
        let (xid, client) = (u32::from_be_bytes(xid.try_into().unwrap()), client.try_into().unwrap());
        let Some(kind) = reply(client, buffer[242]) else { continue };
        let yours = if kind == NAK { Ipv4Addr::UNSPECIFIED } else { v4(net.host(V4, 50)) };
        let answer = message(2, xid, client, yours, kind, &all);
        let _ = socket.send_to(&answer, (Ipv4Addr::BROADCAST, 68));
    }
}

fn answers(kind: u8) -> Option<u8> {
    Some(if kind == DISCOVER { OFFER } else { ACK })
}

fn unanswered(stage: &mut Stage) {
    let net = stage.bridged();
    let client = Client::new(&net.client, &net.interface(), net.number() as u32);
    stage.watch(|watch| client.every_second(watch, DISCOVER));
    let expected = stage.expect("dhcp_unanswered").is("/netns", net.client.inode()).is("/client", client.mac());
    expected.is("/interface", net.interface()).at_least("/requests", 3.0).at_least("/waited_seconds", 3.0);
}

/// The server's process is there, and does not read.
fn server_hangs(stage: &mut Stage) {
    let net = stage.net();
    let client = Client::new(&net.client, &net.interface(), net.number() as u32);
    let _server = socket(&net.server, &net.interface(), 67);
    stage.watch(|watch| client.every_second(watch, DISCOVER));
    let expected = stage.expect("dhcp_unanswered").is("/netns", net.client.inode()).is("/client", client.mac());
    expected.is("/server/netns", net.server.inode()).at_least("/requests", 3.0);
}

/// The last address of the pool is another's.
fn without_pool(stage: &mut Stage) {
    let net = stage.bridged();
    let other = net.join(3);
    let (client, lucky) = (
        Client::new(&net.client, &net.interface(), net.number() as u32),
        Client::new(&other, &net.interface(), 1_000 + net.number() as u32),
    );
    let unlucky = client.hardware;
    stage.watch(|watch| {
        thread::scope(|scope| {
            scope.spawn(|| serve(watch, &net, &[], |from, kind| answers(kind).filter(|_| from != unlucky)));
            scope.spawn(|| lucky.every_second(watch, REQUEST));
            client.every_second(watch, DISCOVER);
        });
    });
    let expected = stage.expect("dhcp_no_pool").is("/netns", net.client.inode()).is("/client", client.mac());
    expected.owned_in(&net.server).at_least("/requests", 3.0);
}

fn refused(stage: &mut Stage) {
    let net = stage.net();
    let client = Client::new(&net.client, &net.interface(), net.number() as u32);
    stage.watch(|watch| {
        thread::scope(|scope| {
            scope.spawn(|| serve(watch, &net, &[], |_, _| Some(NAK)));
            client.every_second(watch, REQUEST);
        });
    });
    let expected = stage.expect("dhcp_no_pool").is("/netns", net.client.inode()).at_least("/refusals", 2.0);
    expected.is("/server", net.server_ip(V4).to_string());
}

/// A lease with these options.
fn lease(stage: &mut Stage, net: &Net, options: &[u8]) -> Client {
    let client = Client::new(&net.client, &net.interface(), net.number() as u32);
    stage.watch(|watch| {
        thread::scope(|scope| {
            scope.spawn(|| serve(watch, net, options, |_, kind| answers(kind)));
            client.ask(DISCOVER);
            thread::sleep(Duration::from_millis(300));
            client.every_second(watch, REQUEST);
        });
    });
    client
}

fn wrong_router(stage: &mut Stage) {
    let net = stage.net();
    lease(stage, &net, &[1, 4, 255, 255, 255, 0, 3, 4, 203, 0, 113, 1]);
    let expected = stage.expect("dhcp_bad_option").is("/netns", net.client.inode()).is("/option", "router");
    expected.is("/value", "203.0.113.1").is("/server", net.server_ip(V4).to_string()).owned_in(&net.server);
}

fn wrong_mask(stage: &mut Stage) {
    let net = stage.bridged();
    lease(stage, &net, &[1, 4, 255, 255, 255, 240]);
    let expected = stage.expect("dhcp_bad_option").is("/netns", net.client.inode()).is("/option", "subnet_mask");
    expected.is("/value", "255.255.255.240").is("/offered_prefix", 28);
}

/// The resolver that the server names is silent.
fn wrong_resolver(stage: &mut Stage) {
    let net = stage.net();
    let resolver = v4(net.server_ip(V4));
    let silent = udp(&net.server, (resolver, 53).into());
    let client = Client::new(&net.client, &net.interface(), net.number() as u32);
    net.client.ip(&format!("addr add {}/24 dev {}", net.host(V4, 50), net.interface()));
    let asks = udp_to(&net.client, (resolver, 53).into());
    let options = [&[1, 4, 255, 255, 255, 0, 6, 4][..], &resolver.octets()].concat();
    stage.watch(|watch| {
        thread::scope(|scope| {
            scope.spawn(|| serve(watch, &net, &options, |_, kind| answers(kind)));
            client.ask(DISCOVER);
            thread::sleep(Duration::from_millis(300));
            let mut number = 0u8;
            watch.every(Duration::from_millis(500), || {
                client.ask(REQUEST);
                number += 1;
                let query = [&[0, number, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], b"\x03www\x07example\x00\x00\x01\x00\x01"];
                let _ = asks.send(&query.concat());
            });
        });
    });
    drop(silent);
    let expected = stage.expect("dhcp_bad_option").is("/option", "domain_name_server");
    expected.is("/netns", net.client.inode()).is("/value", resolver.to_string()).known("/explains/0");
}

/// A client that came from another network, and gets a lease in the end, and renews it.
fn leases(stage: &mut Stage) {
    let net = stage.bridged();
    let router = v4(net.server_ip(V4)).octets();
    let options = [&[1, 4, 255, 255, 255, 0, 3, 4][..], &router, &[6, 4], &router].concat();
    let client = Client::new(&net.client, &net.interface(), net.number() as u32);
    stage.watch(|watch| {
        thread::scope(|scope| {
            scope.spawn(|| {
                let knows = AtomicBool::new(false);
                serve(watch, &net, &options, |_, kind| match kind {
                    REQUEST if !knows.swap(true, Ordering::Relaxed) => Some(NAK),
                    kind => answers(kind),
                });
            });
            client.ask(REQUEST);
            thread::sleep(Duration::from_millis(400));
            client.ask(DISCOVER);
            thread::sleep(Duration::from_millis(200));
            client.every_second(watch, REQUEST);
        });
    });
}

/// A host comes up at the window's end.
fn asks_late(stage: &mut Stage) {
    stage.is_live_only = true;
    let net = stage.net();
    let client = Client::new(&net.client, &net.interface(), net.number() as u32);
    let late = Duration::from_millis(stage.window_ms - 1_500);
    stage.watch(|watch| {
        watch.every(Duration::from_millis(500), || {
            if watch.elapsed() > late {
                client.ask(DISCOVER);
            }
        });
    });
}
