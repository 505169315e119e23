//! From queries to rows, worst first.

use std::time::Duration;

use super::{
    Input, Output, Query, Sample, Seen,
    matching::{Exchange, Matched, exchanges},
    resolved::{self, Reduced, Resolved, Sender},
};
use crate::{
    answer::{self, Code, Limitation, Measured},
    dns,
    filter::Comm,
    limits, untrusted,
};

/// The answer.
pub fn report(input: &Input, mut sample: Sample) -> Output {
    let mut measured = Measured::window(Duration::from_nanos(sample.window_ns));
    measured.lost_events = sample.lost + sample.beyond;
    let reduced = sample.reduced.take().unwrap_or_else(|| read(&sample));
    let Reduced { mut queries, senders, streams_given_up, messages_cut } = reduced;
    queries.retain(|query| is_wanted(input, query));
    let of_program = |program: &Sender| input.process.as_ref().is_none_or(|comm| program.is(comm));
    let (mut others, mut nameless) = (senders, 0);
    others.retain(of_program);
    if input.name.is_some() {
        nameless = others.drain(..).map(|program| program.queries()).sum();
    }
    let summary = resolved::summary(&queries, others.iter());
    let why = "left out. The sum of an hour has the names of its worst queries only.";
    measured.limits.extend(Limitation::counted(Code::QueryNamesNotKept, nameless, "query", why));
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
    let (rows, cut) = answer::largest(queries, input.limit.rows(), weight);
    measured.rows_cut = cut + others.iter().map(Sender::queries).sum::<u64>();
    Output { queries: rows.into_iter().map(row).collect(), summary, measured }
}

/// What the messages say.
pub fn read(sample: &Sample) -> Reduced {
    let Matched { exchanges: mut all, streams_given_up, cut: messages_cut } =
        exchanges(sample.earlier.iter().chain(&sample.messages));
    let end_ns = sample.full_at_ns.unwrap_or(sample.window_ns as i64); // an answer may be among what came later
    all.retain(|exchange| is_of(sample, exchange, end_ns));
    let queries = all.into_iter().map(|exchange| resolved(exchange, end_ns)).collect();
    Reduced { queries, senders: Vec::new(), streams_given_up, messages_cut }
}

/// The messages of both periods, and those before the earlier one.
pub fn merge(mut earlier: Sample, mut later: Sample) -> Sample {
    if earlier.reduced.is_some() || later.reduced.is_some() {
        let both = [&mut earlier, &mut later].map(|sample| {
            let reduced = sample.reduced.take().unwrap_or_else(|| read(sample));
            sample.messages.clear();
            reduced
        });
        earlier.reduced = both.into_iter().reduce(resolved::join);
    }
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

fn is_wanted(input: &Input, query: &Resolved) -> bool {
    let ends_so = |suffix: &String| {
        let suffix = suffix.trim_end_matches('.').to_ascii_lowercase();
        query.questions.iter().any(|(name, _)| {
            let rest = name.strip_suffix(suffix.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.') || suffix.is_empty())
        })
    };
    let is_named = |process: &Comm| process.is(query.process.comm.as_bytes());
    input.name.as_ref().is_none_or(ends_so) && input.process.as_ref().is_none_or(is_named)
}

fn resolved(exchange: Exchange, end_ns: i64) -> Resolved {
    let answered = exchange.answered_ns.is_some();
    let age = Duration::from_nanos((end_ns - exchange.asked_ns).max(0) as u64);
    Resolved {
        latency_us: exchange.answered_ns.map(|at| (at - exchange.asked_ns).max(0) as u64 / 1_000),
        rcode: answered.then_some(exchange.rcode),
        sent: exchange.sent,
        lost: if answered { exchange.sent.saturating_sub(exchange.answers) } else { 0 },
        pending: !answered && age < limits::DNS_PATIENCE,
        process: exchange.process,
        questions: exchange.questions,
        server: exchange.server,
        transport: exchange.transport,
    }
}

fn row(query: Resolved) -> Query {
    let mut questions = query.questions.into_iter();
    let (name, kind) = questions.next().unwrap_or_default();
    let others: Vec<_> =
        questions.map(|(name, kind)| format!("{} {}", untrusted::clean(&name), dns::type_name(kind))).collect();
    Query {
        owner: query.process.owner(),
        name: untrusted::clean(&name),
        not_a_hostname: (!dns::is_hostname(&name)).then_some(true),
        kind: dns::type_name(kind),
        also_asked: (!others.is_empty()).then_some(others),
        server: query.server,
        transport: query.transport,
        rcode: query.rcode.map(dns::rcode_name),
        latency_us: query.latency_us,
        answered: query.rcode.is_some(),
        sent: query.sent,
        pending: query.pending,
        lost: query.lost,
    }
}

/// Unanswered, then failed, then slow.
pub fn weight(query: &Resolved) -> (bool, bool, bool, u64) {
    let failed = query.rcode.filter(|rcode| *rcode != 0);
    let broken = failed.is_some_and(|rcode| rcode != dns::NXDOMAIN);
    (query.rcode.is_none() && !query.pending, broken, failed.is_some(), query.latency_us.unwrap_or(0))
}
