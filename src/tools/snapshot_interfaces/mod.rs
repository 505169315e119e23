//! What links are there, and what do they carry? Two readings of the kernel's own counters: nothing is attached.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BoxSession, Host, Tool};
use crate::{
    answer::{Limit, Measured, WindowMs},
    daemon::kernel::Loader,
    interface::{Interface, Wire},
    wire::Error,
};

mod report;
mod sample;
mod text;

/// Reads no eBPF of its own.
pub struct SnapshotInterfaces;

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Only this interface.
    #[serde(default)]
    pub interface: Option<String>,
    /// Between two readings.
    #[serde(default)]
    pub duration_ms: WindowMs<1_000>,
    #[serde(default)]
    pub limit: Limit,
}

#[derive(Serialize, Deserialize, Debug, Default)]
pub struct Sample {
    /// Interfaces of both readings: before, after.
    interfaces: Vec<(Interface, Interface)>,
    primary: Option<String>,
    default_routes: Vec<u32>,
    window_ns: u64,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct Output {
    // The interface with the default route, else the busiest.
    pub primary: Option<String>,
    pub interfaces: Vec<Link>,
    pub measured: Measured,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct Link {
    pub name: String,
    pub index: u32,
    /// ethernet, loopback, veth, bridge, bond, vlan, tun, wireguard …
    pub kind: String,
    /// Operational; `unknown`: up, but the driver reports no carrier state.
    pub state: String,
    pub mtu: u32,
    // With prefix length.
    pub addresses: Vec<String>,
    pub default_route: bool,
    pub speed_mbps: Option<u64>,
    pub rx: Traffic,
    pub tx: Traffic,
    pub qdisc: Option<Qdisc>,
    #[serde(skip)]
    pub half_duplex: bool,
    // In the window.
    #[serde(skip)]
    pub wire: Wire,
}

/// Totals since the interface exists, rates of the window; as the driver counts.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone)]
pub struct Traffic {
    pub packets: u64,
    pub bytes: u64,
    pub errors: u64,
    pub dropped: u64,
    /// New in the window.
    pub errors_in_window: u64,
    pub dropped_in_window: u64,
    pub packets_per_second: f64,
    pub bits_per_second: f64,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct Qdisc {
    pub kind: String,
    pub backlog_bytes: u64,
    pub dropped: u64,
    pub dropped_in_window: u64,
}

impl Tool for SnapshotInterfaces {
    const NAME: &'static str = "snapshot_interfaces";
    const TITLE: &'static str = "List network interfaces with their traffic";
    const WHEN: &'static str = "network interfaces: state, errors, rates";
    const DESCRIPTION: &'static str = "Lists network interfaces: kind, state, addresses, default route, bytes and \
        packets with rates, errors, drops, and qdisc backlog. Costs nothing; call it first if you suspect a link.";
    const OPEN_WORLD: bool = false;
    type Input = Input;
    type Sample = Sample;
    type Output = Output;

    fn load(_: &mut Loader) -> Result<Self, Error> {
        Ok(SnapshotInterfaces)
    }

    fn open<'a>(&'a self, input: Input, _: &'a Host) -> Result<BoxSession<'a, Sample>, Error> {
        Ok(Box::new(sample::Interfaces::open(input)?))
    }

    fn merge(earlier: Sample, later: Sample) -> Sample {
        report::merge(&earlier, later)
    }

    fn narrow(input: &Input, mut sample: Sample) -> Sample {
        let wanted = |name: &str| input.interface.as_ref().is_none_or(|wanted| wanted == name);
        sample.interfaces.retain(|(_, after)| wanted(&after.name));
        sample
    }

    fn duration(input: &Input) -> Duration {
        input.duration_ms.duration()
    }

    fn report(input: Input, sample: Sample) -> Output {
        report::report(&input, &sample)
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
