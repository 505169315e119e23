//! The daemon's side: programs that all open windows share, and each window's collection.

use std::{
    collections::HashMap,
    mem::{MaybeUninit, offset_of},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use libbpf_rs::{MapHandle, OpenObject, skel::SkelBuilder};

use super::{
    Directions, Input, Outcomes, Sample, Shows,
    collected::{Collected, Period},
    skel,
    skel::types,
};
use crate::{
    answer::Limitation,
    daemon::{
        attribution::own_netns,
        events::{Events, Subscription},
        kernel::{self, Loader, Program, feature::Feature},
        session::Session,
        shared::{Held, Shared},
        sockets::{OrphanFields, Sockets},
        window::monotonic_ns,
    },
    filter::{Pid, Port},
    numbers::owner,
    sync::lock,
    tcp::Unread,
    wire::Error,
};

kernel::pod!(types::listening, types::old_listener, types::request, types::undecided, types::wanted);

pub struct ConnectionTracer {
    /// What happens to sockets.
    states: Vec<Program>,
    /// What shows attempts that end before a packet is made: connect() itself, or the look-up of routes.
    attempts: Vec<Program>,
    /// Attached while a window asks for outbound connections.
    attempts_held: Arc<Shared<()>>,
    undecided: MapHandle,
    undecided_entries: MapHandle,
    sockets: Sockets,
    /// Counts what is asked of the iterators.
    round: Arc<AtomicU32>,
    requests: Arc<MapHandle>,
    bss: MapHandle,
    events: Arc<Events<types::connection>>,
    wanted: Arc<Wanted>,
    /// One reader of an iterator at a time: they share the map of requests.
    reading: Mutex<()>,
    shows: Shows,
    lacks: Vec<Limitation>,
}

/// Opens the object with the programs that show failed attempts in one of the ways.
fn open(object: &mut MaybeUninit<OpenObject>, shows: Shows) -> libbpf_rs::Result<skel::OpenTraceConnectionsSkel<'_>> {
    let mut skel = skel::TraceConnectionsSkelBuilder::default().open(object)?;
    if let Some(constants) = skel.maps.rodata_data.as_deref_mut() {
        constants.own_netns = own_netns();
    }
    for program in [&mut skel.progs.connect_returns, &mut skel.progs.connect_checked] {
        program.set_autoload(shows == Shows::Returns);
    }
    for program in [&mut skel.progs.route_ipv4, &mut skel.progs.route_ipv6] {
        program.set_autoload(shows == Shows::Routes);
    }
    Ok(skel)
}

impl ConnectionTracer {
    pub fn load(loader: &mut Loader) -> Result<Self, Error> {
        loader.require(Feature::SocketStorage)?;
        let features = loader.features();
        let has_routes =
            ["fib_table_lookup", "fib6_table_lookup"].iter().all(|name| features.tracepoint(name).is_some());
        let shows = match features.refusal(Feature::Fexit) {
            None => Shows::Returns,
            Some(_) if has_routes => Shows::Routes,
            Some(_) => Shows::Nothing,
        };
        let mut object = kernel::object();
        let skel = loader.load(open(&mut object, shows)?)?;
        let progs = &skel.progs;
        let attempts = match shows {
            Shows::Returns => vec![loader.program(&progs.connect_returns)?, loader.program(&progs.connect_checked)?],
            Shows::Routes => vec![loader.program(&progs.route_ipv4)?, loader.program(&progs.route_ipv6)?],
            Shows::Nothing => Vec::new(),
        };
        let state = loader.shared(&progs.connection_state, &skel.maps.after_connection_state)?;
        let states = vec![state, loader.program(&progs.attempt_error)?];
        let search = loader.iterator(&progs.find_listeners)?;
        let requests = Arc::new(loader.map(&skel.maps.requests)?);
        let round = Arc::new(AtomicU32::new(1));
        let (attached, rounds, asked) = (states.clone(), Arc::clone(&round), Arc::clone(&requests));
        let ring = loader.ring(&skel.maps.connections, &skel.maps.data_unread)?;
        let old = loader.map(&skel.maps.old_listeners)?;
        let events = Events::new(ring, move || {
            let links = attached.iter().map(Program::trace).collect::<Result<_, _>>()?;
            let round = rounds.fetch_add(1, Ordering::Relaxed);
            kernel::set(&asked, 0u32, &types::request { round, ..Default::default() })?;
            kernel::remove::<types::listening, types::old_listener>(&old, |_| true)?;
            search.run()?;
            Ok(links)
        })?;
        let filter = loader.map(&skel.maps.filter)?;
        let orphans = OrphanFields {
            from: offset_of!(types::bss, orphans_from),
            untracked: offset_of!(types::bss, orphans_untracked),
        };
        let lists = [&progs.list_held, &progs.list_tcp, &progs.list_orphans];
        Ok(ConnectionTracer {
            states,
            attempts,
            attempts_held: Shared::new(),
            undecided: loader.map(&skel.maps.undecided)?,
            undecided_entries: loader.map(&skel.maps.data)?,
            sockets: Sockets::new(loader, lists, &skel.maps.bss, orphans)?,
            round,
            requests,
            bss: loader.map(&skel.maps.bss)?,
            events,
            wanted: Arc::new(Wanted { filter, asked: Mutex::default(), next: AtomicU64::new(0) }),
            reading: Mutex::default(),
            shows,
            lacks: loader.lacks(),
        })
    }

