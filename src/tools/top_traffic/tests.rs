use serde_json::json;

use super::{
    ledger::{Before, Ledger},
    skel::types::{endpoints, socket_bytes, traffic},
    *,
};
use crate::{
    limits,
    numbers::{past_tcp, sockmap},
    tools::tests::is_short_unless_asked,
};

const KB: Bytes = Bytes { rx_bytes: 1_000, tx_bytes: 2_000 };

fn input(value: serde_json::Value) -> Input {
    serde_json::from_value(value).unwrap()
}

fn address(last: u8) -> [u8; 16] {
    std::net::Ipv4Addr::new(10, 0, 0, last).to_ipv6_mapped().octets()
}

fn tcp(cookie: u64, pid: u32, rx_bytes: u64, tx_bytes: u64) -> socket_bytes {
    let mut comm = [0; 16];
    comm[..4].copy_from_slice(&b"curl".map(|b| b as _));
    let endpoints = endpoints { local: address(1), remote: address(2), local_port: 40_000, remote_port: 443 };
    let traffic = traffic { rx_bytes, tx_bytes };
    socket_bytes { cookie, traffic, pid, netns: 7, comm, endpoints, protocol: 6, ..socket_bytes::default() }
}

fn udp(cookie: u64, pid: u32) -> socket_bytes {
    let mut socket = tcp(cookie, pid, 0, 0);
    (socket.protocol, socket.endpoints.remote, socket.endpoints.remote_port) = (17, [0; 16], 0);
    socket
}

fn with(mut socket: socket_bytes, remote: u8, port: u16) -> socket_bytes {
    (socket.endpoints.remote, socket.endpoints.remote_port) = (address(remote), port);
    socket
}

fn before(sockets: &[socket_bytes]) -> Before {
    let mut before = Before::default();
    sockets.iter().for_each(|socket| before.add(socket));
    before
}

fn moved(sample: &Sample) -> Vec<(u32, u64, u64, u64)> {
    let rows = sample.rows.iter();
    rows.map(|row| (row.process.pid, row.bytes.rx_bytes, row.bytes.tx_bytes, row.connections)).collect()
}

#[test]
fn socket_is_counted_once_from_the_window_start() {
    let input = input(json!({}));
    let before = before(&[tcp(1, 10, 5_000, 5_000), tcp(2, 10, 9, 9)]);
    let mut ledger = Ledger::new(&input, &before, false);
    ledger.open(&tcp(1, 10, 6_000, 7_000), true);
    ledger.open(&tcp(1, 20, 6_000, 7_000), true); // a child that inherited it
    ledger.open(&tcp(2, 10, 9, 9), true); // idle
    ledger.open(&tcp(3, 30, 100, 0), true); // opened in the window
    ledger.closed(&tcp(1, 10, 6_000, 7_000), false); // closed by the peer, and still held
    ledger.closed(&tcp(4, 40, 0, 50), true); // opened and closed
    ledger.closed(&tcp(5, 50, 0, 1 << 40), false); // closed long ago, before it could be read
    let sample = ledger.finish(Gaps::default(), 1).0;
    assert_eq!(sample.gaps.tcp_older, 1);
    assert_eq!(moved(&sample), [(10, 1_000, 2_000, 1), (30, 100, 0, 1), (40, 0, 50, 1)]);
    assert_eq!(sample.total, Bytes { rx_bytes: 1_100, tx_bytes: 2_050 });
}

#[test]
fn older_connection_is_missing_only_from_questions_about_it() {
    for (asked, missing) in [(json!({}), 1), (json!({"pid": 50}), 1), (json!({"pid": 51}), 0), (json!({"port": 1}), 0)]
    {
        let (input, before) = (input(asked), Before::default());
        let mut ledger = Ledger::new(&input, &before, false);
        ledger.closed(&tcp(5, 50, 0, 1 << 40), false);
        assert_eq!(ledger.finish(Gaps::default(), 1).0.gaps.tcp_older, missing, "{input:?}");
    }
}

#[test]
fn closed_socket_is_credited_to_its_last_holder() {
    let input = input(json!({}));
    let before = before(&[tcp(1, 10, 0, 0)]);
    let mut ledger = Ledger::new(&input, &before, false);
    ledger.closed(&tcp(1, 0, 10, 0), false);
    ledger.closed(&tcp(2, 0, 1, 0), true);
    assert_eq!(moved(&ledger.finish(Gaps::default(), 1).0), [(10, 10, 0, 1), (0, 1, 0, 1)]);
}

