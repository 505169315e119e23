use serde_json::json;

use super::*;
use crate::{limits, tools::tests::is_short_unless_asked};

const MS: u64 = 1_000_000;

fn row(end: ConnectionState, errno: i32) -> Row {
    Row {
        process: Process { pid: 7, comm: "evil\n\u{1b}[31m".into(), cgroup: None, netns: 1 },
        direction: Direction::Outbound,
        local: Endpoint { address: "10.0.0.1".parse().unwrap(), port: 40000 },
        remote: Endpoint { address: "10.0.0.2".parse().unwrap(), port: 80 },
        end,
        errno,
        closing: false,
        start_ns: 1_000 * MS,
        established_ns: if matches!(end, ConnectionState::Failed | ConnectionState::Connecting) {
            0
        } else {
            1_002 * MS
        },
        end_ns: if matches!(end, ConnectionState::Open | ConnectionState::Connecting) { 0 } else { 1_100 * MS },
        rx_bytes: 10,
        tx_bytes: 20,
        rtt_us: 0,
        retransmits: 0,
        alike: 0,
        mixed: false,
    }
}

fn answer_to(input: serde_json::Value, rows: Vec<Row>) -> Output {
    let mut counts = BTreeMap::new();
    for row in &rows {
        *counts.entry(Outcome::new(row.end, row.errno)).or_default() += 1;
    }
    let sample = Sample {
        rows,
        counts,
        cut: 3,
        lost: 2,
        unread: Unread::default(),
        shows: Shows::Routes,
        lacks: vec![],
        updates: Vec::new(),
        opened_ns: 200 * MS,
        ended_ns: 1_200 * MS,
    };
    TraceConnections::report(serde_json::from_value(input).unwrap(), sample)
}

#[test]
fn outcome_follows_state_and_errno() {
    for (end, errno, outcome) in [
        (ConnectionState::Open, 0, Outcome::Established),
        (ConnectionState::Closed, 0, Outcome::Established),
        (ConnectionState::Connecting, 0, Outcome::Connecting),
        (ConnectionState::Failed, libc::ECONNREFUSED, Outcome::Refused),
        (ConnectionState::Failed, libc::ETIMEDOUT, Outcome::TimedOut),
        (ConnectionState::Broken, libc::ETIMEDOUT, Outcome::TimedOut),
        (ConnectionState::Failed, libc::ENETUNREACH, Outcome::Unreachable),
        (ConnectionState::Failed, libc::EADDRNOTAVAIL, Outcome::NoLocalPort),
        (ConnectionState::Failed, libc::EPERM, Outcome::Denied),
        (ConnectionState::Broken, libc::EPIPE, Outcome::Reset),
        (ConnectionState::Aborted, 0, Outcome::Reset),
        (ConnectionState::Failed, 0, Outcome::Other),
    ] {
        assert_eq!(Outcome::new(end, errno), outcome, "{end:?} {errno}");
    }
}

#[test]
fn connect_latency_and_duration_are_computed() {
    let output = answer_to(
        json!({}),
        vec![
            row(ConnectionState::Failed, libc::ECONNREFUSED),
            row(ConnectionState::Closed, 0),
            row(ConnectionState::Open, 0),
        ],
    );
    let times: Vec<_> = output.connections.iter().map(|c| (c.connect_latency_us, c.duration_us, c.closed)).collect();
    let expected =
        [(Some(100_000), Some(100_000), true), (Some(2_000), Some(100_000), true), (Some(2_000), Some(200_000), false)];
    assert_eq!(times, expected);
    assert_eq!(output.connections[0].errno.as_deref(), Some("ECONNREFUSED"));
    assert_eq!(output.measured.window_ms, 1_000.0);
}

