//! The gateway's counters and the daemon's cost, as Prometheus text.

use std::{
    collections::BTreeMap,
    fmt::{Display, Write},
    sync::Mutex,
    time::Duration,
};

use axum::http::StatusCode;
use serde_json::{Map, Value};

use super::{
    Gateway,
    series::{self, Series},
};
use crate::{recorder::time, sync::lock};

/// Upper bounds of the buckets of a call's duration, in seconds: calls that do not watch end in the first
/// ones, windows in the last.
const BUCKETS_S: [f64; 8] = [0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0];

/// Counters since the start.
#[derive(Default)]
pub struct Metrics {
    counts: Mutex<Counts>,
    series: Mutex<Series>,
}

/// What is open over HTTP.
#[derive(Default)]
pub struct Open {
    pub connections: usize,
    pub sessions: usize,
    pub viewers: usize,
}

#[derive(Default)]
struct Counts {
    /// By tool and outcome.
    calls: BTreeMap<(&'static str, &'static str), u64>,
    durations: BTreeMap<&'static str, Histogram>,
    lost_events: u64,
    /// HTTP requests that went no further, by status.
    refused: BTreeMap<u16, u64>,
}

#[derive(Default)]
struct Histogram {
    buckets: [u64; BUCKETS_S.len()],
    count: u64,
    sum_s: f64,
}

impl Metrics {
    /// Counts a call that has ended.
    pub fn called(&self, tool: &'static str, outcome: &'static str, took: Duration, lost_events: u64) {
        let (mut counts, seconds) = (lock(&self.counts), took.as_secs_f64());
        *counts.calls.entry((tool, outcome)).or_default() += 1;
        counts.lost_events += lost_events;
        let histogram = counts.durations.entry(tool).or_default();
        histogram.count += 1;
        histogram.sum_s += seconds;
        for (bucket, _) in histogram.buckets.iter_mut().zip(BUCKETS_S).filter(|(_, bound)| seconds <= *bound) {
            *bucket += 1;
        }
    }

    /// Counts an HTTP request that was refused.
    pub fn refused(&self, status: StatusCode) {
        *lock(&self.counts).refused.entry(status.as_u16()).or_default() += 1;
    }

    /// Everything, with what the daemon says of itself if it answers.
    pub async fn render(&self, gateway: &Gateway, open: Open) -> String {
        let status = match gateway.prepare("status", Map::new()) {
            Ok(call) => gateway.call(call).await.ok(),
            Err(_) => None,
        };
        let mut page = Page::default();
        for (family, help, count) in [
            ("netmon_connections", "Open HTTP connections.", open.connections),
            ("netmon_sessions", "Open MCP sessions.", open.sessions),
            ("netmon_viewers", "Open live pages.", open.viewers),
        ] {
            page.family(family, "gauge", help);
            page.sample(family, &[], count);
        }
        self.own(&mut page);
        let status = status.map(|answer| answer.structured).unwrap_or_default();
        daemon(&mut page, &status);
        recording(&mut page, &status["recording"]);
        self.host(&mut page, gateway).await;
        page.text
    }

    /// What the recorder saw of this host since the first scrape.
    async fn host(&self, page: &mut Page, gateway: &Gateway) {
        let from = lock(&self.series).wanted_from(time::now());
        let Some((minutes, incidents)) = gateway.past.minutes(from).await else { return };
        let mut series = lock(&self.series);
        series.add(&minutes);
        let open = series::open(&incidents);
        let mut samples: Vec<_> =
            series.all().into_iter().chain(open.iter().map(|(key, count)| (key, *count))).collect();
        samples.sort_by_key(|(key, _)| *key);
        for (family, kind, help) in series::FAMILIES {
            page.family(family, kind, help);
            for ((_, labels), value) in samples.iter().filter(|((name, _), _)| *name == family) {
                let labels: Vec<_> = labels.iter().map(|(name, value)| (*name, value.as_str())).collect();
                page.sample(family, &labels, value);
            }
        }
    }

    fn own(&self, page: &mut Page) {
        let counts = lock(&self.counts);
        page.family("netmon_calls_total", "counter", "Tool calls, by outcome.");
        for ((tool, outcome), count) in &counts.calls {
            page.sample("netmon_calls_total", &[("tool", tool), ("outcome", outcome)], count);
        }
        page.family("netmon_call_seconds", "histogram", "Duration of tool calls, including their window.");
        for (tool, histogram) in &counts.durations {
            for (bound, count) in BUCKETS_S.iter().zip(histogram.buckets) {
                page.sample("netmon_call_seconds_bucket", &[("tool", tool), ("le", &bound.to_string())], count);
            }
            page.sample("netmon_call_seconds_bucket", &[("tool", tool), ("le", "+Inf")], histogram.count);
            page.sample("netmon_call_seconds_sum", &[("tool", tool)], histogram.sum_s);
            page.sample("netmon_call_seconds_count", &[("tool", tool)], histogram.count);
        }
        page.family("netmon_lost_events_total", "counter", "Lost events, as reported in answers.");
        page.sample("netmon_lost_events_total", &[], counts.lost_events);
        page.family("netmon_refused_total", "counter", "Refused HTTP requests, by status.");
        for (status, count) in &counts.refused {
            page.sample("netmon_refused_total", &[("status", &status.to_string())], count);
        }
    }
}

