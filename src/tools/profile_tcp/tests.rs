use serde_json::json;

use super::{histogram::bucket_of, report::limited_by, *};
use crate::{
    answer::Code,
    limits,
    times::{Times, tests::of},
    tools::tests::is_short_unless_asked,
};

const MS: u64 = 1_000_000;
/// A jiffy is a millisecond.
const CLOCK: Clock = Clock { jiffies: 5_000, ns: 5_000 * MS };

fn process(comm: &str) -> Process {
    let id = "0123456789abcdef".repeat(4);
    let cgroup = Some(format!("/system.slice/docker-{id}.scope"));
    Process { pid: 4_194_304, comm: comm.into(), cgroup, netns: 4_026_532_000 }
}

fn rtt(times: &[u32]) -> Histogram {
    let mut buckets = [0; histogram::BUCKETS];
    times.iter().for_each(|us| buckets[bucket_of(*us)] += 1);
    Histogram::between(None, &buckets, *times.iter().min().unwrap(), *times.iter().max().unwrap())
}

fn replies(times: Times) -> Replies {
    Replies { times, left_out: (0, 0) }
}

fn service(process: Process, port: u16, us: &[u32]) -> Service {
    let local = Endpoint { address: "fd00:10:244::5555:6666".parse().unwrap(), port };
    Service { rtt: rtt(&[300]), ..Service::new(process, local, replies(of(us))) }
}

fn group() -> Group {
    let counts = Counts { connections: 2, segments_out: 1_000, retransmits: 25, spurious: 5 };
    Group {
        remote: Some(RemoteEnd { address: "fd00:10:244::5555:6666".parse().unwrap(), port: Some(65_535) }),
        counts,
        rtt: rtt(&[1_000, 2_000, 40_000]),
        prompt: Prompt::default(),
        waits: Waits { busy: 500, receiver: 4_000, send_buffer: 0, network: 0, application: 10 },
        replies: replies(of(&[2_500_000; 3])),
        owners: vec![(process("fifteen-letters"), counts); limits::OWNERS_OF_A_REMOTE + 1],
        sockets: Vec::new(),
    }
}

fn reset(by_remote: bool, state: u8, reason: Option<&str>) -> Reset {
    let end = |port| Endpoint { address: "fd00:10:244::5555:6666".parse().unwrap(), port };
    Reset {
        id: 0,
        process: process("fifteen-letters"),
        local: end(65_000),
        remote: end(65_001),
        by_remote,
        state,
        reason: reason.map(str::to_owned),
        count: 1_000_000,
    }
}

fn answer_to(sample: Sample) -> Output {
    ProfileTcp::report(serde_json::from_value(json!({})).unwrap(), sample)
}

#[test]
fn fields_are_in_the_units_of_their_names() {
    let output = answer_to(Sample { remotes: vec![group()], clock: CLOCK, window_ns: 5_000 * MS, ..Sample::default() });
    let row = &output.remotes[0];
    let rtt = row.rtt_us.as_ref().unwrap();
    assert_eq!((rtt.min, rtt.max, rtt.samples), (1_000, 40_000, 3));
    assert!(rtt.p50 >= 2_000 && rtt.p50 <= 2_500 && rtt.p99 == 40_000, "{rtt:?}");
    assert_eq!((row.retransmit_percent, row.limited_by), (2.5, Some(LimitedBy::Receiver)));
    assert_eq!(row.limited_ms[&LimitedBy::Receiver], 4_000);
    assert_eq!(output.measured.window_ms, 5_000.0);
}

