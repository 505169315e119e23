//! Packets of an interface, counted in the kernel.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use libbpf_rs::MapHandle;

use super::{Count, Mode, Sample, skel};
use crate::{
    bpf::{self, Direction, Held, Link, Loader, Pod, Program, Shared, lock},
    limits,
    netlink::{self, Interface},
    window::{Window, monotonic_ns},
    wire::Error,
};
use skel::types;

// SAFETY: integers and arrays of integers.
unsafe impl Pod for types::counters {}

/// Loopback has index 1 in every network namespace.
const LOOPBACK: u32 = 1;
/// How often a window looks whether its interface is still there.
const LOOK_EVERY: Duration = Duration::from_millis(200);

pub struct Incoming {
    rx: Program,
    tx: Program,
    xdp: Program,
    counts: MapHandle,
    links: Arc<Shared<(u32, u8)>>,
    /// Interface to slot, and how many windows look at it.
    slots: Arc<Mutex<BTreeMap<u32, (u32, usize)>>>,
}

/// A slot of the kernel's table, given back when dropped.
struct Slot {
    index: u32,
    slot: u32,
    counts: MapHandle,
    slots: Arc<Mutex<BTreeMap<u32, (u32, usize)>>>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut slots = lock(&self.slots);
        if let Some((_, windows)) = slots.get_mut(&self.index) {
            *windows -= 1;
            if *windows == 0 {
                slots.remove(&self.index);
                let _ = bpf::set_on_every_cpu(&self.counts, self.slot, &types::counters::default());
            }
        }
    }
}

impl Incoming {
    pub fn new(loader: &mut Loader, skel: &skel::NetworkMonitorSkel) -> Result<Self, Error> {
        Ok(Incoming {
            rx: loader.program(&skel.progs.count_rx)?,
            tx: loader.program(&skel.progs.count_tx)?,
            xdp: loader.program(&skel.progs.count_xdp)?,
            counts: loader.map(&skel.maps.counts)?,
            links: Shared::new(),
            slots: Arc::default(),
        })
    }

    /// On loopback, which has no slot: nothing is counted.
    pub fn rehearse(&self) -> io::Result<()> {
        self.rx.tc(LOOPBACK, Direction::Ingress).map(drop)
    }

    pub fn sample(&self, name: Option<&str>, mode: Mode, duration: Duration, window: &Window) -> Result<Sample, Error> {
        let interface = match name {
            Some(name) => netlink::interface_named(name)?,
            None => primary()?,
        };
        if !interface.up {
            return Err(Error::InvalidInput(format!("{} is down, so nothing can arrive; `ip link set {0} up` brings it up", interface.name)));
        }
        let slot = self.slot(&interface)?;
        let held = self.attach(&interface, mode)?;
        let (before, from) = (self.read(slot.slot)?, monotonic_ns());
        let opened = window.opened();
        self.watch(&interface, opened, duration, window)?;
        let (after, to) = (self.read(slot.slot)?, monotonic_ns());
        window.keep(held);
        window.keep(slot);
        let (rx, tx) = match mode {
            Mode::Tcx => (difference(&after.rx, &before.rx), Some(difference(&after.tx, &before.tx))),
            Mode::Xdp | Mode::XdpNative => (difference(&after.xdp, &before.xdp), None),
        };
        let outer = mode == Mode::Tcx && gives_outer_headers(&interface.kind);
        Ok(Sample::Incoming { interface: interface.name, rx, tx, window_ns: to - from, outer })
    }

    /// Waits, and notices when the interface goes away.
    fn watch(&self, interface: &Interface, opened: Instant, duration: Duration, window: &Window) -> Result<(), Error> {
        let end = window.end(duration).max(opened + duration.mul_f64(0.9));
        loop {
            let now = Instant::now();
            if netlink::name(interface.index).is_none() {
                let name = &interface.name;
                let after = opened.elapsed().as_millis();
                return Err(Error::Gone(format!("{name} disappeared {after} ms into the measurement; `snapshot_interfaces` lists what is there now")));
            }
            if now >= end {
                return Ok(());
            }
            if !window.sleep_until(end.min(now + LOOK_EVERY))? {
                return Ok(());
            }
        }
    }

