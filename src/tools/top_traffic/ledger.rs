//! From counters of sockets to groups that add up: what each socket moved in the window, counted once.

// Cookies are assigned by the kernel: nobody can choose colliding ones, and there may be 100,000.
use foldhash::{HashMap, HashMapExt, HashSet, HashSetExt};

use super::{
    Bytes, CommonRemote, Gaps, Group, GroupBy, Input, Key, Past, Sample,
    skel::types::{self, socket_bytes},
};
use crate::{
    answer::{Endpoint, Protocol, Protocols},
    daemon::{attribution, largest::Largest},
    filter::Filter,
    limits,
    numbers::{past_tcp, sockmap},
    owner::{self, Process},
    tcp::Unread,
};

const TCP: u8 = libc::IPPROTO_TCP as u8;
const UDP: u8 = libc::IPPROTO_UDP as u8;

/// A process that holds a socket; pid 0: none.
type Holder = (u32, [u8; 16]);

fn holder(socket: &socket_bytes) -> Holder {
    (socket.pid, socket.comm.map(|c| c as u8))
}

/// The counters of TCP sockets when the window began, by cookie.
#[derive(Default)]
pub struct Before {
    sockets: HashMap<u64, (Bytes, Holder)>,
    /// What could not be read then.
    pub unread: Unread,
    /// TCP sockets of which programs of a sockmap may redirect data.
    pub redirected: bool,
}

impl Before {
    /// What it was called when the window began. One that only a ring of io_uring has, or that is below another socket,
    /// may have had no cookie then; it gets one when it closes.
    fn name(&self, socket: &socket_bytes, is_new: bool) -> u64 {
        let had_none = !is_new && !self.sockets.contains_key(&socket.cookie);
        if had_none && self.sockets.contains_key(&socket.address) { socket.address } else { socket.cookie }
    }

    /// Of a socket with several holders the first counts.
    pub fn add(&mut self, socket: &socket_bytes) {
        if socket.protocol == TCP && socket.unread == 0 {
            self.redirected |= socket.past != 0;
            self.sockets.entry(socket.cookie).or_insert_with(|| (bytes(&socket.traffic), holder(socket)));
        }
    }
}

/// What the sockets of a group have in common, and what they moved.
struct Sum {
    holder: Option<Holder>,
    cgroup: Option<u64>,
    netns: Option<u32>,
    protocol: Option<u8>,
    local: ([u8; 16], u16),
    /// `None` where they differ.
    remote: Option<[u8; 16]>,
    remote_port: Option<u16>,
    port: u16,
    bytes: Bytes,
    connections: u64,
    /// Counted last: a UDP socket comes once for each remote, one after another.
    socket: u64,
    sockets: Vec<u64>,
}

pub struct Ledger<'a> {
    input: &'a Input,
    before: &'a Before,
    /// What is open, for the next reading.
    next: Before,
    /// Whether another reading of the session may count the same connections.
    is_one_of_many: bool,
    /// TCP sockets that were read at the window's end.
    seen: HashSet<u64>,
    /// Open UDP sockets at the window's end: their owners and their local addresses.
    udp_open: HashMap<u64, socket_bytes>,
    groups: HashMap<Key, Sum>,
    total: Bytes,
    older: u64,
    /// Sockets with uncounted data, by cookie.
    sockmap: HashSet<u64>,
    xdp: HashSet<u64>,
    packet: HashSet<u64>,
    /// UDP sockets with datagrams of which the remote is not known.
    unasked: HashSet<u64>,
    /// What processes send and receive by their calls is counted, so that of what programs of a sockmap redirect only a
    /// part may be missing, where they read first what comes.
    sees_calls: bool,
}

impl<'a> Ledger<'a> {
    pub fn new(input: &'a Input, before: &'a Before, is_one_of_many: bool) -> Self {
        Ledger {
            input,
            before,
            next: Before::default(),
            is_one_of_many,
            seen: HashSet::new(),
            udp_open: HashMap::new(),
            groups: HashMap::new(),
            total: Bytes::default(),
            older: 0,
            sockmap: HashSet::new(),
            xdp: HashSet::new(),
            packet: HashSet::new(),
            unasked: HashSet::new(),
            sees_calls: false,
        }
    }

    /// Says that the calls of processes are counted.
    pub fn seeing_calls(self, sees_calls: bool) -> Self {
        Ledger { sees_calls, ..self }
    }