#[test]
fn reconnected_socket_starts_at_zero() {
    let input = input(json!({}));
    let before = before(&[tcp(1, 10, 5_000, 5_000)]);
    let mut ledger = Ledger::new(&input, &before, false);
    ledger.open(&tcp(1, 10, 70, 7), true);
    assert_eq!(moved(&ledger.finish(Gaps::default(), 1).0), [(10, 70, 7, 1)]);
}

#[test]
fn udp_socket_with_many_remotes_counts_once() {
    let rows = |group_by: &str| {
        let (input, none) = (input(json!({"group_by": group_by})), Before::default());
        let mut ledger = Ledger::new(&input, &none, true);
        (1..4).for_each(|remote| ledger.udp(&with(udp(1, 10), remote, 53), KB));
        ledger.udp(&with(udp(2, 10), 1, 53), KB);
        ledger.finish(Gaps::default(), 1).0.rows
    };
    let by =
        |group_by: &str| rows(group_by).iter().map(|row| (row.bytes.rx_bytes, row.connections)).collect::<Vec<_>>();
    assert_eq!(by("process"), [(4_000, 2)]);
    assert_eq!(rows("process")[0].sockets, [1, 2]);
    assert_eq!(by("remote"), [(2_000, 2), (1_000, 1), (1_000, 1)]);
    assert_eq!(by("connection"), [(3_000, 1), (1_000, 1)]);
    let remotes: Vec<_> = rows("connection").iter().map(|row| row.remote.is_some()).collect();
    assert_eq!(remotes, [false, true], "of several remotes a row names none");
}

#[test]
fn udp_bytes_are_credited_to_holder_or_sender() {
    let input = input(json!({"group_by": "connection"}));
    let none = Before::default();
    let mut ledger = Ledger::new(&input, &none, false);
    ledger.open(&with(udp(1, 20), 8, 53), true); // reconnected since
    ledger.udp(&with(udp(1, 10), 9, 53), KB);
    ledger.udp(&udp(2, 30), Bytes { rx_bytes: 1, tx_bytes: 0 });
    ledger.untracked(Bytes { rx_bytes: 5, tx_bytes: 6 });
    let sample = ledger.finish(Gaps::default(), 1).0;
    assert_eq!(moved(&sample), [(20, 1_000, 2_000, 1), (30, 1, 0, 1)]);
    assert_eq!(sample.rows[0].remote.map(|r| (r.address.to_string(), r.port)), Some(("10.0.0.9".into(), Some(53))));
    assert_eq!(sample.rows[1].remote, None);
    assert_eq!(sample.total, Bytes { rx_bytes: 1_006, tx_bytes: 2_006 });
}

#[test]
fn every_grouping_adds_up_to_the_total() {
    for group_by in ["process", "connection", "remote", "unit", "container", "netns", "port"] {
        let input = input(json!({"group_by": group_by, "limit": 2}));
        let none = Before::default();
        let mut ledger = Ledger::new(&input, &none, false);
        for i in 0..100u64 {
            let mut socket = tcp(i, i as u32 % 5, i, 2 * i);
            (socket.cgroup, socket.netns) = (0, i as u32 % 3);
            (socket.endpoints.remote, socket.endpoints.local_port) = (address(i as u8 % 7), i as u16 % 11 + 1);
            ledger.open(&socket, true);
        }
        ledger.untracked(KB);
        let output = TopTraffic::report(input.clone(), ledger.finish(Gaps::default(), 1_000_000_000).0);
        let sum = output.rows.iter().fold((0, 0), |sum, row| (sum.0 + row.rx_bytes, sum.1 + row.tx_bytes));
        assert_eq!((sum.0 + output.other.rx_bytes, sum.1 + output.other.tx_bytes), (4_950 + 1_000, 9_900 + 2_000));
        assert!(output.rows.len() <= 2 && output.total.rx_bytes == 5_950, "{group_by}: {output:?}");
    }
}

fn group(cgroup: &str, bytes: Bytes) -> Group {
    let process =
        Process { pid: 4_194_304, comm: "fifteen-letters".into(), cgroup: Some(cgroup.into()), netns: 4_026_532_000 };
    let (local, remote) = ("fd00:10:244::5555:6666".parse().unwrap(), "fd00:10:244::5555:7777".parse().unwrap());
    Group {
        key: Key::Process(4_194_304),
        process,
        netns_name: None,
        protocol: Some(Protocol::Tcp),
        local: Some(Endpoint { address: local, port: 40_000 }),
        remote: Some(CommonRemote { address: remote, port: Some(40_000) }),
        port: None,
        bytes,
        connections: 1,
        sockets: Vec::new(),
    }
}

