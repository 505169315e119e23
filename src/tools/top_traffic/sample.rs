//! Counting in the kernel while a window is open, and reading what was counted.

use std::{io, mem::offset_of, sync::Arc};

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use libbpf_sys::{BPF_CGROUP_UDP4_RECVMSG, BPF_CGROUP_UDP4_SENDMSG, BPF_CGROUP_UDP6_RECVMSG, BPF_CGROUP_UDP6_SENDMSG};

use super::{
    Bytes, Gaps, GroupBy, Input, Past, REMOTES_UNKNOWN, Sample,
    ledger::{Before, Ledger, bytes},
    skel::{self, types},
};
use crate::{
    answer::{Code, Limitation, Protocols},
    daemon::{
        closed::{Closed, Ended, Told},
        events::Subscription,
        kernel::{self, Iterate, Link, Loader, Program, feature::Feature},
        session::Session,
        shared::{Held, Shared},
        sockets::{self, OrphanFields, Sockets},
        window::monotonic_ns,
        windows::{Numbered, Windows},
    },
    limits::{TCP_CLOSED_KEPT, UDP_SOCKETS_COUNTED},
    numbers::slots,
    tcp::Unread,
    wire::Error,
};
use types::{admission, flow, listening, old_listener, slot, socket_bytes, traffic, unmoved, windows};

kernel::pod!(admission, flow, listening, old_listener, slot, socket_bytes, traffic, unmoved, windows);
sockets::row!(socket_bytes, orphan, unread);

/// Connections that closed when there was no room.
#[derive(Clone, Copy, Default)]
pub struct Beyond {
    connections: u64,
    /// Of these, opened before we watched: what they moved in a window is not known …
    unknown: u64,
    /// … and what the others moved.
    moved: Bytes,
}

impl Ended for flow {
    type Beyond = Beyond;

    fn cookie(&self) -> u64 {
        self.socket.cookie
    }

    fn closed_ns(&self) -> u64 {
        self.closed_ns
    }

    fn add_to(&self, beyond: &mut Beyond) {
        beyond.connections += 1;
        if self.socket.window == 0 {
            beyond.unknown += 1;
        } else {
            beyond.moved += bytes(&self.socket.traffic);
        }
    }
}

/// Before it, slots of what is not counted one by one: UDP, then TCP.
const FIRST_SLOT: usize = slots::FIRST_SLOT as usize;
const FIRST_TCP: usize = slots::TCP_UNTRACKED as usize;

/// The loaded programs, and their users.
pub struct Counting {
    tcp_state: Program,
    /// On a kernel with the tracepoints.
    udp: Option<[Program; 2]>,
    /// What sees the remotes of UDP sockets that are not connected, and where that is attached.
    remotes: Vec<(Program, u32)>,
    sockets: Sockets,
    tables: Arc<Tables>,
    lacks: Vec<Limitation>,
    udp_links: Arc<Shared<()>>,
    remote_links: Arc<Shared<()>>,
    windows: Arc<Windows<windows>>,
}

/// What the programs fill.
struct Tables {
    forget: [Iterate; 2],
    slots: MapHandle,
    udp_flows: MapHandle,
    old_listeners: MapHandle,
    unmoved: MapHandle,
    tcp_closed: Arc<Closed<flow>>,
    bss: MapHandle,
}

/// One window's share of the counting.
struct Share {
    counting: Arc<Counting>,
    tcp: Option<Held<(), Subscription<flow>>>,
    udp: Option<Held<()>>,
    remotes: io::Result<Option<Held<()>>>,
    /// Where only TCP is asked for: what sees the calls of processes, if programs of a sockmap redirect data.
    calls: Option<Held<()>>,
}

/// What one client asks.
pub struct Traffic {
    share: Share,
    input: Input,
    /// What the last reading ended with …
    before: Before,
    counted: Counted,
    /// … and when that was.
    since_ns: u64,
    /// Connections that closed, and that it has counted.
    told: Told,
    is_first: bool,
    /// Until it is dropped, which is last, the slots that moved something since the last reading keep their sockets.
    numbered: Numbered<windows>,
}

