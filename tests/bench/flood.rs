//! All tools at once: the total cost of their windows, with ordinary traffic and with a scan.

use std::{
    cell::{Cell, RefCell},
    ffi::CStr,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::OwnedFd,
};

use netmon_mcp::daemon::stamping::Stamping;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with};
use serde_json::{Value, json};

use crate::{
    Figure, cost,
    floor::{Empty, TRACEPOINTS_OF_DROPS, TRACEPOINTS_OF_LATENCY, TRACEPOINTS_OF_PROFILE},
    harness::*,
    median,
    workload::Load,
};

/// The measuring tools, from `tools/list`.
pub fn windows(daemon: &Daemon) -> Vec<(String, Value)> {
    let mut client = Client::connect(&daemon.socket);
    let tools = client.request("tools/list", json!({}))["result"]["tools"].clone();
    let names = tools.as_array().unwrap().iter().map(|tool| tool["name"].as_str().unwrap().to_owned());
    let watches =
        |name: &String| name.starts_with("trace_") || name.starts_with("top_") || name.starts_with("profile_");
    names.filter(watches).map(|name| (name, json!({"duration_ms": 60_000}))).collect()
}

/// Every measuring tool at once.
pub fn together() -> Vec<Figure> {
    let (pair, daemon) = (Pair::new(), Daemon::start());
    let windows = windows(&daemon);
    let windows: Vec<_> = windows.iter().map(|(name, arguments)| (name.as_str(), arguments.clone())).collect();
    let name = format!("TCP request/response, CPU, {} tools open / none", windows.len());
    vec![cost::ratio(&name, &daemon, &windows, Load::tcp_requests(&pair), (1.10, "<= 1.10"))]
}

/// A scan: SYNs from new ports to closed ports. The host answers each with a reset that is dropped. Every packet is a
/// new flow, and every packet is dropped.
pub struct Scan {
    socket: OwnedFd,
    next: Cell<u32>,
}

impl Scan {
    /// Packets per SYN.
    pub const PACKETS: f64 = 2.0;

    pub fn new(pair: &Pair) -> Scan {
        // This socket sends whole packets and receives nothing.
        let raw = || {
            let (family, kind) = (AddressFamily::INET, SocketType::RAW);
            socket_with(family, kind, SocketFlags::CLOEXEC, Some(ipproto::RAW)).unwrap()
        };
        Scan { socket: pair.a.enter(raw), next: Cell::new(0) }
    }

    pub fn send(&self) {
        let n = self.next.replace(self.next.get() + 1);
        let (from, to): (Ipv4Addr, Ipv4Addr) = (A.parse().unwrap(), B.parse().unwrap());
        // Version and header length, length, the protocol and 64 hops; the kernel fills in what is 0.
        let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0];
        packet.extend(from.octets().into_iter().chain(to.octets()));
        let pseudo = packet[12..20].chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).chain([6, 20]);
        let ports = [(1024 + n % 60_000) as u16, 2 + (n / 60_000 % 1_000) as u16];
        // Ports, sequence, acknowledgement, 5 words of header with SYN, window; then checksum and urgent pointer.
        let words = [ports[0], ports[1], 0, n as u16, 0, 0, 0x5002, 1024, 0, 0];
        let sum: u32 = pseudo.chain(words).map(u32::from).sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        let checksum = !((folded & 0xffff) + (folded >> 16)) as u16;
        packet.extend(words.iter().flat_map(|word| word.to_be_bytes()));
        packet[36..38].copy_from_slice(&checksum.to_be_bytes());
        sendto(&self.socket, &packet, SendFlags::empty(), &SocketAddrV4::new(to, 0)).unwrap();
    }
}

/// The extra cost of a scan packet with every tool measuring.
pub fn scan() -> Vec<Figure> {
    let (pair, daemon) = (Pair::new(), Daemon::start());
    let windows = windows(&daemon);
    let windows: Vec<_> = windows.iter().map(|(name, arguments)| (name.as_str(), arguments.clone())).collect();
    let mut figures: Vec<_> =
        windows.iter().map(|window| scanned(&pair, &daemon, std::slice::from_ref(window))).collect();
    figures.push(scanned(&pair, &daemon, &windows));
    let floor = cost::turns(cost::ROUNDS, &mut Load::Scan(Scan::new(&pair)), Empty::all, drop);
    figures.push(more("an empty program at their tracepoints", floor, "-"));
    let stamps = || (Empty::all(), Stamping::begin().unwrap());
    let stamped = cost::turns(cost::ROUNDS, &mut Load::Scan(Scan::new(&pair)), stamps, drop);
    figures.push(more("an empty program at their tracepoints, and stamps", stamped, "-"));
    let drops = ("trace_drops", TRACEPOINTS_OF_DROPS);
    let resets = ("profile_tcp", TRACEPOINTS_OF_PROFILE);
    let latency = ("trace_latency", TRACEPOINTS_OF_LATENCY);
    figures.extend([&[drops][..], &[drops, resets], &[drops, resets, latency]].map(|some| least(&pair, &daemon, some)));
    figures
}

/// The extra cost with some of the tools, and empty programs at the tracepoints of the others.
fn least(pair: &Pair, daemon: &Daemon, tools: &[(&str, &[&CStr])]) -> Figure {
    let windows: Vec<_> = tools.iter().map(|(tool, _)| (*tool, json!({"duration_ms": 60_000}))).collect();
    let theirs: Vec<_> = tools.iter().flat_map(|(_, tracepoints)| *tracepoints).copied().collect();
    let client = RefCell::new(Client::connect(&daemon.socket));
    let on = || (cost::open(&mut client.borrow_mut(), &windows), Empty::all_but(&theirs));
    let off = |(ids, _)| cost::close(&mut client.borrow_mut(), &windows, ids);
    let turns = cost::turns(cost::ROUNDS, &mut Load::Scan(Scan::new(pair)), on, off);
    let names: Vec<_> = tools.iter().map(|(tool, _)| *tool).collect();
    more(&format!("{}, and empty programs at the other tracepoints", names.join(" and ")), turns, "-")
}

fn scanned(pair: &Pair, daemon: &Daemon, windows: &[(&str, Value)]) -> Figure {
    let client = RefCell::new(Client::connect(&daemon.socket));
    let on = || cost::open(&mut client.borrow_mut(), windows);
    let off = |ids| cost::close(&mut client.borrow_mut(), windows, ids);
    let turns = cost::turns(cost::ROUNDS, &mut Load::Scan(Scan::new(pair)), on, off);
    let names = match windows {
        [(name, _)] => name,
        _ => "all of them",
    };
    more(names, turns, "<= 150 ns")
}

/// The extra cost per packet, from turns with and without.
fn more(what: &str, turns: Vec<(f64, f64)>, reach: &'static str) -> Figure {
    let mut more: Vec<f64> = turns.into_iter().map(|(with, without)| (with - without) / Scan::PACKETS).collect();
    let (middle, least, most) = median(&mut more);
    Figure {
        name: format!("a packet of a SYN scan, {what}"),
        measured: format!("{middle:+.0} ns ({least:.0}..{most:.0})"),
        reach,
        reached: reach == "-" || middle <= 150.0,
    }
}
