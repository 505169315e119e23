//! The cost of windows against another build, in turns. `NETMON_BEFORE` is the folder of that build's two programs.

use std::{
    cell::RefCell,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::json;

use crate::{
    Figure, cost,
    harness::*,
    median,
    workload::{Close, Load},
};

/// A daemon of one build, and its client.
struct Build {
    client: RefCell<Client>,
    _daemon: Ended,
    _folder: tempfile::TempDir,
}

impl Build {
    fn start(folder: &Path) -> Build {
        let place = open_folder();
        let socket = place.path().join("netmond.sock");
        let mut command = Command::new(folder.join("netmond"));
        command.arg("--socket").arg(&socket).args(["--group", GROUP]).env("RUST_LOG", "warn").stdin(Stdio::null());
        let daemon = Ended(command.spawn().unwrap());
        until("netmond serves", || ask(&socket, "{\"version\":2,\"tool\":\"status\",\"input\":{}}").ok());
        let mut gateway = Command::new(folder.join("netmon-mcp"));
        gateway.arg("--socket").arg(&socket);
        Build { client: RefCell::new(Client::connect_to(gateway)), _daemon: daemon, _folder: place }
    }
}

/// Begins a load.
type Begin = fn(&Pair) -> Load;

pub fn price() -> Vec<Figure> {
    let Some(folder) = std::env::var_os("NETMON_BEFORE") else { return Vec::new() };
    let (now, before) = (Build::start(Path::new(DAEMON).parent().unwrap()), Build::start(Path::new(&folder)));
    let closes: Begin = |pair| Load::connects(pair.clone(), Close::Fin);
    let loads: [(&str, &[&str], Begin); 11] = [
        ("TCP request/response", &["profile_tcp"], Load::tcp_requests),
        ("TCP 64 KiB over veth", &["profile_tcp"], Load::tcp_bulk),
        ("connect + accept + close by FIN", &["profile_tcp"], closes),
        ("TCP request/response", &["trace_latency"], Load::tcp_requests),
        ("TCP 64 KiB over veth", &["top_traffic"], Load::tcp_bulk),
        ("TCP request/response", &["top_traffic"], Load::tcp_requests),
        ("UDP request/response", &["top_traffic"], Load::udp_requests),
        ("connect + accept + close by FIN", &["top_traffic"], closes),
        ("connect + accept + close by FIN", &["trace_connections"], closes),
        ("connect + accept + close by FIN", &["diagnose"], closes),
        ("TCP request/response", &["profile_tcp", "trace_dns", "trace_drops"], Load::tcp_requests),
    ];
    loads.into_iter().map(|(name, tools, load)| compare(name, tools, load(&Pair::new()), &now, &before)).collect()
}

fn compare(name: &str, tools: &[&str], mut load: Load, now: &Build, before: &Build) -> Figure {
    let windows: Vec<_> = tools.iter().map(|tool| (*tool, json!({"duration_ms": 60_000}))).collect();
    let open = |build: &Build| cost::open(&mut build.client.borrow_mut(), &windows);
    let close = |build: &Build, ids| cost::close(&mut build.client.borrow_mut(), &windows, ids);
    let of_before = RefCell::new(open(before));
    let on = || {
        close(before, of_before.take());
        open(now)
    };
    let off = |ids| {
        close(now, ids);
        of_before.replace(open(before));
    };
    let turns = cost::turns(cost::ROUNDS, &mut load, on, off);
    close(before, of_before.take());
    let (mut with, mut without): (Vec<_>, Vec<_>) = turns.iter().copied().unzip();
    let mut ratios: Vec<f64> = turns.iter().map(|(now, before)| now / before).collect();
    let [now, before] = [&mut with, &mut without].map(|ns| median(ns).0 / 1e3);
    let (middle, least, most) = median(&mut ratios);
    Figure {
        name: format!("{name}, CPU, {} open, this build / the one before", tools.join(" + ")),
        measured: format!("{now:.2} / {before:.2} µs = {middle:.3} ({least:.2}-{most:.2})"),
        reach: "-",
        reached: true,
    }
}