#[test]
fn limited_by_is_the_longest_wait() {
    let with = |busy, receiver, send_buffer, network, application| {
        limited_by(&Waits { busy, receiver, send_buffer, network, application })
    };
    use LimitedBy::*;
    assert_eq!(with(0, 0, 0, 0, 0), None);
    assert_eq!(with(10, 0, 0, 9, 1), Some(Network));
    assert_eq!(with(10, 0, 0, 1, 9), Some(Application));
    assert_eq!(with(10, 11, 0, 1, 9), Some(Receiver));
    assert_eq!(with(10, 0, 11, 1, 9), Some(SendBuffer));
    assert_eq!(with(0, 0, 0, 0, 5), Some(Application), "all between two ticks of the clock");
    assert_eq!(with(0, 0, 0, 5, 0), Some(Network));
}

#[test]
fn rows_and_other_add_up_to_the_total() {
    let total = Counts { connections: 12, segments_out: 1_500, retransmits: 30, spurious: 0 };
    let output = answer_to(Sample { remotes: vec![group()], remotes_cut: 4, total, ..Sample::default() });
    let other = &output.other;
    assert_eq!((other.connections, other.segments_out, other.retransmits), (10, 500, 5));
    assert_eq!(output.measured.rows_cut, 4);
}

#[test]
fn reset_names_sender_and_known_reason() {
    let resets = [
        (reset(false, 0, Some("NO_SOCKET")), Side::Local, Some("NO_SOCKET")),
        (reset(false, 1, None), Side::Local, None),
        (reset(true, 2, None), Side::Remote, Some("refused")),
        (reset(true, 1, None), Side::Remote, Some("aborted")),
        (reset(true, 8, None), Side::Remote, Some("aborted_while_closing")),
    ];
    for (given, by, reason) in resets {
        let output = answer_to(Sample { resets: vec![given], ..Sample::default() });
        let row = &output.resets[0];
        assert_eq!((row.sent_by, row.reason.as_deref(), row.explanation.is_some()), (by, reason, reason.is_some()));
    }
}

#[test]
fn limits_name_what_is_missing() {
    assert!(answer_to(Sample::default()).measured.limits.is_empty());
    let gaps = Gaps {
        rtts_untracked: 1,
        closed_untracked: 2,
        closed_rtts_untracked: 3,
        resets_untracked: 4,
        replies_untracked: 10,
        reasons_unknown: true,
        unknown: 5,
        unread: Unread { waiting: 6, orphans: 7, rings: 9 },
        unread_rtts: 8,
    };
    let measured = answer_to(Sample { gaps, missed: 7, ..Sample::default() }).measured;
    let limits: Vec<_> = measured.limits.iter().map(|limit| (limit.code, limit.count)).collect();
    let expected = [
        (Code::RoundTripsUntracked, Some(1)),
        (Code::ClosedConnectionsMerged, Some(2)),
        (Code::ClosedRoundTripsUntracked, Some(3)),
        (Code::ResetsMerged, Some(4)),
        (Code::RepliesUntracked, Some(10)),
        (Code::OlderConnections, Some(5)),
        (Code::WaitingRoundTripsUnread, Some(8)),
        (Code::ResetReasonsUnknown, None),
        (Code::WaitingConnectionsUnread, Some(6)),
        (Code::OrphansUnread, Some(7)),
        (Code::RingSocketsUnread, Some(9)),
    ];
    assert_eq!((measured.lost_events, limits), (7, expected.to_vec()));
}

#[test]
fn owner_row_serializes_counts() {
    let output = serde_json::to_value(answer_to(Sample { remotes: vec![group()], ..Sample::default() })).unwrap();
    let owner = &output["remotes"][0]["owners"][0];
    assert_eq!((&owner["pid"], &owner["retransmits"]), (&json!(4_194_304), &json!(25)), "{output}");
}

