//! The rules: each a pure function from the evidence to findings, with the reason of every threshold beside it.
//!
//! To add one: write it in the file of its subject, with its test, and name it in [`RULES`].

use std::collections::BTreeMap;

use super::{
    evidence::Evidence,
    finding::{Code, Finding, Severity},
};
use crate::answer::Owner;

mod connect;
mod dns;
mod drops;
mod link;
mod listen;
mod mtu;
mod ports;
mod refused;
mod tcp;
#[cfg(test)]
mod tests;

/// A rule: what it judges, which questions of [`super::gather`] must have been answered, how it judges.
struct Rule {
    code: Code,
    needs: &'static [&'static str],
    judge: fn(&Evidence) -> Vec<Finding>,
}

const fn rule(code: Code, needs: &'static [&'static str], judge: fn(&Evidence) -> Vec<Finding>) -> Rule {
    Rule { code, needs, judge }
}

const CONNECTIONS: &str = "connections";
const DNS: &str = "dns";
const DROPS: &str = "drops";
const INTERFACES: &str = "interfaces";
const SOCKETS: &str = "sockets";
const TCP: &str = "tcp";
const TRAFFIC: &str = "traffic";

/// The one list of what is judged.
const RULES: &[Rule] = &[
    rule(Code::ConntrackFull, &[DROPS], drops::conntrack_full),
    rule(Code::FirewallDrop, &[DROPS], drops::firewall_drop),
    rule(Code::NeighborUnreachable, &[DROPS], drops::neighbor_unreachable),
    rule(Code::MtuBlackHole, &[DROPS, TCP], mtu::mtu_black_hole),
    rule(Code::SynFlood, &[DROPS, SOCKETS], listen::syn_flood),
    rule(Code::ListenQueueOverflow, &[SOCKETS], listen::listen_queue_overflow),
    rule(Code::PortExhaustion, &[CONNECTIONS], ports::port_exhaustion),
    rule(Code::LinkSaturated, &[DROPS], link::link_saturated),
    rule(Code::InterfaceDrops, &[DROPS, INTERFACES], link::interface_drops),
    rule(Code::UdpReceiveBufferFull, &[DROPS], drops::udp_receive_buffer_full),
    rule(Code::NoRoute, &[CONNECTIONS], connect::no_route),
    rule(Code::Ipv6Broken, &[CONNECTIONS], connect::ipv6_broken),
    rule(Code::ConnectionRefused, &[CONNECTIONS], refused::connection_refused),
    rule(Code::ConnectTimeout, &[CONNECTIONS], connect::connect_timeout),
    rule(Code::DnsUnanswered, &[DNS], dns::dns_unanswered),
    rule(Code::DnsFailure, &[DNS], dns::dns_failure),
    rule(Code::DnsSlow, &[DNS], dns::dns_slow),
    rule(Code::Resets, &[CONNECTIONS], tcp::resets),
    rule(Code::ReceiverLimited, &[TCP], tcp::receiver_limited),
    rule(Code::SenderLimited, &[TCP], tcp::sender_limited),
    rule(Code::Retransmits, &[TCP], tcp::retransmits),
    rule(Code::HighRtt, &[TCP], tcp::high_rtt),
    rule(Code::ConnectionChurn, &[CONNECTIONS], ports::connection_churn),
    rule(Code::BandwidthHog, &[TRAFFIC], link::bandwidth_hog),
];

/// Which findings are but symptoms of another one at the same place: they are named in the cause's evidence and not
/// told a second time.
const EXPLAINS: &[(Code, &[Code])] = {
    use Code::*;
    &[
        (ConntrackFull, &[FirewallDrop, ConnectTimeout, DnsUnanswered, Retransmits, Ipv6Broken]),
        // Retransmits only where nothing gets through: a rule that lets most packets pass is told as well as the losses.
        (FirewallDrop, &[ConnectTimeout, ConnectionRefused, NoRoute, DnsUnanswered, Resets]),
        (NeighborUnreachable, &[ConnectTimeout, NoRoute, DnsUnanswered, Retransmits, Ipv6Broken]),
        (MtuBlackHole, &[Retransmits, HighRtt, InterfaceDrops]),
        (SynFlood, &[ListenQueueOverflow, ConnectTimeout, Retransmits, ConnectionChurn]),
        (ListenQueueOverflow, &[ConnectTimeout, ConnectionRefused, Retransmits, Resets, HighRtt]),
        (LinkSaturated, &[Retransmits, HighRtt, ConnectTimeout, DnsUnanswered, DnsSlow, SenderLimited, InterfaceDrops]),
        (InterfaceDrops, &[ConnectTimeout, DnsUnanswered, NeighborUnreachable]),
        (NoRoute, &[ConnectTimeout, DnsUnanswered]),
        (Ipv6Broken, &[ConnectTimeout, NoRoute, ConnectionRefused]),
        (DnsUnanswered, &[ConnectionRefused]),
        (ReceiverLimited, &[SenderLimited, Retransmits]),
    ]
};

