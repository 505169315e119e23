//! How long questions about a day or a week take, on a host that was busy all the time. A minute of a busy host is recorded,
//! and the days are made of its copies, with the times and the sockets changed.

use std::time::{Duration, Instant};

use netmon_mcp::{
    recorder::{
        replay,
        store::{Bounds, Sqlite, Store, Window},
        time::{self, Period},
    },
    tools::QUESTIONS,
};
use serde_json::json;

use crate::{
    Figure,
    harness::{windows::*, *},
    median,
    recording::{Connections, Recorder},
};

/// Windows that are recorded, after one that the connections began in: those of a minute.
const RECORDED: usize = 6;
/// Windows of a day, and minutes of one.
const DAY: usize = 8_640;
const MINUTES: usize = 1_440;
/// Connections a second of the busy host.
const RATE: u32 = 100;
/// Of each question. An odd number has a middle.
const ROUNDS: usize = 3;

/// Every tool about 24 hours.
pub fn day() -> Vec<Figure> {
    ask("24 h", 0, (300.0, "<= 300 ms"))
}

/// Every tool about 7 days: what is older than a day is merged to minutes.
pub fn week() -> Vec<Figure> {
    ask("7 days", 6, (1_500.0, "<= 1.5 s"))
}

fn ask(what: &str, older_days: usize, (limit_ms, reach): (f64, &'static str)) -> Vec<Figure> {
    let folder = open_folder();
    let path = folder.path().join("recording.sqlite");
    let bounds = Bounds { bytes: 1 << 34, age: Duration::from_secs(1 << 30), whole: Duration::from_secs(1 << 30) };
    let length_us = (older_days as i64 + 1) * 24 * time::HOUR;
    // From the middle of an hour to the middle of another one, as most questions are.
    let begin_us = (time::now() - length_us).div_euclid(time::HOUR) * time::HOUR - time::HOUR / 2;
    let mut store = Sqlite::write(&path, bounds, Duration::from_secs(10), begin_us).unwrap();
    let windows = recorded();
    let whole = replay::merge(windows.iter().map(|window| window.parts.clone()).collect()).unwrap();
    let minute = [Window { parts: whole, ..windows[0].clone() }];
    let older = older_days * MINUTES;
    let copies = (0..older + DAY).map(|n| match n.checked_sub(older) {
        None => copy(&minute, n, begin_us + n as i64 * time::MINUTE, time::MINUTE),
        Some(n) => {
            let begin_us = begin_us + older as i64 * time::MINUTE;
            copy(&windows, older * RECORDED + n, begin_us + n as i64 * 10 * time::SECOND, 10 * time::SECOND)
        }
    });
    let mut summing = Vec::new();
    for copy in copies {
        store.append(&[copy], &mut []).unwrap();
        let begun = Instant::now();
        store.sum_up(&replay::SUMMING).unwrap();
        summing.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    let longest = summing.iter().copied().fold(0.0, f64::max);
    let period = Period { begin_us, end_us: begin_us + length_us };
    let asked = QUESTIONS.iter().filter(|question| replay::is_recorded(question.name));
    let figures = asked.map(|question| {
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
            name: format!("{} over {what} of {RATE} connections/s{refusal}", question.name),
            measured: format!("{middle:.0} ms ({least:.0}-{most:.0})"),
            reach,
            reached: refusal.is_empty() && middle <= limit_ms,
        }
    });
    let size = |table: &str| {
        let recording = rusqlite::Connection::open(&path).unwrap();
        let sql = format!("SELECT coalesce(sum(length(sample)), 0) FROM {table}");
        recording.query_row(&sql, [], |row| row.get::<_, i64>(0)).unwrap() as f64 / 1e6 / (older_days as f64 + 1.0)
    };
    let told = [
        ("the longest step of summing up an hour", format!("{longest:.0} ms")),
        ("samples of windows, of a day", format!("{:.1} MB", size("samples"))),
        ("sums of hours, of a day", format!("{:.1} MB", size("sums"))),
    ];
    let told = told.map(|(name, measured)| Figure { name: name.into(), measured, reach: "-", reached: true });
    figures.collect::<Vec<_>>().into_iter().chain(told).collect()
}

/// Windows of a busy host.
fn recorded() -> Vec<Window> {
    let netns = Netns::new();
    let daemon = daemon_in(&netns);
    let mut client = Client::connect(&daemon.socket);
    let recorder = Recorder::start(&daemon.socket, &mut client);
    let _connections = Connections::start(RATE);
    (0..=RECORDED).for_each(|_| recorder.until_written());
    let mut windows = windows_of(&Sqlite::read(&recorder.path).unwrap());
    windows.split_off(windows.len() - RECORDED)
}
