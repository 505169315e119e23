//! The daemon's reading of all network namespaces, again and again: what is there, and what has changed.

use std::{
    collections::{BTreeMap, HashMap},
    mem::offset_of,
    net::IpAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use libbpf_rs::{MapCore, MapFlags, MapHandle, skel::SkelBuilder};

use super::control::Control;
use super::differences::{Snapshot, changes};
use super::network::{
    Address, Change, Claim, Device, Hardware, Link, Neighbor, Network, Place, Remark, Route, RouteKind,
};
use crate::{
    answer::{self, Limitation},
    daemon::{
        kernel::{self, Iterate, Loader, Program},
        shared::{Held, Shared},
        window::monotonic_ns,
    },
    limits, numbers,
    packet::Bytes,
    sync::lock,
    untrusted,
    wire::Error,
};

skeleton!("diagnose");
use skel::types;

kernel::pod!(
    types::found,
    types::claim,
    types::times,
    types::control_key,
    types::control,
    types::remark,
    types::remark_times
);

/// The programs, loaded.
pub struct Census {
    walk: Iterate,
    found: MapHandle,
    claims: MapHandle,
    controls: MapHandle,
    remarks: MapHandle,
    bss: MapHandle,
    /// Programs that see claims as they are made.
    listeners: Vec<Program>,
    links: Arc<Shared<()>>,
    lacks: Vec<Limitation>,
    /// One walk at a time: it keeps its place in a variable of the program's.
    walking: Mutex<()>,
}

impl Census {
    pub fn load(loader: &mut Loader) -> Result<Self, Error> {
        let mut object = kernel::object();
        let skel = loader.load(skel::DiagnoseSkelBuilder::default().open(&mut object)?)?;
        let (progs, maps) = (&skel.progs, &skel.maps);
        let mut listeners: Vec<_> = loader.optional(&progs.neighbor_learned)?.into_iter().collect();
        for (program, next) in
            [(&progs.packet_arrives, &maps.after_packet_arrives), (&progs.packet_leaves, &maps.after_packet_leaves)]
        {
            if program.autoload() {
                listeners.push(loader.shared(program, next)?);
            }
        }
        Ok(Census {
            walk: loader.iterator(&skel.progs.networks)?,
            found: loader.map(&skel.maps.all_found)?,
            claims: loader.map(&skel.maps.claims)?,
            controls: loader.map(&skel.maps.controls)?,
            remarks: loader.map(&skel.maps.remarks)?,
            bss: loader.map(&skel.maps.bss)?,
            listeners,
            links: Shared::new(),
            lacks: loader.lacks(),
            walking: Mutex::default(),
        })
    }

    /// Begins to watch.
    pub fn open(&self) -> Result<Watched<'_>, Error> {
        let held = self.links.hold((), || self.listeners.iter().map(Program::trace).collect::<Result<Vec<_>, _>>())?;
        self.forget_old_claims()?;
        let lost = self.lost()?;
        let first = self.snapshot()?;
        let downs = first.links.values().map(|link| (link.device(), link.downs)).collect();
        let (begun, since_ns) = (Instant::now(), monotonic_ns());
        Ok(Watched {
            census: self,
            _held: held,
            remarked: self.remarks()?,
            begun,
            since_ns,
            lost,
            downs,
            renewed: BTreeMap::new(),
            last: first,
            changes: Vec::new(),
            cut: 0,
        })
    }

    /// Links that no window needs to consider.
    fn forget_old_claims(&self) -> Result<(), Error> {
        let oldest = monotonic_ns().saturating_sub((limits::WINDOW_MAX + limits::ANSWER_GRACE).as_nanos() as u64);
        kernel::remove::<types::claim, types::times>(&self.claims, |times| times.last_ns < oldest)?;
        kernel::remove::<types::control_key, types::control>(&self.controls, |last| last.last_ns < oldest)?;
        kernel::remove::<types::remark, types::remark_times>(&self.remarks, |times| times.last_ns < oldest)?;
        Ok(())
    }

    fn remarks(&self) -> Result<Remarked, Error> {
        let entries = kernel::entries::<types::remark, types::remark_times>(&self.remarks)?;
        Ok(entries.into_iter().map(|(key, times)| (kernel::bytes(&key).to_vec(), (key, times))).collect())
    }

    fn lost(&self) -> Result<u64, Error> {
        let lost = |offset| kernel::field::<u64>(&self.bss, offset);
        let controls = lost(offset_of!(types::bss, controls_lost))? + lost(offset_of!(types::bss, remarks_lost))?;
        Ok(lost(offset_of!(types::bss, claims_lost))? + controls)
    }

    fn snapshot(&self) -> Result<Snapshot, Error> {
        let _alone = lock(&self.walking);
        self.walk.run()?;
        let entries = kernel::entries::<u32, types::found>(&self.found)?;
        let mut snapshot = Snapshot::default();
        for kind in 0..numbers::found::KINDS as usize {
            let count = kernel::field::<u32>(&self.bss, offset_of!(types::bss, counts) + kind * size_of::<u32>())?;
            snapshot.cut += u64::from(count.saturating_sub(numbers::found::FOUND_MAX as u32));
        }
        let keys: Vec<u8> = entries.iter().flat_map(|(key, _)| key.to_ne_bytes()).collect();
        if !entries.is_empty() {
            self.found.delete_batch(&keys, entries.len() as u32, MapFlags::ANY, MapFlags::ANY)?;
        }
        entries.iter().for_each(|(_, found)| snapshot.add(found));
        Ok(snapshot)
    }
}

