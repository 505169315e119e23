//! The state of TCP per remote: from several readings of the same sockets, with the kernel's own counters and
//! chronometers.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use super::{
    evidence::{Connection, Evidence, ReceiveWindow, Rtt, TcpPath, common, program},
    receive_window,
};
use crate::{
    answer::{Endpoint, Owner},
    numbers::round_trips,
    tcp::LimitedBy,
    tools::{
        profile_tcp::{Prompt, SLOW_US, VERY_SLOW_US},
        snapshot_sockets::{Output, Socket, State, TcpInfo},
    },
};

/// One socket in the window: its successive readings.
pub type Series = Vec<Socket>;

/// What one socket did between its first reading and its last.
struct Course {
    owner: Owner,
    remote: Endpoint,
    outbound: bool,
    segments_out: u64,
    retransmits: u64,
    tx_bytes: u64,
    stuck: bool,
    hears: bool,
    passes_full: bool,
    window: ReceiveWindow,
    rtts_us: Vec<u64>,
    prompt: Prompt,
    min_rtt_us: Option<u64>,
    /// Shares of the time in which it had data to send.
    receiver_share: f64,
    send_buffer_share: f64,
}

/// The connections of the readings.
pub fn series(readings: Vec<Output>) -> Vec<Series> {
    let mut sockets = BTreeMap::<(Option<u32>, Endpoint, Endpoint), Series>::new();
    for socket in readings.into_iter().flat_map(|reading| reading.sockets) {
        let connected = socket.state != State::SynSent && socket.tcp.is_some();
        if let (Some(remote), true) = (socket.remote, connected) {
            sockets.entry((socket.owner.netns, socket.local, remote)).or_default().push(socket);
        }
    }
    sockets.into_values().collect()
}

/// The remotes that received data in the window, with all their senders.
pub fn remotes(series: &[Series], evidence: &Evidence) -> Vec<TcpPath> {
    let key = |socket: &Socket| (socket.local, socket.remote);
    let ends: BTreeMap<_, _> = series.iter().filter_map(|series| Some((key(series.last()?), series))).collect();
    let other_end = |series: &Series| {
        let last = series.last()?;
        ends.get(&(last.remote?, Some(last.local))).copied()
    };
    let courses = series.iter().filter_map(|series| {
        Some(Course {
            window: receive_window::of(series, other_end(series).map(Vec::as_slice)),
            ..course(series, evidence)?
        })
    });
    let mut groups = BTreeMap::<(Owner, IpAddr, Option<u16>), Vec<Course>>::new();
    for course in courses {
        // A client's port says nothing; a service's does.
        let port = course.outbound.then_some(course.remote.port);
        groups.entry((program(&course.owner), course.remote.address, port)).or_default().push(course);
    }
    groups.into_iter().map(|((_, address, port), courses)| remote(address, port, &courses, evidence.window)).collect()
}

fn course(series: &Series, evidence: &Evidence) -> Option<Course> {
    let (first, last) = (series.first()?, series.last()?);
    let segments = |socket: &Socket| socket.tcp.as_ref().map_or(0, |tcp| u64::from(tcp.segments_out));
    let grown = |figure: fn(&Socket) -> u64| figure(last).saturating_sub(figure(first));
    let segments_out = segments(last).saturating_sub(segments(first));
    let busy = waits(first, last, |tcp| tcp.busy_jiffies);
    if segments_out == 0 && busy == 0 {
        return None; // what it shows is of before the window
    }
    let clock = waits(first, last, |tcp| tcp.clock_jiffies);
    let share = |waited| if busy as f64 >= BUSY * clock as f64 { waited as f64 / busy.max(1) as f64 } else { 0.0 };
    let min_rtt = |socket: &Socket| socket.tcp.as_ref().and_then(|tcp| tcp.min_rtt_us).map(u64::from);
    Some(Course {
        owner: last.owner.clone(),
        remote: last.remote?,
        outbound: last.tcp.as_ref().is_some_and(|tcp| !tcp.inbound),
        segments_out,
        retransmits: grown(|socket| socket.retransmits.unwrap_or_default().into()),
        tx_bytes: grown(|socket| socket.tx_bytes.unwrap_or_default()),
        stuck: is_stuck(series) && !has_lost_its_peer(series, evidence),
        hears: hears(series),
        passes_full: passes_full(first, last),
        window: ReceiveWindow::default(),
        rtts_us: rtts(series, |_| true),
        prompt: prompt(series),
        min_rtt_us: series.iter().filter_map(min_rtt).min(),
        receiver_share: share(waits(first, last, |tcp| tcp.receiver_limited_jiffies)),
        send_buffer_share: share(waits(first, last, |tcp| tcp.send_buffer_limited_jiffies)).max(blocked_share(series)),
    })
}

