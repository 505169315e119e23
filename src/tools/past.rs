//! Answers about the past: the samples of several windows are merged, and the tool's own report answers.

use serde_json::{Value, value::RawValue};

use super::{Answer, Tool, input::decode, read, whole_or_short};
use crate::wire::Error;

/// A tool's sample in one window of the past. Times are microseconds since 1970.
pub struct Recorded<S> {
    pub begin_us: i64,
    pub end_us: i64,
    pub sample: S,
}

/// Windows of the past, oldest first, each with its sample as JSON or why it cannot be read.
pub type Windows<'a> = dyn Iterator<Item = Result<Recorded<String>, Error>> + 'a;

/// Samples as JSON, oldest first, each with why it cannot be read.
pub type Encoded<'a> = dyn Iterator<Item = Result<String, Error>> + 'a;

/// The same with the samples read.
pub type Samples<'a, S> = dyn Iterator<Item = Result<Recorded<S>, Error>> + 'a;

/// A question about the past.
pub struct Recollection<'a> {
    pub windows: &'a mut Windows<'a>,
    /// All windows together, in microseconds.
    pub length_us: i64,
    pub extent: Extent,
}

/// What of a period is known.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Nothing is missing of the period that was asked for.
    pub is_whole: bool,
    /// Some of its hours are known by their sums only.
    pub has_sums: bool,
}

/// The answer of a tool about windows of the past.
pub fn recall<T: Tool>(value: Value, past: Recollection) -> Result<Answer, Error> {
    let input = decode::<T::Input>(&value)?;
    let mut samples = past.windows.map(|window| {
        let Recorded { begin_us, end_us, sample } = window?;
        Ok(Recorded { begin_us, end_us, sample: read::<T::Sample>(&sample)? })
    });
    let output = T::recall(input, &mut samples, past.extent)?;
    let mut answer = whole_or_short::<T>(&value, output);
    // A tool that measures from one moment to another counts the gaps between windows too.
    if let Some(window_ms) = answer.structured.pointer_mut("/measured/window_ms") {
        *window_ms = (past.length_us as f64 / 1e3).into();
    }
    Ok(answer)
}

/// Merges samples, oldest first, each with others of its size: a long sum is not copied for every window.
pub fn fold<S>(samples: &mut Samples<'_, S>, merge: impl Fn(S, S) -> S) -> Result<Option<S>, Error> {
    let mut sums = Vec::<(u32, S)>::new();
    for window in samples {
        let (mut level, mut sum) = (0, window?.sample);
        while let Some((_, earlier)) = sums.pop_if(|(of, _)| *of == level) {
            sum = merge(earlier, sum);
            level += 1;
        }
        sums.push((level, sum));
    }
    Ok(sums.into_iter().rev().map(|(_, sum)| sum).reduce(|later, earlier| merge(earlier, later)))
}

/// What is kept of the sum of many windows, from their samples as JSON, oldest first.
pub fn sum_json<T: Tool>(samples: &mut Encoded<'_>) -> Result<Box<RawValue>, Error> {
    let mut sum = None;
    for sample in samples {
        let later = read::<T::Sample>(&sample?)?;
        // One by one: what goes on is found again in the next window.
        sum = Some(T::reduce(match sum {
            Some(earlier) => T::merge(earlier, later),
            None => later,
        }));
    }
    super::encode(&sum.ok_or_else(|| Error::InvalidInput("no sample to sum up".into()))?)
}

/// The sample of several windows together, as JSON.
pub fn fold_json<T: Tool>(samples: Vec<Box<RawValue>>) -> Result<Box<RawValue>, Error> {
    let mut samples =
        samples.iter().map(|sample| Ok(Recorded { begin_us: 0, end_us: 0, sample: read::<T::Sample>(sample.get())? }));
    let sum = fold(&mut samples, T::merge)?.ok_or_else(|| Error::InvalidInput("no sample to merge".into()))?;
    super::encode(&sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_merge_in_order() {
        for count in 1..40 {
            let mut samples = (0..count).map(|n| Ok(Recorded { begin_us: 0, end_us: 0, sample: vec![n] }));
            let sum = fold(&mut samples, |earlier, later| [earlier, later].concat()).unwrap();
            assert_eq!(sum, Some((0..count).collect::<Vec<i32>>()));
        }
    }
}
