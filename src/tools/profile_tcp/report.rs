//! The answer, from what the kernel said.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use super::{
    Counts, FirstByte, Gaps, Group, Histogram, Input, ListenerRow, Other, Output, OwnerRow, RemoteRow, Reset, ResetRow,
    Rtt, Sample, Service, Side, Waits, replies,
};
use crate::{
    answer::{self, Code, Limitation, Measured, Owner},
    limits,
    numbers::uapi,
    owner::Process,
    tcp::LimitedBy,
    untrusted,
};

/// The answer.
pub fn report(input: &Input, sample: Sample) -> Output {
    let mut measured = Measured::window(Duration::from_nanos(sample.window_ns));
    let jiffy_ns = sample.clock.ns as f64 / sample.clock.jiffies.max(1) as f64;
    let limit = input.limit.rows();
    let (remotes, remotes_cut) = answer::largest(sample.remotes, limit, weight);
    let (resets, resets_cut) = answer::largest(sample.resets, limit, |reset| reset.count);
    let services: Vec<_> = sample.services.iter().filter(|service| service.replies.times.count() > 0).collect();
    let (listeners, listeners_cut) =
        answer::largest(services, limit, |service: &&Service| service.replies.times.sum_us());
    let cut = sample.remotes_cut + remotes_cut + listeners_cut + sample.resets_cut + resets_cut;
    (measured.lost_events, measured.rows_cut) = (sample.missed, cut);
    measured.limits = unseen(&sample.gaps);
    measured.limits.extend(left_out(&sample.services, &remotes));
    measured.limits.extend(sample.lacks.iter().cloned());
    let owners_cut =
        remotes.iter().map(|group| group.owners.len().saturating_sub(limits::OWNERS_OF_A_REMOTE) as u64).sum();
    let why = "not listed. Set `process` to list them.";
    measured.limits.extend(Limitation::counted(Code::OwnersCut, owners_cut, "owner", why));
    let mut shown = Counts::default();
    remotes.iter().for_each(|group| shown += group.counts);
    let other = Other {
        connections: sample.total.connections.saturating_sub(shown.connections),
        segments_out: sample.total.segments_out.saturating_sub(shown.segments_out),
        retransmits: sample.total.retransmits.saturating_sub(shown.retransmits),
    };
    Output {
        remotes: remotes.into_iter().filter_map(|group| remote(group, jiffy_ns)).collect(),
        listeners: listeners.into_iter().filter_map(listener).collect(),
        resets: resets.into_iter().map(reset).collect(),
        other,
        services: sample.services,
        measured,
    }
}

/// Leaves out the last row of the longest list; false where there is none.
pub fn shorten(output: &mut Output) -> bool {
    let (remotes, listeners, resets) = (output.remotes.len(), output.listeners.len(), output.resets.len());
    if resets > remotes.max(listeners) {
        output.resets.pop();
    } else if listeners > remotes {
        output.listeners.pop();
    } else {
        let Some(row) = output.remotes.pop() else { return false };
        output.other.connections += row.connections;
        output.other.segments_out += row.segments_out;
        output.other.retransmits += row.retransmits;
    }
    output.measured.rows_cut += 1;
    true
}

/// Worst off are those that send the most again, then those that wait the longest.
pub fn weight(group: &Group) -> (u64, u64, u32, u64) {
    let Counts { segments_out, retransmits, .. } = group.counts;
    (retransmits * 1_000 / segments_out.max(1), retransmits, group.slowest_us(), segments_out)
}

impl Group {
    /// The longest of what its users wait for: for an acknowledgement, or for a reply.
    pub(super) fn slowest_us(&self) -> u32 {
        self.rtt.quantile_us(0.99).max(self.replies.times.percentiles().p99)
    }
}

fn listener(service: &Service) -> Option<ListenerRow> {
    Some(ListenerRow {
        owner: service.process.owner(),
        local: service.local,
        first_byte_us: FirstByte::of(&service.replies)?,
        rtt_us: rtt(&service.rtt),
    })
}

