//! Figures of a window, by what they are of: what `changes` compares, and what SQL reads at once.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::store::{Figure, Part};
use crate::{
    limits,
    tools::{Question, diagnose::Finding},
};

/// Sums by subject and name.
#[derive(Default)]
struct Sums(HashMap<(&'static str, String), (f64, i64)>);

impl Sums {
    fn add(&mut self, subject: &'static str, name: String, value: f64) {
        self.weigh(subject, name, value, 1);
    }

    fn weigh(&mut self, subject: &'static str, name: String, value: f64, count: i64) {
        let sum = self.0.entry((subject, name)).or_default();
        sum.0 += value;
        sum.1 += count;
    }

    /// The largest of each subject; the others are one, as `other`.
    fn finish(self) -> Vec<Figure> {
        let mut by_subject = HashMap::<&str, Vec<Figure>>::new();
        for ((subject, name), (value, count)) in self.0 {
            by_subject.entry(subject).or_default().push(Figure { subject: subject.into(), name, value, count });
        }
        let mut figures = Vec::new();
        for (subject, mut all) in by_subject {
            all.sort_by(|a, b| b.value.total_cmp(&a.value).then_with(|| a.name.cmp(&b.name)));
            let others = all.split_off(all.len().min(limits::SERIES_NAMES));
            let (value, count) = others.iter().fold((0.0, 0), |(v, c), other| (v + other.value, c + other.count));
            if !others.is_empty() {
                all.push(Figure { subject: subject.into(), name: "other".into(), value, count });
            }
            figures.extend(all);
        }
        figures
    }
}

/// The figures of a window, from its parts and its findings.
pub fn figures(parts: &[Part], faults: &[(String, Finding)]) -> Vec<Figure> {
    let mut sums = Sums::default();
    let answer = |part: &str, more: Value| {
        let part = parts.iter().find(|known| known.part == part)?;
        let question = Question::named(&part.tool)?;
        let mut input = json!({"limit": limits::DIAGNOSED_ROWS});
        if let (Some(input), Value::Object(more)) = (input.as_object_mut(), more) {
            input.extend(more);
        }
        Some((question.report)(input, &part.sample).ok()?.structured)
    };
    let rows = |answer: &Option<Value>, list: &str| {
        answer.as_ref().and_then(|answer| answer[list].as_array()).cloned().unwrap_or_default()
    };
    let traffic_answer = answer("traffic", json!({"group_by": "connection"}));
    rows(&traffic_answer, "rows").iter().for_each(|row| traffic(row, &mut sums));
    rows(&answer("connections", json!({})), "connections").iter().for_each(|row| connection(row, &mut sums));
    rows(&answer("profile", json!({})), "remotes").iter().for_each(|row| path(row, &mut sums));
    rows(&answer("drops", json!({})), "drops").iter().for_each(|row| dropped(row, &mut sums));
    rows(&answer("sockets", json!({})), "listeners").iter().for_each(|row| listener(row, &mut sums));
    rows(&answer("interfaces", json!({})), "interfaces").iter().for_each(|row| interface(row, &mut sums));
    if let Some(dns) = answer("dns", json!({})) {
        let count = |key: &str| dns["summary"][key].as_f64().unwrap_or_default();
        sums.add("dns", "queries".into(), count("queries"));
        sums.add("dns", "failed".into(), count("failed"));
        sums.add("dns", "unanswered".into(), count("unanswered"));
    }
    for (_, finding) in faults {
        sums.add("findings", finding.code.to_string(), 1.0);
    }
    sums.finish()
}

fn text<'a>(row: &'a Value, pointer: &str) -> Option<&'a str> {
    row.pointer(pointer).and_then(Value::as_str)
}

fn number(row: &Value, key: &str) -> f64 {
    row[key].as_f64().unwrap_or_default()
}

fn traffic(row: &Value, sums: &mut Sums) {
    let bytes = number(row, "rx_bytes") + number(row, "tx_bytes");
    let process = text(row, "/owner/process").unwrap_or("unknown");
    sums.add("traffic", format!("process:{process}"), bytes);
    if let Some(unit) = text(row, "/owner/unit") {
        sums.add("traffic", format!("unit:{unit}"), bytes);
    }
    if let Some(remote) = text(row, "/remote/address") {
        sums.add("traffic", format!("remote:{remote}"), bytes);
    }
    let port = |end: &str| row.pointer(end).and_then(Value::as_u64).filter(|port| *port != 0);
    if let Some(port) = port("/local/port").into_iter().chain(port("/remote/port")).min() {
        sums.add("traffic", format!("port:{port}"), bytes);
    }
}

