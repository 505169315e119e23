//! The tables of remotes and of resets.

use std::{collections::BTreeMap, fmt::Write};

use super::{FirstByte, ListenerRow, Other, Output, RemoteRow, ResetRow, Rtt, Side};
use crate::{answer, tcp::LimitedBy};

/// The answer for a person.
pub fn text(output: &Output) -> String {
    let seconds = output.measured.window_ms / 1e3;
    let mut text = verdict(output).map_or_else(String::new, |verdict| verdict + "\n\n");
    if output.remotes.is_empty() {
        let _ = writeln!(text, "No matching TCP connection sent or received data in {seconds:.1} s.");
    } else {
        text += &answer::table(
            [
                "remote",
                "process",
                "?>conns",
                "?>rtt min",
                ">rtt p50",
                "?>p99",
                "?>max",
                "?>first byte",
                "?>sent",
                "?>retrans",
                ">%",
                "~limited by",
            ],
            output.remotes.iter().map(line),
        );
    }
    if !output.listeners.is_empty() {
        text.push('\n');
        text += &answer::table(
            ["listener", "process", ">replies", ">first byte p50", "?>p90", ">p99", "?>max", ">rtt p50"],
            output.listeners.iter().map(listener_line),
        );
    }
    let Other { connections, segments_out, retransmits } = output.other;
    if connections > 0 {
        let connections = answer::count(connections, "connection", "connections");
        let _ = writeln!(text, "\nother: {connections}, {segments_out} segments sent, {retransmits} retransmits");
    }
    if !output.resets.is_empty() {
        text.push('\n');
        text += &answer::table(
            ["reset by", "process", "?local", "remote", ">count", "reason", "?"],
            output.resets.iter().map(reset_line),
        );
    }
    text + &output.measured.text(output.remotes.len() + output.listeners.len() + output.resets.len())
}

/// The longest time to a first byte that is not the network's: a program of this host before one that it asks.
fn verdict(output: &Output) -> Option<String> {
    let network = |rtt: &Option<Rtt>| match rtt {
        Some(rtt) => format!("the network {}", answer::micros(rtt.p50.into())),
        None => "the network is unknown".into(),
    };
    let ours = output.listeners.iter().filter(|row| row.first_byte_us.is_long(row.rtt_us.as_ref()));
    if let Some(row) = ours.max_by_key(|row| row.first_byte_us.us.p50) {
        let p50 = row.first_byte_us.p50();
        return Some(format!("{} at {} needs {p50} to reply (p50), {}.", row.owner, row.local, network(&row.rtt_us)));
    }
    let long = |row: &&RemoteRow| row.first_byte_us.as_ref().is_some_and(|first| first.is_long(row.rtt_us.as_ref()));
    let theirs = output.remotes.iter().filter(long).max_by_key(|row| row.first_byte_us.as_ref().map(|f| f.us.p50))?;
    let p50 = theirs.first_byte_us.as_ref()?.p50();
    Some(format!("{} replies after {p50} (p50), of which {}.", end(theirs), network(&theirs.rtt_us)))
}

fn listener_line(row: &ListenerRow) -> [String; 8] {
    let FirstByte { count, us } = &row.first_byte_us;
    let time = |us: u32| answer::micros(us.into());
    let rtt = row.rtt_us.as_ref().map_or_else(|| "-".into(), |rtt| time(rtt.p50));
    let owner = row.owner.to_string();
    [row.local.to_string(), owner, count.to_string(), time(us.p50), time(us.p90), time(us.p99), time(us.max), rtt]
}

fn end(row: &RemoteRow) -> String {
    row.remote.port.map_or_else(
        || row.remote.address.to_string(),
        |port| std::net::SocketAddr::new(row.remote.address, port).to_string(),
    )
}

fn line(row: &RemoteRow) -> [String; 12] {
    let time =
        |of: fn(&Rtt) -> u32| row.rtt_us.as_ref().map_or_else(|| "-".into(), |rtt| answer::micros(of(rtt).into()));
    let who = match row.owners.as_slice() {
        [] => "-".into(),
        [only] => only.owner.to_string(),
        [first, more @ ..] => format!("{} +{}", first.owner, more.len()),
    };
    [
        end(row),
        who,
        row.connections.to_string(),
        time(|rtt| rtt.min),
        time(|rtt| rtt.p50),
        time(|rtt| rtt.p99),
        time(|rtt| rtt.max),
        row.first_byte_us.as_ref().map_or_else(|| "-".into(), FirstByte::p50),
        row.segments_out.to_string(),
        row.retransmits.to_string(),
        format!("{:.1}", row.retransmit_percent),
        limit(row.limited_by, &row.limited_ms),
    ]
}

/// `receiver (4.9 s)`.
fn limit(by: Option<LimitedBy>, times: &BTreeMap<LimitedBy, u64>) -> String {
    match by.map(|by| (by, times.get(&by).copied().unwrap_or(0))) {
        None => "-".into(),
        Some((by, 0)) => by.to_string(),
        Some((by, ms)) => format!("{by} ({})", answer::micros(ms * 1_000)),
    }
}

fn reset_line(row: &ResetRow) -> [String; 7] {
    [
        if row.sent_by == Side::Remote { "remote" } else { "local" }.into(),
        row.owner.to_string(),
        row.local.to_string(),
        row.remote.to_string(),
        row.count.to_string(),
        answer::or_dash(&row.reason),
        row.explanation.clone().unwrap_or_default(),
    ]
}