#[test]
fn unknown_fields_are_null() {
    let unknown =
        Row { start_ns: 0, established_ns: 0, process: Process::default(), ..row(ConnectionState::Closed, 0) };
    let inbound = Row { direction: Direction::Inbound, ..row(ConnectionState::Open, 0) };
    let no_port = Row {
        local: Endpoint { port: 0, ..row(ConnectionState::Failed, 0).local },
        ..row(ConnectionState::Failed, 99)
    };
    let output = answer_to(json!({}), vec![no_port, inbound, unknown]);
    let c = &output.connections[2];
    assert_eq!((c.connect_latency_us, c.duration_us, c.rtt_us, &c.owner), (None, None, None, &Owner::default()));
    assert_eq!(output.connections[1].connect_latency_us, None);
    assert_eq!((output.connections[0].local, output.connections[0].outcome), (None, Outcome::NoLocalPort));
}

#[test]
fn every_outcome_has_a_count() {
    let output = serde_json::to_value(answer_to(json!({}), vec![row(ConnectionState::Open, 0)])).unwrap();
    assert_eq!(output["outcomes"].as_object().unwrap().len(), 9);
    assert_eq!((&output["outcomes"]["established"], &output["outcomes"]["no_local_port"]), (&json!(1), &json!(0)));
}

#[test]
fn limits_name_what_is_missing() {
    let output = answer_to(json!({}), vec![]);
    assert_eq!((output.measured.lost_events, output.measured.rows_cut), (2, 3));
    assert_eq!(output.measured.limits[0].code, Code::DeniedConnectsNotSeen);
    assert!(answer_to(json!({"direction": "inbound"}), vec![]).measured.limits.is_empty());
}

#[test]
fn text_is_a_table_with_cleaned_names() {
    let text = TraceConnections::text(&answer_to(
        json!({}),
        vec![row(ConnectionState::Failed, libc::ECONNREFUSED), row(ConnectionState::Open, 0)],
    ));
    assert!(text.starts_with("2 TCP connections in 1.0 s: 1 established, 1 refused\n"), "{text}");
    assert!(text.contains("refused (ECONNREFUSED)") && !text.contains('\u{1b}'), "{text}");
    assert!(TraceConnections::text(&answer_to(json!({}), vec![])).starts_with("No matching TCP connection opened"));
}

#[test]
fn full_default_answer_is_under_8_kb() {
    let output = answer_to(json!({}), vec![row(ConnectionState::Failed, libc::ECONNREFUSED); 20]);
    let size = serde_json::to_string(&output).unwrap().len();
    assert!(size < 8_192, "{size}");
    let id = "0123456789abcdef".repeat(4);
    let process = Process {
        pid: 4_194_304,
        comm: "fifteen-letters".into(),
        cgroup: Some(format!("/system.slice/docker-{id}.scope")),
        netns: 4_026_532_000,
    };
    let end = |port| Endpoint { address: "fd00:10:244::5555:6666".parse().unwrap(), port };
    let longest =
        Row { process, local: end(40_000), remote: end(443), ..row(ConnectionState::Failed, libc::ECONNREFUSED) };
    let sample = Sample {
        rows: vec![longest; 20],
        updates: Vec::new(),
        counts: [(Outcome::Refused, 100)].into(),
        cut: 80,
        lost: 2,
        unread: Unread { waiting: 1, orphans: 1, rings: 0 },
        shows: Shows::Routes,
        lacks: vec![],
        opened_ns: 200 * MS,
        ended_ns: 1_200 * MS,
    };
    is_short_unless_asked::<TraceConnections>(&sample, &["connections"]);
}

#[test]
fn equal_rows_are_one_row_with_a_count() {
    let of = |pid, port| {
        let mut row = row(ConnectionState::Failed, libc::ECONNREFUSED);
        (row.process.pid, row.process.comm, row.local.port) = (pid, "curl".into(), port);
        row
    };
    let rows = (0..10).map(|n| of(100 + n, 40_000 + n as u16)).chain([row(ConnectionState::Open, 0)]).collect();
    let text = TraceConnections::text(&answer_to(json!({}), rows));
    let lines: Vec<_> = text.lines().filter(|line| line.contains("10.0.0.2:80")).collect();
    assert_eq!(lines.len(), 2, "{text}");
    let refused = lines.iter().find(|line| line.contains("refused")).unwrap();
    assert!(refused.starts_with("curl ") && refused.contains(" 10× ") && refused.contains("≤ 100.0 ms"), "{text}");
}

