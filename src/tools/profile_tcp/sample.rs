//! Profiling in the kernel while a window is open, and reading what was counted.

use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    io,
    mem::offset_of,
    sync::Arc,
};

use libbpf_rs::{MapCore, MapFlags, MapHandle, skel::SkelBuilder};

use super::{
    Clock, Counts, Gaps, Input, Reset, Sample,
    ledger::{Before, Ledger, Samples, handshake, holder, settled, with_last_sample},
    repliers::{self, CountedReplies, Holder},
    skel::{self, types},
};
use crate::{
    answer::{Endpoint, Limitation},
    daemon::{
        attribution::own_netns,
        closed::{Closed, Told},
        events::Subscription,
        kernel::{self, Iterate, Loader, Program, feature::Feature},
        largest::Largest,
        session::Session,
        shared::Held,
        sockets::{self, OrphanFields, Sockets},
        window::monotonic_ns,
        windows::{Numbered, Windows},
    },
    limits,
    owner::Process,
    tcp::Unread,
    wire::Error,
};
use types::{figures, replier, replies, reset, reset_key, rtt, tcp_row, tcp_row_with_rtt, windows};

kernel::pod!(figures, replier, replies, reset, reset_key, rtt, tcp_row, tcp_row_with_rtt, windows);
kernel::pod!(types::listening, types::old_listener);
sockets::row!(tcp_row, orphan, unread);

/// The loaded programs, and their users.
pub struct Profiler {
    /// What runs while a window is open.
    traced: Vec<Program>,
    sockets: Sockets,
    list_rtts: [Iterate; 2],
    lacks: Vec<Limitation>,
    tables: Arc<Tables>,
    /// The names of this kernel's reasons for resets; none before Linux 6.12.
    reasons: Option<HashMap<u32, String>>,
    windows: Arc<Windows<windows>>,
}

/// What the programs fill.
struct Tables {
    forget: [Iterate; 2],
    closed: Arc<Closed<tcp_row>>,
    closed_rtts: MapHandle,
    resets: MapHandle,
    old_listeners: MapHandle,
    repliers: MapHandle,
    bss: MapHandle,
}

/// What one client asks.
pub struct Profile {
    profiler: Arc<Profiler>,
    closed: Held<(), Subscription<tcp_row>>,
    input: Input,
    /// What the last reading ended with …
    before: Before,
    unread: Unread,
    counted: Counted,
    /// … and when that was.
    since_ns: u64,
    /// Connections that closed, and that it has counted.
    told: Told,
    is_first: bool,
    /// Dropped last.
    numbered: Numbered<windows>,
}

/// Resets and figures at one moment.
struct Counted {
    resets: HashMap<Vec<u8>, (reset_key, reset)>,
    replies: CountedReplies,
    figures: figures,
    orphans_untracked: u64,
    missed: u64,
}

