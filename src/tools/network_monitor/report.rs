//! From counters to rates, and from connects to rows.

use std::time::Duration;

use super::{ByProtocol, Connect, Connection, Count, Input, Operation, Output, Rates, Sample};
use crate::{
    answer::{self, Code, Limitation, Measured},
    untrusted,
};

/// The answer.
pub fn report(input: &Input, sample: Sample) -> Output {
    match sample {
        Sample::Incoming { interface, rx, tx, window_ns, outer, blind, after_xdp } => {
            let mut output = incoming_output(interface, rx, tx, Duration::from_nanos(window_ns));
            if outer {
                let text = "Before Linux 5.14, the kernel also counts decapsulated packets with their tunnel headers, \
                    as protocol `other`.";
                output.measured.limits.push(Limitation::new(Code::TunnelHeadersCounted, text));
            }
            if blind {
                let text = "Without CAP_PERFMON, headers inside tunnels are unavailable: byte counts of tunnelled TCP \
                    with GSO are too low.";
                output.measured.limits.push(Limitation::new(Code::InnerHeadersNotCounted, text));
            }
            if after_xdp {
                let text = "This interface has an XDP program. Packets that it drops, sends back or redirects are not \
                    counted; `snapshot_interfaces` has the driver's counters.";
                output.measured.limits.push(Limitation::new(Code::XdpVerdictsNotSeen, text));
            }
            output
        }
        Sample::Outgoing { connects, cut, lost, connecting, next, continued, window_ns } => {
            let mut measured = Measured::window(Duration::from_nanos(window_ns));
            (measured.rows_cut, measured.lost_events) = (cut, lost);
            let why = "pending when the window ended.";
            measured.limits.extend(Limitation::counted(Code::ConnectsPending, connecting, "connect", why));
            if input.after.is_some() && !continued {
                let text = "`after` has expired: connects between the two calls are missing.";
                measured.limits.push(Limitation::new(Code::ConnectsBetweenCalls, text));
            }
            Output {
                operation: Operation::Outgoing,
                interface: None,
                received: None,
                by_protocol: None,
                transmitted: None,
                connections: Some(connects.into_iter().map(connection).collect()),
                next: Some(next),
                measured,
            }
        }
    }
}

/// Both periods' packets, or connects. Of connects that the earlier sample had no room for, the later one has the rest.
pub fn merge(earlier: Sample, later: Sample) -> Sample {
    match (earlier, later) {
        (
            Sample::Incoming { rx: rx_before, tx: tx_before, window_ns: before_ns, .. },
            Sample::Incoming { interface, rx, tx, window_ns, outer, blind, after_xdp },
        ) => {
            let tx = tx_before.zip(tx).map(|(before, tx)| before + tx);
            Sample::Incoming {
                interface,
                rx: rx_before + rx,
                tx,
                window_ns: before_ns + window_ns,
                outer,
                blind,
                after_xdp,
            }
        }
        (
            Sample::Outgoing { connects: mut all, lost: lost_before, continued, window_ns: before_ns, .. },
            Sample::Outgoing { connects, cut, lost, connecting, next, window_ns, .. },
        ) => {
            all.extend(connects);
            let (lost, window_ns) = (lost_before + lost, before_ns + window_ns);
            Sample::Outgoing { connects: all, cut, lost, connecting, next, continued, window_ns }
        }
        (_, later) => later,
    }
}

fn incoming_output(interface: String, rx: Count, tx: Option<Count>, window: Duration) -> Output {
    let rates = |count: Count| Rates {
        packets_per_second: answer::per_second(count.packets, window),
        bits_per_second: answer::per_second(count.bytes * 8, window),
        packets: count.packets,
        bytes: count.bytes,
    };
    let Count { tcp, udp, icmp, arp, other, .. } = rx;
    Output {
        operation: Operation::Incoming,
        interface: Some(untrusted::clean(&interface)),
        received: Some(rates(rx)),
        by_protocol: Some(ByProtocol { tcp, udp, icmp, arp, other }),
        transmitted: tx.map(rates),
        connections: None,
        next: None,
        measured: Measured::window(window),
    }
}

fn connection(connect: Connect) -> Connection {
    Connection {
        owner: connect.process.owner(),
        local: connect.local,
        remote: connect.remote,
        family: connect.remote.family(),
        established: connect.established,
        error: (!connect.established).then(|| answer::errno_name(connect.errno)),
        connect_latency_us: connect.latency_ns / 1_000,
        interface: connect.interface.as_deref().map(untrusted::clean),
    }
}