#[test]
fn both_ends_of_a_connection_are_one_row() {
    let client = row(ConnectionState::Open, 0);
    let mut server = Row { direction: Direction::Inbound, ..row(ConnectionState::Open, 0) };
    (server.local, server.remote) = (client.remote, client.local);
    (server.process.pid, server.process.comm) = (9, "nginx".into());
    let text = TraceConnections::text(&answer_to(json!({}), vec![server, client]));
    let lines: Vec<_> = text.lines().filter(|line| line.contains("10.0.0.2:80")).collect();
    assert!(lines.len() == 1 && lines[0].contains("→") && lines[0].contains("10.0.0.2:80 nginx[9]"), "{text}");
}

#[test]
fn recording_keeps_a_few_of_many_connections_that_are_alike() {
    let numbered = |n: u64| {
        let (start_ns, local) = (n * MS, Endpoint { port: 40_000 + n as u16, ..row(ConnectionState::Closed, 0).local });
        let (established_ns, end_ns) = (start_ns + n * 1_000, start_ns + MS);
        Row { start_ns, established_ns, end_ns, local, tx_bytes: 1_000 - n, ..row(ConnectionState::Closed, 0) }
    };
    let mut rows: Vec<_> = (1..=100).map(numbered).collect();
    rows.push(row(ConnectionState::Failed, libc::ECONNREFUSED));
    rows.push(Row { retransmits: 1, ..numbered(101) });
    rows.push(Row { process: Process { pid: 8, ..numbered(1).process }, ..numbered(102) });
    let counts = BTreeMap::from([(Outcome::Established, 102), (Outcome::Refused, 1)]);
    let sample = Sample { rows, counts, cut: 3, ended_ns: 1_200 * MS, ..Sample::default() };
    let kept = TraceConnections::condense(sample);
    assert_eq!(kept.rows.len(), 8 + 3, "others keep their rows");
    assert_eq!(kept.rows.iter().map(|row| row.alike + 1).sum::<u32>(), 103);
    let of_group: Vec<_> = kept.rows.iter().filter(|row| row.process.pid == 7 && row.retransmits == 0).collect();
    assert!(of_group.iter().any(|row| row.tx_bytes == 999), "the one with the most bytes");
    assert!(of_group.iter().any(|row| row.start_ns == 100 * MS), "the slowest one");
    let asked = TraceConnections::report(serde_json::from_value(json!({"limit": 100})).unwrap(), kept);
    assert_eq!((asked.connections.len(), asked.measured.rows_cut, asked.outcomes[&Outcome::Established]), (11, 3, 102));
    let merged = asked.measured.limits.iter().find(|limit| limit.code == Code::ConnectionsMerged).unwrap();
    assert_eq!(merged.count, Some(92), "{merged:?}");
}

#[test]
fn recorded_end_of_an_older_connection_replaces_its_row() {
    let numbered = |n: u64, end| {
        let local = Endpoint { port: 40_000 + n as u16, ..row(end, 0).local };
        Row { start_ns: n * MS, established_ns: n * MS + 1, local, ..row(end, 0) }
    };
    let of = |rows: Vec<Row>, opened_ns, ended_ns| {
        let counts = BTreeMap::from([(Outcome::Established, rows.len() as u64)]);
        TraceConnections::condense(Sample { rows, counts, opened_ns, ended_ns, ..Sample::default() })
    };
    let begun = of((1..=30).map(|n| numbered(n, ConnectionState::Open)).collect(), MS, 500 * MS);
    let rest = of((1..=60).map(|n| numbered(n, ConnectionState::Closed)).collect(), 31 * MS, 1_200 * MS);
    let merged = TraceConnections::merge(begun, rest);
    assert!(merged.rows.iter().all(|row| row.end == ConnectionState::Closed), "none is open for ever");
    assert_eq!(merged.counts[&Outcome::Established], 60);
}

