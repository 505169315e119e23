//! Held connections: by a program that never closes, by a source without requests.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use super::{Scenario, one, stage::*, traffic::*};
use crate::harness::*;

pub fn scenarios() -> Vec<Scenario> {
    [
        one("never closes", never_closes),
        one("never closes, one after the other", leaks_one_by_one),
        one("never closes, as a client", client_never_closes),
        one("connection flood, silent", flood_silent),
        one("connection flood, trickling", flood_trickling),
        one("quiet: closes late", closes_late),
        one("quiet: rolling restart", rolling_restart),
        one("quiet: proxy with a pool", proxy_pool),
        one("quiet: proxy before a slow server", proxy_waits),
    ]
    .into_iter()
    .flatten()
    .collect()
}

type Kept = Arc<Mutex<Vec<TcpStream>>>;

/// A server that keeps its accepted connections until the end of the scenario.
fn keeper(netns: &Netns, at: SocketAddr) -> (Server, Kept) {
    let kept = Kept::default();
    let keep = Arc::clone(&kept);
    (Server::start(netns, at, move |stream| keep.lock().unwrap().push(stream)), kept)
}

/// Many clients have gone, and their connections remain.
fn never_closes(stage: &mut Stage) {
    let net = stage.net();
    let (server, kept) = keeper(&net.server, (net.server_ip(V4), 80).into());
    drop((0..150).map(|_| connected(&net.client, server.at)).collect::<Vec<_>>());
    until("all are accepted", || (kept.lock().unwrap().len() >= 150).then_some(()));
    stage.watch(|watch| watch.every(PAUSE, || ()));
    let expected = stage.expect("close_wait_leak").owned_in(&net.server).is("/local/port", 80);
    expected.at_least("/count", 150.0).at_least("/oldest_seconds", 2.0);
}

/// Clients come and go one by one; none of the connections is ever closed.
fn leaks_one_by_one(stage: &mut Stage) {
    let net = stage.net();
    let (server, _kept) = keeper(&net.server, (net.server_ip(V6), 8080).into());
    stage.watch(|watch| {
        watch.every(PAUSE, || {
            if let Ok(mut stream) = try_connect(&net.client, server.at) {
                let _ = stream.write_all(b"GET");
            }
        })
    });
    let expected = stage.expect("close_wait_leak").owned_in(&net.server).is("/local/port", 8080);
    expected.at_least("/new_in_the_window", 10.0);
}

/// A client that never closes the connections that its server closes one by one.
fn client_never_closes(stage: &mut Stage) {
    let net = stage.net();
    let server = Server::start(&net.server, (net.server_ip(V4), 80).into(), drop);
    let mut kept = Vec::new();
    stage.watch(|watch| watch.every(Duration::from_millis(100), || kept.extend(try_connect(&net.client, server.at))));
    let expected = stage.expect("close_wait_leak").owned_in(&net.client).is("/remote/port", 80);
    expected.is("/remote/address", server.at.ip().to_string()).at_least("/count", 20.0);
}

/// One client opens connections without requests.
fn flood_silent(stage: &mut Stage) {
    let net = stage.net();
    let server = Server::echo(&net.server, (net.server_ip(V4), 80).into());
    let _held: Vec<_> = (0..160).map(|_| connected(&net.client, server.at)).collect();
    stage.watch(|watch| watch.every(PAUSE, || ()));
    let expected = stage.expect("connection_flood").owned_in(&net.server).is("/local/port", 80);
    expected.is("/source_address", net.host(V4, 1).to_string()).at_least("/connections", 160.0);
    expected.is("/source_owner/netns", net.client.inode());
}

/// One client sends its requests one byte at a time, and never completes one.
fn flood_trickling(stage: &mut Stage) {
    let net = stage.net();
    let server = Server::sink(&net.server, (net.server_ip(V6), 80).into());
    let held: Vec<_> = (0..130).map(|_| connected(&net.client, server.at)).collect();
    stage.watch(|watch| {
        watch.every(Duration::from_secs(1), || {
            held.iter().for_each(|mut stream| drop(stream.write_all(b"X")));
        })
    });
    let expected = stage.expect("connection_flood").owned_in(&net.server).is("/local/port", 80);
    expected.is("/source_address", net.host(V6, 1).to_string()).at_least("/never_answered", 120.0);
}

/// A server that delays its close, like one with an answer to finish.
fn closes_late(stage: &mut Stage) {
    let net = stage.net();
    let server = Server::start(&net.server, (net.server_ip(V4), 80).into(), |mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
        thread::sleep(Duration::from_millis(800));
    });
    stage.watch(|watch| watch.every(Duration::from_millis(50), || drop(try_connect(&net.client, server.at))));
    stage.tolerated.push("connection_churn");
}

/// A server stops, and closes the idle connections of a client's pool. The client checks a connection before use.
fn rolling_restart(stage: &mut Stage) {
    let net = stage.net();
    let (server, kept) = keeper(&net.server, (net.server_ip(V4), 80).into());
    let _pool: Vec<_> = (0..80).map(|_| connected(&net.client, server.at)).collect();
    until("all are accepted", || (kept.lock().unwrap().len() >= 80).then_some(()));
    stage.watch(|watch| {
        watch.every(Duration::from_secs(1), || {
            if watch.elapsed() > Duration::from_secs(1) {
                kept.lock().unwrap().clear();
            }
        })
    });
}

/// One source has all connections of a server, and uses them.
fn proxy_pool(stage: &mut Stage) {
    let net = stage.net();
    let server = Server::echo(&net.server, (net.server_ip(V4), 80).into());
    let pool: Vec<_> = (0..140).map(|_| connected(&net.client, server.at)).collect();
    stage.watch(|watch| {
        let mut next = pool.iter().cycle();
        watch.every(Duration::from_millis(10), || {
            next.next().into_iter().for_each(|stream| assert!(exchange(stream, 200)))
        });
    });
}

/// A proxy with one connection per request has many open, since the server takes seconds for each.
fn proxy_waits(stage: &mut Stage) {
    let net = stage.net();
    let server = Server::start(&net.server, (net.server_ip(V4), 80).into(), |mut stream| {
        let _ = stream.read(&mut [0; 100]);
        thread::sleep(Duration::from_millis(2_500));
        let _ = stream.write_all(b"done");
    });
    stage.watch(|watch| {
        let mut waiting = std::collections::VecDeque::new();
        watch.every(Duration::from_millis(20), || {
            if let Ok(mut stream) = try_connect(&net.client, server.at) {
                let _ = stream.write_all(b"GET");
                waiting.push_back((watch.elapsed(), stream));
            }
            while waiting.front().is_some_and(|(since, _)| watch.elapsed() > *since + Duration::from_secs(3)) {
                waiting.pop_front();
            }
        });
    });
    stage.tolerated.extend(["connection_churn", "slow_application"]);
}
