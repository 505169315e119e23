//! Moments and periods, as callers write them and as the recording keeps them.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::untrusted;

/// A moment: microseconds since 1970-01-01T00:00:00Z.
pub type Micros = i64;

/// Microseconds of a second.
pub const SECOND: Micros = 1_000_000;
/// Microseconds of a minute.
pub const MINUTE: Micros = 60 * SECOND;
/// Microseconds of an hour.
pub const HOUR: Micros = 60 * MINUTE;

/// The clock on the wall.
pub fn now() -> Micros {
    Timestamp::now().as_microsecond()
}

/// A length in microseconds.
pub fn micros(length: Duration) -> Micros {
    length.as_micros().try_into().unwrap_or(Micros::MAX)
}

/// A moment in RFC 3339, to the millisecond, in UTC.
pub fn shown(moment: Micros) -> String {
    Timestamp::from_microsecond(moment).map_or_else(|_| moment.to_string(), |time| format!("{time:.3}"))
}

/// From one moment to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    pub begin_us: Micros,
    pub end_us: Micros,
}

impl Serialize for Period {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shown {
            from: String,
            to: String,
        }
        Shown { from: shown(self.begin_us), to: shown(self.end_us) }.serialize(serializer)
    }
}

impl Period {
    /// Its length.
    pub fn length(&self) -> Micros {
        self.end_us - self.begin_us
    }
}

/// The moment that a caller means: RFC 3339, or how long ago, such as `-10m`.
pub fn moment(name: &str, text: &str, now: Micros) -> Result<Micros, String> {
    if let Some(ago) = text.strip_prefix('-').and_then(|ago| ago.parse::<SignedDuration>().ok()) {
        let ago = Duration::try_from(ago).map(micros).map_err(|_| wrong(name, text))?;
        return Ok(now.saturating_sub(ago));
    }
    text.parse::<Timestamp>().map(Timestamp::as_microsecond).map_err(|_| wrong(name, text))
}

fn wrong(name: &str, text: &str) -> String {
    format!(
        "{name}: invalid time `{}`: expected RFC 3339, such as 2026-01-31T12:00:00Z, or relative, such as -10m or -2h",
        untrusted::clean(text)
    )
}

/// The period between two moments that a caller wrote; where one is missing, it is `length` long, or ends now.
pub fn period(since: Option<&str>, until: Option<&str>, length: Duration, now: Micros) -> Result<Period, String> {
    named(["since", "until"], since, until, micros(length), now, now)
}

/// The same under other names, where the end is `otherwise` if none is given.
pub fn named(
    [first, second]: [&str; 2],
    since: Option<&str>,
    until: Option<&str>,
    length: Micros,
    otherwise: Micros,
    now: Micros,
) -> Result<Period, String> {
    let end_us = until.map_or(Ok(otherwise), |text| moment(second, text, now))?;
    let begin_us = since.map_or(Ok(end_us.saturating_sub(length)), |text| moment(first, text, now))?;
    if begin_us >= end_us {
        let [begin, end] = [begin_us, end_us].map(shown);
        return Err(format!("{first} ({begin}) is not before {second} ({end}): use an earlier {first}"));
    }
    if begin_us > now {
        return Err(format!("{first} ({}) is in the future: use a time in the past", shown(begin_us)));
    }
    Ok(Period { begin_us, end_us })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Micros = 1_800_000_000 * SECOND;

    #[test]
    fn time_is_rfc_3339_or_relative() {
        let of = |text| moment("since", text, NOW);
        assert_eq!(of("-10m"), Ok(NOW - 10 * MINUTE));
        assert_eq!(of("-1h30m"), Ok(NOW - 90 * MINUTE));
        assert_eq!(of("2027-01-15T08:00:00Z"), Ok(NOW));
        assert_eq!(of("2027-01-15T09:00:00+01:00"), Ok(NOW));
        for text in ["10m", "yesterday", "-", "-x", ""] {
            assert!(of(text).unwrap_err().contains("such as -10m"), "{text}");
        }
    }

    #[test]
    fn since_must_precede_until() {
        let of = |since, until| period(since, until, Duration::from_secs(600), NOW);
        assert_eq!(of(Some("-5m"), None), Ok(Period { begin_us: NOW - 5 * MINUTE, end_us: NOW }));
        let until = Some("-1h");
        assert_eq!(of(None, until), Ok(Period { begin_us: NOW - 70 * MINUTE, end_us: NOW - 60 * MINUTE }));
        assert!(of(Some("-5m"), Some("-10m")).unwrap_err().contains("is not before until"));
        assert!(of(Some("2030-01-01T00:00:00Z"), Some("2031-01-01T00:00:00Z")).unwrap_err().contains("in the future"));
    }

    #[test]
    fn times_are_shown_in_utc() {
        assert_eq!(shown(NOW), "2027-01-15T08:00:00.000Z");
    }
}
