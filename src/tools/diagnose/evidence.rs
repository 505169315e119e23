//! The input of the rules: the other tools' answers, reduced to what matters for a diagnosis. Plain data, so that a
//! rule is tested with a few literal rows.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    time::Duration,
};

use super::{finding::HostPort, gone::Silent, network::Network};
use crate::{
    answer::{Endpoint, Family, Owner},
    interface::Wire,
    tools::{
        profile_tcp::{Prompt, Service},
        trace_drops::Course,
    },
};

pub use super::queues::QueueCourse;
pub use super::receive_window::ReceiveWindow;
pub use super::resolvers::Resolvers;
pub use super::sockets::{Listener, Socket};
pub use crate::owner::Throttled;

/// Everything that was seen in one window.
#[derive(Default, Clone, Debug)]
pub struct Evidence {
    pub window: Duration,
    /// The daemon's own network namespace, of which the links and the counters are.
    pub netns: Option<u32>,
    /// The files of the network namespaces that have one, by inode.
    pub netns_files: HashMap<u32, String>,
    /// Of all network namespaces.
    pub network: Network,
    pub connections: Vec<Connection>,
    pub sockets: Vec<Socket>,
    pub listeners: Vec<Listener>,
    /// What each listener dropped, by its socket.
    pub dropped: BTreeMap<u64, u64>,
    /// Sockets of a program (its network namespace and name) that were in CLOSE_WAIT in the window and that it closed.
    pub closed_late: BTreeMap<(Option<u32>, Option<String>), u64>,
    /// The length of a jiffy, where readings of sockets show it.
    pub jiffy: Option<Duration>,
    /// The number of accept queue overflows, for network namespaces where it is known.
    pub overflows: BTreeMap<Option<u32>, u64>,
    /// From readings of sockets: connection by connection.
    pub remotes: Vec<TcpPath>,
    /// From the kernel's own samples and sums, short connections included; empty where that could not be asked.
    pub profiled: Vec<TcpPath>,
    /// How long servers took to reply …
    pub services: Vec<Service>,
    /// … and in the window before, if it is known.
    pub services_before: Vec<Service>,
    /// Why connections were reset.
    pub reasons: Vec<Reason>,
    /// The holders of connections in the window, by network namespace and ends.
    pub holders: BTreeMap<(Option<u32>, Endpoint, Endpoint), Owner>,
    pub resets: Vec<Reset>,
    /// Established connections without any packets from the peer.
    pub silent: Vec<Silent>,
    pub drops: Vec<DroppedPackets>,
    pub counters: Counters,
    pub queries: Vec<Query>,
    pub resolvers: Vec<Resolvers>,
    pub links: Vec<Link>,
    /// In every network namespace.
    pub queues: Vec<QueueCourse>,
    pub throttled: Vec<Throttled>,
    /// Entries that connection tracking could not insert, the most of any network namespace that has a process.
    pub clashes: u64,
    pub talkers: Vec<Talker>,
    /// Addresses of this host, in every network namespace that a socket or an interface showed.
    pub own_addresses: BTreeSet<IpAddr>,
    /// In which network namespaces such an address was seen. Several may have the same one.
    pub at_home: BTreeSet<(IpAddr, Option<u32>)>,
    /// A table of tracked connections is as good as full, in some network namespace.
    pub conntrack_is_full: bool,
}

/// The outcome of a connect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    #[default]
    Established,
    /// No answer yet, or none before the process gave up.
    Unanswered,
    TimedOut,
    /// It was established, and ended because the peer stopped answering.
    Lost,
    Refused,
    Unreachable,
    NoLocalPort,
    /// Anything else; it decides nothing.
    Other,
}

/// A TCP connection that opened, failed or closed in the window.
#[derive(Default, Clone, Debug)]
pub struct Connection {
    pub owner: Owner,
    pub outbound: bool,
    pub local: Option<Endpoint>,
    pub remote: Option<Endpoint>,
    pub outcome: Outcome,
    pub errno: Option<String>,
    /// From connect to its outcome, or until the window's end.
    pub waited: Duration,
    /// It began before the window, at an unknown time.
    pub before: bool,
    /// From connect to close, if both were seen.
    pub lived: Option<Duration>,
    pub retransmits: u64,
    /// Bytes that arrived there: of one that both ends have closed.
    pub arrived: u64,
}