impl Snapshot {
    fn add(&mut self, found: &types::found) {
        let (at, address) = ((found.netns, found.ifindex), address(found.address, found.family));
        match i64::from(found.kind) {
            numbers::found::LINK => drop(self.links.insert(at, link(found))),
            numbers::found::ADDRESS => {
                self.addresses.insert(Address { at, address, prefix: found.prefix, flags: found.flags });
            }
            numbers::found::NEIGHBOR => {
                let neighbor = Neighbor { at, address, hardware: hardware(found), state: found.flags };
                self.neighbors.insert((at, address), neighbor);
            }
            numbers::found::ROUTE => self.routes.extend(route(found, address)),
            _ => {}
        }
    }
}

fn address(bytes: [u8; 16], family: u8) -> IpAddr {
    let [a, b, c, d, ..] = bytes;
    if i32::from(family) == libc::AF_INET { [a, b, c, d].into() } else { bytes.into() }
}

fn hardware(found: &types::found) -> Option<Hardware> {
    let [a, b, c, d, e, f, _, length] = found.hardware;
    let is_known = length == 6 && found.hardware[..6] != [0; 6];
    is_known.then_some(Hardware([a, b, c, d, e, f]))
}

fn link(found: &types::found) -> Link {
    /// `__LINK_STATE_NOCARRIER` of linux/netdevice.h and `IF_OPER_LOWERLAYERDOWN` of linux/if.h.
    const NO_CARRIER: u32 = 1 << 2;
    const LOWER_LAYER_DOWN: u8 = 3;
    let has = |flag: i32| found.flags & flag as u32 != 0;
    let place = |netns, index| (index != 0).then_some((netns, index));
    Link {
        at: (found.netns, found.ifindex),
        name: untrusted::name(&found.name.map(|c| c as u8)),
        kind: untrusted::name(&found.driver.map(|c| c as u8)),
        loopback: has(libc::IFF_LOOPBACK),
        up: has(libc::IFF_UP),
        carrier: found.state & NO_CARRIER == 0 && found.detail != LOWER_LAYER_DOWN,
        master: place(found.netns, found.master),
        peer: place(found.peer_netns, found.peer),
        hardware: hardware(found),
        downs: found.downs,
    }
}

fn route(found: &types::found, network: IpAddr) -> Option<Route> {
    let kind = match found.rtn {
        1 => RouteKind::Unicast,
        6 => RouteKind::Blackhole,
        7 => RouteKind::Unreachable,
        8 => RouteKind::Prohibit,
        9 => RouteKind::Throw,
        _ => return None,
    };
    // The next hop of a route of IPv4 may be of IPv6.
    let is_ipv4 = network.is_ipv4() && found.gateway[4..] == [0; 12];
    let gateway = address(found.gateway, if is_ipv4 { libc::AF_INET } else { libc::AF_INET6 } as u8);
    Some(Route {
        netns: found.netns,
        network,
        prefix: found.prefix,
        kind,
        link: found.ifindex,
        gateway: Some(gateway).filter(|gateway| !gateway.is_unspecified()),
        metric: found.metric,
        protocol: found.detail,
    })
}

/// Changes of DSCP, by the bytes of their keys.
type Remarked = HashMap<Vec<u8>, (types::remark, types::remark_times)>;

fn remark(key: &types::remark, count: u64) -> Remark {
    Remark {
        netns: key.netns,
        from: key.from,
        to: key.to,
        source: address(key.source, key.family),
        destination: address(key.destination, key.family),
        protocol: key.protocol,
        before: key.before,
        after: key.after,
        count,
    }
}

/// One client's window.
pub struct Watched<'a> {
    census: &'a Census,
    _held: Held<(), Vec<kernel::Link>>,
    remarked: Remarked,
    begun: Instant,
    /// The same as CLOCK_MONOTONIC.
    since_ns: u64,
    lost: u64,
    /// The carrier-down count of each link at the beginning of the window.
    downs: BTreeMap<Device, u32>,
    /// When a place was last seen to have another device, in ms since the beginning.
    renewed: BTreeMap<Place, u64>,
    last: Snapshot,
    changes: Vec<Change>,
    cut: u64,
}

