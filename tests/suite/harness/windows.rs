//! Long recordings, made of copies of a few recorded windows.

use netmon_mcp::recorder::{
    store::{Entry, Part, Recording, Sqlite, Window},
    time::Period,
};
use serde_json::Value;

/// All windows of a recording.
pub fn windows_of(recording: &Sqlite) -> Vec<Window> {
    let spans = recording.spans(Period { begin_us: 0, end_us: i64::MAX / 2 }).unwrap();
    let windows = spans.into_iter().map(|span| Window {
        begin_us: span.period.begin_us,
        end_us: span.period.end_us,
        length_us: span.length_us,
        parts: recording.parts(span.id, None).unwrap(),
        boot: span.boot,
        host: span.host,
        version: span.version,
    });
    windows.collect()
}

/// The n-th window. Its connections are others than those of the windows before.
pub fn copy(windows: &[Window], n: usize, begin_us: i64, length_us: i64) -> Entry {
    let window = &windows[n % windows.len()];
    let parts = window.parts.iter().map(|part| {
        let mut sample = serde_json::from_str(&part.sample).unwrap();
        // A minute later, and sockets with other cookies.
        shift(&mut sample, (n / windows.len()) as u64);
        Part { sample: sample.to_string(), ..part.clone() }
    });
    let (begin_us, parts) = (begin_us, parts.collect());
    let window = Window { begin_us, end_us: begin_us + length_us, length_us, parts, ..window.clone() };
    Entry { gap: None, window, figures: Vec::new() }
}

fn shift(sample: &mut Value, minutes: u64) {
    const TIMES: [&str; 5] = ["start_ns", "established_ns", "end_ns", "opened_ns", "ended_ns"];
    let later = |value: &mut Value, by: u64| {
        if let Some(number) = value.as_u64().filter(|number| *number != 0) {
            *value = number.wrapping_add(by).into(); // some are hashes
        }
    };
    match sample {
        Value::Array(values) => values.iter_mut().for_each(|value| shift(value, minutes)),
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                match (name.as_str(), value) {
                    (name, value) if TIMES.contains(&name) => later(value, minutes * 60_000_000_000),
                    ("socket", value) => later(value, minutes << 40),
                    ("sockets", Value::Array(cookies)) => cookies.iter_mut().for_each(|cookie| match cookie {
                        Value::Array(pair) => pair.iter_mut().take(1).for_each(|cookie| later(cookie, minutes << 40)),
                        cookie => later(cookie, minutes << 40),
                    }),
                    (_, value) => shift(value, minutes),
                }
            }
        }
        _ => {}
    }
}
