//! Times as a person at this terminal reads and types them: in the time zone of the host.

use jiff::{Timestamp, ToSpan, civil::DateTime, civil::Time, tz::TimeZone};

use crate::recorder::time::{self, Micros};

/// The forms of a time that is typed.
pub const FORMS: &str = "03:12, 03:12:30, 2026-01-31 03:12, or -10m";

/// The time zone, read once: later this process may open no file.
pub struct Clock(TimeZone);

impl Clock {
    /// Of the host, or of the variable TZ.
    pub fn local() -> Clock {
        Clock(TimeZone::try_system().unwrap_or(TimeZone::UTC))
    }

    /// `03:12:30`.
    pub fn time(&self, ms: i64) -> String {
        self.format(ms, "%H:%M:%S")
    }

    /// `2026-01-31 03:12:30 UTC`.
    pub fn moment(&self, ms: i64) -> String {
        self.format(ms, "%Y-%m-%d %H:%M:%S %Z")
    }

    fn format(&self, ms: i64, form: &str) -> String {
        let Ok(timestamp) = Timestamp::from_millisecond(ms) else { return ms.to_string() };
        timestamp.to_zoned(self.0.clone()).strftime(form).to_string()
    }

    /// The moment that a person means. A time without a date is the last such time.
    pub fn meant(&self, text: &str, now: Micros) -> Result<Micros, String> {
        let text = text.trim();
        let wrong = || format!("invalid time `{}`: expected {FORMS}", crate::untrusted::clean(text));
        if let Ok(moment) = time::moment("time", text, now) {
            return Ok(moment);
        }
        if let Ok(at) = text.parse::<DateTime>() {
            let zoned = at.to_zoned(self.0.clone()).map_err(|_| wrong())?;
            return Ok(zoned.timestamp().as_microsecond());
        }
        let clock = text.parse::<Time>().map_err(|_| wrong())?;
        self.last(clock, now).ok_or_else(wrong)
    }

    fn last(&self, clock: Time, now: Micros) -> Option<Micros> {
        let today = Timestamp::from_microsecond(now).ok()?.to_zoned(self.0.clone());
        let of = |date: jiff::civil::Date| {
            Some(date.to_datetime(clock).to_zoned(self.0.clone()).ok()?.timestamp().as_microsecond())
        };
        let moment = of(today.date())?;
        if moment <= now { Some(moment) } else { of(today.date().checked_sub(1.day()).ok()?) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recorder::time::{MINUTE, SECOND};

    /// 2027-01-15 08:00 UTC.
    const NOW: Micros = 1_800_000_000 * SECOND;
    const HOUR: Micros = 60 * MINUTE;

    #[test]
    fn time_without_a_date_is_the_last_such_time() {
        let clock = Clock(TimeZone::UTC);
        assert_eq!(clock.meant("03:12", NOW), Ok(NOW - 5 * HOUR + 12 * MINUTE));
        assert_eq!(clock.meant("09:00:30", NOW), Ok(NOW - 23 * HOUR + 30 * SECOND), "yesterday");
        assert_eq!(clock.meant(" -10m", NOW), Ok(NOW - 10 * MINUTE));
        assert_eq!(clock.meant("2027-01-14 08:00", NOW), Ok(NOW - 24 * HOUR));
        assert_eq!(clock.meant("2027-01-15T08:00:00Z", NOW), Ok(NOW));
        for wrong in ["", "25:00", "noon"] {
            assert!(clock.meant(wrong, NOW).unwrap_err().contains("03:12"), "{wrong}");
        }
    }

    #[test]
    fn times_are_of_the_time_zone() {
        let east = Clock(TimeZone::fixed(jiff::tz::offset(2)));
        assert_eq!(east.time(NOW / 1_000), "10:00:00");
        assert_eq!(east.meant("10:00", NOW), Ok(NOW));
        assert!(east.moment(NOW / 1_000).starts_with("2027-01-15 10:00:00 "));
    }
}
