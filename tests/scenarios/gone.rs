//! Established connections whose peer becomes silent.

use std::{
    io::Write,
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt};

use super::{stage::*, traffic::*};
use crate::harness::*;

/// Ports of clients; each scenario has its own, and its own payload that starts the loss.
const FORGOTTEN: u16 = 7_001;
const FORGOTTEN_FULL: u16 = 7_002;
const GONE: u16 = 7_003;
static FORGETS: AtomicBool = AtomicBool::new(false);
static FORGETS_FULL: AtomicBool = AtomicBool::new(false);
static IS_GONE: AtomicBool = AtomicBool::new(false);

/// Whether a packet is TCP over IPv4 from or to a port.
pub fn is_of(packet: &[u8], port: u16) -> bool {
    let port = port.to_be_bytes();
    packet[0] >> 4 == 4 && packet[9] == 6 && (packet[20..22] == port || packet[22..24] == port)
}

/// A connection from a port of its own.
pub fn connected_from(netns: &Netns, port: u16, to: SocketAddr) -> TcpStream {
    netns.enter(|| {
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        bind(&socket, &SocketAddr::from(([0; 4], port))).unwrap();
        connect(&socket, &to).unwrap();
        socket.into()
    })
}

/// Waits until the only connection of a namespace has no data in flight: the second column is its send queue.
fn until_acknowledged(netns: &Netns) {
    let queued = || netns.run("ss -tnH state established").split_whitespace().nth(1) != Some("0");
    until("all is acknowledged", || (!queued()).then_some(()));
}

/// A middlebox has forgotten an old connection, and passes new ones.
pub fn nat_forgets(stage: &mut Stage) {
    let net =
        stage.wired(Duration::from_millis(2), |_, packet| FORGETS.load(Ordering::Relaxed) && is_of(packet, FORGOTTEN));
    let server = Server::echo(&net.server, (net.server_ip(V4), 80).into());
    let mut old = connected_from(&net.client, FORGOTTEN, server.at);
    exchange(&old, 100);
    FORGETS.store(true, Ordering::Relaxed);
    stage.watch(|watch| {
        let _ = old.write_all(b"select 2");
        watch.every(PAUSE, || {
            if let Ok(stream) = try_connect(&net.client, server.at) {
                exchange(&stream, 100);
                finish(stream);
            }
        });
    });
    let expected = stage.expect("peer_gone").owned_in(&net.client).is("/remote/port", 80).is("/connections", 1);
    expected.is("/remote/address", server.at.ip().to_string()).at_least("/silent_seconds", 2.0);
    expected.at_least("/retransmits", 3.0).at_least("/new_connects", 5.0);
}

/// The same for a connection with full segments, as other connections have without a fault.
pub fn nat_forgets_full_segments(stage: &mut Stage) {
    let net = stage.wired(Duration::from_millis(2), |_, packet| {
        FORGETS_FULL.load(Ordering::Relaxed) && is_of(packet, FORGOTTEN_FULL)
    });
    let server = Server::sink(&net.server, (net.server_ip(V4), 80).into());
    let mut old = connected_from(&net.client, FORGOTTEN_FULL, server.at);
    old.write_all(b"select 1").unwrap();
    until_acknowledged(&net.client);
    FORGETS_FULL.store(true, Ordering::Relaxed);
    stage.watch(|watch| {
        let _ = old.write_all(&[7; 20_000]);
        watch.every(PAUSE, || {
            if let Ok(mut stream) = try_connect(&net.client, server.at) {
                let _ = stream.write_all(&[7; 20_000]);
                finish(stream);
            }
        });
    });
    let expected = stage.expect("peer_gone").owned_in(&net.client).is("/remote/port", 80).is("/connections", 1);
    expected.at_least("/retransmits", 3.0);
}

/// A client is switched off. The server has nothing to send, and notices by keepalives.
pub fn client_gone(stage: &mut Stage) {
    let net = stage.wired(Duration::from_millis(2), |_, packet| IS_GONE.load(Ordering::Relaxed) && is_of(packet, GONE));
    let server = Server::start(&net.server, (net.server_ip(V4), 80).into(), |stream| {
        sockopt::set_socket_keepalive(&stream, true).unwrap();
        sockopt::set_tcp_keepidle(&stream, Duration::from_secs(1)).unwrap();
        sockopt::set_tcp_keepintvl(&stream, Duration::from_secs(1)).unwrap();
        sockopt::set_tcp_keepcnt(&stream, 2).unwrap();
        let _ = std::io::copy(&mut &stream, &mut &stream);
    });
    let old = connected_from(&net.client, GONE, server.at);
    exchange(&old, 100);
    // A client acknowledges an answer late: until then the server would retransmit instead of sending keepalives.
    until_acknowledged(&net.server);
    IS_GONE.store(true, Ordering::Relaxed);
    stage.watch(|watch| watch.every(PAUSE, || ()));
    let expected = stage.expect("peer_gone").owned_in(&net.server).is("/errno", "ETIMEDOUT").is("/ended", 1);
    expected.is("/remote/address", net.host(V4, 1).to_string()).at_least("/unanswered_probes", 1.0);
}
