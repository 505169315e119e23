//! A point a reading, for sparklines and plots.

use std::{collections::VecDeque, sync::Arc};

use serde::Serialize;
use serde_json::Value;

use crate::limits;

/// The figures of one reading.
#[derive(Serialize, Clone, Debug, Default, PartialEq)]
pub struct Point {
    /// The end of the reading, in milliseconds since 1970.
    pub at_ms: i64,
    /// Its length. A gap before it is a period without data.
    pub window_ms: f64,
    /// Payload of all sockets.
    pub rx_bits_per_second: f64,
    pub tx_bits_per_second: f64,
    /// As the drivers count, busiest first: at most [`LIVE_SERIES`](limits::LIVE_SERIES).
    pub interfaces: Vec<Rate>,
    /// Payload by process name, most first: at most [`LIVE_SERIES`](limits::LIVE_SERIES). The others are in the totals only.
    pub processes: Vec<Share>,
    /// TCP connections that opened, failed or closed.
    pub connections: u64,
    /// Of these, the ones that failed.
    pub failures: u64,
    /// Dropped packets, without those of ordinary operation.
    pub drops: u64,
    pub dns_queries: u64,
    /// Queries that failed or got no answer.
    pub dns_failures: u64,
    /// The median over all TCP remotes of their median RTT, weighted by samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtt_p50_us: Option<u64>,
    /// The highest RTT of any remote.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtt_max_us: Option<u64>,
    pub retransmits: u64,
    /// Findings above info when the reading ended.
    pub findings: u64,
}

/// An interface in a reading.
#[derive(Serialize, Clone, Debug, PartialEq)]
pub struct Rate {
    pub name: String,
    pub rx_bits_per_second: f64,
    pub tx_bits_per_second: f64,
}

/// A process name in a reading.
#[derive(Serialize, Clone, Debug, PartialEq)]
pub struct Share {
    pub name: String,
    /// Received and sent.
    pub bits_per_second: f64,
}

/// The answers about one reading. An absent answer is null.
pub struct Reading<'a> {
    pub interfaces: &'a Value,
    pub processes: &'a Value,
    pub connections: &'a Value,
    pub drops: &'a Value,
    pub dns: &'a Value,
    pub tcp: &'a Value,
}

/// The points of the last minutes.
#[derive(Default)]
pub struct History(VecDeque<Arc<Point>>);

impl History {
    pub fn add(&mut self, point: Point) {
        self.push(Arc::new(point));
    }

    pub fn push(&mut self, point: Arc<Point>) {
        if self.0.len() == limits::LIVE_POINTS {
            self.0.pop_front();
        }
        self.0.push_back(point);
    }

    /// Oldest first.
    pub fn points(&self) -> Vec<Arc<Point>> {
        self.0.iter().cloned().collect()
    }
}

impl Point {
    /// The point of a reading, without its time.
    pub fn of(reading: &Reading) -> Point {
        let Reading { interfaces, processes, connections, drops, dns, tcp } = reading;
        let seconds = number(&processes["measured"]["window_ms"]) / 1e3;
        let rate = |bytes: &Value| if seconds > 0.0 { (number(bytes) * 8.0 / seconds).round() } else { 0.0 };
        let rtts = || rows(&tcp["remotes"]).map(|remote| &remote["rtt_us"]).filter(|rtt| rtt.is_object());
        Point {
            rx_bits_per_second: rate(&processes["total"]["rx_bytes"]),
            tx_bits_per_second: rate(&processes["total"]["tx_bytes"]),
            interfaces: rates(interfaces),
            processes: shares(processes),
            connections: outcomes(connections, |_| true),
            failures: outcomes(connections, |outcome| !["connecting", "established"].contains(&outcome)),
            drops: whole(&drops["packets"]).saturating_sub(whole(&drops["benign_packets"])),
            dns_queries: whole(&dns["summary"]["queries"]),
            dns_failures: whole(&dns["summary"]["failed"]) + whole(&dns["summary"]["unanswered"]),
            rtt_p50_us: median(rtts().map(|rtt| (whole(&rtt["p50"]), whole(&rtt["samples"]))).collect()),
            rtt_max_us: rtts().map(|rtt| whole(&rtt["max"])).max(),
            retransmits: rows(&tcp["remotes"]).map(|remote| whole(&remote["retransmits"])).sum::<u64>()
                + whole(&tcp["other"]["retransmits"]),
            ..Point::default()
        }
    }
}

fn rates(interfaces: &Value) -> Vec<Rate> {
    let rate = |link: &Value| Rate {
        name: link["name"].as_str().unwrap_or_default().into(),
        rx_bits_per_second: number(&link["rx"]["bits_per_second"]),
        tx_bits_per_second: number(&link["tx"]["bits_per_second"]),
    };
    let mut rates: Vec<_> = rows(&interfaces["interfaces"]).map(rate).collect();
    let both = |rate: &Rate| rate.rx_bits_per_second + rate.tx_bits_per_second;
    rates.sort_by(|a, b| both(b).total_cmp(&both(a)));
    rates.truncate(limits::LIVE_SERIES);
    rates
}

/// Processes with one name are one.
fn shares(processes: &Value) -> Vec<Share> {
    let mut shares = Vec::<Share>::new();
    for row in rows(&processes["rows"]) {
        let name = row["owner"]["process"].as_str().unwrap_or("unknown");
        let more = number(&row["rx_bits_per_second"]) + number(&row["tx_bits_per_second"]);
        match shares.iter_mut().find(|share| share.name == name) {
            Some(share) => share.bits_per_second += more,
            None => shares.push(Share { name: name.into(), bits_per_second: more }),
        }
    }
    shares.sort_by(|a, b| b.bits_per_second.total_cmp(&a.bits_per_second));
    shares.truncate(limits::LIVE_SERIES);
    shares
}

fn outcomes(connections: &Value, wanted: impl Fn(&str) -> bool) -> u64 {
    let all = connections["outcomes"].as_object().into_iter().flatten();
    all.filter(|(outcome, _)| wanted(outcome)).map(|(_, count)| whole(count)).sum()
}

/// The median of values that occur several times.
fn median(mut values: Vec<(u64, u64)>) -> Option<u64> {
    values.sort_unstable();
    let half = values.iter().map(|(_, count)| count).sum::<u64>().div_ceil(2);
    let mut sum = 0;
    values.into_iter().find_map(|(value, count)| {
        sum += count;
        (sum >= half && sum > 0).then_some(value)
    })
}

fn rows(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_default()
}

fn whole(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_weighted() {
        assert_eq!(median(vec![(900, 1), (10, 5), (20, 3)]), Some(10));
        assert_eq!(median(vec![(900, 10), (10, 5)]), Some(900));
        assert_eq!((median(vec![]), median(vec![(7, 0)])), (None, None));
    }

    #[test]
    fn history_keeps_the_newest_points() {
        let mut history = History::default();
        for at_ms in 0..limits::LIVE_POINTS as i64 + 2 {
            history.add(Point { at_ms, ..Point::default() });
        }
        let points = history.points();
        assert_eq!((points.len(), points[0].at_ms), (limits::LIVE_POINTS, 2));
    }
}
