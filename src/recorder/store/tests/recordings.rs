//! Recordings for tests: of the store, and of the suite, whose disks need root.

use std::{path::Path, time::Duration};

use super::{Bounds, Entry, Figure, Micros, Part, Period, Recording, SECOND, Sqlite, Trouble, Window};

pub const BEGIN: Micros = 1_800_000_000 * SECOND; // a full minute

pub fn bounds() -> Bounds {
    Bounds { bytes: 1 << 30, age: Duration::from_secs(30 * 86_400), whole: Duration::from_secs(86_400) }
}

pub fn open(path: &Path, bounds: Bounds) -> Result<Sqlite, Trouble> {
    Sqlite::write(path, bounds, Duration::from_secs(10), BEGIN)
}

/// The n-th window of 10 s, with one part of these bytes.
pub fn entry(n: i64, sample: &str) -> Entry {
    let begin_us = BEGIN + n * 10 * SECOND;
    let part = Part { part: "dns".into(), tool: "trace_dns".into(), sample: sample.into() };
    let window = Window {
        begin_us,
        end_us: begin_us + 10 * SECOND,
        length_us: 10 * SECOND,
        boot: "b".into(),
        host: "h".into(),
        version: "1".into(),
        parts: vec![part],
    };
    let figure = Figure { subject: "traffic".into(), name: "process:x".into(), value: 5.0, count: 1 };
    Entry { gap: None, window, figures: vec![figure] }
}

/// Incompressible text, from a linear congruential generator.
pub fn noise(seed: u64, bytes: usize) -> String {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'!' + (state >> 33) as u8 % 90)
    };
    (0..bytes).map(next).collect()
}

pub fn all() -> Period {
    Period { begin_us: 0, end_us: Micros::MAX / 2 }
}

pub fn samples(recording: &Sqlite) -> Vec<String> {
    let spans = recording.spans(all()).unwrap();
    spans.iter().flat_map(|span| recording.parts(span.id, Some("dns")).unwrap()).map(|part| part.sample).collect()
}
