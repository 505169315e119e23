//! Is name resolution failing or slow? Every DNS query and its answer, as they pass this host's interfaces.

use std::{
    collections::{HashMap, HashSet},
    io,
    mem::offset_of,
    ops::Range,
    sync::{Arc, Mutex},
    time::Duration,
};

use libbpf_rs::{
    MapHandle,
    skel::{OpenSkel, SkelBuilder},
};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};

use super::{Host, Tool};
use crate::{
    answer::{Endpoint, Limit, Measured, Owner, WindowMs},
    attribution::Process,
    bpf::{self, Loader, Pod, Program, lock},
    btf::Kernel,
    dns,
    events::Events,
    filter::Comm,
    holders::Holders,
    limits,
    packet::Bytes,
    window::{Window, monotonic_ns},
    wire::Error,
};

mod matching;
mod report;

#[allow(clippy::all, dead_code, non_camel_case_types, non_snake_case)]
mod skel {
    include!(concat!(env!("OUT_DIR"), "/trace_dns.rs"));
}
use skel::types;

// SAFETY: integers, arrays of integers, and structs of such, with explicit padding.
unsafe impl Pod for types::message {}
// SAFETY: integers, arrays of integers, and structs of such, with explicit padding.
unsafe impl Pod for types::open_socket {}

/// The daemon's side: what was loaded.
pub struct T {
    programs: [Program; 2],
    events: Arc<Events<types::message>>,
    bss: MapHandle,
    holders: Holders,
    /// Whether the kernel lets us read data in pages, where TCP puts what it sends.
    pages: bool,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Default 5000, which is how long most resolvers wait.
    #[serde(default = "five_seconds")]
    pub duration_ms: WindowMs,
    /// Only queries of processes with this name.
    #[serde(default)]
    pub process: Option<Comm>,
    /// Only names that end so, such as example.org.
    #[serde(default, deserialize_with = "domain")]
    pub name: Option<String>,
    #[serde(default)]
    pub limit: Limit,
}

/// A name, or the end of one.
fn domain<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let name = Option::<String>::deserialize(deserializer)?;
    match name.as_ref().is_none_or(|name| (1..=dns::NAME_BYTES).contains(&name.len())) {
        true => Ok(name),
        false => Err(de::Error::custom(format!("a DNS name is 1 to {} bytes long", dns::NAME_BYTES))),
    }
}

fn five_seconds() -> WindowMs {
    WindowMs::new(5_000)
}

#[derive(Serialize, Deserialize, Debug, Default)]
pub struct Sample {
    messages: Vec<Seen>,
    /// Messages for which there was no room in the kernel's buffer, …
    lost: u64,
    /// … or in the window's list.
    beyond: u64,
    /// When the first of the latter came, since the window opened.
    full_at_ns: Option<u64>,
    pages: bool,
    window_ns: u64,
}

/// A DNS message at an interface.
#[derive(Serialize, Deserialize, Debug, Clone, Default)]
pub struct Seen {
    /// Since the window opened.
    at_ns: u64,
    /// A number of its socket, 0 where it has none.
    socket: u64,
    egress: bool,
    interface: (u32, u32),
    protocol: u16,
    process: Process,
    /// From the network header on.
    packet: Bytes,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct Output {
    /// Failed, unanswered and slow ones first.
    pub queries: Vec<Query>,
    pub summary: Summary,
    pub measured: Measured,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, PartialEq)]
pub struct Query {
    // Of the socket that sent it.
    pub owner: Owner,
    // Untrusted text.
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub server: Endpoint,
    pub transport: Transport,
    // null while unanswered.
    pub rcode: Option<String>,
    // From the first query to the answer, as they pass this host's interfaces.
    pub latency_us: Option<u64>,
    pub answered: bool,
    // How often it was sent with the same id.
    pub sent: u64,
    /// Unanswered, but too young to be called so: less than a second.
    pub pending: bool,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Transport {
    Udp,
    Tcp,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug, Default, PartialEq)]
pub struct Summary {
    pub queries: u64,
    pub answered: u64,
    // Not those that are pending.
    pub unanswered: u64,
    pub pending: u64,
    /// Answered with an rcode other than NOERROR.
    pub failed: u64,
    // Of these: the name does not exist.
    pub nxdomain: u64,
    pub latency_us: Latency,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug, Default, PartialEq)]
pub struct Latency {
    pub p50: Option<u64>,
    pub p99: Option<u64>,
    pub max: Option<u64>,
}

impl Tool for T {
    const NAME: &'static str = "trace_dns";
    const TITLE: &'static str = "Watch DNS queries and their answers";
    const DESCRIPTION: &'static str = "Is name resolution failing or slow, and who asks? Every DNS query over UDP or TCP (ports 53 and \
        5353), of any process and network namespace, loopback included: name, server, rcode, latency, or that no answer came.";
    const NEEDS: &'static str = "Linux 5.17 or newer with BTF (CONFIG_DEBUG_INFO_BTF)";
    type Input = Input;
    type Sample = Sample;
    type Output = Output;

    fn load(loader: &mut Loader) -> Result<Self, Error> {
        let pages = Kernel::read()?.has_function("bpf_dynptr_from_skb");
        let mut object = bpf::object();
        let skel = skel::TraceDnsSkelBuilder::default().open(&mut object)?.load()?;
        let programs = [loader.program(&skel.progs.sent)?, loader.program(&skel.progs.received)?];
        let attached = programs.clone();
        let attach = move || Ok(attached.iter().map(Program::trace).collect::<io::Result<_>>()?);
        Ok(T {
            events: Events::new(&loader.map(&skel.maps.messages)?, attach)?,
            bss: loader.map(&skel.maps.bss)?,
            holders: Holders::new(loader.program(&skel.progs.open_sockets)?, loader.map(&skel.maps.wanted)?),
            programs,
            pages,
        })
    }

