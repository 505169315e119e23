//! What arrives at an interface, and who opens the next connection: the original two questions.
//!
//! `incoming` counts packets as they are on the wire, at tcx: the counters are per CPU and only grow, a window is the
//! difference of two readings, so any number of windows share one link. `outgoing` waits for the next TCP connect of
//! any process in any network namespace, and for its outcome.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BoxSession, Feature, Host, Optional, Tool};
use crate::{
    answer::{Endpoint, Family, Limit, Measured, Owner, WindowSeconds},
    daemon::kernel::Loader,
    limits,
    owner::Process,
    wire::Error,
};

mod incoming;
mod outgoing;
mod report;
mod sample;
mod text;

skeleton!("network_monitor");

/// The daemon's side: what was loaded.
pub struct NetworkMonitor(sample::Monitor);

// Which of the two questions.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Operation {
    Incoming,
    Outgoing,
}

/// Where `incoming` counts.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Default)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Mode {
    #[default]
    Tcx,
    Xdp,
    XdpNative,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Mode::Tcx => "tcx",
            Mode::Xdp => "xdp",
            Mode::XdpNative => "xdp-native",
        }
    }
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub operation: Operation,
    /// incoming: defaults to the default route's, else the busiest. outgoing: connections over it only.
    #[serde(default)]
    pub interface: Option<String>,
    /// Seconds. Default 5; outgoing: 60, or until a connection opens.
    #[serde(default)]
    pub duration: Option<WindowSeconds>,
    /// incoming: tcx changes nothing; xdp: generic; xdp_native: in the driver, may reset the link.
    #[serde(default)]
    pub mode: Mode,
    /// outgoing: `next` of the previous answer, valid for 1 s.
    #[serde(default)]
    pub after: Option<String>,
    // outgoing: connections in the answer.
    #[serde(default)]
    pub limit: Limit<{ limits::CONNECTS_SHOWN }>,
}

/// What was counted, by direction.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq)]
pub struct Count {
    packets: u64,
    bytes: u64,
    tcp: u64,
    udp: u64,
    icmp: u64,
    arp: u64,
    other: u64,
}

impl std::ops::Add for Count {
    type Output = Count;

    fn add(self, more: Count) -> Count {
        Count {
            packets: self.packets + more.packets,
            bytes: self.bytes + more.bytes,
            tcp: self.tcp + more.tcp,
            udp: self.udp + more.udp,
            icmp: self.icmp + more.icmp,
            arp: self.arp + more.arp,
            other: self.other + more.other,
        }
    }
}

#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "snake_case")]
pub enum Sample {
    Incoming {
        interface: String,
        rx: Count,
        tx: Option<Count>,
        window_ns: u64,
        /// Whether packets that arrived still had the headers that a tunnel takes off.
        #[serde(default)]
        outer: bool,
        /// Whether the headers inside of a tunnel's super-packets were not seen.
        #[serde(default)]
        blind: bool,
        /// Whether an XDP program, which is not ours, sees packets before they are counted.
        #[serde(default)]
        after_xdp: bool,
    },
    Outgoing {
        connects: Vec<Connect>,
        cut: u64,
        lost: u64,
        connecting: u64,
        next: String,
        continued: bool,
        window_ns: u64,
    },
}

/// A connect with a known outcome.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Connect {
    process: Process,
    local: Endpoint,
    remote: Endpoint,
    established: bool,
    errno: i32,
    latency_ns: u64,
    interface: Option<String>,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct Output {
    pub operation: Operation,
    // incoming: the interface that was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", flatten)]
    pub received: Option<Rates>,
    // incoming: packets received, by protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by_protocol: Option<ByProtocol>,
    /// incoming: sent packets (not xdp).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transmitted: Option<Rates>,
    /// outgoing: oldest first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<Vec<Connection>>,
    // outgoing: pass as `after` within a second to miss none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    pub measured: Measured,
}

/// As on the wire: a GRO or TSO packet counts as its segments, with link-layer headers.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
pub struct Rates {
    pub packets_per_second: f64,
    pub bits_per_second: f64,
    pub packets: u64,
    pub bytes: u64,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
pub struct ByProtocol {
    pub tcp: u64,
    pub udp: u64,
    pub icmp: u64,
    pub arp: u64,
    pub other: u64,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug)]
pub struct Connection {
    pub owner: Owner,
    pub local: Endpoint,
    pub remote: Endpoint,
    pub family: Family,
    // Whether the handshake completed.
    pub established: bool,
    // Why it did not, as an errno name.
    pub error: Option<String>,
    // From connect() to its outcome.
    pub connect_latency_us: u64,
    // The interface of its route, in this network namespace.
    pub interface: Option<String>,
}

impl Tool for NetworkMonitor {
    const NAME: &'static str = "network-monitor";
    const TITLE: &'static str = "Watch one interface, or the next connection";
    const WHEN: &'static str = "packets per second on one interface, or the next TCP connection";
    const DESCRIPTION: &'static str = "operation=incoming: packets and bits per second on an interface, by protocol, \
        counted as on the wire. operation=outgoing: waits for the next TCP connection of any process: owner, remote, \
        outcome, latency.";
    const CONTINUES: bool = true;
    const FEATURES: &'static [Feature] =
        &[Feature::TrafficControl, Feature::Xdp, Feature::TracepointBtf, Feature::SocketStorage];
    const OPTIONAL: &'static [Optional] = &[
        Optional { programs: &["count_rx", "count_tx"], needs: &[], lacks: None },
        Optional { programs: &["count_xdp"], needs: &[], lacks: None },
        Optional { programs: &["connect_state"], needs: &[Feature::SocketStorage], lacks: None },
    ];
    type Input = Input;
    type Sample = Sample;
    type Output = Output;

    fn load(loader: &mut Loader) -> Result<Self, Error> {
        sample::Monitor::load(loader).map(NetworkMonitor)
    }

    fn complete(input: &mut Input, interface: &str) -> bool {
        let open = input.operation == Operation::Incoming && input.interface.is_none();
        if open {
            input.interface = Some(interface.into());
        }
        open
    }

    fn open<'a>(&'a self, input: Input, _: &'a Host) -> Result<BoxSession<'a, Sample>, Error> {
        self.0.open(&input)
    }

    fn merge(earlier: Sample, later: Sample) -> Sample {
        report::merge(earlier, later)
    }

    fn duration(input: &Input) -> Duration {
        let default = if input.operation == Operation::Incoming { 5.0 } else { 60.0 };
        input.duration.unwrap_or(WindowSeconds::new(default)).duration()
    }

    fn report(input: Input, sample: Sample) -> Output {
        report::report(&input, sample)
    }

    fn of_record(_: &Input, record: &[u8]) -> Option<Sample> {
        outgoing::of_record(record)
    }

    fn text(output: &Output) -> String {
        text::text(output)
    }
}

#[cfg(test)]
mod tests;
