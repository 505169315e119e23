//! A sample of `diagnose` taken apart: each part is a sample of the tool that it is of, and answers that tool's questions.

use std::time::Duration;

use serde_json::value::RawValue;

use super::{
    Sample,
    asked::ASKED,
    finding::{Finding, Severity},
    judgement::Judgement,
    past,
    questions::{Reply, When},
    report,
};
use crate::{
    answer::WindowMs,
    tools::{Question, Tool, profile_tcp::Service},
};

/// The name of the rest of a sample: everything except the tools' samples.
pub const REST: &str = super::Diagnose::NAME;

pub use past::is_long;

/// A part of a sample.
pub struct Part {
    /// The name of the question.
    pub part: &'static str,
    /// The tool that it was put to.
    pub tool: &'static str,
    /// The tool's sample, as JSON; a list of them where the question was put often.
    pub sample: String,
}

/// The part that answers questions to a tool; none if it is not recorded.
pub fn part_of(tool: &str) -> Option<&'static str> {
    ASKED.iter().find(|asked| asked.tool == tool).map(|asked| asked.name)
}

/// The question that a part answers.
pub fn question_of(part: &str) -> Option<&'static Question> {
    ASKED
        .iter()
        .find(|asked| asked.name == part && asked.when != When::Often)
        .and_then(|asked| Question::named(asked.tool))
}

/// A sample, taken apart.
pub struct Split {
    pub parts: Vec<Part>,
    /// The length of its window.
    pub window_ns: u64,
    /// When netmond began to read the window, by CLOCK_MONOTONIC; 0 = unknown.
    pub ended_ns: u64,
}

/// A sample in parts.
pub fn split(sample: &str) -> Result<Split, String> {
    let mut rest: Sample = serde_json::from_str(sample).map_err(|e| e.to_string())?;
    let (mut parts, mut heard) = (Vec::new(), std::mem::take(&mut rest.heard));
    for asked in ASKED {
        let mut samples = match heard.remove(asked.name) {
            Some(Reply::Samples(samples)) => samples,
            Some(error) => {
                rest.heard.insert(asked.name.into(), error);
                continue;
            }
            None => continue,
        };
        let sample = match asked.when {
            When::Often => serde_json::to_string(&samples).map_err(|e| e.to_string())?,
            _ if samples.is_empty() => continue,
            _ => samples.swap_remove(0).get().to_owned(),
        };
        parts.push(Part { part: asked.name, tool: asked.tool, sample });
    }
    let sample = serde_json::to_string(&rest).map_err(|e| e.to_string())?;
    parts.push(Part { part: REST, tool: REST, sample });
    Ok(Split { parts, window_ns: rest.window_ns, ended_ns: rest.ended_ns })
}

/// The sample that has these parts.
pub fn join<'a>(parts: impl IntoIterator<Item = (&'a str, &'a str)> + Clone) -> Result<String, String> {
    let rest = parts.clone().into_iter().find(|(part, _)| *part == REST).ok_or("the rest of the sample is missing")?;
    let mut whole: Sample = serde_json::from_str(rest.1).map_err(|e| e.to_string())?;
    for (part, sample) in parts {
        let Some(asked) = ASKED.iter().find(|asked| asked.name == part) else { continue };
        let samples = match asked.when {
            When::Often => serde_json::from_str(sample).map_err(|e| e.to_string())?,
            _ => vec![RawValue::from_string(sample.to_owned()).map_err(|e| e.to_string())?],
        };
        whole.heard.insert(part.to_owned(), Reply::Samples(samples));
    }
    serde_json::to_string(&whole).map_err(|e| e.to_string())
}

/// What a recording keeps of a part: nothing is left out of a small one.
pub fn condense(part: &str, sample: String) -> Result<String, String> {
    const SMALL: usize = 8 << 10;
    let Some(question) = question_of(part).filter(|_| sample.len() > SMALL) else { return Ok(sample) };
    (question.condense)(&sample).map(|kept| kept.get().to_owned()).map_err(|e| e.to_string())
}

/// The part with what the rules found in a window.
pub const JUDGED: &str = "judged";

/// What the rules find in windows that follow each other.
#[derive(Default)]
pub struct Judge {
    /// Of the last window.
    services: Vec<Service>,
}

/// What they find in one window.
pub struct Verdict {
    /// The findings above info, each with its [identity](Finding::identity).
    pub faults: Vec<(String, Finding)>,
    /// All of it, for questions about the past; none of a window that is too short to be judged by itself.
    pub part: Option<Part>,
}

impl Judge {
    /// Judges a sample; `begin_us` and `end_us` are its window.
    pub fn window(&mut self, (begin_us, end_us): (i64, i64), sample: &str) -> Result<Verdict, String> {
        let sample: Sample = serde_json::from_str(sample).map_err(|e| e.to_string())?;
        let (window_ns, before) = (sample.window_ns, std::mem::take(&mut self.services));
        let mut judged = report::judge_after(before, WindowMs::<10_000>::default().duration(), sample);
        self.services = std::mem::take(&mut judged.services);
        let above = judged.findings.iter().filter(|finding| finding.severity < Severity::Info);
        let faults = above.map(|finding| (finding.identity(), finding.clone())).collect();
        if !past::is_long(Duration::from_nanos(window_ns)) {
            return Ok(Verdict { faults, part: None });
        }
        let judgement = Judgement::new((begin_us, end_us), window_ns, judged);
        let sample = serde_json::to_string(&judgement).map_err(|e| e.to_string())?;
        Ok(Verdict { faults, part: Some(Part { part: JUDGED, tool: REST, sample }) })
    }
}

/// The sum of [`JUDGED`] parts of windows that follow each other.
pub fn add_judged(parts: &mut dyn Iterator<Item = Result<String, String>>) -> Result<String, String> {
    let mut sum = Judgement::default();
    for part in parts {
        sum.add(serde_json::from_str(&part?).map_err(|e| e.to_string())?);
    }
    serde_json::to_string(&sum).map_err(|e| e.to_string())
}

/// A [`JUDGED`] part as a sample that has nothing else.
pub fn of_judged(part: &str, window_ns: i64) -> String {
    format!(r#"{{"heard":{{}},"conntrack":null,"netns":0,"window_ns":{window_ns},"judged":{part}}}"#)
}
