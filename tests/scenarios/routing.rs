//! Routers that talk BGP or OSPF to each other, or do not any more.

use std::{
    collections::BTreeSet,
    io::Write,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsRawFd, FromRawFd},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use super::{Scenario, one, stage::*, traffic::*};
use crate::harness::*;

pub fn scenarios() -> Vec<Scenario> {
    [
        one("BGP daemon gone", bgp_daemon_gone),
        one("BGP peer silent", bgp_peer_silent),
        one("BGP peer silent, both ends here", bgp_both_silent),
        one("BGP never up", bgp_never_up),
        one("OSPF areas differ", ospf_areas),
        one("OSPF timers differ", ospf_timers),
        one("OSPF firewalled", ospf_firewalled),
        one("quiet: BGP restarts", bgp_restarts),
        one("quiet: BGP scanned", bgp_scanned),
        one("quiet: OSPF neighbors", ospf_well),
        one("quiet: OSPF alone", ospf_alone),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A speaker, which listens as its peers do.
fn speaker(netns: &Netns, address: IpAddr) -> Server {
    Server::echo(netns, (address, 179).into())
}

/// One that keeps its sessions where they can be ended.
fn mortal(netns: &Netns, at: SocketAddr) -> (Server, std::sync::Arc<Mutex<Vec<TcpStream>>>) {
    let sessions = std::sync::Arc::new(Mutex::new(Vec::new()));
    let kept = sessions.clone();
    let server = Server::start(netns, at, move |stream| kept.lock().unwrap().push(stream));
    (server, sessions)
}

fn connects_again(watch: &Watch, net: &Net, at: SocketAddr) {
    watch.every(Duration::from_millis(700), || {
        if let Ok(stream) = try_connect(&net.client, at) {
            finish(stream);
        }
    });
}

fn bgp_daemon_gone(stage: &mut Stage) {
    let net = stage.net();
    let _own = speaker(&net.client, net.host(V4, 1));
    let (server, sessions) = mortal(&net.server, (net.server_ip(V4), 179).into());
    let (session, at) = (connected(&net.client, server.at), server.at);
    until("a session", || (!sessions.lock().unwrap().is_empty()).then_some(()));
    stage.watch(|watch| {
        thread::sleep(Duration::from_millis(500));
        drop(server);
        sessions.lock().unwrap().drain(..).for_each(reset);
        drop(session);
        connects_again(watch, &net, at);
    });
    let expected = stage.expect("routing_session_down").owned_in(&net.client).is("/protocol", "bgp");
    expected.is("/peer", net.server_ip(V4).to_string()).at_least("/failed_connects", 2.0);
}

const SILENT_PORT: u16 = 7_004;
static IS_SILENT: AtomicBool = AtomicBool::new(false);

/// The session is there, and nothing passes any more.
fn bgp_peer_silent(stage: &mut Stage) {
    let net = stage.wired(Duration::from_millis(2), |_, packet| {
        IS_SILENT.load(Ordering::Relaxed) && super::gone::is_of(packet, SILENT_PORT)
    });
    let _own = speaker(&net.client, net.host(V4, 1));
    let server = speaker(&net.server, net.server_ip(V4));
    let mut session = super::gone::connected_from(&net.client, SILENT_PORT, server.at);
    exchange(&session, 19);
    IS_SILENT.store(true, Ordering::Relaxed);
    stage.watch(|watch| watch.every(Duration::from_millis(500), || drop(session.write_all(&[0xff; 19]))));
    let expected = stage.expect("routing_session_down").owned_in(&net.client).is("/protocol", "bgp");
    expected.is("/peer", net.server_ip(V4).to_string()).is("/explains/0", "peer_gone");
}

/// The same of both ends: each sends, and hears nothing.
fn bgp_both_silent(stage: &mut Stage) {
    static IS_SILENT: AtomicBool = AtomicBool::new(false);
    let net = stage.wired(Duration::from_millis(2), |_, packet| {
        IS_SILENT.load(Ordering::Relaxed) && super::gone::is_of(packet, SILENT_PORT)
    });
    let _own = speaker(&net.client, net.host(V4, 1));
    let (server, sessions) = mortal(&net.server, (net.server_ip(V4), 179).into());
    let mut ours = super::gone::connected_from(&net.client, SILENT_PORT, server.at);
    let mut theirs = until("a session", || sessions.lock().unwrap().pop());
    IS_SILENT.store(true, Ordering::Relaxed);
    stage.watch(|watch| {
        watch.every(Duration::from_millis(500), || {
            let _ = (ours.write_all(&[0xff; 19]), theirs.write_all(&[0xff; 19]));
        })
    });
    let expected = stage.expect("routing_session_down").owned_in(&net.client).is("/protocol", "bgp");
    let expected = expected.is("/peer", net.server_ip(V4).to_string()).is("/explains/0", "peer_gone");
    expected.is("/silent_connections", 2);
}

/// A speaker whose peer is not configured: nobody listens there.
fn bgp_never_up(stage: &mut Stage) {
    let net = stage.net();
    let _own = speaker(&net.client, net.host(V4, 1));
    let at = (net.server_ip(V4), 179).into();
    stage.watch(|watch| connects_again(watch, &net, at));
    let expected = stage.expect("routing_session_down").owned_in(&net.client).is("/explains/0", "connection_refused");
    expected.is("/peer", net.server_ip(V4).to_string());
}

/// A daemon is restarted, and its session comes up again.
fn bgp_restarts(stage: &mut Stage) {
    let net = stage.net();
    let _own = speaker(&net.client, net.host(V4, 1));
    let server = speaker(&net.server, net.server_ip(V4));
    let session = connected(&net.client, server.at);
    stage.watch(|watch| {
        thread::sleep(Duration::from_secs(1));
        finish(session);
        thread::sleep(Duration::from_millis(500));
        let again = connected(&net.client, server.at);
        watch.every(PAUSE, || {
            exchange(&again, 19);
        });
    });
}

/// Somebody who speaks no BGP looks for who does.
fn bgp_scanned(stage: &mut Stage) {
    let net = stage.net();
    let server = speaker(&net.server, net.server_ip(V4));
    stage.watch(|watch| {
        watch.every(Duration::from_secs(1), || {
            if let Ok(stream) = try_connect(&net.client, server.at) {
                finish(stream);
            }
        });
    });
}

const ALL_ROUTERS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 5);

/// A router that says Hello, and names whom it hears.
struct Router {
    socket: UdpSocket,
    id: u8,
    area: [u8; 4],
    interval: u8,
    heard: BTreeSet<[u8; 4]>,
}

impl Router {
    fn new(netns: &Netns, address: IpAddr, id: u8) -> Router {
        let IpAddr::V4(address) = address else { unreachable!() };
        let socket = netns.enter(|| {
            // SAFETY: no pointers; the descriptor is new and ours.
            let raw = unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 89) };
            assert!(raw >= 0, "{}", std::io::Error::last_os_error());
            // SAFETY: a socket; what std does with it, it does with sockets of any kind.
            let socket = unsafe { UdpSocket::from_raw_fd(raw) };
            let interface = libc::in_addr { s_addr: u32::from(address).to_be() };
            // SAFETY: the address is valid for its size.
            let done = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::IPPROTO_IP,
                    libc::IP_MULTICAST_IF,
                    (&raw const interface).cast(),
                    size_of_val(&interface) as u32,
                )
            };
            assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
            socket.join_multicast_v4(&ALL_ROUTERS, &address).unwrap();
            socket.set_multicast_loop_v4(false).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        });
        Router { socket, id, area: [0; 4], interval: 10, heard: BTreeSet::new() }
    }

    fn hello(&mut self) {
        let mut buffer = [0; 200];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            if length >= 28 && buffer[21] == 1 {
                self.heard.extend(<[u8; 4]>::try_from(&buffer[24..28]));
            }
        }
        let mut data = vec![0; 44];
        (data[0], data[1], data[7], data[29], data[35]) = (2, 1, self.id, self.interval, 4 * self.interval);
        data[8..12].copy_from_slice(&self.area);
        data[24..28].copy_from_slice(&[255, 255, 255, 0]);
        self.heard.iter().for_each(|router| data.extend(router));
        data[3] = data.len() as u8;
        let _ = self.socket.send_to(&data, (ALL_ROUTERS, 0));
    }
}

