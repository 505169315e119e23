//! `trace_latency`: delays of a known length, and the stage that they are in.

use std::{
    io::{Read, Write},
    net::UdpSocket,
    sync::mpsc::channel,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::harness::{delayed::*, slow::*, *};

mod delays;
mod quota;
mod truth;

const TOOL: &str = "trace_latency";

/// Runs `traffic` while a window is open, and returns the answer.
fn watched(daemon: &Daemon, port: u16, traffic: impl FnOnce()) -> Value {
    let window = daemon.watch(TOOL, json!({"port": port, "limit": 100}));
    traffic();
    let answer = window.end();
    Client::connect(&daemon.socket).until_detached(TOOL);
    answer
}

/// The row of a stage.
fn row<'a>(answer: &'a Value, stage: &str, side: &str) -> &'a Value {
    let rows = answer["stages"].as_array().unwrap().iter();
    let found: Vec<_> = rows.filter(|row| row["stage"] == stage && row["side"] == side).collect();
    assert_eq!(found.len(), 1, "{stage} of the {side}: {answer:#}");
    found[0]
}

/// What a stage without an injected delay may take.
fn small() -> f64 {
    patience(Duration::from_millis(1)).as_secs_f64() * 1e6
}

fn us(row: &Value, part: &str) -> f64 {
    row["us"][part].as_f64().unwrap_or_else(|| panic!("{row:#}"))
}

/// Whether the median and the maximum are those of the injected delays, in order: 10 % and 0.2 ms.
fn is_injected(row: &Value, delays: &[Duration]) {
    assert_eq!(row["count"], delays.len(), "{row:#}");
    let noise = patience(Duration::from_micros(200)).as_secs_f64() * 1e6;
    let median = delays[(delays.len() - 1) / 2].as_secs_f64() * 1e6;
    assert!((us(row, "p50") - median).abs() <= median * 0.1 + noise, "median {median} µs: {row:#}");
    let most = delays[delays.len() - 1].as_secs_f64() * 1e6;
    // The thread that injects the delay may itself start late.
    assert!(us(row, "max") >= most * 0.9 - noise, "maximum {most} µs: {row:#}");
}

// In guests, since Linux 6.12.
#[test]
fn late_reader_is_socket_to_read() {
    let pair = Pair::new();
    let daemon = daemon_for(TOOL, &pair.a);
    for (address, ms) in [(B, 5), (B6, 20), (B, 100)] {
        let mut ends = Ends::new(&pair.a, &pair.b, address);
        let mut times = Took::default();
        let late = Duration::from_millis(ms);
        let answer = watched(&daemon, ends.to.port(), || times = ends.exchange(20, late, Duration::ZERO));
        let waited = row(&answer, "socket_to_read", "server");
        is_injected(waited, &times.late);
        let local = json!({"address": address, "port": ends.to.port()});
        assert_eq!((&waited["local"], &waited["owner"]["pid"]), (&local, &json!(std::process::id())), "{waited:#}");
        assert_eq!(waited["owner"]["netns"], pair.b.inode(), "{waited:#}");
        for (stage, side) in [("request_to_reply", "server"), ("socket_to_read", "client")] {
            assert!(us(row(&answer, stage, side), "p50") < small(), "not {stage}: {answer:#}");
        }
        assert!(us(row(&answer, "request_to_reply", "client"), "p50") >= ms as f64 * 900.0, "{answer:#}");
    }
}

// In guests, since Linux 6.12.
#[test]
fn slow_server_is_request_to_reply_of_both_sides() {
    let pair = Pair::new();
    let daemon = daemon_for(TOOL, &pair.a);
    for (ms, count) in [(10, 30), (250, 5), (2_500, 1)] {
        let mut ends = Ends::new(&pair.a, &pair.b, B);
        let mut times = Took::default();
        let thought = Duration::from_millis(ms);
        let answer = watched(&daemon, ends.to.port(), || times = ends.exchange(count, Duration::ZERO, thought));
        for side in ["server", "client"] {
            is_injected(row(&answer, "request_to_reply", side), &times.thought);
            let network = row(&answer, "wire_to_ack", side);
            assert!(network["least"] == true && us(network, "p99") < small(), "not the network: {answer:#}");
        }
        // On a busy host, the server's thread runs only some time after a request has come.
        let woken = times.arriving[(count - 1) / 2].as_secs_f64() * 1e6;
        assert!(us(row(&answer, "socket_to_read", "server"), "p50") < woken + small(), "{answer:#}");
        assert_eq!(answer["measured"]["limits"], json!([]), "{answer:#}");
    }
}

