//! From what the tools said to the findings, and whether the host is healthy.

use std::time::Duration;

use super::{
    Checks, Code, Finding, Input, Output, Sample,
    asked::{self, ASKED, Read},
    conntrack,
    coverage::SKIPPED,
    heard::Heard,
    network::Network,
    rules,
    shown::{self, Severities},
};
use crate::{
    answer::{Measured, count},
    owner::Throttled,
    tools::profile_tcp::Service,
};

/// What the rules found in one sample, and how much of it they saw.
pub struct Judged {
    pub findings: Vec<Finding>,
    pub checked: Vec<Code>,
    pub blind_spots: Vec<String>,
    pub lost_events: u64,
    /// A tool gave no answer, and `status` says why.
    pub tool_missing: bool,
    /// How long servers took to reply, for the next window.
    pub services: Vec<Service>,
}

/// Judges a sample. `asked` is the window that was asked for.
pub fn judge(asked: Duration, sample: Sample) -> Judged {
    judge_after(Vec::new(), asked, sample)
}

/// The same, with what is known of the window before.
pub fn judge_after(before: Vec<Service>, asked: Duration, sample: Sample) -> Judged {
    let window = Duration::from_nanos(sample.window_ns);
    let Read { mut evidence, mut heard, blind_spots, lost_events } = asked::read(&sample.heard, asked, window);
    evidence.netns = Some(sample.netns).filter(|netns| *netns != 0);
    // Interfaces are of our own.
    evidence.at_home =
        std::mem::take(&mut evidence.at_home).into_iter().map(|(at, netns)| (at, netns.or(evidence.netns))).collect();
    evidence.netns_files = sample.netns_files;
    evidence.resolvers = sample.resolvers;
    evidence.throttled = sample.throttled;
    evidence.clashes = sample.clashes;
    evidence.services_before = before;
    let mut blind_spots = blind_spots;
    let network = network(sample.network, sample.network_error, &mut heard, &mut blind_spots);
    evidence.network = network;
    evidence.conntrack_is_full = sample.conntrack.is_some_and(conntrack::is_full);
    let (findings, checked) = rules::judge(&evidence, &heard);
    let tool_missing = ASKED.iter().any(|asked| !heard.any(asked.name));
    Judged { findings, checked, blind_spots, lost_events, tool_missing, services: evidence.services }
}

/// The answer.
pub fn report(input: &Input, sample: Sample) -> Output {
    let (asked, window) = (input.duration_ms.duration(), Duration::from_nanos(sample.window_ns));
    let ended_early = sample.ended_early;
    let mut judged = judge(asked, sample);
    judged.findings.retain(|finding| input.wants(finding));
    let mut output = output(input, judged, Measured::window(window));
    output.ended_early = ended_early;
    output.healthy = output.healthy(asked);
    output
}

/// The answer, without saying whether the host is healthy.
pub fn output(input: &Input, judged: Judged, measured: Measured) -> Output {
    let Judged { findings, checked, blind_spots, lost_events, tool_missing, services: _ } = judged;
    let (severities, all) = (Severities::of(&findings), findings.len());
    let findings = shown::first(findings, input.limit.rows());
    let rows_cut = (all - findings.len()) as u64;
    Output {
        healthy: None,
        checks: Checks { judged: checked.len(), total: rules::count() },
        ended_early: false,
        findings,
        checked,
        blind_spots,
        measured: Measured { lost_events, rows_cut, ..measured },
        severities,
        tool_missing,
        detailed: usize::MAX,
    }
}

/// The state of the network as evidence, and what it lacks.
fn network(network: Option<Network>, error: String, heard: &mut Heard, blind_spots: &mut Vec<String>) -> Network {
    let lacks: Vec<_> = match &network {
        None => vec![error],
        Some(network) => {
            let cut = (network.cut > 0)
                .then(|| count(network.cut, "network object was not read", "network objects were not read"));
            let blind = network.lacks.iter().filter(|limit| limit.code.blinds());
            blind.map(|limit| limit.text.trim_end_matches('.').to_owned()).chain(cut).collect()
        }
    };
    let codes = || rules::decided_by(rules::NETWORK).map(|code| code.to_string()).collect::<Vec<_>>().join(", ");
    blind_spots.extend(lacks.iter().map(|lack| format!("network: {lack}{SKIPPED}{}", codes())));
    if let Some(network) = &network {
        let told = network.lacks.iter().filter(|limit| !limit.code.blinds());
        blind_spots.extend(told.map(|limit| format!("network: {limit}")));
        heard.insert(rules::NETWORK, lacks.is_empty());
    }
    network.unwrap_or_default()
}

/// What every tool said of both periods.
pub fn merge(mut earlier: Sample, later: Sample) -> Sample {
    let mut heard = later.heard;
    for asked in ASKED {
        let both = earlier.heard.remove(asked.name).zip(heard.remove(asked.name));
        heard.extend(both.map(|(before, after)| (asked.name.into(), before.merge(asked, after))));
    }
    Sample {
        heard,
        network: match (earlier.network, later.network) {
            (Some(before), Some(after)) => Some(before.then(after, Duration::from_nanos(earlier.window_ns))),
            _ => None,
        },
        conntrack: earlier.conntrack.max(later.conntrack),
        clashes: earlier.clashes + later.clashes,
        throttled: Throttled::merge(earlier.throttled, later.throttled),
        netns_files: earlier.netns_files.into_iter().chain(later.netns_files).collect(),
        window_ns: earlier.window_ns + later.window_ns,
        ..later
    }
}

/// In a shorter window a fault need not show: a connect without an answer is tried again after 1 s.
const LONG_ENOUGH: Duration = Duration::from_secs(2);

impl Output {
    /// Whether the host is healthy; `None` where that was not seen. `asked` is the window that the caller asked for:
    /// attaching takes the first milliseconds of it.
    pub fn healthy(&self, asked: Duration) -> Option<bool> {
        let whole = asked >= LONG_ENOUGH && !self.ended_early;
        match (self.severities.above_info(), self.checks.judged == self.checks.total && whole) {
            (0, true) => Some(true),
            (0, false) => None,
            _ => Some(false),
        }
    }
}
