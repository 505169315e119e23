//! The answer, from what the kernel said.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    time::Duration,
};

use super::{Gaps, Group, Input, Output, Row, Sample, Side, Stage, ThrottledRow, Times};
use crate::{
    answer::{self, Code, Endpoint, Limitation, Measured, Owner, Protocol},
    limits,
    owner::{Process, Throttled, container, unit},
    untrusted,
};

/// What a row is about: an owner with its listener, or with its remote.
type Party = (Process, Protocol, Side, Option<Endpoint>);

/// The answer.
pub fn report(input: &Input, sample: Sample) -> Output {
    let mut measured = Measured::window(Duration::from_nanos(sample.window_ns));
    let mut rows = BTreeMap::<(Party, Stage), Times>::new();
    let (mut left_out, mut processes) = ((0, 0), HashMap::new());
    for group in sample.groups.into_iter().filter(|group| input.wants(group)) {
        left_out = (left_out.0 + group.left_out.0, left_out.1 + group.left_out.1);
        processes.insert(group.process.pid, group.process.clone());
        let party = party(&group);
        for (stage, times) in group.times {
            rows.entry((party.clone(), stage)).or_default().add(&times);
        }
    }
    let pids = processes.keys().copied().filter(|pid| *pid != 0).collect();
    let rows = with_least(rows).into_iter().map(|((party, stage, least), times)| row(party, stage, least, &times));
    let (stages, cut) = answer::largest(rows.collect(), input.limit.rows(), |row: &Row| row.sum_us);
    let throttled: Vec<_> = sample.throttled.iter().filter(|group| input.wants_throttled(group, &pids)).collect();
    let (throttled, throttled_cut) =
        answer::largest(throttled, input.limit.rows(), |group| (has_any(group, &pids), group.throttled_us));
    (measured.lost_events, measured.rows_cut) = (sample.missed, cut + throttled_cut);
    measured.limits = unseen(&sample.gaps, left_out);
    measured.limits.extend(sample.lacks);
    let throttled = throttled.into_iter().map(|group| throttled_row(group, &processes)).collect();
    Output { stages, throttled, measured }
}

fn party(group: &Group) -> Party {
    let end = match group.side {
        Side::Server => group.local,
        Side::Client => group.remote.map(|(address, port)| Endpoint { address, port }),
    };
    (group.process.clone(), group.protocol, group.side, end)
}

/// The least round trips stand for those of the network only where these are missing.
fn with_least(rows: BTreeMap<(Party, Stage), Times>) -> Vec<((Party, Stage, bool), Times)> {
    let known: HashSet<Party> =
        rows.keys().filter(|(_, stage)| *stage == Stage::WireToAck).map(|(p, _)| p.clone()).collect();
    let shown = |((party, stage), times): ((Party, Stage), Times)| match stage {
        Stage::LeastRtt if known.contains(&party) => None,
        Stage::LeastRtt => Some(((party, Stage::WireToAck, true), times)),
        stage => Some(((party, stage, false), times)),
    };
    rows.into_iter().filter_map(shown).collect()
}

fn row((process, protocol, side, end): Party, stage: Stage, least: bool, times: &Times) -> Row {
    let (local, remote) = if side == Side::Server { (end, None) } else { (None, end) };
    Row {
        stage,
        side,
        protocol,
        owner: process.owner(),
        local,
        remote,
        count: times.count(),
        us: times.percentiles(),
        least,
        sum_us: times.sum_us(),
    }
}

fn has_any(group: &Throttled, pids: &HashSet<u32>) -> bool {
    group.pids.iter().any(|pid| pids.contains(pid))
}

/// Its owner is the process with sockets in the answer, if there is one.
fn throttled_row(group: &Throttled, processes: &HashMap<u32, Process>) -> ThrottledRow {
    let process = group.pids.iter().find_map(|pid| processes.get(pid)).map(Process::owner);
    let known = process.unwrap_or_default();
    let owner = Owner {
        unit: known.unit.or_else(|| unit(&group.cgroup).map(untrusted::label)),
        container: known.container.or_else(|| container(&group.cgroup).map(str::to_owned)),
        ..known
    };
    ThrottledRow {
        owner,
        cgroup: untrusted::clean(&group.cgroup),
        periods: group.periods,
        throttled_periods: group.throttled_periods,
        throttled_us: group.throttled_us,
    }
}

fn unseen(gaps: &Gaps, (exchanges, connections): (u64, u64)) -> Vec<Limitation> {
    let sockets = format!("not measured. Limit: {} owners with their ends.", limits::LATENCY_GROUPS);
    let times = format!("not counted. Limit: {} histograms.", limits::LATENCY_TIMES);
    let merged = format!("without a remote to filter. Limit: {} remotes.", limits::LATENCY_REMOTES);
    let counted = [
        answer::exchanges_left_out("request_to_reply", exchanges, connections),
        Limitation::counted(Code::LatencySocketsUntracked, gaps.sockets_untracked, "use of sockets", &sockets),
        Limitation::counted(Code::LatencyTimesUntracked, gaps.times_untracked, "time", &times),
        Limitation::counted(Code::LatencyRemotesMerged, gaps.remotes_merged, "listener", &merged),
    ];
    counted.into_iter().flatten().collect()
}

/// What makes a group in a sample.
type Key = (Process, Protocol, Side, Option<Endpoint>, Option<(IpAddr, u16)>);

impl Group {
    fn key(&self) -> Key {
        (self.process.clone(), self.protocol, self.side, self.local, self.remote)
    }

    fn add(&mut self, before: Group) {
        for (stage, times) in before.times {
            match self.times.iter_mut().find(|(same, _)| *same == stage) {
                Some((_, sum)) => sum.add(&times),
                None => self.times.push((stage, times)),
            }
        }
        self.left_out = (self.left_out.0 + before.left_out.0, self.left_out.1 + before.left_out.1);
    }
}

/// The times of both periods.
pub fn merge(earlier: Sample, mut later: Sample) -> Sample {
    let places: HashMap<Key, usize> = later.groups.iter().enumerate().map(|(i, group)| (group.key(), i)).collect();
    for group in earlier.groups {
        match places.get(&group.key()) {
            Some(place) => later.groups[*place].add(group),
            None => later.groups.push(group),
        }
    }
    later.throttled = Throttled::merge(earlier.throttled, later.throttled);
    for lack in earlier.lacks {
        if !later.lacks.contains(&lack) {
            later.lacks.push(lack);
        }
    }
    later.gaps.sockets_untracked += earlier.gaps.sockets_untracked;
    later.gaps.times_untracked += earlier.gaps.times_untracked;
    later.gaps.remotes_merged += earlier.gaps.remotes_merged;
    later.missed += earlier.missed;
    later.window_ns += earlier.window_ns;
    later
}
