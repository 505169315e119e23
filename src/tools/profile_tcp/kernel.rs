//! Profiling in the kernel while a window is open, and reading what was counted.

use std::{
    collections::HashMap,
    io,
    mem::offset_of,
    sync::{Arc, Mutex},
    time::Instant,
};

use libbpf_rs::{
    MapCore, MapFlags, MapHandle,
    skel::{OpenSkel, SkelBuilder},
};

use super::{
    Counts, Gaps, Input, Reset, Sample,
    ledger::{Before, Holder, Ledger, Samples, holder, with_last_sample},
    skel::{self, types},
};
use crate::{
    answer::Endpoint,
    attribution::Process,
    bpf::{self, Link, Loader, Pod, Program, lock},
    btf::Kernel,
    largest::Largest,
    window::{Window, monotonic_ns},
    wire::Error,
};
use types::{figures, reset, reset_key, rtt, tcp_row, tcp_row_with_rtt};

// SAFETY: integers, arrays of integers, and structs of such, with explicit padding.
unsafe impl Pod for tcp_row {}
// SAFETY: integers and an array of integers, without padding.
unsafe impl Pod for rtt {}
// SAFETY: two of the above, each a multiple of 8 bytes long.
unsafe impl Pod for tcp_row_with_rtt {}
// SAFETY: integers and a struct of such, with explicit padding.
unsafe impl Pod for reset_key {}
// SAFETY: integers and an array of integers, with explicit padding.
unsafe impl Pod for reset {}
// SAFETY: integers, without padding.
unsafe impl Pod for figures {}

/// What was loaded, and who uses it.
pub struct Profiler {
    /// What runs while a window is open.
    traced: Vec<Program>,
    list_held: Program,
    list_tcp: Program,
    list_marked: Program,
    list_rtts: Program,
    forget: Program,
    marks: MapHandle,
    rtts: MapHandle,
    closed: MapHandle,
    closed_rtts: MapHandle,
    resets: MapHandle,
    bss: MapHandle,
    /// The names of this kernel's reasons for resets; none before Linux 6.12.
    reasons: Option<HashMap<u32, String>>,
    state: Mutex<State>,
}

/// Links that windows share, and when each of these began (CLOCK_MONOTONIC).
#[derive(Default)]
struct State {
    links: Vec<Link>,
    open: Vec<u64>,
}

/// One window's share of the profiling.
struct Session {
    profiler: Arc<Profiler>,
    since_ns: u64,
}

/// Resets and figures at one moment.
struct Counted {
    resets: HashMap<Vec<u8>, (reset_key, reset)>,
    figures: figures,
    missed: u64,
}

impl Profiler {
    pub fn load(loader: &mut Loader) -> Result<Self, Error> {
        let kernel = Kernel::read()?;
        let with_reason = kernel.arguments("tcp_send_reset").is_some_and(|arguments| arguments > 2);
        let reasons = with_reason.then(|| kernel.names("sk_rst_reason", "SK_RST_REASON_").into_iter().collect());
        drop(kernel);
        let mut object = bpf::object();
        let mut open = skel::ProfileTcpSkelBuilder::default().open(&mut object)?;
        open.progs.reset_sent.set_autoload(!with_reason);
        open.progs.reset_sent_with_reason.set_autoload(with_reason);
        let skel = open.load()?;
        let (progs, maps) = (&skel.progs, &skel.maps);
        let reset_sent = if with_reason { &progs.reset_sent_with_reason } else { &progs.reset_sent };
        let traced = [&progs.state_changes, &progs.segment_arrives, reset_sent, &progs.reset_received];
        Ok(Profiler {
            traced: traced.into_iter().map(|program| loader.program(program)).collect::<io::Result<_>>()?,
            list_held: loader.program(&progs.list_held)?,
            list_tcp: loader.program(&progs.list_tcp)?,
            list_marked: loader.program(&progs.list_marked)?,
            list_rtts: loader.program(&progs.list_rtts)?,
            forget: loader.program(&progs.forget)?,
            marks: loader.map(&maps.marks)?,
            rtts: loader.map(&maps.rtts)?,
            closed: loader.map(&maps.closed)?,
            closed_rtts: loader.map(&maps.closed_rtts)?,
            resets: loader.map(&maps.resets)?,
            bss: loader.map(&maps.bss)?,
            reasons,
            state: Mutex::default(),
        })
    }

    pub fn rehearse(&self) -> io::Result<()> {
        self.traced.iter().try_for_each(|program| program.trace().map(drop))?;
        self.list_held.try_iterator()?;
        self.list_tcp.try_iterator()?;
        self.forget()
    }

