//! Counters of this host for Prometheus, from the minutes of the recording: names are OpenTelemetry's where it has some.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    limits,
    recorder::{
        store::{Incident, Minute},
        time::{MINUTE, Micros},
    },
};

type Labels = Vec<(&'static str, String)>;
/// A counter: its family, and its labels.
type Key = (&'static str, Labels);

/// A family: name, kind, help.
pub const FAMILIES: [(&str, &str, &str); 10] = [
    ("process_network_io_bytes_total", "counter", "Payload that processes sent and received."),
    ("netmon_unit_network_io_bytes_total", "counter", "Payload that systemd units sent and received."),
    ("system_network_packet_dropped_total", "counter", "Packets that the kernel dropped, by reason."),
    ("netmon_connections_total", "counter", "TCP connections that ended or failed, by process."),
    ("netmon_connection_failures_total", "counter", "TCP connections that failed, by outcome and process."),
    ("netmon_tcp_rtt_seconds_sum", "counter", "Sum of round-trip times, by remote."),
    ("netmon_tcp_rtt_seconds_count", "counter", "Samples of round-trip times, by remote."),
    ("netmon_tcp_retransmits_total", "counter", "TCP segments that were sent again, by remote."),
    ("netmon_dns_queries_total", "counter", "DNS queries, by outcome."),
    (INCIDENTS, "gauge", "Incidents that have not ended."),
];

const INCIDENTS: &str = "netmon_incidents_open";
const OTHER: &str = "other";

/// What was counted since the first scrape.
#[derive(Default)]
pub struct Series {
    /// Minutes that are over.
    closed: BTreeMap<Key, f64>,
    /// The newest minute, which still grows.
    growing: BTreeMap<Key, f64>,
    newest: Option<Micros>,
    names: BTreeMap<&'static str, BTreeSet<Labels>>,
}

impl Series {
    /// From when on minutes are wanted: the newest one is read again, and nothing of the time before the first scrape.
    pub fn wanted_from(&self, now: Micros) -> Micros {
        self.newest.unwrap_or(now.div_euclid(MINUTE) * MINUTE)
    }

    /// Adds minutes that were read.
    pub fn add(&mut self, minutes: &[Minute]) {
        let newest = minutes.iter().map(|minute| minute.minute_us).max();
        let Some(newest) = newest.filter(|newest| self.newest.is_none_or(|last| *newest >= last)) else { return };
        self.growing.clear();
        for minute in minutes {
            for (family, labels, value) in counters(minute) {
                let key = (family, self.bounded(family, labels));
                let sums = if minute.minute_us < newest { &mut self.closed } else { &mut self.growing };
                *sums.entry(key).or_default() += value;
            }
        }
        self.newest = Some(newest);
    }

    /// The labels, or those of the rest if the family has as many as are kept.
    fn bounded(&mut self, family: &'static str, labels: Labels) -> Labels {
        let names = self.names.entry(family).or_default();
        if names.contains(&labels) || names.len() < limits::SERIES_EXPORTED {
            names.insert(labels.clone());
            return labels;
        }
        labels.into_iter().map(|(name, _)| (name, OTHER.into())).collect()
    }

    /// Every counter.
    pub fn all(&self) -> BTreeMap<&Key, f64> {
        let mut sums = BTreeMap::new();
        for (key, value) in self.closed.iter().chain(&self.growing) {
            *sums.entry(key).or_default() += value;
        }
        sums
    }
}

/// The incidents that go on, by code and severity.
pub fn open(incidents: &[Incident]) -> BTreeMap<Key, f64> {
    let mut counts = BTreeMap::new();
    for incident in incidents.iter().filter(|incident| !incident.closed) {
        let labels = vec![("code", incident.code.clone()), ("severity", incident.severity.clone())];
        *counts.entry((INCIDENTS, labels)).or_default() += 1.0;
    }
    counts
}

/// The counters that a figure adds to.
fn counters(minute: &Minute) -> Vec<(&'static str, Labels, f64)> {
    let figure = &minute.figure;
    let name = figure.name.as_str();
    let after = |prefix: &str| name.strip_prefix(prefix).map(str::to_owned);
    // `process:curl remote:192.0.2.1:80` and `process:nginx port:80`.
    let process = |text: &str| {
        let found = text.split_once("process:").map(|(_, rest)| rest);
        let end = |rest: &str| rest.find(" remote:").or_else(|| rest.find(" port:")).unwrap_or(rest.len());
        found.map_or(OTHER.to_owned(), |rest| rest[..end(rest)].to_owned())
    };
    let one = |family, labels| vec![(family, labels, figure.value)];
    match figure.subject.as_str() {
        "traffic" => match (after("process:"), after("unit:")) {
            (Some(process), _) => one("process_network_io_bytes_total", vec![("process_executable_name", process)]),
            (_, Some(unit)) => one("netmon_unit_network_io_bytes_total", vec![("systemd_unit", unit)]),
            _ => Vec::new(),
        },
        "drops" => {
            let (reason, function) = name.split_once(" in ").unwrap_or((name, OTHER));
            let labels = vec![("error_type", reason.to_owned()), ("code_function_name", function.to_owned())];
            one("system_network_packet_dropped_total", labels)
        }
        "connections" => one("netmon_connections_total", vec![("process_executable_name", process(name))]),
        "failures" => {
            let outcome = name.split(' ').next().unwrap_or(OTHER).to_owned();
            let labels = vec![("error_type", outcome), ("process_executable_name", process(name))];
            one("netmon_connection_failures_total", labels)
        }
        "rtt" => {
            let labels = vec![("network_peer", after("remote:").unwrap_or_else(|| OTHER.into()))];
            let (sum, count) = (figure.value / 1e6, figure.count as f64);
            vec![("netmon_tcp_rtt_seconds_sum", labels.clone(), sum), ("netmon_tcp_rtt_seconds_count", labels, count)]
        }
        "retransmits" => {
            let remote = after("remote:").unwrap_or_else(|| OTHER.into());
            one("netmon_tcp_retransmits_total", vec![("network_peer", remote)])
        }
        "dns" => one("netmon_dns_queries_total", vec![("outcome", name.to_owned())]),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recorder::store::Figure;

    fn minute(at: i64, subject: &str, name: &str, value: f64, count: i64) -> Minute {
        Minute { minute_us: at * MINUTE, figure: Figure { subject: subject.into(), name: name.into(), value, count } }
    }

    fn value(series: &Series, family: &str, label: &str) -> Option<f64> {
        let found = |key: &Key| key.0 == family && key.1.iter().any(|(_, value)| value == label);
        series.all().into_iter().find(|(key, _)| found(key)).map(|(_, value)| value)
    }

    #[test]
    fn minute_that_grows_is_not_counted_twice() {
        let (mut series, family) = (Series::default(), "process_network_io_bytes_total");
        let curl = |at, bytes| minute(at, "traffic", "process:curl", bytes, 1);
        assert_eq!(series.wanted_from(7 * MINUTE + 5), 7 * MINUTE);
        series.add(&[curl(7, 10.0)]);
        series.add(&[curl(7, 25.0)]);
        assert_eq!(value(&series, family, "curl"), Some(25.0));
        assert_eq!(series.wanted_from(9 * MINUTE), 7 * MINUTE);
        series.add(&[curl(7, 30.0), curl(8, 4.0)]);
        series.add(&[curl(8, 5.0)]);
        assert_eq!(value(&series, family, "curl"), Some(35.0));
    }

    #[test]
    fn figures_become_counters_with_labels() {
        let mut series = Series::default();
        series.add(&[
            minute(1, "failures", "refused process:my app remote:192.0.2.1:80", 3.0, 3),
            minute(1, "connections", "process:nginx port:80", 2.0, 2),
            minute(1, "drops", "NO_SOCKET in tcp_v4_rcv", 5.0, 1),
            minute(1, "rtt", "remote:192.0.2.1:80", 2e6, 4),
        ]);
        for (family, label, expected) in [
            ("netmon_connection_failures_total", "my app", 3.0),
            ("netmon_connection_failures_total", "refused", 3.0),
            ("netmon_connections_total", "nginx", 2.0),
            ("system_network_packet_dropped_total", "NO_SOCKET", 5.0),
            ("netmon_tcp_rtt_seconds_sum", "192.0.2.1:80", 2.0),
            ("netmon_tcp_rtt_seconds_count", "192.0.2.1:80", 4.0),
        ] {
            assert_eq!(value(&series, family, label), Some(expected), "{family}");
        }
        assert!(series.all().keys().all(|(family, _)| FAMILIES.iter().any(|(known, _, _)| known == family)));
    }

    #[test]
    fn names_of_a_family_are_bounded() {
        let mut series = Series::default();
        let many: Vec<_> =
            (0..limits::SERIES_EXPORTED + 5).map(|n| minute(1, "traffic", &format!("process:{n}"), 1.0, 1)).collect();
        series.add(&many);
        assert_eq!(series.all().len(), limits::SERIES_EXPORTED + 1);
        assert_eq!(value(&series, "process_network_io_bytes_total", OTHER), Some(5.0));
    }
}
