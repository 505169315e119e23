//! `trace_latency`: its cost. A window also has the kernel stamp what arrives.

use netmon_mcp::daemon::stamping::Stamping;
use serde_json::json;

use crate::{
    Figure, cost,
    floor::{Empty, TRACEPOINTS_OF_LATENCY},
    harness::*,
    workload::{Close, Load},
};

type Case = (&'static str, fn(&Pair) -> Load, (f64, &'static str));

pub fn cost() -> Vec<Figure> {
    let closes: fn(&Pair) -> Load = |pair| Load::connects(pair.clone(), Close::Fin);
    let loads: [Case; 4] = [
        ("TCP request/response", Load::tcp_requests, (1.05, "<= 1.05")),
        ("TCP 64 KiB over veth", Load::tcp_bulk, (1.05, "<= 1.05")),
        ("UDP request/response", Load::udp_requests, (1.05, "<= 1.05")),
        ("connect + accept + close by FIN", closes, (1.05, "<= 1.05")),
    ];
    let compare = |(what, load, reach): Case| {
        let (pair, daemon) = (Pair::new(), Daemon::start());
        let (name, windows) =
            (format!("{what}, CPU, trace_latency open / not"), [("trace_latency", json!({"duration_ms": 60_000}))]);
        let ours = cost::ratio(&name, &daemon, &windows, load(&pair), reach);
        let floor = format!("… {what}, an empty program at its tracepoints, and stamps");
        let empty = || (Empty::trace(TRACEPOINTS_OF_LATENCY), Stamping::begin().unwrap());
        [ours, cost::compare(&floor, load(&pair), (0.0, "-"), empty, drop)]
    };
    loads.into_iter().flat_map(compare).collect()
}
