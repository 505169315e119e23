//! `profile_tcp`: round trips, retransmits, resets and limits, against the sockets' own counters.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    harness::{slow::*, *},
    processes::Process,
};

mod first_byte;
mod limited;
mod spurious;

const TOOL: &str = "profile_tcp";

/// Runs `traffic` while a window with these arguments is open, and returns the answer.
fn watched(daemon: &Daemon, arguments: Value, traffic: impl FnOnce()) -> Value {
    let window = daemon.watch(TOOL, arguments);
    traffic();
    let answer = window.end();
    Client::connect(&daemon.socket).until_detached(TOOL);
    answer
}

/// A connection with both of its ends.
struct Ends {
    to: SocketAddr,
    client: TcpStream,
    server: TcpStream,
}

impl Ends {
    fn new(a: &Netns, b: &Netns, address: &str, bound: &str) -> Ends {
        let listener = listen(b, bound);
        let to = SocketAddr::new(address.parse().unwrap(), listener.local_addr().unwrap().port());
        let client = connect(a, to).unwrap();
        let server = listener.accept().unwrap().0;
        client.set_nodelay(true).unwrap();
        server.set_nodelay(true).unwrap();
        Ends { to, client, server }
    }

    /// The row of the client's end.
    fn row<'a>(&self, answer: &'a Value) -> &'a Value {
        let remote = json!({"address": self.to.ip(), "port": self.to.port()});
        let rows = answer["remotes"].as_array().unwrap().iter();
        let found: Vec<_> = rows.filter(|row| row["remote"] == remote).collect();
        assert_eq!(found.len(), 1, "{answer:#}");
        found[0]
    }

    fn round_trips(&mut self, count: usize) {
        for _ in 0..count {
            self.client.write_all(&[1]).unwrap();
            self.server.read_exact(&mut [0]).unwrap();
            self.server.write_all(&[2]).unwrap();
            self.client.read_exact(&mut [0]).unwrap();
        }
    }
}

/// The result of getsockopt(TCP_INFO), by the offsets of struct tcp_info (linux/tcp.h).
#[derive(Clone, Copy)]
struct TcpInfo([u8; 232]);

impl TcpInfo {
    fn of(stream: &TcpStream) -> TcpInfo {
        let (mut info, mut length) = (TcpInfo([0; 232]), 232u32);
        // SAFETY: the buffer has the passed length.
        let done = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                info.0.as_mut_ptr().cast(),
                &mut length,
            )
        };
        assert_eq!(done, 0);
        info
    }

    fn u32(&self, offset: usize) -> u64 {
        u32::from_ne_bytes(self.0[offset..offset + 4].try_into().unwrap()).into()
    }

    fn rtt_us(&self) -> u64 {
        self.u32(68)
    }

    fn retransmits(&self) -> u64 {
        self.u32(100)
    }

    fn segments_out(&self) -> u64 {
        self.u32(136)
    }

    fn spurious(&self) -> u64 {
        self.u32(216)
    }
}

fn between(value: &Value, low: u64, high: u64) -> bool {
    value.as_u64().is_some_and(|value| (low..=high).contains(&value))
}

#[test]
fn rtt_samples_are_those_of_the_kernel() {
    let pair = SlowPair::new(Duration::from_millis(10));
    let daemon = Daemon::of("profile_tcp");
    for address in [SLOW_B, SLOW_B6] {
        let mut ends = Ends::new(&pair.a, &pair.b, address, address);
        let port = ends.to.port();
        let answer = watched(&daemon, json!({"port": port}), || ends.round_trips(40));
        let (row, srtt) = (ends.row(&answer), TcpInfo::of(&ends.client).rtt_us());
        let rtt = &row["rtt_us"];
        // One sample per acknowledged byte.
        assert!(between(&rtt["samples"], 40, 41), "{answer:#}");
        assert!(between(&rtt["min"], 20_000, srtt) && between(&rtt["max"], srtt, 5_000_000), "{srtt}: {row:#}");
        assert!(between(&rtt["p50"], 20_000, srtt * 5 / 4 + 20_000), "{srtt}: {row:#}");
        assert!(rtt["p50"].as_u64() <= rtt["p99"].as_u64() && rtt["p99"].as_u64() <= rtt["max"].as_u64(), "{row:#}");
        assert_eq!((&row["owners"][0]["pid"], &row["connections"]), (&json!(std::process::id()), &json!(1)), "{row:#}");
        assert_eq!(row["limited_by"], "application", "a byte at a time: {row:#}");
        // The other end, whose remote is a client.
        let other = answer["remotes"].as_array().unwrap().iter().find(|row| row["remote"]["port"].is_null()).unwrap();
        assert!(between(&other["rtt_us"]["min"], 20_000, 5_000_000), "{answer:#}");
    }
}

