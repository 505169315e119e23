//! Established connections whose peer becomes silent.

use std::{
    io::{Read, Write},
    os::fd::AsRawFd,
    time::Duration,
};

use serde_json::json;

use crate::harness::{slow::*, *};

// In guests.
#[test]
fn timed_out_connection_was_established() {
    let (pair, daemon) = (SlowPair::new(Duration::from_millis(1)), Daemon::of("trace_connections"));
    let listener = listen(&pair.b, SLOW_B);
    let to = listener.local_addr().unwrap();
    let old = connect(&pair.a, to).unwrap();
    let _held = listener.accept().unwrap();
    let window = daemon.watch("trace_connections", json!({"port": to.port()}));
    let new = connect(&pair.a, to).unwrap();
    let _held = listener.accept().unwrap();
    pair.b.ip("link set slow down");
    let attempt = pair.a.enter(|| std::net::TcpStream::connect_timeout(&to, Duration::from_millis(300)));
    assert!(attempt.is_err());
    for mut stream in [&old, &new] {
        let timeout: libc::c_int = 1_000;
        // SAFETY: the descriptor is open, and the value has the given length.
        let set = unsafe {
            libc::setsockopt(
                stream.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_USER_TIMEOUT,
                (&raw const timeout).cast(),
                4,
            )
        };
        assert_eq!(set, 0);
        stream.write_all(b"select 2").unwrap();
    }
    for mut stream in [&old, &new] {
        assert_eq!(stream.read(&mut [0]).unwrap_err().raw_os_error(), Some(libc::ETIMEDOUT));
    }
    let answer = window.end();
    let rows: Vec<_> = answer["connections"].as_array().unwrap().iter().collect();
    let of = |port: u16| *rows.iter().find(|row| row["local"]["port"] == port).unwrap();
    for (stream, was_seen) in [(&old, false), (&new, true)] {
        let row = of(stream.local_addr().unwrap().port());
        assert_eq!((&row["outcome"], &row["established"]), (&json!("timed_out"), &json!(true)), "{row:#}");
        assert_eq!((&row["errno"], &row["direction"]), (&json!("ETIMEDOUT"), &json!("outbound")), "{row:#}");
        assert_eq!(row["connect_latency_us"].is_u64(), was_seen, "{row:#}");
    }
    let failed = rows.iter().find(|row| row["established"] == false).unwrap();
    assert_ne!(failed["outcome"], "established", "{failed:#}");
}
