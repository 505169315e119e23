//! The next TCP connection of this host.

use std::{
    collections::{HashMap, VecDeque},
    mem::offset_of,
    sync::{Arc, Mutex, Weak},
    thread,
    time::{Duration, Instant},
};

use libbpf_rs::MapHandle;

use super::{Connect, Input, Sample, skel};
use crate::{
    answer::Endpoint,
    daemon::{
        attribution::own_netns,
        events::{Events, Subscription},
        kernel::{self, Loader, Program},
        netlink,
        session::Session,
        window::{Bell, Window, Woken, monotonic_ns},
    },
    limits,
    owner::Process,
    sync::lock,
    wire::Error,
};
use skel::types;

kernel::pod!(types::connect);

/// Connects that found no room.
const LOST: usize = offset_of!(types::bss, lost);

pub struct Outgoing {
    program: Program,
    bss: MapHandle,
    events: Arc<Events<types::connect>>,
    watch: Mutex<Weak<ConnectWatch>>,
    lingering: Arc<Mutex<Option<Instant>>>,
}

/// The connects of a time with open windows. All windows share it, each with its own position.
struct ConnectWatch {
    /// Identifies a watch, for a client that continues it.
    epoch: u64,
    backlog: Arc<Mutex<Backlog>>,
    subscription: Subscription<types::connect>,
}

#[derive(Default)]
struct Backlog {
    /// How many were cut off at the front of `done`.
    gone: u64,
    /// Connects with their outcome, in the order of it.
    done: VecDeque<types::connect>,
    /// Those without, by socket.
    connecting: HashMap<u64, types::connect>,
    bells: Vec<Weak<Bell>>,
}

impl Backlog {
    fn add(&mut self, event: &types::connect) {
        if event.end_ns == 0 {
            if self.connecting.len() < limits::CONNECT_BACKLOG {
                self.connecting.insert(event.cookie, *event);
            }
            return;
        }
        self.connecting.remove(&event.cookie);
        if self.done.len() == limits::CONNECT_BACKLOG {
            self.done.pop_front();
            self.gone += 1;
        }
        self.done.push_back(*event);
        self.bells.retain(|bell| bell.upgrade().map(|bell| bell.ring()).is_some());
    }

    /// The number that the next connect will have.
    fn next(&self) -> u64 {
        self.gone + self.done.len() as u64
    }

    /// The connects from number `from` on, with their numbers.
    fn from(&self, from: u64) -> impl Iterator<Item = (u64, &types::connect)> {
        let skip = from.saturating_sub(self.gone) as usize;
        self.done.iter().enumerate().skip(skip).map(|(i, connect)| (self.gone + i as u64, connect))
    }
}

/// What a window looks for.
struct Search {
    from: u64,
    since_ns: u64,
    interface: Option<(u32, u32)>,
    /// How many it shows.
    limit: usize,
}

/// What it found.
struct Found {
    /// The oldest.
    connects: Vec<types::connect>,
    /// How many more there are.
    cut: u64,
    /// Those that it would have looked at, had they been kept.
    lost: u64,
    /// Attempts without an outcome yet.
    connecting: u64,
    /// The number to continue at.
    next: u64,
}

impl Search {
    fn wants(&self, connect: &types::connect) -> bool {
        connect.start_ns >= self.since_ns
            && self.interface.is_none_or(|(index, netns)| (connect.ifindex, connect.owner.netns) == (index, netns))
    }
}

impl Outgoing {
    /// Nothing where the kernel refuses its program.
    pub fn new(loader: &mut Loader, skel: &skel::NetworkMonitorSkel) -> Result<Option<Self>, Error> {
        let Some(program) = loader.optional(&skel.progs.connect_state)? else { return Ok(None) };
        let attached = program.clone();
        let ring = loader.ring(&skel.maps.connects, &skel.maps.data_unread)?;
        let events = Events::new(ring, move || Ok(vec![attached.trace()?]))?;
        let bss = loader.map(&skel.maps.bss)?;
        Ok(Some(Outgoing { program, bss, events, watch: Mutex::default(), lingering: Arc::default() }))
    }

    /// What the kernel could not report since it was loaded.
    fn lost(&self) -> Result<u64, Error> {
        Ok(self.program.misses()? + kernel::field::<u64>(&self.bss, LOST)?)
    }

