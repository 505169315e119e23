//! From queries to rows, worst first.

use std::time::Duration;

use super::{
    Input, Latency, Output, Query, Sample, Seen, Summary,
    matching::{Exchange, Matched, exchanges},
};
use crate::{
    answer::{self, Code, Limitation, Measured},
    dns,
    filter::Comm,
    limits, untrusted,
};

/// The answer.
pub fn report(input: &Input, sample: Sample) -> Output {
    let mut measured = Measured::window(Duration::from_nanos(sample.window_ns));
    measured.lost_events = sample.lost + sample.beyond;
    let Matched { exchanges: mut all, streams_given_up, cut: messages_cut } =
        exchanges(sample.earlier.iter().chain(&sample.messages));
    let end_ns = sample.full_at_ns.unwrap_or(sample.window_ns as i64); // an answer may be among what came later
    all.retain(|exchange| is_wanted(input, exchange) && is_of(&sample, exchange, end_ns));
    let rows: Vec<_> = all.iter().map(|exchange| query(exchange, end_ns)).collect();
    let summary = summary(&rows);
    measured.limits.extend(missing(&sample));
    measured.limits.extend(sample.lacks.iter().cloned());
    let end = if sample.full_at_ns.is_some() { "was full" } else { "ended" };
    let why = format!("pending. They were sent less than 1 s before the window {end}.");
    measured.limits.extend(Limitation::counted(Code::DnsQueriesPending, summary.pending, "query", &why));
    let why = format!("partly read. More than {} TCP messages were incomplete at the same time.", limits::DNS_STREAMS);
    measured.limits.extend(Limitation::counted(Code::DnsOverTcpIncomplete, streams_given_up, "TCP stream", &why));
    let why = "not read. IP fragmentation splits their header.";
    measured.limits.extend(Limitation::counted(Code::DnsMessagesCut, messages_cut, "message", why));
    let why = "not read. DNAT on this host changes their port 53 to another one.";
    measured.limits.extend(Limitation::counted(Code::DnsTranslated, sample.translated, "packet", why));
    if !sample.pages {
        let text = "Some queries over TCP are missing: before Linux 6.12, netmond cannot read data in pages.";
        measured.limits.push(Limitation::new(Code::DnsOverTcpIncomplete, text));
    }
    let (queries, cut) = answer::largest(rows, input.limit.rows(), weight);
    measured.rows_cut = cut;
    Output { queries, summary, measured }
}

/// The messages of both periods, and those before the earlier one.
pub fn merge(mut earlier: Sample, later: Sample) -> Sample {
    earlier.goes_on = later.goes_on;
    // The clock begins anew when the host does.
    let shift = later.opened_ns.checked_sub(earlier.opened_ns).unwrap_or(earlier.window_ns);
    let shifted = |at_ns: i64| at_ns + shift as i64;
    let messages = later.messages.into_iter().map(|seen| Seen { at_ns: shifted(seen.at_ns), ..seen });
    earlier.messages.extend(messages);
    earlier.lost += later.lost;
    earlier.beyond += later.beyond;
    earlier.translated += later.translated;
    earlier.full_at_ns = earlier.full_at_ns.or(later.full_at_ns.map(shifted));
    earlier.window_ns = shift + later.window_ns;
    earlier
}

/// What it means that messages were lost.
fn missing(sample: &Sample) -> Vec<Limitation> {
    let mut limits = Vec::new();
    if let Some(at_ns) = sample.full_at_ns {
        let why = format!(
            "not read. The message table ({}, at most half over TCP) was full after {:.1} s. A message counts once \
             per interface.",
            limits::DNS_MESSAGES,
            Duration::from_nanos(at_ns.unsigned_abs()).as_secs_f64(),
        );
        limits.extend(Limitation::counted(Code::DnsMessagesUnread, sample.beyond, "message", &why));
    }
    let why = "lost. Too many came per second: queries are missing, and an unanswered query may have been answered.";
    limits.extend(Limitation::counted(Code::DnsMessagesLost, sample.lost, "message", why));
    limits
}

/// Whether this sample reports the query: not an earlier query that has its answer, nor a later one without an answer
/// yet.
fn is_of(sample: &Sample, exchange: &Exchange, end_ns: i64) -> bool {
    let is_young = end_ns - exchange.asked_ns < limits::DNS_UNDECIDED.as_nanos() as i64;
    match exchange.answered_ns {
        Some(answered_ns) => answered_ns >= 0,
        None => !(sample.goes_on && is_young),
    }
}

fn is_wanted(input: &Input, exchange: &Exchange) -> bool {
    let ends_so = |suffix: &String| {
        let suffix = suffix.trim_end_matches('.').to_ascii_lowercase();
        exchange.questions.iter().any(|(name, _)| {
            let rest = name.strip_suffix(suffix.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.') || suffix.is_empty())
        })
    };
    let is_named = |process: &Comm| process.is(exchange.process.comm.as_bytes());
    input.name.as_ref().is_none_or(ends_so) && input.process.as_ref().is_none_or(is_named)
}

fn query(exchange: &Exchange, end_ns: i64) -> Query {
    let answered = exchange.answered_ns.is_some();
    let age = Duration::from_nanos((end_ns - exchange.asked_ns).max(0) as u64);
    let mut questions = exchange.questions.iter();
    let (name, kind) = questions.next().cloned().unwrap_or_default();
    let others: Vec<_> =
        questions.map(|(name, kind)| format!("{} {}", untrusted::clean(name), dns::type_name(*kind))).collect();
    Query {
        owner: exchange.process.owner(),
        name: untrusted::clean(&name),
        not_a_hostname: (!dns::is_hostname(&name)).then_some(true),
        kind: dns::type_name(kind),
        also_asked: (!others.is_empty()).then_some(others),
        server: exchange.server,
        transport: exchange.transport,
        rcode: answered.then(|| dns::rcode_name(exchange.rcode)),
        latency_us: exchange.answered_ns.map(|at| (at - exchange.asked_ns).max(0) as u64 / 1_000),
        answered,
        sent: exchange.sent,
        lost: if answered { exchange.sent.saturating_sub(exchange.answers) } else { 0 },
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
