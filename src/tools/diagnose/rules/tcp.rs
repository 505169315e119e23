//! Connections that work, and work badly.

use std::net::IpAddr;

use super::warning_from;
use crate::{
    answer::Endpoint,
    tools::{
        diagnose::{
            evidence::{Connection, Evidence, Reason, Reset, Rtt, TcpPath, common, groups, program},
            finding::{Code, Finding, HostPort, Severity, quoted},
        },
        profile_tcp::{SLOW_US, VERY_SLOW_US},
    },
};

/// For this share of the time that it had data, the sender waited. Less comes and goes with every burst.
pub(super) const WAITED: f64 = 0.3;
/// A sender above this rate is not slowed noticeably.
pub(super) const FAST_BITS: f64 = 1e9;

/// A remote's finding: owner, place, and how to look closer.
pub(super) fn about(row: &TcpPath, code: Code, severity: Severity, summary: String) -> Finding {
    let finding = Finding::new(code, severity, summary)
        .owner(&row.owner)
        .with("remote_address", row.remote)
        .with("remote_port", row.port);
    let Some(address) = row.remote else { return finding };
    let finding = finding.at(HostPort { address, port: row.port });
    let mut arguments = vec![("remote", address.to_string())];
    arguments.extend(row.port.map(|port| ("port", port.to_string())));
    finding.look("profile_tcp", &arguments)
}

pub(super) fn name(row: &TcpPath) -> String {
    match (row.remote, row.port) {
        (Some(address), Some(port)) => Endpoint { address, port }.to_string(),
        (Some(address), None) => address.to_string(),
        _ => "a remote".into(),
    }
}

/// A connection with both ends on this host has two rows. Its fault is reported once, from the client's end, which
/// knows the service.
fn seen_once<'a>(evidence: &Evidence, rows: impl Iterator<Item = &'a TcpPath>) -> Vec<&'a TcpPath> {
    let rows: Vec<_> = rows.collect();
    let serves = |client: &TcpPath, server: &TcpPath| {
        let Some(at) = client.remote.zip(client.port) else { return false };
        let listener = evidence.listener(HostPort { address: at.0, port: Some(at.1) }, client.owner.netns);
        listener.is_some_and(|listener| program(&listener.owner) == program(&server.owner))
    };
    let again = |row: &TcpPath| {
        let ours = row.port.is_none() && row.remote.is_some_and(|address| evidence.is_ours(&address));
        ours && rows.iter().any(|client| serves(client, row))
    };
    rows.iter().copied().filter(|row| !again(row)).collect()
}

/// Segments are lost on the way.
pub fn retransmits(evidence: &Evidence) -> Vec<Finding> {
    /// TCP over a good path sends less than one segment in a thousand again, over the internet a few. From one in a
    /// hundred on throughput falls with every loss.
    const SHARE: f64 = 0.01;
    /// A probe at the end of a transfer, or a reader that stalled, costs one or two.
    const SEGMENTS: u64 = 5;
    // What the receiver had already was late, not lost: a busy host's timers send it again beside 10 Gbit/s.
    let lost = |row: &TcpPath| row.retransmits.saturating_sub(row.spurious);
    let lossy = |row: &&TcpPath| lost(row) >= SEGMENTS && lost(row) as f64 >= SHARE * row.segments_out as f64;
    let found = seen_once(evidence, evidence.paths().iter().filter(lossy)).into_iter().map(|row| {
        let percent = 100.0 * lost(row) as f64 / row.segments_out.max(1) as f64;
        let summary = format!(
            "{percent:.1} % of the segments from {} to {} were lost and sent again",
            quoted(&row.owner),
            name(row)
        );
        about(row, Code::Retransmits, Severity::Warning, summary)
            .with("retransmits", row.retransmits)
            .with("spurious", row.spurious)
            .with("segments_out", row.segments_out)
            .with("retransmit_percent", (percent * 100.0).round() / 100.0)
            .look_at("trace_drops", row.remote.map(|address| HostPort { address, port: row.port }))
    });
    found.collect()
}

/// Round trips take long, for where the remote is.
pub fn high_rtt(evidence: &Evidence) -> Vec<Finding> {
    let mut found = Vec::new();
    let slow = evidence.paths().iter().filter(|row| slowness(evidence, row).is_some());
    for row in seen_once(evidence, slow) {
        let (Some(rtt), Some((why, severity))) = (row.rtt, slowness(evidence, row)) else { continue };
        let (p50, best) = (ms(rtt.p50_us), ms(best_us(evidence, row, &rtt)));
        let summary = format!("RTT to {}: median {p50}, minimum {best}: {why}", name(row));
        found.push(
            about(row, Code::HighRtt, severity, summary)
                .with("rtt_us_p50", rtt.p50_us)
                .with("rtt_us_p99", rtt.p99_us)
                .with("rtt_us_min", best_us(evidence, row, &rtt))
                .with("samples", rtt.samples),
        );
    }
    found
}

