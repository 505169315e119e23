//! Time to the first answer: of a call that starts its own daemon, and of a service.

use std::{
    process::{Command, Stdio},
    time::Instant,
};

use crate::{Figure, harness::*, median};

/// Each figure is the median of this number of starts, which take turns.
const ROUNDS: usize = 11;

/// A whole process, from its start to its end, without a service: gateway, daemon, programs, a window of 100 ms.
pub fn calls() -> Vec<Figure> {
    let folder = open_folder();
    let cases = [("snapshot_interfaces", 0.2, "<= 0.2 s"), ("top_traffic", 0.6, "<= 0.6 s")];
    let mut times = [const { Vec::new() }; 2];
    for _ in 0..ROUNDS {
        for ((tool, ..), times) in cases.iter().zip(&mut times) {
            let mut command = Command::new(GATEWAY);
            command.arg("--socket").arg(folder.path().join("none")).args(["call", tool, "duration_ms=100"]);
            let begun = Instant::now();
            let output = command.env("RUST_LOG", "error").stdin(Stdio::null()).output().unwrap();
            times.push(begun.elapsed().as_secs_f64());
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    }
    let figures = cases.iter().zip(&mut times).map(|((tool, most, reach), times)| {
        figure(format!("ad hoc `call {tool} duration_ms=100`, whole process"), times, *most, reach)
    });
    figures.collect()
}

/// A service, from its start to the first answer of `status`, which waits for all tools.
pub fn load() -> Vec<Figure> {
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let begun = Instant::now();
            let daemon = Daemon::own();
            let time = begun.elapsed().as_secs_f64();
            drop(daemon);
            time
        })
        .collect();
    vec![figure("daemon: start to first answer, all tools loaded".into(), &mut times, 1.0, "<= 1.0 s")]
}

fn figure(name: String, times: &mut [f64], most: f64, reach: &'static str) -> Figure {
    let (middle, shortest, longest) = median(times);
    let measured = format!("{middle:.2} s ({shortest:.2}-{longest:.2})");
    Figure { name, measured, reach, reached: middle <= most }
}
