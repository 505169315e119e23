//! Screens of the past, from the recording.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::value::RawValue;

use super::{Episode, Point, Screen, frames::Frames};
use crate::{
    gateway::{Failure, past::Past},
    limits,
    recorder::{
        replay::{gone, sample},
        store::{Incident, Recording, Span, Sqlite},
        time::{MINUTE, Micros, Period, SECOND},
    },
    sync::lock,
    tools::{Tool, diagnose::Diagnose},
    wire::Error,
};

/// The figures of windows that were read, by the window.
type Points = Arc<Mutex<BTreeMap<i64, Arc<Point>>>>;

/// Reads screens of the past, one after the other.
#[derive(Default)]
pub struct Then(Points);

/// A window of the recording.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wanted {
    /// The one at this moment; if there is none, the last one before it, else the first one.
    At(Micros),
    /// So many windows later than the one that ended at this moment; earlier, if negative.
    Step { from: Micros, windows: i64 },
    /// The first one.
    Oldest,
}

impl Then {
    /// The screen of a window.
    pub async fn screen(&self, past: &Past, wanted: Wanted) -> Result<Screen, Failure> {
        let points = Arc::clone(&self.0);
        let read = past.read(Diagnose::NAME, move |path| {
            let recording = Sqlite::read(path).map_err(gone)?;
            let span = find(&recording, wanted)?;
            show(&recording, &span, &points)
        });
        read.await
    }
}

fn find(recording: &Sqlite, wanted: Wanted) -> Result<Span, Error> {
    let known = recording.facts().map_err(gone)?.period;
    let known = known.ok_or_else(|| Error::Gone("the recording is empty: wait for the first window".into()))?;
    let found = match wanted {
        Wanted::At(moment) => before(recording, moment, known, 1)?.pop(),
        Wanted::Step { from, windows } if windows < 0 => {
            let steps = windows.unsigned_abs() as usize;
            let mut spans = before(recording, from, known, steps + 1)?;
            // Now is not the end of a window: then the last one is the first step.
            spans.pop_if(|last| last.period.end_us / 1_000 == from / 1_000);
            spans.truncate((spans.len() + 1).saturating_sub(steps).max(1));
            spans.pop()
        }
        Wanted::Step { from, windows } => {
            let steps = windows as usize;
            let mut spans = after(recording, from - 1, known, steps + 1)?;
            spans.truncate(steps + 1);
            spans.pop()
        }
        Wanted::Oldest => None,
    };
    let first = || Ok::<_, Error>(after(recording, known.begin_us, known, 1)?.into_iter().next());
    match found {
        Some(span) => Ok(span),
        None => first()?.ok_or_else(|| Error::Gone("nothing is recorded".into())),
    }
}

/// Periods to search: from near to all.
const REACHES: [Micros; 3] = [10 * MINUTE, 24 * 60 * MINUTE, Micros::MAX / 4];

/// At least so many windows that begin before a moment, if there are so many; oldest first.
fn before(recording: &Sqlite, moment: Micros, known: Period, count: usize) -> Result<Vec<Span>, Error> {
    let end_us = moment.min(known.end_us);
    search(count, |reach| Period { begin_us: end_us.saturating_sub(reach), end_us }, recording)
}

/// The same of windows that end after a moment.
fn after(recording: &Sqlite, moment: Micros, known: Period, count: usize) -> Result<Vec<Span>, Error> {
    let begin_us = moment.max(known.begin_us);
    search(count, |reach| Period { begin_us, end_us: begin_us.saturating_add(reach) }, recording)
}

fn search(count: usize, period: impl Fn(Micros) -> Period, recording: &Sqlite) -> Result<Vec<Span>, Error> {
    let mut spans = Vec::new();
    for reach in REACHES {
        spans = recording.spans(period(reach)).map_err(gone)?;
        if spans.len() >= count {
            break;
        }
    }
    Ok(spans)
}

/// The screen of a window, with the figures of those before it.
fn show(recording: &Sqlite, span: &Span, points: &Points) -> Result<Screen, Error> {
    let end_us = span.period.end_us;
    let reach = span.period.length().max(SECOND).saturating_mul(limits::THEN_POINTS as i64);
    let all = recording.spans(Period { begin_us: end_us - reach, end_us }).map_err(gone)?;
    let all = &all[all.len().saturating_sub(limits::THEN_POINTS)..];
    let (earlier, whole) = all.split_at(all.len().saturating_sub(limits::THEN_WHOLE));
    let mut frames = Frames::default();
    for span in earlier {
        if let Some(point) = point(recording, span, points)? {
            frames.remember(point);
        }
    }
    for (at, span) in whole.iter().enumerate() {
        // Only the last one is judged, with those before it.
        let later = (at + 1 < whole.len()).then(|| Instant::now() + Duration::from_secs(3_600));
        frames.due = later;
        let Some(sample) = read(recording, span)? else { continue };
        let screen = frames.add(&sample, span.period.end_us);
        if let Some(reason) = screen.reason {
            return Err(Error::Gone(format!("invalid recorded window: {reason}")));
        }
    }
    let kept = i64::try_from(limits::LIVE_EPISODE_KEPT.as_micros()).unwrap_or_default();
    let period = Period { begin_us: span.period.begin_us - kept, end_us };
    for incident in recording.incidents(period).map_err(gone)? {
        frames.recall(episode(incident, span.period));
    }
    Ok(frames.recorded())
}

/// The figures of a window. They are kept.
fn point(recording: &Sqlite, span: &Span, points: &Points) -> Result<Option<Arc<Point>>, Error> {
    if let Some(known) = lock(points).get(&span.id) {
        return Ok(Some(Arc::clone(known)));
    }
    let Some(sample) = read(recording, span)? else { return Ok(None) };
    let Ok(point) = Frames::point_of(&sample, span.period.end_us).map(Arc::new) else { return Ok(None) };
    let mut points = lock(points);
    if points.len() >= limits::THEN_KEPT {
        points.clear();
    }
    points.insert(span.id, Arc::clone(&point));
    Ok(Some(point))
}

fn read(recording: &Sqlite, span: &Span) -> Result<Option<Box<RawValue>>, Error> {
    let sample = sample(recording, Diagnose::NAME, span)?;
    let parse = |text| RawValue::from_string(text).map_err(|e| Error::Gone(format!("invalid recorded window: {e}")));
    sample.map(|recorded| parse(recorded.sample)).transpose()
}

/// A recorded finding as it was in a window.
fn episode(incident: Incident, window: Period) -> Episode {
    let finding = serde_json::from_str(&incident.finding).unwrap_or_default();
    Episode {
        code: incident.code,
        severity: incident.severity,
        active: incident.end_us > window.begin_us,
        since_ms: incident.begin_us / 1_000,
        last_ms: incident.end_us.min(window.end_us) / 1_000,
        finding: crate::untrusted::value(finding),
    }
}
