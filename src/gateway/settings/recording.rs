//! How to record, and where.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use serde::Deserialize;

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
    pub interval_s: Option<f64>,
    /// Maximum size of the recording in bytes, at least 16777216; the oldest windows are deleted first
    /// [default: 1073741824].
    #[arg(long = "recording-max-bytes", global = true, value_name = "N", hide_short_help = true)]
    pub max_bytes: Option<u64>,
    /// Days to keep a recorded window [default: 30].
    #[arg(long = "recording-max-age", global = true, value_name = "DAYS", hide_short_help = true)]
    pub max_age_days: Option<u32>,
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

    /// The recording options, or the fault in the settings.
    pub fn options(&self) -> Result<record::Options, String> {
        let allowed = limits::RECORDER_INTERVAL_MIN..=limits::WINDOW_MAX;
        let interval = match self.interval_s.map(Duration::try_from_secs_f64) {
            None => limits::RECORDER_INTERVAL,
            Some(Ok(interval)) if allowed.contains(&interval) => interval,
            Some(_) => {
                let given = self.interval_s.unwrap_or_default();
                return Err(format!("interval_s: invalid value {given}: expected 1 to 60 seconds"));
            }
        };
        let bytes = self.max_bytes.unwrap_or(limits::RECORDING_BYTES);
        if bytes < limits::RECORDING_BYTES_MIN {
            return Err(format!("max_bytes: invalid value {bytes}: expected at least {}", limits::RECORDING_BYTES_MIN));
        }
        let day = Duration::from_secs(24 * 3_600);
        let age = self.max_age_days.map_or(limits::RECORDING_AGE, |days| day * days.max(1));
        let bounds = Bounds { bytes, age, whole: limits::RECORDING_WHOLE };
        Ok(record::Options { path: self.path(), bounds, interval, on_incident: self.on_incident.clone() })
    }
}
