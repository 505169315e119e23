//! The sockets of this host that the rules judge.

use std::time::Duration;

use super::evidence::DroppedPackets;
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

impl Listener {
    /// How much of what it dropped is no handshake of a client that wants to be served: a reset that comes instead of the
    /// last packet (HAProxy's checks end so), or a late FIN, is the listener's to drop, and counts.
    pub fn strays(&self, drops: &[DroppedPackets]) -> u64 {
        let ends = |drop: &&DroppedPackets| drop.kind.split(' ').any(|flag| flag == "RST" || flag == "FIN");
        let taken =
            |drop: &DroppedPackets| self.local.zip(drop.destination).is_some_and(|(local, at)| at.is_taken_by(&local));
        // Of several that listen at the same address the kernel names the one, if it names any.
        let of_another = |drop: &DroppedPackets| drop.owner.pid.is_some() && drop.owner.pid != self.owner.pid;
        let here = |drop: &&DroppedPackets| {
            drop.protocol == "tcp" && drop.owner.netns == self.owner.netns && taken(drop) && !of_another(drop)
        };
        drops.iter().filter(here).filter(ends).map(|drop| drop.count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drop_of(kind: &str, count: u64) -> DroppedPackets {
        let destination = Some(Endpoint { address: [10, 0, 0, 1].into(), port: 80 }.into());
        DroppedPackets { protocol: "tcp".into(), kind: kind.into(), destination, count, ..DroppedPackets::default() }
    }

    #[test]
    fn reset_and_fin_drops_count_as_strays() {
        let local = Some(Endpoint { address: [0, 0, 0, 0].into(), port: 80 });
        let listener = Listener { local, ..Listener::default() };
        assert_eq!(listener.strays(&[drop_of("RST ACK", 14), drop_of("FIN ACK", 2), drop_of("ACK", 5)]), 16);
        let elsewhere = Listener { owner: Owner { netns: Some(7), ..Owner::default() }, ..listener };
        assert_eq!(elsewhere.strays(&[drop_of("RST ACK", 14)]), 0);
    }
}
