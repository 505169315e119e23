//! The past of times to the first byte: a server that becomes slow.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use netmon_mcp::recorder::time::{self, Period};
use serde_json::{Value, json};

use crate::{
    command_line::cli,
    harness::*,
    past::{Recorder, ask_past, facts, recording, until_recorded},
};

/// Exchanges for some time. The server thinks about each.
fn exchange(client: &mut TcpStream, server: &mut TcpStream, length: Duration, thinks: Duration) {
    let begin = Instant::now();
    loop {
        client.write_all(&[1; 100]).unwrap();
        server.read_exact(&mut [0; 100]).unwrap();
        thread::sleep(thinks);
        server.write_all(&[2; 100]).unwrap();
        client.read_exact(&mut [0; 100]).unwrap();
        if begin.elapsed() >= length {
            break;
        }
    }
    until_acknowledged(server);
}

fn until_now(begin_us: i64) -> Period {
    Period { begin_us, end_us: time::now() }
}

/// The only row of a list at this place.
fn row(list: &Value, is_it: impl Fn(&Value) -> bool) -> &Value {
    let found: Vec<_> = list.as_array().unwrap().iter().filter(|row| is_it(row)).collect();
    assert_eq!(found.len(), 1, "{list:#}");
    found[0]
}

#[test]
fn server_that_became_slow_is_in_the_recording() {
    let (_folder, path) = recording();
    let (pair, daemon) = (Pair::new(), Daemon::start());
    let recorder = Recorder::start(&daemon.socket, &path, &[]);
    until("a window is recorded", || facts(&path)?.period);
    let listener = listen(&pair.b, B);
    let to: SocketAddr = listener.local_addr().unwrap();
    let (port, local) = (to.port(), json!({"address": B, "port": to.port()}));
    let mut client = connect(&pair.a, to).unwrap();
    let mut server = listener.accept().unwrap().0;
    let begin_us = time::now();
    exchange(&mut client, &mut server, Duration::from_secs(12), Duration::from_millis(20));
    until_recorded(&path); // a window counts whole
    let slow_us = time::now();
    exchange(&mut client, &mut server, Duration::from_secs(12), Duration::from_millis(1_500));
    until_recorded(&path);
    let (all, slow) = (until_now(begin_us), until_now(slow_us));

    let latency = ask_past(&daemon.socket, &path, &format!("trace_latency port={port}"), slow);
    for side in ["server", "client"] {
        let reply = row(&latency["stages"], |row| row["stage"] == "request_to_reply" && row["side"] == side);
        let p50 = reply["us"]["p50"].as_f64().unwrap();
        assert!((1_350_000.0..1_650_000.0).contains(&p50), "{latency:#}");
        assert_eq!(reply["owner"]["pid"], std::process::id(), "{latency:#}");
        let network = row(&latency["stages"], |row| row["stage"] == "wire_to_ack" && row["side"] == side);
        assert_eq!(network["least"], true, "{latency:#}");
    }
    assert!(latency["measured"]["limits"].to_string().contains("only_replies_recorded"), "{latency:#}");

    let profile = ask_past(&daemon.socket, &path, &format!("profile_tcp port={port}"), slow);
    let first_byte = &row(&profile["listeners"], |row| row["local"] == local)["first_byte_us"];
    assert!(first_byte["p50"].as_u64().unwrap() >= 1_350_000, "{profile:#}");

    let diagnosis = ask_past(&daemon.socket, &path, &format!("diagnose limit=1000 port={port}"), all);
    let mut findings = diagnosis["findings"].as_array().unwrap().iter();
    let found = findings.find(|found| found["code"] == "slow_application").unwrap_or_else(|| panic!("{diagnosis:#}"));
    let evidence = &found["evidence"];
    assert_eq!((&evidence["local"], &evidence["owner"]["netns"]), (&local, &json!(pair.b.inode())), "{found:#}");
    let ms = |key: &str| evidence[key].as_f64().unwrap_or_else(|| panic!("{key}: {found:#}"));
    assert!(ms("reply_ms_p50") >= 1_350.0 && ms("reply_ms_p99") <= 1_700.0, "{found:#}");
    assert!((18.0..30.0).contains(&ms("reply_ms_p50_before")), "{found:#}");
    assert!(ms("rtt_us_p50") < 100_000.0, "{found:#}");
    assert_live_has_the_time_before(&daemon, &path, &mut client, &mut server);
    // The window before ends ten seconds before that of the diagnosis, and lasts ten seconds: no exchange is in it.
    let begun_us = time::now();
    for quiet_us in [10_000_000, 20_000_000] {
        let is_over = |period: &Period| period.end_us > begun_us + quiet_us;
        until("quiet seconds are recorded", || facts(&path)?.period.filter(is_over));
    }
    assert_live_has_the_time_before(&daemon, &path, &mut client, &mut server);
    drop(recorder);
}

/// A diagnosis of now reads the window before from the recording, or the five minutes before.
fn assert_live_has_the_time_before(daemon: &Daemon, path: &Path, client: &mut TcpStream, server: &mut TcpStream) {
    let port = client.peer_addr().unwrap().port();
    let mut command = cli(&daemon.socket, &format!("diagnose limit=1000 duration_ms=6000 port={port} --json"));
    let output = thread::scope(|scope| {
        let asked = scope.spawn(|| command.arg("--recording").arg(path).output().unwrap());
        while !asked.is_finished() {
            exchange(client, server, Duration::ZERO, Duration::from_millis(1_500));
        }
        asked.join().unwrap()
    });
    let live: Value = serde_json::from_slice(&output.stdout).unwrap();
    let evidence = &row(&live["findings"], |row| row["code"] == "slow_application")["evidence"];
    let before =
        |part: &str| evidence[format!("reply_ms_{part}_before")].as_u64().unwrap_or_else(|| panic!("{live:#}"));
    assert!(before("p50") >= 18 && before("p50") <= before("p99") && before("p99") <= 1_700, "{live:#}");
}