/// Bytes of a segment that some link on the way may not take.
const BIG: u64 = 1_000;

/// Whether all that was sent in the later half of the readings was sent before, in segments of a size that some link on the
/// way may not take: every link takes 576 bytes, and most tunnels more than 1,000.
fn is_stuck(series: &Series) -> bool {
    /// One or two losses in a row are chance; the third retransmission comes after more than a second.
    const TIMES: u32 = 3;
    let later = &series[series.len() / 2..];
    let (Some(first), Some(last)) = (later.first(), later.last()) else { return false };
    let times = last.retransmits.unwrap_or_default();
    let again = resent(last) > resent(first) && fresh(last) == fresh(first);
    again && times >= TIMES && resent(last) >= BIG * u64::from(times)
}

fn resent(socket: &Socket) -> u64 {
    socket.tcp.as_ref().map_or(0, |tcp| tcp.retransmitted_bytes)
}

/// Sent, each byte once.
fn fresh(socket: &Socket) -> u64 {
    socket.tx_bytes.unwrap_or_default().saturating_sub(resent(socket))
}

/// Of what was sent, the bytes that arrived, and the segments.
fn arrived(socket: &Socket) -> (u64, u64) {
    let Some(tcp) = &socket.tcp else { return (0, 0) };
    let under_way = socket.send_queue_bytes.saturating_sub(tcp.not_sent_bytes);
    (fresh(socket).saturating_sub(under_way.into()), tcp.delivered_packets.into())
}

/// Whether something came in the later half of the readings.
fn hears(series: &Series) -> bool {
    let later = &series[series.len().saturating_sub(1) / 2..];
    let came = |socket: &Socket| socket.tcp.as_ref().map_or(0, |tcp| tcp.segments_in);
    matches!((later.first(), later.last()), (Some(first), Some(last)) if came(last) > came(first))
}

/// Whether full segments arrived in the window.
fn passes_full(first: &Socket, last: &Socket) -> bool {
    let ((bytes, packets), (bytes_before, packets_before)) = (arrived(last), arrived(first));
    let bytes = bytes.saturating_sub(bytes_before);
    bytes >= 2 * BIG && bytes >= BIG * packets.saturating_sub(packets_before)
}

/// A stuck connection: no packets from the peer, although earlier data arrived. Then the size is not the cause.
fn has_lost_its_peer(series: &Series, evidence: &Evidence) -> bool {
    let Some(last) = series.last() else { return false };
    let (bytes, packets) = arrived(last);
    let is_this = |c: &Connection| (c.local, c.remote) == (Some(last.local), last.remote) && !c.before;
    let is_new = evidence.connections.iter().any(is_this);
    !hears(series) && bytes >= BIG && !(is_new && bytes < BIG * packets)
}

/// The share of the readings in which all data was sent and the process waited for room to write more. The kernel's sum
/// omits this if acknowledgements come late.
fn blocked_share(series: &Series) -> f64 {
    /// With fewer readings, one momentary wait would weigh too much.
    const READINGS: usize = 5;
    let blocked = series.iter().filter(|socket| socket.limited_by == Some(LimitedBy::SendBuffer)).count();
    if series.len() < READINGS { 0.0 } else { blocked as f64 / series.len() as f64 }
}

/// A connection that sends in less than this share of the window has a burst, and its wait is over.
const BUSY: f64 = 0.1;

/// By how much a figure in jiffies, which wrap, grew between two readings.
fn waits(first: &Socket, last: &Socket, figure: fn(&TcpInfo) -> u32) -> u32 {
    let of = |socket: &Socket| socket.tcp.as_ref().map_or(0, figure);
    of(last).wrapping_sub(of(first))
}