    /// A socket that is open. It may come several times, the holder that it is attributed to first.
    pub fn open(&mut self, socket: &socket_bytes, is_new: bool) {
        if socket.unread > 0 {
            return; // a listener, or a ring
        }
        let wanted = || self.input.filter().owner(socket.pid, &holder(socket).1);
        if i64::from(socket.protocol) == past_tcp::PAST_XDP {
            self.xdp.extend(wanted().then_some(socket.cookie));
        } else if i64::from(socket.protocol) == past_tcp::PAST_PACKET {
            self.packet.extend(wanted().then_some(socket.cookie));
        } else if socket.protocol == UDP {
            self.udp_open.entry(socket.cookie).or_insert(*socket);
        } else if self.input.protocol != Protocols::Udp {
            self.next.add(socket);
            self.tcp(socket, is_new, false);
        }
    }

    /// A TCP socket that closed since the last reading; false if it was read as open before that.
    pub fn closed(&mut self, socket: &socket_bytes, is_new: bool) -> bool {
        let is_first = !self.seen.contains(&self.before.name(socket, is_new));
        self.tcp(socket, is_new, true);
        is_first
    }

    /// Of one that was opened before the window, and not read when that began, it is not known what it has moved since.
    fn tcp(&mut self, socket: &socket_bytes, is_new: bool, is_closed: bool) {
        let name = self.before.name(socket, is_new);
        if !self.seen.insert(name) {
            return;
        }
        let enough = if self.sees_calls { sockmap::REDIRECTS_SENT } else { 0 };
        if i64::from(socket.past) > enough && self.wants(socket, holder(socket)) {
            self.sockmap.insert(socket.cookie);
        }
        let now = bytes(&socket.traffic);
        let known = self.before.sockets.get(&name).copied();
        if known.is_none() && !is_new {
            self.older += u64::from(now != Bytes::default() && self.wants(socket, holder(socket)));
            return;
        }
        let is_whole = known.is_none() && is_closed;
        let (before, known) = known.unwrap_or_default();
        // A socket that was disconnected and connected again starts at 0.
        let (rx, tx) = (now.rx_bytes.checked_sub(before.rx_bytes), now.tx_bytes.checked_sub(before.tx_bytes));
        let moved = match (rx, tx) {
            (Some(rx_bytes), Some(tx_bytes)) => Bytes { rx_bytes, tx_bytes },
            _ => now,
        };
        let holder = if known.0 != 0 && socket.pid == 0 { known } else { holder(socket) };
        self.add(socket, holder, moved, is_whole);
    }

    /// What a UDP socket, open or not, and one of its remotes sent each other.
    pub fn udp(&mut self, socket: &socket_bytes, moved: Bytes) {
        let asks_remotes = self.input.group_by == GroupBy::Remote || self.input.remote.is_some();
        let e = &socket.endpoints;
        if asks_remotes && e.remote == [0; 16] && moved != Bytes::default() {
            let open = self.udp_open.get(&socket.cookie).unwrap_or(socket);
            let filter = Filter { remote: None, ..self.input.filter() };
            let (pid, comm) = holder(open);
            if filter.owner(pid, &comm) && filter.ends(e.remote, [open.endpoints.local_port, 0]) {
                self.unasked.insert(socket.cookie);
            }
        }
        match self.udp_open.get(&socket.cookie).copied() {
            // It may have been bound since it was first seen.
            Some(open) => {
                let types::endpoints { remote, remote_port, .. } = socket.endpoints;
                let endpoints = types::endpoints { remote, remote_port, ..open.endpoints };
                self.add(&socket_bytes { endpoints, ..*socket }, holder(&open), moved, false);
            }
            None => self.add(socket, holder(socket), moved, false),
        }
    }

    /// Bytes of sockets that there was no room for; a question about some of them cannot count them.
    pub fn untracked(&mut self, moved: Bytes) {
        if self.input.filter().matches_everything() {
            self.total += moved;
        }
    }

    fn wants(&self, socket: &socket_bytes, holder: Holder) -> bool {
        let (filter, e) = (self.input.filter(), &socket.endpoints);
        filter.owner(holder.0, &holder.1) && filter.ends(e.remote, [e.local_port, e.remote_port])
    }

