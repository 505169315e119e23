//! The table of drops, with what explains them.

use std::{
    collections::HashSet,
    fmt::{self, Write},
    net::IpAddr,
};

use super::{Output, PartialEndpoint};
use crate::answer;

/// Maximum of listeners in the text; the structured answer has all of them.
const LISTENERS_TOLD: usize = 5;

/// The answer for a person.
pub fn text(output: &Output) -> String {
    let mut text = String::new();
    let seconds = output.measured.window_ms / 1e3;
    if output.drops.is_empty() && output.listeners.is_empty() {
        let _ = writeln!(text, "No matching harmful packet drops in {seconds:.1} s.");
    } else if !output.drops.is_empty() {
        let rows = output.drops.iter().map(|d| {
            let what = [d.protocol.as_deref(), d.kind.as_deref()].into_iter().flatten().collect::<Vec<_>>().join(" ");
            let (from, to) = (answer::or_dash(&d.source), answer::or_dash(&d.destination));
            [
                d.count.to_string(),
                d.reason.clone(),
                d.location.clone(),
                what,
                from,
                to,
                answer::or_dash(&d.interface),
                d.owner.to_string(),
            ]
        });
        text += &answer::table(
            [">packets", "reason", "?where", "?what", "source", "destination", "?interface", "?process"],
            rows,
        );
        text.push('\n');
        let mut said = HashSet::new();
        for drop in output.drops.iter().filter(|drop| said.insert((&drop.reason, &drop.explanation))).take(6) {
            let line = format!("{}: {} {}", drop.reason, drop.explanation, drop.check);
            let _ = writeln!(text, "{}", answer::prose(&line, 2));
        }
    }
    if output.benign_packets > 0 {
        let dropped = answer::count(output.benign_packets, "packet was", "packets were");
        let _ = writeln!(text, "{dropped} dropped in ordinary operation.");
    }
    let grown: Vec<_> = output.counters.grown().map(|(name, count)| format!("{count} {name}")).collect();
    if !grown.is_empty() {
        let _ = writeln!(text, "Counters: {}.", grown.join(", "));
    }
    for l in output.listeners.iter().take(LISTENERS_TOLD) {
        let (queue, max) = (l.accept_queue, l.accept_queue_max);
        let _ = writeln!(
            text,
            "Listener {} of {} dropped {}; accept queue: {queue} of {max}.",
            l.local, l.owner, l.dropped
        );
    }
    if output.listeners.len() > LISTENERS_TOLD {
        let _ = writeln!(
            text,
            "{LISTENERS_TOLD} of {} listeners with drops; the structured answer has all of them.",
            output.listeners.len()
        );
    }
    text + &output.measured.text(output.drops.len() + output.listeners.len())
}

impl fmt::Display for PartialEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match (self.address, self.port) {
            (Some(IpAddr::V6(address)), Some(port)) => write!(f, "[{address}]:{port}"),
            (Some(address), Some(port)) => write!(f, "{address}:{port}"),
            (Some(address), None) => write!(f, "{address}"),
            (None, Some(port)) => write!(f, "*:{port}"),
            (None, None) => f.write_str("*"),
        }
    }
}
