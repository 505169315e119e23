use serde_json::json;

use super::*;
use crate::{
    answer::Code,
    limits,
    tools::{Tool, tests::is_short_unless_asked},
};

const QUERY: bool = false;
const ANSWER: bool = true;

/// A message about `www.example.org`, type A.
fn message(id: u16, is_answer: bool, rcode: u8) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([if is_answer { 0x81 } else { 1 }, rcode, 0, 1, 0, 0, 0, 0, 0, 0]);
    bytes.extend(b"\x03www\x07example\x03org\0\0\x01\0\x01");
    bytes
}

fn ip(protocol: u8, from: ([u8; 4], u16), to: ([u8; 4], u16)) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0];
    packet.extend(from.0);
    packet.extend(to.0);
    packet.extend(from.1.to_be_bytes());
    packet.extend(to.1.to_be_bytes());
    packet
}

const CLIENT: ([u8; 4], u16) = ([10, 0, 0, 1], 40_000);
const SERVER: ([u8; 4], u16) = ([10, 0, 0, 53], 53);

fn seen(at_ms: u64, packet: Vec<u8>) -> Seen {
    Seen {
        at_ns: at_ms as i64 * 1_000_000,
        egress: true,
        interface: (1, 2),
        protocol: 0x0800,
        packet: Bytes(packet),
        ..Seen::default()
    }
}

fn udp(at_ms: u64, id: u16, is_answer: bool, rcode: u8) -> Seen {
    let (from, to) = if is_answer { (SERVER, CLIENT) } else { (CLIENT, SERVER) };
    let mut packet = ip(17, from, to);
    packet.extend([0; 4]);
    packet.extend(message(id, is_answer, rcode));
    seen(at_ms, packet)
}

#[test]
fn cut_and_translated_messages_are_counted_in_limits() {
    let mut cut = udp(1, 7, QUERY, 0);
    cut.packet.0.truncate(20 + 8 + 8); // a first fragment of 8 bytes
    let sample = Sample { messages: vec![cut], translated: 3, pages: true, ..Sample::default() };
    let output = TraceDns::report(serde_json::from_value(json!({})).unwrap(), sample);
    let limits: Vec<_> = output.measured.limits.iter().map(|limit| (limit.code, limit.count)).collect();
    assert_eq!(limits, [(Code::DnsMessagesCut, Some(1)), (Code::DnsTranslated, Some(3))]);
}

fn tcp(at_ms: u64, is_answer: bool, sequence: u32, data: &[u8]) -> Seen {
    let (from, to) = if is_answer { (SERVER, CLIENT) } else { (CLIENT, SERVER) };
    let mut packet = ip(6, from, to);
    packet.extend(sequence.to_be_bytes());
    packet.extend([0, 0, 0, 0, 5 << 4, 0x18, 0, 0, 0, 0, 0, 0]);
    packet.extend(data);
    seen(at_ms, packet)
}

fn answer(input: serde_json::Value, messages: Vec<Seen>) -> Output {
    let sample = Sample { messages, pages: true, window_ns: 5_000_000_000, ..Sample::default() };
    TraceDns::report(serde_json::from_value(input).unwrap(), sample)
}

#[test]
fn query_is_matched_with_its_answer() {
    let output = answer(json!({}), vec![udp(100, 7, QUERY, 0), udp(130, 7, ANSWER, 3)]);
    let row = &output.queries[0];
    assert_eq!(
        (row.name.as_str(), row.kind.as_str(), row.rcode.as_deref()),
        ("www.example.org", "A", Some("NXDOMAIN"))
    );
    assert_eq!((row.latency_us, row.server.to_string()), (Some(30_000), "10.0.0.53:53".into()));
    assert_eq!((output.summary.failed, output.summary.nxdomain, output.summary.latency_us.p99), (1, 1, Some(30_000)));
    assert!(
        TraceDns::text(&output).contains("1 query in 5.0 s: 1 answered, 0 unanswered, 1 failed (1 NXDOMAIN)"),
        "{}",
        TraceDns::text(&output)
    );
}

#[test]
fn young_query_is_pending_and_old_one_unanswered() {
    let output = answer(json!({}), vec![udp(100, 7, QUERY, 0), udp(4_500, 8, QUERY, 0)]);
    assert_eq!((output.summary.unanswered, output.summary.pending), (1, 1));
    assert!(!output.queries[0].pending && output.queries[1].pending, "the worst first");
    let limit = &output.measured.limits[0];
    assert_eq!((limit.code, limit.count), (Code::DnsQueriesPending, Some(1)));
}

