//! What is open now: every TCP and UDP socket of every network namespace, with its owner and its state of health.
//!
//! Three iterators walk the kernel's own tables; nothing is attached. The daemon filters and ranks
//! while it reads, so that 100,000 sockets cost a few rows of memory and of JSON.

use std::{collections::BTreeMap, fmt, time::Duration};

use libbpf_rs::skel::SkelBuilder;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BoxSession, Feature, Host, Optional, Release, Tool};
use crate::{
    answer::{Code, Endpoint, Limit, Limitation, Measured, Owner, Protocol, Protocols},
    daemon::{
        kernel::{self, Loader},
        session::Snapshot,
    },
    filter::{Comm, Pid, Port},
    owner::Process,
    tcp::LimitedBy,
    wire::Error,
};

mod report;
mod sample;
mod text;

skeleton!("snapshot_sockets");

/// Rows of each list where the caller set no `limit`: two lists of them, with container ids, stay under 8 KB.
const ROWS: usize = 8;

/// The daemon's side: what was loaded.
pub struct SnapshotSockets(sample::Iterators);

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct Input {
    #[serde(default)]
    pub protocol: Protocols,
    // Only sockets in this state.
    #[serde(default)]
    pub state: Option<State>,
    // Only sockets of processes with this name (comm).
    #[serde(default)]
    pub process: Option<Comm>,
    // Only sockets that this process holds.
    #[serde(default)]
    pub pid: Option<Pid>,
    /// At either end.
    #[serde(default)]
    pub port: Option<Port>,
    /// Adds the fields of `ss -i`.
    #[serde(default)]
    pub detail: bool,
    /// Rows per list.
    #[serde(default)]
    pub limit: Limit<ROWS>,
}

// A TCP state; UDP sockets are `unconnected` or `established`.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Established,
    SynSent,
    SynRecv,
    FinWait1,
    FinWait2,
    TimeWait,
    Close,
    CloseWait,
    LastAck,
    Listen,
    Closing,
    Unconnected,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.serialize(f)
    }
}

#[derive(Serialize, Deserialize, Debug, Default)]
pub struct Sample {
    sockets: Vec<(Process, Row)>,
    sockets_cut: u64,
    listeners: Vec<(Process, Listening)>,
    listeners_cut: u64,
    states: BTreeMap<State, u64>,
    /// Whether some are in another network namespace than the daemon.
    other_netns: bool,
    /// TCP sockets in a sockmap.
    #[serde(default)]
    redirected: u64,
    /// Sockets that processes use through io_uring, beyond what is read of one ring.
    #[serde(default)]
    rings: u64,
    #[serde(default)]
    lacks: Vec<Limitation>,
    /// With `detail`.
    #[serde(default)]
    queues: Vec<Queue>,
    /// CLOCK_MONOTONIC of the reading of the queues.
    #[serde(default)]
    at_ns: u64,
    took_ns: u64,
}

/// The queueing discipline before a device, in whichever network namespace, for `diagnose`.
#[derive(Serialize, Deserialize, Debug, Clone, Default)]
pub struct Queue {
    pub netns: u32,
    pub interface: String,
    pub kind: String,
    pub backlog_bytes: u32,
    /// Packets, …
    pub dropped: u32,
    /// … and bytes that have left, since it was set up.
    pub bytes: u64,
}

/// A socket that does not listen, as the kernel holds it.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct Row {
    protocol: Protocol,
    state: State,
    local: Endpoint,
    remote: Endpoint,
    send_queue: u32,
    receive_queue: u32,
    drops: u32,
    #[serde(default)]
    kernel: bool,
    tcp: Option<Tcp>,
}

/// What only a full TCP socket has.
#[derive(Serialize, Deserialize, Debug, Clone, Default)]
#[serde(default)] // a daemon of another release says less
pub struct Tcp {
    congestion_control: String,
    /// As the kernel holds them: the smoothed round-trip time times 8, its mean deviation times 4.
    srtt_us: u32,
    mdev_us: u32,
    min_rtt_us: u32,
    cwnd: u32,
    ssthresh: u32,
    mss: u32,
    send_window: u32,
    not_sent: u32,
    packets_out: u32,
    lost_out: u32,
    total_retransmits: u32,
    segments_in: u32,
    segments_out: u32,
    rx_bytes: u64,
    tx_bytes: u64,
    retransmitted_bytes: u64,
    pacing_bytes_per_second: u64,
    rate_delivered: u32,
    rate_interval_us: u32,
    /// `enum limited_by` of `limited.h`.
    limited_by: u8,
    delivered: u32,
    /// Retransmits of the oldest segment, and probes, that nothing has answered.
    retransmits_in_a_row: u8,
    probes: u8,
    /// Jiffies since anything came.
    silent: u32,
    inbound: bool,
    /// Jiffies since it opened: with data to send, of which waiting for the receiver, for its own send buffer; and now.
    waited: [u32; 3],
    jiffies: u32,
}