#[test]
fn default_answer_fits_bytes_and_screen() {
    let rows = ROWS;
    let sample = Sample {
        clock: CLOCK,
        remotes: vec![group(); rows],
        services: vec![service(process("fifteen-letters"), 65_535, &[2_500_000; 3]); rows],
        resets: vec![reset(false, 1, Some("TCP_DISCONNECT_WITH_DATA")); rows],
        remotes_cut: 3,
        ..Sample::default()
    };
    is_short_unless_asked::<ProfileTcp>(&sample, &["remotes", "listeners", "resets"]);
    let output = answer_to(sample);
    let json = serde_json::to_string(&output).unwrap();
    assert!(json.len() < 8_192, "{} bytes", json.len());
    let text = ProfileTcp::text(&output);
    assert!(text.lines().count() <= 3 * rows + 12, "{text}");
    assert!(text.contains("fifteen-letters[4194304] +1"), "{text}");
    assert!(text.contains("receiver (4.0 s)"), "{text}");
}

#[test]
fn one_sentence_names_the_slow_program_and_the_network() {
    let services = vec![service(process("db"), 5_432, &[900; 50]), service(process("api"), 80, &[2_500_000; 4])];
    let output = answer_to(Sample { services, ..Sample::default() });
    let row = &output.listeners[0];
    let rtt = row.rtt_us.as_ref().map(|rtt| rtt.p50);
    assert_eq!((row.local.port, row.first_byte_us.count, rtt), (80, 4, Some(300)));
    let text = ProfileTcp::text(&output);
    let verdict = "api[4194304] at [fd00:10:244::5555:6666]:80 needs 2.5 s to reply (p50), the network 300 µs.";
    assert!(text.starts_with(verdict), "{text}");
    let remotes = vec![Group { rtt: rtt_of(300), ..group() }];
    let text = ProfileTcp::text(&answer_to(Sample { remotes, ..Sample::default() }));
    let verdict = "[fd00:10:244::5555:6666]:65535 replies after 2.5 s (p50), of which the network 300 µs.";
    assert!(text.starts_with(verdict), "{text}");
}

fn rtt_of(us: u32) -> Histogram {
    rtt(&[us])
}

#[test]
fn slow_remote_is_before_a_busy_one() {
    let quick = Group { replies: Replies::default(), rtt: rtt_of(1_000), ..group() };
    let busy = Group { counts: Counts { segments_out: 1_000_000, retransmits: 25_000, ..quick.counts }, ..quick };
    let slow = Group { rtt: rtt_of(300), ..group() };
    let output = answer_to(Sample { remotes: vec![busy, Group { counts: even(), ..slow }], ..Sample::default() });
    assert_eq!(output.remotes[1].first_byte_us.as_ref().map(|first| first.count), Some(3), "fewer retransmits");
    let quiet = |replies| Group { counts: even(), rtt: rtt_of(300), replies, ..group() };
    let groups = vec![quiet(Replies::default()), quiet(replies(of(&[2_500_000])))];
    let output = answer_to(Sample { remotes: groups, ..Sample::default() });
    assert_eq!(output.remotes[0].first_byte_us.as_ref().map(|first| first.count), Some(1));
}

fn even() -> Counts {
    Counts { connections: 1, segments_out: 10, retransmits: 0, spurious: 0 }
}

#[test]
fn exchanges_left_out_are_counted_together() {
    let unclear = |count| Replies { times: Times::default(), left_out: (count, 1) };
    let ours = Service { replies: unclear(2), ..service(process("ws"), 80, &[1]) };
    let remotes = vec![Group { replies: unclear(3), ..group() }];
    let output = answer_to(Sample { services: vec![ours], remotes, ..Sample::default() });
    assert!(output.listeners.is_empty() && output.remotes[0].first_byte_us.is_none());
    let limit = output.measured.limits.iter().find(|limit| limit.code == Code::ExchangesLeftOut).unwrap();
    assert_eq!(limit.count, Some(5));
    assert!(limit.text.contains("2 connections are left out"), "{}", limit.text);
}

