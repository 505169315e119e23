//! The answer, from what the kernel said.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use super::{Counts, End, Gaps, Group, Other, Output, OwnerRow, RemoteRow, Reset, ResetRow, Rtt, Sample, Waits};
use crate::{
    answer::{self, Measured, Owner},
    limits,
    tcp::LimitedBy,
    untrusted,
};

pub fn output(sample: Sample) -> Output {
    let mut measured = Measured::window(Duration::from_nanos(sample.window_ns));
    (measured.lost_events, measured.rows_cut) = (sample.missed, sample.remotes_cut + sample.resets_cut);
    measured.limits = unseen(&sample.gaps);
    let owners_cut: u64 = sample.remotes.iter().map(|group| group.owners_cut).sum();
    if owners_cut > 0 {
        measured.limits.push(format!("{owners_cut} more owners; a filter for their process shows them."));
    }
    let mut shown = Counts::default();
    sample.remotes.iter().for_each(|group| shown += group.counts);
    let other = Other {
        connections: sample.total.connections.saturating_sub(shown.connections),
        segments_out: sample.total.segments_out.saturating_sub(shown.segments_out),
        retransmits: sample.total.retransmits.saturating_sub(shown.retransmits),
    };
    Output {
        remotes: sample.remotes.into_iter().filter_map(remote).collect(),
        resets: sample.resets.into_iter().map(reset).collect(),
        other,
        measured,
    }
}

fn remote(group: Group) -> Option<RemoteRow> {
    let Counts { connections, segments_out, retransmits, spurious } = group.counts;
    let rtt = Rtt {
        min: group.rtt.min_us(),
        p50: group.rtt.quantile_us(0.5),
        p90: group.rtt.quantile_us(0.9),
        p99: group.rtt.quantile_us(0.99),
        max: group.rtt.max_us(),
        samples: group.rtt.samples(),
    };
    Some(RemoteRow {
        remote: group.remote?,
        connections,
        owners: group.owners.iter().map(|(process, counts)| owner(process.owner(), counts)).collect(),
        rtt_us: (rtt.samples > 0).then_some(rtt),
        segments_out,
        retransmits,
        spurious,
        retransmit_percent: percent(retransmits, segments_out),
        limited_by: limited_by(&group.waits),
        limited_ms: times(&group.waits).map(|(limit, ns)| (limit, ns / 1_000_000)).into(),
    })
}

fn owner(owner: Owner, counts: &Counts) -> OwnerRow {
    let Counts { connections, segments_out, retransmits, .. } = *counts;
    OwnerRow { owner, connections, segments_out, retransmits }
}

fn percent(part: u64, whole: u64) -> f64 {
    (part as f64 / whole.max(1) as f64 * 1e4).round() / 1e2
}

/// The time that went to each limit. The kernel has one clock for "busy", which is two things: where segments that
/// came found data waiting to be sent, the network's window was full; where all was on its way, the application had
/// no more. Where nothing came at all, it was the network.
fn times(waits: &Waits) -> [(LimitedBy, u64); 4] {
    let came = waits.waiting + waits.drained;
    let drained = if came == 0 { 0.0 } else { waits.drained as f64 / came as f64 };
    let application = (waits.busy as f64 * drained) as u64;
    [
        (LimitedBy::Receiver, waits.receiver),
        (LimitedBy::SendBuffer, waits.send_buffer),
        (LimitedBy::Network, waits.busy - application.min(waits.busy)),
        (LimitedBy::Application, application),
    ]
}

pub(super) fn limited_by(waits: &Waits) -> Option<LimitedBy> {
    let longest = times(waits).into_iter().max_by_key(|(_, ns)| *ns).filter(|(_, ns)| *ns > 0);
    // The kernel's clock ticks in milliseconds: what is sent and acknowledged between two ticks took no time.
    longest.map(|(limit, _)| limit).or(match (waits.waiting, waits.drained) {
        (0, 0) => None,
        (waiting, drained) if waiting > drained => Some(LimitedBy::Network),
        _ => Some(LimitedBy::Application),
    })
}

fn reset(reset: Reset) -> ResetRow {
    let reason = match (reset.reason, reset.by_remote) {
        (Some(reason), _) => Some(untrusted::clean(&reason)),
        (None, true) => Some(from_state(reset.state).to_owned()),
        (None, false) => None,
    };
    ResetRow {
        owner: reset.process.owner(),
        local: reset.local,
        remote: reset.remote,
        sent_by: if reset.by_remote { End::Remote } else { End::Local },
        count: reset.count,
        explanation: reason.as_deref().and_then(explanation).map(str::to_owned),
        reason,
    }
}

