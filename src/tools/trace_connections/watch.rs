//! The daemon's side: programs that all open windows share, and each window's collection.

use std::{
    mem::{MaybeUninit, offset_of},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use libbpf_rs::{
    MapCore, MapHandle, OpenObject,
    skel::{OpenSkel, SkelBuilder},
};

use super::{Directions, Input, Outcomes, Sample, Shows, collected::Collected, skel, skel::types};
use crate::{
    bpf::{self, Loader, Pod, Program, Shared, lock},
    events::Events,
    window::{Window, monotonic_ns},
    wire::Error,
};

// SAFETY: integers and arrays of integers, with explicit padding.
unsafe impl Pod for types::wanted {}
// SAFETY: the same.
unsafe impl Pod for types::request {}

pub struct Watch {
    /// What happens to sockets.
    states: Vec<Program>,
    /// What shows attempts that end before a packet is made: connect() itself, or the look-up of routes.
    attempts: Vec<Program>,
    /// Attached while a window asks for outbound connections.
    attempts_held: Arc<Shared<()>>,
    undecided: MapHandle,
    undecided_entries: MapHandle,
    list_open: Program,
    find_listeners: Program,
    tracks: MapHandle,
    requests: Arc<MapHandle>,
    bss: MapHandle,
    events: Arc<Events<types::connection>>,
    wanted: Arc<Wanted>,
    /// One reader of an iterator at a time: they share the map of requests.
    reading: Mutex<()>,
    shows: Shows,
}

// SAFETY: the same.
unsafe impl Pod for types::undecided {}

/// Loads the programs, with those that show failed attempts in one of the ways.
fn open(
    object: &mut MaybeUninit<OpenObject>,
    shows: Shows,
) -> libbpf_rs::Result<skel::TraceConnectionsSkel<'_>> {
    let mut skel = skel::TraceConnectionsSkelBuilder::default().open(object)?;
    for program in [&mut skel.progs.connect_returns, &mut skel.progs.connect_checked] {
        program.set_autoload(shows == Shows::Returns);
    }
    for program in [&mut skel.progs.route_ipv4, &mut skel.progs.route_ipv6] {
        program.set_autoload(shows == Shows::Routes);
    }
    skel.load()
}

impl Watch {
    pub fn load(loader: &mut Loader) -> Result<Self, Error> {
        let (mut fexit, mut routes, mut neither) = (bpf::object(), bpf::object(), bpf::object());
        let (skel, shows) = match open(&mut fexit, Shows::Returns) {
            Ok(skel) => (skel, Shows::Returns),
            Err(_) => match open(&mut routes, Shows::Routes) {
                Ok(skel) => (skel, Shows::Routes),
                Err(_) => (open(&mut neither, Shows::Nothing)?, Shows::Nothing),
            },
        };
        let progs = &skel.progs;
        let attempts = match shows {
            Shows::Returns => vec![loader.program(&progs.connect_returns)?, loader.program(&progs.connect_checked)?],
            Shows::Routes => vec![loader.program(&progs.route_ipv4)?, loader.program(&progs.route_ipv6)?],
            Shows::Nothing => Vec::new(),
        };
        let states = vec![loader.program(&progs.connection_state)?, loader.program(&progs.attempt_error)?];
        let find_listeners = loader.program(&progs.find_listeners)?;
        let requests = Arc::new(loader.map(&skel.maps.requests)?);
        let (attached, search, round, asked) =
            (states.clone(), find_listeners.clone(), AtomicU32::new(1), Arc::clone(&requests));
        let events = Events::new(&loader.map(&skel.maps.connections)?, move || {
            let links = attached.iter().map(Program::trace).collect::<Result<_, _>>()?;
            let round = round.fetch_add(1, Ordering::Relaxed);
            bpf::set(&asked, 0u32, &types::request { round, ..Default::default() })?;
            search.iterate()?;
            Ok(links)
        })?;
        let filter = loader.map(&skel.maps.filter)?;
        Ok(Watch {
            states,
            attempts,
            attempts_held: Shared::new(),
            undecided: loader.map(&skel.maps.undecided)?,
            undecided_entries: loader.map(&skel.maps.data)?,
            list_open: loader.program(&progs.list_open)?,
            find_listeners,
            tracks: loader.map(&skel.maps.tracks)?,
            requests,
            bss: loader.map(&skel.maps.bss)?,
            events,
            wanted: Arc::new(Wanted { filter, asked: Mutex::default(), next: AtomicU64::new(0) }),
            reading: Mutex::default(),
            shows,
        })
    }

    pub fn rehearse(&self) -> std::io::Result<()> {
        self.programs().try_for_each(|program| program.trace().map(drop))?;
        self.find_listeners.try_iterator()?;
        self.open(u64::MAX, |_| {}).map_err(std::io::Error::other)
    }

