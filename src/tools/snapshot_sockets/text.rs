//! The tables of sockets and of listeners.

use std::fmt::Write;

use super::{Listener, Output, Socket};
use crate::answer;

/// The answer for a person.
pub fn text(output: &Output) -> String {
    let mut text = String::new();
    if !output.sockets.is_empty() {
        text += &answer::table(
            ["process", "", "state", "local", "remote", ">unread", ">unsent", ">rtt", ">retrans", "limited by"],
            output.sockets.iter().map(socket_line),
        );
        text.push('\n');
    }
    if !output.listeners.is_empty() {
        text += &answer::table(
            ["listener", "local", ">queued", ">max", ">dropped", "unit"],
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

fn socket_line(s: &Socket) -> [String; 10] {
    [
        s.owner.to_string(),
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