impl Watched<'_> {
    /// Reads once more, and notes what has changed.
    pub fn look(&mut self) -> Result<(), Error> {
        let now = self.census.snapshot()?;
        let after_ms = self.begun.elapsed().as_millis() as u64;
        for what in changes(&self.last, &now) {
            if self.changes.len() < limits::NETWORK_CHANGES {
                self.changes.push(Change { after_ms, what });
            } else {
                self.cut += 1;
            }
        }
        let was_there = |link: &&Link| self.last.links.get(&link.at).is_some_and(|one| one.device() == link.device());
        self.renewed.extend(now.links.values().filter(|link| !was_there(link)).map(|link| (link.at, after_ms)));
        self.last = now;
        Ok(())
    }

    /// The current state, and the changes since the last call.
    pub fn read(&mut self) -> Result<Network, Error> {
        self.look()?;
        let now: BTreeMap<_, _> = self.last.links.values().map(|link| (link.device(), link.downs)).collect();
        let in_window = |link: &Link| {
            // A device that is new has had no carrier to lose before.
            let before = self.downs.get(&link.device()).copied().unwrap_or(link.downs);
            Link { downs: link.downs.saturating_sub(before), ..link.clone() }
        };
        let lost = self.census.lost()?;
        let network = Network {
            links: self.last.links.values().map(in_window).collect(),
            addresses: self.last.addresses.iter().cloned().collect(),
            neighbors: self.last.neighbors.values().cloned().collect(),
            routes: self.last.routes.iter().cloned().collect(),
            claims: self.claims()?,
            control: self.control()?,
            remarks: self.remarks()?,
            changes: std::mem::take(&mut self.changes),
            cut: self.last.cut + std::mem::take(&mut self.cut) + lost - self.lost,
            lacks: self.lacks()?,
        };
        (self.begun, self.since_ns, self.lost, self.downs) = (Instant::now(), monotonic_ns(), lost, now);
        self.renewed.clear();
        Ok(network)
    }

    fn lacks(&self) -> Result<Vec<Limitation>, Error> {
        let unread: u32 = kernel::field(&self.census.bss, offset_of!(types::bss, neighbors_unread))?;
        let neighbors = (unread != 0).then(|| {
            let text =
                "Neighbor tables are unavailable before Linux 6.13: only address claims in the window are visible.";
            Limitation::new(answer::Code::NeighborsUnread, text)
        });
        Ok(self.census.lacks.iter().cloned().chain(neighbors).collect())
    }

    /// From the window's begin.
    fn since(&self, ns: u64) -> u64 {
        Duration::from_nanos(ns.saturating_sub(self.since_ns)).as_millis() as u64
    }

    /// The count is of the window: what it was before is known.
    fn remarks(&mut self) -> Result<Vec<Remark>, Error> {
        let now = self.census.remarks()?;
        let before = std::mem::take(&mut self.remarked);
        let grown = now.iter().map(|(bytes, (key, times))| {
            let earlier = before.get(bytes).map_or(0, |(_, times)| times.count);
            remark(key, times.count.saturating_sub(earlier))
        });
        let remarks = grown.filter(|remark| remark.count > 0).collect();
        self.remarked = now;
        Ok(remarks)
    }

    fn control(&self) -> Result<Vec<Control>, Error> {
        let entries = kernel::entries::<types::control_key, types::control>(&self.census.controls)?;
        let of_window = entries.into_iter().filter(|(_, last)| last.last_ns >= self.since_ns);
        let control = |(key, last): (types::control_key, types::control)| Control {
            at: (key.netns, key.ifindex),
            leaves: key.egress != 0,
            protocol: key.protocol,
            source: key.source.to_ne_bytes().into(),
            destination: last.destination.to_ne_bytes().into(),
            first_ms: self.since(last.first_ns),
            last_ms: self.since(last.last_ns),
            count: last.count,
            data: Bytes(last.data[..last.data.len().min(last.length as usize)].to_vec()),
        };
        Ok(of_window.map(control).collect())
    }

    fn claims(&self) -> Result<Vec<Claim>, Error> {
        let entries = kernel::entries::<types::claim, types::times>(&self.census.claims)?;
        let of_window = entries.into_iter().filter(|(_, times)| times.last_ns >= self.since_ns);
        let claim = |(claim, times): (types::claim, types::times)| Claim {
            at: (claim.netns, claim.ifindex),
            address: address(claim.address, claim.family),
            hardware: Hardware(claim.hardware),
            first_ms: self.since(times.first_ns),
            last_ms: self.since(times.last_ns),
            count: times.count,
        };
        // Packets that an earlier device received at this place belong to another network.
        let is_heard_here = |claim: &Claim| self.renewed.get(&claim.at).is_none_or(|since| claim.last_ms > *since);
        Ok(of_window.map(claim).filter(is_heard_here).collect())
    }
}
