//! The figures of both periods, from the recording.

use std::collections::BTreeMap;

use super::{Figures, Input, Sample};
use crate::{
    recorder::{
        store::Recording,
        time::{MINUTE, Micros, Period, named},
    },
    tools::recollect::Unread,
};

/// The baseline and the period that a question compares.
pub fn periods(input: &Input, now: Micros) -> Result<(Period, Period), String> {
    let (since, until) = (input.since.as_deref(), input.until.as_deref());
    let after = named(["since", "until"], since, until, 5 * MINUTE, now, now)?;
    let (since, until) = (input.baseline_since.as_deref(), input.baseline_until.as_deref());
    let names = ["baseline_since", "baseline_until"];
    Ok((named(names, since, until, 60 * MINUTE, after.begin_us, now)?, after))
}

pub fn sample(input: &Input, recording: &dyn Recording, now: Micros) -> Result<Sample, Unread> {
    let (before, after) = periods(input, now).map_err(Unread::Question)?;
    if recording.spans(after)?.is_empty() {
        return Err(Unread::Nothing);
    }
    Ok(Sample { before: figures(recording, before)?, after: figures(recording, after)? })
}

fn figures(recording: &dyn Recording, period: Period) -> Result<Figures, Unread> {
    let mut covered = BTreeMap::<Micros, Micros>::new();
    for span in recording.spans(period)? {
        // What a window counted is in the minute of its end.
        let minute = (span.period.end_us - 1).div_euclid(MINUTE) * MINUTE;
        *covered.entry(minute).or_default() += span.length_us;
    }
    let within = |minute: Micros| (period.begin_us..period.end_us).contains(&(minute + MINUTE / 2));
    let half = covered.into_iter().filter(|(minute, length)| within(*minute) && *length >= MINUTE / 2);
    let minutes: Vec<_> = half.map(|(minute, length)| (minute, length as f64 / MINUTE as f64)).collect();
    let mut figures = recording.series(period)?;
    figures.retain(|figure| minutes.iter().any(|(minute, _)| *minute == figure.minute_us));
    Ok(Figures { period, minutes, figures })
}
