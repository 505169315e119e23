//! The daemon's half: attaches, reads twice, and puts names to what the kernel counted.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Write,
    io,
    mem::offset_of,
    os::fd::AsFd,
    sync::{Arc, Mutex},
    time::Duration,
};

use libbpf_rs::{
    MapCore, MapFlags, MapHandle,
    skel::{OpenSkel, SkelBuilder},
};

use super::{
    Counters, Flow, Listener, Place, Sample, Verdicts, counters::listen_overflows, flow_slots, skel,
    verdicts::{self, Chain},
};
use crate::{
    answer::Endpoint,
    attribution::{self, Process},
    bpf::{self, Link, Loader, Pod, Program, Shared, lock},
    btf::Kernel,
    holders::Holders,
    limits, netlink,
    packet::Bytes,
    untrusted,
    window::{Window, monotonic_ns},
    windows::Windows,
    wire::Error,
};
use skel::types;

// SAFETY: integers.
unsafe impl Pod for types::place {}
// SAFETY: integers.
unsafe impl Pod for types::windows {}
// SAFETY: integers, arrays of integers, and structs of such, with explicit padding.
unsafe impl Pod for types::flow {}
// SAFETY: integers, arrays of integers, and structs of such, with explicit padding.
unsafe impl Pod for types::open_socket {}
// SAFETY: an integer and an array of integers.
unsafe impl Pod for types::symbol {}

pub struct Drops {
    program: Program,
    /// Where the kernel lets us see which chain dropped a packet.
    verdicts: Option<Arc<Verdicts>>,
    holders: Holders,
    symbols: Program,
    places: MapHandle,
    flows: MapHandle,
    addresses: MapHandle,
    bss: MapHandle,
    links: Arc<Shared<()>>,
    windows: Arc<Windows<types::windows>>,
    /// The names of this kernel's drop reasons.
    reasons: HashMap<u32, String>,
    /// Whether the kernel names the socket that a packet was for.
    receivers: bool,
    /// Symbols found so far; the lock is on the kernel's list of addresses, too.
    known: Mutex<HashMap<u64, String>>,
}

/// What the kernel has counted by a moment.
#[derive(Default)]
struct Reading {
    /// Packets by location and reason.
    places: HashMap<(u64, u32), u64>,
    /// Slot after slot.
    flows: Vec<types::flow>,
    /// Beside them, which chain dropped them; or nothing.
    chains: Vec<Chain>,
    listeners: HashMap<u64, types::open_socket>,
    /// Of their network namespaces.
    overflows: HashMap<u32, u64>,
    counters: Counters,
    unplaced: u64,
}