#[test]
fn handshake_is_an_rtt_sample() {
    let pair = SlowPair::new(Duration::from_millis(10));
    let to = echo_server(&pair.b, SLOW_B);
    let daemon = Daemon::of("profile_tcp");
    let answer = watched(&daemon, json!({"port": to.port(), "remote": format!("{SLOW_B}/32")}), || {
        (0..10).for_each(|_| drop(connect(&pair.a, to).unwrap()));
    });
    let row = &answer["remotes"][0];
    assert_eq!((&row["connections"], answer["remotes"].as_array().unwrap().len()), (&json!(10), 1), "{answer:#}");
    assert!(between(&row["rtt_us"]["samples"], 10, 20) && between(&row["rtt_us"]["min"], 20_000, 100_000), "{row:#}");
}

#[test]
fn segments_and_retransmits_match_tcp_info() {
    let pair = Pair::new();
    let daemon = Daemon::of("profile_tcp");
    pair.b.run("nft add table inet t");
    pair.b.run("nft add chain inet t in { type filter hook input priority 0 ; }");
    for (address, listen) in [(B, B), (B6, B6), (B, "::")] {
        let mut ends = Ends::new(&pair.a, &pair.b, address, listen);
        let port = ends.to.port();
        ends.round_trips(1); // so that its segments are small until here
        until_acknowledged(&ends.server);
        pair.b.run(&format!("nft add rule inet t in tcp dport {port} numgen inc mod 10 3 drop"));
        let before = TcpInfo::of(&ends.client);
        let mut reader = ends.server.try_clone().unwrap();
        let arguments = json!({"port": port, "remote": address});
        let answer = watched(&daemon, arguments, || {
            let reads = thread::spawn(move || {
                let mut all = vec![0; 4_000_000];
                reader.read_exact(&mut all).unwrap();
            });
            ends.client.write_all(&vec![7; 4_000_000]).unwrap();
            reads.join().unwrap();
            until_acknowledged(&ends.client);
        });
        let (after, row) = (TcpInfo::of(&ends.client), ends.row(&answer));
        let (sent, again) = (after.segments_out() - before.segments_out(), after.retransmits() - before.retransmits());
        assert!(again > 0, "nothing was dropped");
        assert_eq!((&row["segments_out"], &row["retransmits"]), (&json!(sent), &json!(again)), "{answer:#}");
        let percent = row["retransmit_percent"].as_f64().unwrap();
        assert!((percent - again as f64 / sent as f64 * 100.0).abs() < 0.01, "{row:#}");
        assert_eq!(row["owners"][0]["retransmits"], json!(again), "{row:#}");
        // Another test may have left an orphan.
        let limits = answer["measured"]["limits"].as_array().unwrap();
        assert!(limits.iter().all(|limit| limit["code"] == "orphans_unread"), "{answer:#}");
        assert_eq!(answer["other"]["connections"], 0, "{answer:#}");
    }
}

/// The resets of a namespace.
fn resets<'a>(answer: &'a Value, netns: &Netns) -> Vec<&'a Value> {
    answer["resets"].as_array().unwrap().iter().filter(|row| row["owner"]["netns"] == netns.inode()).collect()
}

#[test]
fn closed_port_reset_names_both_ends() {
    let pair = Pair::new();
    let daemon = Daemon::of("profile_tcp");
    for address in [B, B6] {
        let to = SocketAddr::new(address.parse().unwrap(), 7_100);
        let answer = watched(&daemon, json!({"port": 7_100}), || {
            (0..3).for_each(|_| drop(connect(&pair.a, to).unwrap_err()));
        });
        let (refused, sent) = (resets(&answer, &pair.a), resets(&answer, &pair.b));
        assert_eq!((refused.len(), sent.len()), (1, 1), "alike, they are one row: {answer:#}");
        let end = json!({"address": address, "port": 7_100});
        assert_eq!((&sent[0]["sent_by"], &sent[0]["reason"]), (&json!("local"), &json!("NO_SOCKET")), "{answer:#}");
        assert_eq!((&sent[0]["local"], &sent[0]["count"], &sent[0]["owner"]["pid"]), (&end, &json!(3), &json!(null)));
        assert_eq!((&refused[0]["sent_by"], &refused[0]["reason"]), (&json!("remote"), &json!("refused")));
        assert_eq!((&refused[0]["remote"], &refused[0]["count"]), (&end, &json!(3)), "{answer:#}");
        assert_eq!(refused[0]["owner"]["pid"], std::process::id(), "{answer:#}");
    }
}