#[test]
fn missing_messages_leave_queries_pending() {
    let asked = |messages, beyond, lost| {
        let full_at_ns = (beyond > 0).then_some(2_000_000_000);
        let sample =
            Sample { messages, beyond, lost, full_at_ns, pages: true, window_ns: 5_000_000_000, ..Sample::default() };
        let output = TraceDns::report(serde_json::from_value(json!({})).unwrap(), sample);
        (TraceDns::text(&output), output)
    };
    let (text, output) = asked(vec![udp(100, 7, QUERY, 0), udp(1_500, 8, QUERY, 0), udp(2_500, 9, QUERY, 0)], 30, 0);
    assert_eq!((output.summary.unanswered, output.summary.pending, output.measured.lost_events), (1, 2, 30));
    assert!(text.starts_with("At least 3 queries (30 messages were not read) in 5.0 s"), "{text}");
    let limit = &output.measured.limits[0];
    assert_eq!((limit.code, limit.count), (Code::DnsMessagesUnread, Some(30)));
    assert!(text.contains("30 messages: not read.") && text.contains("full after 2.0 s"), "{text}");
    let (text, output) = asked(vec![], 0, 4);
    let limit = &output.measured.limits[0];
    assert_eq!((limit.code, limit.count), (Code::DnsMessagesLost, Some(4)));
    assert!(!text.contains("No "), "{text}");
    assert!(asked(vec![], 0, 0).0.starts_with("No matching DNS query in 5.0 s."));
}

#[test]
fn retransmissions_and_other_interfaces_are_one_query() {
    let elsewhere = Seen { interface: (9, 9), egress: false, ..udp(101, 7, QUERY, 0) };
    let output =
        answer(json!({}), vec![udp(100, 7, QUERY, 0), elsewhere, udp(2_000, 7, QUERY, 0), udp(2_010, 7, ANSWER, 0)]);
    assert_eq!((output.queries.len(), output.queries[0].sent, output.queries[0].latency_us), (1, 2, Some(1_910_000)));
}

#[test]
fn translated_query_is_one_row() {
    let own = Seen {
        socket: 5,
        process: Process { pid: 9, comm: "dig".into(), netns: 1, ..Process::default() },
        ..udp(100, 7, QUERY, 0)
    };
    let mut packet = ip(17, ([192, 0, 2, 1], 6_000), SERVER);
    packet.extend([0; 4]);
    packet.extend(message(7, false, 0));
    let behind = Seen { interface: (3, 3), ..seen(101, packet) };
    let mut packet = ip(17, SERVER, ([192, 0, 2, 1], 6_000));
    packet.extend([0; 4]);
    packet.extend(message(7, true, 0));
    let output = answer(json!({}), vec![own, behind, seen(120, packet)]);
    assert_eq!(
        (output.queries.len(), output.queries[0].latency_us, output.queries[0].owner.pid),
        (1, Some(20_000), Some(9))
    );
}

/// A query at its client in network namespace 1, and the same message elsewhere on this host.
fn from_here(at_ms: u64, id: u16) -> Seen {
    let process = Process { pid: 9, comm: "dig".into(), netns: 1, ..Process::default() };
    Seen { socket: 5, process, ..udp(at_ms, id, QUERY, 0) }
}

fn at(netns: u32, egress: bool, seen: Seen) -> Seen {
    Seen { interface: (netns, 2), egress, ..seen }
}

#[test]
fn latency_ends_at_the_client() {
    let leaves = |at_ms, id| at(2, true, udp(at_ms, id, ANSWER, 0));
    let comes = |at_ms, id| at(1, false, udp(at_ms, id, ANSWER, 0));
    // The first answer is lost between server and client, and the query is retransmitted.
    let lost = vec![from_here(100, 7), leaves(101, 7), from_here(1_100, 7), leaves(1_101, 7), comes(1_102, 7)];
    let output = answer(json!({}), lost);
    let row = &output.queries[0];
    assert_eq!((output.queries.len(), row.latency_us, row.sent, row.lost), (1, Some(1_002_000), 2, 1));
    // Other answers arrive, and this one does not.
    let output =
        answer(json!({}), vec![from_here(100, 7), leaves(101, 7), from_here(200, 8), leaves(201, 8), comes(202, 8)]);
    assert_eq!((output.summary.answered, output.summary.unanswered), (1, 1));
    let output = answer(json!({}), vec![from_here(100, 7), leaves(101, 7)]);
    assert_eq!(output.summary.answered, 1, "nothing is seen to come there at all");
}

#[test]
fn late_answer_to_a_retransmitted_query_is_not_lost() {
    let comes = |at_ms| at(1, false, udp(at_ms, 7, ANSWER, 0));
    let output = answer(json!({}), vec![from_here(100, 7), from_here(1_100, 7), comes(1_200), comes(2_200)]);
    let row = &output.queries[0];
    assert_eq!((output.queries.len(), row.latency_us, row.sent, row.lost), (1, Some(1_100_000), 2, 0));
}