/// TCP with one remote in the window.
#[derive(Default, Clone, Debug)]
pub struct TcpPath {
    pub owner: Owner,
    pub remote: Option<IpAddr>,
    pub port: Option<u16>,
    pub segments_out: u64,
    pub retransmits: u64,
    /// Of these, segments that had arrived.
    pub spurious: u64,
    /// Connections that do nothing but send a full segment again.
    pub stuck: u64,
    pub window: ReceiveWindow,
    /// Something came from there, all the same …
    pub hears: bool,
    /// … and full segments arrived there.
    pub passes_full: bool,
    pub rtt: Option<Rtt>,
    pub prompt: Prompt,
    /// Shares of the window in which senders waited for the receiver, for their own send buffer.
    pub receiver_share: f64,
    pub send_buffer_share: f64,
    pub tx_bits_per_second: f64,
}

/// Round trips as the kernel measured them.
#[derive(Default, Clone, Copy, Debug)]
pub struct Rtt {
    pub min_us: u64,
    pub p50_us: u64,
    pub p99_us: u64,
    pub samples: u64,
}

/// Resets of one kind at one pair of endpoints.
#[derive(Default, Clone, Debug)]
pub struct Reset {
    pub owner: Owner,
    pub local: Option<Endpoint>,
    pub remote: Option<Endpoint>,
    pub sent_by_us: bool,
    pub count: u64,
}

/// The known resets between two ends.
#[derive(Clone, Debug)]
pub struct Reason {
    pub netns: Option<u32>,
    pub local: Endpoint,
    pub remote: Endpoint,
    pub sent_by_us: bool,
    /// The kernel's name, and what it means.
    pub reason: Option<String>,
    pub explanation: Option<String>,
}

/// Packets that died for one reason at one place.
#[derive(Default, Clone, Debug)]
pub struct DroppedPackets {
    pub owner: Owner,
    /// The kernel's `drop_reason`.
    pub reason: String,
    /// The kernel's symbol.
    pub location: String,
    pub protocol: String,
    /// The flags of a TCP segment, the type of an ICMP message.
    pub kind: String,
    pub source: Option<HostPort>,
    pub destination: Option<HostPort>,
    pub interface: Option<String>,
    /// They were made on this host, in whichever network namespace, and not forwarded.
    pub sent_here: bool,
    /// The router that their route leads to.
    pub next_hop: Option<IpAddr>,
    /// The explanation of the drop, and whether it is ordinary operation.
    pub explanation: String,
    pub benign: bool,
    pub course: Course,
    /// The nftables chain that dropped them, if the kernel shows it.
    pub rule: Option<String>,
    pub count: u64,
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

/// Counters of the kernel that no packet shows, as they grew in the window.
#[derive(Default, Clone, Debug)]
pub struct Counters {
    pub listen_overflows: u64,
    pub listen_drops: u64,
    pub syn_cookies_sent: u64,
    pub conntrack_drops: u64,
    pub conntrack_insert_failed: u64,
    pub softnet_dropped: u64,
    pub softnet_time_squeeze: u64,
}

/// A DNS query.
#[derive(Default, Clone, Debug)]
pub struct Query {
    pub owner: Owner,
    pub server: Option<Endpoint>,
    pub name: String,
    /// `None` while unanswered.
    pub rcode: Option<String>,
    pub latency: Option<Duration>,
    /// Old enough to be called unanswered.
    pub unanswered: bool,
    /// Sent so often in vain before its answer came.
    pub lost: u64,
}

/// An interface of our network namespace.
#[derive(Default, Clone, Debug)]
pub struct Link {
    pub name: String,
    pub kind: String,
    pub speed_mbps: Option<u64>,
    pub half_duplex: bool,
    /// As it grew in the window.
    pub wire: Wire,
    /// Both ways.
    pub packets_per_second: f64,
    pub tx_bits_per_second: f64,
    /// As they grew in the window.
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
    pub qdisc: Option<String>,
    pub qdisc_dropped: u64,
    pub backlog_bytes: u64,
}

/// Somebody's share of the traffic.
#[derive(Default, Clone, Debug)]
pub struct Talker {
    pub owner: Owner,
    pub local: Option<Endpoint>,
    pub remote: Option<Endpoint>,
    pub rx_bits_per_second: f64,
    pub tx_bits_per_second: f64,
}

impl Evidence {
    /// Whether an address belongs to this host, as far as can be seen.
    pub fn is_ours(&self, address: &IpAddr) -> bool {
        address.is_loopback() || self.own_addresses.contains(address)
    }