#[test]
fn reset_names_the_aborting_side() {
    let pair = Pair::new();
    let daemon = Daemon::of("profile_tcp");
    // Opened before the window, and in it.
    let old = Ends::new(&pair.a, &pair.b, B, B);
    let mut ports = vec![old.to.port()];
    let answer = watched(&daemon, json!({"remote": "10.77.0.0/24", "limit": 100}), || {
        let new = Ends::new(&pair.b, &pair.a, A, A);
        ports.push(new.to.port());
        for mut ends in [old, new] {
            rustix::net::sockopt::set_socket_linger(&ends.client, Some(Duration::ZERO)).unwrap();
            drop(ends.client);
            ends.server.read(&mut [0]).unwrap_err();
        }
    });
    for (port, sender, victim) in [(ports[0], &pair.a, &pair.b), (ports[1], &pair.b, &pair.a)] {
        let of = |netns, end: &str| {
            let rows = resets(&answer, netns);
            rows.into_iter().find(|row| row[end]["port"] == port).unwrap_or_else(|| panic!("{answer:#}")).clone()
        };
        let (sent, received) = (of(sender, "remote"), of(victim, "local"));
        assert_eq!((&sent["sent_by"], &sent["count"]), (&json!("local"), &json!(1)), "{answer:#}");
        assert!(sent["reason"].is_string() && sent["explanation"].is_string(), "{answer:#}");
        assert_eq!((&received["sent_by"], &received["reason"]), (&json!("remote"), &json!("aborted")), "{answer:#}");
        assert_eq!(sent["local"], received["remote"], "{answer:#}");
        assert_eq!(sent["owner"]["pid"], std::process::id(), "{answer:#}");
        assert_eq!(received["owner"]["pid"], std::process::id(), "{answer:#}");
    }
}

#[test]
fn reset_for_unread_data_names_its_reason() {
    let pair = Pair::new();
    let daemon = Daemon::of("profile_tcp");
    let mut ends = Ends::new(&pair.a, &pair.b, B, B);
    let port = ends.to.port();
    let answer = watched(&daemon, json!({"port": port}), || {
        ends.client.write_all(&[1; 10]).unwrap();
        until("the data has come", || (ends.server.peek(&mut [0; 10]).unwrap() == 10).then_some(()));
        drop(ends.server);
        until("the reset has come", || ends.client.read(&mut [0]).is_err().then_some(()));
    });
    let sent = resets(&answer, &pair.b);
    assert_eq!(sent.len(), 1, "{answer:#}");
    assert_eq!(
        (&sent[0]["sent_by"], &sent[0]["reason"]),
        (&json!("local"), &json!("TCP_ABORT_ON_CLOSE")),
        "{answer:#}"
    );
}

#[test]
fn connections_within_the_window_are_counted_once() {
    let pair = Pair::new();
    let to = echo_server(&pair.b, B);
    let daemon = Daemon::of("profile_tcp");
    let answer = watched(&daemon, json!({"remote": B, "port": to.port()}), || {
        for _ in 0..200 {
            let mut stream = connect(&pair.a, to).unwrap();
            stream.write_all(&[1]).unwrap();
            stream.read_exact(&mut [0]).unwrap();
        }
    });
    let row = &answer["remotes"][0];
    assert_eq!((&row["connections"], &row["owners"][0]["connections"]), (&json!(200), &json!(200)), "{answer:#}");
    assert_eq!(row["limited_by"], "application", "{answer:#}");
    // SYN, its acknowledgement's, the byte, the FIN; acknowledgements of received data may share a segment.
    assert!(between(&row["segments_out"], 4 * 200, 7 * 200), "{row:#}");
    assert!(between(&row["rtt_us"]["samples"], 200, 600), "{row:#}");
    assert_eq!(row["retransmits"], pair.a.retransmits(), "{row:#}");
}