#[test]
fn tcp_messages_are_reassembled() {
    let framed = |bytes: Vec<u8>| [&(bytes.len() as u16).to_be_bytes()[..], &bytes].concat();
    let query = framed(message(7, false, 0));
    let parts = vec![
        tcp(100, false, 1_000, &query[..2]),
        tcp(101, false, 1_002, &query[2..]),
        tcp(150, true, 5_000, &framed(message(7, true, 2))),
    ];
    let output = answer(json!({}), parts);
    let row = &output.queries[0];
    assert_eq!((row.transport, row.rcode.as_deref(), row.latency_us), (Protocol::Tcp, Some("SERVFAIL"), Some(49_000)));
}

#[test]
fn filters_match_process_and_name() {
    let own = || {
        vec![Seen { process: Process { pid: 9, comm: "dig".into(), ..Process::default() }, ..udp(100, 7, QUERY, 0) }]
    };
    for (input, found) in [
        (json!({"process": "dig"}), 1),
        (json!({"process": "di"}), 0),
        (json!({"name": "Example.org."}), 1),
        (json!({"name": "www.example.org"}), 1),
        (json!({"name": "ample.org"}), 0),
    ] {
        assert_eq!(answer(input.clone(), own()).queries.len(), found, "{input}");
    }
}

#[test]
fn noise_is_skipped_and_names_are_cleaned() {
    let mut hostile = udp(100, 7, QUERY, 0);
    hostile.packet.0[41..44].copy_from_slice(b"\x1b[3");
    let output = answer(json!({}), vec![seen(1, vec![0x45; 20]), seen(2, Vec::new()), tcp(3, true, 1, b"\0"), hostile]);
    assert_eq!(output.queries.len(), 1);
    assert_eq!(output.queries[0].name, "\\027\\0913.example.org");
    assert!(!TraceDns::text(&output).contains('\x1b'));
}

#[test]
fn default_answer_stays_under_8_kb() {
    let query = |i: u16| {
        let cgroup = Some("/system.slice/a-rather-long-unit-name.service".to_owned());
        let process = Process { pid: 1_000_000, comm: "fifteen-letters".into(), cgroup, netns: 4_026_531_840 };
        Seen { process, ..udp(u64::from(i), i, QUERY, 0) }
    };
    let messages: Vec<_> = (0..100).map(query).collect();
    let output = answer(json!({}), messages.clone());
    let size = serde_json::to_string(&output).unwrap().len();
    assert!(output.queries.len() == 20 && size < 8_000, "{size} bytes");
    is_short_unless_asked::<TraceDns>(&Sample { messages, pages: true, ..Sample::default() }, &["queries"]);
}

#[test]
fn long_process_name_is_compared_by_15_bytes() {
    let process = Process { pid: 7, comm: "systemd-resolve".into(), ..Process::default() };
    let asked = |input| answer(input, vec![Seen { process: process.clone(), ..udp(100, 7, QUERY, 0) }]).queries.len();
    assert_eq!((asked(json!({"process": "systemd-resolved"})), asked(json!({"process": "systemd"}))), (1, 0));
    for input in [json!({"name": ""}), json!({"name": "x".repeat(256)}), json!({"process": ""})] {
        assert!(serde_json::from_value::<Input>(input.clone()).is_err(), "{input}");
    }
}

/// A query and its answer over a separate TCP connection from `port`.
fn over_tcp(at_ms: u64, port: u16) -> [Seen; 2] {
    [QUERY, ANSWER].map(|is_answer| {
        let mut data = (message(port, is_answer, 0).len() as u16).to_be_bytes().to_vec();
        data.extend(message(port, is_answer, 0));
        let mut seen = tcp(at_ms, is_answer, 1, &data);
        let at = if is_answer { 22 } else { 20 };
        seen.packet.0[at..at + 2].copy_from_slice(&port.to_be_bytes());
        seen
    })
}

#[test]
fn finished_tcp_streams_free_their_slots() {
    let connections = limits::DNS_STREAMS as u16 + 200;
    let messages = (0..connections).flat_map(|n| over_tcp(u64::from(n), 20_000 + n)).collect();
    let output = answer(json!({}), messages);
    assert_eq!((output.summary.queries, output.summary.answered), (u64::from(connections), u64::from(connections)));
    assert_eq!(output.measured.limits, []);
}

#[test]
fn unfinished_tcp_streams_beyond_the_bound_are_counted() {
    let half = |n: u16| {
        let [mut query, _] = over_tcp(u64::from(n), 20_000 + n);
        query.packet.0.truncate(query.packet.0.len() - 4);
        query
    };
    let output = answer(json!({}), (0..limits::DNS_STREAMS as u16 + 3).map(half).collect());
    assert_eq!(output.measured.limits[0].code, Code::DnsOverTcpIncomplete);
    assert_eq!(output.measured.limits[0].count, Some(3));
}

