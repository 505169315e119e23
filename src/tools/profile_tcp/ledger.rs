//! From counters of sockets to remotes and their owners: what each socket did in the window, counted once.

use std::collections::{HashMap, HashSet};

use super::{
    Counts, Gaps, Group, Histogram, Input, JIFFY, Prompt, RemoteEnd, SLOW_US, Sample, Service, VERY_SLOW_US, Waits,
    histogram::bucket_of,
    repliers::{Holder, Key, NewReplies, SocketOwner, process},
    skel::types::{average, rtt, tcp_row, tcp_row_with_rtt},
};
use crate::{
    answer::Endpoint,
    daemon::{closed::Ended, largest::Largest},
    numbers::limited::LIMITED_BY_APPLICATION,
};

/// A time in jiffies beyond which a counter has not run on but begun anew.
const BACKWARDS: u32 = 1 << 31;

impl Ended for tcp_row {
    type Beyond = Counts;

    fn cookie(&self) -> u64 {
        self.cookie
    }

    fn closed_ns(&self) -> u64 {
        self.closed_ns
    }

    fn add_to(&self, beyond: &mut Counts) {
        let connections = Counts { connections: 1, ..Counts::default() };
        let sent =
            Counts { segments_out: self.segments_out.into(), retransmits: self.retransmits.into(), ..connections };
        // What one that was opened before that has sent in the window is not known.
        *beyond += if self.window == 0 { connections } else { sent };
    }
}

pub fn holder(row: &tcp_row) -> Holder {
    (row.pid, row.comm.map(|c| c as u8))
}

/// The counters of a socket that a window needs the growth of.
#[derive(Clone, Copy, Default)]
pub struct Counters {
    segments_out: u32,
    retransmits: u32,
    spurious: u32,
    /// In jiffies: busy, limited by the receiver, by the send buffer.
    waits: [u32; 3],
}

/// How far a wait went. The running part of it is read without a lock, and may be a jiffy ahead of what is added at its
/// end: then it has not moved.
fn waited(now: u32, before: u32) -> Option<u32> {
    Some(now.wrapping_sub(before)).filter(|grown| *grown < BACKWARDS)
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
        Counters {
            segments_out: self.segments_out - before.segments_out,
            retransmits: self.retransmits.saturating_sub(before.retransmits),
            spurious: self.spurious.saturating_sub(before.spurious),
            waits: std::array::from_fn(|i| waited(self.waits[i], before.waits[i]).unwrap_or(0)),
        }
    }

    /// What the next reading begins with: growth adds up to that of one reading.
    fn after(self, before: Counters) -> Counters {
        if self.segments_out < before.segments_out {
            return self;
        }
        let further = |i: usize| waited(self.waits[i], before.waits[i]).map_or(before.waits[i], |_| self.waits[i]);
        Counters { waits: std::array::from_fn(further), ..self }
    }
}

/// The round trips of a socket in the window, and what it waited for, by weight.
#[derive(Default)]
pub struct Samples {
    rtt: Histogram,
    prompt: Prompt,
    network: u64,
    application: u64,
}

/// What the kernel had counted at the last reading, by cookie.
#[derive(Default)]
pub struct Before {
    pub sockets: HashMap<u64, (Counters, Holder)>,
    pub rtts: HashMap<u64, rtt>,
}

impl Before {
    /// What it was called at the last reading. One that only a ring of io_uring has, or that is below another socket, may
    /// have had no cookie then; it gets one when it closes.
    pub fn name(&self, row: &tcp_row, is_new: bool) -> u64 {
        let had_none = !is_new && !self.sockets.contains_key(&row.cookie);
        if had_none && self.sockets.contains_key(&row.address) { row.address } else { row.cookie }
    }

    /// Of a socket with several holders the first counts.
    pub fn add(&mut self, row: &tcp_row) {
        self.sockets.entry(row.cookie).or_insert_with(|| (Counters::of(row), holder(row)));
        if let Some(rtt) = handshake(row) {
            self.rtts.entry(row.cookie).or_insert(rtt);
        }
    }

    pub fn add_rtt(&mut self, row: &tcp_row, rtt: &rtt) {
        self.add(row);
        self.rtts.insert(row.cookie, with_last_sample(row, rtt));
    }

    /// Of a socket that its process has closed: no segment adds to it.
    pub fn add_closed_rtt(&mut self, cookie: u64, rtt: &rtt) {
        self.rtts.insert(cookie, *rtt);
    }

    /// What was sampled since then: small, where the kernel's record of a socket is not.
    pub fn samples(&self, cookie: u64, now: &rtt) -> Samples {
        let before = self.rtts.get(&cookie);
        let grown = |of: fn(&rtt) -> u64| of(now).saturating_sub(before.map_or(0, of));
        Samples {
            rtt: Histogram::between(before.map(|b| &b.buckets), &now.buckets, now.min_us, now.max_us),
            prompt: Prompt {
                samples: grown(|rtt| rtt.prompt.into()),
                slow: grown(|rtt| rtt.prompt_slow.into()),
                very_slow: grown(|rtt| rtt.prompt_very_slow.into()),
            },
            network: grown(|rtt| rtt.network),
            application: grown(|rtt| rtt.application),
        }
    }