/// Metrics from the `status` tool.
fn daemon(page: &mut Page, status: &Value) {
    let connected = status["daemon"]["connected"] == true;
    page.family("netmond_up", "gauge", "Whether netmond answers.");
    page.sample("netmond_up", &[], u8::from(connected));
    if !connected {
        return;
    }
    page.family("netmond_resident_bytes", "gauge", "Resident memory of netmond.");
    page.sample("netmond_resident_bytes", &[], &status["memory_bytes"]);
    let tools = status["tools"].as_array().map_or(&[][..], Vec::as_slice);
    let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
    for (family, key, help) in [
        ("netmond_tool_available", "available", "Whether a tool works on this kernel."),
        ("netmond_windows_open", "windows", "Running measurements."),
    ] {
        page.family(family, "gauge", help);
        for tool in tools {
            let value = tool[key].as_bool().map_or_else(|| tool[key].to_string(), |yes| u8::from(yes).to_string());
            page.sample(family, &[("tool", &name(tool))], value);
        }
    }
    for (family, key, divisor, help) in [
        ("netmond_bpf_runs_total", "run_count", 1.0, "Runs of an eBPF program (sysctl kernel.bpf_stats_enabled)."),
        ("netmond_bpf_run_seconds_total", "run_time_ns", 1e9, "Time spent in an eBPF program."),
    ] {
        page.family(family, "counter", help);
        for tool in tools {
            for program in tool["programs"].as_array().into_iter().flatten() {
                // Those that have run while the kernel counted.
                let value = program[key].as_f64().unwrap_or_default();
                page.sample(family, &[("tool", &name(tool)), ("program", &name(program))], value / divisor);
            }
        }
    }
}

/// Metrics of the recording.
fn recording(page: &mut Page, recording: &Value) {
    page.family("netmon_recording_active", "gauge", "Whether a recorder is running.");
    page.sample("netmon_recording_active", &[], u8::from(recording["active"] == true));
    for (family, kind, key, help) in [
        ("netmon_recording_bytes", "gauge", "bytes", "Size of the recording on disk."),
        ("netmon_recording_windows", "gauge", "windows", "Windows in the recording."),
        ("netmon_recording_lost_windows_total", "counter", "lost_windows", "Windows lost because writing failed."),
    ] {
        if let Some(value) = recording[key].as_u64() {
            page.family(family, kind, help);
            page.sample(family, &[], value);
        }
    }
}

/// The text format of Prometheus.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let escape = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escape(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.text, "{name}{labels} {value}");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn metrics_count_calls_by_outcome_and_duration() {
        let metrics = Metrics::default();
        metrics.called("status", "ok", Duration::from_micros(300), 0);
        metrics.called("status", "ok", Duration::from_secs(1), 2);
        metrics.called("status", "busy", Duration::ZERO, 0);
        metrics.refused(StatusCode::UNAUTHORIZED);
        let mut page = Page::default();
        metrics.own(&mut page);
        for line in [
            "netmon_calls_total{tool=\"status\",outcome=\"ok\"} 2",
            "netmon_call_seconds_bucket{tool=\"status\",le=\"0.001\"} 2",
            "netmon_call_seconds_bucket{tool=\"status\",le=\"2\"} 3",
            "netmon_call_seconds_count{tool=\"status\"} 3",
            "netmon_lost_events_total 2",
            "netmon_refused_total{status=\"401\"} 1",
        ] {
            assert!(page.text.lines().any(|l| l == line), "{line}\n{}", page.text);
        }
    }

    #[test]
    fn metrics_of_the_daemon_come_from_status() {
        let tool = json!({"name": "t", "available": true, "windows": 3, "programs": [{"name": "p\"", "run_count": 2, "run_time_ns": 500}]});
        let mut page = Page::default();
        daemon(&mut page, &json!({"daemon": {"connected": true}, "memory_bytes": 7, "tools": [tool]}));
        for line in [
            "netmond_up 1",
            "netmond_resident_bytes 7",
            "netmond_tool_available{tool=\"t\"} 1",
            "netmond_windows_open{tool=\"t\"} 3",
            "netmond_bpf_runs_total{tool=\"t\",program=\"p\\\"\"} 2",
            "netmond_bpf_run_seconds_total{tool=\"t\",program=\"p\\\"\"} 0.0000005",
        ] {
            assert!(page.text.lines().any(|l| l == line), "{line}\n{}", page.text);
        }
        let mut page = Page::default();
        daemon(&mut page, &Value::Null);
        assert!(page.text.ends_with("netmond_up 0\n"));
    }
}
