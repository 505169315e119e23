//! Who connects where, what fails, and how long it takes: every TCP connection of the window, both directions.
//!
//! The kernel reports a connection once, at its end; what is open when the window ends is read from
//! the sockets themselves. So a connection is one row, whenever it began, and each window takes
//! those that opened, failed or closed within it.

use std::{collections::BTreeMap, io, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Host, Tool};
use crate::{
    answer::{self, Endpoint, Limit, Measured, Owner, WindowMs},
    attribution::Process,
    bpf::{self, Loader},
    filter::{self, Comm, Remote},
    window::Window,
    wire::Error,
};

mod collected;
mod watch;

#[allow(clippy::all, dead_code, non_camel_case_types, non_snake_case)]
mod skel {
    include!(concat!(env!("OUT_DIR"), "/trace_connections.rs"));
}

/// The daemon's side: what was loaded.
pub struct T(watch::Watch);

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
    #[serde(default = "duration")]
    pub duration_ms: WindowMs,
    #[serde(default)]
    pub direction: Directions,
    /// failed: only what did not end well.
    #[serde(default)]
    pub outcome: Outcomes,
    #[serde(default)]
    pub process: Option<Comm>,
    #[serde(default, deserialize_with = "filter::pid")]
    #[schemars(range(min = 1))]
    pub pid: Option<u32>,
    #[serde(default)]
    pub remote: Option<Remote>,
    /// Of either end.
    #[serde(default, deserialize_with = "filter::port")]
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    #[serde(default)]
    pub limit: Limit,
}