    pub fn holder(&self, cookie: u64) -> Option<Holder> {
        self.sockets.get(&cookie).map(|(_, holder)| *holder).filter(|(pid, _)| *pid != 0)
    }
}

/// The record of a connection of which the kernel keeps none, since nothing was acknowledged since we watch, but for its
/// handshake.
pub fn handshake(row: &tcp_row) -> Option<rtt> {
    let us = row.handshake_us >> 3;
    let mut rtt = rtt { min_us: us, max_us: us, ..rtt::default() };
    add_sample(&mut rtt, us, true);
    (row.handshake_us != 0).then_some(rtt)
}

/// The row of a socket that was read with its round trips. If a segment came meanwhile, the two do not fit: then they show
/// no sample between them, and the next reading has it.
pub fn settled(tcp_row_with_rtt { row, rtt, again }: &tcp_row_with_rtt) -> tcp_row {
    let fit = is_same(&again[0], &row.average) && is_same(&again[1], &rtt.average);
    if fit { *row } else { tcp_row { average: rtt.average, ..*row } }
}

fn is_same(one: &average, other: &average) -> bool {
    (one.srtt_us, one.delivered) == (other.srtt_us, other.delivered)
}

/// A program sees a sample when the next segment arrives: the last one is still between the socket's average and
/// what the program has seen of it. This is `take_sample` of `round_trips.h`.
pub fn with_last_sample(row: &tcp_row, seen: &rtt) -> rtt {
    const ESTABLISHED: u8 = 1;
    let mut rtt = with_last_wait(row, seen);
    if row.state != ESTABLISHED || is_same(&row.average, &seen.average) {
        return rtt;
    }
    let now_us = row.average.srtt_us;
    let us = match seen.average.srtt_us {
        0 => now_us >> 3,
        before_us => now_us.wrapping_sub(before_us).wrapping_add(before_us >> 3),
    };
    if us < BACKWARDS {
        add_sample(&mut rtt, us, seen.prompt_next != 0);
        (rtt.min_us, rtt.max_us) = (rtt.min_us.min(us), rtt.max_us.max(us));
    }
    rtt
}

/// `add_sample` of `round_trips.h`.
fn add_sample(rtt: &mut rtt, us: u32, is_prompt: bool) {
    rtt.buckets[bucket_of(us)] += 1;
    rtt.prompt += u32::from(is_prompt);
    rtt.prompt_slow += u32::from(is_prompt && u64::from(us) >= SLOW_US);
    rtt.prompt_very_slow += u32::from(is_prompt && u64::from(us) >= VERY_SLOW_US);
}

/// What it waits for since the last segment came, or since it has something to send.
fn with_last_wait(row: &tcp_row, seen: &rtt) -> rtt {
    let since = row.jiffies.wrapping_sub(seen.seen);
    let waits = if since < BACKWARDS { since.min(row.running.into()) } else { 0 };
    let mut rtt = *seen;
    *waits_for(row, &mut rtt.network, &mut rtt.application) += u64::from(waits) * JIFFY;
    rtt
}

/// Of two weights the one of what a busy sender waits for.
fn waits_for<'a>(row: &tcp_row, network: &'a mut u64, application: &'a mut u64) -> &'a mut u64 {
    if i64::from(row.busy_with) == LIMITED_BY_APPLICATION { application } else { network }
}

#[derive(Default)]
struct Sum {
    group: Group,
    owners: HashMap<SocketOwner, Counts>,
    /// What another reading may count as well.
    sockets: Vec<(u64, SocketOwner)>,
}

pub struct Ledger<'a> {
    input: &'a Input,
    before: &'a Before,
    /// What is open, for the next reading.
    next: HashMap<u64, (Counters, Holder)>,
    /// Whether another reading of the session may count the same connections.
    is_one_of_many: bool,
    seen: HashSet<u64>,
    sums: HashMap<Key, Sum>,
    replies: NewReplies,
    total: Counts,
    unknown: u64,
}

impl<'a> Ledger<'a> {
    pub fn new(input: &'a Input, before: &'a Before, is_one_of_many: bool, replies: NewReplies) -> Self {
        Ledger {
            input,
            before,
            next: HashMap::new(),
            is_one_of_many,
            seen: HashSet::new(),
            sums: HashMap::new(),
            replies,
            total: Counts::default(),
            unknown: 0,
        }
    }

    /// A socket, once for each process that holds it, the one that it is attributed to first. What has closed comes
    /// last, and is not counted if it was read as open before that: then it is the next reading's. Says whether it was counted.
    pub fn take(&mut self, row: &tcp_row, is_new: bool, samples: &Samples) -> bool {
        let is_first = self.seen.insert(self.before.name(row, is_new));
        if is_first {
            self.count(row, is_new, samples);
        }
        is_first
    }

