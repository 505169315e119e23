//! How long questions about a day take, on a host that was busy all day. Some windows of a busy host are recorded, and a day
//! is made of their copies.

use std::time::{Duration, Instant};

use netmon_mcp::{
    recorder::{
        replay,
        store::{Bounds, Entry, Recording, Span, Sqlite, Store, Window},
        time::{self, Period},
    },
    tools::QUESTIONS,
    version::VERSION,
};
use serde_json::json;

use crate::{
    Figure,
    harness::*,
    median,
    recording::{Connections, Recorder},
};

/// Windows that are recorded, after one that the connections began in.
const RECORDED: usize = 6;
/// Windows of a day.
const DAY: usize = 8_640;
/// Connections a second of the busy host.
const RATE: u32 = 100;
/// Of each question. An odd number has a middle.
const ROUNDS: usize = 3;
const LIMIT: Duration = Duration::from_millis(300);

/// Every tool about 24 hours.
pub fn day() -> Vec<Figure> {
    let folder = open_folder();
    let path = folder.path().join("day.sqlite");
    let bounds = Bounds { bytes: 1 << 34, age: Duration::from_secs(1 << 30), whole: Duration::from_secs(1 << 30) };
    let begin_us = time::now() - 86_400 * time::SECOND;
    let mut day = Sqlite::write(&path, bounds, Duration::from_secs(10), begin_us).unwrap();
    let recorded = recorded();
    let copies: Vec<_> = (0..DAY).map(|n| copy(&recorded[n % recorded.len()], begin_us, n)).collect();
    copies.chunks(360).for_each(|hour| day.append(hour, &mut []).unwrap());
    drop(day);
    let period = Period { begin_us, end_us: begin_us + DAY as i64 * 10 * time::SECOND };
    let asked = QUESTIONS.iter().filter(|question| replay::is_recorded(question.name));
    asked
        .map(|question| {
            let mut refused = None;
            let mut times: Vec<_> = (0..ROUNDS)
                .map(|_| {
                    let begun = Instant::now();
                    refused = replay::answer(&path, question, json!({}), period).err();
                    begun.elapsed().as_secs_f64() * 1e3
                })
                .collect();
            let (middle, least, most) = median(&mut times);
            let refusal = refused.map_or_else(String::new, |refused| format!(" (refused: {refused})"));
            Figure {
                name: format!("{} over 24 h of {RATE} connections/s{refusal}", question.name),
                measured: format!("{middle:.0} ms ({least:.0}-{most:.0})"),
                reach: "<= 300 ms",
                reached: refusal.is_empty() && middle <= LIMIT.as_secs_f64() * 1e3,
            }
        })
        .collect()
}

/// Windows of a busy host.
fn recorded() -> Vec<Window> {
    let netns = Netns::new();
    let daemon = daemon_in(&netns);
    let mut client = Client::connect(&daemon.socket);
    let recorder = Recorder::start(&daemon.socket, &mut client);
    let _connections = Connections::start(RATE);
    (0..=RECORDED).for_each(|_| recorder.until_written());
    let recording = Sqlite::read(&recorder.path).unwrap();
    let spans = recording.spans(Period { begin_us: 0, end_us: i64::MAX / 2 }).unwrap();
    let window = |span: &Span| Window {
        begin_us: span.period.begin_us,
        end_us: span.period.end_us,
        length_us: span.length_us,
        boot: span.boot.clone(),
        host: span.host.clone(),
        version: VERSION.clone(),
        parts: recording.parts(span.id, None).unwrap(),
    };
    spans.iter().rev().take(RECORDED).map(window).collect()
}

/// The n-th window of the day.
fn copy(window: &Window, begin_us: i64, n: usize) -> Entry {
    let begin_us = begin_us + n as i64 * 10 * time::SECOND;
    let window =
        Window { begin_us, end_us: begin_us + 10 * time::SECOND, length_us: 10 * time::SECOND, ..window.clone() };
    Entry { gap: None, window, figures: Vec::new() }
}