#[test]
fn two_delays_are_two_stages() {
    let pair = Pair::new();
    let daemon = daemon_for(TOOL, &pair.a);
    let mut ends = Ends::new(&pair.a, &pair.b, B6);
    let mut times = Took::default();
    let [late, thought] = [20, 50].map(Duration::from_millis);
    let answer = watched(&daemon, ends.to.port(), || times = ends.exchange(10, late, thought));
    is_injected(row(&answer, "socket_to_read", "server"), &times.late);
    is_injected(row(&answer, "request_to_reply", "server"), &times.thought);
    assert!(us(row(&answer, "request_to_reply", "client"), "p50") >= 63_000.0, "both: {answer:#}");
}

/// As many HTTP clients send headers and body.
#[test]
fn request_in_two_parts_has_one_reply() {
    let pair = Pair::new();
    let daemon = daemon_for(TOOL, &pair.a);
    let ends = Ends::new(&pair.a, &pair.b, B);
    // Parts that are further apart than a millisecond are not taken for one request.
    let mut apart = 0;
    let answer = watched(&daemon, ends.to.port(), || {
        let (mut client, mut server) = (&ends.client, &ends.server);
        for _ in 0..10 {
            let begun = Instant::now();
            client.write_all(&[1; BYTES]).unwrap();
            client.write_all(&[1; BYTES]).unwrap();
            apart += u64::from(begun.elapsed() >= Duration::from_millis(1));
            server.read_exact(&mut [0; BYTES]).unwrap();
            server.read_exact(&mut [0; BYTES]).unwrap();
            thread::sleep(Duration::from_millis(10));
            server.write_all(&[2; BYTES]).unwrap();
            client.read_exact(&mut [0; BYTES]).unwrap();
        }
    });
    for side in ["server", "client"] {
        let replies = row(&answer, "request_to_reply", side);
        assert!((10 - apart..=10).contains(&replies["count"].as_u64().unwrap()), "{apart} apart: {answer:#}");
        assert!((9_000.0..13_000.0).contains(&us(replies, "p50")), "{answer:#}");
    }
    assert!(apart < 10, "this host stops for a millisecond all the time");
}

#[test]
fn slow_path_is_the_network() {
    let pair = SlowPair::new(Duration::from_millis(10));
    let daemon = daemon_for(TOOL, &pair.a);
    let mut ends = Ends::new(&pair.a, &pair.b, SLOW_B);
    let answer = watched(&daemon, ends.to.port(), || drop(ends.exchange(20, Duration::ZERO, Duration::ZERO)));
    for side in ["server", "client"] {
        let network = row(&answer, "wire_to_ack", side);
        assert!((18_700.0..24_000.0).contains(&us(network, "p50")), "{answer:#}");
    }
    assert!((18_700.0..24_000.0).contains(&us(row(&answer, "request_to_reply", "client"), "p50")), "{answer:#}");
    for stage in ["socket_to_read", "request_to_reply", "write_to_wire", "arrival_to_socket"] {
        assert!(us(row(&answer, stage, "server"), "p50") < small(), "not {stage}: {answer:#}");
    }
}

#[test]
fn bulk_round_trips_are_of_the_network() {
    let pair = SlowPair::new(Duration::from_millis(10));
    let daemon = daemon_for(TOOL, &pair.a);
    let ends = Ends::new(&pair.a, &pair.b, SLOW_B);
    let answer = watched(&daemon, ends.to.port(), || {
        thread::scope(|scope| {
            let mut server = &ends.server;
            scope.spawn(move || server.read_exact(&mut vec![0; 2_000_000]).unwrap());
            (&ends.client).write_all(&vec![1; 2_000_000]).unwrap();
        });
    });
    let network = row(&answer, "wire_to_ack", "client");
    assert!(network.get("least").is_none() && network["count"].as_u64().unwrap() >= 5, "{network:#}");
    assert!((18_700.0..30_000.0).contains(&us(network, "p50")), "{answer:#}");
}

