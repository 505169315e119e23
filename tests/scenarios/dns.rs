//! Name resolution. The test's own server answers as instructed.

use std::{
    net::{SocketAddr, UdpSocket},
    thread,
    time::Duration,
};

use super::{Scenario, alone, one, stage::*, traffic::*};
use crate::harness::*;

pub fn scenarios() -> Vec<Scenario> {
    [
        one("DNS loses half", half_lost),
        one("DNS answers dropped on the way", answers_dropped),
        alone(one("wrong resolver, no such host", |stage| wrong_resolver(stage, 77))),
        alone(one("wrong resolver, another address", |stage| wrong_resolver(stage, 88))),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The server's treatment of a query by number: the rcode and the delay; `None` for no answer.
type Manner = fn(u16) -> Option<(u8, Duration)>;

/// A server on port 53 that lives as long as its scenario: a query for `stop` ends it.
fn serve(netns: &Netns, at: SocketAddr, manner: Manner) {
    let socket = udp(netns, at);
    socket.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    thread::spawn(move || {
        let mut buffer = [0u8; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let mut answer = buffer[..length].to_vec();
            let Some((rcode, after)) = manner(u16::from_be_bytes([answer[0], answer[1]])) else { continue };
            (answer[2], answer[3]) = (0x81, 0x80 | rcode);
            let reply = socket.try_clone().unwrap();
            thread::spawn(move || {
                thread::sleep(after);
                let _ = reply.send_to(&answer, from);
            });
        }
    });
}

/// Asks for the A record of a name.
fn ask(socket: &UdpSocket, id: u16) {
    ask_for(socket, id, "www.example.org");
}

fn query(id: u16, name: &str) -> Vec<u8> {
    let mut query = [id.to_be_bytes(), [1, 0], [0, 1], [0, 0], [0, 0], [0, 0]].concat();
    for label in name.split('.').chain([""]) {
        query.push(label.len() as u8);
        query.extend(label.bytes());
    }
    query.extend([0, 1, 0, 1]);
    query
}

fn ask_for(socket: &UdpSocket, id: u16, name: &str) {
    let _ = socket.send(&query(id, name));
    let _ = socket.set_read_timeout(Some(Duration::from_millis(100)));
    let _ = socket.recv(&mut [0; 512]);
}

fn play(stage: &mut Stage, family: Family, manner: Manner) -> Net {
    let net = stage.net();
    let at: SocketAddr = (net.server_ip(family), 53).into();
    serve(&net.server, at, manner);
    let socket = udp_to(&net.client, at);
    let mut id = 0;
    stage.watch(|watch| {
        watch.every(PAUSE, || {
            id += 1;
            ask(&socket, id);
        })
    });
    net
}

pub fn servfail(stage: &mut Stage, family: Family) {
    let net = play(stage, family, |_| Some((2, Duration::ZERO)));
    let expected = stage.expect("dns_failure").owned_in(&net.client).is("/server/port", 53);
    expected.is("/server/address", net.server_ip(family).to_string()).at_least("/affected", 5.0);
}

pub fn nxdomain(stage: &mut Stage) {
    let net = play(stage, V4, |_| Some((3, Duration::ZERO)));
    stage.expect("dns_failure").owned_in(&net.client).at_least("/affected", 5.0);
}

/// Asks a server for one nonexistent name after the other.
fn ask_all(stage: &mut Stage, names: impl Fn(u16) -> Vec<String> + Sync) -> Net {
    let net = stage.net();
    let at: SocketAddr = (net.server_ip(V6), 53).into();
    serve(&net.server, at, |_| Some((3, Duration::ZERO)));
    let socket = udp_to(&net.client, at);
    let (mut round, mut id) = (0, 0);
    stage.watch(|watch| {
        watch.every(PAUSE, || {
            round += 1;
            for name in names(round) {
                id += 1;
                ask_for(&socket, id, &name);
            }
        })
    });
    net
}

/// A mail server looks up its clients and their domains in lists: mostly NXDOMAIN.
pub fn mail_server(stage: &mut Stage) {
    ask_all(stage, |round| {
        let (host, domain) = (round % 200, ["com", "org", "net"][usize::from(round) % 3]);
        vec![
            format!("{host}.2.0.192.dnswl.test"),
            format!("{host}.113.0.203.in-addr.arpa"),
            format!("sender{}.{domain}.dbl.lists.test", round % 7),
            format!("_dmarc.sender{round}.test"),
        ]
    });
}

/// Among such lookups there is a name that a program needs, and that does not exist.
pub fn needed(stage: &mut Stage) {
    let net = ask_all(stage, |round| vec![format!("{}.2.0.192.dnswl.test", round % 200), "db.corp.internal".into()]);
    let expected = stage.expect("dns_failure").owned_in(&net.client).at_least("/affected", 5.0);
    expected.is("/names/0", "db.corp.internal");
}

/// A search list: most names do not exist, the last does.
pub fn search_list(stage: &mut Stage) {
    play(stage, V4, |id| Some((if id % 5 == 4 { 0 } else { 3 }, Duration::ZERO)));
}

pub fn slow(stage: &mut Stage, family: Family) {
    let net = play(stage, family, |_| Some((0, Duration::from_millis(800))));
    let expected = stage.expect("dns_slow").owned_in(&net.client).is("/server/port", 53);
    expected.at_least("/latency_ms_median", 700.0).at_least("/affected", 5.0);
}

pub fn unanswered(stage: &mut Stage, family: Family) {
    let net = play(stage, family, |_| None);
    let expected = stage.expect("dns_unanswered").owned_in(&net.client).is("/server/port", 53);
    expected.is("/server/address", net.server_ip(family).to_string()).at_least("/affected", 5.0);
}

/// Every other query is lost; the others are answered at once.
pub fn half_unanswered(stage: &mut Stage) {
    let net = play(stage, V4, |id| (id % 2 == 0).then_some((0, Duration::ZERO)));
    stage.expect("dns_unanswered").owned_in(&net.client).at_least("/affected", 3.0);
}

/// The resolver's process has died.
pub fn nobody(stage: &mut Stage) {
    let net = stage.net();
    let socket = udp_to(&net.client, (net.server_ip(V4), 53).into());
    let mut id = 0;
    stage.watch(|watch| {
        watch.every(PAUSE, || {
            id += 1;
            ask(&socket, id);
        })
    });
    let expected = stage.expect("connection_refused").owned_in(&net.client).is("/remote/port", 53);
    expected.is("/explains/0", "dns_unanswered").at_least("/refused", 5.0);
}

/// Asks, and retransmits after a second, as resolvers do.
fn ask_again(socket: &UdpSocket, id: u16) {
    let _ = socket.set_read_timeout(Some(Duration::from_secs(1)));
    for _ in 0..3 {
        let _ = socket.send(&query(id, "www.example.org"));
        if socket.recv(&mut [0; 512]).is_ok() {
            return;
        }
    }
}

/// Asks continuously, from a few sockets at once.
fn keep_asking(stage: &mut Stage, netns: &Netns, at: SocketAddr, ask: fn(&UdpSocket, u16)) {
    let sockets: Vec<_> = (0..4).map(|_| udp_to(netns, at)).collect();
    stage.watch(|watch| {
        thread::scope(|scope| {
            for (number, socket) in sockets.iter().enumerate() {
                scope.spawn(move || {
                    let mut id = 1_000 * number as u16;
                    watch.every(PAUSE, || {
                        id += 1;
                        ask(socket, id);
                    });
                });
            }
        });
    });
}

/// Half of the answers are lost far away, and each retransmission is answered: loss without slowness.
fn half_lost(stage: &mut Stage) {
    let net =
        stage.wired(Duration::from_millis(1), |number, packet| packet[9] == 17 && packet[21] == 53 && number % 2 == 0);
    let at: SocketAddr = (net.server_ip(V4), 53).into();
    serve(&net.server, at, |_| Some((0, Duration::ZERO)));
    keep_asking(stage, &net.client, at, ask_again);
    let expected = stage.expect("dns_unanswered").owned_in(&net.client).is("/server/port", 53);
    expected.at_least("/affected", 5.0).at_least("/answered_when_sent_again", 3.0);
}

/// The server's host drops answers: both ends are here, and an answer left the server without arriving.
fn answers_dropped(stage: &mut Stage) {
    let net = stage.net();
    let at: SocketAddr = (net.server_ip(V4), 53).into();
    net.nft(&net.client, &["input udp sport 53 numgen inc mod 2 == 0 drop"]);
    serve(&net.server, at, |_| Some((0, Duration::ZERO)));
    keep_asking(stage, &net.client, at, ask_again);
    stage.expect("firewall_drop").is("/protocol", "udp").is("/service/port", 53).at_least("/packets", 3.0);
}

/// One host asks an address without a server, and another host gets answers from its own server.
fn wrong_resolver(stage: &mut Stage, host: u8) {
    let (wrong, right) = (stage.net(), stage.net());
    let at: SocketAddr = (right.server_ip(V4), 53).into();
    serve(&right.server, at, |_| Some((0, Duration::ZERO)));
    let works = udp_to(&right.client, at);
    let silent: SocketAddr = (wrong.host(V4, host), 53).into();
    let socket = udp_to(&wrong.client, silent);
    let mut id = 0;
    stage.watch(|watch| {
        watch.every(PAUSE, || {
            id += 1;
            ask(&works, id);
            ask(&socket, id);
        });
    });
    let expected = stage.expect("wrong_resolver").owned_in(&wrong.client).at_least("/queries", 3.0);
    expected.is("/resolver/address", silent.ip().to_string()).is("/answering/0", at.ip().to_string());
}

/// A firewall drops the queries: the finding is the firewall, without unanswered queries.
pub fn firewalled(stage: &mut Stage) {
    let net = stage.net();
    let at: SocketAddr = (net.server_ip(V4), 53).into();
    net.nft(&net.server, &["input udp dport 53 drop"]);
    serve(&net.server, at, |_| Some((0, Duration::ZERO)));
    let socket = udp_to(&net.client, at);
    let mut id = 0;
    stage.watch(|watch| {
        watch.every(PAUSE, || {
            id += 1;
            ask(&socket, id);
        })
    });
    stage.expect("firewall_drop").is("/protocol", "udp").is("/service/port", 53);
}

/// Answers arrive after the client has given up: slow, without unanswered queries.
pub fn late(stage: &mut Stage) {
    stage.window_ms = 8_000;
    let net = play(stage, V4, |_| Some((0, Duration::from_secs(3))));
    stage.expect("dns_slow").owned_in(&net.client).at_least("/latency_ms_median", 2_900.0).at_least("/affected", 5.0);
}

/// The client asks a local resolver, as most do. The finding is at the faulty server, once.
pub fn slow_behind_stub(stage: &mut Stage) {
    let net = stage.net();
    let (stub, at): (SocketAddr, SocketAddr) = (([127, 0, 0, 53], 53).into(), (net.server_ip(V4), 53).into());
    serve(&net.server, at, |_| Some((0, Duration::from_millis(800))));
    let resolver = udp(&net.client, stub);
    resolver.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let socket = udp_to(&net.client, stub);
    let pass_on = |query: Vec<u8>, from: SocketAddr| {
        let (upstream, mut answer) = (udp_to(&net.client, at), [0; 512]);
        let _ = upstream.set_read_timeout(Some(Duration::from_secs(2)));
        let _ = upstream.send(&query);
        let length = upstream.recv(&mut answer).unwrap_or_default();
        let _ = resolver.send_to(&answer[..length], from);
    };
    let mut id = 0;
    stage.watch(|watch| {
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut query = [0; 512];
                while watch.goes_on() {
                    if let Ok((length, from)) = resolver.recv_from(&mut query) {
                        let query = query[..length].to_vec();
                        scope.spawn(move || pass_on(query, from));
                    }
                }
            });
            watch.every(PAUSE, || {
                id += 1;
                ask(&socket, id);
            });
        });
    });
    let expected = stage.expect("dns_slow").owned_in(&net.client).is("/passed_on_by/address", "127.0.0.53");
    expected.is("/server/address", at.ip().to_string()).at_least("/affected", 5.0);
}