/// One reading of what is counted by slot, and of what could not be tracked.
#[derive(Clone)]
struct Counted {
    slots: Vec<traffic>,
    /// What connections moved that were not kept.
    beyond: Bytes,
    admission: admission,
    orphans_untracked: u64,
    missed: u64,
}

impl Counting {
    pub fn new(loader: &mut Loader, skel: &skel::TopTrafficSkel) -> Result<Self, Error> {
        let (progs, maps) = (&skel.progs, &skel.maps);
        loader.require(Feature::SocketStorage)?;
        loader.require_one_of(&["list_held", "list_tcp"])?;
        let udp = [loader.optional(&progs.udp_sent)?, loader.optional(&progs.udp_received)?];
        let at_cgroup = [
            (&progs.remote_sent4, BPF_CGROUP_UDP4_SENDMSG),
            (&progs.remote_sent6, BPF_CGROUP_UDP6_SENDMSG),
            (&progs.remote_received4, BPF_CGROUP_UDP4_RECVMSG),
            (&progs.remote_received6, BPF_CGROUP_UDP6_RECVMSG),
        ];
        let remotes =
            at_cgroup.into_iter().map(|(program, at)| Ok(loader.optional(program)?.map(|program| (program, at))));
        let remotes = remotes.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect();
        let orphans = OrphanFields {
            from: offset_of!(types::bss, orphans_from),
            untracked: offset_of!(types::bss, orphans_untracked),
        };
        let lists = [&progs.list_held, &progs.list_tcp, &progs.list_orphans];
        let tcp_state = loader.shared(&progs.tcp_state, &maps.after_tcp_state)?;
        let attached = tcp_state.clone();
        let tables = Arc::new(Tables {
            forget: [loader.iterator(&progs.forget_held)?, loader.iterator(&progs.forget_tcp)?],
            slots: loader.map(&maps.slots)?,
            udp_flows: loader.map(&maps.udp_flows)?,
            old_listeners: loader.map(&maps.old_listeners)?,
            unmoved: loader.map(&maps.unmoved)?,
            tcp_closed: Closed::new(loader.ring(&maps.tcp_closed, &maps.data_unread)?, TCP_CLOSED_KEPT, move || {
                Ok(vec![attached.trace()?])
            })?,
            bss: loader.map(&maps.bss)?,
        });
        let cleared = Arc::clone(&tables);
        Ok(Counting {
            tcp_state,
            udp: match udp {
                [Some(sent), Some(received)] => Some([sent, received]),
                _ => None,
            },
            sockets: Sockets::new(loader, lists, &maps.bss, orphans)?,
            tables,
            remotes,
            lacks: loader.lacks(),
            udp_links: Shared::new(),
            remote_links: Shared::new(),
            windows: Windows::new(
                loader.map(&maps.data)?,
                |newest, oldest, first| windows { newest, oldest, first },
                move |oldest| cleared.clear(oldest),
            ),
        })
    }

    pub fn open(self: &Arc<Self>, input: Input) -> Result<Traffic, Error> {
        let numbered = self.windows.open()?;
        let hold = |programs: &[Program; 2]| {
            self.udp_links.hold((), || programs.iter().map(Program::trace).collect::<io::Result<Vec<Link>>>())
        };
        let udp = self.udp.as_ref().filter(|_| input.protocol != Protocols::Tcp).map(hold).transpose()?;
        let attach = || self.remotes.iter().map(|(program, at)| program.cgroup(*at)).collect::<io::Result<Vec<Link>>>();
        // Before the counting begins, each call that ends was seen as well; and nothing fails without.
        let remotes = udp.as_ref().map(|_| self.remote_links.hold((), attach)).transpose();
        let tcp = (input.protocol != Protocols::Udp).then(|| self.tables.tcp_closed.hold()).transpose()?;
        let mut share = Share { counting: Arc::clone(self), tcp, udp, remotes, calls: None };
        let (since_ns, counted, mut before) = (monotonic_ns(), share.counted()?, Before::default());
        if share.tcp.is_some() {
            before.unread = self.sockets.each_by_owner(|socket| before.add(socket))?;
        }
        if before.redirected && share.udp.is_none() {
            share.calls = self.udp.as_ref().map(hold).transpose()?;
        }
        let told = Told::since(since_ns);
        Ok(Traffic { share, input, before, counted, since_ns, told, is_first: true, numbered })
    }
}

