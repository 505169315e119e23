//! Questions about the past: which windows a period has, what lies between them, and what a tool says of them.

use std::path::Path;

use serde_json::{Value, value::RawValue};

use super::{
    coverage::{Coverage, coverage},
    store::{Part, Recording, Span, Sqlite, Trouble},
    time::{Period, shown},
};
use crate::{
    limits,
    tools::{
        Answer, Question, Tool,
        diagnose::parts::{self, REST},
        past::{Recollection, Recorded},
        profile_tcp::{self, ProfileTcp},
        trace_latency::{TraceLatency, recorded},
    },
    wire::Error,
};

/// Whether questions to a tool can be about the past.
pub fn is_recorded(tool: &str) -> bool {
    tool == REST || part_of(tool).is_some()
}

/// The part of a window that answers about the past are made of. Latency by stage costs too much to record: what
/// `profile_tcp` counts stands for it.
fn part_of(tool: &str) -> Option<&'static str> {
    parts::part_of(if tool == TraceLatency::NAME { ProfileTcp::NAME } else { tool })
}

/// The answer of a tool about a period of the past.
pub fn answer(path: &Path, question: &Question, input: Value, period: Period) -> Result<Answer, Error> {
    if !is_recorded(question.name) {
        let recorded: Vec<_> =
            crate::tools::QUESTIONS.iter().map(|q| q.name).filter(|name| is_recorded(name)).collect();
        return Err(Error::InvalidInput(format!(
            "{} is not recorded: leave out since and until to measure now. Recorded: {}",
            question.name,
            recorded.join(", ")
        )));
    }
    let recording = Sqlite::read(path).map_err(gone)?;
    let (spans, coverage) = coverage(&recording, period).map_err(gone)?;
    let Some(last) = spans.last() else { return Err(nothing(&recording, path, period)) };
    // A snapshot is of a moment: the last.
    let is_snapshot = question.name == <crate::tools::snapshot_sockets::SnapshotSockets as Tool>::NAME;
    let spans = if is_snapshot { std::slice::from_ref(last) } else { &spans[..] };
    let bound = if question.name == REST { limits::JUDGED_BYTES } else { limits::RECALLED_BYTES };
    let mut bytes = 0;
    let mut windows =
        spans.iter().filter_map(|span| sample(&recording, question.name, span).transpose()).map(|window| {
            let window = window?;
            bytes += window.sample.len() as u64;
            if bytes > bound {
                return Err(Error::Busy(format!(
                    "the period is too long for one answer (more than {} MB of samples): use a shorter period",
                    bound >> 20
                )));
            }
            Ok(window)
        });
    let length_us = spans.iter().map(|span| span.length_us).sum();
    let past = Recollection { windows: &mut windows, length_us, is_whole: coverage.gaps.is_empty() };
    let mut answer = (question.recall)(input, past)?;
    describe(&mut answer, &coverage);
    Ok(answer)
}

/// Adds the recording's part to an answer about the past.
pub fn describe(answer: &mut Answer, coverage: &Coverage) {
    if let Some(answer) = answer.structured.as_object_mut() {
        answer.insert("recorded".into(), serde_json::to_value(coverage).unwrap_or_default());
    }
    answer.text += &coverage.text();
}

/// A tool's sample in a window; empty if it gave none.
pub fn sample(recording: &Sqlite, tool: &str, span: &Span) -> Result<Option<Recorded<String>>, Error> {
    let part = part_of(tool);
    let parts = recording.parts(span.id, part).map_err(gone)?;
    let sample = if part.is_some() { parts.into_iter().next().map(|part| part.sample) } else { Some(joined(&parts)?) };
    let sample = match sample {
        Some(sample) if tool == TraceLatency::NAME => Some(latency(&sample)?),
        sample => sample,
    };
    let Period { begin_us, end_us } = span.period;
    Ok(sample.map(|sample| Recorded { begin_us, end_us, sample }))
}

/// A sample of `profile_tcp` as one of `trace_latency`.
fn latency(profile: &str) -> Result<String, Error> {
    let invalid = |e: serde_json::Error| Error::Gone(format!("invalid recorded window: {e}"));
    let sample = serde_json::from_str(profile).map_err(invalid)?;
    serde_json::to_string(&recorded::sample(profile_tcp::repliers(sample))).map_err(invalid)
}

fn joined(parts: &[Part]) -> Result<String, Error> {
    let pairs: Vec<_> = parts.iter().map(|part| (part.part.as_str(), part.sample.as_str())).collect();
    parts::join(pairs).map_err(|e| Error::Gone(format!("invalid recorded window: {e}")))
}

/// The sample of several adjacent windows together.
pub fn merge(windows: Vec<Vec<Part>>) -> Result<Vec<Part>, String> {
    let whole = |parts: &Vec<Part>| {
        let sample = joined(parts).map_err(|e| e.to_string())?;
        RawValue::from_string(sample).map_err(|e| e.to_string())
    };
    let samples = windows.iter().map(whole).collect::<Result<Vec<_>, _>>()?;
    let question = Question::named(REST).ok_or("unknown tool diagnose")?;
    let sum = (question.fold)(samples).map_err(|e| e.to_string())?;
    let of = |part: parts::Part| Part { part: part.part.into(), tool: part.tool.into(), sample: part.sample };
    Ok(parts::split(sum.get())?.parts.into_iter().map(of).collect())
}

/// There is nothing of this period: what there is, and what to do.
fn nothing(recording: &impl Recording, path: &Path, period: Period) -> Error {
    let [from, to] = [period.begin_us, period.end_us].map(shown);
    let there = match recording.facts().ok().and_then(|facts| facts.period) {
        Some(known) => format!("it has {} to {}", shown(known.begin_us), shown(known.end_us)),
        None => "it is empty: wait for the first window".into(),
    };
    Error::Gone(format!("nothing was recorded from {from} to {to} in {}: {there}", path.display()))
}

/// Why a recording cannot be read, for a caller.
pub fn gone(trouble: Trouble) -> Error {
    Error::Gone(trouble.to_string())
}
