//! Where packets die: every drop in the kernel with its reason, place, endpoints and owner, and the
//! counters of losses that no packet shows.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BoxSession, Feature, Host, Optional, Release, Tool};
use crate::{
    answer::{Code, Endpoint, Limit, Limitation, Measured, Owner, WindowMs},
    daemon::kernel::Loader,
    filter::{AddressRange, Comm, Filter, Pid, Port},
    limits,
    owner::Process,
    packet::Bytes,
    wire::Error,
};

mod condense;
mod counters;
mod reasons;
mod report;
mod routes;
mod sample;
mod text;
mod verdicts;

pub use counters::Counters;
pub use verdicts::Verdicts;

skeleton!("trace_drops");

/// Slots for flows on each CPU: [`limits::DROP_FLOWS`] in all, a power of two, and some on every CPU.
fn flow_slots() -> libbpf_rs::Result<u32> {
    let slots = limits::DROP_FLOWS / libbpf_rs::num_possible_cpus()?.next_power_of_two();
    Ok(slots.clamp(limits::DROP_FLOWS_PER_CPU_MIN, limits::DROP_FLOWS_PER_CPU_MAX) as u32)
}

/// Rows of drops where the caller set no `limit`: each carries its explanation, and 12 stay under 8 KB.
const ROWS: usize = 12;

/// The daemon's side: what was loaded.
pub struct TraceDrops(sample::DropTracer);

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct Input {
    // Long enough to see a neighbor fail: the kernel asks three times, a second apart.
    #[serde(default)]
    pub duration_ms: WindowMs<3_000>,
    /// Also drops of ordinary operation.
    #[serde(default)]
    pub include_benign: bool,
    /// Of the row's owner.
    #[serde(default)]
    pub process: Option<Comm>,
    #[serde(default)]
    pub pid: Option<Pid>,
    /// Source or destination.
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
    places: Vec<DropSite>,
    flows: Vec<Flow>,
    listeners: Vec<Listener>,
    /// How often a connection found an accept queue full, by network namespace with listeners.
    #[serde(default)]
    overflows: BTreeMap<u32, u64>,
    counters: Counters,
    /// Whether the kernel names the socket that a packet was for.
    receivers: bool,
    /// Of the daemon, and so of the counters.
    netns: u32,
    /// Drops that could not be counted.
    missed: u64,
    /// Interfaces with an XDP program, which sees packets first.
    #[serde(default)]
    xdp_interfaces: u64,
    #[serde(default)]
    lacks: Vec<Limitation>,
    window_ns: u64,
}

/// Everything that died in one place for one reason.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq)]
pub struct DropSite {
    reason: String,
    location: String,
    packets: u64,
}

/// The part of it with flows of their own.
#[derive(Serialize, Deserialize, Debug, Clone, Default)]
pub struct Flow {
    /// The same for the same flow while a session is open.
    #[serde(default)]
    id: u64,
    reason: String,
    location: String,
    packets: u64,
    protocol: u16,
    family: u16,
    /// `process` is the receiver of the packets, not their sender.
    receiver: bool,
    /// They came in by an interface; otherwise they were made here.
    arrived: bool,
    /// What their route would have called next.
    input: Option<String>,
    interface: Option<String>,
    /// The router that their route leads to.
    #[serde(default)]
    gateway: Option<IpAddr>,
    /// The interface that their route leads to, where it is another one.
    #[serde(default)]
    output: Option<String>,
    /// Their route leads back to the interface that they came in by.
    #[serde(default)]
    returns: bool,
    /// Of packets that the reverse-path filter dropped: the route to their source.
    #[serde(default)]
    route_back: Option<String>,
    /// The chain of nftables that dropped them, where the kernel lets us see it.
    rule: Option<String>,
    process: Process,
    header: Bytes,
}

#[derive(Serialize, Deserialize, Debug)]
pub struct Listener {
    /// Names the socket as long as it is open.
    #[serde(default)]
    socket: u64,
    process: Process,
    local: Endpoint,
    accept_queue: u32,
    accept_queue_max: u32,
    dropped: u64,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct Output {
    /// Most packets first.
    pub drops: Vec<Dropped>,
    // Dropped in all, benign ones included.
    pub packets: u64,
    // Of these, in ordinary operation.
    pub benign_packets: u64,
    /// Growth of kernel counters in netmond's network namespace: listen_overflows, syn_cookies_sent, conntrack_drops, softnet_dropped …
    #[schemars(with = "std::collections::BTreeMap<String, Option<u64>>")]
    pub counters: Counters,
    /// With drops or a full accept queue.
    pub listeners: Vec<ListenerDrops>,
    pub measured: Measured,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq)]
