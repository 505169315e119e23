//! The answer, from what the kernel said.

use std::{fmt::Write, time::Duration};

use super::{Input, LimitedBy, Listener, Listening, Output, Row, Sample, Socket, Tcp, TcpInfo};
use crate::{
    answer::{self, Measured, Transport},
    attribution::Process,
    untrusted,
};

pub fn output(input: &Input, sample: Sample) -> Output {
    let mut measured = Measured::window(Duration::from_nanos(sample.took_ns));
    measured.rows_cut = sample.sockets_cut + sample.listeners_cut;
    if sample.other_netns {
        measured.limits.push(
            "In other network namespaces than the daemon's only sockets that a process holds are visible: not those in TIME_WAIT, \
             waiting to be accepted, or left behind by their process."
                .into(),
        );
    }
    Output {
        sockets: sample.sockets.into_iter().map(|(process, row)| socket(&process, row, input.detail)).collect(),
        listeners: sample.listeners.into_iter().map(|(process, row)| listener(&process, &row)).collect(),
        states: sample.states,
        measured,
    }
}

pub fn text(output: &Output) -> String {
    let mut text = String::new();
    if !output.sockets.is_empty() {
        text += &answer::table(
            ["process", "", "state", "local", "remote", ">unread", ">unsent", ">rtt", ">retrans", "limited by"],
            output.sockets.iter().map(socket_line),
        );
        text.push('\n');
    }
    if !output.listeners.is_empty() {
        text += &answer::table(
            ["listener", "local", ">to accept", ">of", ">dropped", "unit"],
            output.listeners.iter().map(listener_line),
        );
        text.push('\n');
    }
    let counts: Vec<_> = output.states.iter().map(|(state, count)| format!("{count} {state}")).collect();
    let _ = match counts.is_empty() {
        true => writeln!(text, "No such sockets."),
        false => writeln!(text, "{}", counts.join(", ")),
    };
    text + &output.measured.text()
}

fn socket(process: &Process, row: Row, detail: bool) -> Socket {
    let tcp = row.tcp.as_ref();
    Socket {
        owner: process.owner(),
        protocol: row.protocol,
        state: row.state,
        local: row.local,
        remote: (row.remote.port != 0).then_some(row.remote),
        send_queue_bytes: row.send_queue,
        receive_queue_bytes: row.receive_queue,
        dropped: (row.protocol == Transport::Udp).then_some(row.drops),
        rtt_us: tcp.and_then(|tcp| (tcp.srtt_us > 0).then_some(tcp.srtt_us >> 3)),
        cwnd_packets: tcp.map(|tcp| tcp.cwnd),
        retransmits: tcp.map(|tcp| tcp.total_retransmits),
        rx_bytes: tcp.map(|tcp| tcp.rx_bytes),
        tx_bytes: tcp.map(|tcp| tcp.tx_bytes),
        limited_by: tcp.and_then(|tcp| limited_by(tcp.chrono, tcp.not_sent)),
        tcp: row.tcp.filter(|_| detail).map(tcp_info),
    }
}

/// From the kernel's chronometer (tcp_sock.chrono_type), which runs while there is something to send.
/// While it says "busy", what is not sent yet waits for the congestion window; if all is sent, the
/// application has no more.
pub fn limited_by(chrono: u8, not_sent: u32) -> Option<LimitedBy> {
    match (chrono, not_sent) {
        (1, 0) => Some(LimitedBy::Application),
        (1, _) => Some(LimitedBy::Network),
        (2, _) => Some(LimitedBy::Receiver),
        (3, _) => Some(LimitedBy::SendBuffer),
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
    }
}

fn listener(process: &Process, row: &Listening) -> Listener {
    Listener {
        owner: process.owner(),
        protocol: Transport::Tcp,
        local: row.local,
        accept_queue: row.accept_queue,
        accept_queue_max: row.accept_queue_max,
        half_open: row.half_open,
        dropped: row.dropped,
    }
}

fn socket_line(s: &Socket) -> [String; 10] {
    [
        s.owner.to_string(),
        s.protocol.to_string(),
        s.state.to_string(),
        s.local.to_string(),
        answer::or_dash(&s.remote),
        answer::bytes(s.receive_queue_bytes.into()),
        answer::bytes(s.send_queue_bytes.into()),
        s.rtt_us.map_or_else(|| "-".into(), |us| answer::micros(us.into())),
        answer::or_dash(&s.retransmits),
        answer::or_dash(&s.limited_by),
    ]
}

fn listener_line(l: &Listener) -> [String; 6] {
    [
        l.owner.to_string(),
        l.local.to_string(),
        l.accept_queue.to_string(),
        l.accept_queue_max.to_string(),
        l.dropped.to_string(),
        answer::or_dash(&l.owner.unit),
    ]
}
