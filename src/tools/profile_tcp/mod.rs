//! Why TCP is slow: round trips, retransmits, what limits the senders, who resets connections.
//!
//! TCP's own counters are read at both ends of a window; a connection that closes in between reports its counters then.
//! Round trips are TCP's own RTT samples, counted by bucket in the kernel while a window is open.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BoxSession, Feature, Host, Optional, Release, Tool};
use crate::{
    answer::{Code, Endpoint, Limit, Limitation, Measured, Owner, WindowMs},
    daemon::kernel::{Loader, lacks},
    filter::{AddressRange, Comm, Filter, Pid, Port},
    numbers::round_trips,
    owner::Process,
    replies::Replies,
    tcp::{LimitedBy, Unread},
    wire::Error,
};

mod histogram;
mod ledger;
mod narrow;
mod reduce;
mod repliers;
mod replies;
mod report;
mod sample;
mod text;

use histogram::Histogram;
use replies::ListenerRow;
pub use replies::{FirstByte, Service, repliers};

skeleton!("profile_tcp");

/// The weight of a jiffy of waiting, where that of a segment is 1.
const JIFFY: u64 = round_trips::JIFFY_WEIGHT as u64;
/// From here on a round trip is slow, or very slow.
pub const SLOW_US: u64 = round_trips::SLOW_US as u64;
pub const VERY_SLOW_US: u64 = round_trips::VERY_SLOW_US as u64;
/// A reply is slow from here on: after 1 s users lose their flow of thought (Nielsen, "Response times: the 3 important
/// limits").
pub const SLOW_REPLY: Duration = Duration::from_secs(1);

/// Rows of each list where the caller set no `limit`: with two owners in each they stay under 8 KB.
const ROWS: usize = 4;

/// The daemon's side: what was loaded.
pub struct ProfileTcp(Arc<sample::Profiler>);

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct Input {
    #[serde(default)]
    pub duration_ms: WindowMs<5_000>,
    #[serde(default)]
    pub process: Option<Comm>,
    #[serde(default)]
    pub pid: Option<Pid>,
    #[serde(default)]
    pub remote: Option<AddressRange>,
    /// At either end.
    #[serde(default)]
    pub port: Option<Port>,
    /// Rows per list.
    #[serde(default)]
    pub limit: Limit<ROWS>,
}

impl Input {
    fn filter(&self) -> Filter<'_> {
        Filter { process: self.process.as_ref(), pid: self.pid, remote: self.remote, port: self.port }
    }
}

#[derive(Serialize, Deserialize, Debug, Default)]
pub struct Sample {
    remotes: Vec<Group>,
    remotes_cut: u64,
    resets: Vec<Reset>,
    resets_cut: u64,
    /// How long programs of this host took to reply.
    #[serde(default)]
    services: Vec<Service>,
    /// Of all that matches, rows or not, and of what was not tracked.
    total: Counts,
    gaps: Gaps,
    /// Program runs that the kernel skipped.
    missed: u64,
    #[serde(default)]
    lacks: Vec<Limitation>,
    clock: Clock,
    window_ns: u64,
}

/// How far both of the kernel's clocks went: its HZ, in which senders' waits are counted, is not to be had.
#[derive(Serialize, Deserialize, Debug, Default, Clone, Copy, PartialEq)]
pub struct Clock {
    jiffies: u64,
    ns: u64,
}

/// What the kernel could not show, or had no room for.
#[derive(Serialize, Deserialize, Debug, Default, Clone, PartialEq)]
pub struct Gaps {
    /// Segments of sockets that there was no room for.
    rtts_untracked: u64,
    /// Connections that closed when there was no room. What they sent is in the total if they opened in the window.
    closed_untracked: u64,
    /// Closed connections without room for their round trips.
    closed_rtts_untracked: u64,
    resets_untracked: u64,
    /// Exchanges without a free histogram.
    #[serde(default)]
    replies_untracked: u64,
    /// The kernel does not say why it sends a reset, and says nothing of those that no socket sends.
    reasons_unknown: bool,
    /// Connections with unknown counters at the window's beginning: they were unreadable then.
    unknown: u64,
    #[serde(default)]
    unread: Unread,
    /// Connections in accept queues beyond those of one listener with readable round trips.
    #[serde(default)]
    unread_rtts: u64,
}

