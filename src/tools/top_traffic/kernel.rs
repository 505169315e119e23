//! Counting in the kernel while a window is open, and reading what was counted.

use std::{
    collections::HashMap,
    io,
    mem::offset_of,
    sync::{Arc, Mutex},
    thread::{self, Builder},
    time::Instant,
};

use libbpf_rs::{MapCore, MapFlags, MapHandle};

use super::{
    Bytes, Gaps, Input, Sample,
    ledger::{Before, Ledger},
    skel::{self, types},
};
use crate::{
    answer::Protocols,
    bpf::{self, Link, Loader, Pod, Program, lock},
    limits::{THREAD_STACK, TRAFFIC_SPREAD, UDP_SOCKETS_COUNTED},
    window::{Window, monotonic_ns},
    windows::{Numbered, Windows},
    wire::Error,
};

// SAFETY: integers, arrays of integers, and structs of such, without padding.
unsafe impl Pod for types::socket_bytes {}
// SAFETY: integers and a struct of such, with explicit padding.
unsafe impl Pod for types::flow {}
// SAFETY: integers, without padding.
unsafe impl Pod for types::traffic {}
// SAFETY: integers and a struct of such, with explicit padding.
unsafe impl Pod for types::slot {}
// SAFETY: integers, without padding.
unsafe impl Pod for types::windows {}
// SAFETY: integers, without padding.
unsafe impl Pod for types::admission {}

/// Before it, slots of what is not counted one by one: UDP, then TCP.
const FIRST_SLOT: usize = 2 * TRAFFIC_SPREAD;

/// What was loaded, and who uses it.
pub struct Counting {
    tcp_state: Program,
    /// On a kernel with the tracepoints.
    udp: Option<[Program; 2]>,
    list_held: Program,
    list_tcp: Program,
    list_marked: Program,
    forget_marks: Program,
    marks: MapHandle,
    slots: MapHandle,
    udp_flows: MapHandle,
    tcp_closed: MapHandle,
    bss: MapHandle,
    windows: Arc<Windows<types::windows>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tcp: Attached,
    udp: Attached,
    /// When each open window began (CLOCK_MONOTONIC).
    open: Vec<u64>,
}

/// Links that windows share.
#[derive(Default)]
struct Attached {
    windows: usize,
    links: Vec<Link>,
}

impl Attached {
    fn add(&mut self, programs: &[Program]) -> io::Result<()> {
        if self.windows == 0 {
            self.links = programs.iter().map(Program::trace).collect::<io::Result<_>>()?;
        }
        self.windows += 1;
        Ok(())
    }

    fn remove(&mut self) {
        self.windows -= 1;
        if self.windows == 0 {
            self.links.clear();
        }
    }
}

/// One window's share of the counting.
struct Session {
    counting: Arc<Counting>,
    tcp: bool,
    udp: bool,
    since_ns: u64,
    /// Until it is dropped the slots that the window saw keep their sockets.
    numbered: Numbered<types::windows>,
}

/// One reading of what is counted by slot, and of what could not be tracked.
struct Counted {
    slots: Vec<types::traffic>,
    admission: types::admission,
    missed: u64,
}

impl Counting {
    pub fn new(loader: &mut Loader, skel: &skel::TopTrafficSkel, counts_udp: bool) -> Result<Self, Error> {
        let (progs, maps) = (&skel.progs, &skel.maps);
        let udp = match counts_udp {
            true => Some([loader.program(&progs.udp_sent)?, loader.program(&progs.udp_received)?]),
            false => None,
        };
        Ok(Counting {
            tcp_state: loader.program(&progs.tcp_state)?,
            udp,
            list_held: loader.program(&progs.list_held)?,
            list_tcp: loader.program(&progs.list_tcp)?,
            list_marked: loader.program(&progs.list_marked)?,
            forget_marks: loader.program(&progs.forget_marks)?,
            marks: loader.map(&maps.marks)?,
            slots: loader.map(&maps.slots)?,
            udp_flows: loader.map(&maps.udp_flows)?,
            tcp_closed: loader.map(&maps.tcp_closed)?,
            bss: loader.map(&maps.bss)?,
            windows: Windows::new(loader.map(&maps.data)?, |newest, oldest| types::windows { newest, oldest }),
            state: Mutex::default(),
        })
    }

    pub fn rehearse(&self) -> io::Result<()> {
        self.udp.iter().flatten().chain([&self.tcp_state]).try_for_each(|program| program.trace().map(drop))?;
        self.list_held.try_iterator()?;
        self.list_tcp.try_iterator()?;
        self.forget()
    }

