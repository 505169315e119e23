//! What is wrong with this host's network, if anything? Every other tool watches the same window, and the [`rules`]
//! judge what they saw.
//!
//! ```text
//!   daemon   gather    asks the other tools, side by side
//!   gateway  read      their samples → their outputs → evidence
//!            rules     evidence → findings, causes before symptoms
//! ```

use std::{collections::HashMap, fmt::Write, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Host, Tool};
use crate::{
    answer::{Limit, Measured, WindowMs},
    attribution::{netns_files, own_netns},
    bpf::Loader,
    window::Window,
    wire::Error,
};

mod conntrack;
mod evidence;
mod finding;
mod gather;
mod paths;
mod read;
mod rules;
mod text;

use finding::{Code, Finding, Severity};

/// Reads no eBPF of its own.
pub struct T;

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Default 10000. A fault must show within it; retries of a connect are seconds apart.
    #[serde(default = "ten_seconds")]
    duration_ms: WindowMs,
    /// Findings; default 6.
    #[serde(default = "six")]
    limit: Limit,
}

fn ten_seconds() -> WindowMs {
    WindowMs::new(10_000)
}

/// So that an answer stays under 8 KB.
fn six() -> Limit {
    Limit::new(6)
}

/// What each tool said, as it said it.
#[derive(Serialize, Deserialize, Debug)]
pub struct Sample {
    heard: gather::Heard,
    /// Entries of the fullest table of tracked connections, and how many there may be.
    conntrack: Option<(u64, u64)>,
    /// The daemon's network namespace.
    netns: u32,
    /// The files of the network namespaces that have one, by inode.
    #[serde(default)]
    netns_files: HashMap<u32, String>,
    window_ns: u64,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct Output {
    /// Something was checked, and nothing worse than info was seen.
    pub healthy: bool,
    /// Worst first, causes before symptoms.
    pub findings: Vec<Finding>,
    // Every code that was judged.
    pub checked: Vec<Code>,
    /// What could not be seen.
    pub blind_spots: Vec<String>,
    pub measured: Measured,
}

impl Tool for T {
    const NAME: &'static str = "diagnose";
    const TITLE: &'static str = "Find what is wrong with the network";
    const DESCRIPTION: &'static str = "What is wrong with this host's network, if anything? Watches everything for 10 s and returns ranked findings with \
        evidence (process, endpoint, figures) and next steps, or that nothing is wrong. Ask it first when something fails or is slow, while it does.";
    type Input = Input;
    type Sample = Sample;
    type Output = Output;

    fn load(_: &mut Loader) -> Result<Self, Error> {
        Ok(T)
    }

    fn sample(&self, input: &Input, host: &Host, window: &Window) -> Result<Sample, Error> {
        let (heard, length) = gather::gather(host, window, input.duration_ms.duration())?;
        let window_ns = length.as_nanos() as u64;
        Ok(Sample { heard, conntrack: conntrack::fullest(), netns: own_netns(), netns_files: netns_files(), window_ns })
    }

    fn duration(input: &Input) -> Duration {
        input.duration_ms.duration()
    }

    fn report(input: Input, sample: Sample) -> Output {
        let window = Duration::from_nanos(sample.window_ns);
        let asked = input.duration_ms.duration();
        let read::Read { mut evidence, heard, blind_spots, lost_events } = read::read(&sample.heard, asked, window);
        evidence.netns = Some(sample.netns).filter(|netns| *netns != 0);
        evidence.netns_files = sample.netns_files;
        evidence.conntrack_is_full = sample.conntrack.is_some_and(conntrack::is_full);
        let (mut findings, checked) = rules::judge(&evidence, input.limit.rows(), |question| heard.contains(question));
        let rows_cut = findings.len().saturating_sub(input.limit.rows()) as u64;
        findings.truncate(input.limit.rows());
        let measured = Measured { lost_events, rows_cut, ..Measured::window(window) };
        let healthy = !checked.is_empty() && findings.iter().all(|finding| finding.severity == Severity::Info);
        Output { healthy, findings, checked, blind_spots, measured }
    }

    /// Never the worst.
    fn shorten(output: &mut Output) -> bool {
        let cut = output.findings.len() > 1 && output.findings.pop().is_some();
        output.measured.rows_cut += u64::from(cut);
        cut
    }

    fn text(output: &Output) -> String {
        let mut text = text::verdict(output);
        for finding in &output.findings {
            let _ = write!(text, "\n{}", text::finding(finding));
        }
        text + &text::blind_spots(output)
    }
}
