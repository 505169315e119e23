//! Which parts of a recording answer a question about a period.

use std::time::Duration;

use super::{
    store::{Hour, Recording, Span, Trouble},
    time::Period,
};
use crate::tools::{
    Tool,
    diagnose::parts::{self, JUDGED, REST},
    profile_tcp::ProfileTcp,
    trace_latency::TraceLatency,
};

/// What is read next.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// A tool's sample in a window.
    Window(Span),
    /// What was judged of a window.
    Judged(Span),
    /// The sum of an hour.
    Hour(Hour),
}

/// The parts that have sums. A snapshot is of one moment.
pub const SUMMED: &[&str] = &["connections", "profile", "drops", "dns", "traffic", "interfaces", JUDGED];

/// The part of a window that answers about the past are made of; none where all of them are. Latency by stage costs too
/// much to record: what `profile_tcp` counts stands for it.
pub fn part_of(tool: &str) -> Option<&'static str> {
    parts::part_of(if tool == TraceLatency::NAME { ProfileTcp::NAME } else { tool })
}

/// The part with a tool's sums.
pub fn summed(tool: &str) -> &'static str {
    part_of(tool).unwrap_or(JUDGED)
}

/// How to read all windows: by the hour where that is possible.
pub fn steps(recording: &dyn Recording, tool: &str, spans: &[Span]) -> Result<Vec<Step>, Trouble> {
    let Some((first, last)) = spans.first().zip(spans.last()) else { return Ok(Vec::new()) };
    let period = Period { begin_us: first.period.begin_us, end_us: last.period.end_us };
    let is_ours = |version: &str| tool != REST || version == env!("CARGO_PKG_VERSION");
    let judged = if tool == REST { judged_alone(spans) } else { vec![true; spans.len()] };
    let mut hours = recording.hours(summed(tool), period)?.into_iter().peekable();
    let (mut steps, mut at) = (Vec::new(), 0);
    while let Some(span) = spans.get(at) {
        while hours.next_if(|hour| hour.first < span.id).is_some() {}
        let end = at + spans[at..].partition_point(|other| hours.peek().is_some_and(|hour| other.id <= hour.last));
        let is_sum = |hour: &Hour| {
            // The period may begin or end within it, or in an hour that the clock repeated.
            let length_us: i64 = spans[at..end].iter().map(|span| span.length_us).sum();
            let whole = hour.first == span.id && hour.length_us == length_us;
            whole && is_ours(&hour.version) && judged[at..end].iter().all(|alone| *alone)
        };
        if let Some(hour) = hours.next_if(is_sum) {
            steps.push(Step::Hour(hour));
            at = end;
            continue;
        }
        let is_judged = tool == REST && judged[at] && is_ours(&span.version);
        steps.push(if is_judged { Step::Judged(span.clone()) } else { Step::Window(span.clone()) });
        at += 1;
    }
    Ok(steps)
}

/// Which windows are judged by themselves. Short ones are judged with their neighbors, and one before them shows how long
/// servers took to reply.
fn judged_alone(spans: &[Span]) -> Vec<bool> {
    let mut alone = vec![true; spans.len()];
    let (mut begin, mut length) = (0, Duration::ZERO);
    for at in 0..spans.len() {
        length += Duration::from_micros(spans[at].length_us.unsigned_abs());
        let is_last = at + 1 == spans.len();
        let is_long = parts::is_long(length);
        if begin < at || !is_long {
            alone[begin.saturating_sub(1)..=at].fill(false);
        }
        if is_last && !is_long {
            // The last long window is judged with the rest.
            alone[begin.saturating_sub(2)..=at].fill(false);
        }
        if is_long {
            (begin, length) = (at + 1, Duration::ZERO);
        }
    }
    alone
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recorder::time::SECOND;

    fn spans(lengths_s: &[i64]) -> Vec<Span> {
        let mut begin_us = 0;
        let span = |(id, length): (i64, &i64)| {
            let period = Period { begin_us, end_us: begin_us + length * SECOND };
            begin_us = period.end_us;
            let version = env!("CARGO_PKG_VERSION").into();
            Span { id, period, length_us: length * SECOND, boot: "b".into(), host: "h".into(), version }
        };
        (1..).zip(lengths_s).map(span).collect()
    }

    #[test]
    fn short_windows_are_judged_with_their_neighbors() {
        let alone = |lengths: &[i64]| judged_alone(&spans(lengths));
        assert_eq!(alone(&[10, 10, 10]), [true; 3]);
        assert_eq!(alone(&[10, 10, 4, 10, 10]), [true, false, false, false, true], "a pair, and the one before it");
        assert_eq!(alone(&[10, 10, 10, 2]), [true, false, false, false], "the last with its rest");
        assert_eq!(alone(&[2, 2]), [false, false]);
    }
}
