//! The daemon's half: attaches, reads twice, and puts names to what the kernel counted.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Write,
    mem::offset_of,
    os::fd::AsFd,
    sync::{Arc, Mutex},
};

use libbpf_rs::{MapHandle, skel::SkelBuilder};

use super::{
    Counters, DropSite, Flow, Listener, Sample, Verdicts,
    counters::listen_overflows,
    flow_slots, routes, skel,
    verdicts::{self, Chain},
};
use crate::{
    answer::{Endpoint, Limitation},
    daemon::{
        attribution,
        holders::Holders,
        kernel::{self, Iterate, Link, Listed, Loader, Program},
        netlink,
        session::Session,
        shared::{Held, Shared},
        window::monotonic_ns,
        windows::{Numbered, Windows},
    },
    limits,
    owner::Process,
    packet::Bytes,
    sync::lock,
    untrusted,
    wire::Error,
};
use skel::types;

kernel::pod!(types::flow, types::open_socket, types::place, types::symbol, types::windows);

pub struct DropTracer {
    program: Program,
    /// Where the kernel lets us see which chain dropped a packet.
    verdicts: Option<Verdicts>,
    holders: Holders,
    symbols: Iterate,
    lacks: Vec<Limitation>,
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
    flows: Arc<Vec<types::flow>>,
    /// Beside them, which chain dropped them; or nothing.
    chains: Arc<Vec<Chain>>,
    /// Nothing was dropped while flows and places were read, so they fit.
    is_settled: bool,
    listeners: HashMap<u64, types::open_socket>,
    /// Of their network namespaces.
    overflows: HashMap<u32, u64>,
    /// A process in each of these.
    inhabitants: HashMap<u32, u32>,
    counters: Counters,
    unplaced: u64,
}

