//! The sockets of this host that the rules judge.

use std::time::Duration;

use crate::{
    answer::{Endpoint, Owner},
    tools::snapshot_sockets::State,
};

/// A socket that is open at the window's end.
#[derive(Default, Clone, Debug)]
pub struct Socket {
    pub owner: Owner,
    pub tcp: bool,
    pub state: Option<State>,
    pub local: Option<Endpoint>,
    pub remote: Option<Endpoint>,
    pub send_queue_bytes: u64,
    pub receive_queue_bytes: u64,
    /// Segments sent again, since it opened.
    pub retransmits: u64,
    /// Of TCP, since it opened.
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    /// The other end opened it.
    pub inbound: bool,
    /// Jiffies since the last segment came, a FIN included, …
    pub silent_jiffies: Option<u32>,
    /// … and that as a time, once the length of a jiffy is known.
    pub silence: Option<Duration>,
}

/// A listening TCP socket.
#[derive(Default, Clone, Debug)]
pub struct Listener {
    /// Names the socket: others may listen at the same address (SO_REUSEPORT, or another network namespace).
    pub socket: u64,
    pub owner: Owner,
    pub local: Option<Endpoint>,
    pub accept_queue: u64,
    pub accept_queue_max: u64,
    /// The longest that any reading showed.
    pub accept_queue_peak: u64,
    /// Connections dropped in the window.
    pub dropped: u64,
    /// Handshakes that are not complete.
    pub half_open: u64,
    /// In which share of the readings there were at least as many of them as the listener takes.
    pub half_open_share: f64,
}
