use serde_json::json;

use super::*;
use crate::{
    answer::Code,
    owner::Process,
    packet::Bytes,
    tools::{Tool, tests::is_short_unless_asked},
};

/// A TCP or UDP packet from 10.77.0.1 to 10.77.0.2.
fn flow(reason: &str, location: &str, packets: u64, protocol: u8, ports: (u16, u16)) -> Flow {
    let mut header = vec![0x45, 0, 0, 60, 0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 77, 0, 1, 10, 77, 0, 2];
    header.extend(ports.0.to_be_bytes());
    header.extend(ports.1.to_be_bytes());
    header.extend([0, 0, 0, 1, 0, 0, 0, 0, 0xa0, 0x02]);
    Flow {
        id: 0,
        reason: reason.into(),
        location: location.into(),
        packets,
        protocol: 0x0800,
        arrived: true,
        interface: Some("eth0".into()),
        process: Process { netns: 7, ..Process::default() },
        header: Bytes(header),
        ..Flow::default()
    }
}

fn sample(flows: Vec<Flow>) -> Sample {
    let place = |f: &Flow| DropSite { reason: f.reason.clone(), location: f.location.clone(), packets: f.packets };
    Sample {
        places: flows.iter().map(place).collect(),
        flows,
        receivers: true,
        netns: 7,
        window_ns: 1_000_000_000,
        ..Sample::default()
    }
}

fn answer(input: serde_json::Value, sample: Sample) -> Output {
    TraceDrops::report(serde_json::from_value(input).unwrap(), sample)
}

#[test]
fn closed_port_drop_names_both_endpoints() {
    let output = answer(json!({}), sample(vec![flow("NO_SOCKET", "tcp_v4_rcv", 3, 6, (40000, 81))]));
    let row = &output.drops[0];
    assert_eq!((row.protocol.as_deref(), row.kind.as_deref(), row.count), (Some("tcp"), Some("SYN"), 3));
    assert_eq!(row.source.unwrap().to_string(), "10.77.0.1:40000");
    assert_eq!(row.destination.unwrap().to_string(), "10.77.0.2:81");
    assert_eq!(row.path, Some(Path::Input));
    assert!(output.measured.limits.is_empty(), "{:?}", output.measured.limits);
    let text = TraceDrops::text(&output);
    assert!(text.contains("10.77.0.2:81") && text.contains("Nothing listens"), "{text}");
}

#[test]
fn benign_drops_are_counted_and_hidden() {
    let mut reset = flow("NO_SOCKET", "tcp_v4_rcv", 2, 6, (40000, 81));
    reset.header.0[33] = 0x04;
    let flows = || vec![flow("TCP_OLD_DATA", "tcp_data_queue", 5, 6, (1, 2)), reset.clone()];
    let output = answer(json!({}), sample(flows()));
    assert_eq!((output.drops.len(), output.packets, output.benign_packets), (0, 7, 7));
    assert!(
        TraceDrops::text(&output).contains("7 packets were dropped in ordinary operation"),
        "{}",
        TraceDrops::text(&output)
    );
    let output = answer(json!({"include_benign": true}), sample(flows()));
    assert!(output.drops.len() == 2 && output.drops.iter().all(|row| row.benign));
}

#[test]
fn early_neighbor_discovery_is_benign() {
    // A neighbor solicitation to ff02::1:ff00:2, without a route yet.
    let mut header = vec![0x60, 0, 0, 0, 0, 24, 58, 255];
    header.extend([0; 16]);
    header.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 2, 135, 0, 0, 0]);
    let early =
        Flow { protocol: 0x86dd, header: Bytes(header), ..flow("IP_INNOROUTES", "ip6_pkt_discard", 1, 58, (0, 0)) };
    let output = answer(json!({}), sample(vec![early, flow("IP_INNOROUTES", "ip_error", 1, 17, (1, 2))]));
    assert_eq!((output.benign_packets, output.drops.len(), output.drops[0].protocol.as_deref()), (1, 1, Some("udp")));
}

