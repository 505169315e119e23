//! Values of settings that are words.

use std::{str::FromStr, time::Duration};

use serde::Deserialize;

use crate::{limits, untrusted};

/// The MCP transport.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Transport {
    Stdio,
    Http,
    /// A name of the past for [`Transport::Http`].
    Sse,
}

impl FromStr for Transport {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "stdio" => Ok(Transport::Stdio),
            "http" => Ok(Transport::Http),
            "sse" => Ok(Transport::Sse),
            _ => Err("expected stdio or http (sse means http)".into()),
        }
    }
}

/// The length of a recorded window, in seconds.
#[derive(Deserialize, Clone, Copy, Debug, PartialEq)]
#[serde(try_from = "f64")]
pub struct WindowLength(pub Duration);

impl TryFrom<f64> for WindowLength {
    type Error = String;

    fn try_from(seconds: f64) -> Result<Self, String> {
        let allowed = limits::RECORDER_INTERVAL_MIN..=limits::WINDOW_MAX;
        let length = Duration::try_from_secs_f64(seconds).ok().filter(|length| allowed.contains(length));
        let [least, most] = [allowed.start(), allowed.end()].map(Duration::as_secs);
        length.map(WindowLength).ok_or_else(|| format!("expected {least} to {most} seconds, not {seconds}"))
    }
}

/// The maximum size of a recording, in bytes.
#[derive(Deserialize, Clone, Copy, Debug, PartialEq)]
#[serde(try_from = "u64")]
pub struct MaxBytes(pub u64);

impl TryFrom<u64> for MaxBytes {
    type Error = String;

    fn try_from(bytes: u64) -> Result<Self, String> {
        const LEAST: u64 = limits::RECORDING_BYTES_MIN;
        if bytes >= LEAST { Ok(MaxBytes(bytes)) } else { Err(format!("expected at least {LEAST} bytes, not {bytes}")) }
    }
}

/// The maximum age of a recorded window, in days.
#[derive(Deserialize, Clone, Copy, Debug, PartialEq)]
#[serde(try_from = "u32")]
pub struct MaxAge(pub Duration);

impl TryFrom<u32> for MaxAge {
    type Error = String;

    fn try_from(days: u32) -> Result<Self, String> {
        const DAY: Duration = Duration::from_secs(24 * 3_600);
        if days >= 1 { Ok(MaxAge(DAY * days)) } else { Err("expected at least 1 day, not 0".into()) }
    }
}

/// Lets a flag give the number that the file has.
macro_rules! from_number {
    ($($type:ty: $number:ty),*) => {
        $(impl FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                text.parse::<$number>().map_err(|e| e.to_string())?.try_into()
            }
        })*
    };
}

from_number!(WindowLength: f64, MaxBytes: u64, MaxAge: u32);

/// The permission bits of a socket, in octal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mode(pub u32);

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
        mode.map(Mode)
            .ok_or_else(|| format!("invalid mode `{}`: expected octal digits, such as 0660", untrusted::clean(text)))
    }
}
