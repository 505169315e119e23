//! From counters of sockets to remotes and their owners: what each socket did in the window, counted once.

use std::collections::{HashMap, HashSet};

use super::{
    Counts, Gaps, Group, Histogram, Input, Remote, Sample, Waits,
    histogram::bucket_of,
    skel::types::{rtt, tcp_row},
};
use crate::{answer::Endpoint, attribution::Process, largest::Largest, limits};

/// A process that holds a socket; pid 0 is nobody.
pub type Holder = (u32, [u8; 16]);

/// A time in jiffies beyond which a counter has not run on but begun anew.
const BACKWARDS: u32 = 1 << 31;

pub fn holder(row: &tcp_row) -> Holder {
    (row.pid, row.comm.map(|c| c as u8))
}

/// The counters of a socket that a window needs the growth of.
#[derive(Clone, Copy, Default)]
struct Counters {
    segments_out: u32,
    retransmits: u32,
    spurious: u32,
    /// In jiffies: busy, limited by the receiver, by the send buffer.
    waits: [u32; 3],
}

impl Counters {
    fn of(row: &tcp_row) -> Self {
        Counters {
            segments_out: row.segments_out,
            retransmits: row.retransmits,
            spurious: row.spurious,
            waits: [row.busy, row.receiver_limited, row.send_buffer_limited],
        }
    }

    fn since(self, before: Counters) -> Counters {
        // A socket that was disconnected and connected again starts at 0.
        if self.segments_out < before.segments_out {
            return self;
        }
        // The running part of a wait is read without a lock, and may be a jiffy ahead of what is added at its end.
        let grown = |i: usize| match self.waits[i].wrapping_sub(before.waits[i]) {
            grown if grown < BACKWARDS => grown,
            _ => 0,
        };
        Counters {
            segments_out: self.segments_out - before.segments_out,
            retransmits: self.retransmits.saturating_sub(before.retransmits),
            spurious: self.spurious.saturating_sub(before.spurious),
            waits: [grown(0), grown(1), grown(2)],
        }
    }
}

/// The round trips of a socket in the window, and how the segments that came found its queue.
#[derive(Default)]
pub struct Samples {
    rtt: Histogram,
    waiting: u64,
    drained: u64,
}

/// What the kernel had counted when the window began, by cookie.
#[derive(Default)]
pub struct Before {
    sockets: HashMap<u64, (Counters, Holder)>,
    rtts: HashMap<u64, rtt>,
}

impl Before {
    /// Of a socket with several holders the first counts.
    pub fn add(&mut self, row: &tcp_row) {
        self.sockets.entry(row.cookie).or_insert_with(|| (Counters::of(row), holder(row)));
    }

    pub fn add_rtt(&mut self, row: &tcp_row, rtt: &rtt) {
        self.add(row);
        self.rtts.insert(row.cookie, with_last_sample(row, rtt));
    }

    /// What was sampled since then: small, where the kernel's record of a socket is not.
    pub fn samples(&self, cookie: u64, now: &rtt) -> Samples {
        let before = self.rtts.get(&cookie);
        let grown = |of: fn(&rtt) -> u32| of(now).saturating_sub(before.map_or(0, of)).into();
        Samples {
            rtt: Histogram::between(before.map(|b| &b.buckets), &now.buckets, now.min_us, now.max_us),
            waiting: grown(|rtt| rtt.waiting),
            drained: grown(|rtt| rtt.drained),
        }
    }

    pub fn holder(&self, cookie: u64) -> Option<Holder> {
        self.sockets.get(&cookie).map(|(_, holder)| *holder).filter(|(pid, _)| *pid != 0)
    }
}

/// A program sees a sample when the next segment arrives: the last one is still between the socket's average and
/// what the program has seen of it. This is `take_sample` of `round_trips.h`.
pub fn with_last_sample(row: &tcp_row, seen: &rtt) -> rtt {
    const ESTABLISHED: u8 = 1;
    let mut rtt = *seen;
    if row.state != ESTABLISHED || (row.srtt_us, row.delivered) == (seen.srtt_us, seen.delivered) {
        return rtt;
    }
    let us = match seen.srtt_us {
        0 => row.srtt_us >> 3,
        srtt_us => row.srtt_us.wrapping_sub(srtt_us).wrapping_add(srtt_us >> 3),
    };
    if us < BACKWARDS {
        rtt.buckets[bucket_of(us)] += 1;
        (rtt.min_us, rtt.max_us) = (rtt.min_us.min(us), rtt.max_us.max(us));
    }
    rtt
}

/// What makes a row: the remote address, its port where we are the client, and where the address
/// means this very host, the network namespace.
#[derive(PartialEq, Eq, Hash)]
struct Key([u8; 16], u16, u32);

impl Key {
    fn of(row: &tcp_row) -> Self {
        let e = &row.endpoints;
        let address = Endpoint::new(e.remote, 0).address;
        let port = if row.inbound == 0 { e.remote_port } else { 0 };
        Key(e.remote, port, if address.is_loopback() { row.netns } else { 0 })
    }
}

#[derive(Default)]
struct Sum {
    group: Group,
    owners: HashMap<(Holder, u64, u32), Counts>,
}

pub struct Ledger<'a> {
    input: &'a Input,
    before: &'a Before,
    seen: HashSet<u64>,
    sums: HashMap<Key, Sum>,
    total: Counts,
    unknown: u64,
}

