//! From counters of sockets to groups that add up: what each socket moved in the window, counted once.

// Cookies are the kernel's: nobody chooses them so that they collide, and there may be 100,000.
use foldhash::{HashMap, HashMapExt, HashSet, HashSetExt};

use super::{Bytes, Gaps, Group, GroupBy, Input, Remote, Sample, kernel::bytes, skel::types::socket_bytes};
use crate::{
    answer::{Endpoint, Protocols, Transport},
    attribution::{self, Process},
    largest::Largest,
    limits,
};

const TCP: u8 = libc::IPPROTO_TCP as u8;
const UDP: u8 = libc::IPPROTO_UDP as u8;

/// A process that holds a socket; pid 0 is nobody.
type Holder = (u32, [u8; 16]);

fn holder(socket: &socket_bytes) -> Holder {
    (socket.pid, socket.comm.map(|c| c as u8))
}

/// The counters of TCP sockets when the window began, by cookie.
#[derive(Default)]
pub struct Before(HashMap<u64, (Bytes, Holder)>);

impl Before {
    /// Of a socket with several holders the first counts.
    pub fn add(&mut self, socket: &socket_bytes) {
        if socket.protocol == TCP {
            self.0.entry(socket.cookie).or_insert_with(|| (bytes(&socket.traffic), holder(socket)));
        }
    }
}

/// What makes a group.
#[derive(PartialEq, Eq, Hash)]
enum Key {
    Process(u32),
    /// The cgroup of a socket whose process is not known.
    Unowned(u64),
    Socket(u64),
    Remote([u8; 16]),
    Cgroup(u64),
    Netns(u32),
    Port(u16),
}

/// What the sockets of a group have in common, and what they moved.
struct Sum {
    holder: Option<Holder>,
    cgroup: Option<u64>,
    netns: Option<u32>,
    protocol: Option<u8>,
    local: ([u8; 16], u16),
    remote: [u8; 16],
    remote_port: Option<u16>,
    port: u16,
    bytes: Bytes,
    connections: u64,
}

pub struct Ledger<'a> {
    input: &'a Input,
    before: Before,
    /// TCP sockets that were read at the window's end.
    seen: HashSet<u64>,
    /// UDP sockets that are open at the window's end: who holds them, what they are connected to.
    udp_open: HashMap<u64, socket_bytes>,
    groups: HashMap<Key, Sum>,
    total: Bytes,
    older: u64,
    own_netns: u32,
    other_netns: bool,
}

impl<'a> Ledger<'a> {
    pub fn new(input: &'a Input, before: Before) -> Self {
        Ledger {
            input,
            before,
            seen: HashSet::new(),
            udp_open: HashMap::new(),
            groups: HashMap::new(),
            total: Bytes::default(),
            older: 0,
            own_netns: attribution::own_netns(),
            other_netns: false,
        }
    }

    /// A socket that is open. It may come several times, the holder that it is attributed to first.
    pub fn open(&mut self, socket: &socket_bytes) {
        if socket.protocol == UDP {
            self.udp_open.entry(socket.cookie).or_insert(*socket);
        } else if self.input.protocol != Protocols::Udp && self.seen.insert(socket.cookie) {
            self.tcp(socket);
        }
    }

    /// A TCP socket that closed in the window. If a process still holds it, it was counted as open. Of one that was
    /// opened before the window, and not read when that began, it is not known what it has moved since.
    pub fn closed(&mut self, socket: &socket_bytes, is_new: bool) {
        if !self.seen.insert(socket.cookie) {
            return;
        }
        if is_new || self.before.0.contains_key(&socket.cookie) {
            self.tcp(socket);
        } else {
            self.older += 1;
        }
    }

    fn tcp(&mut self, socket: &socket_bytes) {
        self.other_netns |= socket.netns != self.own_netns;
        let now = bytes(&socket.traffic);
        let (before, known) = self.before.0.get(&socket.cookie).copied().unwrap_or_default();
        // A socket that was disconnected and connected again starts at 0.
        let (rx, tx) = (now.rx_bytes.checked_sub(before.rx_bytes), now.tx_bytes.checked_sub(before.tx_bytes));
        let moved = match (rx, tx) {
            (Some(rx_bytes), Some(tx_bytes)) => Bytes { rx_bytes, tx_bytes },
            _ => now,
        };
        let holder = if known.0 != 0 && socket.pid == 0 { known } else { holder(socket) };
        self.add(socket, holder, moved);
    }

    /// A UDP socket, open or not.
    pub fn udp(&mut self, socket: &socket_bytes, moved: Bytes) {
        match self.udp_open.get(&socket.cookie).copied() {
            // It may have been connected since it was first seen.
            Some(open) => self.add(&socket_bytes { endpoints: open.endpoints, ..*socket }, holder(&open), moved),
            None => self.add(socket, holder(socket), moved),
        }
    }

