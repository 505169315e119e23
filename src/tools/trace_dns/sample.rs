//! The daemon's side: takes the messages of a window, and finds the owners of their sockets.

use std::{
    collections::{HashMap, HashSet},
    io,
    mem::offset_of,
    sync::{Arc, Mutex},
};

use libbpf_rs::{MapHandle, skel::SkelBuilder};

use super::{Sample, Seen, skel, skel::types};
use crate::{
    answer::Limitation,
    daemon::{
        events::{Events, Subscription},
        holders::Holders,
        kernel::{self, Loader, Program},
        session::Session,
        window::monotonic_ns,
    },
    limits, numbers,
    owner::Process,
    packet::Bytes,
    sync::lock,
    wire::Error,
};

kernel::pod!(types::message, types::open_socket);

pub struct DnsTracer {
    programs: [Program; 2],
    events: Arc<Events<types::message>>,
    bss: MapHandle,
    holders: Holders,
    /// Whether the kernel lets us read data in pages, where TCP puts what it sends.
    pages: bool,
    lacks: Vec<Limitation>,
}

impl DnsTracer {
    pub fn load(loader: &mut Loader) -> Result<Self, Error> {
        let pages = loader.features().kernel(|kernel| kernel.has_function("bpf_dynptr_from_skb")).unwrap_or(false);
        let mut object = kernel::object();
        let skel = loader.load(skel::TraceDnsSkelBuilder::default().open(&mut object)?)?;
        let (progs, maps) = (&skel.progs, &skel.maps);
        let programs =
            [loader.shared(&progs.sent, &maps.after_sent)?, loader.shared(&progs.received, &maps.after_received)?];
        let attached = programs.clone();
        let attach = move || Ok(attached.iter().map(Program::trace).collect::<io::Result<_>>()?);
        Ok(DnsTracer {
            events: Events::new(loader.ring(&skel.maps.messages, &skel.maps.data_unread)?, attach)?,
            bss: loader.map(&skel.maps.bss)?,
            holders: Holders::new(loader.optional(&skel.progs.open_sockets)?, loader.map(&skel.maps.wanted)?),
            programs,
            pages,
            lacks: loader.lacks(),
        })
    }

    pub fn open(&self) -> Result<Messages<'_>, Error> {
        let kept = Arc::new(Mutex::new(Kept::default()));
        let filled = Arc::clone(&kept);
        let subscription = self.events.subscribe(move |message: &types::message| lock(&filled).take(message))?;
        let since_ns = lock(&kept).open();
        let (lost, translated) = (self.lost()?, self.translated()?);
        Ok(Messages { tracer: self, lost, translated, kept, subscription, since_ns, earlier: Vec::new() })
    }

    /// Messages that the kernel could not report since it was loaded.
    fn lost(&self) -> Result<u64, Error> {
        let missed = self.programs.iter().map(Program::misses).sum::<io::Result<u64>>()?;
        Ok(missed + kernel::field::<u64>(&self.bss, offset_of!(types::bss, lost))?)
    }

    /// Packets since it was loaded.
    fn translated(&self) -> Result<u64, Error> {
        Ok(kernel::field::<u64>(&self.bss, offset_of!(types::bss, translated))?)
    }

    /// The processes that have the messages' sockets open now, by cookie and by address.
    fn owners(&self, messages: &[types::message]) -> Result<HashMap<u64, types::open_socket>, Error> {
        let known: HashSet<_> = messages.iter().filter(|m| m.sight.owner.pid != 0).map(|m| m.sight.socket).collect();
        let unknown = messages.iter().map(|m| m.sight.socket).filter(|socket| *socket != 0 && !known.contains(socket));
        let wanted: HashSet<_> = unknown.take(limits::SOCKETS_WANTED).collect();
        let mut owners: HashMap<_, _> =
            messages.iter().filter(|m| m.sight.owner.pid != 0).map(|m| (m.sight.socket, sender(m))).collect();
        if !wanted.is_empty() {
            for socket in self.holders.find::<types::open_socket>(wanted, |s| s.managed != 0)? {
                owners.entry(socket.cookie).or_insert(socket);
                owners.entry(socket.address).or_insert(socket);
            }
        }
        Ok(owners)
    }
}

/// One client's messages.
pub struct Messages<'a> {
    tracer: &'a DnsTracer,
    kept: Arc<Mutex<Kept>>,
    subscription: Subscription<types::message>,
    /// When the last reading was.
    since_ns: u64,
    lost: u64,
    translated: u64,
    /// The messages of the seconds before that.
    earlier: Vec<Seen>,
}

