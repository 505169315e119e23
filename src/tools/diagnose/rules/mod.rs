//! The rules: each a pure function from the evidence to findings, with the reason of every threshold beside it.
//!
//! To add one: write it in the file of its subject, with its test, name it in [`RULES`], and describe it in
//! `docs/diagnose.md`.

use super::{
    evidence::Evidence,
    finding::{Code, Finding, HostPort, Severity},
    heard::Heard,
};
use crate::answer::Owner;
use explains::EXPLAINS;

mod addresses;
mod claims;
mod connect;
mod cpu;
mod degraded;
mod dhcp;
mod dns;
mod drops;
mod dscp;
mod explains;
mod gone;
mod held;
mod kernel;
mod link;
mod links;
mod listen;
mod mapping;
mod mtu;
mod names;
mod nat;
mod neighbors;
mod place;
mod ports;
mod receiver;
mod refused;
mod resolver;
mod routes;
mod routing;
mod saturated;
mod sessions;
mod slow;
mod tcp;
#[cfg(test)]
mod tests;

/// A rule: what it judges, and by the answers to which questions of [`super::questions`].
struct Rule {
    code: Code,
    /// Without one of these it does not run.
    needs: &'static [&'static str],
    /// Without one of these it runs, finds less or judges it more mildly, and does not count as judged.
    reads: &'static [&'static str],
    judge: fn(&Evidence) -> Vec<Finding>,
}

type Questions = &'static [&'static str];

const fn rule(code: Code, needs: Questions, reads: Questions, judge: fn(&Evidence) -> Vec<Finding>) -> Rule {
    Rule { code, needs, reads, judge }
}

impl Rule {
    fn questions(&self) -> impl Iterator<Item = &'static str> {
        self.needs.iter().chain(self.reads).copied()
    }

    /// One without needs runs on whichever answer there is.
    fn can_run(&self, heard: &Heard) -> bool {
        self.needs.iter().all(|question| heard.any(question)) && self.questions().any(|question| heard.any(question))
    }
}

const CONNECTIONS: &str = "connections";
const DNS: &str = "dns";
const DROPS: &str = "drops";
const INTERFACES: &str = "interfaces";
/// No tool answers it: `diagnose` reads that itself.
pub const NETWORK: &str = "network";
const PROFILE: &str = "profile";
const SOCKETS: &str = "sockets";
const TCP: &str = "tcp";
const TRAFFIC: &str = "traffic";

/// What shows traffic that failed.
const WANTS: Questions = &[CONNECTIONS, DNS, DROPS, SOCKETS];