/// What some sockets have sent.
#[derive(Serialize, Deserialize, Debug, Default, Clone, Copy, PartialEq)]
pub struct Counts {
    connections: u64,
    segments_out: u64,
    retransmits: u64,
    /// Of the retransmits, those that the receiver had already.
    spurious: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, more: Counts) {
        self.connections += more.connections;
        self.segments_out += more.segments_out;
        self.retransmits += more.retransmits;
        self.spurious += more.spurious;
    }
}

/// What senders waited for, in jiffies, and how segments found them.
#[derive(Serialize, Deserialize, Debug, Default, Clone, Copy, PartialEq)]
pub struct Waits {
    /// For the network or for the application.
    busy: u64,
    receiver: u64,
    send_buffer: u64,
    /// How much of `busy` was for which, by weight: [`JIFFY`] a jiffy, and 1 a segment.
    #[serde(default)]
    network: u64,
    #[serde(default)]
    application: u64,
}

impl std::ops::AddAssign for Waits {
    fn add_assign(&mut self, more: Waits) {
        self.busy += more.busy;
        self.receiver += more.receiver;
        self.send_buffer += more.send_buffer;
        self.network += more.network;
        self.application += more.application;
    }
}

/// Round trips that the receiver's timer for acknowledgements cannot have made longer, and how many of them were slow.
#[derive(Serialize, Deserialize, Debug, Default, Clone, Copy, PartialEq)]
pub struct Prompt {
    pub samples: u64,
    /// Of [`SLOW_US`] or more.
    pub slow: u64,
    /// Of [`VERY_SLOW_US`] or more.
    pub very_slow: u64,
}

impl std::ops::AddAssign for Prompt {
    fn add_assign(&mut self, more: Prompt) {
        self.samples += more.samples;
        self.slow += more.slow;
        self.very_slow += more.very_slow;
    }
}

/// The connections to one remote.
#[derive(Serialize, Deserialize, Debug, Default, Clone)]
pub struct Group {
    remote: Option<RemoteEnd>,
    counts: Counts,
    rtt: Histogram,
    #[serde(default)]
    prompt: Prompt,
    waits: Waits,
    /// Of this host's requests to it.
    #[serde(default)]
    replies: Replies,
    owners: Vec<(Process, Counts)>,
    /// The cookies of those of its connections that another reading of the session may count as well, each with the place
    /// of its owner.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    sockets: Vec<(u64, usize)>,
}