    fn attach(&self, interface: &Interface, mode: Mode) -> Result<Held<(u32, u8)>, Error> {
        let index = interface.index;
        let refused = |e: io::Error| Error::Kernel(format!("{} cannot be measured: {e}", interface.name));
        self.links.hold((index, mode as u8), || match mode {
            Mode::Tcx => both(|| self.rx.tc(index, Direction::Ingress), || self.tx.tc(index, Direction::Egress)).map_err(refused),
            Mode::Xdp | Mode::XdpNative => {
                self.xdp.xdp(index, mode == Mode::XdpNative).map(|link| vec![link]).map_err(|e| xdp_refused(interface, mode, &e))
            }
        })
    }

    /// The slot of an interface: within 8 places of `ifindex % 64`, where the program looks.
    fn slot(&self, interface: &Interface) -> Result<Slot, Error> {
        let index = interface.index;
        let mut slots = lock(&self.slots);
        let slot = match slots.get_mut(&index) {
            Some((slot, windows)) => {
                *windows += 1;
                *slot
            }
            None => {
                let taken = |slot: &u32| slots.values().any(|(taken, _)| taken == slot);
                let slot = (0..8).map(|i| (index + i) % limits::MEASURED_INTERFACES).find(|slot| !taken(slot));
                let slot = slot.ok_or_else(|| Error::Busy("too many interfaces are being measured; try again when a window has ended".into()))?;
                let link_header_bytes = if interface.ethernet { 14 } else { 0 };
                let value = types::counters { ifindex: index, link_header_bytes, ..types::counters::default() };
                bpf::set_on_every_cpu(&self.counts, slot, &value)?;
                slots.insert(index, (slot, 1));
                slot
            }
        };
        Ok(Slot { index, slot, counts: MapHandle::try_from(&self.counts)?, slots: Arc::clone(&self.slots) })
    }

    fn read(&self, slot: u32) -> Result<types::counters, Error> {
        let cpus = bpf::per_cpu::<types::counters>(&self.counts, slot)?;
        Ok(cpus.into_iter().fold(types::counters::default(), |sum, cpu| types::counters {
            rx: add(sum.rx, &cpu.rx),
            tx: add(sum.tx, &cpu.tx),
            xdp: add(sum.xdp, &cpu.xdp),
            ..sum
        }))
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
            "{name} has an XDP program of someone else, and an interface holds only one; leave `mode` out: the default, tcx, counts beside it"
        ),
        Some(libc::EOPNOTSUPP | libc::EINVAL) if mode == Mode::XdpNative => {
            format!("the driver of {name} has no native XDP (or not with its present MTU and offloads); use mode=xdp, or leave `mode` out")
        }
        _ => format!("XDP could not be attached to {name}: {e}; leave `mode` out to count at tcx"),
    })
}

fn primary() -> Result<Interface, Error> {
    let all = netlink::interfaces()?;
    let index = netlink::primary(&all, &netlink::default_routes()?);
    all.into_iter()
        .find(|i| Some(i.index) == index)
        .ok_or_else(|| Error::InvalidInput("no interface is up here; name one as `interface` when there is".into()))
}

fn add(sum: types::count, cpu: &types::count) -> types::count {
    types::count {
        bytes: sum.bytes + cpu.bytes,
        packets: std::array::from_fn(|i| sum.packets[i] + cpu.packets[i]),
    }
}

fn difference(after: &types::count, before: &types::count) -> Count {
    let packets @ [tcp, udp, icmp, arp, other] = std::array::from_fn(|i| after.packets[i] - before.packets[i]);
    Count { packets: packets.iter().sum(), bytes: after.bytes - before.bytes, tcp, udp, icmp, arp, other }
}