#[test]
fn full_conntrack_table_is_not_a_firewall_rule() {
    let flows = || vec![flow("NETFILTER_DROP", "nf_hook_slow", 9, 6, (40000, 80))];
    let full = Sample { counters: Counters { conntrack_drops: Some(9), ..Counters::default() }, ..sample(flows()) };
    assert!(answer(json!({}), full).drops[0].explanation.contains("tracking table is full"));
    let rule = Sample { counters: Counters { conntrack_drops: Some(0), ..Counters::default() }, ..sample(flows()) };
    assert!(answer(json!({}), rule).drops[0].explanation.contains("iptables"));
    let elsewhere = Sample { netns: 8, ..sample(flows()) };
    let output = answer(json!({}), elsewhere);
    assert!(output.drops[0].explanation.contains("of its namespace"), "{}", output.drops[0].explanation);
    assert!(output.measured.limits.iter().any(|limit| limit.code == Code::CountersOfOneNamespace));
}

#[test]
fn dropping_chain_is_named() {
    let by =
        |rule: &str, port| Flow { rule: Some(rule.into()), ..flow("NETFILTER_DROP", "nft_do_chain", 2, 6, (port, 80)) };
    let flows = vec![by("inet t in\u{1b}[2J", 40_000), by("inet t in\u{1b}[2J", 40_001), by("ip t in", 40_002)];
    let output = answer(json!({}), sample(flows.clone()));
    let rules: Vec<_> = output.drops.iter().map(|row| (row.rule.as_deref().unwrap(), row.count)).collect();
    assert_eq!(rules, [("inet t in\u{fffd}[2J", 4), ("ip t in", 2)], "chains stay apart, and their names are harmless");
    assert!(output.measured.limits.is_empty(), "{:?}", output.measured.limits);
    let text = TraceDrops::text(&output);
    assert!(text.contains("A firewall rule of ip t in dropped a packet on input."), "{text}");
    let unknown = Flow { rule: None, ..flows[0].clone() };
    let output = answer(json!({}), sample(vec![unknown, flows[2].clone()]));
    assert_eq!(output.measured.limits[0].code, Code::FirewallRulesUnknown);
}

#[test]
fn rows_merge_over_ephemeral_ports() {
    let flows = (0..100).map(|i| flow("NO_SOCKET", "tcp_v4_rcv", 2, 6, (40000 + i, 81))).collect();
    let output = answer(json!({}), sample(flows));
    assert_eq!((output.drops.len(), output.drops[0].count), (1, 200));
    assert_eq!(output.drops[0].source.unwrap().to_string(), "10.77.0.1");
}

#[test]
fn flood_from_many_addresses_is_one_row() {
    let from = |i: u8| {
        let mut flow = flow("NO_SOCKET", "tcp_v4_rcv", 1, 6, (40000 + u16::from(i), 81));
        flow.header.0[15] = i;
        flow
    };
    let output = answer(json!({}), sample((0..200).map(from).collect()));
    assert_eq!((output.drops.len(), output.drops[0].count), (1, 200));
    assert_eq!(output.drops[0].source.unwrap().to_string(), "*");
}

#[test]
fn merged_drops_are_still_counted() {
    let mut sample = sample(vec![flow("NO_SOCKET", "tcp_v4_rcv", 10, 6, (1, 2))]);
    sample.places[0].packets = 1_000;
    let output = answer(json!({}), sample);
    assert_eq!((output.packets, output.drops[0].count, output.drops[0].source), (1_000, 990, None));
    let limit = &output.measured.limits[0];
    assert_eq!((limit.code, limit.count), (Code::DropsMerged, Some(990)));
}

#[test]
fn longest_rows_stay_under_8_kb() {
    let row = |i: u16| {
        let mut flow =
            flow("SOCKET_RCVBUFF", "__udp_enqueue_schedule_skb", 1_000_000 + u64::from(i), 17, (1, 40_000 + i));
        flow.receiver = true;
        flow.header.0[19] = i as u8;
        let cgroup = "/system.slice/a-rather-long-unit-name.service".to_owned();
        flow.process = Process {
            pid: 1_000_000 + u32::from(i),
            comm: "fifteen-letters".into(),
            cgroup: Some(cgroup),
            netns: 4_026_531_840,
        };
        flow
    };
    let output = answer(json!({}), sample((0..50).map(row).collect()));
    let size = serde_json::to_string(&output).unwrap().len();
    assert!(output.drops.len() == 12 && size < 8_000, "{size} bytes");
    assert_eq!(output.measured.rows_cut, 38);
    is_short_unless_asked::<TraceDrops>(&sample((0..50).map(row).collect()), &["drops", "listeners"]);
}