    fn rehearse(&self) -> io::Result<()> {
        self.holders.rehearse()?;
        self.programs.iter().try_for_each(|program| program.trace().map(drop))
    }

    fn sample(&self, input: &Input, _: &Host, window: &Window) -> Result<Sample, Error> {
        let kept = Arc::new(Mutex::new(Kept::default()));
        let filled = Arc::clone(&kept);
        let subscription = self.events.subscribe(move |message: &types::message| lock(&filled).take(message))?;
        let lost = || {
            let missed = self.programs.iter().map(Program::misses).sum::<io::Result<u64>>()?;
            Ok::<_, Error>(missed + bpf::counter(&self.bss, offset_of!(types::bss, lost))?)
        };
        let (from, lost_before) = (lock(&kept).open(), lost()?);
        window.wait(window.opened(), Self::duration(input))?;
        let to = lock(&kept).close();
        subscription.drain();
        let lost = lost()? - lost_before;
        window.keep(subscription);
        let Kept { messages, beyond, full_at_ns, .. } = std::mem::take(&mut *lock(&kept));
        let owners = self.owners(&messages)?;
        Ok(Sample {
            messages: messages.iter().map(|m| resolve(m, &owners, from)).collect(),
            lost,
            beyond,
            full_at_ns: full_at_ns.map(|at| at - from),
            pages: self.pages,
            window_ns: to - from,
        })
    }

    fn duration(input: &Input) -> Duration {
        input.duration_ms.duration()
    }

    fn report(input: Input, sample: Sample) -> Output {
        report::report(&input, sample)
    }

    fn shorten(output: &mut Output) -> bool {
        let cut = output.queries.pop().is_some();
        output.measured.rows_cut += u64::from(cut);
        cut
    }

    fn text(output: &Output) -> String {
        report::text(output)
    }
}

/// The messages of a window, as they come: times are CLOCK_MONOTONIC.
#[derive(Default)]
struct Kept {
    /// Empty before the window opens.
    within: Range<u64>,
    messages: Vec<types::message>,
    /// How many of them are segments of TCP.
    segments: usize,
    /// Messages that came when there was no room, and since when.
    beyond: u64,
    full_at_ns: Option<u64>,
}

impl Kept {
    /// Under the lock, as [`close`](Self::close): no message is of the window that came before it, or after.
    fn open(&mut self) -> u64 {
        self.within = monotonic_ns()..u64::MAX;
        self.within.start
    }

    fn close(&mut self) -> u64 {
        self.within.end = monotonic_ns();
        self.within.end
    }

    fn take(&mut self, message: &types::message) {
        if !self.within.contains(&message.time_ns) {
            return;
        }
        let segment = usize::from(message.is_segment);
        if self.messages.len() < limits::DNS_MESSAGES && self.segments + segment <= limits::DNS_SEGMENTS {
            self.segments += segment;
            self.messages.push(*message);
        } else {
            self.beyond += 1;
            self.full_at_ns = Some(self.full_at_ns.unwrap_or(u64::MAX).min(message.time_ns));
        }
    }
}

impl T {
    /// The processes that have the messages' sockets open now, by cookie and by address.
    fn owners(&self, messages: &[types::message]) -> Result<HashMap<u64, types::open_socket>, Error> {
        let known: HashSet<_> = messages.iter().filter(|m| m.owner.pid != 0).map(|m| m.socket).collect();
        let unknown = messages.iter().map(|m| m.socket).filter(|socket| *socket != 0 && !known.contains(socket));
        let wanted: HashSet<_> = unknown.take(limits::SOCKETS_WANTED).collect();
        let mut owners: HashMap<_, _> = messages.iter().filter(|m| m.owner.pid != 0).map(|m| (m.socket, sender(m))).collect();
        if !wanted.is_empty() {
            for socket in self.holders.find::<types::open_socket>(wanted)? {
                owners.entry(socket.cookie).or_insert(socket);
                owners.entry(socket.address).or_insert(socket);
            }
        }
        Ok(owners)
    }
}

/// What a message tells of its socket, for another one of it that had to wait for a neighbor and has no owner.
fn sender(m: &types::message) -> types::open_socket {
    let mut socket = types::open_socket { cookie: m.socket, owner: m.owner, ..Default::default() };
    socket.endpoints.local_port = m.port;
    socket
}

/// A sample of the one record of the ring buffer that `bytes` are, whatever they are.
pub fn of_record(bytes: &[u8]) -> Option<Sample> {
    let message = resolve(&bpf::read_record(bytes), &HashMap::new(), 0);
    Some(Sample { window_ns: message.at_ns, messages: vec![message], ..Default::default() })
}

fn resolve(m: &types::message, owners: &HashMap<u64, types::open_socket>, from: u64) -> Seen {
    // Memory of a closed socket is used again: at the same address it must be the same port, too.
    let same = |s: &&types::open_socket| (s.owner.netns, s.endpoints.local_port) == (m.owner.netns, m.port);
    let open = owners.get(&m.socket).filter(|_| m.owner.pid == 0).filter(same);
    let owner = open.map_or(&m.owner, |socket| &socket.owner);
    let netns = if owner.netns != 0 { owner.netns } else { m.netns };
    Seen {
        at_ns: m.time_ns - from,
        socket: m.socket,
        egress: m.egress != 0,
        interface: (m.netns, m.ifindex),
        protocol: m.protocol,
        process: Process::new(owner.pid, &owner.comm.map(|c| c as u8), owner.cgroup, netns),
        packet: Bytes(m.data[..usize::from(m.length).min(m.data.len())].to_vec()),
    }
}
