//! The tables of sockets and of listeners.

use std::fmt::Write;

use super::{Listener, Output, Socket};
use crate::answer;

/// The answer for a person.
pub fn text(output: &Output) -> String {
    let mut text = String::new();
    if !output.sockets.is_empty() {
        text += &answer::table(
            [
                "process",
                "?>",
                "?",
                "~state",
                "?local",
                "remote",
                "?>unread",
                "?>unsent",
                "?>rtt",
                "?>retrans",
                "?~limited by",
            ],
            grouped(&output.sockets),
        );
        text.push('\n');
    }
    if !output.listeners.is_empty() {
        text += &answer::table(
            ["listener", "local", ">queued", ">max", "?>dropped", "?unit"],
            output.listeners.iter().map(listener_line),
        );
        text.push('\n');
    }
    let counts: Vec<_> = output.states.iter().map(|(state, count)| format!("{count} {state}")).collect();
    let _ = match counts.is_empty() {
        true => writeln!(text, "No matching sockets."),
        false => writeln!(text, "{}", counts.join(", ")),
    };
    text + &output.measured.text(output.sockets.len() + output.listeners.len())
}

/// Equal rows are one row with their number: the same process, state and figures at the same service. Of its ports
/// the service's is the lower one.
fn grouped(sockets: &[Socket]) -> Vec<[String; 11]> {
    let mut rows = Vec::<([String; 11], u64, [String; 11])>::new();
    for socket in sockets {
        let (line, service) = (socket_line(socket), at_service(socket));
        match rows.iter_mut().find(|(_, _, same)| *same == service) {
            Some((_, count, _)) => *count += 1,
            None => rows.push((line, 1, service)),
        }
    }
    let row = |(line, count, mut service): ([String; 11], u64, [String; 11])| {
        if count == 1 {
            return line;
        }
        service[1] = format!("{count}×");
        service
    };
    rows.into_iter().map(row).collect()
}

/// The row without the port of the client.
fn at_service(socket: &Socket) -> [String; 11] {
    let mut line = socket_line(socket);
    let Some(remote) = socket.remote else { return line };
    if socket.local.port <= remote.port {
        line[5] = remote.address.to_string();
    } else {
        line[4] = socket.local.address.to_string();
    }
    line
}

fn socket_line(s: &Socket) -> [String; 11] {
    [
        s.owner.to_string(),
        String::new(),
        s.protocol.to_string(),
        s.state.to_string(),
        s.local.to_string(),
        answer::or_dash(&s.remote),
        answer::bytes(s.receive_queue_bytes.into()),
        answer::bytes(s.send_queue_bytes.into()),
        s.rtt_us.map_or_else(|| "-".into(), |us| answer::micros(us.into())),
        answer::or_dash(&s.retransmits),
        answer::or_dash(&s.limited_by),
    ]
}

fn listener_line(l: &Listener) -> [String; 6] {
    [
        l.owner.to_string(),
        l.local.to_string(),
        l.accept_queue.to_string(),
        l.accept_queue_max.to_string(),
        l.dropped.to_string(),
        answer::or_dash(&l.owner.unit),
    ]
}