    pub fn open(&self, input: Input) -> Result<Connections<'_>, Error> {
        let asking = self.wanted.ask(wanted(&input))?;
        let collected = Arc::new(Mutex::new(Vec::<Collected>::new()));
        let filled = Arc::clone(&collected);
        let subscription = self.events.subscribe(move |c| lock(&filled).iter_mut().for_each(|period| period.add(c)))?;
        let attempts = match input.direction {
            Directions::Inbound => None,
            _ => Some(self.attempts_held.hold((), || self.attach_attempts())?),
        };
        let (opened_ns, lost, untracked) = (monotonic_ns(), self.lost()?, self.sockets.orphans_untracked()?);
        lock(&collected).push(Collected::new(&input, opened_ns));
        let held = (asking, attempts);
        Ok(Connections {
            tracer: self,
            input,
            collected,
            subscription,
            _held: held,
            opened_ns,
            since_ns: opened_ns,
            lost,
            untracked,
        })
    }

    /// The connections that are open and began, or were established, since a time.
    fn list_open(&self, since_ns: u64, take: impl FnMut(&types::connection)) -> Result<(), Error> {
        let _one = lock(&self.reading);
        let round = self.round.fetch_add(1, Ordering::Relaxed);
        kernel::set(&self.requests, 0u32, &types::request { since_ns, round, ..Default::default() })?;
        Ok(self.sockets.each(take)?)
    }

    /// What earlier windows left undecided is settled: threads that have ended decide nothing.
    fn attach_attempts(&self) -> Result<Vec<kernel::Link>, Error> {
        kernel::remove::<u32, types::undecided>(&self.undecided, |_| true)?;
        kernel::set(&self.undecided_entries, 0u32, &0u64)?;
        Ok(self.attempts.iter().map(Program::trace).collect::<Result<_, _>>()?)
    }

    fn programs(&self) -> impl Iterator<Item = &Program> {
        self.states.iter().chain(&self.attempts)
    }

    /// What the kernel could not report since it was loaded.
    fn lost(&self) -> Result<u64, Error> {
        let misses = self.programs().map(Program::misses).sum::<Result<u64, _>>()?;
        Ok(misses + kernel::field::<u64>(&self.bss, offset_of!(types::bss, figures.lost))?)
    }
}

/// One client's connections.
pub struct Connections<'a> {
    tracer: &'a ConnectionTracer,
    input: Input,
    /// Of the period that is open; while it is read, of the next one, too.
    collected: Arc<Mutex<Vec<Collected>>>,
    subscription: Subscription<types::connection>,
    _held: (Asking, Option<Held<()>>),
    opened_ns: u64,
    /// When the last reading was.
    since_ns: u64,
    lost: u64,
    untracked: u64,
}

impl Connections<'_> {
    /// Ends the period, and begins the next.
    fn turn(&mut self) -> u64 {
        let (mut collected, now) = (lock(&self.collected), monotonic_ns());
        collected.iter_mut().for_each(|period| period.ends(now));
        collected.push(Collected::new(&self.input, now));
        now
    }
}

impl Session<Sample> for Connections<'_> {
    fn read(&mut self, _: bool) -> Result<Sample, Error> {
        let (tracer, since_ns, ended_ns) = (self.tracer, self.since_ns, self.turn());
        let (mut open, mut waiting, mut rings) = (Vec::new(), HashMap::new(), HashMap::new());
        tracer.list_open(self.opened_ns, |c| match (c.unread, i64::from(c.claim)) {
            (0, _) => open.push(*c),
            // Several processes may hold the listener, which `start_ns` then is, or the ring.
            (unread, owner::CLAIM_UNREAD) => drop(rings.insert(c.start_ns, unread)),
            (unread, _) => drop(waiting.insert(c.start_ns, unread)),
        })?;
        let [waiting, rings] = [waiting, rings].map(|unread| unread.into_values().map(u64::from).sum());
        // Of several rows of a connection the first counts: a manager holds what it activates for others.
        open.sort_by_key(|c| (c.owner.pid == 0, c.claim));
        self.subscription.drain();
        let mut period = lock(&self.collected).remove(0);
        open.iter().for_each(|c| period.add_open(c));
        kernel::entries::<u32, types::undecided>(&tracer.undecided)?
            .iter()
            .for_each(|(_, undecided)| period.add(&undecided.connection));
        let (lost, untracked) = (tracer.lost()?, tracer.sockets.orphans_untracked()?);
        let orphans = untracked - std::mem::replace(&mut self.untracked, untracked);
        let unread = Unread { waiting, orphans, rings };
        let lost = lost - std::mem::replace(&mut self.lost, lost);
        self.since_ns = ended_ns;
        let (shows, lacks) = (tracer.shows, tracer.lacks.clone());
        lock(&self.collected).iter_mut().for_each(|next| next.follows(period.told()));
        let Period { rows, updates, cut, counts } = period.finish(since_ns == self.opened_ns);
        Ok(Sample { rows, updates, counts, cut, lost, unread, shows, lacks, opened_ns: since_ns, ended_ns })
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
        Ok(kernel::set(&self.filter, 0u32, &all)?)
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let mut asked = lock(&self.wanted.asked);
        asked.retain(|(id, _)| *id != self.id);
        if let Err(e) = self.wanted.tell(&asked) {
            tracing::warn!("widening the connection filter failed: {e}");
        }
    }
}

fn wanted(input: &Input) -> types::wanted {
    let (remote, mask) = input.remote.map(|remote| remote.words()).unwrap_or_default();
    types::wanted {
        remote,
        mask,
        pid: input.pid.map_or(0, Pid::get),
        port: input.port.map_or(0, Port::get),
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
