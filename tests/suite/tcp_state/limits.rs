//! Senders that wait although the congestion window has room.

use std::{
    io::{Read, Write},
    net::TcpStream,
    os::fd::AsRawFd,
    thread,
    time::{Duration, Instant},
};

use rustix::net::sockopt;
use serde_json::{Value, json};

use crate::harness::{slow::*, *};

const TIME: Duration = Duration::from_millis(1_500);

/// A connection over a path of `delay` to a server that reads.
fn to_a_reader(pair: &SlowPair) -> TcpStream {
    let listener = listen(&pair.b, SLOW_B);
    let stream = connect(&pair.a, listener.local_addr().unwrap()).unwrap();
    let mut server = listener.accept().unwrap().0;
    thread::spawn(move || while let Ok(1..) = server.read(&mut [0; 65_536]) {});
    stream
}

/// Whether the congestion window has room: it is full in the first round trip, at any pace.
fn has_room(row: &Value) -> bool {
    row["tcp"]["unacked_packets"].as_u64() < row["cwnd_packets"].as_u64()
}

/// The limit of a writing client: each distinct value from snapshots, with or without room, and the total of
/// profile_tcp.
fn limits(daemon: &Daemon, stream: &TcpStream, write: impl FnOnce() + Send) -> (Vec<Value>, Value) {
    let to = stream.peer_addr().unwrap();
    let window = daemon.watch("profile_tcp", json!({"port": to.port(), "remote": to.ip()}));
    let mut client = Client::connect(&daemon.socket);
    let mut seen = Vec::<Value>::new();
    thread::scope(|scope| {
        let writer = scope.spawn(write);
        while !writer.is_finished() {
            let answer =
                client.call("snapshot_sockets", json!({"port": to.port(), "limit": 10, "detail": true})).unwrap();
            let rows = answer["sockets"].as_array().unwrap().iter();
            for row in rows.filter(|row| row["remote"]["port"] == to.port()) {
                let known = |seen: &Value| (&seen["limited_by"], has_room(seen)) == (&row["limited_by"], has_room(row));
                if !seen.iter().any(known) {
                    seen.push(row.clone());
                }
            }
        }
    });
    let answer = window.end();
    let row = answer["remotes"].as_array().unwrap().iter().find(|row| row["remote"]["port"] == to.port()).cloned();
    (seen, row.unwrap_or_else(|| panic!("{answer:#}")))
}

fn is_among(seen: &[Value], limit: &str) -> bool {
    seen.iter().any(|row| has_room(row) && row["limited_by"] == limit)
}

#[test]
fn tcp_cork_counts_as_application() {
    let (pair, daemon) = (SlowPair::new(Duration::from_millis(5)), Daemon::of_sockets());
    let stream = to_a_reader(&pair);
    sockopt::set_tcp_cork(&stream, true).unwrap();
    let (seen, row) = limits(&daemon, &stream, || {
        let end = Instant::now() + TIME;
        while Instant::now() < end {
            (&stream).write_all(&[7; 300]).unwrap();
            thread::sleep(Duration::from_millis(100));
        }
    });
    assert!(!is_among(&seen, "network"), "{seen:#?}");
    assert_eq!(row["limited_by"], "application", "{row:#}");
}

#[test]
fn requested_pacing_counts_as_application() {
    const SO_MAX_PACING_RATE: libc::c_int = 47;
    let (pair, daemon) = (SlowPair::new(Duration::from_millis(5)), Daemon::of_sockets());
    let stream = to_a_reader(&pair);
    let rate: u32 = 200_000;
    // SAFETY: the descriptor is open, and the value has the given length.
    let set = unsafe {
        libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, SO_MAX_PACING_RATE, (&raw const rate).cast(), 4)
    };
    assert_eq!(set, 0);
    let (seen, row) = limits(&daemon, &stream, || {
        // Room for a second of data, so that the process does not wait for the send buffer.
        sockopt::set_socket_send_buffer_size(&stream, 2_000_000).unwrap();
        (&stream).write_all(&[7; 300_000]).unwrap();
        thread::sleep(TIME);
    });
    assert!(!is_among(&seen, "network") && is_among(&seen, "application"), "{seen:#?}");
    assert_eq!(row["limited_by"], "application", "{row:#}");
}

/// Most segments come while the window is full. Most of the time nothing comes, and the last few bytes wait for Nagle.
#[test]
fn limited_by_weighs_time_instead_of_segments() {
    let (pair, daemon) = (SlowPair::new(Duration::from_millis(1)), Daemon::of_sockets());
    let listener = listen(&pair.b, SLOW_B);
    let mut stream = connect(&pair.a, listener.local_addr().unwrap()).unwrap();
    let mut server = listener.accept().unwrap().0;
    thread::spawn(move || while server.read_exact(&mut [0; 60_200]).is_ok() && server.write_all(b"ok").is_ok() {});
    let (_, row) = limits(&daemon, &stream.try_clone().unwrap(), || {
        let end = Instant::now() + TIME;
        while Instant::now() < end {
            stream.write_all(&[7; 60_000]).unwrap();
            stream.write_all(&[7; 100]).unwrap();
            stream.write_all(&[7; 100]).unwrap();
            stream.read_exact(&mut [0; 2]).unwrap();
            thread::sleep(Duration::from_millis(20));
        }
    });
    let time = |by: &str| row["limited_ms"][by].as_u64().unwrap();
    assert!(time("network") < TIME.as_millis() as u64, "{row:#}");
    assert!(time("network") + time("application") > 0, "{row:#}");
}