    pub fn sample(&self, input: &Input, window: &Window) -> Result<Sample, Error> {
        let asking = self.wanted.ask(wanted(input))?;
        let collected = Arc::new(Mutex::new(None::<Collected>));
        let filled = Arc::clone(&collected);
        let subscription = self.events.subscribe(move |c| {
            if let Some(collected) = lock(&filled).as_mut() {
                collected.add(c);
            }
        })?;
        let attempts = match input.direction {
            Directions::Inbound => None,
            _ => Some(self.attempts_held.hold((), || self.attach_attempts())?),
        };
        let (opened_ns, lost) = (monotonic_ns(), self.lost()?);
        *lock(&collected) = Some(Collected::new(input, opened_ns));
        window.wait(window.opened(), input.duration_ms.duration())?;
        let ended_ns = monotonic_ns();
        if let Some(collected) = lock(&collected).as_mut() {
            collected.ends(ended_ns);
        }
        let mut open = Vec::new();
        self.open(opened_ns, |c| open.push(*c))?;
        subscription.drain();
        let mut all = lock(&collected).take().unwrap_or_else(|| Collected::new(input, opened_ns));
        open.iter().for_each(|c| all.add_open(c));
        bpf::entries::<u32, types::undecided>(&self.undecided)?.iter().for_each(|(_, u)| all.add(&u.connection));
        let lost = self.lost()? - lost;
        window.keep((asking, subscription, attempts));
        let (rows, cut, counts) = all.finish();
        Ok(Sample { rows, counts, cut, lost, shows: self.shows, opened_ns, ended_ns })
    }

    /// The connections that are open and began, or were established, since a time.
    fn open(&self, since_ns: u64, take: impl FnMut(&types::connection)) -> Result<(), Error> {
        let _one = lock(&self.reading);
        bpf::set(&self.requests, 0u32, &types::request { since_ns, ..Default::default() })?;
        Ok(self.list_open.each_in(&self.tracks, take)?)
    }

    /// What earlier windows left undecided is settled: threads that have ended decide nothing.
    fn attach_attempts(&self) -> Result<Vec<bpf::Link>, Error> {
        for (thread, _) in bpf::entries::<u32, types::undecided>(&self.undecided)? {
            let _ = self.undecided.delete(bpf::bytes(&thread)); // it may just have been decided
        }
        bpf::set(&self.undecided_entries, 0u32, &0u64)?;
        Ok(self.attempts.iter().map(Program::trace).collect::<Result<_, _>>()?)
    }

    fn programs(&self) -> impl Iterator<Item = &Program> {
        self.states.iter().chain(&self.attempts)
    }

    /// What the kernel could not report since it was loaded.
    fn lost(&self) -> Result<u64, Error> {
        let misses = self.programs().map(Program::misses).sum::<Result<u64, _>>()?;
        Ok(misses + bpf::counter(&self.bss, offset_of!(types::bss, figures.lost))?)
    }
}

/// What the open windows ask for. The kernel leaves out what none of them wants, as far as they agree.
struct Wanted {
    filter: MapHandle,
    asked: Mutex<Vec<(u64, types::wanted)>>,
    next: AtomicU64,
}

/// One window's share of [`Wanted`].
struct Asking {
    wanted: Arc<Wanted>,
    id: u64,
}

impl Wanted {
    fn ask(self: &Arc<Self>, what: types::wanted) -> Result<Asking, Error> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let asking = Asking { wanted: Arc::clone(self), id };
        let mut asked = lock(&self.asked);
        asked.push((id, what));
        let told = self.tell(&asked);
        drop(asked); // which the end of `asking` takes
        told.map(|()| asking)
    }

    fn tell(&self, asked: &[(u64, types::wanted)]) -> Result<(), Error> {
        let all = asked.iter().map(|(_, wanted)| *wanted).reduce(agreed).unwrap_or_default();
        Ok(bpf::set(&self.filter, 0u32, &all)?)
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let mut asked = lock(&self.wanted.asked);
        asked.retain(|(id, _)| *id != self.id);
        if let Err(e) = self.wanted.tell(&asked) {
            tracing::warn!("the filter of connections stays narrower than it could be: {e}");
        }
    }
}

fn wanted(input: &Input) -> types::wanted {
    let (remote, mask) = input.remote.map(|remote| remote.words()).unwrap_or_default();
    types::wanted {
        remote,
        mask,
        pid: input.pid.unwrap_or(0),
        port: input.port.unwrap_or(0),
        direction: input.direction as u8,
        failed: u8::from(input.outcome == Outcomes::Failed),
        comm: input.process.as_ref().map_or([0; 16], |process| process.bytes().map(|b| b as _)),
    }
}

/// What is left out for two windows: only what both leave out.
fn agreed(a: types::wanted, b: types::wanted) -> types::wanted {
    fn same<T: PartialEq + Default>(a: T, b: T) -> T {
        if a == b { a } else { T::default() }
    }
    let (remote, mask) = same((a.remote, a.mask), (b.remote, b.mask));
    types::wanted {
        remote,
        mask,
        pid: same(a.pid, b.pid),
        port: same(a.port, b.port),
        direction: same(a.direction, b.direction),
        failed: same(a.failed, b.failed),
        comm: same(a.comm, b.comm),
    }
}
