//! What went wrong, from when to when: the findings that the recorder kept.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    Recollects,
    recollect::{FromTo, Unread},
};
use crate::{
    answer::Limit,
    recorder::{
        store::{Incident, Recording},
        time::Micros,
    },
};

mod report;
mod sample;
#[cfg(test)]
mod tests;
mod text;

/// Findings from their first window to their last.
pub struct Incidents;

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// RFC 3339 or -2h; default -24h.
    #[serde(default)]
    pub since: Option<String>,
    #[serde(default)]
    pub until: Option<String>,
    #[serde(default)]
    pub limit: Limit<ROWS>,
}

/// Rows where the caller set no `limit`.
const ROWS: usize = 10;

/// What was recorded.
pub struct Sample {
    pub incidents: Vec<Incident>,
    /// From the first window of the period to the last.
    pub recorded: Option<FromTo>,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct Output {
    // The newest first.
    pub incidents: Vec<Row>,
    // How many are not among them.
    pub more: u64,
    #[schemars(with = "Option<Map<String, Value>>")]
    pub recorded: Option<FromTo>,
    // Why nothing is known.
    pub reason: Option<String>,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct Row {
    pub code: String,
    pub severity: String,
    pub from: String,
    /// null: ongoing.
    pub to: Option<String>,
    pub summary: String,
    pub evidence: Map<String, Value>,
    pub next_step: String,
}

impl Recollects for Incidents {
    const NAME: &'static str = "incidents";
    const TITLE: &'static str = "List what went wrong, and when";
    const WHEN: &'static str = "past incidents, with begin and end";
    const DESCRIPTION: &'static str = "Lists past incidents with begin and end: recorded diagnose findings above info.";
    type Input = Input;
    type Sample = Sample;
    type Output = Output;

    fn check(input: &Input, now: Micros) -> Result<(), String> {
        sample::period(input, now).map(drop)
    }

    fn sample(input: &Input, recording: &dyn Recording, now: Micros) -> Result<Sample, Unread> {
        sample::sample(input, recording, now)
    }

    fn report(input: &Input, sample: Result<Sample, String>) -> Output {
        report::report(input, sample)
    }

    fn text(output: &Output) -> String {
        text::text(output)
    }

    fn shorten(output: &mut Output) -> bool {
        let shorter = output.incidents.len() > 1 && output.incidents.pop().is_some();
        output.more += u64::from(shorter);
        shorter
    }
}
