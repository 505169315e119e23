use serde_json::json;

use super::{report::limited_by, *};
use crate::tools::tests::is_short_unless_asked;

fn endpoint(address: &str, port: u16) -> Endpoint {
    Endpoint { address: address.parse().unwrap(), port }
}

fn process(comm: &str) -> Process {
    let id = "0123456789abcdef".repeat(4);
    let cgroup = Some(format!("/system.slice/docker-{id}.scope"));
    Process { pid: 4_194_304, comm: comm.into(), cgroup, netns: 4_026_532_000 }
}

fn row() -> Row {
    let tcp = Tcp {
        congestion_control: "cubic".into(),
        srtt_us: 800,
        mdev_us: 40,
        min_rtt_us: 90,
        cwnd: 10,
        ssthresh: 0x7fff_ffff,
        mss: 1_448,
        total_retransmits: 3,
        rx_bytes: 1_234_567_890_123,
        tx_bytes: 1_234_567_890_123,
        pacing_bytes_per_second: u64::MAX,
        rate_delivered: 10,
        rate_interval_us: 1_000,
        limited_by: 1,
        ..Tcp::default()
    };
    Row {
        protocol: Protocol::Tcp,
        state: State::Established,
        local: endpoint("fd00:10:244::5555:6666", 40_000),
        remote: endpoint("fd00:10:244::5555:7777", 40_000),
        send_queue: 1_000_000,
        receive_queue: 1_000_000,
        drops: 0,
        kernel: false,
        tcp: Some(tcp),
    }
}

fn listening() -> Listening {
    Listening {
        socket: 1,
        local: endpoint("fd00:10:244::5555:6666", 443),
        accept_queue: 129,
        accept_queue_max: 128,
        half_open: 0,
        dropped: 7,
        kernel: false,
    }
}

fn input(value: serde_json::Value) -> Input {
    serde_json::from_value(value).unwrap()
}

#[test]
fn fields_are_in_the_units_of_their_names() {
    let sample = Sample { sockets: vec![(process("curl"), row())], ..Sample::default() };
    let output = SnapshotSockets::report(input(json!({"detail": true})), sample);
    let socket = &output.sockets[0];
    assert_eq!((socket.rtt_us, socket.cwnd_packets, socket.retransmits), (Some(100), Some(10), Some(3)));
    assert_eq!(socket.limited_by, Some(LimitedBy::Receiver));
    let tcp = socket.tcp.as_ref().unwrap();
    assert_eq!((tcp.rtt_variation_us, tcp.min_rtt_us, tcp.ssthresh_packets), (10, Some(90), None));
    assert_eq!(tcp.delivery_bits_per_second, Some(10 * 1_448 * 8 * 1_000));
    assert_eq!(tcp.pacing_bits_per_second, None, "the kernel says ~0 for no bound");
}

#[test]
fn udp_sockets_omit_tcp_fields() {
    let mut udp = row();
    (udp.protocol, udp.state, udp.remote, udp.tcp, udp.drops) =
        (Protocol::Udp, State::Unconnected, endpoint("::", 0), None, 5);
    let sample = Sample { sockets: vec![(Process::default(), udp)], ..Sample::default() };
    let value = serde_json::to_value(SnapshotSockets::report(input(json!({})), sample)).unwrap();
    let socket = &value["sockets"][0];
    assert_eq!((&socket["remote"], &socket["dropped"], &socket["limited_by"]), (&json!(null), &json!(5), &json!(null)));
    assert!(
        ["rtt_us", "rx_bytes", "tx_bytes", "retransmits", "tcp"].iter().all(|field| socket.get(field).is_none()),
        "{socket}"
    );
}

#[test]
fn limited_by_decodes_the_kernel_value() {
    let named = [0, 1, 2, 3, 4, 9].map(limited_by);
    use LimitedBy::*;
    assert_eq!(named, [None, Some(Receiver), Some(SendBuffer), Some(Network), Some(Application), None]);
}

#[test]
fn default_answer_fits_bytes_and_screen() {
    let rows = ROWS;
    let sample = Sample {
        sockets: vec![(process("fifteen-letters"), row()); rows],
        listeners: vec![(process("fifteen-letters"), listening()); rows],
        sockets_cut: 10,
        states: [(State::Established, 100_000), (State::Listen, 100)].into(),
        other_netns: true,
        ..Sample::default()
    };
    is_short_unless_asked::<SnapshotSockets>(&sample, &["sockets", "listeners"]);
    let output = SnapshotSockets::report(input(json!({})), sample);
    let json = serde_json::to_string(&output).unwrap();
    assert!(json.len() < 8_192, "{} bytes", json.len());
    let text = SnapshotSockets::text(&output);
    assert!(text.lines().count() <= 2 * rows + 8, "{text}");
    assert!(text.contains("fifteen-letters[4194304]") && text.contains("receiver"), "{text}");
    assert!(text.contains(&format!("{} of {} rows", 2 * rows, 2 * rows + 10)), "{text}");
}

#[test]
fn empty_answer_says_so() {
    assert_eq!(
        SnapshotSockets::text(&SnapshotSockets::report(input(json!({})), Sample::default())),
        "No matching sockets.\n"
    );
}

#[test]
fn control_characters_in_names_are_replaced() {
    let sample = Sample { sockets: vec![(process("a\n\u{1b}[31m\u{202e}"), row())], ..Sample::default() };
    let output = SnapshotSockets::report(input(json!({})), sample);
    let name = output.sockets[0].owner.process.clone().unwrap();
    assert_eq!(name, "a\u{fffd}\u{fffd}[31m\u{fffd}");
}

#[test]
fn invalid_argument_error_lists_allowed_values() {
    for (wrong, hint) in
        [(json!({"state": "open"}), "time_wait"), (json!({"colour": 1}), "limit"), (json!({"protocol": "sctp"}), "udp")]
    {
        let error = serde_json::from_value::<Input>(wrong).unwrap_err().to_string();
        assert!(error.contains(hint), "{error}");
    }
}

#[test]
fn equal_sockets_are_one_row_with_a_count() {
    let waits = |port| {
        let mut row = row();
        (row.state, row.tcp, row.send_queue, row.receive_queue) = (State::TimeWait, None, 0, 0);
        (row.local.port, row.remote.port) = (port, 443);
        (Process::default(), row)
    };
    let sample = Sample { sockets: (0..7).map(|n| waits(40_000 + n)).collect(), ..Sample::default() };
    let text = SnapshotSockets::text(&SnapshotSockets::report(input(json!({})), sample));
    let lines: Vec<_> = text.lines().filter(|line| line.contains("time_wait")).collect();
    assert!(lines.len() == 1 && lines[0].contains(" 7× ") && lines[0].contains(":443"), "{text}");
}