    /// The TCP statistics per remote, as exact as possible.
    pub fn paths(&self) -> &[TcpPath] {
        if self.profiled.is_empty() { &self.remotes } else { &self.profiled }
    }
}

/// If one place in the kernel drops packets of too many flows, the other flows are one row without a name. That row
/// adds nothing to the others.
pub fn named(drops: Vec<DroppedPackets>) -> Vec<DroppedPackets> {
    let is_named = |row: &&DroppedPackets| row.source.is_some() || row.destination.is_some() || row.interface.is_some();
    let place = |row: &DroppedPackets| (row.reason.clone(), row.location.clone());
    let places: BTreeSet<_> = drops.iter().filter(is_named).map(place).collect();
    drops.into_iter().filter(|row| is_named(&row) || !places.contains(&place(row))).collect()
}

impl Connection {
    /// Told that the host cannot be reached, after as long as the kernel asks for a neighbour: three times a second. Over
    /// IPv4 a firewall or a router on the way says the same by ICMP, as late as it likes; there the SYN is seen to die.
    pub fn no_neighbor(&self) -> bool {
        const ASKED: Duration = Duration::from_millis(900);
        let over_ipv6 = self.remote.is_some_and(|remote| remote.family() == Family::Ipv6);
        over_ipv6 && self.errno.as_deref() == Some("EHOSTUNREACH") && (self.before || self.waited >= ASKED)
    }

    /// Given up unanswered after as long as a client that has another family to try waits (RFC 8305: 250 ms).
    pub fn lost_the_race(&self) -> bool {
        const HEAD_START: Duration = Duration::from_millis(200);
        self.outcome == Outcome::Unanswered && self.waited >= HEAD_START
    }

    /// A SYN without an answer for longer than a slow path or a lost packet explains.
    pub fn hangs(&self) -> bool {
        /// The first retransmission is after 1 s; a round trip around the world takes 0.3 s.
        const NO_ANSWER: Duration = Duration::from_millis(900);
        self.outcome == Outcome::TimedOut
            || (self.outcome == Outcome::Unanswered && (self.retransmits > 0 || self.waited >= NO_ANSWER))
    }
}

/// The same owner whichever of its processes it was: what rows are grouped by.
pub fn program(owner: &Owner) -> Owner {
    Owner { pid: None, ..owner.clone() }
}

/// Rows in groups of one key, the largest group first.
pub fn groups<'a, T, K: Ord>(rows: impl IntoIterator<Item = &'a T>, key: impl Fn(&T) -> K) -> Vec<(K, Vec<&'a T>)> {
    let mut found = std::collections::BTreeMap::<K, Vec<&T>>::new();
    for row in rows {
        found.entry(key(row)).or_default().push(row);
    }
    let mut found: Vec<_> = found.into_iter().collect();
    found.sort_by_key(|(_, rows)| std::cmp::Reverse(rows.len()));
    found
}

/// The owner of a group: with its pid, if all have the same. Unknown owners do not count, unless there are no others.
pub fn common<'a>(owners: impl IntoIterator<Item = &'a Owner>) -> Owner {
    let (known, unknown): (Vec<_>, Vec<_>) = owners.into_iter().partition(|owner| is_known(owner));
    let Some(first) = known.first().or(unknown.first()) else { return Owner::default() };
    if known.iter().all(|owner| owner.pid == first.pid) { (*first).clone() } else { program(first) }
}

/// Whether there is a process, and not only its network namespace.
pub fn is_known(owner: &Owner) -> bool {
    owner.pid.is_some() || owner.process.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drop_of(kind: &str, count: u64) -> DroppedPackets {
        let destination = Some(Endpoint { address: [10, 0, 0, 1].into(), port: 80 }.into());
        DroppedPackets { protocol: "tcp".into(), kind: kind.into(), destination, count, ..DroppedPackets::default() }
    }

    #[test]
    fn merged_drops_are_listed_only_without_exact_rows() {
        let rest = DroppedPackets { destination: None, ..drop_of("", 9) };
        assert_eq!(named(vec![drop_of("SYN", 3), rest.clone()]).len(), 1);
        assert_eq!(named(vec![rest]).len(), 1, "all that is known");
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