/// Why round trips are slow, if they are. A round trip is as long as the remote takes to acknowledge, and it may wait for
/// more to acknowledge: only where it cannot have waited does a sample tell of the way.
fn slowness(evidence: &Evidence, row: &TcpPath) -> Option<(&'static str, Severity)> {
    /// Half around the world and back through fibre is 200 ms; more is a queue, a satellite or a detour.
    const FAR_US: u64 = VERY_SLOW_US;
    /// A neighbour in a private network answers within milliseconds. Linux delays acknowledgements by 40 ms at first.
    const NEAR_US: u64 = SLOW_US;
    /// A round trip that takes five times what it took at best waits in a queue.
    const INFLATED: u64 = 5;
    /// A median of fewer says little.
    const SAMPLES: u64 = 5;
    /// Where what a round trip takes at best is half of the median or less, more of it is waiting than way.
    const WAITS: u64 = 2;
    /// No acknowledgement is delayed for longer (RFC 1122).
    const DELAYED_US: u64 = 500_000;
    let (rtt, address, prompt) = (row.rtt?, row.remote?, row.prompt);
    let best = best_us(evidence, row, &rtt);
    let (long, slow) = if is_near(&address) { (NEAR_US, prompt.slow) } else { (FAR_US, prompt.very_slow) };
    let is_inflated = rtt.p50_us >= NEAR_US && rtt.p50_us >= INFLATED * best;
    let slow = if is_inflated { prompt.slow } else { slow };
    if rtt.samples < SAMPLES || !(is_inflated || rtt.p50_us >= long) {
        return None;
    }
    let proven = prompt.samples >= SAMPLES && 2 * slow > prompt.samples;
    match rtt.p50_us >= WAITS * best {
        false if best >= long || proven => Some(("the path is long", Severity::Warning)),
        true if proven || rtt.p50_us >= best + DELAYED_US => Some(("a queue on the path delays it", Severity::Warning)),
        // The reliable samples are fast.
        _ if prompt.samples > 0 && 2 * slow <= prompt.samples => None,
        _ => Some(("the remote delays its acknowledgements, or a queue on the path delays it", Severity::Info)),
    }
}

/// What a round trip takes at best. The kernel remembers it for minutes, and leaves out what may have been delayed.
fn best_us(evidence: &Evidence, row: &TcpPath, rtt: &Rtt) -> u64 {
    let same = evidence.remotes.iter().filter(|other| (other.remote, other.port) == (row.remote, row.port));
    same.filter_map(|other| other.rtt).map(|other| other.min_us).fold(rtt.min_us, u64::min)
}

fn ms(us: u64) -> String {
    format!("{:.1} ms", us as f64 / 1e3)
}