impl Drops {
    pub fn load(loader: &mut Loader) -> Result<Self, Error> {
        let kernel = Kernel::read()?;
        let receivers = match kernel.arguments("kfree_skb") {
            Some(arguments @ 3..) => arguments > 3,
            _ => return Err(Error::Kernel("this kernel gives no reasons for drops".into())),
        };
        let reasons: HashMap<_, _> = kernel.names("skb_drop_reason", "SKB_DROP_REASON_").into_iter().collect();
        drop(kernel);
        // What the kernel would not attach later on is not there.
        let verdicts = loader.verdicts.take().filter(|verdicts| verdicts.program.trace().is_ok());
        let mut object = bpf::object();
        let mut open = skel::TraceDropsSkelBuilder::default().open(&mut object)?;
        open.progs.drop.set_autoload(!receivers);
        open.progs.drop_with_receiver.set_autoload(receivers);
        let slots = flow_slots()?;
        open.maps.flows.set_max_entries(slots)?;
        if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
            (constants.flow_mask, constants.seed) = (slots - 1, monotonic_ns());
            let firewall = reasons.iter().find(|(_, name)| verdicts.is_some() && *name == "NETFILTER_DROP");
            constants.judged = firewall.map_or(0, |(number, _)| *number);
        }
        if let Some(verdicts) = &verdicts {
            open.maps.verdicts.reuse_fd(verdicts.notes.as_fd())?;
            open.maps.chains.reuse_fd(verdicts.chains.as_fd())?;
            loader.programs.push(verdicts.program.clone());
        }
        let skel = open.load()?;
        Ok(Drops {
            program: loader.program(if receivers { &skel.progs.drop_with_receiver } else { &skel.progs.drop })?,
            holders: Holders::new(loader.program(&skel.progs.open_sockets)?, loader.map(&skel.maps.wanted)?),
            symbols: loader.program(&skel.progs.symbols)?,
            places: loader.map(&skel.maps.places)?,
            flows: loader.map(&skel.maps.flows)?,
            addresses: loader.map(&skel.maps.addresses)?,
            verdicts,
            windows: Windows::new(loader.map(&skel.maps.data)?, |newest, oldest| types::windows { newest, oldest }),
            bss: loader.map(&skel.maps.bss)?,
            links: Shared::new(),
            reasons,
            receivers,
            known: Mutex::default(),
        })
    }

    pub fn rehearse(&self) -> io::Result<()> {
        self.symbols.each_in(&self.addresses, |_: &types::symbol| ())?;
        self.holders.rehearse()?;
        self.verdicts.as_ref().map(|verdicts| verdicts.program.trace()).transpose()?;
        self.program.trace().map(drop)
    }

    fn attach(&self) -> io::Result<Vec<Link>> {
        let mut links = vec![self.program.trace()?];
        // Before Linux 6.4 nothing keeps nf_tables from being unloaded meanwhile; then chains are not named.
        links.extend(self.verdicts.as_ref().and_then(|verdicts| verdicts.program.trace().ok()));
        Ok(links)
    }

    pub fn sample(&self, duration: Duration, window: &Window) -> Result<Sample, Error> {
        let numbered = self.windows.open()?;
        let held = self.links.hold((), || self.attach())?;
        let (before, from, missed) = (self.read()?, monotonic_ns(), self.program.misses()?);
        window.wait(window.opened(), duration)?;
        let (after, to) = (self.read()?, monotonic_ns());
        let missed = self.program.misses()? - missed + after.unplaced - before.unplaced;
        window.keep((held, numbered));
        let mut sample = self.difference(&before, &after)?;
        (sample.window_ns, sample.missed) = (to - from, missed);
        Ok(sample)
    }

    fn read(&self) -> Result<Reading, Error> {
        let mut reading =
            Reading { counters: Counters::read(), unplaced: bpf::counter(&self.bss, offset_of!(types::bss, unplaced))?, ..Reading::default() };
        // Flows before places: what arrives in between is then not told apart, and not more than there is.
        reading.flows = bpf::per_cpu_array(&self.flows)?;
        if let Some(verdicts) = &self.verdicts {
            reading.chains = bpf::per_cpu_array(&verdicts.chains)?;
        }
        for place in bpf::per_cpu_array::<types::place>(&self.places)? {
            if place.location != 0 {
                *reading.places.entry((place.location, place.reason)).or_default() += place.packets;
            }
        }
        for socket in self.holders.find::<types::open_socket>([])? {
            reading.listeners.entry(socket.cookie).or_insert(socket);
        }
        let at_home = reading.listeners.values().filter(|s| s.task_netns == s.owner.netns);
        reading.overflows = listen_overflows(at_home.map(|s| (s.owner.netns, s.owner.pid)));
        Ok(reading)
    }

    /// Remembers the symbols of these addresses.
    fn resolve(&self, addresses: &HashSet<u64>) -> Result<HashMap<u64, String>, Error> {
        let mut known = lock(&self.known);
        let unknown: Vec<_> = addresses.iter().filter(|a| !known.contains_key(a)).take(limits::SYMBOLS).collect();
        if !unknown.is_empty() {
            for address in &unknown {
                self.addresses.update(bpf::bytes(*address), bpf::bytes(&0u32), MapFlags::ANY)?;
            }
            let found = self.symbols.each_in(&self.addresses, |symbol: &types::symbol| {
                let name = untrusted::name(&symbol.name.map(|c| c as u8));
                let function = name.split(['.', ' ']).next().unwrap_or_default(); // without `.constprop.0` and the module
                known.insert(symbol.address, function.to_owned());
            });
            for address in &unknown {
                self.addresses.delete(bpf::bytes(*address))?;
            }
            found?;
        }
        Ok(addresses.iter().filter_map(|a| Some((*a, known.get(a)?.clone()))).collect())
    }

    fn difference(&self, before: &Reading, after: &Reading) -> Result<Sample, Error> {
        let more = |key: &(u64, u32), packets: u64| packets - before.places.get(key).copied().unwrap_or(0);
        let places: BTreeMap<_, _> =
            after.places.iter().map(|(key, n)| (*key, more(key, *n))).filter(|(_, n)| *n > 0).collect();
        let mut flows = grown(before, after);
        flows.sort_by_key(|(flow, _)| (std::cmp::Reverse(flow.packets), flow.id));
        flows.truncate(limits::DROP_FLOWS);
        let addresses = places.keys().map(|(l, _)| *l).chain(flows.iter().map(|(f, _)| f.input)).filter(|a| *a != 0);
        let symbols = self.resolve(&addresses.collect())?;
        let owners = self.owners(&flows)?;
        let place = |(&(location, reason), &packets): (&(u64, u32), &u64)| Place {
            reason: self.reason(reason),
            location: symbol(&symbols, location),
            packets,
        };
        Ok(Sample {
            places: places.iter().map(place).collect(),
            flows: flows.into_iter().map(|(f, rule)| self.flow(&f, rule, &symbols, &owners)).collect(),
            listeners: listeners(before, after),
            counters: after.counters.since(&before.counters),
            receivers: self.receivers,
            netns: attribution::own_netns(),
            ..Sample::default()
        })
    }

    /// The flows' sockets that processes have open now, by cookie and by address.
    fn owners(&self, flows: &[(types::flow, Option<String>)]) -> Result<HashMap<u64, types::open_socket>, Error> {
        let nameless = flows.iter().map(|(f, _)| f).filter(|f| f.socket != 0 && f.owner.pid == 0).map(|f| f.socket);
        let wanted: HashSet<_> = nameless.take(limits::SOCKETS_WANTED).collect();
        if wanted.is_empty() {
            return Ok(HashMap::new());
        }
        let mut owners = HashMap::new();
        for socket in self.holders.find::<types::open_socket>(wanted)? {
            owners.entry(socket.cookie).or_insert(socket);
            owners.entry(socket.address).or_insert(socket);
        }
        Ok(owners)
    }

    fn reason(&self, number: u32) -> String {
        self.reasons.get(&number).cloned().unwrap_or_else(|| {
            // The upper half names a subsystem with reasons of its own, such as mac80211.
            let mut name = String::from("reason ");
            let _ = write!(name, "0x{number:x}");
            name
        })
    }

    fn flow(
        &self,
        f: &types::flow,
        rule: Option<String>,
        symbols: &HashMap<u64, String>,
        owners: &HashMap<u64, types::open_socket>,
    ) -> Flow {
        // Memory of a closed socket is used again: at the same address it must be the same port, too.
        let same = |s: &&types::open_socket| (s.owner.netns, s.endpoints.local_port) == (f.owner.netns, f.port);
        let open = owners.get(&f.socket).filter(|_| f.owner.pid == 0).filter(same);
        let owner = open.map_or(&f.owner, |socket| &socket.owner);
        let netns = if owner.netns != 0 { owner.netns } else { f.netns };
        let named = f.interface.iter().take_while(|c| **c != 0).map(|c| *c as u8).collect::<Vec<_>>();
        let interface = match (named.is_empty(), f.iif) {
            (false, _) => Some(String::from_utf8_lossy(&named).into_owned()),
            (true, index @ 1..) if f.netns == attribution::own_netns() => netlink::name(index),
            (true, _) => None,
        };
        let reason = self.reason(f.reason);
        Flow {
            rule: rule.filter(|_| reason == "NETFILTER_DROP"), // else of an earlier flow in its slot
            reason,
            location: symbol(symbols, f.location),
            packets: f.packets,
            protocol: f.protocol,
            family: f.family,
            receiver: f.receiver != 0,
            arrived: f.iif != 0,
            input: symbols.get(&f.input).cloned(),
            interface,
            process: Process::new(owner.pid, &owner.comm.map(|c| c as u8), owner.cgroup, netns),
            header: Bytes(f.header[..usize::from(f.length).min(f.header.len())].to_vec()),
        }
    }
}