fn duration() -> WindowMs {
    WindowMs::new(5_000)
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Direction {
    Outbound,
    Inbound,
}

/// What became of a connection.
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
    pub fn new(end: End, errno: i32) -> Outcome {
        match (end, errno) {
            (End::Open | End::Closed, _) => Outcome::Established,
            (End::Connecting, _) => Outcome::Connecting,
            (End::Aborted, _) => Outcome::Reset,
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
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
pub enum End {
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

/// What shows, on this kernel, an attempt that ends before a packet is made.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq)]
pub enum Shows {
    /// connect() returning, by fexit: all of them.
    Returns,
    /// The look-up of a route.
    Routes,
    Nothing,
}

impl Shows {
    fn blind_spot(self) -> Option<&'static str> {
        match self {
            Shows::Returns => None,
            Shows::Routes => Some(
                "This kernel refuses fexit programs, so a connect is not seen that a policy (cgroup eBPF, security module, \
                 `ip rule`) denies, or that io_uring or 32-bit code makes without a route.",
            ),
            Shows::Nothing => Some("On this kernel a connect that fails before its first packet (no route, denied) is not seen."),
        }
    }
}

#[derive(Serialize, Deserialize, Debug)]
pub struct Sample {
    rows: Vec<Row>,
    counts: BTreeMap<Outcome, u64>,
    cut: u64,
    lost: u64,
    shows: Shows,
    opened_ns: u64,
    ended_ns: u64,
}

/// A connection, or an attempt. Times are CLOCK_MONOTONIC; 0 is not known or not yet.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Row {
    process: Process,
    direction: Direction,
    local: Endpoint,
    remote: Endpoint,
    end: End,
    errno: i32,
    start_ns: u64,
    established_ns: u64,
    end_ns: u64,
    rx_bytes: u64,
    tx_bytes: u64,
    rtt_us: u32,
    retransmits: u32,
}

/// A sample of the one record of the ring buffer that `bytes` are, whatever they are.
pub fn of_record(input: &Input, bytes: &[u8]) -> Option<Sample> {
    let mut collected = collected::Collected::new(input, 0);
    collected.add(&bpf::read(bytes)?);
    let (rows, cut, counts) = collected.finish();
    Some(Sample { rows, counts, cut, lost: 0, shows: Shows::Returns, opened_ns: 0, ended_ns: u64::MAX })
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct Output {
    /// Failures first, then the slowest.
    pub connections: Vec<Connection>,
    /// Also of those cut from the list.
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
    /// reset and timed_out also after it was established.
    pub outcome: Outcome,
    // The error's name.
    pub errno: Option<String>,
    /// From connect() to its outcome; outbound only.
    pub connect_latency_us: Option<u64>,
    pub closed: bool,
    /// To its end, or so far.
    pub duration_us: Option<u64>,
    /// Payload, each byte once.
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    // Smoothed round-trip time at the end.
    pub rtt_us: Option<u32>,
    pub retransmits: u32,
}

impl Tool for T {
    const NAME: &'static str = "trace_connections";
    const TITLE: &'static str = "Trace TCP connections";
    const DESCRIPTION: &'static str = "Who connects where, what fails and why, how long it takes: every TCP connection of every process and \
        namespace, outbound and inbound, that opened, failed or closed in the window; short-lived ones too.";
    const NEEDS: &'static str = "Linux 5.15 or newer with BTF (CONFIG_DEBUG_INFO_BTF)";
    type Input = Input;
    type Sample = Sample;
    type Output = Output;

    fn load(loader: &mut Loader) -> Result<Self, Error> {
        watch::Watch::load(loader).map(T)
    }

    fn rehearse(&self) -> io::Result<()> {
        self.0.rehearse()
    }

    fn sample(&self, input: &Input, _: &Host, window: &Window) -> Result<Sample, Error> {
        self.0.sample(input, window)
    }

    fn duration(input: &Input) -> Duration {
        input.duration_ms.duration()
    }

    fn report(input: Input, sample: Sample) -> Output {
        let mut measured = Measured::window(Duration::from_nanos(sample.ended_ns.saturating_sub(sample.opened_ns)));
        (measured.lost_events, measured.rows_cut) = (sample.lost, sample.cut);
        if input.direction != Directions::Inbound {
            measured.limits.extend(sample.shows.blind_spot().map(str::to_owned));
        }
        let connections = sample.rows.into_iter().map(|row| connection(row, sample.ended_ns)).collect();
        let counts = |outcome| (outcome, sample.counts.get(&outcome).copied().unwrap_or(0));
        Output { connections, outcomes: Outcome::ALL.into_iter().map(counts).collect(), measured }
    }

    fn shorten(output: &mut Output) -> bool {
        let cut = output.connections.pop().is_some();
        output.measured.rows_cut += u64::from(cut);
        cut
    }

    fn text(output: &Output) -> String {
        let mut text = summary(output);
        if !output.connections.is_empty() {
            text += "\n";
            text += &answer::table(
                ["process", "", "remote", "outcome", ">after", ">lasted", ">received", ">sent", ">rtt", ">retransmits"],
                output.connections.iter().map(line),
            );
        }
        text + &output.measured.text()
    }
}

fn connection(row: Row, now: u64) -> Connection {
    let closed = row.end_ns != 0;
    let outcome = Outcome::new(row.end, row.errno);
    let end = if closed { row.end_ns } else { now };
    let since = |from: u64, to: u64| (from != 0 && to >= from).then(|| (to - from) / 1_000);
    let answered = if row.end == End::Failed { row.end_ns } else { row.established_ns };
    Connection {
        owner: row.process.owner(),
        direction: row.direction,
        local: (row.local.port != 0).then_some(row.local),
        remote: row.remote,
        outcome,
        errno: (row.errno != 0).then(|| answer::errno_name(row.errno)),
        connect_latency_us: since(row.start_ns, answered).filter(|_| row.direction == Direction::Outbound),
        closed,
        duration_us: since(row.start_ns, end),
        rx_bytes: row.rx_bytes,
        tx_bytes: row.tx_bytes,
        rtt_us: (row.rtt_us != 0).then_some(row.rtt_us),
        retransmits: row.retransmits,
    }
}

/// `12 connections in 5.0 s: 10 established, 2 refused`.
fn summary(output: &Output) -> String {
    let seconds = output.measured.window_ms / 1e3;
    let counts = output.outcomes.iter().filter(|(_, count)| **count > 0);
    let parts: Vec<String> = counts.map(|(outcome, count)| format!("{count} {}", outcome.words())).collect();
    match output.outcomes.values().sum::<u64>() {
        0 => format!("No TCP connection opened, failed or closed in {seconds:.1} s.\n"),
        1 => format!("1 TCP connection in {seconds:.1} s: {}\n", parts.join(", ")),
        n => format!("{n} TCP connections in {seconds:.1} s: {}\n", parts.join(", ")),
    }
}

fn line(c: &Connection) -> [String; 10] {
    let time = |us: Option<u64>| us.map_or_else(|| "-".into(), answer::micros);
    let inbound = c.direction == Direction::Inbound;
    let local_port = c.local.map_or(0, |local| local.port);
    let outcome = match (&c.errno, c.outcome) {
        (Some(errno), outcome) => format!("{} ({errno})", outcome.words()),
        (None, Outcome::Other) => "given up".into(), // closed by its process before an answer came
        (None, outcome) => outcome.words().into(),
    };
    [
        c.owner.to_string(),
        if inbound { format!(":{local_port} ←") } else { "→".into() },
        c.remote.to_string(),
        outcome,
        time(c.connect_latency_us),
        if c.closed { time(c.duration_us) } else { "open".into() },
        answer::bytes(c.rx_bytes),
        answer::bytes(c.tx_bytes),
        time(c.rtt_us.map(u64::from)),
        c.retransmits.to_string(),
    ]
}

#[cfg(test)]
mod tests;