#[test]
fn narrowed_recording_counts_connections_without_rows() {
    let rows =
        vec![Row { alike: 9, ..row(ConnectionState::Closed, 0) }, row(ConnectionState::Failed, libc::ECONNREFUSED)];
    let input = serde_json::from_value(json!({"port": 80, "outcome": "any", "remote": "10.0.0.2"})).unwrap();
    let other = Row { remote: Endpoint { port: 81, ..rows[0].remote }, ..rows[0].clone() };
    let sample = Sample { rows: [rows, vec![other]].concat(), ..Sample::default() };
    let counts = TraceConnections::narrow(&input, sample).counts;
    assert_eq!((counts[&Outcome::Established], counts[&Outcome::Refused]), (10, 1));
}

#[test]
fn sum_of_hours_is_bounded_and_counts_every_connection() {
    let connection = |window: u64, n: u64| {
        let start_ns = window * 1_000 * MS + n * MS;
        let local = Endpoint { port: 32_768 + (n % 20_000) as u16, ..row(ConnectionState::Closed, 0).local };
        // A process for each, and every tenth is refused.
        let process = Process { pid: (window * 500 + n) as u32, ..row(ConnectionState::Closed, 0).process };
        let (end, errno) = if n.is_multiple_of(10) {
            (ConnectionState::Failed, libc::ECONNREFUSED)
        } else {
            (ConnectionState::Closed, 0)
        };
        Row { process, start_ns, established_ns: start_ns + n, end_ns: start_ns + MS, local, ..row(end, errno) }
    };
    let window = |n: u64| {
        let mut rows: Vec<_> = (0..500).map(|connection_n| connection(n, connection_n)).collect();
        // It begins in this window, and ends in the next one.
        rows.push(Row { end: ConnectionState::Open, end_ns: 0, ..connection(n, 501) });
        if n > 0 {
            rows.push(Row { end_ns: n * 1_000 * MS + 5, ..connection(n - 1, 501) });
        }
        let counts = BTreeMap::from([(Outcome::Established, rows.len() as u64 - 50), (Outcome::Refused, 50)]);
        let (opened_ns, ended_ns) = (n * 1_000 * MS, (n + 1) * 1_000 * MS);
        TraceConnections::condense(Sample { rows, counts, opened_ns, ended_ns, ..Sample::default() })
    };
    let add = |a, b| TraceConnections::reduce(TraceConnections::merge(a, b));
    let sum = (0..40).map(window).reduce(add).unwrap();
    assert!(sum.rows.len() <= limits::SUM_ROWS, "{} rows", sum.rows.len());
    assert_eq!(
        (sum.cut, sum.counts[&Outcome::Established], sum.counts[&Outcome::Refused]),
        (0, 40 * 450 + 40, 40 * 50)
    );
    assert_eq!(sum.rows.iter().map(|row| u64::from(row.alike) + 1).sum::<u64>(), 40 * 500 + 40);
    assert_eq!(sum.rows.iter().filter(|row| row.end == ConnectionState::Open).count(), 1, "the last goes on");
    let input = |question| serde_json::from_value::<Input>(question).unwrap();
    let json = serde_json::to_string(&sum).unwrap();
    let narrow = |question| TraceConnections::narrow(&input(question), serde_json::from_str(&json).unwrap());
    let failed = narrow(json!({"outcome": "failed", "port": 80}));
    assert_eq!((&failed.counts, failed.cut), (&BTreeMap::from([(Outcome::Refused, 2_000)]), 0));
    let of_one = narrow(json!({"pid": failed.rows.iter().find(|row| row.alike > 0).unwrap().process.pid}));
    assert_eq!((of_one.counts.values().sum::<u64>(), of_one.cut > 0), (1, true), "others have other numbers");
}