/// Exchanges whose reply has no certain request.
fn left_out(services: &[Service], remotes: &[Group]) -> Option<Limitation> {
    let all = services.iter().map(|service| &service.replies).chain(remotes.iter().map(|group| &group.replies));
    let (exchanges, connections) =
        all.fold((0, 0), |sum, replies| (sum.0 + replies.left_out.0, sum.1 + replies.left_out.1));
    answer::exchanges_left_out("first_byte_us", exchanges, connections)
}

/// What was sent in both periods. A connection that both count is one.
pub fn merge(earlier: Sample, mut later: Sample) -> Sample {
    let mut again = 0;
    let places: HashMap<_, _> = later.remotes.iter().enumerate().map(|(i, group)| (group.key(), i)).collect();
    for group in earlier.remotes {
        match places.get(&group.key()) {
            Some(place) => again += later.remotes[*place].add(group),
            None => later.remotes.push(group),
        }
    }
    let places: HashMap<_, _> = later.resets.iter().enumerate().map(|(i, reset)| (reset.id, i)).collect();
    for reset in earlier.resets {
        match places.get(&reset.id) {
            Some(place) => later.resets[*place].add(reset),
            None => later.resets.push(reset),
        }
    }
    later.remotes_cut = later.remotes_cut.max(earlier.remotes_cut);
    later.resets_cut = later.resets_cut.max(earlier.resets_cut);
    later.services = replies::merge(earlier.services, later.services);
    later.total += earlier.total;
    later.total.connections -= again;
    later.gaps = earlier.gaps.merge(later.gaps);
    later.missed += earlier.missed;
    later.clock.jiffies += earlier.clock.jiffies;
    later.clock.ns += earlier.clock.ns;
    later.window_ns += earlier.window_ns;
    later
}

impl Gaps {
    fn merge(self, later: Gaps) -> Gaps {
        Gaps {
            rtts_untracked: self.rtts_untracked + later.rtts_untracked,
            closed_untracked: self.closed_untracked + later.closed_untracked,
            closed_rtts_untracked: self.closed_rtts_untracked + later.closed_rtts_untracked,
            resets_untracked: self.resets_untracked + later.resets_untracked,
            replies_untracked: self.replies_untracked + later.replies_untracked,
            unknown: self.unknown.max(later.unknown),
            ..later
        }
    }
}

impl Reset {
    /// Adds those that were seen before.
    fn add(&mut self, before: Reset) {
        self.count += before.count;
        if self.process.pid == 0 {
            self.process = before.process;
        }
    }
}

impl Group {
    /// What makes it one: the remote, and where that is this very host, the network namespace.
    fn key(&self) -> (Option<IpAddr>, Option<u16>, Option<u32>) {
        let (address, port) = self.remote.as_ref().map_or((None, None), |remote| (Some(remote.address), remote.port));
        let netns = self.owners.first().map(|(process, _)| process.netns);
        (address, port, netns.filter(|_| address.is_some_and(|address| address.is_loopback())))
    }

    /// Adds what was sent before, and returns how many of the connections both count.
    fn add(&mut self, before: Group) -> u64 {
        self.rtt.add(&before.rtt);
        self.prompt += before.prompt;
        self.waits += before.waits;
        self.replies += &before.replies;
        self.counts += before.counts;
        let known: HashMap<u64, usize> = self.sockets.iter().copied().collect();
        let mut places = Vec::new();
        for (process, counts) in before.owners {
            let place = self.owners.iter().position(|(same, _)| *same == process);
            let place = place.unwrap_or_else(|| {
                self.owners.push((process, Counts::default()));
                self.owners.len() - 1
            });
            self.owners[place].1 += counts;
            places.push(place);
        }
        let mut again = 0;
        for (cookie, owner) in before.sockets {
            let place = places.get(owner).copied().unwrap_or_default();
            match known.get(&cookie) {
                None => self.sockets.push((cookie, place)),
                Some(now) => {
                    again += 1;
                    if *now == place {
                        self.owners[place].1.connections -= 1;
                    }
                }
            }
        }
        self.counts.connections -= again;
        again
    }
}

