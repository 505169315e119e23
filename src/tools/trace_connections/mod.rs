//! Who connects where, what fails, and how long it takes: every TCP connection of the window, both directions.
//!
//! The kernel reports a connection once, at its end; what is open when the window ends is read from
//! the sockets themselves. So a connection is one row, whenever it began, and each window takes
//! those that opened, failed or closed within it.

use std::{collections::BTreeMap, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BoxSession, Feature, Host, Optional, Release, Tool};
use crate::{
    answer::{Code, Endpoint, Limit, Limitation, Measured, Owner, WindowMs},
    daemon::kernel::{self, Loader, lacks},
    filter::{AddressRange, Comm, Pid, Port},
    owner::Process,
    tcp::Unread,
    wire::Error,
};

mod collected;
mod condense;
mod report;
mod sample;
mod text;

skeleton!("trace_connections");

/// The daemon's side: what was loaded.
pub struct TraceConnections(sample::ConnectionTracer);

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Default)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Directions {
    #[default]
    Any,
    Outbound,
    Inbound,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Default)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Outcomes {
    #[default]
    Any,
    Failed,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct Input {
    #[serde(default)]
    pub duration_ms: WindowMs<5_000>,
    #[serde(default)]
    pub direction: Directions,
    /// failed: failed connections only.
    #[serde(default)]
    pub outcome: Outcomes,
    #[serde(default)]
    pub process: Option<Comm>,
    #[serde(default)]
    pub pid: Option<Pid>,
    #[serde(default)]
    pub remote: Option<AddressRange>,
    /// At either end.
    #[serde(default)]
    pub port: Option<Port>,
    #[serde(default)]
    pub limit: Limit,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Direction {
    Outbound,
    Inbound,
}

/// Result of the connect.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Outcome {
    Connecting,
    Established,
    Refused,
    TimedOut,
    Unreachable,
    Reset,
    NoLocalPort,
    Denied,
    Other,
}

impl Outcome {
    pub const ALL: [Outcome; 9] = [
        Outcome::Connecting,
        Outcome::Established,
        Outcome::Refused,
        Outcome::TimedOut,
        Outcome::Unreachable,
        Outcome::Reset,
        Outcome::NoLocalPort,
        Outcome::Denied,
        Outcome::Other,
    ];

    /// From how a connection ended, and the error that its process saw.
    pub fn new(end: ConnectionState, errno: i32) -> Outcome {
        match (end, errno) {
            (ConnectionState::Open | ConnectionState::Closed, _) => Outcome::Established,
            (ConnectionState::Connecting, _) => Outcome::Connecting,
            (ConnectionState::Aborted, _) => Outcome::Reset,
            (_, libc::ECONNREFUSED) => Outcome::Refused,
            (_, libc::ETIMEDOUT) => Outcome::TimedOut,
            // A blackhole route answers EINVAL.
            (_, libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EINVAL | libc::ENETDOWN) => Outcome::Unreachable,
            (_, libc::ECONNRESET | libc::EPIPE) => Outcome::Reset,
            (_, libc::EADDRNOTAVAIL) => Outcome::NoLocalPort,
            (_, libc::EACCES | libc::EPERM) => Outcome::Denied,
            _ => Outcome::Other,
        }
    }

    pub fn is_failure(self) -> bool {
        !matches!(self, Outcome::Connecting | Outcome::Established)
    }

    fn words(self) -> &'static str {
        match self {
            Outcome::Connecting => "connecting",
            Outcome::Established => "established",
            Outcome::Refused => "refused",
            Outcome::TimedOut => "timed out",
            Outcome::Unreachable => "unreachable",
            Outcome::Reset => "reset",
            Outcome::NoLocalPort => "no local port",
            Outcome::Denied => "denied",
            Outcome::Other => "other",
        }
    }
}

/// How a connection ended, as the kernel's state changes tell it.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConnectionState {
    Open,
    Connecting,
    /// By both sides, in order.
    Closed,
    /// By a reset that this side sent.
    Aborted,
    /// Was established, and ended with an error.
    Broken,
    /// Never was.
    Failed,
}

impl ConnectionState {
    /// Whether it is, or was, established.
    fn came_about(self) -> bool {
        !matches!(self, ConnectionState::Connecting | ConnectionState::Failed)
    }
}

/// What shows, on this kernel, an attempt that ends before a packet is made.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq)]
pub enum Shows {
    /// connect() returning, by fexit: all of them.
    #[default]
    Returns,
    /// The look-up of a route.
    Routes,
    Nothing,
}

impl Shows {
    fn limit(self) -> Option<Limitation> {
        let routes = "This kernel refuses fexit programs. Missing: connects that a policy (cgroup eBPF, security \
            module, `ip rule`) denies, and connects without a route from io_uring or 32-bit code.";
        let nothing = "Unavailable on this kernel: connects that fail before their first packet (no route, denied).";
        match self {
            Shows::Returns => None,
            Shows::Routes => Some(Limitation::new(Code::DeniedConnectsNotSeen, routes)),
            Shows::Nothing => Some(Limitation::new(Code::FailedConnectsNotSeen, nothing)),
        }
    }
}

