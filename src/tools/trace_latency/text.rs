//! Who takes the time, and the table of stages.

use std::fmt::Write;

use super::{Output, Percentiles, Row, Side, Stage, ThrottledRow};
use crate::answer;

/// The answer for a person.
pub fn text(output: &Output) -> String {
    let seconds = output.measured.window_ms / 1e3;
    let mut text = String::new();
    if output.stages.is_empty() {
        let recorded = output.measured.limits.iter().any(|limit| limit.code == answer::Code::OnlyRepliesRecorded);
        let _ = match recorded {
            true => writeln!(text, "The recording has no TCP reply in these {seconds:.1} s."),
            false => writeln!(text, "No matching TCP or UDP data was read or written in {seconds:.1} s."),
        };
    } else {
        if let Some(verdict) = verdict(output) {
            let _ = writeln!(text, "{verdict}\n");
        }
        text += &answer::table(
            ["stage", "process", "?side", "local or remote", ">count", ">p50", "?>p90", ">p99", "?>max"],
            output.stages.iter().map(line),
        );
    }
    if !output.throttled.is_empty() {
        text.push('\n');
        text += &answer::table(
            ["throttled", "process", ">periods", ">throttled", ">time"],
            output.throttled.iter().map(throttled_line),
        );
    }
    text + &output.measured.text(output.stages.len() + output.throttled.len())
}

/// The longest exchange, with the network's part of it.
fn verdict(output: &Output) -> Option<String> {
    let of = |stage| output.stages.iter().filter(move |row| row.stage == stage);
    let replies = of(Stage::RequestToReply).max_by_key(|row| (row.side == Side::Server, row.sum_us))?;
    let is_same = |row: &&Row| (&row.owner, row.local, row.remote) == (&replies.owner, replies.local, replies.remote);
    let network = of(Stage::WireToAck).find(is_same).map(|row| {
        let least = if row.least { "at least " } else { "" };
        format!("; the network takes {least}{}", answer::micros(row.us.p50.into()))
    });
    let takes = answer::micros(replies.us.p50.into());
    let (owner, end) = (&replies.owner, end(replies));
    let who = match replies.side {
        Side::Server => format!("{owner} at {end} takes {takes} to reply"),
        Side::Client => format!("{end} replies to {owner} after {takes}, network included"),
    };
    Some(format!("{who} (p50){}.", network.unwrap_or_default()))
}

fn end(row: &Row) -> String {
    answer::or_dash(&row.local.or(row.remote))
}

fn name(stage: Stage) -> &'static str {
    match stage {
        Stage::ArrivalToSocket => "arrival_to_socket",
        Stage::SocketToRead => "socket_to_read",
        Stage::RequestToReply => "request_to_reply",
        Stage::WriteToWire => "write_to_wire",
        Stage::WireToAck => "wire_to_ack",
        Stage::RunnableToRunning => "runnable_to_running",
        Stage::LeastRtt => "least_rtt",
    }
}

fn line(row: &Row) -> [String; 9] {
    let Percentiles { p50, p90, p99, max } = row.us;
    let time = |us: u32| answer::micros(us.into());
    let stage = name(row.stage).to_owned() + if row.least { " (least)" } else { "" };
    let side = if row.side == Side::Server { "server" } else { "client" };
    let owner = row.owner.to_string();
    [stage, owner, side.into(), end(row), row.count.to_string(), time(p50), time(p90), time(p99), time(max)]
}

fn throttled_line(row: &ThrottledRow) -> [String; 5] {
    [
        row.cgroup.clone(),
        row.owner.to_string(),
        row.periods.to_string(),
        row.throttled_periods.to_string(),
        answer::micros(row.throttled_us),
    ]
}
