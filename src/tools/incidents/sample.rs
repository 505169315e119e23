//! The incidents of a period, from the recording.

use std::time::Duration;

use super::{Input, Sample};
use crate::{
    recorder::{
        coverage::coverage,
        store::Recording,
        time::{self, Micros, Period, shown},
    },
    tools::recollect::{FromTo, Unread},
};

/// What a question without `since` is about.
const DAY: Duration = Duration::from_secs(24 * 3_600);

/// The period that a question is about.
pub fn period(input: &Input, now: Micros) -> Result<Period, String> {
    time::period(input.since.as_deref(), input.until.as_deref(), DAY, now)
}

pub fn sample(input: &Input, recording: &dyn Recording, now: Micros) -> Result<Sample, Unread> {
    let period = period(input, now).map_err(Unread::Question)?;
    let (spans, coverage) = coverage(recording, period)?;
    let [from, to] = [coverage.period.begin_us, coverage.period.end_us].map(shown);
    let recorded = (!spans.is_empty()).then_some(FromTo { from, to });
    Ok(Sample { incidents: recording.incidents(period)?, recorded })
}