/// The one list of what is judged.
const RULES: &[Rule] = &[
    rule(Code::InterfaceRemoved, &[NETWORK], WANTS, links::interface_removed),
    rule(Code::LinkDown, &[NETWORK], WANTS, links::link_down),
    rule(Code::LinkFlap, &[NETWORK], WANTS, links::link_flap),
    rule(Code::LinkDegraded, &[INTERFACES], &[], degraded::link_degraded),
    rule(Code::DuplicateMac, &[NETWORK], &[], claims::duplicate_mac),
    rule(Code::ArpPoisoning, &[NETWORK], WANTS, claims::arp_poisoning),
    rule(Code::DuplicateAddress, &[NETWORK], &[], claims::duplicate_address),
    rule(Code::DhcpUnanswered, &[NETWORK, SOCKETS], WANTS, dhcp::dhcp_unanswered),
    rule(Code::DhcpNoPool, &[NETWORK, SOCKETS], WANTS, dhcp::dhcp_no_pool),
    rule(Code::DhcpBadOption, &[NETWORK, SOCKETS], WANTS, dhcp::dhcp_bad_option),
    rule(Code::AddressMissing, &[NETWORK], WANTS, addresses::address_missing),
    rule(Code::WrongNetmask, &[NETWORK], WANTS, addresses::wrong_netmask),
    rule(Code::RoutingSessionDown, &[CONNECTIONS, NETWORK, SOCKETS], &[DROPS, TCP], sessions::routing_session_down),
    rule(Code::BlackholeRoute, &[NETWORK], WANTS, routes::blackhole_route),
    rule(Code::RouteWithdrawn, &[NETWORK], WANTS, routes::route_withdrawn),
    rule(Code::ConntrackFull, &[DROPS], &[], drops::conntrack_full),
    rule(Code::NatPortsExhausted, &[DROPS], &[CONNECTIONS, SOCKETS], nat::nat_ports_exhausted),
    // Other clients of the same remote explain late packets.
    rule(Code::NatMappingLost, &[DROPS, SOCKETS], &[CONNECTIONS, DNS, TRAFFIC], mapping::nat_mapping_lost),
    // Whose packets they were decides how bad it is.
    rule(Code::FirewallDrop, &[DROPS], &[CONNECTIONS, DNS, SOCKETS], drops::firewall_drop),
    rule(Code::GatewayUnreachable, &[DROPS], &[CONNECTIONS, SOCKETS], neighbors::gateway_unreachable),
    rule(Code::NeighborUnreachable, &[DROPS], &[CONNECTIONS, SOCKETS], neighbors::neighbor_unreachable),
    rule(Code::ReversePathFilter, &[DROPS], &[CONNECTIONS, DNS, SOCKETS], routing::reverse_path_filter),
    rule(Code::RoutingLoop, &[DROPS], &[CONNECTIONS, SOCKETS], routing::routing_loop),
    rule(Code::ChecksumErrors, &[DROPS], &[CONNECTIONS, DNS, SOCKETS], kernel::checksum_errors),
    rule(Code::KernelDrop, &[DROPS], &[CONNECTIONS, DNS, SOCKETS], kernel::kernel_drop),
    rule(Code::MtuBlackHole, &[DROPS, TCP], &[CONNECTIONS, SOCKETS], mtu::mtu_black_hole),
    rule(Code::SynFlood, &[DROPS, SOCKETS], &[CONNECTIONS, TCP], listen::syn_flood),
    rule(Code::ConnectionFlood, &[SOCKETS], &[CONNECTIONS, DROPS, TCP], held::connection_flood),
    rule(Code::CloseWaitLeak, &[SOCKETS, TCP], &[], held::close_wait_leak),
    rule(Code::ListenQueueOverflow, &[SOCKETS], &[CONNECTIONS, DROPS, TCP], listen::listen_queue_overflow),
    rule(Code::PortExhaustion, &[CONNECTIONS], &[SOCKETS], ports::port_exhaustion),
    rule(Code::CpuThrottled, &[SOCKETS], &[], cpu::cpu_throttled),
    rule(Code::SoftirqSaturated, &[DROPS], &[], cpu::softirq_saturated),
    rule(Code::Incast, &[DROPS], &[], saturated::incast),
    rule(Code::LinkSaturated, &[DROPS], &[INTERFACES, TCP, TRAFFIC], saturated::link_saturated),
    rule(Code::InterfaceDrops, &[DROPS, INTERFACES], &[], link::interface_drops),
    rule(Code::UdpReceiveBufferFull, &[DROPS], &[], drops::udp_receive_buffer_full),
    rule(Code::NoRoute, &[CONNECTIONS], &[DROPS], connect::no_route),
    rule(Code::Ipv6Broken, &[CONNECTIONS], &[SOCKETS], connect::ipv6_broken),
    rule(Code::ConnectionRefused, &[CONNECTIONS], &[DROPS, SOCKETS], refused::connection_refused),
    // Connects that began before the window are only among the sockets.
    rule(Code::ConnectTimeout, &[], &[CONNECTIONS, SOCKETS], connect::connect_timeout),
    rule(Code::PeerGone, &[], &[CONNECTIONS, TCP], gone::peer_gone),
    rule(Code::WrongResolver, &[DNS, SOCKETS], &[DROPS], resolver::wrong_resolver),
    rule(Code::DnsUnanswered, &[DNS], &[], dns::dns_unanswered),
    rule(Code::DnsFailure, &[DNS], &[], dns::dns_failure),
    rule(Code::DnsSlow, &[DNS], &[], dns::dns_slow),
    // Which end listens decides how bad it is.
    rule(Code::Resets, &[CONNECTIONS], &[SOCKETS], tcp::resets),
    rule(Code::ReceiveWindowSmall, &[TCP], &[SOCKETS], receiver::receive_window_small),
    rule(Code::ReceiverLimited, &[TCP], &[], receiver::receiver_limited),
    rule(Code::SenderLimited, &[TCP], &[], tcp::sender_limited),
    // Readings of the sockets miss what opens and closes between two of them.
    rule(Code::Retransmits, &[TCP], &[PROFILE], tcp::retransmits),
    rule(Code::HighRtt, &[TCP], &[PROFILE], tcp::high_rtt),
    rule(Code::SlowApplication, &[PROFILE], &[SOCKETS, CONNECTIONS], slow::slow_application),
    rule(Code::ConnectionChurn, &[CONNECTIONS], &[], ports::connection_churn),
    rule(Code::DscpRemarked, &[NETWORK], &[], dscp::dscp_remarked),
    rule(Code::BandwidthHog, &[TRAFFIC], &[DROPS, INTERFACES], link::bandwidth_hog),
];

