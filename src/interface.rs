//! A network interface, as the daemon reads it and the gateway reports it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// A network interface as the kernel describes it.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct Interface {
    pub name: String,
    pub index: u32,
    /// `veth`, `bridge`, `wireguard` …; `ethernet` or `loopback` where the driver names no kind.
    pub kind: String,
    /// `up`, `down`, `lower_layer_down`, `unknown` (up, and the driver does not watch its carrier) …
    pub state: String,
    pub up: bool,
    pub mtu: u32,
    /// Whether frames start with an Ethernet header.
    pub ethernet: bool,
    /// Address and prefix length.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Megabits a second, where the driver knows.
    pub speed_mbps: Option<u64>,
    pub counters: Counters,
    pub qdisc: Option<Qdisc>,
    /// The number of the XDP program that it has (`bpftool prog show`).
    #[serde(default)]
    pub xdp_program: Option<u32>,
}

/// The traffic of an interface, from its driver's counters.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq)]
pub struct Counters {
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// The root queueing discipline of an interface.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct Qdisc {
    pub kind: String,
    pub backlog_bytes: u64,
    pub dropped: u64,
}
