//! Reading the kernel's sockets, and choosing among them while they come.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    time::Instant,
};

use super::{Input, Listening, Row, Sample, State, Tcp, skel};
use crate::{
    answer::{Endpoint, Protocols, Transport},
    attribution::{Process, own_netns},
    bpf::{Loader, Pod, Program},
    largest::Largest,
    wire::Error,
};
use skel::types::socket_row;

// SAFETY: integers, arrays of integers, and structs of such, without padding.
unsafe impl Pod for socket_row {}

pub struct Iterators {
    files: Program,
    tcp: Program,
    udp: Program,
}

impl Iterators {
    pub fn new(loader: &mut Loader, skel: &skel::SnapshotSocketsSkel) -> Result<Self, Error> {
        Ok(Iterators {
            files: loader.program(&skel.progs.list_files)?,
            tcp: loader.program(&skel.progs.list_tcp)?,
            udp: loader.program(&skel.progs.list_udp)?,
        })
    }

    pub fn rehearse(&self) -> io::Result<()> {
        [&self.files, &self.tcp, &self.udp].into_iter().try_for_each(Program::try_iterator)
    }

    pub fn sample(&self, input: &Input) -> Result<Sample, Error> {
        let begun = Instant::now();
        let mut selection = Selection::new(input);
        // Process 1 may hold the sockets of services that it activates, and children those of their parents.
        let mut later = HashMap::new();
        self.files.each(|row: &socket_row| match (row.pid, row.inherited) {
            (2.., 0) => selection.take(row),
            _ if selection.matches(row) => drop(later.entry(row.cookie).or_insert(*row)),
            _ => {}
        })?;
        later.values().for_each(|row| selection.take(row));
        // What no process holds cannot match a filter for one.
        if input.pid.is_none() && input.process.is_none() {
            if input.protocol != Protocols::Udp {
                self.tcp.each(|row| selection.take(row))?;
            }
            if input.protocol != Protocols::Tcp {
                self.udp.each(|row| selection.take(row))?;
            }
        }
        let mut sample = selection.finish();
        sample.took_ns = begun.elapsed().as_nanos() as u64;
        Ok(sample)
    }
}

/// How much a socket needs attention: retransmits the same packet again, bytes in its queues,
/// retransmits in its life, bytes in its life.
type Trouble = (u8, u32, u32, u64);

/// How much a listener does: how full its accept queue is in per mille, what it dropped.
type Fullness = (u32, u32);

/// The sockets that were asked for, each once.
///
/// Of several processes that hold a socket and match the filter it is the parent's, not the child's that inherited it;
/// else (passed on) the one's with the lowest number, since iter/task_file goes by number; process 1 is last.
struct Selection<'a> {
    input: &'a Input,
    own_netns: u32,
    seen: HashSet<u64>,
    sockets: Largest<socket_row, Trouble>,
    listeners: Largest<socket_row, Fullness>,
    states: BTreeMap<State, u64>,
    other_netns: bool,
}

impl<'a> Selection<'a> {
    fn new(input: &'a Input) -> Self {
        Selection {
            input,
            own_netns: own_netns(),
            seen: HashSet::new(),
            sockets: Largest::new(input.limit.rows()),
            listeners: Largest::new(input.limit.rows()),
            states: BTreeMap::new(),
            other_netns: false,
        }
    }

    fn take(&mut self, row: &socket_row) {
        let Some(state) = state(row) else { return };
        if !self.matches(row) || !self.seen.insert(row.cookie) {
            return;
        }
        self.other_netns |= row.netns != self.own_netns;
        *self.states.entry(state).or_default() += 1;
        if self.input.state.is_some_and(|wanted| wanted != state) {
            return;
        }
        if state == State::Listen {
            let fullness = row.receive_queue.saturating_mul(1_000) / row.send_queue.max(1);
            self.listeners.push((fullness, row.drops), *row);
        } else {
            let queued = row.send_queue.saturating_add(row.receive_queue);
            let drops = if row.protocol == UDP { row.drops } else { row.total_retransmits };
            self.sockets.push((row.retransmits, queued, drops, row.rx_bytes + row.tx_bytes), *row);
        }
    }