fn remote(group: Group, jiffy_ns: f64) -> Option<RemoteRow> {
    let Counts { connections, segments_out, retransmits, spurious } = group.counts;
    Some(RemoteRow {
        remote: group.remote?,
        connections,
        owners: owners(group.owners),
        rtt_us: rtt(&group.rtt),
        first_byte_us: FirstByte::of(&group.replies),
        prompt: group.prompt,
        segments_out,
        retransmits,
        spurious,
        retransmit_percent: percent(retransmits, segments_out),
        limited_by: limited_by(&group.waits),
        limited_ms: times(&group.waits)
            .map(|(limit, jiffies)| (limit, (jiffies as f64 * jiffy_ns / 1e6) as u64))
            .into(),
    })
}

fn rtt(times: &Histogram) -> Option<Rtt> {
    let rtt = Rtt {
        min: times.min_us(),
        p50: times.quantile_us(0.5),
        p90: times.quantile_us(0.9),
        p99: times.quantile_us(0.99),
        max: times.max_us(),
        samples: times.samples(),
    };
    (rtt.samples > 0).then_some(rtt)
}

/// Those with the most retransmits.
fn owners(owners: Vec<(Process, Counts)>) -> Vec<OwnerRow> {
    let most = |(_, counts): &(Process, Counts)| (counts.retransmits, counts.segments_out);
    let (owners, _) = answer::largest(owners, limits::OWNERS_OF_A_REMOTE, most);
    owners.iter().map(|(process, counts)| owner(process.owner(), counts)).collect()
}

fn owner(owner: Owner, counts: &Counts) -> OwnerRow {
    let Counts { connections, segments_out, retransmits, .. } = *counts;
    OwnerRow { owner, connections, segments_out, retransmits }
}

fn percent(part: u64, whole: u64) -> f64 {
    (part as f64 / whole.max(1) as f64 * 1e4).round() / 1e2
}

/// The time that went to each limit, in jiffies. The kernel has one clock for "busy", which is two things: waiting for the
/// network, and for the application. Which of them it was each segment that came showed (`note_wait` of `round_trips.h`).
fn times(waits: &Waits) -> [(LimitedBy, u64); 4] {
    let seen = (waits.network + waits.application).max(1);
    let network = (waits.busy as f64 * waits.network as f64 / seen as f64) as u64;
    [
        (LimitedBy::Receiver, waits.receiver),
        (LimitedBy::SendBuffer, waits.send_buffer),
        (LimitedBy::Network, network),
        (LimitedBy::Application, waits.busy - network.min(waits.busy)),
    ]
}

pub(super) fn limited_by(waits: &Waits) -> Option<LimitedBy> {
    let longest = times(waits).into_iter().max_by_key(|(_, time)| *time).filter(|(_, time)| *time > 0);
    // The kernel's clock ticks in milliseconds: what is sent and acknowledged between two ticks took no time.
    longest.map(|(limit, _)| limit).or(match (waits.network, waits.application) {
        (0, 0) => None,
        (network, application) if network > application => Some(LimitedBy::Network),
        _ => Some(LimitedBy::Application),
    })
}

fn reset(reset: Reset) -> ResetRow {
    let reason = match (reset.reason, reset.by_remote) {
        (Some(reason), _) => Some(untrusted::clean(&reason)),
        (None, true) => Some(from_state(reset.state).to_owned()),
        (None, false) => None,
    };
    ResetRow {
        owner: reset.process.owner(),
        local: reset.local,
        remote: reset.remote,
        sent_by: if reset.by_remote { Side::Remote } else { Side::Local },
        count: reset.count,
        explanation: reason.as_deref().and_then(explanation).map(str::to_owned),
        reason,
    }
}

