//! What open windows cost a load: CPU time with and without, in turn.

use std::thread;

use serde_json::Value;

use crate::{
    Figure,
    harness::{Client, Daemon},
    median,
    workload::{Load, real_time_on_one_cpu},
};

/// Rounds of a comparison, each without and with; an odd number has a middle.
const ROUNDS: usize = 15;

/// Compares a load without any window and with `windows` open, and says the ratio of CPU time.
pub fn ratio(
    name: &str,
    daemon: &Daemon,
    windows: &[(&str, Value)],
    mut load: Load,
    reach: (f64, &'static str),
) -> Figure {
    let mut client = Client::connect(&daemon.socket);
    let times = calibrate(&mut load);
    let mut ratios: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let without = measure(&mut load, times);
            let ids = open(&mut client, windows);
            let with = measure(&mut load, times);
            close(&mut client, windows, ids);
            with / without
        })
        .collect();
    let (middle, least, most) = median(&mut ratios);
    Figure {
        name: name.into(),
        measured: format!("{middle:.3} ({least:.2}-{most:.2})"),
        reach: reach.1,
        reached: middle <= reach.0,
    }
}

/// How often makes about 150 ms.
fn calibrate(load: &mut Load) -> u32 {
    let one = measure(load, 200);
    (150e6 / one).clamp(200.0, 50_000.0) as u32
}

/// On a thread of its own, so that only it has the real-time priority.
fn measure(load: &mut Load, times: u32) -> f64 {
    thread::scope(|scope| {
        let work = || {
            real_time_on_one_cpu();
            load.run(times)
        };
        scope.spawn(work).join().unwrap()
    })
}

fn open(client: &mut Client, windows: &[(&str, Value)]) -> Vec<i64> {
    let ids = windows.iter().map(|(tool, arguments)| client.begin_call(tool, arguments.clone())).collect();
    windows.iter().for_each(|(tool, _)| client.until_open(tool, 1));
    ids
}

fn close(client: &mut Client, windows: &[(&str, Value)], ids: Vec<i64>) {
    for id in ids {
        let params = serde_json::json!({"requestId": id});
        client.send(&serde_json::json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}));
    }
    windows.iter().for_each(|(tool, _)| client.until_detached(tool));
}