/// Resets that are alike.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct Reset {
    /// The same for the same kind of reset while a session is open.
    #[serde(default)]
    id: u64,
    process: Process,
    local: Endpoint,
    remote: Endpoint,
    by_remote: bool,
    /// The socket's state (TCP_* of tcp_states.h); 0 = there was no socket.
    state: u8,
    /// As this kernel names it.
    reason: Option<String>,
    count: u64,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct Output {
    /// Most retransmits first, then slowest.
    pub remotes: Vec<RemoteRow>,
    /// Owner, local, rtt_us, first_byte_us (request received to reply sent, all clients).
    #[schemars(with = "Vec<Owner>")]
    pub listeners: Vec<ListenerRow>,
    pub resets: Vec<ResetRow>,
    /// The omitted remotes.
    #[schemars(with = "BTreeMap<String, u64>")]
    pub other: Other,
    /// Of all listeners.
    #[serde(skip)]
    pub services: Vec<Service>,
    pub measured: Measured,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct RemoteRow {
    pub remote: RemoteEnd,
    pub connections: u64,
    /// At most 2, with their counts.
    #[schemars(with = "Vec<Owner>")]
    pub owners: Vec<OwnerRow>,
    /// With delayed ACKs: min, p50, p90, p99 (up to 25 % too high), max, samples.
    #[schemars(with = "Option<BTreeMap<String, u64>>")]
    pub rtt_us: Option<Rtt>,
    /// Request sent to reply received: count, p50, p90, p99, max.
    #[schemars(with = "Option<BTreeMap<String, u64>>")]
    pub first_byte_us: Option<FirstByte>,
    #[serde(skip)]
    pub prompt: Prompt,
    /// Includes pure ACKs.
    pub segments_out: u64,
    pub retransmits: u64,
    /// Not needed (DSACK).
    pub spurious: u64,
    /// Of segments_out.
    pub retransmit_percent: f64,
    /// What the sender waited for most.
    pub limited_by: Option<LimitedBy>,
    #[schemars(with = "BTreeMap<String, u64>")]
    pub limited_ms: BTreeMap<LimitedBy, u64>,
}

// The other end.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq)]
#[schemars(inline)]
pub struct RemoteEnd {
    pub address: IpAddr,
    /// absent: clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

#[derive(Serialize, Deserialize, Debug)]
pub struct OwnerRow {
    #[serde(flatten)]
    pub owner: Owner,
    pub connections: u64,
    pub segments_out: u64,
    pub retransmits: u64,
}

/// Round-trip times of the window, in microseconds.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq)]
pub struct Rtt {
    pub min: u32,
    pub p50: u32,
    pub p90: u32,
    pub p99: u32,
    pub max: u32,
    pub samples: u64,
}

#[derive(Serialize, Deserialize, Debug)]
pub struct Other {
    pub connections: u64,
    pub segments_out: u64,
    pub retransmits: u64,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct ResetRow {
    pub owner: Owner,
    pub local: Endpoint,
    pub remote: Endpoint,
    pub sent_by: Side,
    pub count: u64,
    /// The kernel's name; lower case: inferred.
    pub reason: Option<String>,
    pub explanation: Option<String>,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Side {
    Local,
    Remote,
}

impl Tool for ProfileTcp {
    const NAME: &'static str = "profile_tcp";
    const TITLE: &'static str = "Find why TCP is slow";
    const WHEN: &'static str =
        "why TCP is slow (RTT, time to first byte, retransmits, what limits senders), who resets connections";
    const DESCRIPTION: &'static str = "Finds why TCP is slow. Per remote: RTT, time to first byte, retransmits, what \
        limited the sender. Per listener: time to first byte. Resets: sender, reason. Whole host.";
    const SINCE: Release = Release(5, 15);
    const FEATURES: &'static [Feature] =
        &[Feature::TracepointBtf, Feature::IterateFiles, Feature::IterateTcp, Feature::IterateMaps];
    const OPTIONAL: &'static [Optional] = &[
        Optional {
            programs: &["reset_sent", "reset_sent_with_reason", "reset_received"],
            needs: &[],
            lacks: Some((Code::ResetsNotSeen, "Some resets are not counted")),
        },
        Optional { programs: &["list_held", "list_rtts_held", "forget_held"], needs: &[], lacks: lacks::HELD },
        Optional { programs: &["list_tcp", "list_rtts_tcp", "forget_tcp"], needs: &[], lacks: lacks::UNHELD },
        Optional { programs: &["list_orphans"], needs: &[], lacks: lacks::ORPHANS },
    ];
    type Input = Input;
    type Sample = Sample;
    type Output = Output;

    fn load(loader: &mut Loader) -> Result<Self, Error> {
        Ok(ProfileTcp(Arc::new(sample::Profiler::load(loader)?)))
    }

    fn open<'a>(&'a self, input: Input, _: &'a Host) -> Result<BoxSession<'a, Sample>, Error> {
        Ok(Box::new(self.0.open(input)?))
    }

    fn merge(earlier: Sample, later: Sample) -> Sample {
        report::merge(earlier, later)
    }

    fn reduce(sum: Sample) -> Sample {
        reduce::reduce(sum)
    }

    fn narrow(input: &Input, sample: Sample) -> Sample {
        narrow::narrow(input, sample)
    }

    fn duration(input: &Input) -> Duration {
        input.duration_ms.duration()
    }

    fn report(input: Input, sample: Sample) -> Output {
        report::report(&input, sample)
    }

    fn shorten(output: &mut Output) -> bool {
        report::shorten(output)
    }

    fn text(output: &Output) -> String {
        text::text(output)
    }
}

#[cfg(test)]
mod tests;