/// What the state tells in which a reset found the socket (TCP_* of tcp_states.h): the segment itself has no reason.
fn from_state(state: u8) -> &'static str {
    match state {
        2 => "refused",
        1 | 3 => "aborted",
        _ => "aborted_while_closing",
    }
}

fn explanation(reason: &str) -> Option<&'static str> {
    Some(match reason {
        "refused" => "Nothing listens there, or a firewall rejects.",
        "aborted" => "The peer gave the connection up.",
        "aborted_while_closing" => "The peer had closed, and data still came or was left unread.",
        "NO_SOCKET" => "Nothing listens on the local port.",
        "TCP_STATE" => "Closed with SO_LINGER 0, or disconnected.",
        "TCP_ABORT_ON_CLOSE" => "Closed before all that had come was read.",
        "TCP_ABORT_ON_DATA" => "Data came after the process had closed.",
        "TCP_ABORT_ON_LINGER" => "Nobody waits any more for what it had to say.",
        "TCP_ABORT_ON_MEMORY" => "Too many orphaned sockets, or too little memory for TCP.",
        "TCP_KEEPALIVE_TIMEOUT" => "The peer did not answer keepalives.",
        "TCP_DISCONNECT_WITH_DATA" => "Disconnected with data unsent.",
        "TCP_TIMEWAIT_SOCKET" => "A segment came for a connection in TIME_WAIT.",
        "INVALID_SYN" => "A SYN came in the middle of a connection.",
        "TCP_INVALID_ACK_SEQUENCE" | "TCP_TOO_OLD_ACK" | "TCP_OLD_ACK" | "TCP_ACK_UNSENT_DATA" => {
            "The peer acknowledged what was not sent: another connection's segments, or one that restarted."
        }
        "TCP_FLAGS" => "The segment's flags are not valid.",
        _ => return None,
    })
}

fn unseen(gaps: &Gaps) -> Vec<String> {
    let mut said = Vec::new();
    let mut say = |count: u64, what: String| {
        if count > 0 {
            said.push(format!("{count} {what}"));
        }
    };
    let (sockets, closed, kept, kinds) =
        (limits::RTT_SOCKETS, limits::PROFILED_CLOSED, limits::PROFILED_CLOSED_RTTS, limits::RESET_KINDS);
    say(gaps.rtts_untracked, format!("segments of connections beyond {sockets} are not in the round trips."));
    say(gaps.closed_untracked, format!("connections that closed after the first {closed} are only in `other`."));
    say(gaps.closed_rtts_untracked, format!("connections that closed after the first {kept} are not in the round trips."));
    say(gaps.resets_untracked, format!("resets of other kinds than the first {kinds} are not listed."));
    say(gaps.unknown, "connections that no process held when the window began are without their segments.".into());
    if gaps.reasons_unknown {
        said.push("This kernel does not say why it sends a reset, nor that a closed port sends one (6.12 does).".into());
    }
    said
}

pub fn text(output: &Output) -> String {
    let seconds = output.measured.window_ms / 1e3;
    let mut text = String::new();
    if output.remotes.is_empty() {
        let _ = writeln!(text, "No TCP connection sent or received anything in {seconds:.1} s.");
    } else {
        text += &answer::table(
            ["remote", "who", ">conns", ">rtt min", ">p50", ">p99", ">max", ">sent", ">again", ">%", "limited by"],
            output.remotes.iter().map(line),
        );
    }
    let Other { connections, segments_out, retransmits } = output.other;
    if connections > 0 {
        let _ = writeln!(text, "\nother: {connections} connections, {segments_out} segments sent, {retransmits} again");
    }
    if !output.resets.is_empty() {
        text.push('\n');
        text += &answer::table(
            ["reset by", "who", "local", "remote", ">count", "reason", ""],
            output.resets.iter().map(reset_line),
        );
    }
    text + &output.measured.text()
}

fn line(row: &RemoteRow) -> [String; 11] {
    let time = |of: fn(&Rtt) -> u32| row.rtt_us.as_ref().map_or_else(|| "-".into(), |rtt| answer::micros(of(rtt).into()));
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
        if row.sent_by == End::Remote { "remote" } else { "local" }.into(),
        row.owner.to_string(),
        row.local.to_string(),
        row.remote.to_string(),
        row.count.to_string(),
        answer::or_dash(&row.reason),
        row.explanation.clone().unwrap_or_default(),
    ]
}
