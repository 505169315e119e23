//! The time to the first byte of a reply: of a listener of this host, and of a server that it asks.

use std::{collections::HashMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Histogram, Rtt, Sample};
use crate::{
    answer::{self, Endpoint, Owner},
    owner::Process,
    replies::{Replier, Repliers, Replies},
    times::Percentiles,
};

/// From here on users notice that they wait (Nielsen, "Response times: the 3 important limits").
const NOTICED: Duration = Duration::from_millis(100);

/// How long a program of this host took to reply at one of its addresses.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub struct Service {
    /// The holder of most of the connections.
    pub process: Process,
    pub local: Endpoint,
    pub replies: Replies,
    /// Of its connections that the question is about.
    pub(super) rtt: Histogram,
}

// From the end of a request to the first byte of its reply, in microseconds.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct FirstByte {
    pub count: u64,
    #[serde(flatten)]
    pub us: Percentiles,
}

/// An address of this host that replied.
#[derive(Serialize, Deserialize, Debug)]
pub struct ListenerRow {
    pub owner: Owner,
    pub local: Endpoint,
    pub first_byte_us: FirstByte,
    pub rtt_us: Option<Rtt>,
}

impl Service {
    pub fn rtt_p50_us(&self) -> Option<u32> {
        (self.rtt.samples() > 0).then(|| self.rtt.quantile_us(0.5))
    }

    /// Without round trips.
    pub fn new(process: Process, local: Endpoint, replies: Replies) -> Self {
        Service { process, local, replies, rtt: Histogram::default() }
    }
}

impl FirstByte {
    /// Nothing where no reply was seen.
    pub fn of(replies: &Replies) -> Option<Self> {
        let (count, us) = (replies.times.count(), replies.times.percentiles());
        (count > 0).then_some(FirstByte { count, us })
    }

    /// Whether people notice it, and the network takes less than half of it.
    pub fn is_long(&self, rtt: Option<&Rtt>) -> bool {
        let network = rtt.map_or(0, |rtt| rtt.p50);
        Duration::from_micros(self.us.p50.into()) >= NOTICED && self.us.p50 / 2 > network
    }

    pub fn p50(&self) -> String {
        answer::micros(self.us.p50.into())
    }
}

/// The times to the first byte of a recorded window.
pub fn repliers(sample: Sample) -> Repliers {
    let least = |rtt: &Histogram| (rtt.samples() > 0).then(|| rtt.min_us());
    let replied = sample.services.into_iter().filter(|service| !service.replies.is_empty());
    let here = replied.map(|service| Replier {
        least_rtt_us: least(&service.rtt),
        process: service.process,
        is_here: true,
        end: service.local,
        replies: service.replies,
    });
    let there = sample.remotes.into_iter().filter(|group| !group.replies.is_empty()).filter_map(|group| {
        let remote = group.remote?;
        let process = match group.owners.as_slice() {
            [(only, _)] => only.clone(),
            owners => Process { netns: owners.first()?.0.netns, ..Process::default() },
        };
        let end = Endpoint { address: remote.address, port: remote.port? };
        let least_rtt_us = least(&group.rtt);
        Some(Replier { process, is_here: false, end, replies: group.replies, least_rtt_us })
    });
    Repliers { rows: here.chain(there).collect(), missed: sample.missed, window_ns: sample.window_ns }
}

/// What was counted in both periods.
pub fn merge(earlier: Vec<Service>, mut later: Vec<Service>) -> Vec<Service> {
    let key = |service: &Service| (service.process.netns, service.local);
    let mut places: HashMap<_, _> = later.iter().enumerate().map(|(index, service)| (key(service), index)).collect();
    for before in earlier {
        match places.get(&key(&before)) {
            Some(index) => {
                later[*index].replies += &before.replies;
                later[*index].rtt.add(&before.rtt);
            }
            None => {
                places.insert(key(&before), later.len());
                later.push(before);
            }
        }
    }
    later
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::times::tests::of;

    fn service(us: &[u32]) -> Vec<Service> {
        let local = Endpoint { address: [10, 0, 0, 1].into(), port: 80 };
        let replies = Replies { times: of(us), left_out: (1, 0) };
        vec![Service::new(Process::default(), local, replies)]
    }

    #[test]
    fn periods_of_one_service_are_added() {
        let both = merge(service(&[1_000]), service(&[2_500_000]));
        let found = FirstByte::of(&both[0].replies).unwrap();
        assert_eq!((both.len(), found.count, found.us.max, both[0].replies.left_out), (1, 2, 2_500_000, (2, 0)));
        assert!(FirstByte::of(&Replies::default()).is_none());
    }

    #[test]
    fn long_replies_are_noticed_and_not_of_the_network() {
        let rtt = |p50| Rtt { min: p50, p50, p90: p50, p99: p50, max: p50, samples: 1 };
        let found = FirstByte::of(&service(&[300_000])[0].replies).unwrap();
        assert!(found.is_long(Some(&rtt(300))) && found.is_long(None));
        assert!(!found.is_long(Some(&rtt(250_000))), "the network");
        assert!(!FirstByte::of(&service(&[90_000])[0].replies).unwrap().is_long(None));
    }
}
