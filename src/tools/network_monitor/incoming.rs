//! Packets of an interface, counted in the kernel.

use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use libbpf_rs::MapHandle;

use super::{Count, Mode, NetworkMonitor, Sample, Tool, skel};
use crate::{
    daemon::{
        kernel::{self, Direction, Link, Loader, Program},
        netlink,
        session::Session,
        shared::{Held, Shared},
        window::{Window, monotonic_ns},
    },
    interface::Interface,
    limits,
    sync::lock,
    wire::Error,
};
use skel::types;

kernel::pod!(types::counters);

/// How often a window looks whether its interface is still there.
const LOOK_EVERY: Duration = Duration::from_millis(200);

pub struct Incoming {
    /// At tc: what arrives and what leaves; or why this kernel does not load it.
    tc: Result<[Program; 2], String>,
    xdp: Result<Program, String>,
    /// The headers inside of a tunnel's super-packets are seen.
    tunnels: bool,
    counts: MapHandle,
    links: Arc<Shared<(u32, u8)>>,
    /// By interface.
    slots: Arc<Shared<u32, Slot>>,
    /// The slots that interfaces have.
    taken: Arc<Mutex<BTreeSet<u32>>>,
}

/// A slot of the kernel's table, given back when dropped.
struct Slot {
    slot: u32,
    counts: MapHandle,
    taken: Arc<Mutex<BTreeSet<u32>>>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let _ = kernel::set_on_every_cpu(&self.counts, self.slot, &types::counters::default());
        lock(&self.taken).remove(&self.slot);
    }
}

impl Incoming {
    pub fn new(loader: &mut Loader, skel: &skel::NetworkMonitorSkel, tunnels: bool) -> Result<Self, Error> {
        Ok(Incoming {
            tc: match loader.refused("count_rx") {
                Some(reason) => Err(reason),
                None => Ok([loader.program(&skel.progs.count_rx)?, loader.program(&skel.progs.count_tx)?]),
            },
            xdp: match loader.refused("count_xdp") {
                Some(reason) => Err(reason),
                None => Ok(loader.program(&skel.progs.count_xdp)?),
            },
            tunnels,
            counts: loader.map(&skel.maps.counts)?,
            links: Shared::new(),
            slots: Shared::new(),
            taken: Arc::default(),
        })
    }

    pub fn open(&self, name: Option<&str>, mode: Mode) -> Result<Packets<'_>, Error> {
        let interface = match name {
            Some(name) => netlink::interface_named(name)?,
            None => primary()?,
        };
        if !interface.up {
            return Err(Error::InvalidInput(format!("interface {} is down: run `ip link set {0} up`", interface.name)));
        }
        let slot = self.slots.hold(interface.index, || self.slot(&interface))?;
        let number = slot.with(|slot| slot.slot);
        let held = (self.attach(&interface, mode)?, slot);
        let (before, since_ns) = (self.read(number)?, monotonic_ns());
        Ok(Packets { incoming: self, interface, mode, slot: number, _held: held, before, since_ns })
    }

    fn attach(&self, interface: &Interface, mode: Mode) -> Result<Held<(u32, u8)>, Error> {
        let index = interface.index;
        let refused = |e: io::Error| Error::Kernel(format!("cannot measure {}: {e}", interface.name));
        let unavailable = |reason: &String| {
            let reason = format!("operation=incoming with mode={} needs {reason}", mode.name());
            Error::Unavailable { tool: NetworkMonitor::NAME.into(), reason }
        };
        self.links.hold((index, mode as u8), || match mode {
            Mode::Tcx => {
                let [rx, tx] = self.tc.as_ref().map_err(unavailable)?;
                both(|| rx.tc(index, Direction::Ingress), || tx.tc(index, Direction::Egress)).map_err(refused)
            }
            Mode::Xdp | Mode::XdpNative => {
                let xdp = self.xdp.as_ref().map_err(unavailable)?;
                xdp.xdp(index, mode == Mode::XdpNative)
                    .map(|link| vec![link])
                    .map_err(|e| xdp_refused(interface, mode, &e))
            }
        })
    }

    /// A slot for an interface: within the places from `ifindex % SLOTS` on at which the program looks.
    fn slot(&self, interface: &Interface) -> Result<Slot, Error> {
        let index = interface.index;
        let mut taken = lock(&self.taken);
        let slot = (0..limits::MEASURED_PROBES)
            .map(|i| (index + i) % limits::MEASURED_INTERFACES)
            .find(|slot| !taken.contains(slot));
        let slot = slot.ok_or_else(|| {
            Error::Busy("limit of simultaneous interfaces reached; try again when a window has ended".into())
        })?;
        let counts = MapHandle::try_from(&self.counts)?;
        let link_header_bytes = if interface.ethernet { 14 } else { 0 };
        let value = types::counters { ifindex: index, link_header_bytes, ..types::counters::default() };
        kernel::set_on_every_cpu(&self.counts, slot, &value)?;
        taken.insert(slot);
        Ok(Slot { slot, counts, taken: Arc::clone(&self.taken) })
    }

    fn read(&self, slot: u32) -> Result<types::counters, Error> {
        let cpus = kernel::per_cpu::<types::counters>(&self.counts, slot)?;
        Ok(cpus.into_iter().fold(types::counters::default(), |sum, cpu| types::counters {
            rx: add(sum.rx, &cpu.rx),
            tx: add(sum.tx, &cpu.tx),
            xdp: add(sum.xdp, &cpu.xdp),
            ..sum
        }))
    }
}