#[test]
fn recorded_listeners_are_narrowed_by_owner_and_port() {
    let services = || vec![service(process("db"), 5_432, &[900]), service(process("api"), 80, &[900])];
    let ports = |question: serde_json::Value| {
        let input: Input = serde_json::from_value(question).unwrap();
        let sample = ProfileTcp::narrow(&input, Sample { services: services(), ..Sample::default() });
        sample.services.iter().map(|service| service.local.port).collect::<Vec<_>>()
    };
    assert_eq!(ports(json!({})), [5_432, 80]);
    assert_eq!(ports(json!({"process": "api"})), [80]);
    assert_eq!(ports(json!({"port": 5_432})), [5_432]);
    assert!(ports(json!({"remote": "10.0.0.1"})).is_empty());
}

#[test]
fn empty_answer_says_so() {
    assert!(ProfileTcp::text(&answer_to(Sample::default())).starts_with("No matching TCP connection"));
}

#[test]
fn sample_of_a_segment_during_the_read_is_of_the_next_reading() {
    use skel::types::{average, rtt, tcp_row, tcp_row_with_rtt};
    let average = |srtt_us, delivered| average { srtt_us, delivered };
    let rtt = rtt { average: average(800, 5), ..rtt::default() };
    let row = tcp_row { average: average(880, 6), state: 1, ..tcp_row::default() };
    let samples = |again| {
        let both = tcp_row_with_rtt { row, rtt, again };
        ledger::with_last_sample(&ledger::settled(&both), &rtt).buckets.iter().sum::<u32>()
    };
    assert_eq!(samples([row.average, rtt.average]), 1);
    assert_eq!(samples([average(880, 7), rtt.average]), 0);
    assert_eq!(samples([row.average, row.average]), 0);
}

#[test]
fn sum_of_hours_keeps_the_worst_remotes_and_a_few_owners() {
    let counts = |n: u64| Counts { connections: 1, segments_out: 10 + n, retransmits: n, spurious: 0 };
    let to = |n: u64| {
        let address = std::net::Ipv4Addr::from_bits(0x0a00_0000 + n as u32).into();
        let owners: Vec<_> = (0..40).map(|pid| (Process { pid, ..process("curl") }, counts(pid.into()))).collect();
        let mut sum = Counts::default();
        owners.iter().for_each(|(_, counts)| sum += *counts);
        let sockets = vec![(n * 100, 3), (n * 100 + 1, 30)];
        Group { remote: Some(RemoteEnd { address, port: Some(443) }), counts: sum, owners, sockets, ..group() }
    };
    let remotes: Vec<_> = (0..limits::SUM_ROWS as u64 + 5).map(to).collect();
    let resets = (0..limits::SUM_ROWS as u64 + 7).map(|id| Reset { id, count: id, ..reset(true, 1, None) }).collect();
    let sum = ProfileTcp::reduce(Sample { remotes, resets, ..Sample::default() });
    assert_eq!((sum.remotes.len(), sum.remotes_cut), (limits::SUM_ROWS, 5));
    assert_eq!((sum.resets.len(), sum.resets_cut), (limits::SUM_ROWS, 7));
    let json = serde_json::to_string(&sum).unwrap();
    for (question, unnamed) in [(json!({"pid": 39}), 32), (json!({"process": "curl"}), 0)] {
        let input = serde_json::from_value(question).unwrap();
        let narrowed = ProfileTcp::narrow(&input, serde_json::from_str(&json).unwrap());
        let left = narrowed.lacks.iter().find(|limit| limit.code == Code::OwnersCut).and_then(|limit| limit.count);
        assert_eq!(left.unwrap_or_default(), unnamed * limits::SUM_ROWS as u64);
    }
    for group in &sum.remotes {
        let mut all = Counts::default();
        group.owners.iter().for_each(|(_, counts)| all += *counts);
        assert_eq!((all, group.owners.len()), (group.counts, 9), "eight with a number, and the others by name");
        let numbers = group.sockets.iter().map(|(_, owner)| group.owners[*owner].0.pid);
        assert_eq!(numbers.collect::<Vec<_>>(), [0, 0], "3 and 30 sent less than 32 to 39");
    }
}