/// Judges. `heard` says which questions were answered; what the others would have decided is not among what was
/// checked. At most `limit` findings are to be told.
pub fn judge(evidence: &Evidence, limit: usize, heard: impl Fn(&str) -> bool) -> (Vec<Finding>, Vec<Code>) {
    let (mut findings, mut checked) = (Vec::new(), Vec::new());
    for rule in RULES.iter().filter(|rule| rule.needs.iter().all(|question| heard(question))) {
        checked.push(rule.code);
        findings.extend((rule.judge)(evidence));
    }
    let mut findings = causes(findings);
    findings.sort_by_key(|finding| (finding.severity, finding.code));
    findings.iter_mut().for_each(|finding| finding.next_step = entered(finding, evidence));
    (bounded(findings, limit.div_ceil(2)), checked)
}

/// The codes that the answer to a question decides.
pub fn decided_by(question: &str) -> impl Iterator<Item = Code> {
    RULES.iter().filter(move |rule| rule.needs.contains(&question)).map(|rule| rule.code)
}

/// Takes out the symptoms whose cause was found, and notes them there.
fn causes(findings: Vec<Finding>) -> Vec<Finding> {
    let explains = |cause: &Finding, symptom: &Finding| {
        let known = EXPLAINS.iter().any(|(code, symptoms)| *code == cause.code && symptoms.contains(&symptom.code));
        let no_milder = cause.severity <= symptom.severity;
        known && no_milder && symptom.places.iter().any(|place| cause.places.iter().any(|at| at.covers(place)))
    };
    let cause_of = |symptom: &Finding| findings.iter().position(|cause| explains(cause, symptom));
    let explained: Vec<_> = findings.iter().map(cause_of).collect();
    let mut kept = findings.clone();
    for (symptom, cause) in explained.iter().enumerate().filter_map(|(i, cause)| cause.map(|cause| (i, cause))) {
        let name = serde_json::json!(findings[symptom].code);
        let noted = kept[cause].evidence.entry("explains").or_insert_with(|| serde_json::json!([]));
        if let Some(noted) = noted.as_array_mut().filter(|noted| !noted.contains(&name)) {
            noted.push(name);
        }
        affects(&mut kept[cause], &findings[symptom]);
    }
    kept.into_iter().zip(explained).filter(|(_, cause)| cause.is_none()).map(|(finding, _)| finding).collect()
}

/// Notes in the cause's evidence who has the symptom, if it is somebody else.
fn affects(cause: &mut Finding, symptom: &Finding) {
    /// They say whom to tell; more of them say no more.
    const OWNERS: usize = 3;
    let Some(owner) = symptom.evidence.get("owner").filter(|owner| cause.evidence.get("owner") != Some(owner)) else {
        return;
    };
    let noted = cause.evidence.entry("affects").or_insert_with(|| serde_json::json!([]));
    if let Some(noted) = noted.as_array_mut().filter(|noted| noted.len() < OWNERS && !noted.contains(owner)) {
        noted.push(owner.clone());
    }
}

/// The next step for a shell of the daemon's: a command about another network namespace's routes, rules or queues has to
/// run there.
fn entered(finding: &Finding, evidence: &Evidence) -> String {
    const OF_A_NAMESPACE: [&str; 5] = ["ip ", "nft ", "ping ", "sysctl ", "tc "];
    let owner = finding.evidence.get("owner").and_then(|owner| serde_json::from_value::<Owner>(owner.clone()).ok());
    let Some((owner, netns)) = owner.and_then(|owner| Some((owner.clone(), owner.netns?))) else {
        return finding.next_step.clone();
    };
    let file = evidence.netns_files.get(&netns).filter(|file| is_plain(file));
    // Whoever has a socket there is alive; the owner may be gone.
    let sockets = evidence.sockets.iter().map(|s| &s.owner).chain(evidence.listeners.iter().map(|l| &l.owner));
    let pid = sockets.filter(|owner| owner.netns == Some(netns)).find_map(|owner| owner.pid).or(owner.pid);
    let there = |line: &str| match (file, pid) {
        _ if !OF_A_NAMESPACE.iter().any(|command| line.starts_with(command)) => line.to_owned(),
        (Some(file), _) => format!("nsenter --net={file} {line}"),
        (None, Some(pid)) => format!("nsenter -t {pid} -n {line}"),
        (None, None) => format!("{line}{} in network namespace {netns}", if line.contains("  # ") { ";" } else { "  #" }),
    };
    if evidence.netns.is_none_or(|ours| ours == netns) {
        return finding.next_step.clone();
    }
    finding.next_step.lines().map(there).collect::<Vec<_>>().join("\n")
}

/// Whether a path means itself to every shell.
fn is_plain(path: &str) -> bool {
    path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b))
}

/// At most so many of one code, so that one kind of trouble does not hide the others; the last says how many more there
/// were. A host with more of one kind has one cause, and the first show it.
fn bounded(findings: Vec<Finding>, of_a_code: usize) -> Vec<Finding> {
    let mut kept: Vec<Finding> = Vec::new();
    let mut more = BTreeMap::<Code, u64>::new();
    for finding in findings {
        if kept.iter().filter(|other| other.code == finding.code).count() < of_a_code {
            kept.push(finding);
        } else {
            *more.entry(finding.code).or_default() += 1;
        }
    }
    for (code, count) in more {
        if let Some(last) = kept.iter_mut().rev().find(|finding| finding.code == code) {
            last.evidence.insert("more_findings_of_this_code".into(), count.into());
        }
    }
    kept
}

/// A warning where a figure reaches `enough`, else worth knowing only.
fn warning_from(count: u64, enough: u64) -> Severity {
    if count >= enough { Severity::Warning } else { Severity::Info }
}
