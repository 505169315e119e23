//! The limits of a sender, each created for real.

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{Ends, between, watched};
use crate::harness::{slow::*, *};

/// Writes for some time: all that the socket accepts, or this amount after each pause.
fn write_for(stream: &TcpStream, time: Duration, bytes: usize, pause: Duration) {
    stream.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
    let end = Instant::now() + time;
    while Instant::now() < end {
        let _ = (&mut &*stream).write(&vec![0; bytes]);
        thread::sleep(pause);
    }
}

/// The limit of a client with this way of writing, to a server that reads or not.
fn limit(pair: (&Netns, &Netns), address: &str, reads: bool, write: impl FnOnce(&TcpStream)) -> Value {
    let daemon = Daemon::of("profile_tcp");
    let ends = Ends::new(pair.0, pair.1, address, address);
    let mut server = ends.server.try_clone().unwrap();
    if reads {
        thread::spawn(move || while let Ok(1..) = server.read(&mut [0; 65_536]) {});
    }
    let arguments = json!({"port": ends.to.port(), "remote": address});
    let answer = watched(&daemon, arguments, || write(&ends.client));
    ends.row(&answer).clone()
}

const TIME: Duration = Duration::from_millis(1_800);

#[test]
fn idle_reader_limits_its_sender() {
    let pair = Pair::new();
    let row = limit((&pair.a, &pair.b), B, false, |stream| write_for(stream, TIME, 65_536, Duration::ZERO));
    assert_eq!(row["limited_by"], "receiver", "{row:#}");
    assert!(between(&row["limited_ms"]["receiver"], 1_000, 2_600), "{row:#}");
}

#[test]
fn small_send_buffer_limits_its_sender() {
    let pair = SlowPair::new(Duration::from_millis(20));
    let row = limit((&pair.a, &pair.b), SLOW_B, true, |stream| {
        rustix::net::sockopt::set_socket_send_buffer_size(stream, 4_096).unwrap();
        write_for(stream, TIME, 65_536, Duration::ZERO);
    });
    assert_eq!(row["limited_by"], "send_buffer", "{row:#}");
}

#[test]
fn small_congestion_window_counts_as_network() {
    let pair = SlowPair::new(Duration::from_millis(10));
    pair.a.ip("route change 10.78.0.0/24 dev slow cwnd lock 10");
    let measure = || limit((&pair.a, &pair.b), SLOW_B, true, |stream| write_for(stream, TIME, 65_536, Duration::ZERO));
    // A route's locked window applies to destinations with cached metrics, from a closed connection.
    measure();
    let row = measure();
    assert_eq!(row["limited_by"], "network", "{row:#}");
}

#[test]
fn slow_writer_is_limited_by_application() {
    let pair = SlowPair::new(Duration::from_millis(10));
    let row = limit((&pair.a, &pair.b), SLOW_B, true, |stream| {
        write_for(stream, TIME, 100, Duration::from_millis(50));
    });
    assert_eq!(row["limited_by"], "application", "{row:#}");
}