impl DropTracer {
    pub fn load(loader: &mut Loader) -> Result<Self, Error> {
        let features = loader.features();
        let receivers = match features.tracepoint("kfree_skb") {
            Some(arguments @ 3..) => arguments > 3,
            Some(_) => return Err(Error::Kernel("the tracepoint kfree_skb of this kernel has no drop reasons".into())),
            None => false, // then loading says why
        };
        let reasons = features.kernel(|kernel| kernel.names("skb_drop_reason", "SKB_DROP_REASON_"));
        let reasons: HashMap<_, _> = reasons.into_iter().flatten().collect();
        // What the kernel would not attach later on is not there.
        let verdicts = Verdicts::load(loader).filter(|verdicts| verdicts.program.trace().is_ok());
        let mut object = kernel::object();
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
        }
        let skel = loader.load(open)?;
        Ok(DropTracer {
            program: loader.program(if receivers { &skel.progs.drop_with_receiver } else { &skel.progs.drop })?,
            holders: Holders::new(loader.optional(&skel.progs.open_sockets)?, loader.map(&skel.maps.wanted)?),
            symbols: loader.iterator(&skel.progs.symbols)?,
            lacks: loader.lacks(),
            places: loader.map(&skel.maps.places)?,
            flows: loader.map(&skel.maps.flows)?,
            addresses: loader.map(&skel.maps.addresses)?,
            verdicts,
            windows: Windows::new(
                loader.map(&skel.maps.data)?,
                |newest, oldest, first| types::windows { newest, oldest, first },
                |_| Ok(()),
            ),
            bss: loader.map(&skel.maps.bss)?,
            links: Shared::new(),
            reasons,
            receivers,
            known: Mutex::default(),
        })
    }

    fn attach(&self) -> Result<Vec<Link>, Error> {
        let mut links = vec![self.program.trace()?];
        // Before Linux 6.4 nothing keeps nf_tables from being unloaded meanwhile; then chains are not named.
        links.extend(self.verdicts.as_ref().and_then(|verdicts| verdicts.program.trace().ok()));
        Ok(links)
    }

    pub fn open(&self) -> Result<Drops<'_>, Error> {
        let numbered = self.windows.open()?;
        let held = self.links.hold((), || self.attach())?;
        let (before, since_ns, missed) = (self.read(None)?, monotonic_ns(), self.program.misses()?);
        Ok(Drops { tracer: self, _held: held, numbered, before, since_ns, missed })
    }

    fn places(&self) -> Result<HashMap<(u64, u32), u64>, Error> {
        let mut places = HashMap::new();
        for place in kernel::per_cpu_array::<types::place>(&self.places)? {
            if place.location != 0 {
                *places.entry((place.location, place.reason)).or_default() += place.packets;
            }
        }
        Ok(places)
    }

    /// Flows are read only if a packet was dropped since `before`: their table is large.
    fn read(&self, before: Option<&Reading>) -> Result<Reading, Error> {
        let mut reading = Reading {
            counters: Counters::read(),
            unplaced: kernel::field(&self.bss, offset_of!(types::bss, unplaced))?,
            places: self.places()?,
            ..Reading::default()
        };
        match before.filter(|before| before.is_settled && before.places == reading.places) {
            Some(before) => {
                (reading.flows, reading.chains) = (Arc::clone(&before.flows), Arc::clone(&before.chains));
                reading.is_settled = true;
            }
            None => {
                // Flows before places: the flow of a packet in between is read next time.
                reading.flows = Arc::new(kernel::per_cpu_array(&self.flows)?);
                if let Some(verdicts) = &self.verdicts {
                    reading.chains = Arc::new(kernel::per_cpu_array(&verdicts.chains)?);
                }
                let earlier = std::mem::replace(&mut reading.places, self.places()?);
                reading.is_settled = earlier == reading.places;
            }
        }
        for socket in self.holders.find::<types::open_socket>([], |s| s.managed != 0)? {
            reading.listeners.entry(socket.cookie).or_insert(socket);
        }
        let at_home = reading.listeners.values().filter(|s| s.task_netns == s.owner.netns);
        reading.inhabitants = at_home.map(|s| (s.owner.netns, s.owner.pid)).collect();
        reading.overflows = listen_overflows(reading.inhabitants.iter().map(|(netns, pid)| (*netns, *pid)));
        Ok(reading)
    }

    /// Remembers the symbols of these addresses.
    fn resolve(&self, addresses: &HashSet<u64>) -> Result<HashMap<u64, String>, Error> {
        let mut known = lock(&self.known);
        let unknown: Vec<_> = addresses.iter().filter(|a| !known.contains_key(a)).take(limits::SYMBOLS).collect();
        if !unknown.is_empty() {
            let _listed = Listed::add(&self.addresses, unknown.into_iter().copied(), &types::symbol { name: [0; 64] })?;
            self.symbols.run()?;
            for (address, symbol) in kernel::entries::<u64, types::symbol>(&self.addresses)? {
                let name = untrusted::name(&symbol.name.map(|c| c as u8));
                let function = name.split(['.', ' ']).next().unwrap_or_default(); // without `.constprop.0` and the module
                known.insert(address, function.to_owned());
            }
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
        // Flows are read before places: a flow may have grown after the last reading of its place.
        let of_flows = flows.iter().flat_map(|(f, _)| [f.location, f.input]);
        let addresses = places.keys().map(|(location, _)| *location).chain(of_flows).filter(|a| *a != 0);
        let symbols = self.resolve(&addresses.collect())?;
        let owners = self.owners(&flows)?;
        let place = |(&(location, reason), &packets): (&(u64, u32), &u64)| DropSite {
            reason: self.reason(reason),
            location: symbol(&symbols, location),
            packets,
        };
        Ok(Sample {
            places: places.iter().map(place).collect(),
            flows: flows
                .into_iter()
                .map(|(f, rule)| with_route_back(self.flow(&f, rule, &symbols, &owners), &after.inhabitants))
                .collect(),
            listeners: listeners(before, after),
            overflows: overflows(before, after),
            counters: after.counters.since(&before.counters),
            receivers: self.receivers,
            netns: attribution::own_netns(),
            lacks: self.lacks.clone(),
            xdp_interfaces: with_xdp(),
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
        for socket in self.holders.find::<types::open_socket>(wanted, |s| s.managed != 0)? {
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
        let interface = match (device(f.interface), f.iif) {
            (None, index @ 1..) if f.netns == attribution::own_netns() => netlink::name(index),
            (named, _) => named,
        };
        let reason = self.reason(f.reason);
        Flow {
            id: f.id,
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
            gateway: Some(Endpoint::new(f.gateway, 0).address).filter(|gateway| !gateway.is_unspecified()),
            output: device(f.output),
            returns: f.returns != 0,
            route_back: None,
            process: Process::new(owner.pid, &owner.comm.map(|c| c as u8), owner.cgroup, netns),
            header: Bytes(f.header[..usize::from(f.length).min(f.header.len())].to_vec()),
        }
    }
}

/// One client's drops.
pub struct Drops<'a> {
    tracer: &'a DropTracer,
    _held: Held<()>,
    /// Until it is dropped, which is last, the slots of flows that were seen since the last reading are kept.
    numbered: Numbered<types::windows>,
    /// At the last reading, and when that was.
    before: Reading,
    since_ns: u64,
    missed: u64,
}

impl Session<Sample> for Drops<'_> {
    fn read(&mut self, _: bool) -> Result<Sample, Error> {
        // A flow that dies from here on keeps its slot for the next reading.
        let numbered = self.tracer.windows.open()?;
        let (after, now) = (self.tracer.read(Some(&self.before))?, monotonic_ns());
        let missed = self.tracer.program.misses()?;
        self.numbered = numbered;
        let mut sample = self.tracer.difference(&self.before, &after)?;
        sample.missed = missed - self.missed + after.unplaced - self.before.unplaced;
        sample.window_ns = now - self.since_ns;
        (self.before, self.since_ns, self.missed) = (after, now, missed);
        Ok(sample)
    }
}

/// How many interfaces have an XDP program. A list that keeps changing is not worth the answer.
fn with_xdp() -> u64 {
    netlink::interfaces().unwrap_or_default().iter().filter(|i| i.xdp_program.is_some()).count() as u64
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
            let (all, known) =
                flows.entry(flow.id).or_insert_with(|| (types::flow { packets: 0, ..*flow }, rule.clone()));
            all.packets += packets;
            if *known != rule {
                *known = None;
            }
        }
    }
    flows.into_values().collect()
}

