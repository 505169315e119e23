use serde_json::json;

use super::*;
use crate::recorder::{
    store::Figure,
    time::{MINUTE, SECOND},
};

const BEGIN: Micros = 1_800_000_000 * SECOND;

/// Minutes of figures, each as (subject, name, value, count).
fn figures(first: i64, minutes: &[Vec<(&str, &str, f64, i64)>]) -> Figures {
    let at = |n: usize| BEGIN + (first + n as i64) * MINUTE;
    let minute = |(n, figures): (usize, &Vec<(&str, &str, f64, i64)>)| {
        let of = move |(subject, name, value, count): &(&str, &str, f64, i64)| Minute {
            minute_us: at(n),
            figure: Figure { subject: (*subject).into(), name: (*name).into(), value: *value, count: *count },
        };
        figures.iter().map(of).collect::<Vec<_>>()
    };
    Figures {
        period: Period { begin_us: at(0), end_us: at(minutes.len()) },
        minutes: (0..minutes.len()).map(|n| (at(n), 1.0)).collect(),
        figures: minutes.iter().enumerate().flat_map(minute).collect(),
    }
}

fn compare(before: &[Vec<(&str, &str, f64, i64)>], after: &[Vec<(&str, &str, f64, i64)>]) -> Output {
    let sample = Sample { before: figures(0, before), after: figures(before.len() as i64, after) };
    Changes::report(&serde_json::from_value(json!({})).unwrap(), Ok(sample))
}

/// A figure that varies by a tenth, from a linear congruential generator.
struct Noise(u64);

impl Noise {
    fn of(&mut self, mean: f64) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        mean * (0.9 + 0.2 * (self.0 >> 40) as f64 / (1u64 << 24) as f64)
    }
}

fn steady(noise: &mut Noise) -> Vec<(&'static str, &'static str, f64, i64)> {
    vec![
        ("traffic", "process:nginx", noise.of(5e7), 6),
        ("connections", "process:nginx port:443", noise.of(600.0).round(), 600),
        ("failures", "refused process:cron remote:192.0.2.1:25", noise.of(2.0).round(), 2),
        ("rtt", "remote:192.0.2.9:443", noise.of(20_000.0) * 500.0, 500),
        ("retransmits", "remote:192.0.2.9:443", noise.of(10.0).round(), 5_000),
        ("drops", "NO_SOCKET in udp_rcv", noise.of(20.0).round(), 6),
        ("dns", "failed", noise.of(1.0).round(), 6),
        ("listeners", "process:nginx local:0.0.0.0:443", 6.0, 6),
        ("interfaces", "eth0 up", 6.0, 6),
    ]
}

#[test]
fn steady_host_has_no_changes() {
    for seed in 0..200 {
        let mut noise = Noise(seed);
        let before: Vec<_> = (0..60).map(|_| steady(&mut noise)).collect();
        let after: Vec<_> = (0..5).map(|_| steady(&mut noise)).collect();
        let output = compare(&before, &after);
        assert_eq!(output.changes, [], "seed {seed}");
        assert!(Changes::text(&output).starts_with("No changes: "));
    }
}

/// Each of these changes in one of many hosts: all are reported, and nothing else is.
#[test]
fn labelled_changes_are_found_without_false_ones() {
    let changes: [(&str, &str, f64, i64); 8] = [
        ("traffic", "process:nginx", 2e8, 6),
        ("connections", "process:nginx port:443", 2_400.0, 2_400),
        ("failures", "refused process:cron remote:192.0.2.1:25", 40.0, 40),
        ("failures", "timed_out process:curl remote:192.0.2.5:80", 9.0, 9),
        ("rtt", "remote:192.0.2.9:443", 60_000.0 * 500.0, 500),
        ("retransmits", "remote:192.0.2.9:443", 250.0, 5_000),
        ("drops", "NETFILTER_DROP in nft_do_chain", 300.0, 6),
        ("listeners", "process:nc local:0.0.0.0:4444", 6.0, 6),
    ];
    let (mut told, mut false_ones) = (0, 0);
    for seed in 0..125 {
        for changed in &changes {
            let mut noise = Noise(seed);
            let before: Vec<_> = (0..60).map(|_| steady(&mut noise)).collect();
            let minute = |noise: &mut Noise| {
                let mut minute = steady(noise);
                minute.retain(|(subject, name, ..)| (*subject, *name) != (changed.0, changed.1));
                minute.push(*changed);
                minute
            };
            let after: Vec<_> = (0..5).map(|_| minute(&mut noise)).collect();
            let output = compare(&before, &after);
            told += usize::from(output.changes.iter().any(|change| change.subject == changed.0));
            false_ones += output.changes.iter().filter(|change| change.subject != changed.0).count();
        }
    }
    assert_eq!((told, false_ones), (1_000, 0));
}

#[test]
fn new_and_missing_listeners_name_their_owner() {
    let before = vec![vec![("listeners", "process:old local:0.0.0.0:1", 6.0, 6)]; 20];
    let after = vec![vec![("listeners", "process:new local:0.0.0.0:2", 6.0, 6)]; 3];
    let output = compare(&before, &after);
    let told: Vec<_> = output.changes.iter().map(|change| change.summary.as_str()).collect();
    assert_eq!(
        told,
        ["listeners: process:new local:0.0.0.0:2 is new", "listeners: process:old local:0.0.0.0:1 is gone"]
    );
    assert_eq!(output.changes[0].owner.as_ref().unwrap().process.as_deref(), Some("new"));
}

#[test]
fn regular_bursts_are_not_a_change() {
    let burst = |n: usize| if n.is_multiple_of(10) { 3e8 } else { 1e6 };
    let before: Vec<_> = (0..60).map(|n| vec![("traffic", "process:backup", burst(n), 6)]).collect();
    let after: Vec<_> = (0..5).map(|n| vec![("traffic", "process:backup", burst(n), 6)]).collect();
    assert_eq!(compare(&before, &after).changes, []);
}

#[test]
fn one_transfer_is_one_change() {
    let of = |bytes: f64| {
        vec![
            ("traffic", "process:curl", bytes, 6),
            ("traffic", "remote:192.0.2.1", bytes, 6),
            ("traffic", "port:443", bytes, 6),
        ]
    };
    let output = compare(&vec![of(1e5); 20], &vec![of(1e8); 5]);
    assert_eq!(output.changes.len(), 1, "{:#?}", output.changes);
    assert_eq!(output.changes[0].factor, Some(1_000.0));
}

#[test]
fn short_recording_states_the_needed_length() {
    let minute = || vec![("traffic", "process:curl", 1e6, 6)];
    let output = compare(&vec![minute(); 9], &[minute()]);
    assert!(Changes::text(&output).contains("too little recorded: baseline 9 minutes (at least 10)"));
    let output = compare(&vec![minute(); 20], &[]);
    assert!(output.not_enough.is_some());
}
