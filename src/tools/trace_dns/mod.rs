//! Is name resolution failing or slow? Every DNS query and its answer, as they pass this host's interfaces.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};

use super::{BoxSession, Feature, Host, Optional, Release, Tool};
use crate::{
    answer::{Code, Endpoint, Limit, Limitation, Measured, Owner, Protocol, WindowMs},
    daemon::kernel::Loader,
    dns,
    filter::Comm,
    owner::Process,
    packet::Bytes,
    wire::Error,
};

mod matching;
mod reduce;
mod report;
mod resolved;
mod sample;
mod streams;
mod text;

skeleton!("trace_dns");

/// The daemon's side: what was loaded.
pub struct TraceDns(sample::DnsTracer);

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Most resolvers wait 5 s.
    #[serde(default)]
    pub duration_ms: WindowMs<5_000>,
    /// Only queries of processes with this name.
    #[serde(default)]
    pub process: Option<Comm>,
    /// Only names with this suffix.
    #[serde(default, deserialize_with = "domain")]
    pub name: Option<String>,
    #[serde(default)]
    pub limit: Limit,
}

/// A name, or the end of one.
fn domain<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let name = Option::<String>::deserialize(deserializer)?;
    match name.as_ref().is_none_or(|name| (1..=dns::NAME_BYTES).contains(&name.len())) {
        true => Ok(name),
        false => Err(de::Error::custom(format!("invalid DNS name: expected 1 to {} bytes", dns::NAME_BYTES))),
    }
}

#[derive(Serialize, Deserialize, Debug, Default)]
pub struct Sample {
    messages: Vec<Seen>,
    /// Messages of the last seconds before the window, which earlier readings reported: an answer finds its query here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    earlier: Vec<Seen>,
    /// Another reading follows, which reports undecided queries.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    goes_on: bool,
    /// Messages for which there was no room in the kernel's buffer, …
    lost: u64,
    /// … or in the window's list.
    beyond: u64,
    /// Packets for port 53 of a server that have got another port.
    #[serde(default)]
    translated: u64,
    /// When the first of the latter came, since the window opened.
    full_at_ns: Option<i64>,
    pages: bool,
    #[serde(default)]
    lacks: Vec<Limitation>,
    /// In a sum of a recording: what was made of the messages, which it does not have any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reduced: Option<resolved::Reduced>,
    /// CLOCK_MONOTONIC.
    #[serde(default)]
    opened_ns: u64,
    window_ns: u64,
}

/// A DNS message at an interface.
#[derive(Serialize, Deserialize, Debug, Clone, Default)]
pub struct Seen {
    /// Since the window opened.
    at_ns: i64,
    /// A number of its socket, 0 where it has none.
    socket: u64,
    egress: bool,
    interface: (u32, u32),
    protocol: u16,
    process: Process,
    /// A part of a TCP segment that begins with a message's length.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    begins_message: bool,
    /// From the network header on.
    packet: Bytes,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct Output {
    /// Failed, unanswered and slow ones first.
    pub queries: Vec<Query>,
    pub summary: Summary,
    pub measured: Measured,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq)]
pub struct Query {
    // Of the socket that sent it.
    pub owner: Owner,
    // Untrusted text.
    pub name: String,
    // It has bytes that no hostname has, shown as \DDD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "bool")]
    pub not_a_hostname: Option<bool>,
    #[serde(rename = "type")]
    pub kind: String,
    // What else the same message asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Vec<String>")]
    pub also_asked: Option<Vec<String>>,
    pub server: Endpoint,
    pub transport: Protocol,
    // null while unanswered.
    pub rcode: Option<String>,
    // From the first query to the answer, as they pass the interfaces of a client on this host, else any.
    pub latency_us: Option<u64>,
    pub answered: bool,
    // How often it was sent with the same id.
    pub sent: u64,
    /// Unanswered for less than 1 s.
    pub pending: bool,
    /// How often it was sent in vain before its answer came, for `diagnose`.
    #[serde(skip)]
    #[schemars(skip)]
    pub lost: u64,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug, Default, PartialEq)]
pub struct Summary {
    pub queries: u64,
    pub answered: u64,
    // Not those that are pending.
    pub unanswered: u64,
    pub pending: u64,
    /// Answered with an rcode other than NOERROR.
    pub failed: u64,
    // Of these: the name does not exist.
    pub nxdomain: u64,
    pub latency_us: Latency,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug, Default, PartialEq)]
pub struct Latency {
    pub p50: Option<u64>,
    pub p99: Option<u64>,
    pub max: Option<u64>,
}

impl Tool for TraceDns {
    const NAME: &'static str = "trace_dns";
    const TITLE: &'static str = "Watch DNS queries and their answers";
    const WHEN: &'static str = "names do not resolve, or resolve slowly";
    const DESCRIPTION: &'static str = "Is name resolution failing or slow? Lists every DNS query over UDP or TCP \
        (ports 53 and 5353) of any process and network namespace, loopback included: owner, name, server, rcode, \
        latency, unanswered.";
    const SINCE: Release = Release(5, 17);
    const FEATURES: &'static [Feature] = &[Feature::TracepointBtf, Feature::IterateFiles];
    const OPTIONAL: &'static [Optional] = &[Optional {
        programs: &["open_sockets"],
        needs: &[],
        lacks: Some((Code::HoldersUnknown, "Owners are known only for queries sent in the window")),
    }];
    type Input = Input;
    type Sample = Sample;
    type Output = Output;

    fn load(loader: &mut Loader) -> Result<Self, Error> {
        sample::DnsTracer::load(loader).map(TraceDns)
    }

    fn open<'a>(&'a self, _: Input, _: &'a Host) -> Result<BoxSession<'a, Sample>, Error> {
        Ok(Box::new(self.0.open()?))
    }

    fn merge(earlier: Sample, later: Sample) -> Sample {
        report::merge(earlier, later)
    }

    fn reduce(sum: Sample) -> Sample {
        reduce::reduce(sum)
    }

    fn duration(input: &Input) -> Duration {
        input.duration_ms.duration()
    }

    fn report(input: Input, sample: Sample) -> Output {
        report::report(&input, sample)
    }

    fn shorten(output: &mut Output) -> bool {
        let cut = output.queries.pop().is_some();
        output.measured.rows_cut += u64::from(cut);
        cut
    }

    fn of_record(_: &Input, record: &[u8]) -> Option<Sample> {
        sample::of_record(record)
    }

    fn text(output: &Output) -> String {
        text::text(output)
    }
}

#[cfg(test)]
mod tests;
