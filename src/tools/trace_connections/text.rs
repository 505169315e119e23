//! The table of connections.

use super::{Connection, Direction, Outcome, Output};
use crate::answer::{self, Owner};

/// The answer for a person.
pub fn text(output: &Output) -> String {
    let mut text = summary(output);
    if !output.connections.is_empty() {
        text += "\n";
        text += &answer::table(
            [
                "process",
                ">",
                "?",
                "remote",
                "outcome",
                "?>after",
                "?>lasted",
                "?>received",
                "?>sent",
                "?>rtt",
                "?>retransmits",
            ],
            grouped(&output.connections).iter().map(|group| line(group, output.measured.rows_cut > 0)),
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
        0 => format!("No matching TCP connection opened, failed or closed in {seconds:.1} s.\n"),
        1 => format!("1 TCP connection in {seconds:.1} s: {}\n", parts.join(", ")),
        n => format!("{n} TCP connections in {seconds:.1} s: {}\n", parts.join(", ")),
    }
}

/// Connections that are one row: the same program, place and outcome.
struct Group<'a> {
    connections: Vec<&'a Connection>,
    /// The process at the other end, if it is on this host.
    other_end: Option<&'a Owner>,
}

/// The rows. A connection between two processes of this host is one row, the client's, that names both.
fn grouped(connections: &[Connection]) -> Vec<Group<'_>> {
    let other_end = |c: &Connection| {
        let is_other = |other: &&Connection| {
            other.direction != c.direction && other.local == Some(c.remote) && c.local == Some(other.remote)
        };
        connections.iter().find(is_other)
    };
    let mut groups = Vec::<Group>::new();
    for connection in connections {
        let other = other_end(connection);
        if connection.direction == Direction::Inbound && other.is_some() {
            continue;
        }
        let other_end = other.map(|other| &other.owner);
        let is_same = |group: &&mut Group| {
            place(group.connections[0]) == place(connection)
                && group.other_end.map(|owner| &owner.process) == other_end.map(|owner| &owner.process)
        };
        match groups.iter_mut().find(is_same) {
            Some(group) => group.connections.push(connection),
            None => groups.push(Group { connections: vec![connection], other_end }),
        }
    }
    groups
}

/// What the connections of a row have in common: everything but process numbers and the clients' ports.
fn place(c: &Connection) -> (Owner, Direction, Option<u16>, String, String, bool) {
    let inbound = c.direction == Direction::Inbound;
    let remote = if inbound { c.remote.address.to_string() } else { c.remote.to_string() };
    let port = c.local.filter(|_| inbound).map(|local| local.port);
    (Owner { pid: None, ..c.owner.clone() }, c.direction, port, remote, outcome(c), c.closed)
}

fn outcome(c: &Connection) -> String {
    match (&c.errno, c.outcome) {
        (Some(errno), outcome) if c.established => format!("established, {} ({errno})", outcome.words()),
        (Some(errno), outcome) => format!("{} ({errno})", outcome.words()),
        (None, Outcome::Other) => "given up".into(), // closed by its process before an answer came
        (None, outcome) => outcome.words().into(),
    }
}

/// A row. If others were cut, there may be more like these.
fn line(group: &Group, cut: bool) -> [String; 11] {
    let all = &group.connections;
    let (first, is_one) = (all[0], all.len() == 1);
    let inbound = first.direction == Direction::Inbound;
    let local_port = first.local.map_or(0, |local| local.port);
    let owner = if all.iter().all(|c| c.owner.pid == first.owner.pid) {
        first.owner.clone()
    } else {
        Owner { pid: None, ..first.owner.clone() }
    };
    let remote = if inbound && !is_one { first.remote.address.to_string() } else { first.remote.to_string() };
    let remote = group.other_end.map_or_else(|| remote.clone(), |owner| format!("{remote} {owner}"));
    // Of several connections the longest time.
    let time = |of: &dyn Fn(&Connection) -> Option<u64>| match all.iter().filter_map(|c| of(c)).max() {
        None => "-".into(),
        Some(us) if is_one => answer::micros(us),
        Some(us) => format!("≤ {}", answer::micros(us)),
    };
    let sum = |of: &dyn Fn(&Connection) -> u64| all.iter().map(|c| of(c)).sum::<u64>();
    [
        owner.to_string(),
        match (is_one, cut) {
            (true, _) => String::new(),
            (false, true) => format!("≥ {}×", all.len()),
            (false, false) => format!("{}×", all.len()),
        },
        if inbound { format!(":{local_port} ←") } else { "→".into() },
        remote,
        outcome(first),
        time(&|c| c.connect_latency_us),
        if first.closed { time(&|c| c.duration_us) } else { "open".into() },
        answer::bytes(sum(&|c| c.rx_bytes)),
        answer::bytes(sum(&|c| c.tx_bytes)),
        time(&|c| c.rtt_us.map(u64::from)),
        sum(&|c| c.retransmits.into()).to_string(),
    ]
}