impl Session<Sample> for Messages<'_> {
    fn read(&mut self, is_last: bool) -> Result<Sample, Error> {
        let now = monotonic_ns();
        self.subscription.drain();
        let (from, lost) = (std::mem::replace(&mut self.since_ns, now), self.tracer.lost()?);
        let translated = self.tracer.translated()?;
        let (taken, beyond, full_at_ns) = lock(&self.kept).until(now);
        let owners = self.tracer.owners(&taken)?;
        let messages: Vec<_> = taken.iter().map(|message| resolve(message, &owners, from)).collect();
        let (at, window_ns) = (|ns: u64| ns as i64 - from as i64, now - from);
        let earlier = if is_last { Vec::new() } else { recent(&self.earlier, &messages, window_ns as i64) };
        let earlier = std::mem::replace(&mut self.earlier, earlier);
        Ok(Sample {
            messages,
            earlier,
            goes_on: !is_last,
            reduced: None,
            lost: lost - std::mem::replace(&mut self.lost, lost),
            beyond,
            translated: translated - std::mem::replace(&mut self.translated, translated),
            full_at_ns: full_at_ns.map(at),
            pages: self.tracer.pages,
            lacks: self.tracer.lacks.clone(),
            opened_ns: from,
            window_ns,
        })
    }
}

/// The messages in which queries may be that have no answer by the end of a window and may still have one. Times are of
/// the next window.
fn recent(earlier: &[Seen], messages: &[Seen], window_ns: i64) -> Vec<Seen> {
    let since_ns = window_ns - limits::DNS_UNDECIDED.as_nanos() as i64;
    let recent = earlier.iter().chain(messages).filter(|seen| seen.at_ns >= since_ns);
    recent.map(|seen| Seen { at_ns: seen.at_ns - window_ns, ..seen.clone() }).collect()
}

/// The messages since the last reading, as they come: times are CLOCK_MONOTONIC.
#[derive(Default)]
struct Kept {
    /// None before the session opens.
    since_ns: Option<u64>,
    messages: Vec<types::message>,
    /// How many of them are segments of TCP.
    segments: usize,
    /// Messages that came when there was no room, and since when.
    beyond: u64,
    full_at_ns: Option<u64>,
}

impl Kept {
    /// Under the lock: no message is of the window that came before it.
    fn open(&mut self) -> u64 {
        *self.since_ns.insert(monotonic_ns())
    }

    fn take(&mut self, message: &types::message) {
        if self.since_ns.is_none_or(|since_ns| message.sight.time_ns < since_ns) {
            return;
        }
        let segment = usize::from(message.sight.segment != 0);
        if self.messages.len() < limits::DNS_MESSAGES && self.segments + segment <= limits::DNS_SEGMENTS {
            self.segments += segment;
            self.messages.push(*message);
        } else {
            self.beyond += 1;
            self.full_at_ns = Some(self.full_at_ns.unwrap_or(u64::MAX).min(message.sight.time_ns));
        }
    }

    /// The messages before `end_ns`, how many had no room, and since when. What came later stays for the next reading.
    fn until(&mut self, end_ns: u64) -> (Vec<types::message>, u64, Option<u64>) {
        let taken: Vec<_> = self.messages.extract_if(.., |message| message.sight.time_ns < end_ns).collect();
        self.segments = self.messages.iter().filter(|message| message.sight.segment != 0).count();
        (taken, std::mem::take(&mut self.beyond), self.full_at_ns.take())
    }
}

/// The socket of a message, for another message of it that waited for a neighbor and has no owner.
fn sender(m: &types::message) -> types::open_socket {
    let mut socket = types::open_socket { cookie: m.sight.socket, owner: m.sight.owner, ..Default::default() };
    socket.endpoints.local_port = m.sight.port;
    socket
}

/// A sample of the one record of the ring buffer that `bytes` are, whatever they are.
pub fn of_record(bytes: &[u8]) -> Option<Sample> {
    let message = resolve(&kernel::read_record(bytes), &HashMap::new(), 0);
    Some(Sample { window_ns: message.at_ns.unsigned_abs(), messages: vec![message], ..Default::default() })
}

fn resolve(m: &types::message, owners: &HashMap<u64, types::open_socket>, from: u64) -> Seen {
    // Memory of a closed socket is used again: at the same address it must be the same port, too.
    let same = |s: &&types::open_socket| (s.owner.netns, s.endpoints.local_port) == (m.sight.owner.netns, m.sight.port);
    let open = owners.get(&m.sight.socket).filter(|_| m.sight.owner.pid == 0).filter(same);
    let owner = open.map_or(&m.sight.owner, |socket| &socket.owner);
    let netns = if owner.netns != 0 { owner.netns } else { m.sight.netns };
    Seen {
        at_ns: m.sight.time_ns as i64 - from as i64,
        // What comes in may have the socket of a device (tun), which is not the sender's.
        socket: if m.sight.egress != 0 { m.sight.socket } else { 0 },
        egress: m.sight.egress != 0,
        interface: (m.sight.netns, m.sight.ifindex),
        protocol: m.sight.protocol,
        begins_message: m.sight.segment == numbers::trace_dns::BEGINS as u8,
        process: Process::new(owner.pid, &owner.comm.map(|c| c as u8), owner.cgroup, netns),
        packet: Bytes(m.data[..usize::from(m.sight.length).min(m.data.len())].to_vec()),
    }
}
