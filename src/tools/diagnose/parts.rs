//! A sample of `diagnose` taken apart: each part is a sample of the tool that it is of, and answers that tool's questions.

use serde_json::value::RawValue;

use super::{
    Sample,
    asked::ASKED,
    finding::{Finding, Severity},
    questions::{Reply, When},
    report,
};
use crate::{
    answer::WindowMs,
    tools::{Question, Tool},
};

/// The name of the rest of a sample: everything except the tools' samples.
pub const REST: &str = super::Diagnose::NAME;

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
    let asked = ASKED.iter().find(|asked| asked.name == part && asked.when != When::Often);
    let Some(question) = asked.filter(|_| sample.len() > SMALL).and_then(|asked| Question::named(asked.tool)) else {
        return Ok(sample);
    };
    (question.condense)(&sample).map(|kept| kept.get().to_owned()).map_err(|e| e.to_string())
}

/// The findings above info of a sample, each with its [identity](Finding::identity).
pub fn faults(sample: &str) -> Result<Vec<(String, Finding)>, String> {
    let sample: Sample = serde_json::from_str(sample).map_err(|e| e.to_string())?;
    let judged = report::judge(WindowMs::<10_000>::default().duration(), sample);
    let above = judged.findings.into_iter().filter(|finding| finding.severity < Severity::Info);
    Ok(above.map(|finding| (finding.identity(), finding)).collect())
}