fn routers(net: &Net) -> [Router; 2] {
    [(&net.client, net.host(V4, 1)), (&net.server, net.server_ip(V4))]
        .into_iter()
        .zip(1..)
        .map(|((netns, address), id)| Router::new(netns, address, id))
        .collect::<Vec<_>>()
        .try_into()
        .unwrap_or_else(|_| unreachable!())
}

fn say_hello(watch: &Watch, routers: &mut [Router]) {
    watch.every(Duration::from_millis(600), || routers.iter_mut().for_each(Router::hello));
}

fn expect_ospf<'s>(stage: &'s mut Stage<'_>) -> &'s mut Expected {
    stage.expect("routing_session_down").is("/protocol", "ospf").known("/namespace").known("/peer")
}

fn ospf_areas(stage: &mut Stage) {
    let net = stage.net();
    let mut routers = routers(&net);
    routers[0].area = [0, 0, 0, 1];
    stage.watch(|watch| say_hello(watch, &mut routers));
    expect_ospf(stage).is("/interface", net.interface());
}

fn ospf_timers(stage: &mut Stage) {
    let net = stage.net();
    let mut routers = routers(&net);
    routers[1].interval = 5;
    stage.watch(|watch| say_hello(watch, &mut routers));
    expect_ospf(stage).is("/interface", net.interface());
}

/// What arrives is dropped before the router sees it.
fn ospf_firewalled(stage: &mut Stage) {
    let net = stage.net();
    let mut routers = routers(&net);
    net.nft(&net.server, &["input ip protocol 89 drop"]);
    stage.watch(|watch| say_hello(watch, &mut routers));
    let expected = expect_ospf(stage).is("/drop_reason", "NETFILTER_DROP").at_least("/packets", 5.0);
    expected.is("/dropped_in_netns", net.server.inode());
}

fn ospf_well(stage: &mut Stage) {
    let net = stage.net();
    let mut routers = routers(&net);
    stage.watch(|watch| say_hello(watch, &mut routers));
}

/// Nobody else on the link speaks it.
fn ospf_alone(stage: &mut Stage) {
    let net = stage.bridged();
    let mut routers = routers(&net);
    stage.watch(|watch| say_hello(watch, &mut routers[..1]));
}
