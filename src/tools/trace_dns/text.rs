//! The table of queries.

use std::fmt::Write;

use super::{Output, Summary};
use crate::answer;

/// The answer for a person.
pub fn text(output: &Output) -> String {
    let Summary { queries, answered, unanswered, pending, failed, nxdomain, latency_us } = &output.summary;
    let seconds = output.measured.window_ms / 1e3;
    let lost = output.measured.lost_events;
    if output.queries.is_empty() {
        let none = if lost > 0 { "None of the DNS messages that were read matched" } else { "No matching DNS query" };
        let elsewhere =
            "trace_drops shows queries that are dropped before they reach an interface (output firewall, no neighbor).";
        return format!("{none} in {seconds:.1} s.\n{elsewhere}\n{}", output.measured.text(0));
    }
    let counted = answer::count(*queries, "query", "queries");
    let at_least = match lost {
        0 => counted,
        lost => format!("At least {counted} ({} not read)", answer::count(lost, "message was", "messages were")),
    };
    let mut text = format!("{at_least} in {seconds:.1} s: {answered} answered, {unanswered} unanswered");
    if *pending > 0 {
        let _ = write!(text, ", {pending} pending");
    }
    let _ = write!(text, ", {failed} failed ({nxdomain} NXDOMAIN)");
    if let (Some(p50), Some(p99)) = (latency_us.p50, latency_us.p99) {
        let _ = write!(text, "; latency p50 {}, p99 {}", answer::micros(p50), answer::micros(p99));
    }
    text.push_str("\n\n");
    let rows = output.queries.iter().map(|q| {
        let outcome = q.rcode.clone().unwrap_or_else(|| if q.pending { "pending" } else { "no answer" }.into());
        let mark = if q.not_a_hostname == Some(true) { "not a hostname: " } else { "" };
        let name =
            if q.name.chars().count() > 60 { q.name.chars().take(59).chain(['…']).collect() } else { q.name.clone() };
        let latency = q.latency_us.map_or_else(|| "-".into(), answer::micros);
        [
            format!("{mark}{name}"),
            q.kind.clone(),
            outcome,
            latency,
            format!("{} {}", q.server, q.transport),
            q.sent.to_string(),
            q.owner.to_string(),
        ]
    });
    text += &answer::table(["name", "?type", "outcome", ">latency", "?server", "?>sent", "?process"], rows);
    text + &output.measured.text(output.queries.len())
}