impl<'a> Ledger<'a> {
    pub fn new(input: &'a Input, before: &'a Before) -> Self {
        Ledger {
            input,
            before,
            seen: HashSet::new(),
            sums: HashMap::new(),
            total: Counts::default(),
            unknown: 0,
        }
    }

    /// A socket, once for each process that holds it, the one that it is attributed to first. What has closed comes
    /// last: if it was counted as open, that was after the window's end.
    pub fn take(&mut self, row: &tcp_row, samples: &Samples) {
        self.account(row, samples, row.closed_ns == 0 || row.is_new != 0);
    }

    /// A socket that no process holds and nobody marked: it was there before we watched.
    pub fn take_unmarked(&mut self, row: &tcp_row, samples: &Samples) {
        self.account(row, samples, false);
    }

    /// `is_new` says of a socket that was not read when the window began that it was not there.
    fn account(&mut self, row: &tcp_row, samples: &Samples, is_new: bool) {
        if !self.seen.insert(row.cookie) {
            return;
        }
        let holder = if row.pid == 0 { self.before.holder(row.cookie).unwrap_or(holder(row)) } else { holder(row) };
        if !wants(self.input, holder, row) {
            return;
        }
        let grown = match self.before.sockets.get(&row.cookie) {
            Some((before, _)) => Counters::of(row).since(*before),
            // It was not opened in our time, and nobody held it: what it had sent before is not known.
            None if !is_new => {
                self.unknown += 1;
                Counters::default()
            }
            None => Counters::of(row),
        };
        let Samples { rtt, waiting, drained } = samples;
        if grown.segments_out == 0 && grown.retransmits == 0 && rtt.samples() == 0 && grown.waits == [0; 3] {
            return;
        }
        let [busy, receiver, send_buffer] = grown.waits.map(u64::from);
        let waits = Waits { busy, receiver, send_buffer, waiting: *waiting, drained: *drained };
        let counts = Counts {
            connections: 1,
            segments_out: grown.segments_out.into(),
            retransmits: grown.retransmits.into(),
            spurious: grown.spurious.into(),
        };
        self.add(row, holder, counts, rtt, waits);
    }

    fn add(&mut self, row: &tcp_row, holder: Holder, counts: Counts, samples: &Histogram, waits: Waits) {
        self.total += counts;
        let sum = self.sums.entry(Key::of(row)).or_default();
        sum.group.counts += counts;
        sum.group.rtt.add(samples);
        let w = &mut sum.group.waits;
        w.busy += waits.busy;
        w.receiver += waits.receiver;
        w.send_buffer += waits.send_buffer;
        w.waiting += waits.waiting;
        w.drained += waits.drained;
        *sum.owners.entry((holder, row.cgroup, row.netns)).or_default() += counts;
    }

    /// Connections that there was no room for; a question about some of them cannot count them.
    pub fn untracked(&mut self, counts: Counts) {
        if self.input.filter().is_any() {
            self.total += counts;
        }
    }

    /// The remotes that are worst off; `jiffy_ns` is what the kernel's clock of waits ticks in.
    pub fn finish(self, gaps: Gaps, jiffy_ns: f64) -> Sample {
        let mut worst = Largest::new(self.input.limit.rows());
        for (key, sum) in self.sums {
            let Counts { segments_out, retransmits, .. } = sum.group.counts;
            let per_mille = retransmits * 1_000 / segments_out.max(1);
            worst.push((per_mille, retransmits, sum.group.rtt.quantile_us(0.99), segments_out), (key, sum));
        }
        let (worst, remotes_cut) = worst.finish();
        let gaps = Gaps { unknown: self.unknown, ..gaps };
        let remotes = worst.into_iter().map(|(key, sum)| sum.group(&key, jiffy_ns)).collect();
        Sample { remotes, remotes_cut, total: self.total, gaps, ..Sample::default() }
    }
}

impl Sum {
    fn group(self, Key(address, port, _): &Key, jiffy_ns: f64) -> Group {
        let mut most = Largest::new(limits::OWNERS_OF_A_REMOTE);
        for (owner, counts) in self.owners {
            most.push((counts.retransmits, counts.segments_out), (owner, counts));
        }
        let (owners, owners_cut) = most.finish();
        let process = |(((pid, comm), cgroup, netns), counts): &((Holder, u64, u32), Counts)| {
            (Process::new(*pid, comm, *cgroup, *netns), *counts)
        };
        let remote = Remote { address: Endpoint::new(*address, 0).address, port: (*port != 0).then_some(*port) };
        let ns = |jiffies: u64| (jiffies as f64 * jiffy_ns) as u64;
        let w = &self.group.waits;
        let waits = Waits { busy: ns(w.busy), receiver: ns(w.receiver), send_buffer: ns(w.send_buffer), ..*w };
        let owners = owners.iter().map(process).collect();
        Group { remote: Some(remote), owners, owners_cut, waits, ..self.group }
    }
}

/// Whether a question is about this socket.
fn wants(input: &Input, holder: Holder, row: &tcp_row) -> bool {
    let e = &row.endpoints;
    let filter = input.filter();
    filter.owner(holder.0, &holder.1) && filter.ends(e.remote, [e.local_port, e.remote_port])
}
