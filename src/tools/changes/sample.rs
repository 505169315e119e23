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

pub fn sample(input: &Input, recording: &dyn Recording, now: Micros) -> Result<Sample, Unread> {
    let text = |text: &Option<String>| text.clone();
    let (since, until) = (text(&input.since), text(&input.until));
    let after = named(["since", "until"], since.as_deref(), until.as_deref(), 5 * MINUTE, now, now);
    let after = after.map_err(Unread::Question)?;
    let (since, until) = (text(&input.baseline_since), text(&input.baseline_until));
    let names = ["baseline_since", "baseline_until"];
    let before = named(names, since.as_deref(), until.as_deref(), 60 * MINUTE, after.begin_us, now);
    let before = before.map_err(Unread::Question)?;
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