#[test]
fn cgroups_of_one_unit_merge() {
    let rows = ["/a.slice/x.service", "/a.slice/x.service/worker", "/a.slice/y.service"].map(|path| group(path, KB));
    let total = Bytes { rx_bytes: 3_000, tx_bytes: 6_000 };
    let sample = Sample { rows: rows.into(), total, window_ns: 1_000_000_000, ..Sample::default() };
    let output = TopTraffic::report(input(json!({"group_by": "unit", "limit": 1})), sample);
    let row = &output.rows[0];
    assert_eq!((row.owner.unit.as_deref(), row.rx_bytes, row.connections), (Some("x.service"), 2_000, 2));
    assert_eq!((row.rx_bits_per_second, row.share), (16_000.0, 0.6667));
    assert_eq!((output.other.rows, output.other.rx_bytes, output.measured.rows_cut), (1, 1_000, 1));
}

#[test]
fn udp_sockets_without_source_addresses_are_counted() {
    let unasked = |question| {
        let (input, before) = (input(question), Before::default());
        let mut ledger = Ledger::new(&input, &before, false);
        let bytes = Bytes { rx_bytes: 5, tx_bytes: 0 };
        for socket in [udp(1, 10), udp(1, 10), udp(2, 20), with(udp(3, 10), 9, 53)] {
            ledger.udp(&socket, bytes);
        }
        ledger.udp(&udp(4, 10), Bytes::default());
        ledger.finish(Gaps::default(), 1).0.gaps.udp_unasked
    };
    assert_eq!(unasked(json!({"group_by": "remote"})), 2);
    assert_eq!(unasked(json!({"group_by": "remote", "pid": 10})), 1);
    assert_eq!(unasked(json!({"remote": "10.0.0.9"})), 2);
    assert_eq!(unasked(json!({})), 0);
}

#[test]
fn socket_is_matched_before_and_after_its_cookie() {
    let input = input(json!({}));
    let at = |cookie, rx_bytes| socket_bytes { address: 0xffff_8880, ..tcp(cookie, 10, rx_bytes, 0) };
    let before = before(&[at(0xffff_8880, 100)]);
    let mut ledger = Ledger::new(&input, &before, false);
    ledger.open(&at(0xffff_8880, 150), false);
    assert!(!ledger.closed(&at(7, 170), false)); // belongs to the next reading
    ledger.closed(&at(8, 1_000), true); // another socket in the same memory
    assert_eq!(moved(&ledger.finish(Gaps::default(), 1).0), [(10, 1_050, 0, 2)]);
}

#[test]
fn default_answer_fits_bytes_and_screen() {
    let id = "0123456789abcdef".repeat(4);
    let row = group(
        &format!("/system.slice/docker-{id}.scope"),
        Bytes { rx_bytes: 123_456_789_012, tx_bytes: 123_456_789_012 },
    );
    let total = Bytes { rx_bytes: 12_345_678_901_234, tx_bytes: 12_345_678_901_234 };
    let gaps = Gaps {
        udp_merged: 1,
        udp_unasked: 1,
        udp_untracked: 1,
        tcp_untracked: 1,
        tcp_unknown: 1,
        tcp_older: 1,
        past: Past { sockmap: 1, xdp: 1, packet: 1, calls: false },
        unread: Unread { waiting: 1, orphans: 1, rings: 0 },
        missed: 2,
    };
    let rows = vec![row; ROWS];
    let sample = Sample { rows, rows_cut: 99, total, gaps, window_ns: 1_234_567_890, ..Sample::default() };
    is_short_unless_asked::<TopTraffic>(&sample, &["rows"]);
    let output = TopTraffic::report(input(json!({"group_by": "connection"})), sample);
    assert_eq!(output.measured.lost_events, 2);
    let json = serde_json::to_string(&output).unwrap();
    assert!(json.len() < 16_384, "{} bytes", json.len());
    let text = TopTraffic::text(&output);
    assert!(text.lines().count() <= ROWS + 8, "{text}");
    assert!(
        text.contains("fifteen-letters[4194304] [fd00:10:244::5555:6666]:40000 → ") && text.contains("other (99 rows)"),
        "{text}"
    );
}