#[test]
fn shaper_is_write_to_wire() {
    let pair = Pair::new();
    pair.a.run("tc qdisc add dev v0 root tbf rate 8mbit burst 5k latency 2s");
    let daemon = daemon_for(TOOL, &pair.a);
    let ends = Ends::new(&pair.a, &pair.b, B);
    let mut took = Duration::ZERO;
    let answer = watched(&daemon, ends.to.port(), || {
        let mut server = &ends.server;
        let begin = Instant::now();
        (&ends.client).write_all(&[1; 200_000]).unwrap();
        server.read_exact(&mut [0; 200_000]).unwrap();
        took = begin.elapsed();
    });
    let (sent, took) = (row(&answer, "write_to_wire", "client"), took.as_secs_f64() * 1e6);
    assert!(us(sent, "max") <= took * 1.1 && us(sent, "p50") >= took * 0.2, "{took} µs: {answer:#}");
    let slow = |row: &&Value| us(row, "p50") > took * 0.1 && row["stage"] != "write_to_wire";
    let others: Vec<_> = answer["stages"].as_array().unwrap().iter().filter(slow).collect();
    assert!(others.is_empty(), "{took} µs: {answer:#}");
}

// In guests, since Linux 6.12.
#[test]
fn late_udp_reader_is_socket_to_read() {
    let pair = Pair::new();
    let daemon = daemon_for(TOOL, &pair.a);
    let server = pair.b.enter(|| UdpSocket::bind((B, 7_406)).unwrap());
    let client = pair.a.enter(|| UdpSocket::bind((A, 0)).unwrap());
    client.connect(server.local_addr().unwrap()).unwrap();
    let port = server.local_addr().unwrap().port();
    let (send, sent) = channel();
    let mut waited = Vec::new();
    // The kernel begins to stamp packets a moment after the first window opens.
    let stamped = daemon.watch(TOOL, json!({}));
    until("the kernel stamps packets", || {
        let window = daemon.watch(TOOL, json!({"port": port}));
        client.send(b"x").unwrap();
        server.recv(&mut [0; 8]).unwrap();
        window.end()["stages"].to_string().contains("arrival_to_socket").then_some(())
    });
    let window = daemon.watch(TOOL, json!({"port": port}));
    for _ in 0..10 {
        for _ in 0..3 {
            client.send(b"x").unwrap();
            send.send(Instant::now()).unwrap();
        }
        thread::sleep(Duration::from_millis(20));
        for _ in 0..3 {
            server.recv(&mut [0; 8]).unwrap();
            waited.push(sent.recv().unwrap().elapsed());
            thread::sleep(Duration::from_millis(10));
        }
    }
    let answer = window.end();
    drop(stamped);
    waited.sort();
    let row = row(&answer, "socket_to_read", "server");
    is_injected(row, &waited);
    assert_eq!((&row["protocol"], &row["local"]), (&json!("udp"), &json!({"address": B, "port": port})), "{row:#}");
}

#[test]
fn quiet_traffic_waits_nowhere() {
    let pair = Pair::new();
    let daemon = daemon_for(TOOL, &pair.a);
    let mut ends = Ends::new(&pair.a, &pair.b, B);
    let answer = watched(&daemon, ends.to.port(), || drop(ends.exchange(200, Duration::ZERO, Duration::ZERO)));
    let stages = answer["stages"].as_array().unwrap();
    assert_eq!(stages.len(), 12, "six of each side: {answer:#}");
    assert!(stages.iter().all(|row| us(row, "p50") < small()), "{answer:#}");
    // All of them: the first 1,024 events of a socket count one by one.
    assert_eq!(row(&answer, "request_to_reply", "server")["count"], 200, "{answer:#}");
    assert_eq!((&answer["throttled"], &answer["measured"]["limits"]), (&json!([]), &json!([])), "{answer:#}");
}

