//! What happened in the last seconds: connections, drops, queries, findings, latency.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::{Column, Table, elastic, number, optional, text};
use crate::gateway::{
    fingerprint::Fingerprint,
    live::{Episode, Screen},
    top::{
        cell::{Cell, Source, endpoint, namespace, place, process},
        groups::{self, by_reason, grouped},
        units::Unit,
    },
};

pub static CONNECTIONS: Table = CONNECTION_ROWS;

const CONNECTION_ROWS: Table = Table {
    title: "Connections",
    empty: "No TCP connection opened, failed or closed.",
    answer: "connections",
    rows: |screen| grouped(screen.rows("connections", "connections").iter()),
    columns: CONNECTION,
    key: groups::key,
    order: None,
};

/// Those of the same table that failed.
pub static FAILURES: Table =
    Table { title: "Failing connections", empty: "No connection failed.", rows: failures, ..CONNECTION_ROWS };

fn failures(screen: &Screen) -> Vec<Cow<'_, Value>> {
    let is_well = |row: &&Value| ["connecting", "established"].contains(&row["outcome"].as_str().unwrap_or_default());
    grouped(screen.rows("connections", "connections").iter().filter(|row| !is_well(row)))
}

const CONNECTION: &[Column] = &[
    text("process", |source| process(&source.row["owner"])),
    elastic(text("remote", |source| match (endpoint(&source.row["remote"]), process(&source.row["server"])) {
        (Cell::Text(remote), Cell::Text(server)) => Cell::Text(format!("{remote} {server}")),
        (remote, _) => remote,
    })),
    text("outcome", word!("outcome")),
    optional(number("count", |source| Cell::Figure(source.row["count"].as_f64().unwrap_or(1.0), Unit::Count))),
    optional(number("connected in", at!(Micros, "connect_latency_us"))),
    optional(number("lasted", at!(Micros, "duration_us"))),
    optional(number("received", at!(Bytes, "rx_bytes"))),
    optional(number("sent", at!(Bytes, "tx_bytes"))),
    optional(number("rtt", at!(Micros, "rtt_us"))),
    optional(number("retransmits", at!(Count, "retransmits"))),
    optional(text("direction", word!("direction"))),
    optional(text("local", |source| endpoint(&source.row["local"]))),
    optional(text("unit or container", |source| place(&source.row["owner"]))),
    optional(text("netns", namespace)),
];

pub static DROPS: Table = Table {
    title: "Dropped packets",
    empty: "No harmful packet drop.",
    answer: "drops",
    rows: rows!("drops", "drops"),
    columns: &[
        number("packets", at!(Count, "count")),
        text("reason", word!("reason")),
        optional(text("destination", |source| endpoint(&source.row["destination"]))),
        optional(text("source", |source| endpoint(&source.row["source"]))),
        optional(text("interface", word!("interface"))),
        optional(text("process", |source| process(&source.row["owner"]))),
        optional(text("in the kernel", word!("location"))),
        optional(text("meaning", word!("explanation"))),
    ],
    key: key!("reason", "location", "source", "destination", "owner", "interface"),
    order: Some((0, true)),
};

/// The same by reason alone.
pub static REASONS: Table = Table {
    title: "Drops by reason",
    empty: "No harmful packet drop.",
    answer: "drops",
    rows: |screen| by_reason(screen.rows("drops", "drops").iter()),
    columns: &[
        number("packets", at!(Count, "count")),
        text("reason", word!("reason")),
        optional(number("flows", at!(Count, "flows"))),
        optional(text("meaning", word!("explanation"))),
    ],
    key: key!("reason"),
    order: Some((0, true)),
};

pub static DNS: Table = Table {
    title: "DNS",
    empty: "No query.",
    answer: "dns",
    rows: rows!("dns", "queries"),
    columns: &[
        elastic(text("name", word!("name"))),
        text("answer", reply),
        optional(number("time", at!(Micros, "latency_us"))),
        optional(text("type", word!("type"))),
        optional(text("process", |source| process(&source.row["owner"]))),
        optional(text("server", |source| endpoint(&source.row["server"]))),
        optional(number("sent", at!(Count, "sent"))),
    ],
    key: key!("owner", "name", "type", "server", "rcode"),
    order: None,
};

fn reply(source: &Source) -> Cell {
    match (Cell::text(&source.row["rcode"]), source.row["pending"] == true) {
        (Cell::None, true) => Cell::Text("waiting".into()),
        (Cell::None, false) => Cell::Text("no answer".into()),
        (rcode, _) => rcode,
    }
}

pub static FINDINGS: Table = Table {
    title: "Findings",
    empty: "No finding.",
    answer: "diagnosis",
    rows: |screen| screen.findings.iter().map(|episode| Cow::Owned(finding(episode))).collect(),
    columns: &[
        text("severity", |source| Cell::Text(severity(source.row).into())),
        text("code", word!("code")),
        elastic(text("summary", word!("summary"))),
        optional(number("for", |source| since(source.row))),
    ],
    key: |row| serde_json::to_string(&Fingerprint::of(row)).unwrap_or_default(),
    order: None,
};

/// An episode as a row: the finding, with its period.
fn finding(episode: &Episode) -> Value {
    let mut row = episode.finding.clone();
    let more = json!({"active": episode.active, "since_ms": episode.since_ms, "last_ms": episode.last_ms});
    if let (Some(row), Value::Object(more)) = (row.as_object_mut(), more) {
        row.extend(more);
    }
    row
}

/// The severity as a word, or that the finding has ended.
pub fn severity(row: &Value) -> &'static str {
    match (row["active"] == false, row["severity"].as_str()) {
        (true, _) => "ended",
        (_, Some("critical")) => "CRITICAL",
        (_, Some("warning")) => "WARNING",
        _ => "INFO",
    }
}

fn since(row: &Value) -> Cell {
    let length_ms = row["last_ms"].as_f64().zip(row["since_ms"].as_f64()).map(|(last, since)| last - since);
    length_ms.map_or(Cell::None, |ms| Cell::Figure(ms * 1e3, Unit::Micros))
}

pub static LATENCY: Table = Table {
    title: "Latency by stage",
    empty: "No TCP or UDP data was read or written.",
    answer: "latency",
    rows: rows!("latency", "stages"),
    columns: &[
        text("stage", word!("stage")),
        text("process", |source| process(&source.row["owner"])),
        number("p50", at!(Micros, "us"."p50")),
        number("p99", at!(Micros, "us"."p99")),
        optional(text("side", word!("side"))),
        optional(text("local or remote", |source| match endpoint(&source.row["local"]) {
            Cell::None => endpoint(&source.row["remote"]),
            local => local,
        })),
        optional(number("count", at!(Count, "count"))),
        optional(number("p90", at!(Micros, "us"."p90"))),
        optional(number("max", at!(Micros, "us"."max"))),
    ],
    key: key!("stage", "side", "owner", "local", "remote"),
    order: None,
};

pub static THROTTLED: Table = Table {
    title: "Throttled control groups",
    empty: "No control group used up its CPU quota.",
    answer: "latency",
    rows: rows!("latency", "throttled"),
    columns: &[
        text("control group", word!("cgroup")),
        text("process", |source| process(&source.row["owner"])),
        number("periods", at!(Count, "periods")),
        number("throttled", at!(Count, "throttled_periods")),
        number("time", at!(Micros, "throttled_us")),
    ],
    key: key!("cgroup"),
    order: None,
};
