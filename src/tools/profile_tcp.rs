//! Why TCP is slow: round trips, what is sent again, what limits the senders, who resets connections.
//!
//! TCP's own counters are read at both ends of a window; what closes in between hands its counters in. Round trips
//! are the very samples from which TCP makes its average, counted by bucket in the kernel while a window is open.

use std::{collections::BTreeMap, io, net::IpAddr, sync::Arc, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Host, Tool};
use crate::{
    answer::{Endpoint, Limit, Measured, Owner, WindowMs},
    attribution::Process,
    bpf::Loader,
    filter::{self, Comm, Filter},
    tcp::LimitedBy,
    window::Window,
    wire::Error,
};

mod histogram;
mod kernel;
mod ledger;
mod report;
#[cfg(test)]
mod tests;

use histogram::Histogram;

#[allow(clippy::all, dead_code, non_camel_case_types, non_snake_case)]
mod skel {
    include!(concat!(env!("OUT_DIR"), "/profile_tcp.rs"));
}

/// Rows of each list where the caller set no `limit`: with two owners in each they stay under 8 KB.
const ROWS: Limit = Limit::new(5);

/// The daemon's side: what was loaded.
pub struct T(Arc<kernel::Profiler>);

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct Input {
    #[serde(default = "five_seconds")]
    pub duration_ms: WindowMs,
    #[serde(default)]
    pub process: Option<Comm>,
    #[serde(default, deserialize_with = "filter::pid")]
    #[schemars(range(min = 1))]
    pub pid: Option<u32>,
    #[serde(default)]
    pub remote: Option<filter::Remote>,
    /// Of either end.
    #[serde(default, deserialize_with = "filter::port")]
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// Rows of each list.
    #[serde(default = "rows")]
    pub limit: Limit,
}

impl Input {
    fn filter(&self) -> Filter<'_> {
        Filter { process: self.process.as_ref(), pid: self.pid, remote: self.remote, port: self.port }
    }
}

fn five_seconds() -> WindowMs {
    WindowMs::new(5_000)
}

fn rows() -> Limit {
    ROWS
}

#[derive(Serialize, Deserialize, Debug, Default)]
pub struct Sample {
    remotes: Vec<Group>,
    remotes_cut: u64,
    resets: Vec<Reset>,
    resets_cut: u64,
    /// Of all that matches, rows or not, and of what was not tracked.
    total: Counts,
    gaps: Gaps,
    /// Program runs that the kernel skipped.
    missed: u64,
    window_ns: u64,
}

/// What the kernel could not show, or had no room for.
#[derive(Serialize, Deserialize, Debug, Default, Clone, PartialEq)]
pub struct Gaps {
    /// Segments of sockets that there was no room for.
    rtts_untracked: u64,
    /// Connections that closed when there was no room. What they sent is in the total if they opened in the window.
    closed_untracked: u64,
    /// Connections that closed, and whose round trips there was no room for.
    closed_rtts_untracked: u64,
    resets_untracked: u64,
    /// The kernel does not say why it sends a reset, and says nothing of those that no socket sends.
    reasons_unknown: bool,
    /// Connections whose counters at the window's beginning are not known: no process held them.
    unknown: u64,
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

/// What senders waited for, in nanoseconds, and how segments found them.
#[derive(Serialize, Deserialize, Debug, Default, Clone, Copy, PartialEq)]
pub struct Waits {
    /// For the network or for the application.
    busy: u64,
    receiver: u64,
    send_buffer: u64,
    /// Segments that arrived when data waited to be sent …
    waiting: u64,
    /// … and when all of it was on its way.
    drained: u64,
}

/// The connections to one remote.
#[derive(Serialize, Deserialize, Debug, Default, Clone)]
pub struct Group {
    remote: Option<Remote>,
    counts: Counts,
    rtt: Histogram,
    waits: Waits,
    /// Those with the most retransmits.
    owners: Vec<(Process, Counts)>,
    owners_cut: u64,
}

/// Resets that are alike.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct Reset {
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
    /// The largest share of retransmits first, then the highest RTT.
    pub remotes: Vec<RemoteRow>,
    pub resets: Vec<ResetRow>,
    /// What `remotes` leaves out: connections, segments_out, retransmits.
    #[schemars(with = "BTreeMap<String, u64>")]
    pub other: Other,
    pub measured: Measured,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct RemoteRow {
    pub remote: Remote,
    pub connections: u64,
    /// At most 2, each with connections, segments_out, retransmits.
    #[schemars(with = "Vec<Owner>")]
    pub owners: Vec<OwnerRow>,
    /// The kernel's own samples: min, p50, p90, p99, max and how many. Percentiles are upper bounds, at most 25 % too high.
    #[schemars(with = "Option<BTreeMap<String, u64>>")]
    pub rtt_us: Option<Rtt>,
    /// All, also acknowledgements.
    pub segments_out: u64,
    pub retransmits: u64,
    /// Of these: had arrived (DSACK), so nothing was lost.
    pub spurious: u64,
    /// Of segments_out.
    pub retransmit_percent: f64,
    /// What most of the time was waited for; null: nothing was sent.
    pub limited_by: Option<LimitedBy>,
    #[schemars(with = "BTreeMap<String, u64>")]
    pub limited_ms: BTreeMap<LimitedBy, u64>,
}

// The other end.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq)]
#[schemars(inline)]
pub struct Remote {
    pub address: IpAddr,
    /// null: clients.
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
    pub sent_by: End,
    pub count: u64,
    /// The kernel's name; in lower case: our conclusion.
    pub reason: Option<String>,
    pub explanation: Option<String>,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum End {
    Local,
    Remote,
}

impl Tool for T {
    const NAME: &'static str = "profile_tcp";
    const TITLE: &'static str = "Find why TCP is slow";
    const DESCRIPTION: &'static str = "Finds why TCP is slow: by remote the RTT distribution, retransmits, and what limited the sender \
        (receiver, send buffer, network, application); who reset connections and why. Whole host, containers included.";
    const NEEDS: &'static str = "Linux 5.15 or newer with BTF (CONFIG_DEBUG_INFO_BTF)";
    type Input = Input;
    type Sample = Sample;
    type Output = Output;

    fn load(loader: &mut Loader) -> Result<Self, Error> {
        Ok(T(Arc::new(kernel::Profiler::load(loader)?)))
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

    fn report(_: Input, sample: Sample) -> Output {
        report::output(sample)
    }

    fn shorten(output: &mut Output) -> bool {
        if output.resets.len() > output.remotes.len() {
            output.resets.pop();
        } else {
            let Some(row) = output.remotes.pop() else { return false };
            output.other.connections += row.connections;
            output.other.segments_out += row.segments_out;
            output.other.retransmits += row.retransmits;
        }
        output.measured.rows_cut += 1;
        true
    }

    fn text(output: &Output) -> String {
        report::text(output)
    }
}