/// A busy socket is looked at in bursts. A long time is as likely to be in one as a short one.
#[test]
fn bursts_of_a_busy_socket_count_for_all() {
    const EXCHANGES: u64 = 40_000;
    /// Of these exchanges, one has a server that thinks.
    const ONE_OF: u64 = 20;
    let pair = Pair::new();
    let daemon = daemon_for(TOOL, &pair.a);
    let ends = Ends::new(&pair.a, &pair.b, B);
    let answer = watched(&daemon, ends.to.port(), || {
        let (mut client, mut server) = (&ends.client, &ends.server);
        for n in 0..EXCHANGES {
            client.write_all(&[1]).unwrap();
            server.read_exact(&mut [0]).unwrap();
            if n % ONE_OF == ONE_OF - 1 {
                let begun = Instant::now();
                while begun.elapsed() < Duration::from_micros(500) {}
            }
            server.write_all(&[2]).unwrap();
            client.read_exact(&mut [0]).unwrap();
        }
    });
    let replies = row(&answer, "request_to_reply", "server");
    let count = replies["count"].as_u64().unwrap();
    assert!((EXCHANGES * 9 / 10..=EXCHANGES * 11 / 10).contains(&count), "{replies:#}");
    // 5 % are long: more than 1 and fewer than 10.
    assert!(us(replies, "p90") < 400.0 && us(replies, "p99") >= 450.0, "{replies:#}");
    let ends =
        ["socket_to_read", "write_to_wire"].map(|stage| row(&answer, stage, "client")["count"].as_u64().unwrap());
    assert!(ends.iter().all(|count| count.abs_diff(EXCHANGES) < EXCHANGES / 10), "{answer:#}");
}

/// Both ends send when they like: no reply belongs to one request.
#[test]
fn overlapping_exchanges_are_left_out_and_counted() {
    const STREAMS: u64 = 6;
    let pair = Pair::new();
    let daemon = daemon_for(TOOL, &pair.a);
    let ends = Ends::new(&pair.a, &pair.b, B);
    let answer = watched(&daemon, ends.to.port(), || {
        let (mut client, mut server) = (&ends.client, &ends.server);
        for _ in 0..STREAMS {
            // A second request comes while the first one waits for its reply.
            for _ in 0..2 {
                client.write_all(&[1; BYTES]).unwrap();
                server.read_exact(&mut [0; BYTES]).unwrap();
                thread::sleep(Duration::from_millis(20));
            }
            for _ in 0..2 {
                server.write_all(&[2; BYTES]).unwrap();
                client.read_exact(&mut [0; BYTES]).unwrap();
            }
        }
    });
    let replies = answer["stages"].as_array().unwrap().iter().filter(|row| row["stage"] == "request_to_reply");
    assert_eq!(replies.count(), 0, "{answer:#}");
    let limit = &answer["measured"]["limits"][0];
    assert_eq!(
        (&limit["code"], &limit["count"]),
        (&json!("exchanges_left_out"), &json!(6)),
        "3 of each end: {answer:#}"
    );
    assert!(limit["text"].as_str().unwrap().contains("2 connections are left out"), "{limit}");
}

#[test]
fn filters_and_readings_add_up() {
    let pair = Pair::new();
    let daemon = daemon_for(TOOL, &pair.a);
    let mut ends = Ends::new(&pair.a, &pair.b, B);
    let (port, netns) = (ends.to.port(), pair.b.inode());
    let questions = [
        (json!({"port": port}), ["client", "server"].as_slice()),
        (json!({"port": port, "netns": netns}), &["server"]),
        (json!({"port": port, "remote": B}), &["client"]),
        (json!({"port": port, "remote": "10.77.0.1/32", "pid": std::process::id()}), &["server"]),
        (json!({"port": port, "process": "no-such-process"}), &[]),
        (json!({"port": port, "container": "0123"}), &[]),
    ];
    let windows: Vec<_> = questions.iter().map(|(question, _)| daemon.watch(TOOL, question.clone())).collect();
    let readings = daemon.read_every(TOOL, Duration::from_millis(100), json!({"port": port, "limit": 100}));
    ends.exchange(20, Duration::ZERO, Duration::from_millis(20));
    until("a reading has the last of them", || (readings.count() > 6).then_some(()));
    for (window, (question, sides)) in windows.into_iter().zip(&questions) {
        let answer = window.end();
        let mut found: Vec<_> =
            answer["stages"].as_array().unwrap().iter().map(|row| row["side"].as_str().unwrap()).collect();
        found.sort_unstable();
        found.dedup();
        assert_eq!(found, *sides, "{question}: {answer:#}");
    }
    let samples = readings.end();
    assert!(samples.samples.len() > 3, "{}", samples.samples.len());
    let merged = samples.merged();
    assert_eq!(row(&merged, "request_to_reply", "server")["count"], 20, "{merged:#}");
    assert_eq!(row(&merged, "socket_to_read", "client")["count"], 20, "{merged:#}");
}