    /// What a socket moved. One that is whole opened and closed since the last reading.
    fn add(&mut self, socket: &socket_bytes, holder: Holder, moved: Bytes, is_whole: bool) {
        if moved == Bytes::default() || !self.wants(socket, holder) {
            return;
        }
        self.total += moved;
        let sum = Sum::new(socket, holder);
        let group = self.groups.entry(self.key(socket, holder.0)).or_insert(sum);
        if group.add(socket, holder, moved) && self.is_one_of_many && !is_whole {
            group.sockets.push(socket.cookie);
        }
    }

    fn key(&self, socket: &socket_bytes, pid: u32) -> Key {
        match self.input.group_by {
            GroupBy::Process if pid == 0 => Key::Unowned(socket.cgroup),
            GroupBy::Process => Key::Process(pid),
            GroupBy::Connection => Key::Socket(socket.cookie),
            GroupBy::Remote => Key::Remote(Endpoint::new(socket.endpoints.remote, 0).address),
            GroupBy::Unit | GroupBy::Container => Key::Cgroup(socket.cgroup),
            GroupBy::Netns => Key::Netns(socket.netns),
            GroupBy::Port => Key::Port(service_port(socket)),
        }
    }

    /// The sample, and what the next reading begins with.
    pub fn finish(self, gaps: Gaps, window_ns: u64) -> (Sample, Before) {
        // Several cgroups can be one unit: the gateway, which reads their paths, cuts.
        let limit = match self.input.group_by {
            GroupBy::Unit | GroupBy::Container => limits::ROWS_MAX,
            _ => self.input.limit.rows(),
        };
        let mut largest = Largest::new(limit);
        self.groups.into_iter().for_each(|(key, group)| largest.push(group.bytes.sum(), (key, group)));
        let (groups, rows_cut) = largest.finish();
        let files = match self.input.group_by {
            GroupBy::Netns => attribution::netns_files(),
            _ => Default::default(),
        };
        let sample = Sample {
            rows: groups.into_iter().map(|(key, group)| group.row(key, self.input.group_by, &files)).collect(),
            rows_cut,
            total: self.total,
            gaps: Gaps {
                tcp_older: self.older,
                udp_unasked: self.unasked.len() as u64,
                past: Past {
                    sockmap: self.sockmap.len() as u64,
                    xdp: self.xdp.len() as u64,
                    packet: self.packet.len() as u64,
                    calls: self.sees_calls,
                },
                ..gaps
            },
            window_ns,
            ..Sample::default()
        };
        (sample, self.next)
    }
}

/// Counters as the kernel keeps them.
pub fn bytes(traffic: &types::traffic) -> Bytes {
    Bytes { rx_bytes: traffic.rx_bytes, tx_bytes: traffic.tx_bytes }
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
            remote: Some(e.remote),
            remote_port: Some(e.remote_port),
            port: service_port(socket),
            bytes: Bytes::default(),
            connections: 0,
            socket: 0,
            sockets: Vec::new(),
        }
    }

    /// Adds what a socket moved; false if the socket was the last one already.
    fn add(&mut self, socket: &socket_bytes, holder: Holder, moved: Bytes) -> bool {
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
        keep(&mut self.remote, socket.endpoints.remote);
        keep(&mut self.remote_port, socket.endpoints.remote_port);
        self.bytes += moved;
        let is_another = std::mem::replace(&mut self.socket, socket.cookie) != socket.cookie;
        self.connections += u64::from(is_another);
        is_another
    }

    fn row(self, key: Key, group_by: GroupBy, netns_files: &std::collections::HashMap<u32, String>) -> Group {
        let (pid, comm) = self.holder.unwrap_or_default();
        let netns = self.netns.unwrap_or(0);
        let (local, port) = self.local;
        let remote = self.remote.map(|remote| Endpoint::new(remote, 0).address);
        let remote = remote.filter(|_| matches!(group_by, GroupBy::Connection | GroupBy::Remote));
        let remote = remote.filter(|remote| !remote.is_unspecified());
        Group {
            key,
            process: Process::new(pid, &comm, self.cgroup.unwrap_or(0), netns),
            netns_name: netns_files.get(&netns).map(|file| owner::netns_name(file).into()),
            protocol: self.protocol.map(|number| if number == UDP { Protocol::Udp } else { Protocol::Tcp }),
            local: (group_by == GroupBy::Connection).then(|| Endpoint::new(local, port)),
            remote: remote.map(|address| CommonRemote { address, port: self.remote_port }),
            port: (group_by == GroupBy::Port).then_some(self.port),
            bytes: self.bytes,
            connections: self.connections,
            sockets: self.sockets,
        }
    }
}