#[test]
fn query_is_reported_in_the_reading_with_its_answer() {
    const SECOND: u64 = 1_000_000_000;
    let queries = |sample: &Sample| {
        let json = serde_json::to_string(sample).unwrap();
        let output = TraceDns::report(serde_json::from_value(json!({})).unwrap(), serde_json::from_str(&json).unwrap());
        (output.summary.answered, output.summary.unanswered, output.summary.pending)
    };
    let reading = |opened_ns: u64, messages: Vec<Seen>, earlier: Vec<Seen>, goes_on| Sample {
        messages,
        earlier,
        goes_on,
        pages: true,
        opened_ns,
        window_ns: SECOND,
        ..Sample::default()
    };
    let before = |seen: &Seen| Seen { at_ns: seen.at_ns - SECOND as i64, ..seen.clone() };
    // One is answered at once, one in the next second, and one never.
    let [asked, late, silent] = [1, 2, 3].map(|id| udp(900, id, false, 0));
    let messages = vec![asked, udp(901, 1, true, 0), late, silent];
    let earlier: Vec<_> = messages.iter().map(before).collect();
    let first = reading(7 * SECOND, messages.clone(), Vec::new(), true);
    let second = reading(8 * SECOND, vec![udp(100, 2, true, 0)], earlier.clone(), true);
    assert_eq!([queries(&first), queries(&second)], [(1, 0, 0), (1, 0, 0)]);
    let last = reading(8 * SECOND, vec![udp(100, 2, true, 0)], earlier, false);
    assert_eq!(queries(&last), (1, 1, 0), "nothing is left for another reading");
    let merged = TraceDns::merge(first, last);
    assert_eq!((queries(&merged), merged.window_ns), ((2, 1, 0), 2 * SECOND));
}

#[test]
fn sum_of_hours_keeps_the_worst_queries_and_counts_the_others() {
    const SECOND: u64 = 1_000_000_000;
    // In each window one query without an answer, and one that is answered in the next window.
    let window = |n: u64| {
        let asked = |id: u16| udp(500, id, QUERY, 0);
        let answered = |id: u16| udp(900 + u64::from(id % 7), id, ANSWER, if id == 9 { 3 } else { 0 });
        let undecided = udp(9_500, 300 + n as u16, QUERY, 0);
        let late = udp(100, 299 + n as u16, ANSWER, 0);
        let mut messages: Vec<_> = (1..=200).flat_map(|id| [asked(id), answered(id)]).collect();
        messages.extend([asked(400 + n as u16), undecided]);
        messages.extend((n > 0).then_some(late));
        let before = Seen { at_ns: -500_000_000, ..asked(299 + n as u16) };
        let earlier = (n > 0).then_some(before).into_iter().collect();
        Sample {
            messages,
            earlier,
            goes_on: true,
            pages: true,
            opened_ns: n * 10 * SECOND,
            window_ns: 10 * SECOND,
            ..Sample::default()
        }
    };
    let of = |input: serde_json::Value, sample| TraceDns::report(serde_json::from_value(input).unwrap(), sample);
    let sum =
        || (0..20).map(window).reduce(|earlier, later| TraceDns::reduce(TraceDns::merge(earlier, later))).unwrap();
    let read: Sample = serde_json::from_str(&serde_json::to_string(&sum()).unwrap()).unwrap();
    let output = of(json!({"limit": 5_000}), read);
    // The last query waits for the next window.
    assert_eq!((output.summary.queries, output.summary.failed), (20 * 201 + 19, 20));
    assert_eq!(
        (output.queries.len(), output.measured.rows_cut),
        (limits::SUM_ROWS, output.summary.queries - limits::SUM_ROWS as u64)
    );
    assert_eq!(output.summary.unanswered, 20, "{:?}", output.summary);
    let latency = |us: Option<u64>| (380_000..430_000).contains(&us.unwrap());
    assert!(latency(output.summary.latency_us.p50), "{:?}", output.summary);
    let named = of(json!({"name": "example.org"}), sum());
    let left = named.measured.limits.iter().find(|limit| limit.code == Code::QueryNamesNotKept).unwrap();
    assert_eq!(
        (named.summary.queries, left.count),
        (limits::SUM_ROWS as u64, Some(output.summary.queries - limits::SUM_ROWS as u64))
    );
    assert_eq!(of(json!({"process": "other"}), sum()).summary.queries, 0);
    // A sum and a window after it.
    let rest = TraceDns::merge(sum(), window(20));
    assert_eq!(of(json!({}), rest).summary.queries, 21 * 201 + 20);
}
