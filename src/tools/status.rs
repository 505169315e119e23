//! What can this server see, and what does it cost?

use std::{fs, sync::atomic::Ordering, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Host, QUESTIONS, Tool};
use crate::{answer, bpf::Loader, sandbox::{self, Layer}, untrusted, window::Window, wire::Error};

/// Reads no eBPF of its own.
pub struct T;

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
    /// What it gave up before it served.
    pub sandbox: Vec<Layer>,
}

/// The process that you talk to; it never holds a capability.
#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct Gateway {
    pub sandbox: Vec<Layer>,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct ToolStatus {
    pub name: String,
    pub available: bool,
    /// Why not, and which kernel or right it wants.
    pub reason: Option<String>,
    // Windows that are open now: measurements under way.
    pub windows: usize,
    /// Programs that are attached now.
    pub links: Vec<String>,
    pub programs: Vec<Program>,
    /// Capabilities that this kernel wants for it while serving.
    pub keeps: Vec<String>,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct Program {
    pub name: String,
    /// 0 unless the sysctl kernel.bpf_stats_enabled is 1.
    pub run_count: u64,
    pub run_time_ns: u64,
}

impl Tool for T {
    const NAME: &'static str = "status";
    const TITLE: &'static str = "What this server can see, and its cost";
    const DESCRIPTION: &'static str = "Says which tools work on this host and why others do not, which privileges the daemon holds, what is attached \
        to the kernel now and what it has cost. Costs nothing; ask it when a tool is unavailable or an answer names limits.";
    const NEEDS: &'static str = "nothing";
    const OPEN_WORLD: bool = false;
    type Input = Input;
    type Sample = Sample;
    type Output = Output;

    fn load(_: &mut Loader) -> Result<Self, Error> {
        Ok(T)
    }

    fn sample(&self, _: &Input, host: &Host, _: &Window) -> Result<Sample, Error> {
        Ok(Sample {
            version: env!("CARGO_PKG_VERSION").into(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            pid: std::process::id(),
            uid: rustix::process::geteuid().as_raw(),
            capabilities: sandbox::held(),
            sandbox: sandbox::layers(),
            tools: host.tools().map(|(name, tool, reason)| tool_status(name, tool, reason)).collect(),
            memory_bytes: resident_bytes(),
            uptime_s: host.started.elapsed().as_secs(),
        })
    }

    fn duration(_: &Input) -> Duration {
        Duration::ZERO
    }

    fn report(_: Input, sample: Sample) -> Output {
        Output {
            version: env!("CARGO_PKG_VERSION").into(),
            kernel: Some(sample.kernel),
            daemon: Daemon {
                connected: true,
                reason: None,
                version: Some(sample.version),
                pid: Some(sample.pid),
                uid: Some(sample.uid),
                capabilities: sample.capabilities,
                sandbox: sample.sandbox,
            },
            gateway: Gateway { sandbox: sandbox::layers() },
            tools: sample.tools,
            memory_bytes: Some(sample.memory_bytes),
            uptime_s: Some(sample.uptime_s),
        }
    }

    fn text(output: &Output) -> String {
        let d = &output.daemon;
        let mut text = match (&d.reason, output.memory_bytes) {
            (Some(reason), _) => format!("netmon-mcp {}; no daemon: {reason}\n\n", output.version),
            (None, memory) => format!(
                "netmon-mcp {} on Linux {}; netmond pid {} uid {}, capabilities: {}, {} resident, up {} s\n\n",
                output.version,
                output.kernel.as_deref().unwrap_or("?"),
                answer::or_dash(&d.pid),
                answer::or_dash(&d.uid),
                if d.capabilities.is_empty() { "none".into() } else { d.capabilities.join(" ") },
                answer::bytes(memory.unwrap_or_default()),
                answer::or_dash(&output.uptime_s),
            ),
        };
        for (process, layers) in [("netmond", &d.sandbox), ("netmon-mcp", &output.gateway.sandbox)] {
            for layer in layers.iter().filter(|layer| !layer.applied) {
                text += &format!("{process}: {} is not applied: {}\n", layer.name, layer.detail);
            }
        }
        text += &answer::table(
            ["tool", "available", ">links", ">runs", ">ns a run", "why not"],
            output.tools.iter().map(|tool| {
                let (runs, ns) = tool.programs.iter().fold((0, 0), |(runs, ns), p| (runs + p.run_count, ns + p.run_time_ns));
                let cost = ns.checked_div(runs).map_or_else(|| "-".into(), |ns| ns.to_string());
                let available = if tool.available { "yes" } else { "no" };
                [tool.name.clone(), available.into(), tool.links.len().to_string(), runs.to_string(), cost, or_empty(&tool.reason)]
            }),
        );
        untrusted::lines(&text)
    }

    fn without_daemon(reason: &str) -> Option<Output> {
        let unavailable = |name: &str| ToolStatus {
            name: name.into(),
            available: false,
            reason: Some("no daemon".into()),
            windows: 0,
            links: vec![],
            programs: vec![],
            keeps: vec![],
        };
        Some(Output {
            version: env!("CARGO_PKG_VERSION").into(),
            kernel: Some(rustix::system::uname().release().to_string_lossy().into_owned()),
            daemon: Daemon { connected: false, reason: Some(reason.into()), version: None, pid: None, uid: None, capabilities: vec![], sandbox: vec![] },
            gateway: Gateway { sandbox: sandbox::layers() },
            tools: QUESTIONS.iter().map(|question| unavailable(question.name)).collect(),
            memory_bytes: None,
            uptime_s: None,
        })
    }
}

fn or_empty(text: &Option<String>) -> String {
    text.clone().unwrap_or_default()
}

fn tool_status(name: &str, tool: &super::Loaded, reason: Option<&str>) -> ToolStatus {
    let mut keeps: Vec<_> = tool.keeps.iter().map(ToString::to_string).collect();
    keeps.sort();
    ToolStatus {
        name: name.into(),
        available: reason.is_none(),
        reason: reason.map(str::to_owned),
        windows: tool.windows.load(Ordering::Relaxed),
        links: tool.programs.iter().flat_map(|p| vec![p.name().to_owned(); p.links()]).collect(),
        programs: tool
            .programs
            .iter()
            .map(|p| {
                let (run_count, run_time_ns) = p.cost().unwrap_or_default();
                Program { name: p.name().into(), run_count, run_time_ns }
            })
            .collect(),
        keeps,
    }
}

/// The second field of statm is the resident set, in pages.
fn resident_bytes() -> u64 {
    let pages: u64 = fs::read_to_string("/proc/self/statm").ok().and_then(|statm| statm.split(' ').nth(1)?.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_daemon_it_says_why() {
        let output = T::without_daemon("it is not running").unwrap();
        assert!(!output.daemon.connected && output.tools.iter().all(|tool| !tool.available));
        assert!(T::text(&output).contains("no daemon: it is not running"));
    }
}
