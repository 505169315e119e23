//! Programs that take long to reply, and what looks so.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

use super::{Scenario, each, one, stage::*, traffic::*};
use crate::harness::*;

pub fn scenarios() -> Vec<Scenario> {
    [
        each("slow application", slow_application),
        one("slow application, closes", slow_and_closes),
        one("slow application, behind proxy", slow_behind_proxy),
        one("quiet: events pushed", events_pushed),
        one("quiet: long answers", long_answers),
        one("quiet: requests in pieces", requests_in_pieces),
        one("quiet: long polling", long_polling),
        one("quiet: chat", chat),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// How long it thinks: far more than a way takes.
const THINKS: Duration = Duration::from_millis(1_600);

/// One request and its answer.
fn answer(stream: &mut TcpStream) -> bool {
    let mut request = [0; 100];
    if stream.read_exact(&mut request).is_err() {
        return false;
    }
    thread::sleep(THINKS);
    stream.write_all(&request).is_ok()
}

fn thinking(netns: &Netns, at: SocketAddr) -> Server {
    Server::start(netns, at, |mut stream| while answer(&mut stream) {})
}

pub fn slow_application(stage: &mut Stage, family: Family) {
    let net = stage.net();
    let server = thinking(&net.server, (net.server_ip(family), 80).into());
    let streams: Vec<_> = (0..2).map(|_| connected(&net.client, server.at)).collect();
    stage.watch(|watch| {
        thread::scope(|scope| {
            for stream in &streams {
                scope.spawn(|| {
                    watch.every(Duration::from_millis(10), || {
                        exchange(stream, 100);
                    })
                });
            }
        });
    });
    let expected = stage.expect("slow_application").owned_in(&net.server).is("/local/port", 80);
    expected.at_least("/reply_ms_p50", 1_500.0).at_least("/slow_replies", 2.0);
}

/// Each request has a connection, which the server closes as soon as it has replied.
fn slow_and_closes(stage: &mut Stage) {
    let net = stage.wired(Duration::from_millis(10), |_, _| false);
    let server = Server::start(&net.server, (net.server_ip(V4), 80).into(), |mut stream| {
        answer(&mut stream);
    });
    stage.watch(|watch| {
        watch.every(Duration::from_millis(10), || {
            if let Ok(stream) = try_connect(&net.client, server.at) {
                exchange(&stream, 100);
            }
        })
    });
    let expected = stage.expect("slow_application").owned_in(&net.server).is("/local/port", 80);
    expected.at_least("/reply_ms_p50", 1_500.0).at_least("/slow_replies", 2.0);
}

/// Clients ask a proxy in one network namespace, which asks the application in another.
fn slow_behind_proxy(stage: &mut Stage) {
    let net = stage.net();
    let back = thinking(&net.server, (net.server_ip(V4), 8_080).into());
    let there = Arc::new(connected(&net.client, back.at));
    let front = Server::start(&net.client, ([127, 0, 0, 1], 80).into(), move |mut stream| {
        let mut request = [0; 100];
        while stream.read_exact(&mut request).is_ok() && exchange(&there, 100) && stream.write_all(&request).is_ok() {}
    });
    let stream = connected(&net.client, front.at);
    stage.watch(|watch| {
        watch.every(Duration::from_millis(10), || {
            exchange(&stream, 100);
        })
    });
    let expected = stage.expect("slow_application").owned_in(&net.server).is("/local/port", 8_080);
    expected.known("/affects/0");
}

/// A client asks once; the server says something whenever there is something to say.
fn events_pushed(stage: &mut Stage) {
    let net = stage.net();
    let server = Server::start(&net.server, (net.server_ip(V4), 80).into(), |mut stream| {
        let mut request = [0; 100];
        let _ = stream.read_exact(&mut request);
        while stream.write_all(&request).is_ok() {
            thread::sleep(Duration::from_millis(1_200));
        }
    });
    let old: Vec<_> = (0..3).map(|_| connected(&net.client, server.at)).collect();
    old.iter().for_each(|stream| assert!(exchange(stream, 100)));
    let mut new = Vec::new();
    stage.watch(|watch| {
        watch.every(PAUSE, || {
            if new.len() < 3 {
                new.extend(try_connect(&net.client, server.at).ok().filter(|stream| exchange(stream, 100)));
            }
        });
    });
}

/// Answers that take seconds, since there is much of them, and it comes piece by piece.
fn long_answers(stage: &mut Stage) {
    let net = stage.net();
    let server = Server::start(&net.server, (net.server_ip(V4), 80).into(), |mut stream| {
        let mut request = [0; 100];
        while stream.read_exact(&mut request).is_ok() {
            for _ in 0..10 {
                if stream.write_all(&request).is_err() {
                    return;
                }
                thread::sleep(Duration::from_millis(180));
            }
        }
    });
    let mut old = connected(&net.client, server.at);
    old.write_all(&[7; 100]).unwrap();
    let stream = connected(&net.client, server.at);
    stage.watch(|watch| {
        watch.every(Duration::from_millis(10), || {
            let mut rest = [0; 900];
            let _ = exchange(&stream, 100) && (&stream).read_exact(&mut rest).is_ok();
        })
    });
    drop(old);
}

/// Clients take seconds to say what they want.
fn requests_in_pieces(stage: &mut Stage) {
    let net = stage.net();
    let server = Server::start(&net.server, (net.server_ip(V4), 80).into(), |mut stream| {
        let mut request = [0; 100];
        while stream.read_exact(&mut request).is_ok() && stream.write_all(&request).is_ok() {}
    });
    let mut stream = connected(&net.client, server.at);
    stage.watch(|watch| {
        watch.every(Duration::from_millis(10), || {
            for _ in 0..10 {
                let _ = stream.write_all(&[7; 10]);
                thread::sleep(Duration::from_millis(150));
            }
            let _ = stream.read_exact(&mut [0; 100]);
        })
    });
}

/// A server that has nothing to say, and says so when its time for a request is over.
fn long_polling(stage: &mut Stage) {
    let net = stage.net();
    let server = Server::start(&net.server, (net.server_ip(V4), 80).into(), |mut stream| {
        let mut request = [0; 100];
        while stream.read_exact(&mut request).is_ok() {
            thread::sleep(Duration::from_millis(5_200));
            let _ = stream.write_all(&request);
        }
    });
    let streams: Vec<_> = (0..4).map(|_| connected(&net.client, server.at)).collect();
    stage.watch(|watch| {
        thread::scope(|scope| {
            for stream in &streams {
                scope.spawn(|| {
                    watch.every(Duration::from_millis(10), || {
                        exchange(stream, 100);
                    })
                });
            }
        });
    });
}

/// Both ends send when they have something to say, and nothing is a reply to anything.
fn chat(stage: &mut Stage) {
    let net = stage.net();
    let server = Server::start(&net.server, (net.server_ip(V4), 80).into(), |mut stream| {
        while stream.write_all(&[7; 100]).is_ok() {
            thread::sleep(Duration::from_millis(1_300));
        }
    });
    let streams: Vec<_> = (0..6).map(|_| connected(&net.client, server.at)).collect();
    stage.watch(|watch| {
        watch.every(Duration::from_millis(2_100), || {
            streams.iter().for_each(|mut stream| stream.write_all(&[7; 100]).unwrap());
        })
    });
}