    fn matches(&self, row: &socket_row) -> bool {
        let Input { protocol, process, pid, port, .. } = self.input;
        let ports = [row.endpoints.local_port, row.endpoints.remote_port];
        (match protocol {
            Protocols::All => true,
            Protocols::Tcp => row.protocol == TCP,
            Protocols::Udp => row.protocol == UDP,
        }) && pid.is_none_or(|pid| pid == row.pid)
            && port.is_none_or(|port| ports.contains(&port))
            && process.as_ref().is_none_or(|name| row.pid != 0 && name.is(&comm(row)))
    }

    fn finish(self) -> Sample {
        let (sockets, sockets_cut) = self.sockets.finish();
        let (listeners, listeners_cut) = self.listeners.finish();
        Sample {
            sockets: sockets.iter().filter_map(|row| Some((process(row), socket(row)?))).collect(),
            sockets_cut,
            listeners: listeners.iter().map(|row| (process(row), listening(row))).collect(),
            listeners_cut,
            states: self.states,
            other_netns: self.other_netns,
            took_ns: 0,
        }
    }
}

const TCP: u8 = libc::IPPROTO_TCP as u8;
const UDP: u8 = libc::IPPROTO_UDP as u8;

fn comm(row: &socket_row) -> [u8; 16] {
    row.comm.map(|c| c as u8)
}

fn state(row: &socket_row) -> Option<State> {
    // TCP_* of include/net/tcp_states.h; UDP uses two of them.
    Some(match (row.state, row.protocol) {
        (1, _) => State::Established,
        (7, UDP) => State::Unconnected,
        (2, _) => State::SynSent,
        (3, _) => State::SynRecv,
        (4, _) => State::FinWait1,
        (5, _) => State::FinWait2,
        (6, _) => State::TimeWait,
        (7, _) => State::Close,
        (8, _) => State::CloseWait,
        (9, _) => State::LastAck,
        (10, _) => State::Listen,
        (11, _) => State::Closing,
        _ => return None,
    })
}

fn process(row: &socket_row) -> Process {
    Process::new(row.pid, &comm(row), row.cgroup, row.netns)
}

fn socket(row: &socket_row) -> Option<Row> {
    Some(Row {
        protocol: if row.protocol == UDP { Transport::Udp } else { Transport::Tcp },
        state: state(row)?,
        local: Endpoint::new(row.endpoints.local, row.endpoints.local_port),
        remote: Endpoint::new(row.endpoints.remote, row.endpoints.remote_port),
        send_queue: row.send_queue,
        receive_queue: row.receive_queue,
        drops: row.drops,
        // A request and a socket in TIME_WAIT have no such figures; nor has UDP.
        tcp: (row.mss != 0).then(|| tcp(row)),
    })
}

fn tcp(row: &socket_row) -> Tcp {
    let name = row.congestion_control.map(|c| c as u8);
    let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
    Tcp {
        congestion_control: String::from_utf8_lossy(&name[..end]).into_owned(),
        srtt_us: row.srtt_us,
        mdev_us: row.mdev_us,
        min_rtt_us: row.min_rtt_us,
        cwnd: row.cwnd,
        ssthresh: row.ssthresh,
        mss: row.mss,
        send_window: row.send_window,
        not_sent: row.not_sent,
        packets_out: row.packets_out,
        lost_out: row.lost_out,
        total_retransmits: row.total_retransmits,
        segments_in: row.segments_in,
        segments_out: row.segments_out,
        rx_bytes: row.rx_bytes,
        tx_bytes: row.tx_bytes,
        retransmitted_bytes: row.retransmitted_bytes,
        pacing_bytes_per_second: row.pacing_bytes_per_second,
        rate_delivered: row.rate_delivered,
        rate_interval_us: row.rate_interval_us,
        chrono: row.chrono_type,
        waited: row.waited,
        jiffies: row.jiffies,
    }
}

fn listening(row: &socket_row) -> Listening {
    Listening {
        local: Endpoint::new(row.endpoints.local, row.endpoints.local_port),
        accept_queue: row.receive_queue,
        accept_queue_max: row.send_queue,
        half_open: row.half_open,
        dropped: row.drops,
    }
}