#[test]
fn truncated_headers_are_counted() {
    for length in 0..40 {
        let mut noise = flow("NO_SOCKET", "tcp_v4_rcv", 1, 6, (1, 2));
        noise.header.0 = vec![0x4f; length];
        assert_eq!(answer(json!({}), sample(vec![noise])).packets, 1);
    }
}

#[test]
fn rows_keep_service_ports_and_merge_client_ports() {
    let udp = |ports| flow("NETFILTER_DROP", "nft_do_chain", 1, 17, ports);
    let one_socket = vec![udp((40_000, 9001)), udp((40_000, 9004)), udp((40_001, 9001))];
    let output = answer(json!({}), sample(one_socket));
    let mut ports: Vec<_> = output.drops.iter().map(|row| row.destination.unwrap().port.unwrap()).collect();
    ports.sort_unstable();
    assert_eq!(ports, [9001, 9004], "{:?}", output.drops);
    let replies = vec![udp((53, 40_000)), udp((53, 40_001)), udp((53, 40_002))];
    let output = answer(json!({}), sample(replies));
    assert_eq!((output.drops.len(), output.drops[0].count, output.drops[0].destination.unwrap().port), (1, 3, None));
    let scan = (1..100).map(|port| udp((40_000, port))).collect();
    assert_eq!(answer(json!({}), sample(scan)).drops.len(), 1, "a scan is one row");
}

fn listener(dropped: u64) -> Listener {
    let local = crate::answer::Endpoint { address: [0, 0, 0, 0].into(), port: 80 };
    Listener {
        socket: 1,
        process: Process { netns: 8, ..Process::default() },
        local,
        accept_queue: 2,
        accept_queue_max: 1,
        dropped,
    }
}

#[test]
fn listeners_with_most_drops_are_kept() {
    let listeners = [3, 50, 7].map(listener).into();
    let output = answer(json!({"limit": 1}), Sample { listeners, ..sample(vec![]) });
    let dropped: Vec<_> = output.listeners.iter().map(|listener| listener.dropped).collect();
    assert_eq!((dropped, output.measured.rows_cut), (vec![50], 2));
}

#[test]
fn dropping_listener_leads_the_text() {
    let output = answer(json!({}), Sample { listeners: vec![listener(50)], ..sample(vec![]) });
    let text = TraceDrops::text(&output);
    assert!(text.starts_with("Listener 0.0.0.0:80") && text.contains("dropped 50"), "{text}");
    assert!(text.contains("only netmond's network namespace"), "its counters are another's: {text}");
}

#[test]
fn recording_keeps_as_many_flows_as_make_a_row() {
    let from_clients = (0..100).map(|n| flow("NETFILTER_DROP", "nft_do_chain", n + 1, 6, (40_000 + n as u16, 80)));
    let to_clients = (0..100).map(|n| flow("NETFILTER_DROP", "nft_do_chain", 2, 6, (443, 50_000 + n as u16)));
    let two = (0..2).map(|n| flow("NO_SOCKET", "tcp_v4_rcv", 1, 6, (40_000 + n, 81)));
    let scanned = (0..50).map(|n| flow("NO_SOCKET", "udp_queue_rcv_skb", 1, 17, (53, n + 1)));
    // A service with a high port: some clients have lower ones.
    let high = (0..50).map(|n| flow("QUEUE_PURGE", "sk_stream_kill_queues", 1, 6, (39_000, 38_975 + n)));
    let flows: Vec<_> = from_clients.chain(to_clients).chain(two).chain(scanned).chain(high).collect();
    let (all, kept) = (sample(flows.clone()), TraceDrops::condense(sample(flows)));
    assert_eq!(kept.flows.len(), 2 + 2 + 2 + 50 + 9);
    let rows = |sample| answer(json!({"include_benign": true, "limit": 1_000}), sample).drops;
    assert_eq!(rows(kept), rows(all));
}