    pub fn sample(self: &Arc<Self>, input: &Input, window: &Window) -> Result<Sample, Error> {
        let session = self.open(input.protocol)?;
        let begun = Instant::now();
        let counted = session.counted()?;
        let mut before = Before::default();
        if session.tcp {
            self.sockets(|socket| before.add(socket))?;
        }
        let opened = window.opened();
        window.wait(opened, input.duration_ms.duration())?;
        let window_ns = begun.elapsed().as_nanos() as u64;
        let counted = session.counted()?.since(&counted);
        let sample = session.settle(input, before, &counted, window_ns)?;
        window.keep(session);
        Ok(sample)
    }

    fn open(self: &Arc<Self>, protocols: Protocols) -> Result<Session, Error> {
        let mut state = lock(&self.state);
        let numbered = self.windows.open()?;
        let udp = self.udp.as_ref().filter(|_| protocols != Protocols::Tcp);
        let tcp = protocols != Protocols::Udp;
        if let Some(programs) = udp {
            state.udp.add(programs)?;
        }
        if tcp && let Err(e) = state.tcp.add(std::slice::from_ref(&self.tcp_state)) {
            udp.iter().for_each(|_| state.udp.remove());
            return Err(e.into());
        }
        let since_ns = monotonic_ns();
        state.open.push(since_ns);
        Ok(Session { counting: Arc::clone(self), tcp, udp: udp.is_some(), since_ns, numbered })
    }

    /// Every socket with something to count, once for each process that holds it; after the others those of process 1,
    /// which holds what it activates for them, and of children whose parent has them; what nobody holds last.
    /// The kernel is asked for both at once: with 100,000 sockets either takes it a tenth of a second.
    fn sockets(&self, mut take: impl FnMut(&types::socket_bytes)) -> io::Result<()> {
        thread::scope(|scope| {
            let others = Builder::new().stack_size(THREAD_STACK).spawn_scoped(scope, || self.all_but_held())?;
            let mut later = HashMap::new();
            self.list_held.each(|socket: &types::socket_bytes| match (socket.pid, socket.inherited) {
                (2.., 0) => take(socket),
                _ => drop(later.entry(socket.cookie).or_insert(*socket)),
            })?;
            later.values().for_each(&mut take);
            others.join().map_err(|_| io::Error::other("reading the sockets of no process failed"))??.iter().for_each(take);
            Ok(())
        })
    }

    /// What no process holds; of the daemon's network namespace also what one does.
    fn all_but_held(&self) -> io::Result<Vec<types::socket_bytes>> {
        let mut sockets = Vec::new();
        self.list_marked.each_in(&self.marks, |socket: &types::socket_bytes| sockets.push(*socket))?;
        self.list_tcp.each(|socket: &types::socket_bytes| sockets.push(*socket))?;
        Ok(sockets)
    }

    fn admission(&self) -> Result<types::admission, Error> {
        let bytes = self.bss.lookup(bpf::bytes(&0u32), MapFlags::ANY)?.unwrap_or_default();
        let admission = bytes.get(offset_of!(types::bss, admission)..).and_then(bpf::read);
        admission.ok_or_else(|| Error::Kernel("the counters of admission are gone".into()))
    }

    fn forget(&self) -> io::Result<()> {
        self.forget_marks.each_in(&self.marks, |_: &u32| {})
    }

    /// Lets go of all that was counted: nothing counts any more.
    fn clear(&self) -> Result<(), Error> {
        self.forget()?;
        remove(&self.udp_flows, |_| true)?;
        remove(&self.tcp_closed, |_| true)?;
        // What the next window finds unused it takes for zeros.
        let used = FIRST_SLOT + (self.admission()?.slots as usize).min(UDP_SOCKETS_COUNTED);
        let keys: Vec<u8> = (0..used as u32).flat_map(u32::to_ne_bytes).collect();
        let zeros = vec![0; used * size_of::<types::slot>()];
        self.slots.update_batch(&keys, &zeros, used as u32, MapFlags::ANY, MapFlags::ANY)?;
        let zeros = vec![0; self.bss.value_size() as usize];
        Ok(self.bss.update(bpf::bytes(&0u32), &zeros, MapFlags::ANY)?)
    }
}