/// The flows of the window, each with the packets of all CPUs, and with the chain that dropped them if it was the same on
/// all of them.
fn grown(before: &Reading, after: &Reading) -> Vec<(types::flow, Option<String>)> {
    let mut flows = HashMap::<u64, (types::flow, Option<String>)>::new();
    for (slot, flow) in after.flows.iter().enumerate() {
        let same = before.flows.get(slot).filter(|before| (before.id, before.born_ns) == (flow.id, flow.born_ns));
        let packets = flow.packets.saturating_sub(same.map_or(0, |before| before.packets));
        if packets > 0 {
            let rule = after.chains.get(slot).and_then(verdicts::name);
            let (all, known) = flows.entry(flow.id).or_insert_with(|| (types::flow { packets: 0, ..*flow }, rule.clone()));
            all.packets += packets;
            if *known != rule {
                *known = None;
            }
        }
    }
    flows.into_values().collect()
}

fn symbol(symbols: &HashMap<u64, String>, address: u64) -> String {
    symbols.get(&address).cloned().unwrap_or_else(|| "unknown".into())
}

/// Listeners that dropped something, or whose queue is full now.
fn listeners(before: &Reading, after: &Reading) -> Vec<Listener> {
    let grown = |socket: &types::open_socket| {
        socket.dropped.wrapping_sub(before.listeners.get(&socket.cookie).map_or(0, |b| b.dropped))
    };
    let troubled = |s: &&types::open_socket| s.listener != 0 && (grown(s) > 0 || s.accept_queue > s.accept_queue_max);
    let mut listeners: Vec<_> = after
        .listeners
        .values()
        .filter(troubled)
        .map(|s| Listener {
            process: Process::new(s.owner.pid, &s.owner.comm.map(|c| c as u8), s.owner.cgroup, s.owner.netns),
            local: Endpoint::new(s.endpoints.local, s.endpoints.local_port),
            accept_queue: s.accept_queue,
            accept_queue_max: s.accept_queue_max,
            dropped: grown(s).into(),
            overflows: Option::zip(after.overflows.get(&s.owner.netns), before.overflows.get(&s.owner.netns))
                .map(|(after, before)| after.saturating_sub(*before)),
        })
        .collect();
    listeners.sort_by_key(|l| std::cmp::Reverse(l.dropped));
    listeners
}
