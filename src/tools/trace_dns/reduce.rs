//! What a recording keeps of the queries of hours: the worst of them, and of the others how many each program sent.

use std::{cmp::Reverse, collections::BTreeMap};

use super::{Sample, report, resolved::Sender};
use crate::{answer, limits, owner::Process};

/// Replaces messages by what was made of them.
pub fn reduce(mut sample: Sample) -> Sample {
    let mut reduced = sample.reduced.take().unwrap_or_else(|| report::read(&sample));
    (sample.messages, sample.earlier) = (Vec::new(), Vec::new());
    reduced.queries.sort_by_cached_key(|query| Reverse(report::weight(query)));
    let rest = reduced.queries.split_off(reduced.queries.len().min(limits::SUM_ROWS));
    let mut senders = BTreeMap::<Process, Sender>::new();
    for sender in reduced.senders.into_iter().chain(rest.iter().map(Sender::of)) {
        let key = sender.process.clone();
        senders.entry(key).and_modify(|known| known.add(&sender)).or_insert(sender);
    }
    let (kept, _) = answer::largest(senders.into_values().collect(), usize::MAX, Sender::queries);
    reduced.senders = kept;
    let names_none = |mut sender: Sender| {
        sender.process = Process::default();
        sender
    };
    let beyond = reduced.senders.split_off(reduced.senders.len().min(limits::SUM_ROWS));
    let others = beyond.into_iter().map(names_none).reduce(|mut sum, other| {
        sum.add(&other);
        sum
    });
    reduced.senders.extend(others);
    sample.reduced = Some(reduced);
    sample
}
