//! How much of a period was recorded.

use serde::Serialize;

use super::{
    store::{Recording, Span, Trouble},
    time::{Micros, Period, SECOND, now, shown},
};
use crate::{limits, untrusted};

/// The recording's part of an answer about the past.
#[derive(Serialize, Debug, PartialEq)]
pub struct Coverage {
    #[serde(flatten)]
    pub period: Period,
    pub gaps: Vec<Told>,
    pub host: String,
}

/// A gap, and why it is there, where that is known.
#[derive(Serialize, Debug, PartialEq)]
pub struct Told {
    #[serde(flatten)]
    pub period: Period,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A shorter time is not a gap: the line of the daemon is still on its way, or the clock on the wall was corrected.
const SLACK: Micros = SECOND;

impl Coverage {
    /// One line for a person, and one for each gap.
    pub fn text(&self) -> String {
        let [from, to] = [self.period.begin_us, self.period.end_us].map(shown);
        let mut text = format!("\nRecorded on {} from {from} to {to}", self.host);
        text += if self.gaps.is_empty() { ", no gaps.\n" } else { "; gaps:\n" };
        for Told { period, reason } in &self.gaps {
            let [from, to] = [period.begin_us, period.end_us].map(shown);
            let reason = reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
            text += &format!("  {from} to {to}{reason}\n");
        }
        text
    }
}

/// The windows of a period, and its gaps.
pub fn coverage(recording: &dyn Recording, period: Period) -> Result<(Vec<Span>, Coverage), Trouble> {
    let spans = recording.spans(period)?;
    let interval_us = recording.facts()?.interval_ms * 1_000;
    let mut reasons = recording.gaps(period)?;
    // The current window will be recorded at its end.
    let end_us = period.end_us.min(now());
    let under_way = if end_us == period.end_us && period.end_us < now() - interval_us - SLACK {
        SLACK
    } else {
        interval_us + 5 * SECOND
    };
    let mut whole: Vec<Period> = spans.iter().map(|span| span.period).collect();
    whole.sort_by_key(|span| span.begin_us);
    let (mut gaps, mut until) = (Vec::new(), period.begin_us);
    for span in whole.iter().copied().chain([Period { begin_us: end_us, end_us }]) {
        let slack = if span.begin_us == end_us { under_way } else { SLACK };
        let gap = Period { begin_us: until, end_us: span.begin_us };
        let known = reasons.iter().position(|known| overlap(known.period, gap) > 0);
        // A gap in the recording counts, however short.
        if gap.length() > slack || known.is_some() {
            let reason = known.map(|place| untrusted::clean(&reasons.remove(place).reason));
            gaps.push(Told { period: gap, reason });
        }
        until = until.max(span.end_us);
    }
    // If there are very many, the longest ones, in their order.
    while gaps.len() > limits::GAPS_SHOWN {
        let shortest = gaps.iter().enumerate().min_by_key(|(_, gap)| gap.period.length()).map(|(at, _)| at);
        shortest.map(|at| gaps.remove(at));
    }
    let begin_us = whole.first().map_or(period.begin_us, |span| span.begin_us);
    let end_us = whole.iter().map(|span| span.end_us).max().unwrap_or(begin_us);
    let host = spans.last().map_or_else(String::new, |span| untrusted::clean(&span.host));
    Ok((spans, Coverage { period: Period { begin_us, end_us }, gaps, host }))
}

fn overlap(a: Period, b: Period) -> Micros {
    a.end_us.min(b.end_us) - a.begin_us.max(b.begin_us)
}
