//! What open windows cost a load: CPU time with and without, in turn.
//!
//! Other guests on a shared machine disturb in bursts. So a turn is many short slices, and the median slice counts. A
//! turn with open windows is compared with the turns without them before and after it.

use std::thread;

use serde_json::Value;

use crate::{
    Figure,
    harness::{Client, Daemon},
    median,
    workload::{Load, real_time_on_one_cpu},
};

/// Rounds of a comparison, each without and with; an odd number has a middle.
pub const ROUNDS: usize = 51;

/// Slices of a turn; an odd number has a middle.
const SLICES: usize = 25;

/// How long a slice is, in nanoseconds of CPU time.
const SLICE_NS: f64 = 4e6;

/// Compares a load without a window and with `windows` open, and returns the ratio of CPU time.
pub fn ratio(name: &str, daemon: &Daemon, windows: &[(&str, Value)], load: Load, reach: (f64, &'static str)) -> Figure {
    let client = std::cell::RefCell::new(Client::connect(&daemon.socket));
    let on = || open(&mut client.borrow_mut(), windows);
    compare(name, load, reach, on, |ids| close(&mut client.borrow_mut(), windows, ids))
}

/// Compares a load before and after with the load between `on` and `off`.
pub fn compare<T>(
    name: &str,
    load: Load,
    reach: (f64, &'static str),
    on: impl FnMut() -> T,
    off: impl FnMut(T),
) -> Figure {
    compare_in(ROUNDS, name, load, reach, on, off)
}

/// The same with a given number of rounds.
pub fn compare_in<T>(
    rounds: usize,
    name: &str,
    mut load: Load,
    reach: (f64, &'static str),
    on: impl FnMut() -> T,
    off: impl FnMut(T),
) -> Figure {
    let mut ratios: Vec<f64> =
        turns(rounds, &mut load, on, off).into_iter().map(|(with, without)| with / without).collect();
    let (middle, least, most) = median(&mut ratios);
    Figure {
        name: name.into(),
        measured: format!("{middle:.3} ({least:.2}-{most:.2})"),
        reach: reach.1,
        reached: reach.1 == "-" || middle <= reach.0,
    }
}

/// CPU nanoseconds per operation of the load, inside `on` and `off` and outside, one round each.
pub fn turns<T>(rounds: usize, load: &mut Load, mut on: impl FnMut() -> T, mut off: impl FnMut(T)) -> Vec<(f64, f64)> {
    let times = calibrate(load);
    let mut before = measure(load, times);
    let turn = |_| {
        let held = on();
        let with = measure(load, times);
        off(held);
        let after = measure(load, times);
        (with, (std::mem::replace(&mut before, after) + after) / 2.0)
    };
    (0..rounds).map(turn).collect()
}

/// The number of operations in a slice.
fn calibrate(load: &mut Load) -> u32 {
    (SLICE_NS / measure(load, 20)).clamp(20.0, 50_000.0) as u32
}

/// CPU nanoseconds per operation of the load, on its own thread: only that thread has real-time priority.
fn measure(load: &mut Load, times: u32) -> f64 {
    thread::scope(|scope| {
        let work = || {
            real_time_on_one_cpu();
            median(&mut (0..SLICES).map(|_| load.run(times)).collect::<Vec<_>>()).0
        };
        scope.spawn(work).join().unwrap()
    })
}

pub fn open(client: &mut Client, windows: &[(&str, Value)]) -> Vec<i64> {
    let ids = windows.iter().map(|(tool, arguments)| client.begin_call(tool, arguments.clone())).collect();
    windows.iter().for_each(|(tool, _)| client.until_open(tool, 1));
    ids
}

pub fn close(client: &mut Client, windows: &[(&str, Value)], ids: Vec<i64>) {
    for id in ids {
        let params = serde_json::json!({"requestId": id});
        client.send(&serde_json::json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}));
    }
    windows.iter().for_each(|(tool, _)| client.until_detached(tool));
}
