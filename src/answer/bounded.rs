//! The inputs with bounds that several tools have: how long a window is, and how many rows a list has.

use std::{borrow::Cow, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};

use crate::{limits, untrusted};

const MS_MIN: u64 = limits::WINDOW_MIN.as_millis() as u64;
const MS_MAX: u64 = limits::WINDOW_MAX.as_millis() as u64;
const SECONDS_MIN: f64 = limits::WINDOW_MIN.as_millis() as f64 / 1e3;
const SECONDS_MAX: f64 = limits::WINDOW_MAX.as_millis() as f64 / 1e3;

/// The length of a window in milliseconds, [`limits::WINDOW_MIN`] to [`limits::WINDOW_MAX`]; `DEFAULT` where the caller
/// sets none.
#[derive(Serialize, Clone, Copy, Debug, PartialEq)]
pub struct WindowMs<const DEFAULT: u64>(u64);

impl<const DEFAULT: u64> WindowMs<DEFAULT> {
    pub fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl<const DEFAULT: u64> Default for WindowMs<DEFAULT> {
    fn default() -> Self {
        const { assert!(MS_MIN <= DEFAULT && DEFAULT <= MS_MAX) };
        WindowMs(DEFAULT)
    }
}

impl<'de, const DEFAULT: u64> Deserialize<'de> for WindowMs<DEFAULT> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        whole(deserializer, "milliseconds", MS_MIN, MS_MAX).map(WindowMs)
    }
}

impl<const DEFAULT: u64> JsonSchema for WindowMs<DEFAULT> {
    fn schema_name() -> Cow<'static, str> {
        "WindowMs".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": MS_MIN, "maximum": MS_MAX })
    }
}

/// The length of a window in seconds, fractions allowed: [`limits::WINDOW_MIN`] to [`limits::WINDOW_MAX`].
#[derive(Serialize, Clone, Copy, Debug, PartialEq)]
pub struct WindowSeconds(f64);

impl WindowSeconds {
    pub const fn new(seconds: f64) -> Self {
        WindowSeconds(seconds)
    }

    pub fn duration(self) -> Duration {
        Duration::from_secs_f64(self.0)
    }
}

impl<'de> Deserialize<'de> for WindowSeconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        bounded(deserializer, "a number of seconds", SECONDS_MIN, SECONDS_MAX).map(WindowSeconds)
    }
}

impl JsonSchema for WindowSeconds {
    fn schema_name() -> Cow<'static, str> {
        "WindowSeconds".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "number", "minimum": SECONDS_MIN, "maximum": SECONDS_MAX as u64 })
    }
}

/// The maximum of rows in a list, 1 to [`limits::ROWS_MAX`]; `DEFAULT` is the caller's default.
#[derive(Serialize, Clone, Copy, Debug, PartialEq)]
pub struct Limit<const DEFAULT: usize = { limits::ROWS_DEFAULT }>(usize);

impl<const DEFAULT: usize> Limit<DEFAULT> {
    pub fn rows(self) -> usize {
        self.0
    }
}

impl<const DEFAULT: usize> Default for Limit<DEFAULT> {
    fn default() -> Self {
        const { assert!(1 <= DEFAULT && DEFAULT <= limits::ROWS_MAX) };
        Limit(DEFAULT)
    }
}

impl<'de, const DEFAULT: usize> Deserialize<'de> for Limit<DEFAULT> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        whole(deserializer, "rows", 1, limits::ROWS_MAX as u64).map(|rows| Limit(rows as usize))
    }
}

impl<const DEFAULT: usize> JsonSchema for Limit<DEFAULT> {
    fn schema_name() -> Cow<'static, str> {
        "Limit".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": 1, "maximum": limits::ROWS_MAX })
    }
}

/// A whole number of `things` within bounds.
fn whole<'de, D: Deserializer<'de>>(deserializer: D, things: &str, min: u64, max: u64) -> Result<u64, D::Error> {
    let allowed = format!("a whole number of {things}");
    let n = bounded(deserializer, &allowed, min as f64, max as f64)?;
    if n.fract() == 0.0 {
        Ok(n as u64)
    } else {
        Err(de::Error::custom(format!("invalid value {n}: expected {allowed} from {min} to {max}")))
    }
}

/// A JSON number within bounds; errors state the allowed values.
fn bounded<'de, D: Deserializer<'de>>(deserializer: D, allowed: &str, min: f64, max: f64) -> Result<f64, D::Error> {
    let value = serde_json::Value::deserialize(deserializer)?;
    match value.as_f64() {
        Some(n) if (min..=max).contains(&n) => Ok(n),
        _ => {
            let given = untrusted::clean(&value.to_string());
            Err(de::Error::custom(format!("invalid value {given}: expected {allowed} from {min} to {max}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_errors_state_the_bounds() {
        let parse =
            |text: &str| serde_json::from_str::<WindowSeconds>(text).map(|w| w.duration()).map_err(|e| e.to_string());
        assert_eq!(parse("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(parse("60"), Ok(Duration::from_secs(60)));
        for text in ["0", "-1", "1e300", "\"5\"", "true", "60.001"] {
            assert!(parse(text).unwrap_err().contains("a number of seconds from 0.1 to 60"), "{text}");
        }
        for text in ["99", "60001", "100.5", "\"abc\""] {
            assert!(
                serde_json::from_str::<WindowMs<2_000>>(text).unwrap_err().to_string().contains("from 100 to 60000"),
                "{text}"
            );
        }
    }

    #[test]
    fn limit_errors_state_the_bounds() {
        for text in ["0", "10001", "1.5", "null"] {
            let error = serde_json::from_str::<Limit>(text).unwrap_err().to_string();
            assert!(error.contains("a whole number of rows from 1 to 10000"), "{error}");
        }
    }
}