#[test]
fn concurrent_windows_are_independent() {
    let pair = Pair::new();
    let daemon = Daemon::of("profile_tcp");
    let mut ends = Ends::new(&pair.a, &pair.b, B, B);
    let window = |ends: &Ends| daemon.watch(TOOL, json!({"remote": B, "port": ends.to.port()}));
    let long = window(&ends);
    ends.round_trips(100);
    let short = window(&ends);
    ends.round_trips(50);
    let (short, long) = (short.end(), long.end());
    let samples = |answer: &Value| ends.row(answer)["rtt_us"]["samples"].as_u64().unwrap();
    assert!((49..=51).contains(&samples(&short)), "{short:#}");
    assert!((149..=151).contains(&samples(&long)), "{long:#}");
    let segments = |answer: &Value| ends.row(answer)["segments_out"].as_u64().unwrap();
    assert!((50..=55).contains(&segments(&short)) && (150..=160).contains(&segments(&long)), "{long:#}");
    Client::connect(&daemon.socket).until_detached(TOOL);
}

#[test]
fn all_filters_must_match() {
    let pair = Pair::new();
    let to = echo_server(&pair.b, B);
    let daemon = Daemon::of("profile_tcp");
    let mut sender = Process::in_netns(&pair.a, &format!("tcp-send {B} {} 100000", to.port()));
    assert_eq!(sender.hear(), "connected");
    let comm = std::fs::read_to_string(format!("/proc/{}/comm", sender.pid())).unwrap();
    let port = to.port();
    let remotes = |answer: &Value| answer["remotes"].as_array().unwrap().len();
    let questions = [
        (json!({"port": port, "pid": sender.pid()}), 1),
        (json!({"port": port, "pid": std::process::id()}), 1),
        (json!({"port": port, "process": comm.trim(), "remote": "10.77.0.2"}), 1),
        (json!({"port": port, "process": "no-such"}), 0),
        (json!({"port": port, "pid": sender.pid(), "remote": "10.77.0.1"}), 0),
        (json!({"port": 1, "pid": sender.pid()}), 0),
    ];
    let asked: Vec<_> = questions.iter().map(|(question, _)| daemon.watch(TOOL, question.clone())).collect();
    sender.go();
    assert_eq!(sender.hear(), "sent");
    for (window, (question, expected)) in asked.into_iter().zip(&questions) {
        let answer = window.end();
        assert_eq!(remotes(&answer), *expected, "{question}: {answer:#}");
        if question["pid"] == sender.pid() && *expected == 1 {
            assert_eq!(answer["remotes"][0]["owners"][0]["pid"], sender.pid(), "{answer:#}");
            assert_eq!(answer["remotes"][0]["remote"], json!({"address": B, "port": port}), "{answer:#}");
        }
    }
}

#[test]
fn port_scan_is_bounded_and_stated_in_limits() {
    let _scanning = scanning();
    let netns = Netns::new();
    let daemon = Daemon::of("profile_tcp");
    let answer = watched(&daemon, json!({"remote": "127.0.0.1"}), || {
        netns.enter(|| {
            for port in 10_000..13_000u16 {
                TcpStream::connect(("127.0.0.1", port)).unwrap_err();
            }
        });
    });
    assert!(answer["measured"]["limits"].to_string().contains("resets_merged"), "{answer:#}");
    assert_eq!(answer["resets"].as_array().unwrap().len(), 4, "{answer:#}");
    assert!(answer["measured"]["rows_cut"].as_u64().unwrap() > 1_000, "{answer:#}");
}

#[test]
fn invalid_arguments_name_the_allowed_values() {
    let daemon = Daemon::of("profile_tcp");
    let mut client = Client::connect(&daemon.socket);
    for (arguments, hint) in [
        (json!({"remote": "nowhere"}), "10.0.0.0/8"),
        (json!({"port": 70_000}), "port"),
        (json!({"duration_ms": 1}), "100"),
        (json!({"limit": 0}), "10000"),
        (json!({"process": ""}), "1 to 64 bytes"),
        (json!({"colour": "red"}), "colour"),
    ] {
        let error = client.call(TOOL, arguments).unwrap_err();
        assert!(error.contains(hint), "{error}");
    }
    assert_eq!(client.links(TOOL), Vec::<String>::new());
}