/// The packets of one interface.
pub struct Packets<'a> {
    incoming: &'a Incoming,
    interface: Interface,
    mode: Mode,
    slot: u32,
    /// The links are dropped before the slot.
    _held: (Held<(u32, u8)>, Held<u32, Slot>),
    /// At the last reading, and when that was.
    before: types::counters,
    since_ns: u64,
}

impl Packets<'_> {
    /// Whether the interface has an XDP program that is not ours.
    fn has_other_xdp(&self) -> Result<bool, Error> {
        let ours = match &self.incoming.xdp {
            Ok(program) => Some(program.id()?),
            Err(_) => None,
        };
        let all = netlink::interfaces().unwrap_or_default(); // a list that keeps changing is not worth the answer
        let program = all.iter().find(|i| i.index == self.interface.index).and_then(|i| i.xdp_program);
        Ok(program.is_some() && program != ours)
    }

    fn is_gone(&self) -> Result<(), Error> {
        if netlink::name(self.interface.index).is_some() {
            return Ok(());
        }
        let (name, after) = (&self.interface.name, (monotonic_ns() - self.since_ns) / 1_000_000);
        Err(Error::Gone(format!(
            "{name} disappeared after {after} ms; `snapshot_interfaces` lists the current interfaces"
        )))
    }
}

impl Session<Sample> for Packets<'_> {
    /// Notices when the interface goes away.
    fn watch(&mut self, window: &Window, end: Instant) -> Result<bool, Error> {
        loop {
            self.is_gone()?;
            let now = Instant::now();
            if now >= end {
                return Ok(true);
            }
            if !window.sleep_until(end.min(now + LOOK_EVERY))? {
                return Ok(false);
            }
        }
    }

    fn read(&mut self, _: bool) -> Result<Sample, Error> {
        let (after, to) = (self.incoming.read(self.slot)?, monotonic_ns());
        let before = std::mem::replace(&mut self.before, after);
        let window_ns = to - std::mem::replace(&mut self.since_ns, to);
        let (rx, tx) = match self.mode {
            Mode::Tcx => (difference(&after.rx, &before.rx), Some(difference(&after.tx, &before.tx))),
            Mode::Xdp | Mode::XdpNative => (difference(&after.xdp, &before.xdp), None),
        };
        let outer = self.mode == Mode::Tcx && gives_outer_headers(&self.interface.kind);
        let blind = self.mode == Mode::Tcx && !self.incoming.tunnels;
        let after_xdp = self.mode == Mode::Tcx && self.has_other_xdp()?;
        Ok(Sample::Incoming { interface: self.interface.name.clone(), rx, tx, window_ns, outer, blind, after_xdp })
    }
}

/// Both links at once: each waits for an RCU grace period, and they share it.
fn both(rx: impl FnOnce() -> io::Result<Link> + Send, tx: impl FnOnce() -> io::Result<Link>) -> io::Result<Vec<Link>> {
    thread::scope(|scope| {
        let rx = scope.spawn(rx);
        let tx = tx()?;
        let rx = rx.join().map_err(|_| io::Error::other("attaching panicked"))??;
        Ok(vec![rx, tx])
    })
}

/// Before Linux 5.14 the layer 3 tunnels left the link-layer header where the outer IP header is (`skb_reset_mac_header`
/// in their receive functions mended it), and a program at tc begins to read there.
fn gives_outer_headers(kind: &str) -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    version < (5, 14) && ["ipip", "sit", "ip6tnl", "gre", "ip6gre"].contains(&kind)
}

fn xdp_refused(interface: &Interface, mode: Mode, e: &io::Error) -> Error {
    let name = &interface.name;
    Error::Kernel(match e.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => format!(
            "{name} already has an XDP program, and an interface can have only one: leave out `mode`, tcx works \
                beside it"
        ),
        Some(libc::EOPNOTSUPP | libc::EINVAL) if mode == Mode::XdpNative => {
            format!(
                "the driver of {name} does not support native XDP (or not with the current MTU and offloads): use \
                    mode=xdp, or leave out `mode`"
            )
        }
        _ => format!("attaching XDP to {name} failed: {e}; leave out `mode` to count with tcx"),
    })
}

fn primary() -> Result<Interface, Error> {
    let all = netlink::interfaces()?;
    let index = netlink::primary(&all, &netlink::default_routes()?);
    all.into_iter()
        .find(|i| Some(i.index) == index)
        .ok_or_else(|| Error::Gone("no interface is up: bring one up, or set `interface`".into()))
}

fn add(sum: types::count, cpu: &types::count) -> types::count {
    types::count { bytes: sum.bytes + cpu.bytes, packets: std::array::from_fn(|i| sum.packets[i] + cpu.packets[i]) }
}

fn difference(after: &types::count, before: &types::count) -> Count {
    let packets @ [tcp, udp, icmp, arp, other] = std::array::from_fn(|i| after.packets[i] - before.packets[i]);
    Count { packets: packets.iter().sum(), bytes: after.bytes - before.bytes, tcp, udp, icmp, arp, other }
}