fn overflows(before: &Reading, after: &Reading) -> BTreeMap<u32, u64> {
    let grown = |(netns, now): (&u32, &u64)| Some((*netns, now.saturating_sub(*before.overflows.get(netns)?)));
    after.overflows.iter().filter_map(grown).collect()
}

fn device(name: [std::ffi::c_char; 16]) -> Option<String> {
    let name: Vec<_> = name.iter().take_while(|c| **c != 0).map(|c| *c as u8).collect();
    (!name.is_empty()).then(|| String::from_utf8_lossy(&name).into_owned())
}

/// Adds why the reverse-path filter, which IPv4 alone has, refused the packets: where a process shows its namespace's routes.
fn with_route_back(flow: Flow, inhabitants: &HashMap<u32, u32>) -> Flow {
    let source = flow.header.0.get(12..16).and_then(|octets| <[u8; 4]>::try_from(octets).ok());
    let netns = flow.process.netns;
    let pid = inhabitants.get(&netns).copied();
    match source.filter(|_| flow.reason == "IP_RPFILTER" && (pid.is_some() || netns == attribution::own_netns())) {
        Some(source) => Flow { route_back: routes::back(source.into(), pid), ..flow },
        None => flow,
    }
}

fn symbol(symbols: &HashMap<u64, String>, address: u64) -> String {
    symbols.get(&address).cloned().unwrap_or_else(|| "unknown".into())
}

/// Listeners with drops, or with a full queue now.
fn listeners(before: &Reading, after: &Reading) -> Vec<Listener> {
    // One without a cookie is named by its place in memory, which a new one may get. `ss` gives it a cookie.
    let place = |s: &types::open_socket| (s.owner.netns, s.endpoints.local, s.endpoints.local_port);
    let grown = |s: &types::open_socket| {
        let earlier = [s.cookie, s.address].iter().find_map(|name| before.listeners.get(name));
        earlier.filter(|b| place(b) == place(s)).and_then(|b| s.dropped.checked_sub(b.dropped)).unwrap_or(s.dropped)
    };
    let is_full = |s: &types::open_socket| s.accept_queue > s.accept_queue_max;
    let troubled = after.listeners.values().filter(|s| s.listener != 0 && (grown(s) > 0 || is_full(s)));
    let listener = |s: &types::open_socket| Listener {
        socket: s.cookie,
        process: Process::new(s.owner.pid, &s.owner.comm.map(|c| c as u8), s.owner.cgroup, s.owner.netns),
        local: Endpoint::new(s.endpoints.local, s.endpoints.local_port),
        accept_queue: s.accept_queue,
        accept_queue_max: s.accept_queue_max,
        dropped: grown(s).into(),
    };
    let mut listeners: Vec<_> = troubled.map(listener).collect();
    listeners.sort_by_key(|l| std::cmp::Reverse(l.dropped));
    listeners
}
