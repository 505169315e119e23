//! What is so now: traffic, sockets, TCP, interfaces.

use std::borrow::Cow;

use super::{Table, elastic, number, optional, text};
use crate::gateway::top::{
    cell::{Cell, Source, endpoint, namespace, place, process, who},
    units::Unit,
};

macro_rules! traffic {
    ($name:ident, $title:literal, $answer:literal, $who:literal) => {
        pub static $name: Table = Table {
            title: $title,
            empty: "No traffic.",
            answer: $answer,
            rows: rows!($answer, "rows"),
            columns: &[
                elastic(text($who, |source| who(source.row))),
                number("received", at!(Rate, "rx_bits_per_second")),
                number("sent", at!(Rate, "tx_bits_per_second")),
                optional(number("bytes", both)),
                optional(number("share", at!(Share, "share"))),
                optional(number("sockets", at!(Count, "connections"))),
                optional(text("unit or container", |source| place(&source.row["owner"]))),
                optional(text("history", share)),
                optional(text("netns", namespace)),
            ],
            key: key!("owner", "protocol", "local", "remote", "port"),
            order: Some((3, true)),
        };
    };
}

fn both(source: &Source) -> Cell {
    let of = |field: &str| source.row[field].as_f64().unwrap_or_default();
    Cell::Figure(of("rx_bytes") + of("tx_bytes"), Unit::Bytes)
}

/// The bit rate of a process name over time.
fn share(source: &Source) -> Cell {
    let Some(name) = source.row["owner"]["process"].as_str() else { return Cell::None };
    let points = source.screen.history.iter().map(|point| {
        let share = point.processes.iter().find(|share| share.name == name);
        share.map_or(0.0, |share| share.bits_per_second)
    });
    Cell::Bars(points.collect())
}

traffic!(PROCESSES, "Traffic by process", "processes", "process");
traffic!(UNITS, "Traffic by unit", "units", "unit");
traffic!(CONTAINERS, "Traffic by container", "containers", "container");
traffic!(REMOTES, "Traffic by remote", "remotes", "remote");
traffic!(FLOWS, "Traffic by connection", "flows", "connection");

pub static SOCKETS: Table = Table {
    title: "Open sockets",
    empty: "No socket.",
    answer: "sockets",
    rows: rows!("sockets", "sockets"),
    columns: &[
        text("process", |source| process(&source.row["owner"])),
        optional(text("protocol", word!("protocol"))),
        text("state", word!("state")),
        text("remote", |source| endpoint(&source.row["remote"])),
        optional(text("local", |source| endpoint(&source.row["local"]))),
        optional(number("unread", at!(Bytes, "receive_queue_bytes"))),
        optional(number("unsent", at!(Bytes, "send_queue_bytes"))),
        optional(number("rtt", at!(Micros, "rtt_us"))),
        optional(number("retransmits", at!(Count, "retransmits"))),
        optional(text("limited by", word!("limited_by"))),
        optional(text("unit or container", |source| place(&source.row["owner"]))),
        optional(text("netns", namespace)),
    ],
    key: key!("owner", "protocol", "local", "remote"),
    order: None,
};

pub static LISTENERS: Table = Table {
    title: "Listeners",
    empty: "No listener.",
    answer: "sockets",
    rows: rows!("sockets", "listeners"),
    columns: &[
        text("process", |source| process(&source.row["owner"])),
        optional(text("protocol", word!("protocol"))),
        text("local", |source| endpoint(&source.row["local"])),
        number("queued", at!(Count, "accept_queue")),
        number("queue limit", at!(Count, "accept_queue_max")),
        optional(number("half open", at!(Count, "half_open"))),
        optional(number("dropped", at!(Count, "dropped"))),
        optional(text("unit or container", |source| place(&source.row["owner"]))),
        optional(text("netns", namespace)),
    ],
    key: key!("owner", "protocol", "local"),
    order: None,
};

pub static TCP: Table = Table {
    title: "TCP by remote",
    empty: "No TCP connection sent or received data.",
    answer: "tcp",
    rows: rows!("tcp", "remotes"),
    columns: &[
        text("remote", |source| endpoint(&source.row["remote"])),
        text("process", |source| process(&source.row["owners"][0]["owner"])),
        number("rtt p50", at!(Micros, "rtt_us"."p50")),
        optional(number("p99", at!(Micros, "rtt_us"."p99"))),
        optional(number("segments", at!(Count, "segments_out"))),
        optional(number("retransmits", at!(Count, "retransmits"))),
        number("retransmitted", at!(Percent, "retransmit_percent")),
        optional(text("limited by", word!("limited_by"))),
        optional(number("connections", at!(Count, "connections"))),
        optional(number("min", at!(Micros, "rtt_us"."min"))),
        optional(number("max", at!(Micros, "rtt_us"."max"))),
    ],
    key: key!("remote"),
    order: None,
};

pub static RESETS: Table = Table {
    title: "Resets",
    empty: "No connection was reset.",
    answer: "tcp",
    rows: rows!("tcp", "resets"),
    columns: &[
        text("process", |source| process(&source.row["owner"])),
        text("remote", |source| endpoint(&source.row["remote"])),
        text("sent by", word!("sent_by")),
        number("count", at!(Count, "count")),
        optional(text("reason", word!("reason"))),
        optional(text("local", |source| endpoint(&source.row["local"]))),
        optional(text("meaning", word!("explanation"))),
    ],
    key: key!("owner", "local", "remote", "sent_by", "reason"),
    order: None,
};

pub static INTERFACES: Table = Table {
    title: "Interfaces",
    empty: "No interface.",
    answer: "interfaces",
    rows: rows!("interfaces", "interfaces"),
    columns: &[
        text("interface", word!("name")),
        number("received", at!(Rate, "rx"."bits_per_second")),
        number("sent", at!(Rate, "tx"."bits_per_second")),
        optional(text("history", rates)),
        optional(text("state", word!("state"))),
        optional(number("errors", |source| trouble(source, "errors"))),
        optional(number("dropped", |source| trouble(source, "dropped"))),
        optional(number("packets in", at!(PerSecond, "rx"."packets_per_second"))),
        optional(number("packets out", at!(PerSecond, "tx"."packets_per_second"))),
        optional(text("kind", word!("kind"))),
        optional(text("address", word!("addresses".0))),
    ],
    key: key!("name", "index"),
    order: None,
};

/// Since the interface exists, both ways.
fn trouble(source: &Source, field: &str) -> Cell {
    let of = |way: &str| source.row[way][field].as_f64().unwrap_or_default();
    Cell::Figure(of("rx") + of("tx"), Unit::Count)
}

/// The bit rate of an interface over time, both ways.
fn rates(source: &Source) -> Cell {
    let name = source.row["name"].as_str().unwrap_or_default();
    let points = source.screen.history.iter().map(|point| {
        let rate = point.interfaces.iter().find(|rate| rate.name == name);
        rate.map_or(0.0, |rate| rate.rx_bits_per_second + rate.tx_bits_per_second)
    });
    Cell::Bars(points.collect())
}
