//! Who uses the bandwidth: bytes of every TCP and UDP socket, in every network namespace.
//!
//! TCP's own counters are read at both ends of a window; what closes in between hands its counters in.
//! UDP is counted by socket while a window is open. The daemon adds up by the grouping that was asked
//! for, so that 100,000 flows come to a few rows; what is cut stays in `other`, and all adds up to `total`.

use std::{net::IpAddr, sync::Arc, time::Duration};

use libbpf_rs::skel::SkelBuilder;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BoxSession, Feature, Host, Optional, Release, Tool};
use crate::{
    answer::{Code, Endpoint, Limit, Limitation, Measured, Owner, Protocol, Protocols, WindowMs},
    daemon::{
        attribution::own_netns,
        kernel::{self, Loader, lacks},
        window::monotonic_ns,
    },
    filter::{AddressRange, Comm, Filter, Pid, Port},
    owner::Process,
    tcp::Unread,
    wire::Error,
};

mod ledger;
mod narrow;
mod reduce;
mod report;
mod sample;
mod text;

skeleton!("top_traffic");

/// Rows where the caller set no `limit`: with endpoints and container ids they stay under 8 KB.
const ROWS: usize = 12;

/// What answers lack without the programs that see remotes.
const REMOTES_UNKNOWN: &str = "Remotes of unconnected UDP sockets are unavailable";

/// The daemon's side: what was loaded.
pub struct TopTraffic(Arc<sample::Counting>);

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
    #[serde(default)]
    pub duration_ms: WindowMs<2_000>,
    /// connection: one socket; port: the lower port number.
    #[serde(default)]
    pub group_by: GroupBy,
    #[serde(default)]
    pub protocol: Protocols,
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
    pub limit: Limit<ROWS>,
}

impl Input {
    fn filter(&self) -> Filter<'_> {
        Filter { process: self.process.as_ref(), pid: self.pid, remote: self.remote, port: self.port }
    }
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
    #[serde(default)]
    lacks: Vec<Limitation>,
    window_ns: u64,
}

/// What the kernel could not show, or had no room for.
#[derive(Serialize, Deserialize, Debug, Default, Clone, PartialEq)]
pub struct Gaps {
    /// UDP datagrams of sockets that there was no slot for. Their bytes are in the total.
    udp_untracked: u64,
    /// Of those of remotes that there was no slot for, since their socket has too many.
    #[serde(default)]
    udp_merged: u64,
    /// UDP sockets with some datagrams without a remote: their process does not request sender addresses.
    #[serde(default)]
    udp_unasked: u64,
    /// TCP connections that closed when there was no room. Their bytes are in the total …
    tcp_untracked: u64,
    /// … but for those of these.
    tcp_unknown: u64,
    /// TCP connections that were opened before the window, and that could not be read when it began.
    #[serde(default)]
    tcp_older: u64,
    #[serde(default)]
    past: Past,
    #[serde(default)]
    unread: Unread,
    /// Calls of sockets and changes of state that the kernel did not show.
    #[serde(default)]
    missed: u64,
}

/// Sockets with data that bypasses TCP and UDP.
#[derive(Serialize, Deserialize, Debug, Default, Clone, PartialEq)]
pub struct Past {
    /// TCP sockets in a sockmap with uncounted or partly counted data.
    sockmap: u64,
    /// AF_XDP.
    xdp: u64,
    /// AF_PACKET, of those that send.
    packet: u64,
    /// The calls of processes were seen.
    calls: bool,
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
    key: Key,
    process: Process,
    netns_name: Option<String>,
    protocol: Option<Protocol>,
    local: Option<Endpoint>,
    remote: Option<CommonRemote>,
    port: Option<u16>,
    bytes: Bytes,
    connections: u64,
    /// The cookies of those of them that another reading of the session may count as well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    sockets: Vec<u64>,
}

/// What makes a group.
#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[serde(rename_all = "snake_case")]
pub enum Key {
    Process(u32),
    /// The cgroup of a socket without a known process.
    Unowned(u64),
    Socket(u64),
    Remote(IpAddr),
    Cgroup(u64),
    Netns(u32),
    Port(u16),
}

/// The other end.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq)]
#[schemars(inline)]
pub struct CommonRemote {
    pub address: IpAddr,
    /// absent: several.
    pub port: Option<u16>,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct Output {
    /// Most bytes first.
    pub rows: Vec<Row>,
    /// Sum of the omitted rows.
    pub other: Other,
    /// Payload without headers. Traffic between two sockets of this host counts twice.
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
    /// Several owners: their common fields.
    pub owner: Owner,
    /// absent: both.
    pub protocol: Option<Protocol>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<Endpoint>,
    /// Also absent if the process does not request sender addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote: Option<CommonRemote>,
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

impl Tool for TopTraffic {
    const NAME: &'static str = "top_traffic";
    const TITLE: &'static str = "Find who uses the bandwidth";
    const WHEN: &'static str = "who uses the bandwidth, by process, remote, unit, container, port";
    const DESCRIPTION: &'static str = "Finds who uses the bandwidth: bytes and rates by process, connection, remote, systemd unit, container, \
        network namespace or port. TCP and UDP of the whole host, loopback and containers included; rows and `other` add up to `total`.";
    const SINCE: Release = Release(5, 15);
    const FEATURES: &'static [Feature] =
        &[Feature::TracepointBtf, Feature::IterateFiles, Feature::IterateTcp, Feature::IterateMaps, Feature::Cgroup];
    const OPTIONAL: &'static [Optional] = &[
        Optional {
            programs: &["udp_sent", "udp_received"],
            needs: &[],
            lacks: Some((Code::UdpNotCounted, "UDP is not counted")),
        },
        Optional {
            programs: &["remote_sent4", "remote_sent6", "remote_received4", "remote_received6"],
            needs: &[],
            lacks: Some((Code::UdpRemotesUnknown, REMOTES_UNKNOWN)),
        },
        Optional { programs: &["list_held", "forget_held"], needs: &[], lacks: lacks::HELD },
        Optional { programs: &["list_tcp", "forget_tcp"], needs: &[], lacks: lacks::UNHELD },
        Optional { programs: &["list_orphans"], needs: &[], lacks: lacks::ORPHANS },
    ];
    type Input = Input;
    type Sample = Sample;
    type Output = Output;

    fn load(loader: &mut Loader) -> Result<Self, Error> {
        let mut object = kernel::object();
        let mut open = skel::TopTrafficSkelBuilder::default().open(&mut object)?;
        if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
            (constants.own_netns, constants.seed) = (own_netns(), monotonic_ns());
        }
        if loader.features().tracepoint("sock_send_length").is_none() {
            // Nothing would take their notes.
            open.progs.remote_sent4.set_autoload(false);
            open.progs.remote_sent6.set_autoload(false);
            open.progs.remote_received4.set_autoload(false);
            open.progs.remote_received6.set_autoload(false);
        }
        let skel = loader.load(open)?;
        Ok(TopTraffic(Arc::new(sample::Counting::new(loader, &skel)?)))
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
        let Some(row) = output.rows.pop() else { return false };
        output.measured.rows_cut += 1;
        output.other.rows += 1;
        output.other.rx_bytes += row.rx_bytes;
        output.other.tx_bytes += row.tx_bytes;
        true
    }

    fn text(output: &Output) -> String {
        text::text(output)
    }
}

#[cfg(test)]
mod tests;