    pub fn open(&self, input: &Input) -> Result<Connects<'_>, Error> {
        let netns = own_netns();
        let interface = input.interface.as_deref().map(netlink::interface_named).transpose()?.map(|i| (i.index, netns));
        let watch = self.watch()?;
        let (since_ns, lost) = (monotonic_ns(), self.lost()?);
        let bell = Arc::new(Bell::new()?);
        let place = input.after.as_deref().and_then(|after| watch.place(after));
        let from = {
            let mut backlog = lock(&watch.backlog);
            backlog.bells.push(Arc::downgrade(&bell));
            place.unwrap_or_else(|| backlog.next())
        };
        let begun_ns = if place.is_some() { 0 } else { since_ns };
        let search = Search { from, since_ns: begun_ns, interface, limit: input.limit.rows() };
        Ok(Connects { outgoing: self, watch, search, bell, continued: place.is_some(), lost, since_ns })
    }

    fn watch(&self) -> Result<Arc<ConnectWatch>, Error> {
        let mut current = lock(&self.watch);
        if let Some(watch) = current.upgrade() {
            return Ok(watch);
        }
        let backlog: Arc<Mutex<Backlog>> = Arc::default();
        let filled = Arc::clone(&backlog);
        let subscription = self.events.subscribe(move |event| lock(&filled).add(event))?;
        let watch = Arc::new(ConnectWatch { epoch: monotonic_ns(), backlog, subscription });
        *current = Arc::downgrade(&watch);
        Ok(watch)
    }

    /// Keeps the watch a little longer, for the same client's next call.
    fn linger(&self, watch: Arc<ConnectWatch>) {
        let mut until = lock(&self.lingering);
        let running = until.replace(Instant::now() + limits::CONNECT_LINGER).is_some();
        if running {
            return; // the thread that waits holds this very watch
        }
        let lingering = Arc::clone(&self.lingering);
        let wait = move || {
            let watch = watch;
            loop {
                let left = {
                    let mut until = lock(&lingering);
                    let left = until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()));
                    if left.is_zero() {
                        *until = None;
                        drop(watch);
                        return;
                    }
                    left
                };
                thread::sleep(left);
            }
        };
        if thread::Builder::new().name("linger".into()).stack_size(limits::THREAD_STACK).spawn(wait).is_err() {
            *until = None;
        }
    }
}

/// One client's connects.
pub struct Connects<'a> {
    outgoing: &'a Outgoing,
    watch: Arc<ConnectWatch>,
    /// From where the last reading left off.
    search: Search,
    bell: Arc<Bell>,
    continued: bool,
    lost: u64,
    /// When the last reading was.
    since_ns: u64,
}

impl Session<Sample> for Connects<'_> {
    /// Until there is one.
    fn watch(&mut self, window: &Window, end: Instant) -> Result<bool, Error> {
        loop {
            self.bell.silence();
            if !self.watch.find(&self.search).connects.is_empty() {
                return Ok(true);
            }
            match window.sleep_until_rung(end, &self.bell)? {
                Woken::ByBell => {}
                woken => return Ok(woken != Woken::ByClient),
            }
        }
    }

    fn read(&mut self, _: bool) -> Result<Sample, Error> {
        let (found, now, lost) = (self.watch.find(&self.search), monotonic_ns(), self.outgoing.lost()?);
        self.search.from = found.next;
        Ok(Sample::Outgoing {
            connects: found.connects.iter().map(|connect| resolve(connect, own_netns())).collect(),
            cut: found.cut,
            lost: lost - std::mem::replace(&mut self.lost, lost) + found.lost,
            connecting: found.connecting,
            next: format!("{}-{}", self.watch.epoch, found.next),
            continued: std::mem::replace(&mut self.continued, true),
            window_ns: now - std::mem::replace(&mut self.since_ns, now),
        })
    }
}

impl Drop for Connects<'_> {
    fn drop(&mut self) {
        self.outgoing.linger(Arc::clone(&self.watch));
    }
}

impl ConnectWatch {
    /// Where `after` left off, if that was in this watch and is still kept.
    fn place(&self, after: &str) -> Option<u64> {
        let (epoch, number) = after.split_once('-')?;
        (epoch.parse() == Ok(self.epoch)).then(|| number.parse().ok()).flatten()
    }

    /// What there is for this search, all of one moment: what comes after is at `next`.
    fn find(&self, search: &Search) -> Found {
        self.subscription.drain();
        let backlog = lock(&self.backlog);
        let mut wanted = backlog.from(search.from).filter(|(_, connect)| search.wants(connect));
        let shown: Vec<_> = wanted.by_ref().take(search.limit).collect();
        let cut = wanted.count() as u64;
        let next = match shown.last() {
            Some((number, _)) if cut > 0 => number + 1,
            _ => backlog.next(),
        };
        Found {
            connects: shown.into_iter().map(|(_, connect)| *connect).collect(),
            cut,
            next,
            lost: backlog.gone.saturating_sub(search.from),
            connecting: backlog.connecting.values().filter(|connect| search.wants(connect)).count() as u64,
        }
    }
}

/// A sample of the one record of the ring buffer that `bytes` are, whatever they are.
pub fn of_record(bytes: &[u8]) -> Option<Sample> {
    let connects = vec![resolve(&kernel::read(bytes)?, u32::MAX)];
    let next = String::new();
    Some(Sample::Outgoing { connects, cut: 0, lost: 0, connecting: 0, next, continued: false, window_ns: 1 })
}

fn resolve(c: &types::connect, netns: u32) -> Connect {
    let comm = c.owner.comm.map(|c| c as u8);
    let interface = (c.ifindex != 0 && c.owner.netns == netns).then(|| netlink::name(c.ifindex)).flatten();
    Connect {
        process: Process::new(c.owner.pid, &comm, c.owner.cgroup, c.owner.netns),
        local: Endpoint::new(c.endpoints.local, c.endpoints.local_port),
        remote: Endpoint::new(c.endpoints.remote, c.endpoints.remote_port),
        established: c.established != 0,
        errno: c.error,
        latency_ns: c.end_ns.saturating_sub(c.start_ns),
        interface,
    }
}
