//! Where packets die: every drop in the kernel with its reason, place, endpoints and owner, and the
//! counters of losses that no packet shows.

use std::{io, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Host, Tool};
use crate::{
    answer::{Endpoint, Limit, Measured, Owner, WindowMs},
    attribution::Process,
    bpf::Loader,
    filter::{self, Comm, Filter},
    limits,
    packet::Bytes,
    window::Window,
    wire::Error,
};

mod counters;
mod kernel;
mod reasons;
mod report;
mod verdicts;

pub use counters::Counters;
pub use verdicts::Verdicts;

#[allow(clippy::all, dead_code, non_camel_case_types, non_snake_case)]
mod skel {
    include!(concat!(env!("OUT_DIR"), "/trace_drops.rs"));
}

/// Slots for flows on each CPU: [`limits::DROP_FLOWS`] in all, a power of two, and some on every CPU.
fn flow_slots() -> libbpf_rs::Result<u32> {
    let slots = limits::DROP_FLOWS / libbpf_rs::num_possible_cpus()?.next_power_of_two();
    Ok(slots.clamp(limits::DROP_FLOWS_PER_CPU_MIN, limits::DROP_FLOWS_PER_CPU_MAX) as u32)
}

/// The daemon's side: what was loaded.
pub struct T(kernel::Drops);

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Default 3000.
    #[serde(default = "three_seconds")]
    pub duration_ms: WindowMs,
    /// Also what is dropped in ordinary operation.
    #[serde(default)]
    pub include_benign: bool,
    /// Of the row's owner.
    #[serde(default)]
    pub process: Option<Comm>,
    #[serde(default, deserialize_with = "filter::pid")]
    #[schemars(range(min = 1))]
    pub pid: Option<u32>,
    /// Source or destination.
    #[serde(default)]
    pub remote: Option<filter::Remote>,
    /// Of either end.
    #[serde(default, deserialize_with = "filter::port")]
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// Rows. Default 12.
    #[serde(default)]
    pub limit: Option<Limit>,
}

impl Input {
    fn filter(&self) -> Filter<'_> {
        Filter { process: self.process.as_ref(), pid: self.pid, remote: self.remote, port: self.port }
    }
}

/// Long enough to see a neighbor fail: the kernel asks three times, a second apart.
fn three_seconds() -> WindowMs {
    WindowMs::new(3_000)
}

#[derive(Serialize, Deserialize, Debug, Default)]
pub struct Sample {
    places: Vec<Place>,
    flows: Vec<Flow>,
    listeners: Vec<Listener>,
    counters: Counters,
    /// Whether the kernel names the socket that a packet was for.
    receivers: bool,
    /// Of the daemon, and so of the counters.
    netns: u32,
    /// Drops that could not be counted.
    missed: u64,
    window_ns: u64,
}

/// Everything that died in one place for one reason.
#[derive(Serialize, Deserialize, Debug)]
pub struct Place {
    reason: String,
    location: String,
    packets: u64,
}

/// The part of it that was told apart.
#[derive(Serialize, Deserialize, Debug, Clone, Default)]
pub struct Flow {
    reason: String,
    location: String,
    packets: u64,
    protocol: u16,
    family: u16,
    /// `process` is whom the packets were for, and not who sent them.
    receiver: bool,
    /// They came in by an interface; otherwise they were made here.
    arrived: bool,
    /// What their route would have called next.
    input: Option<String>,
    interface: Option<String>,
    /// The chain of nftables that dropped them, where the kernel lets us see it.
    rule: Option<String>,
    process: Process,
    header: Bytes,
}

#[derive(Serialize, Deserialize, Debug)]
pub struct Listener {
    process: Process,
    local: Endpoint,
    accept_queue: u32,
    accept_queue_max: u32,
    dropped: u64,
    #[serde(default)]
    overflows: Option<u64>,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct Output {
    /// Most packets first.
    pub drops: Vec<Drop>,
    // Dropped in all, benign ones included.
    pub packets: u64,
    // Of these, in ordinary operation.
    pub benign_packets: u64,
    /// Growth of what no packet shows, in netmond's own network namespace: listen_overflows, syn_cookies_sent, conntrack_drops, softnet_dropped …
    #[schemars(with = "std::collections::BTreeMap<String, Option<u64>>")]
    pub counters: Counters,
    /// Those that dropped connections, or whose accept queue is full.
    pub listeners: Vec<ListenerDrops>,
    pub measured: Measured,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq)]
pub struct Drop {
    // As this kernel names it.
    pub reason: String,
    // The kernel function that dropped it.
    pub location: String,
    pub protocol: Option<String>,
    /// TCP flags or ICMP message of the first packet.
    pub kind: Option<String>,
    pub source: Option<End>,
    pub destination: Option<End>,
    pub interface: Option<String>,
    pub path: Option<Path>,
    /// nft family, table and base chain.
    pub rule: Option<String>,
    /// Of the socket it was for, else of the one that sent it.
    pub owner: Owner,
    pub count: u64,
    pub explanation: String,
    // What to look at next.
    pub check: String,
    pub benign: bool,
}

/// null: the packets of this row differ in it, or have none.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct End {
    pub address: Option<std::net::IpAddr>,
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
    pub owner: Owner,
    pub local: Endpoint,
    pub accept_queue: u32,
    pub accept_queue_max: u32,
    // In the window.
    pub dropped: u64,
    // How often a connection found an accept queue of this network namespace full, in the window.
    pub netns_overflows: Option<u64>,
}

impl Tool for T {
    const NAME: &'static str = "trace_drops";
    const TITLE: &'static str = "Find where packets are dropped, and why";
    const DESCRIPTION: &'static str = "Where packets die on this host, in any network namespace: reason, kernel function, endpoints, interface, \
        process, and what to check. Firewall, closed port, full buffer or queue, MTU, route, neighbor, tc, XDP; and counters of full accept \
        queues, conntrack, NIC. Use when traffic does not arrive.";
    const NEEDS: &'static str = "Linux 5.17 or newer with BTF (CONFIG_DEBUG_INFO_BTF): kfree_skb tells reasons since then";
    type Input = Input;
    type Sample = Sample;
    type Output = Output;

    fn load(loader: &mut Loader) -> Result<Self, Error> {
        kernel::Drops::load(loader).map(T)
    }

    fn rehearse(&self) -> io::Result<()> {
        self.0.rehearse()
    }

    fn sample(&self, input: &Input, _: &Host, window: &Window) -> Result<Sample, Error> {
        self.0.sample(input.duration_ms.duration(), window)
    }

    fn duration(input: &Input) -> Duration {
        input.duration_ms.duration()
    }

    fn report(input: Input, sample: Sample) -> Output {
        let limit = input.limit.map_or(limits::DROP_ROWS_DEFAULT, Limit::rows);
        report::report(input.include_benign, limit, &input.filter(), &sample)
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
        report::text(output)
    }
}