/// Deletes the flows that nobody needs.
fn remove(map: &MapHandle, unneeded: impl Fn(&types::flow) -> bool) -> Result<(), Error> {
    let flows = bpf::entries::<u64, types::flow>(map)?;
    let keys: Vec<u8> =
        flows.iter().filter(|(_, flow)| unneeded(flow)).flat_map(|(cookie, _)| cookie.to_ne_bytes()).collect();
    let count = (keys.len() / size_of::<u64>()) as u32;
    if count > 0 {
        map.delete_batch(&keys, count, MapFlags::ANY, MapFlags::ANY)?;
    }
    Ok(())
}

impl Session {
    fn counted(&self) -> Result<Counted, Error> {
        let (admission, missed) = (self.counting.admission()?, self.missed()?);
        if admission.slots == 0 && admission.tcp_untracked == 0 {
            return Ok(Counted { slots: Vec::new(), admission, missed });
        }
        let slots = bpf::entries::<u32, types::slot>(&self.counting.slots)?;
        Ok(Counted { slots: slots.into_iter().map(|(_, slot)| slot.traffic).collect(), admission, missed })
    }

    /// How often the kernel did not run what counts here.
    fn missed(&self) -> io::Result<u64> {
        let tcp = self.tcp.then_some(&self.counting.tcp_state);
        let udp = self.counting.udp.iter().flatten().filter(|_| self.udp);
        tcp.into_iter().chain(udp).map(Program::misses).sum()
    }

    /// What every socket has moved in the window.
    fn settle(&self, input: &Input, before: Before, counted: &Counted, window_ns: u64) -> Result<Sample, Error> {
        let counting = &self.counting;
        let mut ledger = Ledger::new(input, before);
        counting.sockets(|socket| ledger.open(socket))?;
        if self.tcp {
            let closed = bpf::entries::<u64, types::flow>(&counting.tcp_closed)?;
            let closed = closed.iter().map(|(_, flow)| flow).filter(|flow| flow.closed_ns >= self.since_ns);
            closed.for_each(|flow| ledger.closed(&flow.socket, flow.window != 0 && self.numbered.has_seen(flow.window)));
            ledger.untracked(counted.sum(TRAFFIC_SPREAD..FIRST_SLOT));
        }
        if self.udp {
            for (_, flow) in bpf::entries::<u64, types::flow>(&counting.udp_flows)? {
                ledger.udp(&flow.socket, counted.at(flow.slot as usize));
            }
            ledger.untracked(counted.sum(0..TRAFFIC_SPREAD));
        }
        let gaps = Gaps {
            udp_uncounted: input.protocol != Protocols::Tcp && !self.udp,
            udp_untracked: if self.udp { counted.admission.udp_untracked } else { 0 },
            tcp_untracked: if self.tcp { counted.admission.tcp_untracked } else { 0 },
            tcp_unknown: if self.tcp { counted.admission.tcp_unknown } else { 0 },
            tcp_older: 0,
            other_netns: false,
            missed: counted.missed,
        };
        Ok(ledger.finish(gaps, window_ns))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut state = lock(&self.counting.state);
        if self.tcp {
            state.tcp.remove();
        }
        if self.udp {
            state.udp.remove();
        }
        if let Some(i) = state.open.iter().position(|since| *since == self.since_ns) {
            state.open.swap_remove(i);
        }
        let done = match state.open.iter().min() {
            None => self.counting.clear(),
            Some(oldest) => remove(&self.counting.tcp_closed, |flow| flow.closed_ns < *oldest),
        };
        if let Err(e) = done {
            tracing::warn!("what top_traffic has counted could not be cleared: {e}");
        }
    }
}

impl Counted {
    /// What was counted between an earlier reading and this one.
    fn since(mut self, before: &Counted) -> Counted {
        for (now, before) in self.slots.iter_mut().zip(&before.slots) {
            now.rx_bytes -= before.rx_bytes;
            now.tx_bytes -= before.tx_bytes;
        }
        self.missed -= before.missed;
        let (now, before) = (&mut self.admission, &before.admission);
        now.udp_untracked -= before.udp_untracked;
        now.tcp_untracked -= before.tcp_untracked;
        now.tcp_unknown -= before.tcp_unknown;
        self
    }

    fn at(&self, slot: usize) -> Bytes {
        self.slots.get(slot).map_or(Bytes::default(), bytes)
    }

    fn sum(&self, slots: std::ops::Range<usize>) -> Bytes {
        let mut sum = Bytes::default();
        slots.for_each(|slot| sum += self.at(slot));
        sum
    }
}

pub fn bytes(traffic: &types::traffic) -> Bytes {
    Bytes { rx_bytes: traffic.rx_bytes, tx_bytes: traffic.tx_bytes }
}