/// Loopback, private, link-local: somewhere in the same building.
pub(super) fn is_near(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_private() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

/// The sender's own buffer is too small for the way.
pub fn sender_limited(evidence: &Evidence) -> Vec<Finding> {
    let slow = |row: &&TcpPath| row.send_buffer_share >= WAITED && row.tx_bits_per_second < FAST_BITS;
    let found = evidence.remotes.iter().filter(slow).map(|row| {
        let percent = (row.send_buffer_share * 100.0).round();
        let summary = format!(
            "the send buffer of {} is too small: {percent} % of the time the path to {} was idle",
            quoted(&row.owner),
            name(row)
        );
        about(row, Code::SenderLimited, Severity::Warning, summary)
            .with("waited_percent", percent)
            .with("tx_bits_per_second", row.tx_bits_per_second.round())
            .step("sysctl net.ipv4.tcp_wmem  # does the program set SO_SNDBUF?")
    });
    found.collect()
}

/// Connections are torn down.
pub fn resets(evidence: &Evidence) -> Vec<Finding> {
    /// One is an accident; from three on it is a habit.
    const RESETS: u64 = 3;
    let mut found = Vec::new();
    for (server, rows) in groups(&evidence.resets, |reset| server_side(evidence, reset)) {
        // Both ends of a connection on this host see the same reset.
        let count = rows.iter().filter(|row| row.sent_by_us).map(|row| row.count).sum::<u64>();
        let received = rows.iter().filter(|row| !row.sent_by_us).map(|row| row.count).sum::<u64>();
        let count = count.max(received);
        let Some((endpoint, by_server)) = server else { continue };
        // A client that resets to close is done, and saves itself a TIME_WAIT. A server that resets has not answered.
        let severity = if by_server { warning_from(count, RESETS) } else { Severity::Info };
        let sender = common(rows.iter().filter(|row| row.sent_by_us).map(|row| &row.owner));
        let hurt = common(rows.iter().filter(|row| !row.sent_by_us).map(|row| &row.owner));
        let by = if by_server { "the server" } else { "the client" };
        let why = match (by_server, sender == Default::default()) {
            (true, true) => "the server, or a firewall on the path",
            (true, false) => "the process closed with unread data or with SO_LINGER 0, or exited",
            (false, _) => "the process closed with SO_LINGER 0 or with unread data when it was done",
        };
        let summary = format!("{by} reset {count} connections to {endpoint}");
        let mut finding = Finding::new(Code::Resets, severity, summary)
            .owner(if program(&sender) == Default::default() { &hurt } else { &sender })
            .with("sent_by", by)
            .with("count", count)
            .with("server", endpoint)
            .with("client_address", rows[0].local.filter(|l| *l != endpoint).or(rows[0].remote).map(|e| e.address))
            .with("why", why)
            .at(endpoint);
        // The kernel's own reason, of whichever end sent it.
        let known = |reason: &&Reason| {
            let sender = if reason.sent_by_us { reason.local } else { reason.remote };
            reason.reason.is_some()
                && rows.iter().any(|row| row.owner.netns == reason.netns)
                && [reason.local, reason.remote].contains(&endpoint)
                && (sender == endpoint) == by_server
        };
        let (ours, theirs): (Vec<_>, Vec<_>) = evidence.reasons.iter().filter(known).partition(|r| r.sent_by_us);
        if let Some(reason) = ours.first().or(theirs.first()) {
            finding = finding.with("reason", &reason.reason).with("explanation", &reason.explanation);
        }
        if program(&hurt) != Default::default() {
            finding = finding.with("received_by", hurt);
        }
        let port = [("port", endpoint.port.to_string())];
        found.push(finding.look("profile_tcp", &port).look("trace_connections", &port));
    }
    found
}

/// The server's end of a reset connection, and whether the reset came from there.
fn server_side(evidence: &Evidence, reset: &Reset) -> Option<(Endpoint, bool)> {
    let (local, remote) = (reset.local?, reset.remote?);
    let netns = reset.owner.netns;
    let same = |c: &&Connection| (c.owner.netns, c.local, c.remote) == (netns, reset.local, reset.remote);
    let opened = evidence.connections.iter().find(same);
    let listens = |at| evidence.listener(at, netns).is_some();
    let local_serves = match opened {
        Some(connection) => !connection.outbound,
        None => listens(local) || (!listens(remote) && local.port < remote.port),
    };
    let (server, by_server) = if local_serves { (local, reset.sent_by_us) } else { (remote, !reset.sent_by_us) };
    Some((server, by_server))
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};
    use crate::tools::{diagnose::evidence::Listener, profile_tcp::Prompt};

    fn remote(address: &str) -> TcpPath {
        TcpPath {
            owner: owner("client", 7),
            remote: address.parse().ok(),
            port: Some(80),
            segments_out: 1_000,
            ..TcpPath::default()
        }
    }

    fn with(row: TcpPath) -> Evidence {
        Evidence { remotes: vec![row], ..quiet() }
    }

    #[test]
    fn one_percent_retransmits_warns() {
        let judged = |retransmits| told(&retransmits_of(retransmits));
        fn retransmits_of(retransmits: u64) -> Vec<Finding> {
            super::retransmits(&with(TcpPath { retransmits, ..remote("10.0.0.1") }))
        }
        assert_eq!(judged(4), []);
        assert_eq!(judged(9), []);
        assert_eq!(judged(30), [(Code::Retransmits, Severity::Warning)]);
        let found = super::retransmits(&with(TcpPath { retransmits: 30, spurious: 3, ..remote("10.0.0.1") }));
        assert_eq!(found[0].evidence["spurious"], 3);
        let late = TcpPath { retransmits: 30, spurious: 28, ..remote("10.0.0.1") };
        assert_eq!(told(&super::retransmits(&with(late))), [], "what had arrived already was not lost");
    }

    /// Findings about round trips to an address: this number of prompt samples, of which this number were slow.
    fn round_trips(address: &str, (min_us, p50_us): (u64, u64), (samples, slow): (u64, u64)) -> Vec<Severity> {
        let rtt = Some(Rtt { min_us, p50_us, p99_us: p50_us, samples: 50 });
        let prompt = Prompt { samples, slow, very_slow: if p50_us >= VERY_SLOW_US { slow } else { 0 } };
        let found = high_rtt(&with(TcpPath { rtt, prompt, ..remote(address) }));
        found.iter().map(|finding| finding.severity).collect()
    }

    #[test]
    fn high_rtt_threshold_depends_on_distance() {
        assert_eq!(round_trips("192.0.2.1", (150_000, 160_000), (50, 50)), [], "another continent");
        assert_eq!(round_trips("192.0.2.1", (250_000, 260_000), (0, 0)), [Severity::Warning]);
        assert_eq!(round_trips("192.0.2.1", (10_000, 100_000), (50, 50)), [Severity::Warning], "a queue");
        assert_eq!(round_trips("10.0.0.1", (100, 41_000), (0, 0)), [], "delayed acknowledgements");
        assert_eq!(round_trips("10.0.0.1", (100_000, 101_000), (0, 0)), [Severity::Warning]);
    }

    #[test]
    fn delayed_ack_timer_is_not_a_queue() {
        assert_eq!(round_trips("10.0.0.1", (1_000, 201_000), (2, 0)), [], "its handshakes are quick");
        assert_eq!(round_trips("10.0.0.1", (1_000, 201_000), (0, 0)), [Severity::Info], "one or the other");
        assert_eq!(round_trips("10.0.0.1", (1_000, 201_000), (3, 3)), [Severity::Info], "one or the other");
        assert_eq!(round_trips("10.0.0.1", (1_000, 201_000), (20, 15)), [Severity::Warning]);
        assert_eq!(round_trips("10.0.0.1", (1_000, 900_000), (0, 0)), [Severity::Warning], "no timer is so slow");
    }

    #[test]
    fn waiting_sender_is_limited_unless_fast() {
        let slow = TcpPath { receiver_share: 0.9, tx_bits_per_second: 1e5, ..remote("10.0.0.1") };
        assert_eq!(
            told(&super::super::receiver::receiver_limited(&with(slow.clone()))),
            [(Code::ReceiverLimited, Severity::Warning)]
        );
        let told_to = TcpPath { tx_bits_per_second: 160e6, ..slow.clone() };
        assert_eq!(
            told(&super::super::receiver::receiver_limited(&with(told_to))),
            [(Code::ReceiverLimited, Severity::Info)],
            "a limit"
        );
        assert!(
            super::super::receiver::receiver_limited(&with(TcpPath { tx_bits_per_second: 9e9, ..slow })).is_empty()
        );
        let small = TcpPath { send_buffer_share: 0.8, tx_bits_per_second: 1e6, ..remote("10.0.0.1") };
        assert_eq!(told(&sender_limited(&with(small))), [(Code::SenderLimited, Severity::Warning)]);
    }

    #[test]
    fn client_reset_is_info_and_server_reset_warns() {
        let (client, server) = (Some(endpoint("10.0.0.9", 40_000)), Some(endpoint("10.0.0.1", 80)));
        let listeners = vec![Listener { local: server, ..Listener::default() }];
        let judged = |sent_by_us| {
            let reset = Reset { local: client, remote: server, sent_by_us, count: 5, ..Reset::default() };
            told(&resets(&Evidence { resets: vec![reset], listeners: listeners.clone(), ..quiet() }))
        };
        assert_eq!(judged(true), [(Code::Resets, Severity::Info)]);
        assert_eq!(judged(false), [(Code::Resets, Severity::Warning)]);
    }

    #[test]
    fn local_connection_is_one_finding() {
        let server = TcpPath { owner: owner("server", 5), port: None, retransmits: 30, ..remote("10.0.0.9") };
        let client = TcpPath { retransmits: 30, ..remote("10.0.0.1") };
        let local = Some(endpoint("10.0.0.1", 80));
        let listeners = vec![Listener { owner: owner("server", 5), local, ..Listener::default() }];
        let own_addresses = ["10.0.0.9".parse().unwrap()].into();
        let both = Evidence { remotes: vec![server, client], listeners, own_addresses, ..quiet() };
        let found = super::retransmits(&both);
        assert_eq!((found.len(), &found[0].evidence["remote_port"]), (1, &80.into()));
        let far = Evidence { own_addresses: Default::default(), ..both };
        assert_eq!(super::retransmits(&far).len(), 2, "another host's");
    }
}