impl Tables {
    fn admission(&self) -> io::Result<admission> {
        kernel::field(&self.bss, offset_of!(types::bss, admission))
    }

    /// Lets go of connections that closed before the oldest window began; without one, of all that was counted: nothing
    /// counts any more.
    fn clear(&self, oldest_ns: Option<u64>) -> Result<(), Error> {
        self.tcp_closed.clear(oldest_ns);
        if oldest_ns.is_some() {
            return Ok(());
        }
        self.forget.iter().try_for_each(Iterate::run)?;
        kernel::remove::<u64, flow>(&self.udp_flows, |_| true)?;
        kernel::remove::<listening, old_listener>(&self.old_listeners, |_| true)?;
        kernel::remove::<u64, unmoved>(&self.unmoved, |_| true)?;
        // What the next window finds unused it takes for zeros.
        let used = FIRST_SLOT + (self.admission()?.slots as usize).min(UDP_SOCKETS_COUNTED);
        let keys: Vec<u8> = (0..used as u32).flat_map(u32::to_ne_bytes).collect();
        let zeros = vec![0; used * size_of::<slot>()];
        self.slots.update_batch(&keys, &zeros, used as u32, MapFlags::ANY, MapFlags::ANY)?;
        let zeros = vec![0; self.bss.value_size() as usize];
        Ok(self.bss.update(kernel::bytes(&0u32), &zeros, MapFlags::ANY)?)
    }
}

impl Share {
    fn counted(&self) -> Result<Counted, Error> {
        let tables = &self.counting.tables;
        let (mut admission, missed) = (tables.admission()?, self.missed()?);
        let orphans_untracked = self.counting.sockets.orphans_untracked()?;
        let slots = match (admission.slots, admission.tcp_untracked) {
            (0, 0) => Vec::new(),
            _ => kernel::entries::<u32, slot>(&tables.slots)?,
        };
        let slots = slots.into_iter().map(|(_, slot)| slot.traffic).collect();
        let beyond = self.tcp.as_ref().map(|held| tables.tcp_closed.beyond(held)).unwrap_or_default();
        admission.tcp_untracked += beyond.connections;
        admission.tcp_unknown += beyond.unknown;
        Ok(Counted { slots, beyond: beyond.moved, admission, orphans_untracked, missed })
    }

    /// How often the kernel did not run what counts here.
    fn missed(&self) -> io::Result<u64> {
        let tcp = self.tcp.iter().map(|_| &self.counting.tcp_state);
        let udp = self.counting.udp.iter().flatten().filter(|_| self.udp.is_some());
        tcp.chain(udp).map(Program::misses).sum()
    }

    fn gaps(&self, counted: &Counted, begin: Unread, end: Unread) -> Gaps {
        let Counted { admission, orphans_untracked, missed, .. } = *counted;
        let (tcp, udp) = (self.tcp.is_some(), self.udp.is_some());
        Gaps {
            udp_untracked: if udp { admission.udp_untracked } else { 0 },
            udp_merged: if udp { admission.udp_merged } else { 0 },
            tcp_untracked: if tcp { admission.tcp_untracked } else { 0 },
            tcp_unknown: if tcp { admission.tcp_unknown } else { 0 },
            tcp_older: 0,
            udp_unasked: 0,
            past: Past::default(),
            unread: if tcp { Unread::between(begin, end, orphans_untracked) } else { Unread::default() },
            missed,
        }
    }
}

