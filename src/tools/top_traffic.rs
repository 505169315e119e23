//! Who uses the bandwidth: bytes of every TCP and UDP socket, in every network namespace.
//!
//! TCP's own counters are read at both ends of a window; what closes in between hands its counters in.
//! UDP is counted by socket while a window is open. The daemon adds up by the grouping that was asked
//! for, so that 100,000 flows come to a few rows; what is cut stays in `other`, and all adds up to `total`.

use std::{io, sync::Arc, time::Duration};

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Host, Tool};
use crate::{
    answer::{Endpoint, Limit, Measured, Owner, Protocols, Transport, WindowMs},
    attribution::Process,
    bpf::{self, Loader},
    btf,
    filter::{self, Comm, Filter},
    window::Window,
    wire::Error,
};

mod kernel;
mod ledger;
mod report;
#[cfg(test)]
mod tests;

#[allow(clippy::all, dead_code, non_camel_case_types, non_snake_case)]
mod skel {
    include!(concat!(env!("OUT_DIR"), "/top_traffic.rs"));
}

/// Rows where the caller set no `limit`: with endpoints and container ids they stay under 8 KB.
const ROWS: Limit = Limit::new(12);

/// The daemon's side: what was loaded.
pub struct T(Arc<kernel::Counting>);

/// What makes a row.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum GroupBy {
    #[default]
    Process,
    Connection,
    Remote,
    Unit,
    Container,
    Netns,
    Port,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Default 2000.
    #[serde(default = "two_seconds")]
    pub duration_ms: WindowMs,
    /// connection is one socket; port is the service's: the lower of a connection's two.
    #[serde(default)]
    pub group_by: GroupBy,
    #[serde(default)]
    pub protocol: Protocols,
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
    /// Rows; default 12.
    #[serde(default = "rows")]
    pub limit: Limit,
}

impl Input {
    fn filter(&self) -> Filter<'_> {
        Filter { process: self.process.as_ref(), pid: self.pid, remote: self.remote, port: self.port }
    }
}

fn two_seconds() -> WindowMs {
    WindowMs::new(2_000)
}

fn rows() -> Limit {
    ROWS
}

#[derive(Serialize, Deserialize, Debug, Default)]
pub struct Sample {
    /// The largest; of units and containers all cgroups, which the gateway puts together.
    rows: Vec<Group>,
    /// Groups that are not among the rows.
    rows_cut: u64,
    /// Of all groups and of what was not tracked.
    total: Bytes,
    gaps: Gaps,
    window_ns: u64,
}

/// What the kernel could not show, or had no room for.
#[derive(Serialize, Deserialize, Debug, Default, Clone, PartialEq)]
pub struct Gaps {
    /// UDP was asked for, and the kernel has no tracepoint for it.
    udp_uncounted: bool,
    /// UDP datagrams of sockets that there was no slot for. Their bytes are in the total.
    udp_untracked: u64,
    /// TCP connections that closed when there was no room. Their bytes are in the total …
    tcp_untracked: u64,
    /// … but for those of these.
    tcp_unknown: u64,
    /// TCP connections that closed and were opened before the window, and that nobody held when it began.
    #[serde(default)]
    tcp_older: u64,
    /// Sockets were seen in other network namespaces than the daemon's.
    other_netns: bool,
    /// Calls of sockets and changes of state that the kernel did not show.
    #[serde(default)]
    missed: u64,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug, Default, Clone, Copy, PartialEq)]
#[schemars(inline)]
pub struct Bytes {
    pub rx_bytes: u64,
    pub tx_bytes: u64,
}

impl Bytes {
    fn sum(&self) -> u64 {
        self.rx_bytes + self.tx_bytes
    }
}

impl std::ops::AddAssign for Bytes {
    fn add_assign(&mut self, more: Bytes) {
        self.rx_bytes += more.rx_bytes;
        self.tx_bytes += more.tx_bytes;
    }
}

/// What its sockets have in common, and what they moved.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq)]
pub struct Group {
    process: Process,
    netns_name: Option<String>,
    protocol: Option<Transport>,
    local: Option<Endpoint>,
    remote: Option<Remote>,
    port: Option<u16>,
    bytes: Bytes,
    connections: u64,
}

/// The other end.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq)]
#[schemars(inline)]
pub struct Remote {
    pub address: std::net::IpAddr,
    /// null: several.
    pub port: Option<u16>,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct Output {
    /// Most bytes first.
    pub rows: Vec<Row>,
    /// What the rows leave out: with them it adds up to `total`.
    pub other: Other,
    /// Payload: no headers. What two sockets of this host send each other counts at both.
    pub total: Bytes,
    pub measured: Measured,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
#[schemars(inline)]
pub struct Other {
    pub rows: u64,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct Row {
    /// Of several owners, what they have in common.
    pub owner: Owner,
    /// null: both.
    pub protocol: Option<Transport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<Endpoint>,
    /// null also for a UDP socket that is not connected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote: Option<Remote>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    // `ip netns` name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns_name: Option<String>,
    pub rx_bytes: u64,
    /// TCP retransmissions count again.
    pub tx_bytes: u64,
    pub rx_bits_per_second: f64,
    pub tx_bits_per_second: f64,
    // Sockets that moved something.
    pub connections: u64,
    // Of all bytes: 0 to 1.
    pub share: f64,
}

impl Tool for T {
    const NAME: &'static str = "top_traffic";
    const TITLE: &'static str = "Find who uses the bandwidth";
    const DESCRIPTION: &'static str = "Finds who uses the bandwidth: bytes and rates by process, connection, remote, systemd unit, container, \
        network namespace or port. TCP and UDP of the whole host, loopback and containers included; rows and `other` add up to `total`.";
    const NEEDS: &'static str = "Linux 5.15 or newer with BTF (CONFIG_DEBUG_INFO_BTF); 6.3 for UDP";
    type Input = Input;
    type Sample = Sample;
    type Output = Output;

    fn load(loader: &mut Loader) -> Result<Self, Error> {
        let mut object = bpf::object();
        let mut open = skel::TopTrafficSkelBuilder::default().open(&mut object)?;
        let counts_udp = btf::Kernel::read()?.arguments("sock_send_length").is_some();
        open.progs.udp_sent.set_autoload(counts_udp);
        open.progs.udp_received.set_autoload(counts_udp);
        let skel = open.load()?;
        Ok(T(Arc::new(kernel::Counting::new(loader, &skel, counts_udp)?)))
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
        report::output(&input, sample)
    }

    fn shorten(output: &mut Output) -> bool {
        let Some(row) = output.rows.pop() else { return false };
        output.measured.rows_cut += 1;
        output.other.rows += 1;
        output.other.rx_bytes += row.rx_bytes;
        output.other.tx_bytes += row.tx_bytes;
        true
    }

    fn text(output: &Output) -> String {
        report::text(output)
    }
}
