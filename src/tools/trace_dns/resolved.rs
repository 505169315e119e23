//! What was made of messages: queries with their outcomes, and counts of others.

use serde::{Deserialize, Serialize};

use super::{Latency, Summary};
use crate::{
    answer::{Endpoint, Protocol},
    dns,
    filter::Comm,
    owner::Process,
    times::Times,
};

/// What was made of messages.
#[derive(Serialize, Deserialize, Debug, Default)]
pub struct Reduced {
    pub queries: Vec<Resolved>,
    /// Queries that are not among them, by program.
    pub senders: Vec<Sender>,
    pub streams_given_up: u64,
    pub messages_cut: u64,
}

/// A query, and what became of it.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct Resolved {
    pub process: Process,
    /// Names and types: at least one.
    pub questions: Vec<(String, u16)>,
    pub server: Endpoint,
    pub transport: Protocol,
    /// Nothing while it is unanswered.
    pub rcode: Option<u8>,
    pub latency_us: Option<u64>,
    pub sent: u64,
    /// How often it was sent in vain before its answer came.
    pub lost: u64,
    /// Unanswered, and too young to say so.
    pub pending: bool,
}

/// How many queries a program sent, whatever its process numbers were.
#[derive(Serialize, Deserialize, Debug, Default)]
pub struct Sender {
    pub process: Process,
    counts: Tally,
    times: Times,
}

#[derive(Serialize, Deserialize, Debug, Default, Clone, Copy)]
pub struct Tally {
    pub queries: u64,
    pub answered: u64,
    pub unanswered: u64,
    pub pending: u64,
    pub failed: u64,
    pub nxdomain: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, more: Tally) {
        self.queries += more.queries;
        self.answered += more.answered;
        self.unanswered += more.unanswered;
        self.pending += more.pending;
        self.failed += more.failed;
        self.nxdomain += more.nxdomain;
    }
}

impl Resolved {
    pub fn counts(&self) -> Tally {
        let is = |yes: bool| u64::from(yes);
        Tally {
            queries: 1,
            answered: is(self.rcode.is_some()),
            unanswered: is(self.rcode.is_none() && !self.pending),
            pending: is(self.pending),
            failed: is(self.rcode.is_some_and(|rcode| rcode != 0)),
            nxdomain: is(self.rcode == Some(dns::NXDOMAIN)),
        }
    }
}

impl Sender {
    pub fn is(&self, comm: &Comm) -> bool {
        comm.is(self.process.comm.as_bytes())
    }

    pub fn queries(&self) -> u64 {
        self.counts.queries
    }

    pub fn add(&mut self, other: &Sender) {
        self.counts += other.counts;
        self.times.add(&other.times);
    }

    pub fn of(query: &Resolved) -> Self {
        let process = Process { pid: 0, ..query.process.clone() };
        Sender { process, counts: query.counts(), times: times(query) }
    }
}

fn times(query: &Resolved) -> Times {
    query.latency_us.map_or_else(Times::default, |us| Times::once(us.try_into().unwrap_or(u32::MAX)))
}

/// Both, one after the other.
pub fn join(mut earlier: Reduced, later: Reduced) -> Reduced {
    earlier.queries.extend(later.queries);
    earlier.senders.extend(later.senders);
    earlier.streams_given_up += later.streams_given_up;
    earlier.messages_cut += later.messages_cut;
    earlier
}

/// The summary of queries, and of what senders sent besides.
pub fn summary<'a>(queries: &[Resolved], senders: impl Iterator<Item = &'a Sender> + Clone) -> Summary {
    let mut counts = Tally::default();
    queries.iter().for_each(|query| counts += query.counts());
    senders.clone().for_each(|program| counts += program.counts);
    let mut latencies: Vec<u64> = queries.iter().filter_map(|query| query.latency_us).collect();
    latencies.sort_unstable();
    let percentile = |percent: usize| latencies.get((latencies.len() * percent).div_ceil(100).max(1) - 1).copied();
    let mut latency_us = Latency { p50: percentile(50), p99: percentile(99), max: latencies.last().copied() };
    let mut times = Times::default();
    senders.for_each(|program| times.add(&program.times));
    if times.count() > 0 {
        queries.iter().for_each(|query| times.add(&self::times(query)));
        let us = times.percentiles();
        latency_us = Latency { p50: Some(us.p50.into()), p99: Some(us.p99.into()), max: Some(us.max.into()) };
    }
    let Tally { queries, answered, unanswered, pending, failed, nxdomain } = counts;
    Summary { queries, answered, unanswered, pending, failed, nxdomain, latency_us }
}
