//! How to record, and where.

use std::path::PathBuf;

use clap::Args;
use serde::Deserialize;

use super::values::{MaxAge, MaxBytes, WindowLength};
use crate::{
    gateway::past,
    limits,
    recorder::{record, store::Bounds},
};

/// The table `[recording]`.
#[derive(Args, Deserialize, Clone, Debug, Default)]
#[serde(deny_unknown_fields, default)]
#[command(next_help_heading = "Recording")]
pub struct Recording {
    /// The recording file: `record` writes it, `since` and `until` read it [default:
    /// /var/lib/netmon/recording.sqlite].
    #[arg(id = "recording", long = "recording", global = true, value_name = "FILE")]
    pub path: Option<PathBuf>,
    /// Seconds per recorded window, 1 to 60 [default: 10].
    #[arg(long = "interval", global = true, value_name = "SECONDS")]
    pub interval_s: Option<WindowLength>,
    /// Maximum size of the recording in bytes, at least 16777216; the oldest windows are deleted first
    /// [default: 1073741824].
    #[arg(long = "recording-max-bytes", global = true, value_name = "N", hide_short_help = true)]
    pub max_bytes: Option<MaxBytes>,
    /// Days to keep a recorded window [default: 30].
    #[arg(long = "recording-max-age", global = true, value_name = "DAYS", hide_short_help = true)]
    pub max_age_days: Option<MaxAge>,
    /// A program that `record` runs when an incident begins or ends, with the incident as JSON on its standard input. Repeat
    /// the option for each argument of the program. It runs without a shell.
    #[arg(
        long = "on-incident",
        global = true,
        value_name = "WORD",
        allow_hyphen_values = true,
        hide_short_help = true
    )]
    pub on_incident: Vec<String>,
}

impl Recording {
    /// The file.
    pub fn path(&self) -> PathBuf {
        self.path.clone().unwrap_or_else(|| past::RECORDING.into())
    }

    /// How to record.
    pub fn options(&self) -> record::Options {
        let bounds = Bounds {
            bytes: self.max_bytes.map_or(limits::RECORDING_BYTES, |most| most.0),
            age: self.max_age_days.map_or(limits::RECORDING_AGE, |most| most.0),
            whole: limits::RECORDING_WHOLE,
        };
        let interval = self.interval_s.map_or(limits::RECORDER_INTERVAL, |length| length.0);
        record::Options { path: self.path(), bounds, interval, on_incident: self.on_incident.clone() }
    }
}