impl Profiler {
    pub fn load(loader: &mut Loader) -> Result<Self, Error> {
        let features = loader.features();
        let with_reason = features.tracepoint("tcp_send_reset").is_some_and(|arguments| arguments > 2);
        let names = || features.kernel(|kernel| kernel.names("sk_rst_reason", "SK_RST_REASON_").into_iter().collect());
        let reasons = if with_reason { names() } else { None };
        let mut object = kernel::object();
        let mut open = skel::ProfileTcpSkelBuilder::default().open(&mut object)?;
        open.progs.reset_sent.set_autoload(!with_reason);
        open.progs.reset_sent_with_reason.set_autoload(with_reason);
        if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
            constants.own_netns = own_netns();
        }
        let skel = loader.load(open)?;
        let (progs, maps) = (&skel.progs, &skel.maps);
        let reset_sent = if with_reason { &progs.reset_sent_with_reason } else { &progs.reset_sent };
        loader.require(Feature::SocketStorage)?;
        loader.require_one_of(&["list_held", "list_tcp"])?;
        let state = loader.shared(&progs.state_changes, &maps.after_state_changes)?;
        let mut traced = vec![state, loader.program(&progs.segment_arrives)?];
        for program in [reset_sent, &progs.reset_received] {
            traced.extend(loader.optional(program)?);
        }
        let orphans = OrphanFields {
            from: offset_of!(types::bss, orphans_from),
            untracked: offset_of!(types::bss, orphans_untracked),
        };
        let lists = [&progs.list_held, &progs.list_tcp, &progs.list_orphans];
        let attached = traced.clone();
        let tables = Arc::new(Tables {
            forget: [loader.iterator(&progs.forget_held)?, loader.iterator(&progs.forget_tcp)?],
            closed: Closed::new(loader.ring(&maps.closed, &maps.data_unread)?, limits::PROFILED_CLOSED, move || {
                Ok(attached.iter().map(Program::trace).collect::<io::Result<_>>()?)
            })?,
            closed_rtts: loader.map(&maps.closed_rtts)?,
            resets: loader.map(&maps.resets)?,
            old_listeners: loader.map(&maps.old_listeners)?,
            repliers: loader.map(&maps.repliers)?,
            bss: loader.map(&maps.bss)?,
        });
        let cleared = Arc::clone(&tables);
        Ok(Profiler {
            traced,
            sockets: Sockets::new(loader, lists, &maps.bss, orphans)?,
            list_rtts: [loader.iterator(&progs.list_rtts_held)?, loader.iterator(&progs.list_rtts_tcp)?],
            lacks: loader.lacks(),
            tables,
            reasons,
            windows: Windows::new(
                loader.map(&maps.data)?,
                |newest, oldest, first| windows { newest, oldest, first },
                move |oldest| cleared.clear(oldest),
            ),
        })
    }

    pub fn open(self: &Arc<Self>, input: Input) -> Result<Profile, Error> {
        let numbered = self.windows.open()?;
        let closed = self.tables.closed.hold()?;
        let (since_ns, mut before) = (monotonic_ns(), Before::default());
        let (unread, _) = self.sockets(|row| before.add(row))?;
        self.rtts(|row, rtt| before.add_rtt(row, rtt))?;
        kernel::entries::<u64, rtt>(&self.tables.closed_rtts)?
            .iter()
            .for_each(|(cookie, rtt)| before.add_closed_rtt(*cookie, rtt));
        let counted = self.counted(self.tables.replies()?, self.tables.closed.beyond(&closed))?;
        Ok(Profile {
            profiler: Arc::clone(self),
            closed,
            input,
            before,
            unread,
            counted,
            since_ns,
            told: Told::since(since_ns),
            is_first: true,
            numbered,
        })
    }

    /// Every connection, once for each process that holds it, and what could not be read of them and of round trips.
    fn sockets(&self, mut take: impl FnMut(&tcp_row)) -> io::Result<(Unread, u64)> {
        let mut unread_rtts = HashMap::new();
        let unread = self.sockets.each_by_owner(|row: &tcp_row| match row.unread_rtts {
            0 => take(row),
            unread => drop(unread_rtts.insert(row.cookie, u64::from(unread))),
        })?;
        Ok((unread, unread_rtts.values().sum()))
    }

    /// The sockets to which segments came.
    fn rtts(&self, mut take: impl FnMut(&tcp_row, &rtt)) -> io::Result<()> {
        let mut seen = HashSet::new();
        self.list_rtts.iter().try_for_each(|program| {
            program.each(|both: &tcp_row_with_rtt| {
                if seen.insert(both.row.cookie) {
                    take(&settled(both), &both.rtt);
                }
            })
        })
    }

    /// `beyond` are closed connections for which there was no room here; the kernel counts those that found none in the
    /// ring buffer.
    fn counted(&self, replies: CountedReplies, beyond: Counts) -> Result<Counted, Error> {
        let mut figures: figures = kernel::field(&self.tables.bss, offset_of!(types::bss, figures))?;
        figures.closed_untracked += beyond.connections;
        figures.closed_segments += beyond.segments_out;
        figures.closed_retransmits += beyond.retransmits;
        let resets = kernel::entries::<reset_key, reset>(&self.tables.resets)?;
        Ok(Counted {
            resets: resets.into_iter().map(|(key, reset)| (kernel::bytes(&key).to_vec(), (key, reset))).collect(),
            replies,
            figures,
            orphans_untracked: self.sockets.orphans_untracked()?,
            missed: self.traced.iter().map(Program::misses).sum::<io::Result<u64>>()?,
        })
    }
}

impl Tables {
    fn replies(&self) -> io::Result<CountedReplies> {
        CountedReplies::read(&self.repliers)
    }

    /// Lets go of connections that closed before the oldest window began; without one, of all that was counted: nothing
    /// counts any more.
    fn clear(&self, oldest_ns: Option<u64>) -> Result<(), Error> {
        self.closed.clear(oldest_ns);
        let late_ns = limits::LATE.as_nanos() as u64;
        let unneeded = |rtt: &rtt| oldest_ns.is_none_or(|oldest| rtt.closed_ns + late_ns < oldest);
        kernel::remove::<u64, rtt>(&self.closed_rtts, unneeded)?;
        repliers::clear(&self.repliers, oldest_ns)?;
        if oldest_ns.is_some() {
            return Ok(());
        }
        self.forget.iter().try_for_each(Iterate::run)?;
        kernel::remove::<reset_key, reset>(&self.resets, |_| true)?;
        kernel::remove::<types::listening, types::old_listener>(&self.old_listeners, |_| true)?;
        let zeros = vec![0; self.bss.value_size() as usize];
        Ok(self.bss.update(kernel::bytes(&0u32), &zeros, MapFlags::ANY)?)
    }
}

type ByCookie<T> = HashMap<u64, T>;