/// How many checks there are.
pub fn count() -> usize {
    RULES.len()
}

/// Every code that is judged.
pub fn codes() -> impl Iterator<Item = Code> {
    RULES.iter().map(|rule| rule.code)
}

/// The codes of causes and those of their symptoms. One cause may have several entries.
pub fn explains() -> impl Iterator<Item = (Code, &'static [Code])> {
    EXPLAINS.iter().copied()
}

/// Every finding, worst first, and the codes that were judged with complete data. A rule with incomplete data runs as
/// well: its findings are true, but it may miss some.
pub fn judge(evidence: &Evidence, heard: &Heard) -> (Vec<Finding>, Vec<Code>) {
    let (mut findings, mut checked) = (Vec::new(), Vec::new());
    for rule in RULES.iter().filter(|rule| rule.can_run(heard)) {
        if rule.questions().all(|question| heard.all(question)) {
            checked.push(rule.code);
        }
        findings.extend((rule.judge)(evidence));
    }
    let mut findings = causes(findings);
    findings.sort_by_key(|finding| (finding.severity, finding.code));
    for finding in &mut findings {
        finding.next_step = entered(finding, evidence);
        name_namespace(finding, evidence);
    }
    (findings, checked)
}

/// The codes that are not judged without the whole answer to a question.
pub fn decided_by(question: &str) -> impl Iterator<Item = Code> {
    RULES.iter().filter(move |rule| rule.questions().any(|asked| asked == question)).map(|rule| rule.code)
}

/// Removes the symptoms with a known cause, and notes them there.
fn causes(findings: Vec<Finding>) -> Vec<Finding> {
    causes_when(findings, |_, _| true)
}

