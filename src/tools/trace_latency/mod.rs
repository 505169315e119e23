//! Us or the network? Where messages wait between the wire and the program, by owner and end.
//!
//! The kernel sums the times of every stage in histograms, by owner and end, while a window is open. A reading takes the
//! difference to the previous one. Everything is counted; a question is applied to the sample.

use std::{net::IpAddr, sync::Arc, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BoxSession, Feature, Host, Optional, Release, Tool};
use crate::{
    answer::{Code, Endpoint, Limit, Limitation, Measured, Owner, Protocol, WindowMs},
    daemon::kernel::Loader,
    filter::{AddressRange, Comm, Filter, Pid, Port},
    owner::{Process, Throttled},
    times::{Percentiles, Times},
    wire::Error,
};

mod narrow;
pub mod recorded;
mod report;
mod sample;
mod text;

skeleton!("trace_latency");

/// Rows where the caller set no `limit`: they stay under 4 KB.
const ROWS: usize = 12;

/// The daemon's side: what was loaded.
pub struct TraceLatency(Arc<sample::Latencies>);

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct Input {
    #[serde(default)]
    duration_ms: WindowMs<5_000>,
    #[serde(default)]
    process: Option<Comm>,
    #[serde(default)]
    pid: Option<Pid>,
    #[serde(default)]
    remote: Option<AddressRange>,
    #[serde(default)]
    port: Option<Port>,
    #[serde(default)]
    netns: Option<u32>,
    #[serde(default)]
    unit: Option<String>,
    #[serde(default)]
    container: Option<String>,
    #[serde(default)]
    limit: Limit<ROWS>,
}

impl Input {
    fn filter(&self) -> Filter<'_> {
        Filter { process: self.process.as_ref(), pid: self.pid, remote: self.remote, port: self.port }
    }
}

#[derive(Serialize, Deserialize, Debug, Default)]
pub struct Sample {
    groups: Vec<Group>,
    #[serde(default)]
    throttled: Vec<Throttled>,
    gaps: Gaps,
    /// Program runs that the kernel skipped.
    missed: u64,
    #[serde(default)]
    lacks: Vec<Limitation>,
    window_ns: u64,
}

/// What there was no room for.
#[derive(Serialize, Deserialize, Debug, Default, Clone, Copy, PartialEq)]
pub struct Gaps {
    sockets_untracked: u64,
    times_untracked: u64,
    remotes_merged: u64,
}

/// The sockets of one owner with one end in common.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct Group {
    process: Process,
    protocol: Protocol,
    side: Side,
    /// Of a server.
    local: Option<Endpoint>,
    /// Of a server without its port; none if there are many, or if the socket has none.
    remote: Option<(IpAddr, u16)>,
    times: Vec<(Stage, Times)>,
    /// Exchanges without a certain reply, and the connections that are no longer looked at.
    #[serde(default)]
    left_out: (u64, u64),
}

// Where time goes.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Stage {
    ArrivalToSocket,
    SocketToRead,
    RequestToReply,
    WriteToWire,
    WireToAck,
    RunnableToRunning,
    // Of each exchange, the least round trip that TCP remembers: shown as `WireToAck` where that has nothing.
    #[serde(rename = "least_rtt")]
    #[schemars(skip)]
    LeastRtt,
}

/// Which end this host is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Side {
    Client,
    Server,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct Output {
    /// Largest sum of times first.
    pub stages: Vec<Row>,
    /// Control groups beyond their CPU quota: owner, cgroup, periods, throttled_periods, throttled_us.
    #[schemars(with = "Vec<Owner>")]
    pub throttled: Vec<ThrottledRow>,
    pub measured: Measured,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct Row {
    pub stage: Stage,
    /// client: request_to_reply includes the network.
    pub side: Side,
    pub protocol: Protocol,
    pub owner: Owner,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<Endpoint>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote: Option<Endpoint>,
    pub count: u64,
    /// p50, p90, p99 (± 7 %), max.
    #[schemars(with = "Option<u64>")]
    pub us: Percentiles,
    /// The least RTT of each connection.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub least: bool,
    #[serde(skip)]
    sum_us: u64,
}

#[derive(Serialize, Deserialize, Debug)]
pub struct ThrottledRow {
    pub owner: Owner,
    pub cgroup: String,
    pub periods: u64,
    pub throttled_periods: u64,
    pub throttled_us: u64,
}

impl Tool for TraceLatency {
    const NAME: &'static str = "trace_latency";
    const TITLE: &'static str = "Find where the time goes: us or the network";
    const WHEN: &'static str = "is it us or the network: latency by stage, how long servers take to reply";
    const DESCRIPTION: &'static str = "Us or the network? Latency by stage, owner and listener (server) or remote \
        (client): arrival, waiting to be read, request to reply, sending, network round trip, waiting for a CPU. \
        TCP and UDP, whole host.";
    const SINCE: Release = Release(6, 3);
    const FEATURES: &'static [Feature] = &[Feature::TracepointBtf, Feature::IterateFiles, Feature::IterateTcp];
    const OPTIONAL: &'static [Optional] = &[
        Optional {
            programs: &["segment_leaves"],
            needs: &[],
            lacks: Some((Code::SegmentsNotSeen, "write_to_wire, wire_to_ack and clients' requests are unavailable")),
        },
        Optional {
            programs: &["task_wakes", "task_switches"],
            needs: &[],
            lacks: Some((Code::RunQueueNotSeen, "runnable_to_running is unavailable")),
        },
        Optional { programs: &["forget_held", "forget_tcp"], needs: &[], lacks: None },
    ];
    type Input = Input;
    type Sample = Sample;
    type Output = Output;

    fn load(loader: &mut Loader) -> Result<Self, Error> {
        Ok(TraceLatency(Arc::new(sample::Latencies::load(loader)?)))
    }

    fn open<'a>(&'a self, _: Input, _: &'a Host) -> Result<BoxSession<'a, Sample>, Error> {
        Ok(Box::new(self.0.open()?))
    }

    fn merge(earlier: Sample, later: Sample) -> Sample {
        report::merge(earlier, later)
    }

    fn duration(input: &Input) -> Duration {
        input.duration_ms.duration()
    }

    fn report(input: Input, sample: Sample) -> Output {
        report::report(&input, sample)
    }

    fn shorten(output: &mut Output) -> bool {
        let cut = if output.throttled.len() > output.stages.len() {
            output.throttled.pop().is_some()
        } else {
            output.stages.pop().is_some()
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
