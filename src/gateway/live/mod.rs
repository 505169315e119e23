//! What is on the screen: one model for every live view.
//!
//! ```text
//!   netmond ──── one session of diagnose ───▶ feed      starts with the first viewer, ends with the last
//!                a sample a second              │
//!                                               ▼
//!                                             frames    sample → parts → each tool's own answer
//!                                             recent    the last seconds, merged: findings, drops, failures, DNS
//!                                             history   a point a reading: sparklines
//!                                             episodes  findings with their begin and end
//!                                               │
//!                                               ▼
//!                                             Screen ──▶ page, top
//!                                               ▲
//!   recording ── windows until a moment ──────▶ then
//! ```
//!
//! A sample of `diagnose` holds the samples of the tools that it asks, of the same period. So one session is enough for every
//! table, and what a finding explains is on the same screen.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Serialize, Serializer};
use serde_json::Value;

pub mod asked;
mod episodes;
mod feed;
mod frames;
mod history;
mod parts;
mod recent;
#[cfg(test)]
mod tests;
mod then;

pub use episodes::Episode;
pub use feed::Live;
pub use history::{Point, Rate, Share};
pub use then::{Then, Wanted};

/// What is on the screen at one moment. Texts from outside are clean: the tools' reports clean them.
#[derive(Serialize, Clone, Debug, Default)]
pub struct Screen {
    /// Counts the screens of a feed: another number is another screen.
    pub number: u64,
    pub state: State,
    /// Why netmond has no data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The end of the newest reading, in milliseconds since 1970.
    pub at_ms: i64,
    /// The length of the newest reading. Rates are about it.
    pub window_ms: f64,
    /// The length of the period that events are about: failures, drops, queries, findings.
    pub recent_ms: f64,
    /// The tools' structured answers, by the name of the question (see [`asked::ASKED`]), and `diagnosis` and `status`. Each has
    /// the fields that the tool's output schema describes, and at most [`LIVE_ROWS`](crate::limits::LIVE_ROWS) rows.
    pub answers: BTreeMap<&'static str, Value>,
    /// Why a question has no answer: the tool is unavailable.
    pub errors: BTreeMap<&'static str, String>,
    /// Findings of now, worst first, then those that have ended, newest first.
    pub findings: Vec<Episode>,
    /// The newest point of the history.
    #[serde(serialize_with = "point", skip_serializing_if = "Option::is_none")]
    pub point: Option<Arc<Point>>,
    /// Oldest first. Not serialized: see [`Screen::history_json`].
    #[serde(skip)]
    pub history: Vec<Arc<Point>>,
    pub cost: Cost,
}

/// Whether a screen shows what happens now.
#[derive(Serialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The first reading has not come yet: netmond loads its programs.
    #[default]
    Starting,
    Live,
    /// netmond does not answer. The rest of the screen is from `at_ms`.
    Lost,
    /// A window of the recording, which ended at `at_ms`.
    Recorded,
}

/// What the live view costs this process.
#[derive(Serialize, Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// The newest sample, as JSON.
    pub sample_bytes: usize,
    /// The time to make the screen from it.
    pub work_us: u64,
    /// CPU time of this process since the previous screen, of one core.
    pub cpu_percent: f64,
}

impl Screen {
    /// An answer; nothing if there is none.
    pub fn answer(&self, name: &str) -> &Value {
        self.answers.get(name).unwrap_or(&Value::Null)
    }

    /// The rows of a list of an answer; empty without one.
    pub fn rows(&self, name: &str, list: &str) -> &[Value] {
        self.answer(name)[list].as_array().map_or(&[], Vec::as_slice)
    }

    /// The screen without its history: an event for a viewer that has the points before.
    pub fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Every point of the history, oldest first: what a new viewer needs before the first event.
    pub fn history_json(&self) -> String {
        let points: Vec<&Point> = self.history.iter().map(Arc::as_ref).collect();
        serde_json::to_string(&points).unwrap_or_default()
    }
}

fn point<S: Serializer>(point: &Option<Arc<Point>>, serializer: S) -> Result<S::Ok, S::Error> {
    point.as_deref().serialize(serializer)
}