/// The same where not all findings are of one window. Which cause was there `when` which symptom was is the
/// caller's to say, of their places in the list.
pub fn causes_when(findings: Vec<Finding>, when: impl Fn(usize, usize) -> bool) -> Vec<Finding> {
    let netns = Finding::netns;
    let explains = |cause: &Finding, symptom: &Finding| {
        // An address of the loopback is another one in each network namespace.
        let near = netns(cause).zip(netns(symptom)).is_none_or(|(cause, symptom)| cause == symptom);
        let here = |at: &HostPort, place: &HostPort| at.covers(place) && (near || !place.address.is_loopback());
        let known = EXPLAINS.iter().any(|(code, symptoms)| *code == cause.code && symptoms.contains(&symptom.code));
        let no_milder = cause.severity <= symptom.severity;
        // Other namespaces may have the same address, and another reason.
        let harmed = cause.harms.is_empty()
            || netns(symptom).is_none_or(|at| netns(cause) == Some(at) || cause.harms.contains(&(at as u32)));
        known && no_milder && harmed && symptom.places.iter().any(|place| cause.places.iter().any(|at| here(at, place)))
    };
    // Several namespaces may have the same address: a cause in the symptom's own is meant first.
    let cause_of = |(at, symptom): (usize, &Finding)| {
        let explains = |(place, cause): &(usize, &Finding)| when(*place, at) && explains(cause, symptom);
        let causes = findings.iter().enumerate().filter(explains);
        causes.min_by_key(|(place, cause)| (netns(cause) != netns(symptom), *place)).map(|(place, _)| place)
    };
    let mut explained: Vec<_> = findings.iter().enumerate().map(cause_of).collect();
    break_cycles(&mut explained);
    // What explains a cause explains its symptoms too.
    let root = |cause: usize| std::iter::successors(Some(cause), |at| explained[*at]).take(findings.len()).last();
    let roots: Vec<_> = explained.iter().map(|cause| cause.and_then(root)).collect();
    let mut kept = findings.clone();
    for (symptom, cause) in roots.iter().enumerate().filter_map(|(i, cause)| cause.map(|cause| (i, cause))) {
        let name = serde_json::json!(findings[symptom].code);
        let noted = kept[cause].evidence.entry("explains").or_insert_with(|| serde_json::json!([]));
        if let Some(noted) = noted.as_array_mut().filter(|noted| !noted.contains(&name)) {
            noted.push(name);
        }
        affects(&mut kept[cause], &findings[symptom]);
    }
    kept.into_iter().zip(explained).filter(|(_, cause)| cause.is_none()).map(|(finding, _)| finding).collect()
}

/// A session that fails withdraws routes, and a route that is withdrawn ends sessions. Where each of some findings explains
/// the next, the first one is the cause.
fn break_cycles(explained: &mut [Option<usize>]) {
    let count = explained.len();
    for start in 0..count {
        let step = |at: &usize| explained[*at];
        // After as many steps as there are findings a chain has ended, or it is in a cycle.
        let Some(inside) = std::iter::successors(Some(start), step).nth(count) else { continue };
        if let Some(first) = std::iter::successors(Some(inside), step).take(count).min() {
            explained[first] = None;
        }
    }
}

/// Notes the owner of the symptom in the cause's evidence, if it is another one.
fn affects(cause: &mut Finding, symptom: &Finding) {
    /// The owners to inform; more of them add nothing.
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
    const OF_A_NAMESPACE: [&str; 7] = ["arping ", "bridge ", "ip ", "nft ", "ping ", "sysctl ", "tc "];
    let owner = finding.evidence.get("owner").and_then(|owner| serde_json::from_value::<Owner>(owner.clone()).ok());
    let at = finding.evidence.get("netns").and_then(|netns| netns.as_u64()).map(|netns| netns as u32);
    let owner = owner.or(at.map(|_| Owner::default()));
    let Some((owner, netns)) = owner.and_then(|owner| Some((owner.clone(), at.or(owner.netns)?))) else {
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
        (None, None) => {
            format!("{line}{} in network namespace {netns}", if line.contains("  # ") { ";" } else { "  #" })
        }
    };
    if evidence.netns.is_none_or(|ours| ours == netns) {
        return finding.next_step.clone();
    }
    finding.next_step.lines().map(there).collect::<Vec<_>>().join("\n")
}

/// Says the name of another network namespace, if it has one.
fn name_namespace(finding: &mut Finding, evidence: &Evidence) {
    let fields = &finding.evidence;
    let netns = fields.get("netns").or_else(|| fields.get("owner")?.get("netns")).and_then(serde_json::Value::as_u64);
    let other = netns.map(|netns| netns as u32).filter(|netns| evidence.netns.is_some_and(|ours| ours != *netns));
    let Some(file) = other.and_then(|netns| evidence.netns_files.get(&netns)) else { return };
    let name = crate::untrusted::clean(crate::owner::netns_name(file));
    finding.evidence.entry("namespace").or_insert(name.into());
}

/// Whether a path means itself to every shell.
fn is_plain(path: &str) -> bool {
    path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b))
}

/// A warning where a figure reaches `enough`, else worth knowing only.
fn warning_from(count: u64, enough: u64) -> Severity {
    if count >= enough { Severity::Warning } else { Severity::Info }
}
