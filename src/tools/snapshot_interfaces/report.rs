//! From two readings to totals and rates.

use std::{cmp::Ordering::Equal, time::Duration};

use super::{Input, Link, Output, Qdisc, Sample, Traffic};
use crate::{
    answer::{self, Measured},
    interface::Interface,
    untrusted,
};

/// The interfaces of the later period, with their counters at the beginning of the earlier one.
pub fn merge(earlier: &Sample, mut later: Sample) -> Sample {
    for (before, _) in &mut later.interfaces {
        if let Some((first, _)) = earlier.interfaces.iter().find(|(first, _)| first.index == before.index) {
            *before = first.clone();
        }
    }
    later.window_ns += earlier.window_ns;
    later
}

/// The answer.
pub fn report(input: &Input, sample: &Sample) -> Output {
    let window = Duration::from_nanos(sample.window_ns);
    let primary = sample.primary.as_deref().map(untrusted::clean);
    let links = sample.interfaces.iter().map(|(before, after)| link(before, after, &sample.default_routes, window));
    let weight = |link: &Link| link.weight(primary.as_deref());
    let (mut interfaces, rows_cut) = answer::largest(links.collect(), input.limit.rows(), weight);
    interfaces.sort_by_key(|link| link.index);
    Output { primary, interfaces, measured: Measured { rows_cut, ..Measured::window(window) } }
}

/// Leaves out the interface that a reader would miss least.
pub fn shorten(output: &mut Output) -> bool {
    let Output { primary, interfaces, measured } = output;
    let weight = |(_, link): &(usize, &Link)| link.weight(primary.as_deref());
    let least = interfaces.iter().enumerate().min_by(|a, b| weight(a).partial_cmp(&weight(b)).unwrap_or(Equal));
    let Some((least, _)) = least.filter(|_| interfaces.len() > 1) else { return false };
    interfaces.remove(least);
    measured.rows_cut += 1;
    true
}

impl Link {
    /// What a reader would miss it for: it leads out, loses packets, is busy.
    fn weight(&self, primary: Option<&str>) -> (bool, bool, f64, bool) {
        let lost = |way: &Traffic| way.errors_in_window + way.dropped_in_window > 0;
        let leads_out = self.default_route || primary == Some(&self.name);
        let rate = self.rx.bits_per_second + self.tx.bits_per_second;
        (leads_out, lost(&self.rx) || lost(&self.tx), rate, self.state == "up")
    }
}

fn link(before: &Interface, after: &Interface, default_routes: &[u32], window: Duration) -> Link {
    let (b, a) = (&before.counters, &after.counters);
    let grown = |(before, after): (u64, u64)| after.saturating_sub(before);
    let traffic = |packets: (u64, u64), bytes: (u64, u64), errors: (u64, u64), dropped: (u64, u64)| Traffic {
        packets: packets.1,
        bytes: bytes.1,
        errors: errors.1,
        dropped: dropped.1,
        errors_in_window: grown(errors),
        dropped_in_window: grown(dropped),
        packets_per_second: answer::per_second(grown(packets), window),
        bits_per_second: answer::per_second(grown(bytes) * 8, window),
    };
    Link {
        name: untrusted::clean(&after.name),
        index: after.index,
        kind: after.kind.clone(),
        state: after.state.clone(),
        mtu: after.mtu,
        addresses: after.addresses.iter().map(|(ip, prefix)| format!("{ip}/{prefix}")).collect(),
        default_route: default_routes.contains(&after.index),
        speed_mbps: after.speed_mbps,
        half_duplex: after.half_duplex,
        wire: a.wire.since(&b.wire),
        rx: traffic(
            (b.rx_packets, a.rx_packets),
            (b.rx_bytes, a.rx_bytes),
            (b.rx_errors, a.rx_errors),
            (b.rx_dropped, a.rx_dropped),
        ),
        tx: traffic(
            (b.tx_packets, a.tx_packets),
            (b.tx_bytes, a.tx_bytes),
            (b.tx_errors, a.tx_errors),
            (b.tx_dropped, a.tx_dropped),
        ),
        qdisc: after.qdisc.as_ref().map(|q| Qdisc {
            kind: q.kind.clone(),
            backlog_bytes: q.backlog_bytes,
            dropped: q.dropped,
            dropped_in_window: grown((before.qdisc.as_ref().map_or(q.dropped, |b| b.dropped), q.dropped)),
        }),
    }
}
