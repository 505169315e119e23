//! Questions about the past: which windows a period has, what lies between them, and what a tool says of them.

use std::path::Path;

use serde_json::{Value, value::RawValue};

use super::{
    coverage::{Coverage, coverage},
    plan::{self, Step, part_of, summed},
    store::{Part, Recording, Span, Sqlite, Stored, Summing, Trouble},
    time::{Period, shown},
};
use crate::{
    limits,
    tools::{
        Answer, Question, Tool,
        diagnose::parts::{self, JUDGED, REST},
        past::{Extent, Recollection, Recorded},
        profile_tcp,
        trace_latency::{TraceLatency, recorded},
    },
    wire::Error,
};

/// Whether questions to a tool can be about the past.
pub fn is_recorded(tool: &str) -> bool {
    tool == REST || part_of(tool).is_some()
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
    let steps = plan::steps(&recording, question.name, spans).map_err(gone)?;
    let has_sums = steps.iter().any(|step| matches!(step, Step::Hour(_)));
    let is_reduced = has_sums && question.name != TraceLatency::NAME;
    let bound = if question.name == REST || is_reduced { limits::JUDGED_BYTES } else { limits::RECALLED_BYTES };
    let mut bytes = 0;
    let mut windows = steps.iter().filter_map(|step| read(&recording, question.name, step).transpose()).map(|window| {
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
    let extent = Extent { is_whole: coverage.gaps.is_empty(), has_sums };
    let past = Recollection { windows: &mut windows, length_us, extent };
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

/// What a step of a plan finds; nothing if the tool gave no sample then.
fn read(recording: &Sqlite, tool: &str, step: &Step) -> Result<Option<Recorded<String>>, Error> {
    let (period, sample) = match step {
        Step::Window(span) => return sample(recording, tool, span),
        Step::Judged(span) => {
            let Some(part) = recording.parts(span.id, Some(JUDGED)).map_err(gone)?.into_iter().next() else {
                return sample(recording, tool, span);
            };
            (span.period, Some(parts::of_judged(&part.sample, span.length_us * 1_000)))
        }
        Step::Hour(hour) => {
            let sum = recording.sum(hour.id, summed(tool)).map_err(gone)?;
            let sample = match sum {
                Some(sum) if tool == REST => Some(parts::of_judged(&sum, hour.length_us * 1_000)),
                Some(sum) if tool == TraceLatency::NAME => Some(latency(&sum)?),
                sum => sum,
            };
            (hour.period, sample)
        }
    };
    let Period { begin_us, end_us } = period;
    Ok(sample.map(|sample| Recorded { begin_us, end_us, sample }))
}

/// A tool's sample in a window; nothing if it gave none.
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
    let judged: Option<Vec<&str>> = windows.iter().map(|parts| part_named(parts, JUDGED)).collect();
    let judged = judged.map(|judged| parts::add_judged(&mut judged.into_iter().map(|part| Ok(part.to_owned()))));
    let judged = judged.transpose()?.map(|sample| Part { part: JUDGED.into(), tool: REST.into(), sample });
    Ok(parts::split(sum.get())?.parts.into_iter().map(of).chain(judged).collect())
}

fn part_named<'a>(parts: &'a [Part], name: &str) -> Option<&'a str> {
    parts.iter().find(|part| part.part == name).map(|part| part.sample.as_str())
}

/// What questions about long periods read: every tool's own part, and what was judged.
pub const SUMMING: Summing = Summing { parts: plan::SUMMED, sum: &sum };

fn sum(part: &str, samples: &mut Stored<'_>) -> Result<String, String> {
    if part == JUDGED {
        return parts::add_judged(samples);
    }
    let question = parts::question_of(part).ok_or_else(|| format!("no tool answers {part}"))?;
    let sum = (question.sum)(&mut samples.map(|sample| sample.map_err(Error::Gone)));
    sum.map(|sum| sum.get().to_owned()).map_err(|e| e.to_string())
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
