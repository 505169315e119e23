//! The answer, from what the kernel said.

use std::time::Duration;

use super::{Input, LimitedBy, Listener, Listening, Output, Row, Sample, Socket, State, Tcp, TcpInfo};
use crate::{
    answer::{Code, Limitation, Measured, Protocol, Protocols},
    filter::Filter,
    numbers::limited,
    owner::Process,
    tcp, untrusted,
};

/// The answer.
pub fn report(input: &Input, sample: Sample) -> Output {
    let mut measured = Measured::window(Duration::from_nanos(sample.took_ns));
    measured.rows_cut = sample.sockets_cut + sample.listeners_cut;
    if sample.other_netns {
        let text = "In other network namespaces, only sockets with a process are listed: not those in TIME_WAIT, in \
            accept queues, or orphaned.";
        measured.limits.push(Limitation::new(Code::OnlyHeldSockets, text));
    }
    let why = "bytes partly counted. `rx_bytes` and `tx_bytes` omit data that BPF programs redirect.";
    let redirected =
        Limitation::counted(Code::SockmapPartlyCounted, sample.redirected, "connection in a BPF sockmap", why);
    measured.limits.extend(redirected);
    measured.limits.extend(tcp::rings(sample.rings));
    measured.limits.extend(sample.lacks);
    Output {
        sockets: sample.sockets.into_iter().map(|(process, row)| socket(&process, row, input.detail)).collect(),
        listeners: sample.listeners.into_iter().map(|(process, row)| listener(&process, &row)).collect(),
        states: sample.states,
        queues: sample.queues,
        at_ns: sample.at_ns,
        measured,
    }
}

/// The sockets that a question is about, of all. They stay in their order: those in trouble first.
pub fn narrow(input: &Input, mut sample: Sample) -> Sample {
    let filter = Filter { process: input.process.as_ref(), pid: input.pid, remote: None, port: input.port };
    let is_of = |process: &Process| filter.owner(process.pid, process.comm.as_bytes());
    let protocol = |protocol| match input.protocol {
        Protocols::All => true,
        Protocols::Tcp => protocol == Protocol::Tcp,
        Protocols::Udp => protocol == Protocol::Udp,
    };
    let all = sample.sockets.len() + sample.listeners.len();
    sample.sockets.retain(|(process, row)| {
        protocol(row.protocol) && is_of(process) && filter.ends([0; 16], [row.local.port, row.remote.port])
    });
    sample.listeners.retain(|(process, row)| {
        protocol(Protocol::Tcp) && is_of(process) && filter.ends([0; 16], [row.local.port, 0])
    });
    if sample.sockets.len() + sample.listeners.len() < all {
        sample.states.clear();
        sample.sockets.iter().for_each(|(_, row)| *sample.states.entry(row.state).or_default() += 1);
        if !sample.listeners.is_empty() {
            sample.states.insert(State::Listen, sample.listeners.len() as u64);
        }
    }
    if let Some(wanted) = input.state {
        sample.sockets.retain(|(_, row)| row.state == wanted);
        sample.listeners.retain(|_| wanted == State::Listen);
    }
    let limit = input.limit.rows();
    sample.sockets_cut += sample.sockets.len().saturating_sub(limit) as u64;
    sample.listeners_cut += sample.listeners.len().saturating_sub(limit) as u64;
    sample.sockets.truncate(limit);
    sample.listeners.truncate(limit);
    sample
}

fn socket(process: &Process, row: Row, detail: bool) -> Socket {
    let tcp = row.tcp.as_ref();
    Socket {
        owner: process.owner(),
        kernel: row.kernel.then_some(true),
        protocol: row.protocol,
        state: row.state,
        local: row.local,
        remote: (row.remote.port != 0).then_some(row.remote),
        send_queue_bytes: row.send_queue,
        receive_queue_bytes: row.receive_queue,
        dropped: (row.protocol == Protocol::Udp).then_some(row.drops),
        rtt_us: tcp.and_then(|tcp| (tcp.srtt_us > 0).then_some(tcp.srtt_us >> 3)),
        cwnd_packets: tcp.map(|tcp| tcp.cwnd),
        retransmits: tcp.map(|tcp| tcp.total_retransmits),
        rx_bytes: tcp.map(|tcp| tcp.rx_bytes),
        tx_bytes: tcp.map(|tcp| tcp.tx_bytes),
        limited_by: tcp.and_then(|tcp| limited_by(tcp.limited_by)),
        tcp: row.tcp.filter(|_| detail).map(tcp_info),
    }
}

/// What `limited.h` found in the socket's own state.
pub fn limited_by(limit: u8) -> Option<LimitedBy> {
    match i64::from(limit) {
        limited::LIMITED_BY_RECEIVER => Some(LimitedBy::Receiver),
        limited::LIMITED_BY_SEND_BUFFER => Some(LimitedBy::SendBuffer),
        limited::LIMITED_BY_NETWORK => Some(LimitedBy::Network),
        limited::LIMITED_BY_APPLICATION => Some(LimitedBy::Application),
        _ => None,
    }
}

fn tcp_info(tcp: Tcp) -> TcpInfo {
    /// What the kernel puts where it knows no bound (TCP_INFINITE_SSTHRESH, ~0).
    const INFINITE_SSTHRESH: u32 = 0x7fff_ffff;
    let delivered = (u64::from(tcp.rate_delivered) * u64::from(tcp.mss)).saturating_mul(8_000_000);
    TcpInfo {
        congestion_control: untrusted::clean(&tcp.congestion_control),
        rtt_variation_us: tcp.mdev_us >> 2,
        min_rtt_us: (tcp.min_rtt_us != u32::MAX).then_some(tcp.min_rtt_us),
        ssthresh_packets: (tcp.ssthresh < INFINITE_SSTHRESH).then_some(tcp.ssthresh),
        mss_bytes: tcp.mss,
        send_window_bytes: tcp.send_window,
        not_sent_bytes: tcp.not_sent,
        unacked_packets: tcp.packets_out,
        lost_packets: tcp.lost_out,
        segments_in: tcp.segments_in,
        segments_out: tcp.segments_out,
        retransmitted_bytes: tcp.retransmitted_bytes,
        pacing_bits_per_second: (tcp.pacing_bytes_per_second < u64::MAX / 8).then(|| tcp.pacing_bytes_per_second * 8),
        delivery_bits_per_second: delivered.checked_div(tcp.rate_interval_us.into()).filter(|rate| *rate > 0),
        busy_jiffies: tcp.waited.into_iter().fold(0, u32::wrapping_add),
        receiver_limited_jiffies: tcp.waited[1],
        send_buffer_limited_jiffies: tcp.waited[2],
        clock_jiffies: tcp.jiffies,
        silent_jiffies: tcp.silent,
        unanswered_retransmits: tcp.retransmits_in_a_row,
        unanswered_probes: tcp.probes,
        delivered_packets: tcp.delivered,
        inbound: tcp.inbound,
    }
}

fn listener(process: &Process, row: &Listening) -> Listener {
    Listener {
        socket: row.socket,
        owner: process.owner(),
        kernel: row.kernel.then_some(true),
        protocol: Protocol::Tcp,
        local: row.local,
        accept_queue: row.accept_queue,
        accept_queue_max: row.accept_queue_max,
        half_open: row.half_open,
        dropped: row.dropped,
    }
}
