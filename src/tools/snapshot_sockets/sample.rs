//! Reading the kernel's sockets, and choosing among them while they come.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Instant,
};

use super::{Input, Listening, Queue, Row, Sample, State, Tcp, skel};
use crate::{
    answer::{Endpoint, Limitation, Protocol, Protocols},
    daemon::{
        attribution::own_netns,
        kernel::{self, Iterate, Loader},
        largest::Largest,
        sockets::{self, Row as _},
        window::monotonic_ns,
    },
    numbers::uapi,
    owner::Process,
    wire::Error,
};
use skel::types::{queue_row, socket_row};

kernel::pod!(queue_row, socket_row);
sockets::row!(socket_row);

pub struct Iterators {
    /// What processes hold, in every network namespace.
    files: Iterate,
    /// What is in our own, held or not.
    tcp: Iterate,
    udp: Iterate,
    /// What waits before the devices of every namespace.
    queues: Iterate,
    lacks: Vec<Limitation>,
}

impl Iterators {
    pub fn new(loader: &mut Loader, skel: &skel::SnapshotSocketsSkel) -> Result<Self, Error> {
        loader.require_one_of(&["list_files", "list_tcp"])?;
        Ok(Iterators {
            files: loader.iterator(&skel.progs.list_files)?,
            tcp: loader.iterator(&skel.progs.list_tcp)?,
            udp: loader.iterator(&skel.progs.list_udp)?,
            queues: loader.iterator(&skel.progs.list_queues)?,
            lacks: loader.lacks(),
        })
    }

    pub fn sample(&self, input: &Input) -> Result<Sample, Error> {
        let begun = Instant::now();
        let mut selection = Selection::new(input);
        sockets::by_owner(&self.files, |row| matches(input, row), |row| selection.take(row))?;
        // What no process holds cannot match a filter for one.
        if input.pid.is_none() && input.process.is_none() {
            if input.protocol != Protocols::Udp && !selection.has_all() {
                self.tcp.each(|row| selection.take(row))?;
            }
            if input.protocol != Protocols::Tcp {
                self.udp.each(|row| selection.take(row))?;
            }
        }
        let mut sample = selection.finish();
        if input.detail {
            sample.at_ns = monotonic_ns();
            self.queues.each(|row: &queue_row| sample.queues.push(queue(row)))?;
        }
        sample.lacks = self.lacks.clone();
        sample.took_ns = begun.elapsed().as_nanos() as u64;
        Ok(sample)
    }
}

/// How much a socket needs attention: how often it sent the same packet again, whether it waits to be connected, bytes in
/// its queues, retransmits in its life, whether it is more than a memory of one that has closed, bytes in its life.
type Trouble = (u8, bool, u32, u32, bool, u64);

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
    redirected: u64,
    /// Listed TCP sockets of our own namespace that the kernel also counts.
    counted: u64,
    /// Incomplete handshakes, and MPTCP's paths: the kernel does not count them, or not all.
    uncounted: u64,
    /// Of each ring, how many of its sockets have no row.
    rings: HashMap<u64, u32>,
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
            redirected: 0,
            counted: 0,
            uncounted: 0,
            rings: HashMap::new(),
        }
    }

    /// Whether processes hold every TCP socket of our namespace. With a filter, fewer are counted, so this is false. The search
    /// for others in the kernel's table takes as long on an idle host as on a busy one.
    fn has_all(&self) -> bool {
        self.uncounted == 0 && sockets::counted() == Some(self.counted)
    }

    fn take(&mut self, row: &socket_row) {
        if row.is_ring() {
            let Input { pid, process, .. } = self.input;
            let asked = pid.is_none_or(|pid| pid.get() == row.pid) && process.as_ref().is_none_or(|p| p.is(&comm(row)));
            self.rings.extend(asked.then_some((row.cookie, row.unread)));
            return;
        }
        let Some(state) = state(row) else { return };
        if !matches(self.input, row) {
            return;
        }
        // By both: another tool may request its cookie meanwhile.
        let is_new = self.seen.insert(row.cookie);
        if !(row.address == 0 || row.address == row.cookie || self.seen.insert(row.address)) || !is_new {
            return;
        }
        if row.netns != self.own_netns {
            self.other_netns = true;
        } else if row.protocol == TCP && state != State::Close {
            self.counted += 1;
            self.uncounted += u64::from(row.half_open) + u64::from(row.below);
        }
        self.redirected += u64::from(row.redirected != 0);
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
            let (waits, lives, moved) =
                (state == State::SynSent, state != State::TimeWait, row.rx_bytes + row.tx_bytes);
            self.sockets.push((row.retransmits, waits, queued, drops, lives, moved), *row);
        }
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
            redirected: self.redirected,
            rings: self.rings.into_values().map(u64::from).sum(),
            ..Sample::default()
        }
    }
}

