//! Compares the figures of a period with those of an earlier one.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Recollects,
    recollect::{FromTo, Unread},
};
use crate::{
    answer::{Limit, Owner},
    recorder::{
        store::{Minute, Recording},
        time::{Micros, Period},
    },
};

mod report;
mod sample;
#[cfg(test)]
mod tests;
mod text;

/// Two periods, compared.
pub struct Changes;

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// RFC 3339 or -2h; default -5m.
    #[serde(default)]
    pub since: Option<String>,
    #[serde(default)]
    pub until: Option<String>,
    /// Default: an hour before since.
    #[serde(default)]
    pub baseline_since: Option<String>,
    #[serde(default)]
    pub baseline_until: Option<String>,
    #[serde(default)]
    pub limit: Limit<ROWS>,
}

/// Rows where the caller set no `limit`.
const ROWS: usize = 15;

/// The figures of both periods.
pub struct Sample {
    pub before: Figures,
    pub after: Figures,
}

/// The figures of a period.
pub struct Figures {
    pub period: Period,
    /// The minutes of it that were recorded, at least half of each, and how much of each: 0.5 to 1.
    pub minutes: Vec<(Micros, f64)>,
    pub figures: Vec<Minute>,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct Output {
    // The most significant first.
    pub changes: Vec<Change>,
    // The number of omitted changes.
    pub more: u64,
    #[schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")]
    pub period: Option<FromTo>,
    #[schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")]
    pub baseline: Option<FromTo>,
    // Why nothing can be said.
    pub not_enough: Option<String>,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
pub struct Change {
    // traffic, connections, failures, rtt, retransmits, drops, dns, listeners, interfaces, findings.
    pub subject: String,
    pub owner: Option<Owner>,
    pub remote: Option<String>,
    /// Per minute: bytes, counts; rtt: µs; retransmits: percent.
    pub before: f64,
    pub after: f64,
    // null: there was none before.
    pub factor: Option<f64>,
    // 0.5 to 1, against the baseline's variation.
    pub significance: f64,
    pub summary: String,
}

impl Recollects for Changes {
    const NAME: &'static str = "changes";
    const TITLE: &'static str = "Find what changed";
    const WHEN: &'static str = "what changed since an earlier period";
    const DESCRIPTION: &'static str = "Compares a period (default: the last 5 minutes) with a baseline (the hour \
        before), from the recording. Empty if steady.";
    type Input = Input;
    type Sample = Sample;
    type Output = Output;

    fn check(input: &Input, now: Micros) -> Result<(), String> {
        sample::periods(input, now).map(drop)
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
        let shorter = output.changes.len() > 1 && output.changes.pop().is_some();
        output.more += u64::from(shorter);
        shorter
    }
}
