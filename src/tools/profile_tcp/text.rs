//! The tables of remotes and of resets.

use std::{collections::BTreeMap, fmt::Write};

use super::{Other, Output, RemoteRow, ResetRow, Rtt, Side};
use crate::{answer, tcp::LimitedBy};

/// The answer for a person.
pub fn text(output: &Output) -> String {
    let seconds = output.measured.window_ms / 1e3;
    let mut text = String::new();
    if output.remotes.is_empty() {
        let _ = writeln!(text, "No TCP connection sent or received data in {seconds:.1} s.");
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
                "?>sent",
                "?>retrans",
                ">%",
                "limited by",
            ],
            output.remotes.iter().map(line),
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
    text + &output.measured.text(output.remotes.len() + output.resets.len())
}

fn line(row: &RemoteRow) -> [String; 11] {
    let time =
        |of: fn(&Rtt) -> u32| row.rtt_us.as_ref().map_or_else(|| "-".into(), |rtt| answer::micros(of(rtt).into()));
    let who = match row.owners.as_slice() {
        [] => "-".into(),
        [only] => only.owner.to_string(),
        [first, more @ ..] => format!("{} +{}", first.owner, more.len()),
    };
    [
        row.remote.port.map_or_else(
            || row.remote.address.to_string(),
            |port| std::net::SocketAddr::new(row.remote.address, port).to_string(),
        ),
        who,
        row.connections.to_string(),
        time(|rtt| rtt.min),
        time(|rtt| rtt.p50),
        time(|rtt| rtt.p99),
        time(|rtt| rtt.max),
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