pub struct Dropped {
    // As this kernel names it.
    pub reason: String,
    // The kernel function that dropped it.
    pub location: String,
    pub protocol: Option<String>,
    /// TCP flags or ICMP message of the first packet.
    pub kind: Option<String>,
    pub source: Option<PartialEndpoint>,
    pub destination: Option<PartialEndpoint>,
    pub interface: Option<String>,
    pub path: Option<Path>,
    /// The router on its route.
    pub next_hop: Option<IpAddr>,
    /// nft family, table and base chain.
    pub rule: Option<String>,
    /// Of the receiving socket, else the sending one.
    pub owner: Owner,
    pub count: u64,
    pub explanation: String,
    // What to look at next.
    pub check: String,
    pub benign: bool,
    #[serde(skip)]
    #[schemars(skip)]
    pub course: Course,
}

/// Where the packets of a row were going, for `diagnose`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Course {
    /// All of them, also where the row has none since they differ.
    pub sources: BTreeSet<IpAddr>,
    pub destinations: BTreeSet<IpAddr>,
    /// Their TTL or hop limit was used up.
    pub expired: bool,
    /// Their route leads back to the interface that they came in by.
    pub returns: bool,
    pub output: Option<String>,
    pub route_back: Option<String>,
}

/// absent: the packets of this row differ in it, or have none.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[schemars(rename = "End")]
pub struct PartialEndpoint {
    pub address: Option<IpAddr>,
    pub port: Option<u16>,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Path {
    Input,
    Output,
    Forward,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct ListenerDrops {
    /// Identifies the socket, to join answers.
    #[serde(skip)]
    pub socket: u64,
    pub owner: Owner,
    pub local: Endpoint,
    pub accept_queue: u32,
    pub accept_queue_max: u32,
    // In the window.
    pub dropped: u64,
    // How often a connection found an accept queue of this network namespace full, in the window.
    pub netns_overflows: Option<u64>,
}

impl Tool for TraceDrops {
    const NAME: &'static str = "trace_drops";
    const TITLE: &'static str = "Find where packets are dropped, and why";
    const WHEN: &'static str = "packets do not arrive: what drops them, and why";
    const DESCRIPTION: &'static str = "Lists packets dropped on this host, in any network namespace: reason, kernel \
        function, endpoints, interface, process, what to check. Firewall, closed port, full buffer or queue, MTU, \
        route, neighbor, tc, XDP; also counters of accept queues, conntrack, NIC. Use if traffic does not arrive.";
    /// kfree_skb has reasons since then.
    const SINCE: Release = Release(5, 17);
    const FEATURES: &'static [Feature] =
        &[Feature::TracepointBtf, Feature::Fexit, Feature::IterateFiles, Feature::IterateMaps];
    const OPTIONAL: &'static [Optional] = &[
        Optional { programs: &["chain_ends"], needs: &[], lacks: None },
        Optional {
            programs: &["open_sockets"],
            needs: &[],
            lacks: Some((Code::HoldersUnknown, "Processes and listeners are unavailable")),
        },
        Optional {
            programs: &["symbols"],
            needs: &[],
            lacks: Some((Code::LocationsUnknown, "Kernel function names are unavailable")),
        },
    ];
    type Input = Input;
    type Sample = Sample;
    type Output = Output;

    fn load(loader: &mut Loader) -> Result<Self, Error> {
        sample::DropTracer::load(loader).map(TraceDrops)
    }

    fn open<'a>(&'a self, _: Input, _: &'a Host) -> Result<BoxSession<'a, Sample>, Error> {
        Ok(Box::new(self.0.open()?))
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

    fn duration(input: &Input) -> Duration {
        input.duration_ms.duration()
    }

    fn report(input: Input, sample: Sample) -> Output {
        report::report(input.include_benign, input.limit.rows(), &input.filter(), &sample)
    }

    fn shorten(output: &mut Output) -> bool {
        let cut = match output.drops.len() >= output.listeners.len() {
            true => output.drops.pop().is_some(),
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
