//! What a recording keeps of the connections of hours: the worst remotes with a few owners each, and the most frequent
//! resets.

use super::{Counts, Group, Sample, report::weight};
use crate::{answer, limits, owner::Process};

/// Owners of a remote that keep their process numbers; as many again keep their names.
const OWNERS: usize = 8;

/// What the sum of many windows keeps.
pub fn reduce(mut sum: Sample) -> Sample {
    let (mut remotes, _) = answer::largest(sum.remotes, usize::MAX, weight);
    let cut = remotes.split_off(remotes.len().min(limits::SUM_ROWS));
    sum.remotes_cut = sum.remotes_cut.max(cut.len() as u64);
    // The next window counts those that go on again.
    sum.total.connections -= cut.iter().map(|group| group.sockets.len() as u64).sum::<u64>().min(sum.total.connections);
    sum.remotes = remotes.into_iter().map(with_few_owners).collect();
    let mut room = 2 * limits::ROWS_MAX;
    for group in &mut sum.remotes {
        group.sockets.truncate(room); // the newest are first
        room -= group.sockets.len();
    }
    let (resets, cut) = answer::largest(sum.resets, limits::SUM_ROWS, |reset| reset.count);
    (sum.resets, sum.resets_cut) = (resets, sum.resets_cut.max(cut));
    (sum.services, _) = answer::largest(sum.services, limits::SUM_ROWS, |service| service.replies.times.count());
    sum
}

fn with_few_owners(mut group: Group) -> Group {
    if group.owners.len() <= 2 * OWNERS {
        return group;
    }
    let mut order: Vec<usize> = (0..group.owners.len()).collect();
    order.sort_by_key(|at| std::cmp::Reverse(group.owners[*at].1.segments_out));
    let (mut owners, mut places) = (Vec::<(Process, Counts)>::new(), vec![0; group.owners.len()]);
    for at in order {
        let (process, counts) = &group.owners[at];
        let mut process = process.clone();
        if owners.len() >= OWNERS {
            process.pid = 0;
        }
        if owners.len() >= 2 * OWNERS && !owners.iter().any(|(known, _)| *known == process) {
            process = Process { netns: process.netns, ..Process::default() };
        }
        let known = owners.iter().position(|(known, _)| *known == process);
        let place = known.unwrap_or(owners.len());
        if known.is_none() {
            owners.push((process, Counts::default()));
        }
        owners[place].1 += *counts;
        places[at] = place;
    }
    group.sockets.iter_mut().for_each(|(_, owner)| *owner = places.get(*owner).copied().unwrap_or_default());
    group.owners = owners;
    group
}