    fn count(&mut self, row: &tcp_row, is_new: bool, samples: &Samples) {
        let name = self.before.name(row, is_new);
        let holder = if row.pid == 0 { self.before.holder(name).unwrap_or(holder(row)) } else { holder(row) };
        let before = self.before.sockets.get(&name).map(|(counters, _)| *counters);
        if row.closed_ns == 0 {
            let counters = Counters::of(row);
            self.next.insert(row.cookie, (before.map_or(counters, |before| counters.after(before)), holder));
        }
        if !wants(self.input, holder, row) {
            return;
        }
        let grown = match before {
            Some(before) => Counters::of(row).since(before),
            // It was there before, and could not be read then: what it had sent is not known.
            None if !is_new => {
                self.unknown += 1;
                Counters::default()
            }
            None => Counters::of(row),
        };
        let (mut network, mut application) = (samples.network, samples.application);
        if grown.segments_out == 0 && grown.retransmits == 0 && samples.rtt.samples() == 0 && grown.waits == [0; 3] {
            // The replies may be of the moment between the reading of them and that of sockets.
            if row.inbound != 0 {
                self.replies.note_served(row, (holder, row.cgroup, row.netns), &Histogram::default());
            } else if self.replies.are_of(row) {
                self.add(row, holder, Counts::default(), &Samples::default(), Waits::default());
            }
            return;
        }
        let [busy, receiver, send_buffer] = grown.waits.map(u64::from);
        if network + application == 0 {
            *waits_for(row, &mut network, &mut application) += busy * JIFFY; // nothing came
        }
        let waits = Waits { busy, receiver, send_buffer, network, application };
        let counts = Counts {
            connections: 1,
            segments_out: grown.segments_out.into(),
            retransmits: grown.retransmits.into(),
            spurious: grown.spurious.into(),
        };
        // One that opened and closed since the last reading is counted here and nowhere else.
        let is_whole = before.is_none() && row.closed_ns != 0;
        let is_shared = self.is_one_of_many && !is_whole;
        let sum = self.add(row, holder, counts, samples, waits);
        if is_shared {
            sum.sockets.push((row.cookie, (holder, row.cgroup, row.netns)));
        }
    }

    fn add(&mut self, row: &tcp_row, holder: Holder, counts: Counts, samples: &Samples, waits: Waits) -> &mut Sum {
        self.total += counts;
        let sum = self.sums.entry(Key::of(row)).or_default();
        sum.group.counts += counts;
        sum.group.rtt.add(&samples.rtt);
        sum.group.prompt += samples.prompt;
        sum.group.waits += waits;
        *sum.owners.entry((holder, row.cgroup, row.netns)).or_default() += counts;
        self.replies.note_served(row, (holder, row.cgroup, row.netns), &samples.rtt);
        sum
    }

    /// The times to the first byte: those of the servers that this host asks go to their remotes.
    pub fn services(&mut self) -> Vec<Service> {
        for (remote, replies) in std::mem::take(&mut self.replies.there) {
            self.sums.get_mut(&remote).into_iter().for_each(|sum| sum.group.replies += &replies);
        }
        std::mem::take(&mut self.replies).services(self.input.filter().matches_everything())
    }

    /// Connections that there was no room for; a question about some of them cannot count them.
    pub fn untracked(&mut self, counts: Counts) {
        if self.input.filter().matches_everything() {
            self.total += counts;
        }
    }

    /// The remotes that are worst off, and what the next reading begins with.
    pub fn finish(self, gaps: Gaps) -> (Sample, HashMap<u64, (Counters, Holder)>) {
        let mut worst = Largest::new(self.input.limit.rows());
        for (key, sum) in self.sums {
            let Counts { segments_out, retransmits, .. } = sum.group.counts;
            let per_mille = retransmits * 1_000 / segments_out.max(1);
            worst.push((per_mille, retransmits, sum.group.slowest_us(), segments_out), (key, sum));
        }
        let (worst, remotes_cut) = worst.finish();
        let gaps = Gaps { unknown: self.unknown, ..gaps };
        let remotes = worst.into_iter().map(|(key, sum)| sum.group(&key)).collect();
        (Sample { remotes, remotes_cut, total: self.total, gaps, ..Sample::default() }, self.next)
    }
}

impl Sum {
    fn group(self, Key(address, port, _): &Key) -> Group {
        let (owners, counts): (Vec<_>, Vec<_>) = self.owners.into_iter().unzip();
        let places: HashMap<_, _> = owners.iter().enumerate().map(|(place, owner)| (*owner, place)).collect();
        let sockets = self.sockets.iter().filter_map(|(cookie, owner)| Some((*cookie, *places.get(owner)?))).collect();
        let remote = RemoteEnd { address: Endpoint::new(*address, 0).address, port: (*port != 0).then_some(*port) };
        Group { remote: Some(remote), owners: owners.iter().map(process).zip(counts).collect(), sockets, ..self.group }
    }
}

/// Whether a question is about this socket.
fn wants(input: &Input, holder: Holder, row: &tcp_row) -> bool {
    let e = &row.endpoints;
    let filter = input.filter();
    filter.owner(holder.0, &holder.1) && filter.ends(e.remote, [e.local_port, e.remote_port])
}
