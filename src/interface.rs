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
    /// It sends and receives by turns.
    #[serde(default)]
    pub half_duplex: bool,
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
    #[serde(default)]
    pub wire: Wire,
}

/// What its driver says of bad frames and of a medium that is not free.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq)]
pub struct Wire {
    /// Frames with a bad checksum, a bad end, a bad length.
    pub rx_crc_errors: u64,
    pub rx_frame_errors: u64,
    pub rx_length_errors: u64,
    /// Frames that found no room in the device's ring.
    pub rx_ring_errors: u64,
    /// Frames that were sent while the carrier was away, or too late, or given up.
    pub tx_carrier_errors: u64,
    pub tx_aborted_errors: u64,
    pub tx_window_errors: u64,
    pub collisions: u64,
}

impl Wire {
    /// What was counted since.
    pub fn since(&self, before: &Wire) -> Wire {
        let grown = |of: fn(&Wire) -> u64| of(self).saturating_sub(of(before));
        Wire {
            rx_crc_errors: grown(|wire| wire.rx_crc_errors),
            rx_frame_errors: grown(|wire| wire.rx_frame_errors),
            rx_length_errors: grown(|wire| wire.rx_length_errors),
            rx_ring_errors: grown(|wire| wire.rx_ring_errors),
            tx_carrier_errors: grown(|wire| wire.tx_carrier_errors),
            tx_aborted_errors: grown(|wire| wire.tx_aborted_errors),
            tx_window_errors: grown(|wire| wire.tx_window_errors),
            collisions: grown(|wire| wire.collisions),
        }
    }
}

/// The root queueing discipline of an interface.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct Qdisc {
    pub kind: String,
    pub backlog_bytes: u64,
    pub dropped: u64,
}
