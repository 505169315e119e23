//! The table of connections.

use super::{Connection, Direction, Outcome, Output};
use crate::answer;

/// The answer for a person.
pub fn text(output: &Output) -> String {
    let mut text = summary(output);
    if !output.connections.is_empty() {
        text += "\n";
        text += &answer::table(
            ["process", "", "remote", "outcome", ">after", ">lasted", ">received", ">sent", ">rtt", ">retransmits"],
            output.connections.iter().map(line),
        );
    }
    text + &output.measured.text(output.connections.len())
}

/// `12 connections in 5.0 s: 10 established, 2 refused`.
fn summary(output: &Output) -> String {
    let seconds = output.measured.window_ms / 1e3;
    let counts = output.outcomes.iter().filter(|(_, count)| **count > 0);
    let parts: Vec<String> = counts.map(|(outcome, count)| format!("{count} {}", outcome.words())).collect();
    match output.outcomes.values().sum::<u64>() {
        0 => format!("No TCP connection opened, failed or closed in {seconds:.1} s.\n"),
        1 => format!("1 TCP connection in {seconds:.1} s: {}\n", parts.join(", ")),
        n => format!("{n} TCP connections in {seconds:.1} s: {}\n", parts.join(", ")),
    }
}

fn line(c: &Connection) -> [String; 10] {
    let time = |us: Option<u64>| us.map_or_else(|| "-".into(), answer::micros);
    let inbound = c.direction == Direction::Inbound;
    let local_port = c.local.map_or(0, |local| local.port);
    let outcome = match (&c.errno, c.outcome) {
        (Some(errno), outcome) if c.established => format!("established, {} ({errno})", outcome.words()),
        (Some(errno), outcome) => format!("{} ({errno})", outcome.words()),
        (None, Outcome::Other) => "given up".into(), // closed by its process before an answer came
        (None, outcome) => outcome.words().into(),
    };
    [
        c.owner.to_string(),
        if inbound { format!(":{local_port} ←") } else { "→".into() },
        c.remote.to_string(),
        outcome,
        time(c.connect_latency_us),
        if c.closed { time(c.duration_us) } else { "open".into() },
        answer::bytes(c.rx_bytes),
        answer::bytes(c.tx_bytes),
        time(c.rtt_us.map(u64::from)),
        c.retransmits.to_string(),
    ]
}
