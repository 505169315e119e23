//! A period of the recording as a line of points: what the page plots.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    limits,
    recorder::{
        store::{Recording, Trouble},
        time::{MINUTE, Micros, Period, SECOND},
    },
};

/// A part of the period.
#[derive(Serialize, Default)]
struct Point {
    at_ms: i64,
    /// Bits per second by process, of the time that was recorded.
    traffic: BTreeMap<String, f64>,
    drops: f64,
    failures: f64,
    /// The mean of the medians, by remote.
    rtt_us: BTreeMap<String, f64>,
    /// The time that was recorded.
    #[serde(skip)]
    length_us: Micros,
}

/// The period that a viewer asks for, or what is wrong with it.
pub fn period(from_ms: i64, to_ms: i64) -> Result<Period, String> {
    let longest_ms = limits::TIMELINE_MAX.as_millis() as i64;
    if to_ms <= from_ms || to_ms.saturating_sub(from_ms) > longest_ms {
        let days = limits::TIMELINE_MAX.as_secs() / 86_400;
        return Err(format!(
            "invalid period {from_ms} to {to_ms}: expected up to {days} days, the begin before the end"
        ));
    }
    let us =
        |ms: i64| ms.checked_mul(1_000).ok_or_else(|| format!("invalid time {ms}: expected milliseconds since 1970"));
    Ok(Period { begin_us: us(from_ms)?, end_us: us(to_ms)? })
}

/// The points and findings of a period.
pub fn read(recording: &dyn Recording, period: Period) -> Result<Value, Trouble> {
    let minutes = (period.length() + MINUTE - 1) / MINUTE;
    let step = (minutes + limits::TIMELINE_POINTS - 1) / limits::TIMELINE_POINTS * MINUTE;
    let mut points = BTreeMap::<Micros, Point>::new();
    for span in recording.spans(period)? {
        let at = (span.period.end_us - 1).div_euclid(step) * step; // as the series count windows
        points.entry(at).or_insert_with(|| Point { at_ms: at / 1_000, ..Point::default() }).length_us += span.length_us;
    }
    for bucket in recording.buckets(period, step)? {
        let Some(point) = points.get_mut(&bucket.minute_us) else { continue };
        let figure = bucket.figure;
        let mean = || figure.value / figure.count.max(1) as f64;
        let name = || figure.name.split_once(':').map_or(figure.name.as_str(), |(_, name)| name).to_owned();
        match figure.subject.as_str() {
            "drops" => point.drops += figure.value,
            "failures" => point.failures += figure.value,
            "rtt" => drop(point.rtt_us.insert(name(), mean().round())),
            _ => *point.traffic.entry(name()).or_default() += figure.value,
        }
    }
    for point in points.values_mut() {
        let seconds = (point.length_us.max(1)) as f64 / SECOND as f64;
        point.traffic.values_mut().for_each(|bytes| *bytes = (*bytes * 8.0 / seconds).round());
    }
    let findings = recording.incidents(period)?.into_iter().map(|incident| {
        let to_ms = incident.closed.then_some(incident.end_us / 1_000);
        json!({"code": incident.code, "severity": incident.severity, "from_ms": incident.begin_us / 1_000, "to_ms": to_ms})
    });
    let gaps = recording.gaps(period)?.into_iter().map(
        |gap| json!({"from_ms": gap.period.begin_us / 1_000, "to_ms": gap.period.end_us / 1_000, "reason": gap.reason}),
    );
    Ok(json!({
        "from_ms": period.begin_us / 1_000,
        "to_ms": period.end_us / 1_000,
        "step_ms": step / 1_000,
        "points": points.into_values().collect::<Vec<_>>(),
        "findings": findings.collect::<Vec<_>>(),
        "gaps": gaps.collect::<Vec<_>>(),
    }))
}

/// The same without a recording that can be read.
pub fn absent(period: Period, trouble: &Trouble) -> Value {
    json!({
        "from_ms": period.begin_us / 1_000,
        "to_ms": period.end_us / 1_000,
        "points": [],
        "findings": [],
        "gaps": [],
        "reason": trouble.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn period_is_bounded() {
        let day_ms = 86_400_000;
        assert_eq!(period(1_000, 2_000), Ok(Period { begin_us: 1_000_000, end_us: 2_000_000 }));
        for (from, to) in [(2_000, 1_000), (5, 5), (0, 400 * day_ms), (i64::MIN, i64::MAX), (i64::MAX - 1, i64::MAX)] {
            assert!(period(from, to).unwrap_err().starts_with("invalid"), "{from} {to}");
        }
    }
}