impl Session<Sample> for Traffic {
    fn read(&mut self, is_last: bool) -> Result<Sample, Error> {
        let (counting, now_ns) = (Arc::clone(&self.share.counting), monotonic_ns());
        let tables = &counting.tables;
        // What moves something from here on keeps its slot for the next reading.
        let numbered = counting.windows.open()?;
        let now = self.share.counted()?;
        let counted = now.since(&self.counted);
        let sees_calls = self.share.udp.is_some() || self.share.calls.is_some();
        let ledger = Ledger::new(&self.input, &self.before, !(self.is_first && is_last));
        let mut ledger = ledger.seeing_calls(sees_calls);
        let is_new = |socket: &socket_bytes| self.numbered.has_seen(socket.window);
        let end = counting.sockets.each_by_owner(|socket| ledger.open(socket, is_new(socket)))?;
        let mut told = std::mem::take(&mut self.told);
        if let Some(held) = &self.share.tcp {
            for flow in tables.tcp_closed.read(held) {
                if told.wants(&flow) && ledger.closed(&flow.socket, is_new(&flow.socket)) {
                    told.note(&flow);
                }
            }
            ledger.untracked(counted.sum(FIRST_TCP..FIRST_SLOT));
            ledger.untracked(counted.beyond);
        }
        if self.share.udp.is_some() {
            let mut flows = kernel::entries::<u64, flow>(&tables.udp_flows)?;
            flows.sort_unstable_by_key(|(_, flow)| flow.socket.cookie);
            for (_, flow) in flows {
                ledger.udp(&flow.socket, counted.at(flow.slot as usize));
            }
            ledger.untracked(counted.sum(0..FIRST_TCP));
        }
        let gaps = self.share.gaps(&counted, self.before.unread, end);
        let (mut sample, mut next) = ledger.finish(gaps, now_ns - self.since_ns);
        let of_udp = [Code::UdpNotCounted, Code::UdpRemotesUnknown];
        let concerns = |limit: &&Limitation| !of_udp.contains(&limit.code) || self.input.protocol != Protocols::Tcp;
        sample.lacks = counting.lacks.iter().filter(concerns).cloned().collect();
        if let Err(e) = &self.share.remotes {
            let text = format!("{REMOTES_UNKNOWN}: attaching their programs to the root cgroup failed ({e}).");
            sample.lacks.push(Limitation::new(Code::UdpRemotesUnknown, text));
        }
        sample.lacks.extend(cgroups(&self.input));
        next.unread = end;
        told.advance(now_ns);
        (self.before, self.counted, self.told) = (next, now, told);
        (self.since_ns, self.is_first, self.numbered) = (now_ns, false, numbered);
        Ok(sample)
    }
}

/// Where cgroup v1 is in use, rows by unit or container may lack a name.
fn cgroups(input: &Input) -> Option<Limitation> {
    let is_asked = matches!(input.group_by, GroupBy::Unit | GroupBy::Container);
    let text = "Units and containers that exist only in cgroup v1 share one row without a name: boot with \
        systemd.unified_cgroup_hierarchy=1.";
    (is_asked && kernel::has_cgroup_v1()).then(|| Limitation::new(Code::CgroupV1NotSeen, text))
}

impl Counted {
    /// What was counted between an earlier reading and this one.
    fn since(&self, before: &Counted) -> Counted {
        let mut grown = self.clone();
        for (now, before) in grown.slots.iter_mut().zip(&before.slots) {
            now.rx_bytes -= before.rx_bytes;
            now.tx_bytes -= before.tx_bytes;
        }
        grown.beyond.rx_bytes -= before.beyond.rx_bytes;
        grown.beyond.tx_bytes -= before.beyond.tx_bytes;
        grown.missed -= before.missed;
        grown.orphans_untracked -= before.orphans_untracked;
        let (now, before) = (&mut grown.admission, &before.admission);
        now.udp_untracked -= before.udp_untracked;
        now.udp_merged -= before.udp_merged;
        now.tcp_untracked -= before.tcp_untracked;
        now.tcp_unknown -= before.tcp_unknown;
        grown
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
