//! `make bench`: the cost, accuracy, latency and size of measuring. Figures are medians, costs are ratios against a
//! baseline from the same interleaved run: the machine may be shared and noisy.
//!
//! `make bench` runs everything, `cargo bench -- NAME...` the named benchmarks. `price` compares with another
//! build, whose folder `NETMON_BEFORE` names.

// A test that cannot continue fails.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

#[allow(dead_code)] // only a part of the suite's harness is used
#[path = "../suite/harness/mod.rs"]
mod harness;
#[allow(dead_code)]
#[path = "../suite/http_harness.rs"]
mod http_harness;

mod ad_hoc;
mod before;
mod callers;
mod connections;
mod cost;
mod delays;
mod first_light;
mod fixed;
mod flood;
mod floor;
mod latency;
mod peers;
mod recorded;
mod recording;
mod remote;
mod sockets;
mod workload;

/// Many times the duration of all benchmarks.
const TIME_LIMIT: std::time::Duration = std::time::Duration::from_secs(3 * 60 * 60);

/// A figure: its name, its value, its target.
pub struct Figure {
    pub name: String,
    pub measured: String,
    pub reach: &'static str,
    pub reached: bool,
}

type Benchmark = (&'static str, fn() -> Vec<Figure>);

const BENCHMARKS: &[Benchmark] = &[
    ("incoming-cost", first_light::incoming_cost),
    ("incoming-accuracy", first_light::accuracy),
    ("overhead", first_light::overhead),
    ("connects", first_light::connects),
    ("connections-cost", connections::cost),
    ("connections-diagnosed", connections::diagnosed),
    ("connections-lost", connections::lost),
    ("together", flood::together),
    ("scan", flood::scan),
    ("start", first_light::start),
    ("ad-hoc", ad_hoc::calls),
    ("load", ad_hoc::load),
    ("memory", first_light::memory),
    ("traffic-cost", sockets::traffic_cost),
    ("latency-cost", latency::cost),
    ("delays", delays::stages),
    ("recording-cost", recording::cost),
    ("recording-dns", recording::dns),
    ("recording-always", recording::always),
    ("recorded-day", recorded::day),
    ("recorded-week", recorded::week),
    ("price", before::price),
    ("many-sockets", sockets::many_sockets),
    ("remote-latency", remote::latency),
    ("remote-throughput", remote::throughput),
    ("remote-memory", remote::sessions),
];

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("--hold") => return sockets::hold(),
        Some("--relay") => return remote::relay(),
        Some("--fixed") => return fixed::serve(&std::env::args().skip(2).collect::<Vec<_>>()),
        _ => {}
    }
    harness::require_root();
    let named: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let known: Vec<_> = BENCHMARKS.iter().map(|(name, _)| *name).collect();
    if let Some(unknown) = named.iter().find(|name| !known.contains(&name.as_str())) {
        eprintln!("no benchmark is named {unknown}; there are: {}", known.join(", "));
        std::process::exit(2);
    }
    println!("{:<58} {:>26}  {:<24}", "figure", "measured", "to reach");
    for (name, benchmark) in BENCHMARKS {
        if named.is_empty() || named.iter().any(|n| n == name) {
            for figure in benchmark() {
                let verdict = if figure.reached { "" } else { "  NOT REACHED" };
                // A long name gets a line of its own.
                let name = if figure.name.len() > 58 {
                    println!("{}", figure.name);
                    ""
                } else {
                    &figure.name
                };
                println!("{name:<58} {:>26}  {:<24}{verdict}", figure.measured, figure.reach);
            }
        }
    }
}

/// The median of some figures, with minimum and maximum.
pub fn median(figures: &mut [f64]) -> (f64, f64, f64) {
    figures.sort_by(f64::total_cmp);
    (figures[figures.len() / 2], figures[0], figures[figures.len() - 1])
}