/// The reason that follows from the socket's state at a reset: the segment itself has no reason.
fn from_state(state: u8) -> &'static str {
    match i64::from(state) {
        uapi::TCP_SYN_SENT => "refused",
        uapi::TCP_ESTABLISHED | uapi::TCP_SYN_RECV => "aborted",
        _ => "aborted_while_closing",
    }
}

fn explanation(reason: &str) -> Option<&'static str> {
    Some(match reason {
        "refused" => "Nothing listens there, or a firewall rejects it.",
        "aborted" => "The peer aborted the connection.",
        "aborted_while_closing" => "The peer had closed, and data arrived later or stayed unread.",
        "NO_SOCKET" => "Nothing listens on the local port.",
        "TCP_STATE" => "Closed with SO_LINGER 0, or disconnected.",
        "TCP_ABORT_ON_CLOSE" => "Closed with unread data.",
        "TCP_ABORT_ON_DATA" => "Data arrived after the process had closed.",
        "TCP_ABORT_ON_LINGER" => "The linger timeout expired.",
        "TCP_ABORT_ON_MEMORY" => "Too many orphaned sockets, or too little memory for TCP.",
        "TCP_KEEPALIVE_TIMEOUT" => "The peer did not answer keepalives.",
        "TCP_DISCONNECT_WITH_DATA" => "Disconnected with data unsent.",
        "TCP_TIMEWAIT_SOCKET" => "A segment arrived for a connection in TIME_WAIT.",
        "INVALID_SYN" => "A SYN arrived in an open connection.",
        "TCP_INVALID_ACK_SEQUENCE" | "TCP_TOO_OLD_ACK" | "TCP_OLD_ACK" | "TCP_ACK_UNSENT_DATA" => {
            "The peer acknowledged data that was not sent: it restarted, or the segments belong to another connection."
        }
        "TCP_FLAGS" => "Invalid TCP flags.",
        _ => return None,
    })
}

fn unseen(gaps: &Gaps) -> Vec<Limitation> {
    let sockets = format!("without round trips. Limit: {} connections at the same time.", limits::RTT_SOCKETS);
    let closed = format!("only in `other`. Limit: {} closed connections per window.", limits::PROFILED_CLOSED);
    let closed_rtts =
        format!("without round trips. Limit: {} closed connections per window.", limits::PROFILED_CLOSED_RTTS);
    let waiting = format!("without round trips. Limit: {} per listener.", limits::WAITING_RTTS);
    let resets = format!("not listed. Limit: {} kinds per window.", limits::RESET_KINDS);
    let replies = format!("not in first_byte_us. Limit: {} listeners and remotes.", limits::REPLIERS);
    let older = "without segment counts. They opened before the window and were unreadable when it began.";
    let queued = "connection in accept queues of other network namespaces";
    let counted = [
        Limitation::counted(Code::RoundTripsUntracked, gaps.rtts_untracked, "segment", &sockets),
        Limitation::counted(Code::ClosedConnectionsMerged, gaps.closed_untracked, "connection", &closed),
        Limitation::counted(Code::ClosedRoundTripsUntracked, gaps.closed_rtts_untracked, "connection", &closed_rtts),
        Limitation::counted(Code::ResetsMerged, gaps.resets_untracked, "reset", &resets),
        Limitation::counted(Code::RepliesUntracked, gaps.replies_untracked, "reply", &replies),
        Limitation::counted(Code::OlderConnections, gaps.unknown, "connection", older),
        Limitation::counted(Code::WaitingRoundTripsUnread, gaps.unread_rtts, queued, &waiting),
    ];
    let reasons = "Reasons of sent resets, and resets from closed ports, are unavailable before Linux 6.12.";
    let reasons = gaps.reasons_unknown.then(|| Limitation::new(Code::ResetReasonsUnknown, reasons));
    counted.into_iter().flatten().chain(reasons).chain(gaps.unread.limits()).collect()
}
