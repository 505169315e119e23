//! A sample of `diagnose`, taken apart for the other tools' questions.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::asked::Asked;
use crate::{
    tools::{
        Question,
        diagnose::parts::{self, REST, Split},
        past::{Extent, Recollection, Recorded},
    },
    wire::Error,
};

/// The tools' samples of one period.
pub struct Parts {
    parts: Vec<parts::Part>,
    errors: BTreeMap<String, String>,
    /// The length of the period.
    pub window_ns: u64,
}

/// The replies without a sample, in what remains of a sample of `diagnose`.
#[derive(Deserialize)]
struct Rest {
    #[serde(default, rename = "heard")]
    replies: BTreeMap<String, Value>,
}

impl Parts {
    pub fn of(sample: &str) -> Result<Parts, String> {
        let Split { parts, window_ns, .. } = parts::split(sample)?;
        let rest = parts.iter().find(|part| part.part == REST).map(|part| part.sample.as_str()).unwrap_or("{}");
        let rest: Rest = serde_json::from_str(rest).map_err(|e| e.to_string())?;
        let text = |(name, reply): (String, Value)| Some((name, reply["error"].as_str()?.to_owned()));
        Ok(Parts { errors: rest.replies.into_iter().filter_map(text).collect(), parts, window_ns })
    }

    /// The tool's structured answer, or why there is none.
    pub fn answer(&self, asked: &Asked, input: Value) -> Result<Value, String> {
        let (question, name) = Question::named(asked.tool).zip(parts::part_of(asked.tool)).ok_or("unknown tool")?;
        let Some(part) = self.parts.iter().find(|part| part.part == name) else {
            let reason = self.errors.get(name).map_or("netmond sent no sample", String::as_str);
            return Err(crate::untrusted::lines(reason));
        };
        let sample = part.sample.clone();
        let mut windows = std::iter::once(Ok::<_, Error>(Recorded { begin_us: 0, end_us: 0, sample }));
        let length_us = (self.window_ns / 1_000).try_into().unwrap_or_default();
        let extent = Extent { is_whole: true, has_sums: false };
        let past = Recollection { windows: &mut windows, length_us, extent };
        (question.recall)(input, past).map(|answer| answer.structured).map_err(|e| e.to_string())
    }
}
