//! What the daemon knows of itself.

use std::fs;

use super::{Program, Sample, ToolStatus};
use crate::{
    daemon::{
        host::{Host, Loaded},
        kernel,
    },
    sandbox,
};

/// What the daemon is, and what it has loaded.
pub fn sample(host: &Host) -> Sample {
    Sample {
        version: env!("CARGO_PKG_VERSION").into(),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        pid: std::process::id(),
        uid: rustix::process::geteuid().as_raw(),
        capabilities: sandbox::held(),
        sandbox: sandbox::layers(),
        kernel_features: host.features().list(),
        tools: host.tools().map(|(name, windows, loaded)| tool_status(name, windows, loaded)).collect(),
        memory_bytes: resident_bytes(),
        uptime_s: host.started.elapsed().as_secs(),
    }
}

fn tool_status(name: &str, windows: usize, loaded: Option<&Loaded>) -> ToolStatus {
    let programs = loaded.map_or(&[][..], |loaded| &loaded.programs);
    let mut keeps: Vec<_> = loaded.iter().flat_map(|loaded| &loaded.keeps).map(ToString::to_string).collect();
    keeps.sort();
    let cost = |p: &kernel::Program| {
        let (run_count, run_time_ns) = p.cost().ok().filter(|(runs, _)| *runs > 0)?;
        Some(Program { name: p.name().into(), run_count, run_time_ns })
    };
    let reason = loaded.map_or(Some("still loading"), Loaded::reason);
    ToolStatus {
        name: name.into(),
        available: reason.is_none(),
        reason: reason.map(str::to_owned),
        windows,
        links: programs.iter().flat_map(|p| vec![p.name().to_owned(); p.links()]).collect(),
        programs: programs.iter().filter_map(cost).collect(),
        keeps,
    }
}

/// The second field of statm is the resident set, in pages.
fn resident_bytes() -> u64 {
    let pages: u64 = fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|statm| statm.split(' ').nth(1)?.parse().ok())
        .unwrap_or(0);
    pages * rustix::param::page_size() as u64
}
