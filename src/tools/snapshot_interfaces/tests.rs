use super::*;
use crate::{interface::Counters, tools::tests::is_short_unless_asked};

#[test]
fn totals_are_since_boot_and_rates_per_window() {
    let before = Interface {
        name: "eth0".into(),
        index: 2,
        counters: Counters { rx_bytes: 1_000, rx_packets: 10, ..Counters::default() },
        ..Interface::default()
    };
    let mut after = before.clone();
    (after.counters.rx_bytes, after.counters.rx_packets, after.counters.tx_errors) = (2_000, 30, 1);
    let sample = Sample {
        interfaces: vec![(before, after)],
        primary: Some("eth0".into()),
        default_routes: vec![2],
        window_ns: 2_000_000_000,
    };
    let output = SnapshotInterfaces::report(
        Input { interface: None, duration_ms: WindowMs::default(), limit: Limit::default() },
        sample,
    );
    let link = &output.interfaces[0];
    assert_eq!((link.rx.bytes, link.rx.bits_per_second, link.rx.packets_per_second), (2_000, 4_000.0, 10.0));
    assert!(link.default_route && link.qdisc.is_none());
    assert!(SnapshotInterfaces::text(&output).contains("eth0 *"), "{}", SnapshotInterfaces::text(&output));
}

/// A node of a cluster has hundreds of interfaces.
#[test]
fn relevant_interfaces_are_shown_first() {
    let interface = |i: u32| {
        let counters = Counters { rx_bytes: u64::from(i), ..Counters::default() };
        Interface { name: format!("veth{i}"), index: i, kind: "veth".into(), counters, ..Interface::default() }
    };
    let mut interfaces: Vec<_> =
        (1..=300).map(|i| (Interface { index: i, ..Interface::default() }, interface(i))).collect();
    interfaces[4].1.counters.rx_dropped = 1;
    let sample =
        Sample { interfaces, primary: Some("veth3".into()), default_routes: vec![7], window_ns: 1_000_000_000 };
    is_short_unless_asked::<SnapshotInterfaces>(&sample, &["interfaces"]);
    let limit = serde_json::from_str("5").unwrap();
    let output = SnapshotInterfaces::report(Input { interface: None, duration_ms: WindowMs::default(), limit }, sample);
    let indexes: Vec<_> = output.interfaces.iter().map(|link| link.index).collect();
    assert_eq!((indexes, output.measured.rows_cut), (vec![3, 5, 7, 299, 300], 295));
}
