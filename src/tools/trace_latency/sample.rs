//! Counting in the kernel while a window is open, and reading what was counted.

use std::{
    collections::{HashMap, HashSet},
    io,
    mem::offset_of,
    net::Ipv6Addr,
    sync::Arc,
};

use libbpf_rs::{MapCore, MapFlags, MapHandle, skel::SkelBuilder};
use rustix::time::{ClockId, clock_gettime};

use super::{
    Gaps, Group, Sample, Side, Stage, Times,
    skel::{self, types},
};
use crate::{
    answer::{Code, Endpoint, Limitation, Protocol},
    daemon::{
        kernel::{self, Iterate, Link, Loader, Program, feature::Feature},
        quotas::Quotas,
        session::Session,
        shared::{Held, Shared},
        stamping::Stamping,
        window::monotonic_ns,
        windows::{Numbered, Windows},
    },
    numbers::{exchanges, stages, uapi},
    owner::Process,
    wire::Error,
};
use types::{counted, group, party, times, windows};

kernel::pod!(counted, group, party, times, windows);

/// A step of the wall clock beyond this spoils the stamps of a window.
const STEP_NS: i64 = 100_000;

/// The loaded programs, and their users.
pub struct Latencies {
    traced: Vec<Program>,
    lacks: Vec<Limitation>,
    tables: Arc<Tables>,
    links: Arc<Shared<(), Attached>>,
    windows: Arc<Windows<windows>>,
}

/// What is held while a window is open.
struct Attached {
    _links: Vec<Link>,
    stamping: Option<Stamping>,
}

/// What the programs fill.
struct Tables {
    forget: [Iterate; 2],
    groups: MapHandle,
    times: MapHandle,
    clock: MapHandle,
    bss: MapHandle,
}

/// What one client asks.
pub struct Stages {
    latencies: Arc<Latencies>,
    attached: Held<(), Attached>,
    /// What the last reading ended with …
    before: HashMap<u32, times>,
    counted: counted,
    missed: u64,
    quotas: Quotas,
    ahead_ns: i64,
    /// … and when that was.
    since_ns: u64,
    /// Dropped last.
    numbered: Numbered<windows>,
}

impl Latencies {
    pub fn load(loader: &mut Loader) -> Result<Self, Error> {
        let mut object = kernel::object();
        let open = skel::TraceLatencySkelBuilder::default().open(&mut object)?;
        let skel = loader.load(open)?;
        let (progs, maps) = (&skel.progs, &skel.maps);
        loader.require(Feature::SocketStorage)?;
        let mut traced = vec![
            loader.program(&progs.data_arrives)?,
            loader.program(&progs.data_is_read)?,
            loader.program(&progs.data_is_written)?,
        ];
        for program in [&progs.segment_leaves, &progs.task_wakes, &progs.task_switches] {
            traced.extend(loader.optional(program)?);
        }
        let tables = Arc::new(Tables {
            forget: [loader.iterator(&progs.forget_held)?, loader.iterator(&progs.forget_tcp)?],
            groups: loader.map(&maps.groups)?,
            times: loader.map(&maps.times)?,
            clock: loader.map(&maps.clock)?,
            bss: loader.map(&maps.bss)?,
        });
        let cleared = Arc::clone(&tables);
        Ok(Latencies {
            traced,
            lacks: loader.lacks(),
            tables,
            links: Shared::new(),
            windows: Windows::new(
                loader.map(&maps.data)?,
                |newest, oldest, first| windows { newest, oldest, first },
                move |oldest| cleared.clear(oldest),
            ),
        })
    }

    pub fn open(self: &Arc<Self>) -> Result<Stages, Error> {
        let numbered = self.windows.open()?;
        let ahead_ns = self.tables.set_clock()?;
        let attached = self.links.hold((), || self.attach())?;
        let since_ns = monotonic_ns();
        Ok(Stages {
            latencies: Arc::clone(self),
            attached,
            before: self.tables.times()?,
            counted: self.tables.counted()?,
            missed: self.missed()?,
            quotas: Quotas::read(),
            ahead_ns,
            since_ns,
            numbered,
        })
    }

    fn attach(&self) -> io::Result<Attached> {
        let links = self.traced.iter().map(Program::trace).collect::<io::Result<_>>()?;
        let stamping = Stamping::begin().inspect_err(|e| tracing::warn!("arrival times are unavailable: {e}")).ok();
        Ok(Attached { _links: links, stamping })
    }

    fn missed(&self) -> io::Result<u64> {
        self.traced.iter().map(Program::misses).sum()
    }
}

impl Tables {
    /// Tells the programs by how much the wall clock is ahead.
    fn set_clock(&self) -> Result<i64, Error> {
        let now = clock_gettime(ClockId::Realtime);
        let ahead = now.tv_sec * 1_000_000_000 + now.tv_nsec - monotonic_ns() as i64;
        kernel::set(&self.clock, 0u32, &(ahead as u64))?;
        Ok(ahead)
    }

    fn times(&self) -> io::Result<HashMap<u32, times>> {
        Ok(kernel::entries::<u32, times>(&self.times)?.into_iter().collect())
    }

    fn counted(&self) -> io::Result<counted> {
        kernel::field(&self.bss, offset_of!(types::bss, counted))
    }

