//! From queries to rows, worst first.

use std::{fmt::Write, time::Duration};

use super::{
    Input, Latency, Output, Query, Sample, Summary,
    matching::{Exchange, exchanges},
};
use crate::{
    answer::{self, Measured},
    dns,
    filter::Comm,
    limits, untrusted,
};

pub fn report(input: &Input, sample: Sample) -> Output {
    let mut measured = Measured::window(Duration::from_nanos(sample.window_ns));
    measured.lost_events = sample.lost + sample.beyond;
    let mut all = exchanges(&sample.messages);
    all.retain(|exchange| is_wanted(input, exchange));
    let end_ns = sample.full_at_ns.unwrap_or(sample.window_ns); // an answer may be among what came later
    let rows: Vec<_> = all.iter().map(|exchange| query(exchange, end_ns)).collect();
    let summary = summary(&rows);
    measured.limits.extend(missing(&sample));
    if summary.pending > 0 {
        let end = if sample.full_at_ns.is_some() { "was full" } else { "ended" };
        let text = format!("{} queries had no answer, but were younger than 1 s when the window {end}: too young to judge.", summary.pending);
        measured.limits.push(text);
    }
    if !sample.pages {
        measured.limits.push("Queries over TCP are not all seen: before Linux 6.12 data in pages cannot be read.".into());
    }
    let (queries, cut) = answer::largest(rows, input.limit.rows(), weight);
    measured.rows_cut = cut;
    Output { queries, summary, measured }
}

/// What it means that messages were lost.
fn missing(sample: &Sample) -> Vec<String> {
    let mut limits = Vec::new();
    if let Some(at_ns) = sample.full_at_ns {
        let (seconds, beyond) = (Duration::from_nanos(at_ns).as_secs_f64(), sample.beyond);
        limits.push(format!(
            "A window keeps 8,192 messages (each counts at every interface that it passes), at most half of them over TCP: it was full after {seconds:.1} s, and {beyond} later ones were not looked at."
        ));
    }
    if sample.lost > 0 {
        let lost = sample.lost;
        limits.push(format!("{lost} messages came too fast to be read: queries are missing, and one without an answer may have had one."));
    }
    limits
}

fn is_wanted(input: &Input, exchange: &Exchange) -> bool {
    let ends_so = |suffix: &String| {
        let suffix = suffix.trim_end_matches('.').to_ascii_lowercase();
        let rest = exchange.name.strip_suffix(suffix.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.') || suffix.is_empty())
    };
    let is_named = |process: &Comm| process.is(exchange.process.comm.as_bytes());
    input.name.as_ref().is_none_or(ends_so) && input.process.as_ref().is_none_or(is_named)
}

fn query(exchange: &Exchange, end_ns: u64) -> Query {
    let answered = exchange.answered_ns.is_some();
    let age = Duration::from_nanos(end_ns.saturating_sub(exchange.asked_ns));
    Query {
        owner: exchange.process.owner(),
        name: untrusted::clean(&exchange.name),
        kind: dns::type_name(exchange.kind),
        server: exchange.server,
        transport: exchange.transport,
        rcode: answered.then(|| dns::rcode_name(exchange.rcode)),
        latency_us: exchange.answered_ns.map(|at| at.saturating_sub(exchange.asked_ns) / 1_000),
        answered,
        sent: exchange.sent,
        pending: !answered && age < limits::DNS_PATIENCE,
    }
}

/// Unanswered, then failed, then slow.
fn weight(query: &Query) -> (bool, bool, bool, u64) {
    let failed = query.rcode.as_ref().is_some_and(|rcode| rcode != "NOERROR");
    let broken = failed && query.rcode.as_deref() != Some("NXDOMAIN");
    (!query.answered && !query.pending, broken, failed, query.latency_us.unwrap_or(0))
}

fn summary(rows: &[Query]) -> Summary {
    let count = |is: &dyn Fn(&Query) -> bool| rows.iter().filter(|row| is(row)).count() as u64;
    let mut latencies: Vec<u64> = rows.iter().filter_map(|row| row.latency_us).collect();
    latencies.sort_unstable();
    let percentile = |percent: usize| latencies.get((latencies.len() * percent).div_ceil(100).max(1) - 1).copied();
    Summary {
        queries: rows.len() as u64,
        answered: count(&|row| row.answered),
        unanswered: count(&|row| !row.answered && !row.pending),
        pending: count(&|row| row.pending),
        failed: count(&|row| row.rcode.as_ref().is_some_and(|rcode| rcode != "NOERROR")),
        nxdomain: count(&|row| row.rcode.as_deref() == Some("NXDOMAIN")),
        latency_us: Latency { p50: percentile(50), p99: percentile(99), max: latencies.last().copied() },
    }
}

pub fn text(output: &Output) -> String {
    let Summary { queries, answered, unanswered, pending, failed, nxdomain, latency_us } = &output.summary;
    let seconds = output.measured.window_ms / 1e3;
    let lost = output.measured.lost_events;
    if output.queries.is_empty() {
        let none = if lost > 0 { "Of the DNS messages that were looked at none was such a query," } else { "No such DNS query" };
        let elsewhere = "A query that dies before it reaches an interface (a firewall on output, no neighbor) is in trace_drops.";
        return format!("{none} in {seconds:.1} s.\n{elsewhere}\n{}", output.measured.text());
    }
    let at_least = if lost > 0 { format!("At least {queries} queries ({lost} messages were not looked at)") } else { format!("{queries} queries") };
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
        let name = if q.name.chars().count() > 60 { q.name.chars().take(59).chain(['…']).collect() } else { q.name.clone() };
        let latency = q.latency_us.map_or_else(|| "-".into(), answer::micros);
        [name, q.kind.clone(), outcome, latency, format!("{} {:?}", q.server, q.transport).to_lowercase(), q.sent.to_string(), q.owner.to_string()]
    });
    text += &answer::table(["name", "type", "outcome", ">latency", "server", ">sent", "process"], rows);
    text + &output.measured.text()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