    pub fn sample(self: &Arc<Self>, input: &Input, window: &Window) -> Result<Sample, Error> {
        let session = self.open()?;
        let begun = Instant::now();
        let mut before = Before::default();
        self.sockets(|row| before.add(row))?;
        self.rtts(|row, rtt| before.add_rtt(row, rtt))?;
        let counted = self.counted()?;
        window.wait(window.opened(), input.duration_ms.duration())?;
        let window_ns = begun.elapsed().as_nanos() as u64;
        let mut sample = session.settle(input, &before, &counted)?;
        sample.window_ns = window_ns;
        window.keep(session);
        Ok(sample)
    }

    fn open(self: &Arc<Self>) -> Result<Session, Error> {
        let mut state = lock(&self.state);
        if state.open.is_empty() {
            state.links = self.traced.iter().map(Program::trace).collect::<io::Result<_>>()?;
        }
        let since_ns = monotonic_ns();
        state.open.push(since_ns);
        Ok(Session { profiler: Arc::clone(self), since_ns })
    }

    /// Every connection, once for each process that holds it; after the others those of process 1, which holds what it
    /// activates for them, and of children whose parent has them; what nobody holds last.
    fn sockets(&self, mut take: impl FnMut(&tcp_row)) -> io::Result<()> {
        let mut later = HashMap::new();
        self.list_held.each(|row: &tcp_row| match (row.pid, row.inherited) {
            (2.., 0) => take(row),
            _ => drop(later.entry(row.cookie).or_insert(*row)),
        })?;
        later.values().for_each(&mut take);
        self.list_marked.each_in(&self.marks, &mut take)?;
        self.list_tcp.each(&mut take)
    }

    /// The sockets to which segments came.
    fn rtts(&self, mut take: impl FnMut(&tcp_row, &rtt)) -> io::Result<()> {
        self.list_rtts.each_in(&self.rtts, |both: &tcp_row_with_rtt| take(&both.row, &both.rtt))
    }

    fn counted(&self) -> Result<Counted, Error> {
        let resets = bpf::entries::<reset_key, reset>(&self.resets)?;
        let bytes = self.bss.lookup(bpf::bytes(&0u32), MapFlags::ANY)?.unwrap_or_default();
        let figures = bytes.get(offset_of!(types::bss, figures)..).and_then(bpf::read);
        let figures = figures.ok_or_else(|| Error::Kernel("the figures of the profile are gone".into()))?;
        Ok(Counted {
            resets: resets.into_iter().map(|(key, reset)| (bpf::bytes(&key).to_vec(), (key, reset))).collect(),
            figures,
            missed: self.traced.iter().map(Program::misses).sum::<io::Result<u64>>()?,
        })
    }

    fn forget(&self) -> io::Result<()> {
        self.forget.each_in(&self.rtts, |_: &u32| {})?;
        self.forget.each_in(&self.marks, |_: &u32| {})
    }

    /// Lets go of all that was counted: nothing counts any more.
    fn clear(&self) -> Result<(), Error> {
        self.forget()?;
        remove::<u64, tcp_row>(&self.closed, |_| true)?;
        remove::<u64, rtt>(&self.closed_rtts, |_| true)?;
        remove::<reset_key, reset>(&self.resets, |_| true)?;
        let zeros = vec![0; self.bss.value_size() as usize];
        Ok(self.bss.update(bpf::bytes(&0u32), &zeros, MapFlags::ANY)?)
    }

    /// Lets go of connections that closed before the oldest window began.
    fn clear_before(&self, oldest_ns: u64) -> Result<(), Error> {
        let closed = bpf::entries::<u64, tcp_row>(&self.closed)?;
        for (cookie, _) in closed.iter().filter(|(_, row)| row.closed_ns < oldest_ns) {
            self.closed.delete(bpf::bytes(cookie))?;
            let _ = self.closed_rtts.delete(bpf::bytes(cookie)); // few have one
        }
        Ok(())
    }
}

/// Deletes the entries that nobody needs.
fn remove<K: Pod, V: Pod>(map: &MapHandle, unneeded: impl Fn(&V) -> bool) -> Result<(), Error> {
    let entries = bpf::entries::<K, V>(map)?;
    let unneeded = entries.iter().filter(|(_, value)| unneeded(value));
    let keys: Vec<u8> = unneeded.flat_map(|(key, _)| bpf::bytes(key).to_vec()).collect();
    let count = (keys.len() / size_of::<K>()) as u32;
    if count > 0 {
        map.delete_batch(&keys, count, MapFlags::ANY, MapFlags::ANY)?;
    }
    Ok(())
}