impl Profile {
    /// The round trips since the last reading, and those of the sockets' lives for the next.
    fn samples(&self) -> Result<(ByCookie<Samples>, ByCookie<rtt>), Error> {
        let (mut samples, mut next) = (HashMap::new(), HashMap::new());
        let mut add = |cookie: u64, name: u64, rtt: rtt| {
            samples.insert(cookie, self.before.samples(name, &rtt));
            next.insert(cookie, rtt);
        };
        self.profiler.rtts(|row, rtt| {
            let name = self.before.name(row, self.numbered.has_seen(row.window));
            add(row.cookie, name, with_last_sample(row, rtt));
        })?;
        // Also of orphans, which are open.
        let closed = kernel::entries::<u64, rtt>(&self.profiler.tables.closed_rtts)?;
        closed.into_iter().for_each(|(cookie, rtt)| add(cookie, cookie, rtt));
        Ok((samples, next))
    }
}

impl Session<Sample> for Profile {
    fn read(&mut self, is_last: bool) -> Result<Sample, Error> {
        let (profiler, now_ns) = (&self.profiler, monotonic_ns());
        let numbered = profiler.windows.open()?;
        let (mut samples, mut rtts) = self.samples()?;
        let (none, mut holders) = (Samples::default(), HashMap::new());
        let replies = profiler.tables.replies()?;
        let new = replies.since(&self.counted.replies);
        let mut ledger = Ledger::new(&self.input, &self.before, !(self.is_first && is_last), new);
        let is_new = |row: &tcp_row| self.numbered.has_seen(row.window);
        let (end, unread_rtts) = profiler.sockets(|row| {
            if row.pid != 0 {
                holders.entry(row.cookie).or_insert_with(|| holder(row));
            }
            if !samples.contains_key(&row.cookie)
                && let Some(rtt) = handshake(row)
            {
                samples.insert(row.cookie, self.before.samples(row.cookie, &rtt));
                rtts.insert(row.cookie, rtt);
            }
            let _ = ledger.take(row, is_new(row), samples.get(&row.cookie).unwrap_or(&none));
        })?;
        let closed = profiler.tables.closed.read(&self.closed);
        let mut told = std::mem::take(&mut self.told);
        let closed_rtts: HashMap<_, _> =
            kernel::entries::<u64, rtt>(&profiler.tables.closed_rtts)?.into_iter().collect();
        for row in closed {
            let name = self.before.name(&row, is_new(&row));
            if told.wants(&row) {
                let all = closed_rtts.get(&row.cookie).or_else(|| rtts.get(&name)).copied();
                let all = all.or_else(|| handshake(&row));
                let samples = all.map(|rtt| self.before.samples(name, &rtt));
                if ledger.take(&row, is_new(&row), samples.as_ref().unwrap_or(&none)) {
                    told.note(&row);
                }
            }
        }
        let now = profiler.counted(replies, profiler.tables.closed.beyond(&self.closed))?;
        let counted = &self.counted;
        ledger.untracked(now.untracked(counted));
        let untracked = now.orphans_untracked - counted.orphans_untracked;
        let gaps = Gaps { unread: Unread::between(self.unread, end, untracked), unread_rtts, ..now.gaps(counted) };
        let services = ledger.services();
        let (mut sample, sockets) = ledger.finish(Gaps { reasons_unknown: profiler.reasons.is_none(), ..gaps });
        let known = |cookie| self.before.holder(cookie).or_else(|| holders.get(&cookie).copied());
        (sample.resets, sample.resets_cut) = profiler.resets(&self.input, &now, counted, known);
        sample.services = services;
        (sample.missed, sample.clock) = (now.missed - counted.missed, now.clock(counted));
        (sample.lacks, sample.window_ns) = (profiler.lacks.clone(), now_ns - self.since_ns);
        (self.before, self.unread, self.counted) = (Before { sockets, rtts }, end, now);
        told.advance(now_ns);
        (self.told, self.since_ns, self.is_first, self.numbered) = (told, now_ns, false, numbered);
        Ok(sample)
    }
}

impl Counted {
    fn gaps(&self, before: &Counted) -> Gaps {
        let (now, before) = (&self.figures, &before.figures);
        Gaps {
            rtts_untracked: now.rtts_untracked - before.rtts_untracked,
            closed_untracked: now.closed_untracked - before.closed_untracked,
            closed_rtts_untracked: now.closed_rtts_untracked - before.closed_rtts_untracked,
            resets_untracked: now.resets_untracked - before.resets_untracked,
            replies_untracked: now.replies_untracked - before.replies_untracked,
            ..Gaps::default()
        }
    }

    fn clock(&self, before: &Counted) -> Clock {
        let (now, before) = (&self.figures, &before.figures);
        Clock { jiffies: now.jiffies.saturating_sub(before.jiffies), ns: now.ns.saturating_sub(before.ns) }
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
            id: id(key),
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

/// A number for a kind of reset.
fn id(key: &reset_key) -> u64 {
    let mut hasher = DefaultHasher::new();
    kernel::bytes(key).hash(&mut hasher);
    hasher.finish()
}
