//! What can this server see, and what does it cost?

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BoxSession, Host, SAMPLERS, Tool};
use crate::{
    daemon::{
        kernel::{Loader, features::KernelFeature},
        session::Snapshot,
    },
    sandbox::Layer,
    wire::Error,
};

mod report;
mod sample;
mod text;

/// Reads no eBPF of its own.
pub struct Status;

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct Input {}

#[derive(Serialize, Deserialize, Debug)]
pub struct Sample {
    version: String,
    kernel: String,
    pid: u32,
    uid: u32,
    capabilities: Vec<String>,
    sandbox: Vec<Layer>,
    kernel_features: Vec<KernelFeature>,
    tools: Vec<ToolStatus>,
    memory_bytes: u64,
    uptime_s: u64,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct Output {
    pub version: String,
    // The running kernel's release.
    pub kernel: Option<String>,
    pub daemon: Daemon,
    pub gateway: Gateway,
    // What this kernel loads, found out when the daemon started: kinds of programs, and what they use.
    pub kernel_features: Vec<KernelFeature>,
    pub tools: Vec<ToolStatus>,
    // Resident memory of the daemon.
    pub memory_bytes: Option<u64>,
    // Of the daemon.
    pub uptime_s: Option<u64>,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct Daemon {
    pub connected: bool,
    // Why it is not.
    pub reason: Option<String>,
    pub version: Option<String>,
    pub pid: Option<u32>,
    pub uid: Option<u32>,
    // What it holds while it serves.
    pub capabilities: Vec<String>,
    // What it gave up before it served.
    #[schemars(with = "Vec<serde_json::Map<String, serde_json::Value>>")]
    pub sandbox: Vec<Layer>,
}

// The process that you talk to; it never holds a capability.
#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct Gateway {
    #[schemars(with = "Vec<serde_json::Map<String, serde_json::Value>>")]
    pub sandbox: Vec<Layer>,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct ToolStatus {
    pub name: String,
    pub available: bool,
    // Why not: the program, what it needs, the errno, and whether the kernel is too old or refuses it by policy.
    pub reason: Option<String>,
    // Windows that are open now: measurements under way.
    pub windows: usize,
    // Programs that are attached now.
    pub links: Vec<String>,
    // Those that ran while the kernel counted, which it does while the sysctl kernel.bpf_stats_enabled is 1.
    pub programs: Vec<Program>,
    // Capabilities that this kernel wants for it while serving.
    pub keeps: Vec<String>,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct Program {
    pub name: String,
    pub run_count: u64,
    pub run_time_ns: u64,
}

impl Tool for Status {
    const NAME: &'static str = "status";
    const TITLE: &'static str = "What this server can see, and its cost";
    const WHEN: &'static str = "a tool is unavailable, or an answer has limits";
    const DESCRIPTION: &'static str = "Lists which tools work on this host, why others do not, the daemon's \
        privileges, and the eBPF programs attached now with their cost. Costs nothing; call it if a tool is \
        unavailable or an answer has limits.";
    const OPEN_WORLD: bool = false;
    type Input = Input;
    type Sample = Sample;
    type Output = Output;

    fn load(_: &mut Loader) -> Result<Self, Error> {
        Ok(Status)
    }

    fn open<'a>(&'a self, _: Input, host: &'a Host) -> Result<BoxSession<'a, Sample>, Error> {
        Ok(Box::new(Snapshot(move || Ok(sample::sample(host)))))
    }

    fn merge(_: Sample, later: Sample) -> Sample {
        later
    }

    /// It says of every tool what was loaded.
    fn asks() -> Vec<&'static str> {
        SAMPLERS.iter().map(|sampler| sampler.name).filter(|name| *name != Self::NAME).collect()
    }

    fn duration(_: &Input) -> Duration {
        Duration::ZERO
    }

    fn report(_: Input, sample: Sample) -> Output {
        report::report(sample)
    }

    fn text(output: &Output) -> String {
        text::text(output)
    }

    fn without_daemon(reason: &str) -> Option<Output> {
        Some(report::without_daemon(reason))
    }
}

#[cfg(test)]
mod tests;