#[test]
fn empty_answer_says_so() {
    let text = TopTraffic::text(&TopTraffic::report(
        input(json!({})),
        Sample { window_ns: 1_000_000_000, ..Sample::default() },
    ));
    assert!(text.contains("No matching socket sent or received data."), "{text}");
}

#[test]
fn uncounted_sockets_are_counted_in_limits() {
    let input = input(json!({"pid": 10}));
    let past = |cookie, pid, protocol: i64| socket_bytes { protocol: protocol as u8, ..tcp(cookie, pid, 0, 0) };
    let redirected = |cookie, past: i64| socket_bytes { past: past as u8, ..tcp(cookie, 10, 0, 0) };
    let counted = |sees_calls| {
        let before = Before::default();
        let mut ledger = Ledger::new(&input, &before, false).seeing_calls(sees_calls);
        for socket in [
            past(1, 10, past_tcp::PAST_XDP),
            past(1, 20, past_tcp::PAST_XDP),
            past(2, 20, past_tcp::PAST_PACKET),
            redirected(3, sockmap::REDIRECTS_SENT),
            redirected(4, sockmap::REDIRECTS_RECEIVED),
        ] {
            ledger.open(&socket, true);
        }
        let past = ledger.finish(Gaps::default(), 1).0.gaps.past;
        (past.sockmap, past.xdp, past.packet)
    };
    assert_eq!(counted(true), (1, 1, 0));
    assert_eq!(counted(false), (2, 1, 0));
}

#[test]
fn sum_of_hours_keeps_the_largest_sockets_and_adds_up_the_others() {
    let row = |n: u64| {
        let process = Process { pid: 5, comm: "curl".into(), cgroup: None, netns: 7 };
        let end = |last: u8, port| Endpoint { address: [10, 0, 0, last].into(), port };
        // Half of them are served here, the others are asked elsewhere.
        let (local, remote) = match n % 2 {
            0 => (end(1, 443), end(2 + (n % 6) as u8, 40_000 + (n % 20_000) as u16)),
            _ => (end(1, 40_000 + (n % 20_000) as u16), end(9, 443)),
        };
        let remote = Some(CommonRemote { address: remote.address, port: Some(remote.port) });
        Group {
            key: Key::Socket(n),
            process,
            netns_name: None,
            protocol: Some(Protocol::Tcp),
            local: Some(local),
            remote,
            port: None,
            bytes: Bytes { rx_bytes: 1, tx_bytes: n },
            connections: 1,
            sockets: Vec::new(),
        }
    };
    let window = |n: u64| {
        let rows: Vec<_> = (n * 500..(n + 1) * 500).map(row).collect();
        let total = rows.iter().fold(Bytes::default(), |mut sum, row| {
            sum += row.bytes;
            sum
        });
        Sample { rows, total, window_ns: 1, ..Sample::default() }
    };
    let whole = (0..40).map(window).reduce(TopTraffic::merge).unwrap();
    let sum = (0..40).map(window).reduce(|a, b| TopTraffic::reduce(TopTraffic::merge(a, b))).unwrap();
    assert!(sum.rows.len() <= limits::SUM_ROWS / 4 + 4, "{} rows", sum.rows.len());
    let answers = |sample: &Sample, question: serde_json::Value| {
        let sample = serde_json::from_str(&serde_json::to_string(sample).unwrap()).unwrap();
        let input = input(question);
        let output = TopTraffic::report(input.clone(), TopTraffic::narrow(&input, sample));
        let rows = output.rows.iter().map(|row| (row.rx_bytes, row.tx_bytes, row.connections, row.remote, row.port));
        (output.total, rows.collect::<Vec<_>>())
    };
    for question in [
        json!({"group_by": "process"}),
        json!({"group_by": "port"}),
        json!({"group_by": "remote"}),
        json!({"group_by": "remote", "port": 443}),
        json!({"group_by": "netns", "remote": "10.0.0.9"}),
    ] {
        let (of_sum, of_all) = (answers(&sum, question.clone()), answers(&whole, question.clone()));
        assert_eq!(of_sum, of_all, "{question}");
    }
    let connections = |sample| answers(sample, json!({"group_by": "connection", "limit": 10})).1;
    assert_eq!(connections(&whole)[0].1, 19_999);
}