impl Session {
    /// What every socket has done in the window.
    fn settle(&self, input: &Input, before: &Before, counted: &Counted) -> Result<Sample, Error> {
        let profiler = &self.profiler;
        let (mut rtts, mut holders) = (HashMap::new(), HashMap::new());
        profiler.rtts(|row, rtt| {
            rtts.insert(row.cookie, (*row, before.samples(row.cookie, &with_last_sample(row, rtt))));
        })?;
        let none = Samples::default();
        let mut ledger = Ledger::new(input, before);
        profiler.sockets(|row| {
            if row.pid != 0 {
                holders.entry(row.cookie).or_insert_with(|| holder(row));
            }
            ledger.take(row, rtts.get(&row.cookie).map_or(&none, |(_, samples)| samples));
        })?;
        let closed_rtts = bpf::entries::<u64, rtt>(&profiler.closed_rtts)?.into_iter();
        let closed_rtts: HashMap<_, _> =
            closed_rtts.map(|(cookie, rtt)| (cookie, before.samples(cookie, &rtt))).collect();
        for (cookie, row) in bpf::entries::<u64, tcp_row>(&profiler.closed)? {
            if row.closed_ns >= self.since_ns {
                ledger.take(&row, closed_rtts.get(&cookie).unwrap_or(&none));
            }
        }
        // Of other network namespaces, what no process holds and nobody marked.
        rtts.values().for_each(|(row, samples)| ledger.take_unmarked(row, samples));
        let now = profiler.counted()?;
        ledger.untracked(now.untracked(counted));
        let mut sample = ledger.finish(now.gaps(counted, profiler.reasons.is_none()), now.jiffy_ns(counted));
        sample.missed = now.missed - counted.missed;
        let known = |cookie| before.holder(cookie).or_else(|| holders.get(&cookie).copied());
        (sample.resets, sample.resets_cut) = profiler.resets(input, &now, counted, known);
        Ok(sample)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut state = lock(&self.profiler.state);
        if let Some(i) = state.open.iter().position(|since| *since == self.since_ns) {
            state.open.swap_remove(i);
        }
        let done = match state.open.iter().min() {
            None => {
                state.links.clear();
                self.profiler.clear()
            }
            Some(oldest) => self.profiler.clear_before(*oldest),
        };
        if let Err(e) = done {
            tracing::warn!("what profile_tcp has counted could not be cleared: {e}");
        }
    }
}

impl Counted {
    fn gaps(&self, before: &Counted, reasons_unknown: bool) -> Gaps {
        let (now, before) = (&self.figures, &before.figures);
        Gaps {
            rtts_untracked: now.rtts_untracked - before.rtts_untracked,
            closed_untracked: now.closed_untracked - before.closed_untracked,
            closed_rtts_untracked: now.closed_rtts_untracked - before.closed_rtts_untracked,
            resets_untracked: now.resets_untracked - before.resets_untracked,
            reasons_unknown,
            unknown: 0,
        }
    }

    /// The kernel's HZ is not to be had, but both of its clocks are.
    fn jiffy_ns(&self, before: &Counted) -> f64 {
        let (now, before) = (&self.figures, &before.figures);
        now.ns.saturating_sub(before.ns) as f64 / now.jiffies.saturating_sub(before.jiffies).max(1) as f64
    }

    fn untracked(&self, before: &Counted) -> Counts {
        let (now, before) = (&self.figures, &before.figures);
        Counts {
            connections: now.closed_untracked - before.closed_untracked,
            segments_out: now.closed_segments - before.closed_segments,
            retransmits: now.closed_retransmits - before.closed_retransmits,
            spurious: 0,
        }
    }
}

impl Profiler {
    /// The resets of a window, most first, and how many kinds were cut.
    fn resets(
        &self,
        input: &Input,
        now: &Counted,
        before: &Counted,
        holder: impl Fn(u64) -> Option<Holder>,
    ) -> (Vec<Reset>, u64) {
        let (filter, mut most) = (input.filter(), Largest::new(input.limit.rows()));
        for (bytes, (key, last)) in &now.resets {
            let count = last.count - before.resets.get(bytes).map_or(0, |(_, reset)| reset.count);
            let marked = (key.pid, last.comm.map(|c| c as u8));
            let holder = if key.pid != 0 { marked } else { holder(last.cookie).unwrap_or(marked) };
            // One of the two is 0 in the key, and the last one's stands for it.
            let port = key.endpoints.local_port.max(key.endpoints.remote_port);
            let wanted = count > 0
                && filter.owner(holder.0, &holder.1)
                && filter.ends(key.endpoints.remote, [port, last.port as u16]);
            if wanted {
                most.push(count, (key, last, holder, count));
            }
        }
        let (rows, cut) = most.finish();
        (rows.into_iter().map(|(key, last, holder, count)| self.reset(key, last, holder, count)).collect(), cut)
    }

    fn reset(&self, key: &reset_key, last: &reset, (pid, comm): Holder, count: u64) -> Reset {
        let port = |port: u16| if port == 0 { last.port as u16 } else { port };
        let e = &key.endpoints;
        Reset {
            process: Process::new(pid, &comm, last.cgroup, key.netns),
            local: Endpoint::new(e.local, port(e.local_port)),
            remote: Endpoint::new(e.remote, port(e.remote_port)),
            by_remote: key.by_remote != 0,
            state: key.state,
            reason: self.reasons.as_ref().and_then(|names| names.get(&key.reason)).cloned(),
            count,
        }
    }
}