    /// Lets go of the groups that no socket has used since the oldest window began, and of their times; without a
    /// window, of everything.
    fn clear(&self, oldest_ns: Option<u64>) -> Result<(), Error> {
        kernel::remove::<party, group>(&self.groups, |group| oldest_ns.is_none_or(|oldest| group.seen_ns < oldest))?;
        let kept: HashSet<u32> = kernel::entries::<party, group>(&self.groups)?.iter().map(|(_, g)| g.id).collect();
        let keys = kernel::entries::<u32, times>(&self.times)?.into_iter().map(|(key, _)| key);
        let unneeded = keys.filter(|key| !kept.contains(&(key >> stages::STAGE_BITS)));
        unneeded.into_iter().try_for_each(|key| kernel::delete(&self.times, &key))?;
        if oldest_ns.is_some() {
            return Ok(());
        }
        self.forget.iter().try_for_each(Iterate::run)?;
        let zeros = vec![0; self.bss.value_size() as usize];
        Ok(self.bss.update(kernel::bytes(&0u32), &zeros, MapFlags::ANY)?)
    }
}

impl Session<Sample> for Stages {
    fn read(&mut self, _: bool) -> Result<Sample, Error> {
        let (latencies, now_ns) = (Arc::clone(&self.latencies), monotonic_ns());
        let numbered = latencies.windows.open()?;
        let ahead_ns = latencies.tables.set_clock()?;
        let times = latencies.tables.times()?;
        let parties = kernel::entries::<party, group>(&latencies.tables.groups)?;
        let is_stepped = (ahead_ns - self.ahead_ns).abs() > STEP_NS;
        let groups = parties.iter().map(|(party, group)| self.group(party, group, &times, is_stepped));
        let groups = groups.filter(|group| !group.times.is_empty() || group.left_out != (0, 0)).collect();
        let (counted, missed, quotas) = (latencies.tables.counted()?, latencies.missed()?, Quotas::read());
        let mut lacks = latencies.lacks.clone();
        let why = match self.attached.with(|attached| attached.stamping.is_none()) {
            true => Some("The kernel did not stamp arriving packets: arrival_to_socket is unavailable."),
            false => is_stepped.then_some("The wall clock was set in the window: arrival_to_socket is unavailable."),
        };
        lacks.extend(why.map(|text| Limitation::new(Code::ArrivalsUnknown, text)));
        let sample = Sample {
            groups,
            throttled: quotas.since(&self.quotas),
            gaps: gaps(&counted, &self.counted),
            missed: missed - self.missed,
            lacks,
            window_ns: now_ns - self.since_ns,
        };
        (self.before, self.counted, self.missed) = (times, counted, missed);
        (self.quotas, self.ahead_ns, self.since_ns, self.numbered) = (quotas, ahead_ns, now_ns, numbered);
        Ok(sample)
    }
}

impl Stages {
    fn group(&self, party: &party, group: &group, now: &HashMap<u32, times>, is_stepped: bool) -> Group {
        let since = |stage: i64| {
            let key = group.id << stages::STAGE_BITS | stage as u32;
            let (now, before) = (now.get(&key)?, self.before.get(&key));
            let sum_us = now.sum_us.wrapping_sub(before.map_or(0, |before| before.sum_us));
            let new = Times::between(before.map(|before| &before.buckets), &now.buckets, sum_us, now.max_us);
            (new.count() > 0).then_some(new)
        };
        let times = SHOWN.into_iter().filter(|(_, stage)| !(is_stepped && *stage == Stage::ArrivalToSocket));
        let key = group.id << stages::STAGE_BITS | stages::LEFT_OUT as u32;
        let left_out = |bucket: usize| {
            let count = |of: Option<&types::times>| of.map_or(0, |times| times.buckets[bucket]);
            u64::from(count(now.get(&key)).wrapping_sub(count(self.before.get(&key))))
        };
        let is_server = i64::from(party.side) == exchanges::SIDE_SERVER;
        let has_remote = Ipv6Addr::from(party.remote) != Ipv6Addr::UNSPECIFIED;
        let remote = Endpoint::new(party.remote, party.remote_port);
        Group {
            process: Process::new(party.pid, &group.comm.map(|c| c as u8), group.cgroup, party.netns),
            protocol: if i64::from(party.protocol) == uapi::IPPROTO_TCP { Protocol::Tcp } else { Protocol::Udp },
            side: if is_server { Side::Server } else { Side::Client },
            local: is_server.then(|| Endpoint::new(party.local, party.local_port)),
            remote: (has_remote && !remote.address.is_unspecified()).then_some((remote.address, remote.port)),
            times: times.filter_map(|(number, stage)| Some((stage, since(number)?))).collect(),
            left_out: (left_out(0), left_out(1)),
        }
    }
}

/// The stages by their numbers in `stages.h`.
const SHOWN: [(i64, Stage); 7] = [
    (stages::ARRIVAL_TO_SOCKET, Stage::ArrivalToSocket),
    (stages::SOCKET_TO_READ, Stage::SocketToRead),
    (stages::REQUEST_TO_REPLY, Stage::RequestToReply),
    (stages::WRITE_TO_WIRE, Stage::WriteToWire),
    (stages::WIRE_TO_ACK, Stage::WireToAck),
    (stages::RUNNABLE_TO_RUNNING, Stage::RunnableToRunning),
    (stages::LEAST_RTT, Stage::LeastRtt),
];

fn gaps(now: &counted, before: &counted) -> Gaps {
    Gaps {
        sockets_untracked: now.sockets_untracked - before.sockets_untracked,
        times_untracked: now.times_untracked - before.times_untracked,
        remotes_merged: now.remotes_merged - before.remotes_merged,
    }
}