fn connection(row: &Value, sums: &mut Sums) {
    let process = text(row, "/owner/process").unwrap_or("unknown");
    let (remote, port) = (text(row, "/remote/address").unwrap_or("?"), &row["remote"]["port"]);
    let outcome = row["outcome"].as_str().unwrap_or_default();
    let is_failure = !matches!(outcome, "connecting" | "established");
    if row["direction"] == "outbound" {
        let peer = format!("process:{process} remote:{remote}:{port}");
        if is_failure {
            sums.add("failures", format!("{outcome} {peer}"), 1.0);
        }
        if !row["duration_us"].is_null() {
            sums.add("connections", peer, 1.0);
        }
    } else if !row["duration_us"].is_null() {
        sums.add("connections", format!("process:{process} port:{}", row["local"]["port"]), 1.0);
    }
}

fn path(row: &Value, sums: &mut Sums) {
    let remote = match row["remote"]["port"].as_u64() {
        Some(port) => format!("remote:{}:{port}", text(row, "/remote/address").unwrap_or("?")),
        None => format!("remote:{}", text(row, "/remote/address").unwrap_or("?")),
    };
    let rtt = &row["rtt_us"];
    if let (Some(p50), Some(samples)) = (rtt["p50"].as_f64(), rtt["samples"].as_i64().filter(|samples| *samples > 0)) {
        sums.weigh("rtt", remote.clone(), p50 * samples as f64, samples);
    }
    let sent = row["segments_out"].as_i64().unwrap_or_default();
    sums.weigh("retransmits", remote, number(row, "retransmits"), sent);
}

fn dropped(row: &Value, sums: &mut Sums) {
    let what =
        [row["reason"].as_str(), row["location"].as_str()].into_iter().flatten().collect::<Vec<_>>().join(" in ");
    sums.add("drops", what, number(row, "count"));
}

fn listener(row: &Value, sums: &mut Sums) {
    let (address, port) = (text(row, "/local/address").unwrap_or("?"), &row["local"]["port"]);
    let process = text(row, "/owner/process").unwrap_or("unknown");
    sums.weigh("listeners", format!("process:{process} local:{address}:{port}"), 1.0, 1);
}

fn interface(row: &Value, sums: &mut Sums) {
    let name = row["name"].as_str().unwrap_or_default();
    sums.add("interfaces", format!("{name} {}", row["state"].as_str().unwrap_or("unknown")), 1.0);
    for address in row["addresses"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        sums.add("interfaces", format!("{name} {address}"), 1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_keep_the_largest_names_and_sum_the_rest() {
        let mut sums = Sums::default();
        for n in 0..limits::SERIES_NAMES + 3 {
            sums.add("traffic", format!("process:{n}"), n as f64);
        }
        sums.weigh("rtt", "remote:a".into(), 50.0, 10);
        let figures = sums.finish();
        let other = figures.iter().find(|figure| figure.name == "other").unwrap();
        assert_eq!((other.value, other.count), (3.0, 3));
        assert_eq!(figures.len(), limits::SERIES_NAMES + 2);
    }

    #[test]
    fn failed_connection_counts_as_connect_and_failure() {
        let mut sums = Sums::default();
        let row = json!({"owner": {"process": "curl"}, "direction": "outbound", "remote": {"address": "192.0.2.1", "port": 80},
                         "outcome": "refused", "duration_us": 5});
        connection(&row, &mut sums);
        connection(&row, &mut sums);
        let mut figures = sums.finish();
        figures.sort_by(|a, b| a.subject.cmp(&b.subject));
        let told: Vec<_> = figures.iter().map(|f| (f.subject.as_str(), f.name.as_str(), f.value)).collect();
        let peer = "process:curl remote:192.0.2.1:80";
        let refused = format!("refused {peer}");
        assert_eq!(told, [("connections", peer, 2.0), ("failures", refused.as_str(), 2.0)]);
    }
}