    /// Bytes of sockets that there was no room for; a question about some of them cannot count them.
    pub fn untracked(&mut self, moved: Bytes) {
        if self.input.filter().is_any() {
            self.total += moved;
        }
    }

    fn add(&mut self, socket: &socket_bytes, holder: Holder, moved: Bytes) {
        let (filter, e) = (self.input.filter(), &socket.endpoints);
        let wanted = filter.owner(holder.0, &holder.1) && filter.ends(e.remote, [e.local_port, e.remote_port]);
        if moved == Bytes::default() || !wanted {
            return;
        }
        self.total += moved;
        let sum = Sum::new(socket, holder);
        let group = self.groups.entry(self.key(socket, holder.0)).or_insert(sum);
        group.add(socket, holder, moved);
    }

    fn key(&self, socket: &socket_bytes, pid: u32) -> Key {
        match self.input.group_by {
            GroupBy::Process if pid == 0 => Key::Unowned(socket.cgroup),
            GroupBy::Process => Key::Process(pid),
            GroupBy::Connection => Key::Socket(socket.cookie),
            GroupBy::Remote => Key::Remote(socket.endpoints.remote),
            GroupBy::Unit | GroupBy::Container => Key::Cgroup(socket.cgroup),
            GroupBy::Netns => Key::Netns(socket.netns),
            GroupBy::Port => Key::Port(service_port(socket)),
        }
    }

    pub fn finish(self, gaps: Gaps, window_ns: u64) -> Sample {
        // Several cgroups can be one unit: the gateway, which reads their paths, cuts.
        let limit = match self.input.group_by {
            GroupBy::Unit | GroupBy::Container => limits::ROWS_MAX,
            _ => self.input.limit.rows(),
        };
        let mut largest = Largest::new(limit);
        self.groups.into_values().for_each(|group| largest.push(group.bytes.sum(), group));
        let (groups, rows_cut) = largest.finish();
        let files = match self.input.group_by {
            GroupBy::Netns => attribution::netns_files(),
            _ => Default::default(),
        };
        Sample {
            rows: groups.iter().map(|group| group.row(self.input.group_by, &files)).collect(),
            rows_cut,
            total: self.total,
            gaps: Gaps { other_netns: self.other_netns, tcp_older: self.older, ..gaps },
            window_ns,
        }
    }
}

/// The port that says what a connection is for: the lower one, since clients take high ones.
fn service_port(socket: &socket_bytes) -> u16 {
    match (socket.endpoints.local_port, socket.endpoints.remote_port) {
        (local, 0) => local,
        (local, remote) => local.min(remote),
    }
}

impl Sum {
    fn new(socket: &socket_bytes, holder: Holder) -> Self {
        let e = &socket.endpoints;
        Sum {
            holder: Some(holder),
            cgroup: Some(socket.cgroup),
            netns: Some(socket.netns),
            protocol: Some(socket.protocol),
            local: (e.local, e.local_port),
            remote: e.remote,
            remote_port: Some(e.remote_port),
            port: service_port(socket),
            bytes: Bytes::default(),
            connections: 0,
        }
    }

    fn add(&mut self, socket: &socket_bytes, holder: Holder, moved: Bytes) {
        /// What differs once is not common any more.
        fn keep<T: PartialEq>(common: &mut Option<T>, value: T) {
            if *common != Some(value) {
                *common = None;
            }
        }
        keep(&mut self.holder, holder);
        keep(&mut self.cgroup, socket.cgroup);
        keep(&mut self.netns, socket.netns);
        keep(&mut self.protocol, socket.protocol);
        keep(&mut self.remote_port, socket.endpoints.remote_port);
        self.bytes += moved;
        self.connections += 1;
    }

    fn row(&self, group_by: GroupBy, netns_files: &std::collections::HashMap<u32, String>) -> Group {
        let (pid, comm) = self.holder.unwrap_or_default();
        let netns = self.netns.unwrap_or(0);
        let (local, port) = self.local;
        let remote = Endpoint::new(self.remote, 0).address;
        let connected = !remote.is_unspecified() && matches!(group_by, GroupBy::Connection | GroupBy::Remote);
        Group {
            process: Process::new(pid, &comm, self.cgroup.unwrap_or(0), netns),
            netns_name: netns_files.get(&netns).map(|file| attribution::netns_name(file).into()),
            protocol: self.protocol.map(|number| if number == UDP { Transport::Udp } else { Transport::Tcp }),
            local: (group_by == GroupBy::Connection).then(|| Endpoint::new(local, port)),
            remote: connected.then_some(Remote { address: remote, port: self.remote_port }),
            port: (group_by == GroupBy::Port).then_some(self.port),
            bytes: self.bytes,
            connections: self.connections,
        }
    }
}