#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct Listening {
    /// Names the socket as long as it is open.
    #[serde(default)]
    socket: u64,
    local: Endpoint,
    accept_queue: u32,
    accept_queue_max: u32,
    half_open: u32,
    dropped: u32,
    #[serde(default)]
    kernel: bool,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct Output {
    /// Without listeners; worst first.
    pub sockets: Vec<Socket>,
    /// Fullest accept queue first.
    pub listeners: Vec<Listener>,
    /// Sockets per state; `state` and `limit` do not apply.
    #[schemars(with = "BTreeMap<String, u64>")]
    pub states: BTreeMap<State, u64>,
    #[serde(skip)]
    #[schemars(skip)]
    pub queues: Vec<Queue>,
    /// When they were read.
    #[serde(skip)]
    #[schemars(skip)]
    pub at_ns: u64,
    pub measured: Measured,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct Socket {
    pub owner: Owner,
    // The kernel's own, of a tunnel, NFS or iSCSI: no process can have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<bool>,
    pub protocol: Protocol,
    #[schemars(with = "String")]
    pub state: State,
    pub local: Endpoint,
    // null: not connected.
    pub remote: Option<Endpoint>,
    /// TCP: unacknowledged. UDP: memory of unsent data.
    pub send_queue_bytes: u32,
    /// TCP: unread. UDP: memory of unread data.
    pub receive_queue_bytes: u32,
    /// UDP: receive buffer full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropped: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwnd_packets: Option<u32>,
    // Segments sent again, in the connection's life.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retransmits: Option<u32>,
    /// Payload since it opened; TCP only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_bytes: Option<u64>,
    // The same; retransmissions count again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_bytes: Option<u64>,
    /// What the sender waits for; absent: nothing to send.
    pub limited_by: Option<LimitedBy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")]
    pub tcp: Option<TcpInfo>,
}

/// More of tcp_info, with `detail`.
#[derive(Serialize, Deserialize, Debug)]
pub struct TcpInfo {
    pub congestion_control: String,
    pub rtt_variation_us: u32,
    pub min_rtt_us: Option<u32>,
    pub ssthresh_packets: Option<u32>,
    pub mss_bytes: u32,
    pub send_window_bytes: u32,
    pub not_sent_bytes: u32,
    pub unacked_packets: u32,
    pub lost_packets: u32,
    pub segments_in: u32,
    pub segments_out: u32,
    pub retransmitted_bytes: u64,
    pub pacing_bits_per_second: Option<u64>,
    pub delivery_bits_per_second: Option<u64>,
    // Since it opened: how long it had data to send, and for how long of that it waited. The kernel's clock ticks 100 to
    // 1,000 times a second, and does not say.
    pub busy_jiffies: u32,
    pub receiver_limited_jiffies: u32,
    pub send_buffer_limited_jiffies: u32,
    pub clock_jiffies: u32,
    // Since the last segment came; and what was sent in vain: the oldest segment so often again, keepalives, window probes.
    pub silent_jiffies: u32,
    pub unanswered_retransmits: u8,
    pub unanswered_probes: u8,
    pub delivered_packets: u32,
    // Whether the other end opened it.
    pub inbound: bool,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct Listener {
    /// Identifies the socket, to join answers.
    #[serde(skip)]
    pub socket: u64,
    pub owner: Owner,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<bool>,
    pub protocol: Protocol,
    pub local: Endpoint,
    // Connections that wait to be accepted.
    pub accept_queue: u32,
    pub accept_queue_max: u32,
    // Handshakes that are not complete.
    pub half_open: u32,
    /// Since listen().
    pub dropped: u32,
}

impl Tool for SnapshotSockets {
    const NAME: &'static str = "snapshot_sockets";
    const TITLE: &'static str = "List open sockets and listeners";
    const WHEN: &'static str = "open sockets and listeners, their queues, owners, what limits them";
    const DESCRIPTION: &'static str = "Lists open TCP and UDP sockets of every network namespace and container: \
        owner, queues, RTT, retransmits, what limits the sender; listeners with accept queue and drops; counts by \
        state. Like `ss -tuianp`.";
    const SINCE: Release = Release(5, 15);
    const FEATURES: &'static [Feature] =
        &[Feature::IterateFiles, Feature::IterateTcp, Feature::IterateUdp, Feature::Loop];
    const OPTIONAL: &'static [Optional] = &[
        Optional {
            programs: &["list_files"],
            needs: &[],
            lacks: Some((Code::OwnersUnknown, "Owners and other network namespaces are unavailable")),
        },
        Optional {
            programs: &["list_tcp"],
            needs: &[],
            lacks: Some((
                Code::UnheldTcpNotSeen,
                "TCP sockets without a process are unavailable: those in accept queues, and closed ones that still send",
            )),
        },
        // For `diagnose` alone, which judges without it what packets and our own namespace's counters show.
        Optional { programs: &["list_queues"], needs: &[Feature::Loop], lacks: None },
        Optional {
            programs: &["list_udp"],
            needs: &[],
            lacks: Some((
                Code::UnheldUdpNotSeen,
                "UDP sockets without a process, such as the kernel's own, are unavailable",
            )),
        },
    ];
    type Input = Input;
    type Sample = Sample;
    type Output = Output;

    fn load(loader: &mut Loader) -> Result<Self, Error> {
        let mut object = kernel::object();
        let skel = loader.load(skel::SnapshotSocketsSkelBuilder::default().open(&mut object)?)?;
        Ok(SnapshotSockets(sample::Iterators::new(loader, &skel)?))
    }

    fn open<'a>(&'a self, input: Input, _: &'a Host) -> Result<BoxSession<'a, Sample>, Error> {
        Ok(Box::new(Snapshot(move || self.0.sample(&input))))
    }

    /// What is open is so at the end.
    fn merge(_: Sample, later: Sample) -> Sample {
        later
    }

    fn narrow(input: &Input, sample: Sample) -> Sample {
        report::narrow(input, sample)
    }

    fn duration(_: &Input) -> Duration {
        Duration::ZERO
    }

    fn report(input: Input, sample: Sample) -> Output {
        report::report(&input, sample)
    }

    fn shorten(output: &mut Output) -> bool {
        let cut = match output.sockets.len() >= output.listeners.len() {
            true => output.sockets.pop().is_some(),
            false => output.listeners.pop().is_some(),
        };
        output.measured.rows_cut += u64::from(cut);
        cut
    }

    fn text(output: &Output) -> String {
        text::text(output)
    }
}

#[cfg(test)]
mod tests;
