//! What is wrong with this host's network, if anything? Every other tool watches the same window, and the [`rules`]
//! judge what they saw.
//!
//! ```text
//!            questions which tool is asked what
//!   daemon   sample    asks them, side by side
//!   gateway  read      their samples → their outputs → evidence
//!            rules     evidence → findings, causes before symptoms
//! ```

use std::{collections::HashMap, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    BoxSession, Host, Tool,
    past::{Extent, Samples},
};
use crate::{
    answer::{self, Limit, Measured, WindowMs},
    daemon::kernel::{Loader, Optional, feature::Feature},
    filter::{AddressRange, Comm, Pid, Port},
    owner::Throttled,
    wire::Error,
};

mod asked;
mod census;
mod close_wait;
mod conntrack;
mod control;
mod coverage;
mod differences;
mod evidence;
mod fabric;
mod finding;
mod gone;
mod heard;
mod held_requests;
pub mod identity;
mod judgement;
mod narrow;
mod network;
mod ospf;
pub mod parts;
mod past;
mod paths;
mod questions;
mod queues;
mod reach;
mod read;
mod receive_window;
mod report;
mod resolvers;
mod rules;
mod sample;
mod shown;
mod silent;
mod sockets;
mod text;
mod wants;

use census::Census;
pub use finding::{Code, Finding, HostPort, Severity};
use judgement::Judgement;
use network::Network;
use questions::Replies;
pub use rules::{codes, explains};
use shown::Severities;

/// The default `limit` of findings: this many stay under 8 KB.
const FINDINGS: usize = 6;

/// Reads the links of all network namespaces by itself, or knows why it cannot.
pub struct Diagnose(Result<Census, String>);

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// The fault must occur in it.
    #[serde(default)]
    duration_ms: WindowMs<10_000>,
    #[serde(default)]
    process: Option<Comm>,
    #[serde(default)]
    pid: Option<Pid>,
    #[serde(default)]
    remote: Option<AddressRange>,
    #[serde(default)]
    port: Option<Port>,
    /// Inode.
    #[serde(default)]
    netns: Option<u32>,
    #[serde(default)]
    unit: Option<String>,
    #[serde(default)]
    container: Option<String>,
    /// Findings.
    #[serde(default)]
    limit: Limit<FINDINGS>,
}

/// The raw samples of the tools.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Sample {
    heard: Replies,
    /// Entries of the fullest table of tracked connections, and how many there may be.
    conntrack: Option<(u64, u64)>,
    /// Links, addresses, neighbors and routes of all network namespaces.
    #[serde(default)]
    network: Option<Network>,
    /// Why there is nothing of them.
    #[serde(default)]
    network_error: String,
    /// The daemon's network namespace.
    netns: u32,
    /// The files of the network namespaces that have one, by inode.
    #[serde(default)]
    netns_files: HashMap<u32, String>,
    /// Entries that connection tracking could not insert in the window, the most of any namespace.
    #[serde(default)]
    clashes: u64,
    #[serde(default)]
    throttled: Vec<Throttled>,
    #[serde(default)]
    resolvers: Vec<resolvers::Resolvers>,
    /// The client asked for the answer before the window was over.
    #[serde(default)]
    ended_early: bool,
    window_ns: u64,
    /// When netmond began to read the window, by CLOCK_MONOTONIC; 0 = unknown.
    #[serde(default)]
    ended_ns: u64,
    /// In a recording: what the rules found in the window. Then the sample has nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    judged: Option<Box<Judgement>>,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct Output {
    /// false: a finding is above info. null: none is, but some checks ran less than 2 s.
    pub healthy: Option<bool>,
    pub checks: Checks,
    // The caller ended the window before its time.
    pub ended_early: bool,
    /// Causes before symptoms.
    pub findings: Vec<Finding>,
    // Every code that was judged.
    #[schemars(with = "Vec<String>")]
    pub checked: Vec<Code>,
    /// What was unavailable.
    pub blind_spots: Vec<String>,
    pub measured: Measured,
    /// Of all findings, shown or not.
    #[serde(skip)]
    severities: Severities,
    /// A tool gave no answer, and `status` says why.
    #[serde(skip)]
    tool_missing: bool,
    /// How many findings have their evidence in the text.
    #[serde(skip)]
    detailed: usize,
}

// The share of the checks that could run.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq)]
#[schemars(inline)]
pub struct Checks {
    // With all the data that they need: no tool unavailable, no event lost, no row cut.
    pub judged: usize,
    pub total: usize,
}

impl Tool for Diagnose {
    const NAME: &'static str = "diagnose";
    const TITLE: &'static str = "Find what is wrong with the network";
    const WHEN: &'static str = "something fails or is slow, cause unknown";
    const DESCRIPTION: &'static str = "Finds what is wrong with this host's network. Watches everything for 10 s; \
        returns findings, worst first, with evidence and next steps, and how many checks ran. Call it first, while \
        something fails or is slow.";
    const FEATURES: &'static [Feature] = &[Feature::TracepointBtf, Feature::IterateMaps, Feature::Loop];
    const OPTIONAL: &'static [Optional] = &[
        Optional {
            programs: &["networks"],
            needs: &[Feature::Loop],
            lacks: Some((answer::Code::NetworksUnread, "Links, addresses, neighbors and routes are unavailable")),
        },
        Optional {
            programs: &["packet_arrives", "neighbor_learned", "packet_leaves"],
            needs: &[],
            lacks: Some((answer::Code::ClaimsNotSeen, "Address claims on links, DHCP and OSPF are unavailable")),
        },
    ];
    type Input = Input;
    type Sample = Sample;
    type Output = Output;

    /// The other checks run without its own programs.
    fn load(loader: &mut Loader) -> Result<Self, Error> {
        Ok(Diagnose(Census::load(loader).map_err(|e| e.to_string())))
    }

    fn asks() -> Vec<&'static str> {
        asked::ASKED.iter().map(|asked| asked.tool).collect()
    }

    fn open<'a>(&'a self, input: Input, host: &'a Host) -> Result<BoxSession<'a, Sample>, Error> {
        Ok(Box::new(sample::Diagnosis::open(host, self.0.as_ref(), input.duration_ms.duration())?))
    }

    fn merge(earlier: Sample, later: Sample) -> Sample {
        report::merge(earlier, later)
    }

    fn recall(input: Input, past: &mut Samples<'_, Sample>, extent: Extent) -> Result<Output, Error> {
        past::recall(&input, past, extent.is_whole)
    }

    fn duration(input: &Input) -> Duration {
        input.duration_ms.duration()
    }

    fn report(input: Input, sample: Sample) -> Output {
        report::report(&input, sample)
    }

    /// First the lists of skipped checks, which `checked` has as well; then the evidence in the text, of the last. Never
    /// the worst finding.
    fn shorten(output: &mut Output) -> bool {
        if coverage::shorten(&mut output.blind_spots) {
            return true;
        }
        if output.detailed > 1 && text::text(output).len() > crate::limits::TEXT_UNASKED {
            output.detailed = output.detailed.min(output.findings.len()) - 1;
            return true;
        }
        let cut = shown::shorten(&mut output.findings);
        output.measured.rows_cut += u64::from(cut);
        cut
    }

    fn text(output: &Output) -> String {
        text::text(output)
    }
}

#[cfg(test)]
mod tests;
