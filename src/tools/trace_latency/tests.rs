use serde_json::json;

use super::*;
use crate::{times::tests::of, tools::tests::is_short_unless_asked};

fn process(comm: &str, pid: u32) -> Process {
    let id = "0123456789abcdef".repeat(4);
    let cgroup = Some(format!("/system.slice/docker-{id}.scope"));
    Process { pid, comm: comm.into(), cgroup, netns: 4_026_532_000 }
}

fn end(port: u16) -> Endpoint {
    Endpoint { address: "fd00:10:244::5555:6666".parse().unwrap(), port }
}

fn server(comm: &str, remote: &str, times: Vec<(Stage, Times)>) -> Group {
    Group {
        process: process(comm, 7),
        protocol: Protocol::Tcp,
        side: Side::Server,
        local: Some(end(80)),
        remote: Some((remote.parse().unwrap(), 0)),
        times,
        left_out: (0, 0),
    }
}

fn sample(groups: Vec<Group>) -> Sample {
    Sample { groups, window_ns: 5_000_000_000, ..Sample::default() }
}

fn answer(input: serde_json::Value, sample: Sample) -> Output {
    TraceLatency::report(serde_json::from_value(input).unwrap(), sample)
}

#[test]
fn server_and_network_are_in_one_sentence() {
    let times = vec![(Stage::RequestToReply, of(&[2_500_000; 3])), (Stage::LeastRtt, of(&[300; 3]))];
    let output = answer(json!({}), sample(vec![server("api", "10.0.0.9", times)]));
    let stages: Vec<_> = output.stages.iter().map(|row| (row.stage, row.least, row.count)).collect();
    assert_eq!(stages, [(Stage::RequestToReply, false, 3), (Stage::WireToAck, true, 3)]);
    let text = TraceLatency::text(&output);
    let verdict = "api[7] at [fd00:10:244::5555:6666]:80 takes 2.5 s to reply (p50); the network takes at least 300 µs";
    assert!(text.starts_with(verdict), "{text}");
}

#[test]
fn measured_round_trips_replace_the_least() {
    let times = vec![(Stage::WireToAck, of(&[900])), (Stage::LeastRtt, of(&[300; 3]))];
    let output = answer(json!({}), sample(vec![server("api", "10.0.0.9", times)]));
    assert_eq!((output.stages.len(), output.stages[0].count, output.stages[0].least), (1, 1, false));
}

#[test]
fn remotes_of_a_listener_are_one_row_unless_filtered() {
    let groups = || {
        let of = |remote, us| server("api", remote, vec![(Stage::SocketToRead, of(&[us]))]);
        sample(vec![of("10.0.0.9", 10), of("10.0.0.8", 20_000)])
    };
    let all = answer(json!({}), groups());
    assert_eq!((all.stages.len(), all.stages[0].count, all.stages[0].us.max), (1, 2, 20_000));
    let one = answer(json!({"remote": "10.0.0.9"}), groups());
    assert_eq!((one.stages[0].count, one.stages[0].us.max), (1, 10));
}

#[test]
fn rows_with_the_most_time_are_first() {
    let times = vec![(Stage::SocketToRead, of(&[10; 100])), (Stage::WriteToWire, of(&[2_000]))];
    let output = answer(json!({"limit": 1}), sample(vec![server("api", "10.0.0.9", times)]));
    assert_eq!((output.stages[0].stage, output.measured.rows_cut), (Stage::WriteToWire, 1));
}

#[test]
fn merged_samples_add_times_and_throttling() {
    let throttled =
        Throttled { cgroup: "/web".into(), periods: 10, throttled_periods: 5, throttled_us: 9, pids: vec![7] };
    let one = || {
        let groups = vec![server("api", "10.0.0.9", vec![(Stage::SocketToRead, of(&[10]))])];
        let gaps = Gaps { times_untracked: 1, ..Gaps::default() };
        Sample { throttled: vec![throttled.clone()], gaps, missed: 1, ..sample(groups) }
    };
    let sum = answer(json!({}), TraceLatency::merge(one(), one()));
    assert_eq!((sum.stages.len(), sum.stages[0].count), (1, 2));
    assert_eq!((sum.throttled[0].periods, sum.throttled[0].owner.pid), (20, Some(7)));
    assert_eq!((sum.measured.lost_events, sum.measured.window_ms), (2, 10_000.0));
    assert_eq!(sum.measured.limits[0].code, Code::LatencyTimesUntracked);
}

#[test]
fn recorded_replies_have_the_network_beside_them() {
    use crate::replies::{Replier, Repliers, Replies};
    let replier = |is_here, us| Replier {
        process: process("api", 7),
        is_here,
        end: end(80),
        replies: Replies { times: of(&[us]), left_out: (1, 0) },
        least_rtt_us: Some(300),
    };
    let window = || {
        recorded::sample(Repliers { rows: vec![replier(true, 2_500_000), replier(false, 9)], missed: 0, window_ns: 1 })
    };
    let output = answer(json!({}), TraceLatency::merge(window(), window()));
    let stages: Vec<_> = output.stages.iter().map(|row| (row.stage, row.side, row.least, row.count)).collect();
    use Stage::{RequestToReply, WireToAck};
    assert_eq!(
        stages,
        [
            (RequestToReply, Side::Server, false, 2),
            (WireToAck, Side::Client, true, 2),
            (WireToAck, Side::Server, true, 2),
            (RequestToReply, Side::Client, false, 2)
        ]
    );
    let limits: Vec<_> = output.measured.limits.iter().map(|limit| (limit.code, limit.count)).collect();
    assert_eq!(limits, [(Code::ExchangesLeftOut, Some(4)), (Code::OnlyRepliesRecorded, None)]);
    let text = TraceLatency::text(&output);
    assert!(text.contains("takes 2.5 s to reply (p50); the network takes at least 300 µs"), "{text}");
}

#[test]
fn exchanges_left_out_are_counted() {
    let group = Group { left_out: (3, 1), ..server("h2", "10.0.0.9", vec![(Stage::SocketToRead, of(&[10]))]) };
    let output = answer(json!({}), sample(vec![group]));
    let limit = &output.measured.limits[0];
    assert_eq!((limit.code, limit.count), (Code::ExchangesLeftOut, Some(3)));
    assert!(limit.text.contains("1 connection is left out"), "{}", limit.text);
}

#[test]
fn answer_without_limit_is_short() {
    let times = || [Stage::SocketToRead, Stage::RequestToReply].map(|stage| (stage, of(&[1, 2_000_000]))).into();
    let groups = (0..60)
        .map(|n| Group { process: process("fifteen-letters", 4_000_000 + n), ..server("", "10.0.0.9", times()) });
    is_short_unless_asked::<TraceLatency>(&sample(groups.collect()), &["stages"]);
}