/// Round trips measured in the window: an idle sender measures nothing, and its old figure stays.
fn rtts(series: &Series, of: fn(&TcpInfo) -> bool) -> Vec<u64> {
    let sent = series.windows(2).filter(|pair| pair[0].tx_bytes < pair[1].tx_bytes);
    let measured = sent.map(|pair| &pair[1]).filter(|socket| socket.tcp.as_ref().is_some_and(of));
    measured.filter_map(|socket| socket.rtt_us).map(u64::from).collect()
}

/// Samples with so much data in flight that the receiver's timer does not count: as in `round_trips.h`.
fn prompt(series: &Series) -> Prompt {
    let rtts = rtts(series, |tcp| i64::from(tcp.unacked_packets) >= round_trips::PROMPT_SEGMENTS);
    let from = |us: u64| rtts.iter().filter(|rtt| **rtt >= us).count() as u64;
    Prompt { samples: from(0), slow: from(SLOW_US), very_slow: from(VERY_SLOW_US) }
}

fn remote(address: IpAddr, port: Option<u16>, courses: &[Course], window: Duration) -> TcpPath {
    let sum = |figure: fn(&Course) -> u64| courses.iter().map(figure).sum::<u64>();
    // Of several connections the one that waits most counts: the others do not help it.
    let share = |part: fn(&Course) -> f64| courses.iter().map(part).fold(0.0, f64::max);
    let mut rtts: Vec<_> = courses.iter().flat_map(|course| course.rtts_us.iter().copied()).collect();
    rtts.sort_unstable();
    let at = |share: f64| rtts[((rtts.len() - 1) as f64 * share) as usize];
    let rtt = (!rtts.is_empty()).then(|| Rtt {
        min_us: courses.iter().filter_map(|course| course.min_rtt_us).min().unwrap_or(rtts[0]),
        p50_us: at(0.5),
        p99_us: at(0.99),
        samples: rtts.len() as u64,
    });
    TcpPath {
        owner: common(courses.iter().map(|course| &course.owner)),
        remote: Some(address),
        port,
        segments_out: sum(|course| course.segments_out),
        retransmits: sum(|course| course.retransmits),
        spurious: 0,
        stuck: sum(|course| course.stuck.into()),
        window: courses
            .iter()
            .max_by(|a, b| a.receiver_share.total_cmp(&b.receiver_share))
            .map(|course| course.window)
            .unwrap_or_default(),
        hears: courses.iter().any(|course| course.hears),
        passes_full: courses.iter().any(|course| course.passes_full),
        rtt,
        prompt: courses.iter().fold(Prompt::default(), |mut sum, course| {
            sum += course.prompt;
            sum
        }),
        receiver_share: share(|course| course.receiver_share),
        send_buffer_share: share(|course| course.send_buffer_share),
        tx_bits_per_second: sum(|course| course.tx_bytes) as f64 * 8.0 / window.as_secs_f64().max(0.1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::Measured;

    /// A reading of a connection that has sent this many segments, retransmitted this many, and waited for the receiver
    /// for this long.
    fn reading(clock: u32, segments_out: u32, retransmits: u32, waited: u32) -> Output {
        let socket = serde_json::json!({
            "owner": {"pid": 7, "process": "client", "unit": null, "container": null, "netns": 1},
            "protocol": "tcp", "state": "established",
            "local": {"address": "10.0.0.9", "port": 40_000}, "remote": {"address": "10.0.0.1", "port": 80},
            "send_queue_bytes": 0, "receive_queue_bytes": 0, "rtt_us": 1_000, "retransmits": retransmits,
            "tx_bytes": segments_out * 1_000, "limited_by": null,
            "tcp": {"congestion_control": "cubic", "rtt_variation_us": 1, "min_rtt_us": 500, "ssthresh_packets": null,
                "mss_bytes": 1_448, "send_window_bytes": 1, "not_sent_bytes": 0, "unacked_packets": 0, "lost_packets": 0,
                "segments_in": 0, "segments_out": segments_out, "retransmitted_bytes": 0, "pacing_bits_per_second": null,
                "delivery_bits_per_second": null, "busy_jiffies": clock / 2, "receiver_limited_jiffies": waited,
                "send_buffer_limited_jiffies": 0, "clock_jiffies": clock, "silent_jiffies": 0,
                "unanswered_retransmits": 0, "unanswered_probes": 0, "delivered_packets": 2, "inbound": false},
        });
        let sockets = vec![serde_json::from_value(socket).unwrap()];
        Output {
            sockets,
            listeners: vec![],
            states: BTreeMap::new(),
            queues: vec![],
            at_ns: 0,
            measured: Measured::default(),
        }
    }

    #[test]
    fn path_counts_only_growth_in_the_window() {
        let evidence = Evidence { window: Duration::from_secs(8), ..Evidence::default() };
        let readings = vec![reading(1_000, 100, 5, 50), reading(1_400, 150, 6, 70), reading(1_800, 300, 8, 150)];
        let found = remotes(&series(readings), &evidence);
        assert_eq!((found.len(), found[0].segments_out, found[0].retransmits), (1, 200, 3));
        assert_eq!((found[0].port, found[0].tx_bits_per_second), (Some(80), 200_000.0));
        assert_eq!((found[0].receiver_share, found[0].send_buffer_share), (0.25, 0.0));
        assert_eq!(found[0].rtt.map(|rtt| (rtt.min_us, rtt.p50_us, rtt.samples)), Some((500, 1_000, 2)));
        let idle = series(vec![reading(9, 100, 5, 4), reading(9, 100, 5, 4)]);
        assert!(remotes(&idle, &evidence).is_empty());
        let stuck = remotes(&series(vec![reading(0, 100, 5, 0), reading(800, 100, 5, 400)]), &evidence);
        assert_eq!(stuck[0].receiver_share, 1.0, "nothing goes out, for want of a window");
    }

    #[test]
    fn full_segments_sent_again_without_progress_are_stuck() {
        let again = |times: u32, bytes: u64, fresh: u64| {
            let mut output = reading(times * 100, 20 + times, times, 0);
            let socket = &mut output.sockets[0];
            socket.tx_bytes = Some(fresh + u64::from(times) * bytes);
            if let Some(tcp) = &mut socket.tcp {
                tcp.retransmitted_bytes = u64::from(times) * bytes;
            }
            output.sockets.remove(0)
        };
        assert!(is_stuck(&vec![again(1, 1_400, 20_000), again(3, 1_400, 20_000), again(5, 1_400, 20_000)]));
        assert!(!is_stuck(&vec![again(1, 1_400, 20_000), again(3, 1_400, 20_000), again(5, 1_400, 90_000)]), "goes on");
        assert!(!is_stuck(&vec![again(1, 200, 600), again(3, 200, 600), again(5, 200, 600)]), "its peer is gone");
        assert!(!is_stuck(&(0..3).map(|_| again(5, 1_400, 20_000)).collect()), "waits, and sends nothing");
    }

    #[test]
    fn silence_after_full_segments_is_a_lost_peer() {
        let stuck = |arrived: u32, delivered: u32, heard: u32| {
            let mut output = reading(100, 20, 3, 0);
            let socket = &mut output.sockets[0];
            (socket.tx_bytes, socket.send_queue_bytes) = (Some(u64::from(arrived) + 1_400), 1_400);
            if let Some(tcp) = &mut socket.tcp {
                (tcp.delivered_packets, tcp.segments_in) = (delivered, heard);
            }
            output.sockets.remove(0)
        };
        let lost = |series: Series, evidence: &Evidence| has_lost_its_peer(&series, evidence);
        let old = Evidence::default();
        assert!(lost(vec![stuck(90_000, 900, 5), stuck(90_000, 900, 5)], &old));
        assert!(!lost(vec![stuck(90_000, 900, 5), stuck(90_000, 900, 6)], &old), "it hears something");
        assert!(!lost(vec![stuck(300, 2, 5), stuck(300, 2, 5)], &old), "nothing of that size ever arrived");
        let (local, remote) = (stuck(0, 0, 0).local, stuck(0, 0, 0).remote);
        let connections = vec![Connection { local: Some(local), remote, ..Connection::default() }];
        let new = Evidence { connections, ..Evidence::default() };
        assert!(!lost(vec![stuck(90_000, 900, 5), stuck(90_000, 900, 5)], &new), "small ones arrived");
        assert!(lost(vec![stuck(90_000, 60, 5), stuck(90_000, 60, 5)], &new), "full ones arrived");
    }
}