/// Whether the question is about this socket.
fn matches(input: &Input, row: &socket_row) -> bool {
    let Input { protocol, process, pid, port, .. } = input;
    let ports = [row.endpoints.local_port, row.endpoints.remote_port];
    (match protocol {
        Protocols::All => true,
        Protocols::Tcp => row.protocol == TCP,
        Protocols::Udp => row.protocol == UDP,
    }) && pid.is_none_or(|pid| pid.get() == row.pid)
        && port.is_none_or(|port| ports.contains(&port.get()))
        && process.as_ref().is_none_or(|name| row.pid != 0 && name.is(&comm(row)))
}

const TCP: u8 = libc::IPPROTO_TCP as u8;
const UDP: u8 = libc::IPPROTO_UDP as u8;

fn comm(row: &socket_row) -> [u8; 16] {
    row.comm.map(|c| c as u8)
}

fn state(row: &socket_row) -> Option<State> {
    // UDP uses two of TCP's states.
    Some(match (i64::from(row.state), row.protocol) {
        (uapi::TCP_ESTABLISHED, _) => State::Established,
        (uapi::TCP_CLOSE, UDP) => State::Unconnected,
        (uapi::TCP_SYN_SENT, _) => State::SynSent,
        (uapi::TCP_SYN_RECV, _) => State::SynRecv,
        (uapi::TCP_FIN_WAIT1, _) => State::FinWait1,
        (uapi::TCP_FIN_WAIT2, _) => State::FinWait2,
        (uapi::TCP_TIME_WAIT, _) => State::TimeWait,
        (uapi::TCP_CLOSE, _) => State::Close,
        (uapi::TCP_CLOSE_WAIT, _) => State::CloseWait,
        (uapi::TCP_LAST_ACK, _) => State::LastAck,
        (uapi::TCP_LISTEN, _) => State::Listen,
        (uapi::TCP_CLOSING, _) => State::Closing,
        _ => return None,
    })
}

fn process(row: &socket_row) -> Process {
    Process::new(row.pid, &comm(row), row.cgroup, row.netns)
}

fn socket(row: &socket_row) -> Option<Row> {
    Some(Row {
        protocol: if row.protocol == UDP { Protocol::Udp } else { Protocol::Tcp },
        state: state(row)?,
        local: Endpoint::new(row.endpoints.local, row.endpoints.local_port),
        remote: Endpoint::new(row.endpoints.remote, row.endpoints.remote_port),
        send_queue: row.send_queue,
        receive_queue: row.receive_queue,
        drops: row.drops,
        kernel: row.kernel != 0,
        // A request and a socket in TIME_WAIT have no such figures; nor has UDP.
        tcp: (row.mss != 0).then(|| tcp(row)),
    })
}

fn queue(row: &queue_row) -> Queue {
    let text = |text: &[i8; 16]| {
        let bytes = text.map(|c| c as u8);
        String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
    };
    Queue {
        netns: row.netns,
        interface: text(&row.interface),
        kind: text(&row.kind),
        backlog_bytes: row.backlog,
        dropped: row.drops,
        bytes: row.bytes,
    }
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
        limited_by: row.limited_by,
        delivered: row.delivered,
        retransmits_in_a_row: row.retransmits,
        probes: row.probes,
        silent: row.silent,
        inbound: row.inbound != 0,
        waited: row.waited,
        jiffies: row.jiffies,
    }
}

fn listening(row: &socket_row) -> Listening {
    Listening {
        socket: row.cookie,
        local: Endpoint::new(row.endpoints.local, row.endpoints.local_port),
        accept_queue: row.receive_queue,
        accept_queue_max: row.send_queue,
        half_open: row.half_open,
        dropped: row.drops,
        kernel: row.kernel != 0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn least_informative_sockets_are_cut_first() {
        let input = serde_json::from_value(json!({"limit": 3})).unwrap();
        let mut selection = Selection::new(&input);
        let mut take = |cookie, protocol, state: i64, retransmits| {
            selection.take(&socket_row { cookie, protocol, state: state as u8, retransmits, ..socket_row::default() });
        };
        (1..9).for_each(|cookie| take(cookie, TCP, uapi::TCP_TIME_WAIT, 0));
        take(10, UDP, uapi::TCP_CLOSE, 0);
        take(11, TCP, uapi::TCP_SYN_SENT, 0);
        take(12, TCP, uapi::TCP_ESTABLISHED, 1);
        (21..29).for_each(|cookie| take(cookie, TCP, uapi::TCP_TIME_WAIT, 0));
        let sample = selection.finish();
        let states: Vec<_> = sample.sockets.iter().map(|(_, row)| row.state).collect();
        assert_eq!(states, [State::Established, State::SynSent, State::Unconnected]);
        assert_eq!((sample.sockets_cut, sample.states[&State::TimeWait]), (16, 16));
    }
}