#[derive(Serialize, Deserialize, Debug, Default)]
pub struct Sample {
    rows: Vec<Row>,
    /// The bytes so far of open connections that an earlier reading reported.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    updates: Vec<Row>,
    counts: BTreeMap<Outcome, u64>,
    cut: u64,
    lost: u64,
    #[serde(default)]
    unread: Unread,
    shows: Shows,
    opened_ns: u64,
    #[serde(default)]
    lacks: Vec<Limitation>,
    ended_ns: u64,
}

/// A connection, or an attempt. Times are CLOCK_MONOTONIC; 0 is not known or not yet.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Row {
    process: Process,
    direction: Direction,
    local: Endpoint,
    remote: Endpoint,
    end: ConnectionState,
    errno: i32,
    /// When it ended, its process had closed it already.
    #[serde(default)]
    closing: bool,
    start_ns: u64,
    established_ns: u64,
    end_ns: u64,
    rx_bytes: u64,
    tx_bytes: u64,
    rtt_us: u32,
    retransmits: u32,
    /// In a recording: further connections like this one, without rows of their own.
    #[serde(default, skip_serializing_if = "crate::answer::is_zero")]
    alike: u32,
    /// Those have other process numbers and remotes, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    mixed: bool,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct Output {
    /// Failures first, then the slowest.
    pub connections: Vec<Connection>,
    /// Includes rows cut by `limit`.
    #[schemars(with = "BTreeMap<String, u64>")]
    pub outcomes: BTreeMap<Outcome, u64>,
    pub measured: Measured,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug)]
pub struct Connection {
    pub owner: Owner,
    pub direction: Direction,
    // null if the attempt ended before it had a port.
    pub local: Option<Endpoint>,
    pub remote: Endpoint,
    pub outcome: Outcome,
    // It was established, also if it ended in a failure.
    pub established: bool,
    // When it ended, its process had closed it already.
    #[serde(skip)]
    pub closing: bool,
    // The error's name.
    pub errno: Option<String>,
    /// From connect() to its outcome; outbound only.
    pub connect_latency_us: Option<u64>,
    pub closed: bool,
    /// Until it closed, or now.
    pub duration_us: Option<u64>,
    /// Payload, each byte once.
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    // Smoothed round-trip time at the end.
    pub rtt_us: Option<u32>,
    pub retransmits: u32,
    // Further ones like it, without rows of their own.
    #[serde(skip)]
    pub alike: u32,
}

impl Tool for TraceConnections {
    const NAME: &'static str = "trace_connections";
    const TITLE: &'static str = "Trace TCP connections";
    const WHEN: &'static str = "who connects where, what fails and why, connect latency";
    const DESCRIPTION: &'static str = "Lists every TCP connection that opened, failed or closed in the window: owner, \
        ends, outcome, error, latency. All processes and network namespaces, outbound and inbound, short-lived ones \
        too.";
    const SINCE: Release = Release(5, 15);
    const FEATURES: &'static [Feature] =
        &[Feature::TracepointBtf, Feature::Fexit, Feature::IterateFiles, Feature::IterateTcp, Feature::IterateMaps];
    const OPTIONAL: &'static [Optional] = &[
        Optional { programs: &["list_held", "find_listeners"], needs: &[], lacks: lacks::HELD },
        Optional { programs: &["list_tcp"], needs: &[], lacks: lacks::UNHELD },
        Optional { programs: &["list_orphans"], needs: &[], lacks: lacks::ORPHANS },
    ];
    type Input = Input;
    type Sample = Sample;
    type Output = Output;

    fn load(loader: &mut Loader) -> Result<Self, Error> {
        sample::ConnectionTracer::load(loader).map(TraceConnections)
    }

    fn open<'a>(&'a self, input: Input, _: &'a Host) -> Result<BoxSession<'a, Sample>, Error> {
        Ok(Box::new(self.0.open(input)?))
    }

    fn merge(earlier: Sample, later: Sample) -> Sample {
        report::merge(earlier, later)
    }

    fn condense(sample: Sample) -> Sample {
        condense::condense(sample)
    }

    fn reduce(sum: Sample) -> Sample {
        condense::reduce(sum)
    }

    fn narrow(input: &Input, sample: Sample) -> Sample {
        report::narrow(input, sample)
    }

    fn duration(input: &Input) -> Duration {
        input.duration_ms.duration()
    }

    fn report(input: Input, sample: Sample) -> Output {
        report::report(&input, sample)
    }

    fn shorten(output: &mut Output) -> bool {
        let cut = output.connections.pop().is_some();
        output.measured.rows_cut += u64::from(cut);
        cut
    }

    fn of_record(input: &Input, record: &[u8]) -> Option<Sample> {
        let mut collected = collected::Collected::new(input, 0);
        collected.add(&kernel::read(record)?);
        let collected::Period { rows, cut, counts, .. } = collected.finish(true);
        Some(Sample { rows, counts, cut, shows: Shows::Returns, ended_ns: u64::MAX, ..Sample::default() })
    }

    fn text(output: &Output) -> String {
        text::text(output)
    }
}

#[cfg(test)]
mod tests;
