//! The questions to the other tools, whose samples are the daemon's reply.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};

use super::evidence::Evidence;
use crate::{answer::Measured, limits, tools::Question};

/// The interval between two readings of the sockets: a state that lasts a tenth of the window is seen. Reading 1,000
/// takes 2 ms.
pub const READINGS: u32 = 11;

/// The tools' samples, by the name of the question.
pub type Replies = BTreeMap<String, Reply>;

/// A tool's sample, or why there is none.
#[derive(Serialize, Deserialize, Debug, Clone)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// One, or as many as it was asked for.
    Samples(Vec<Box<RawValue>>),
    Error(String),
}

impl Reply {
    /// The combined samples of two adjacent periods. A sample that one of them lacks is missing.
    pub fn merge(self, asked: &Asked, later: Reply) -> Reply {
        match (self, later) {
            (Reply::Samples(mut earlier), Reply::Samples(later)) => match (asked.when, Question::named(asked.tool)) {
                (When::Often, _) => {
                    earlier.extend(later);
                    Reply::Samples(thinned(earlier))
                }
                (When::Throughout, Some(question)) => {
                    let both = earlier.iter().zip(&later).map(|(a, b)| (question.merge)(a.get(), b.get()));
                    both.collect::<Result<_, _>>().map_or_else(|e| Reply::Error(e.to_string()), Reply::Samples)
                }
                (When::Throughout | When::End, _) => Reply::Samples(later),
            },
            (error @ Reply::Error(_), _) | (_, error) => error,
        }
    }
}

/// Every other reading, the first and the last among them, where there are more than a minute's: what a longer window
/// would have had.
fn thinned(readings: Vec<Box<RawValue>>) -> Vec<Box<RawValue>> {
    const KEPT: usize = 6 * READINGS as usize;
    let last = readings.len().saturating_sub(1);
    if readings.len() <= KEPT {
        return readings;
    }
    let kept = readings.into_iter().enumerate().filter(|(i, _)| *i == 0 || (last - i).is_multiple_of(2));
    kept.map(|(_, reading)| reading).collect()
}

/// When a question is put.
#[derive(Clone, Copy, PartialEq)]
pub enum When {
    Throughout,
    /// From the beginning to the end, [`READINGS`] times.
    Often,
    End,
}

/// A question to another tool, and what its answer is to the evidence.
pub struct Asked {
    /// The name of its reply.
    pub name: &'static str,
    pub tool: &'static str,
    pub when: When,
    /// Its arguments besides rows and the window.
    pub with: fn() -> Value,
    /// Reads the tool's samples into the evidence.
    pub read: Reader,
}

/// Adds samples of a question to the evidence; says how complete they are, or why they do not read. The window is the
/// one that was asked for.
pub type Reader = fn(&Asked, &[Box<RawValue>], Duration, &mut Evidence) -> Result<Measured, String>;

impl Asked {
    /// The tool's `Input` for a window.
    pub fn input(&self, duration: Duration) -> Value {
        // Diagnose also needs the rows that are hidden from people.
        let mut input = json!({"limit": limits::DIAGNOSED_ROWS});
        if self.when == When::Throughout {
            input["duration_ms"] = (duration.as_millis() as u64).into();
        }
        if let (Some(input), Value::Object(with)) = (input.as_object_mut(), (self.with)()) {
            input.extend(with);
        }
        input
    }
}
