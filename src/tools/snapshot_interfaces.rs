//! What links are there, and what do they carry? Two readings of the kernel's own counters: nothing is attached.

use std::{cmp::Ordering::Equal, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Host, Tool};
use crate::{
    answer::{self, Limit, Measured, WindowMs},
    bpf::Loader,
    netlink::{self, Interface},
    untrusted,
    window::Window,
    wire::Error,
};

/// Reads no eBPF of its own.
pub struct T;

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Only this interface.
    #[serde(default)]
    pub interface: Option<String>,
    /// Between the two readings from which rates are made. Default 1000.
    #[serde(default = "one_second")]
    pub duration_ms: WindowMs,
    #[serde(default)]
    pub limit: Limit,
}

fn one_second() -> WindowMs {
    WindowMs::new(1_000)
}

#[derive(Serialize, Deserialize, Debug)]
pub struct Sample {
    /// Interfaces of both readings: before, after.
    interfaces: Vec<(Interface, Interface)>,
    primary: Option<String>,
    default_routes: Vec<u32>,
    window_ns: u64,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct Output {
    // The interface with the default route, else the busiest.
    pub primary: Option<String>,
    pub interfaces: Vec<Link>,
    pub measured: Measured,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct Link {
    pub name: String,
    pub index: u32,
    /// ethernet, loopback, veth, bridge, bond, vlan, tun, wireguard …
    pub kind: String,
    /// The operational state; `unknown` is up with a driver that does not watch its carrier.
    pub state: String,
    pub mtu: u32,
    // With prefix length.
    pub addresses: Vec<String>,
    pub default_route: bool,
    pub speed_mbps: Option<u64>,
    pub rx: Traffic,
    pub tx: Traffic,
    pub qdisc: Option<Qdisc>,
}

/// Totals since the interface exists, rates of the window; as the driver counts.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone)]
pub struct Traffic {
    pub packets: u64,
    pub bytes: u64,
    pub errors: u64,
    pub dropped: u64,
    /// Of these, new in the window.
    pub errors_in_window: u64,
    pub dropped_in_window: u64,
    pub packets_per_second: f64,
    pub bits_per_second: f64,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct Qdisc {
    pub kind: String,
    pub backlog_bytes: u64,
    pub dropped: u64,
    pub dropped_in_window: u64,
}

impl Tool for T {
    const NAME: &'static str = "snapshot_interfaces";
    const TITLE: &'static str = "List network interfaces with their traffic";
    const DESCRIPTION: &'static str = "Lists network interfaces: kind, state, addresses, which has the default route, bytes and packets with rates, \
        errors, drops, and the queueing discipline's backlog. Costs nothing; start here when a link is in question.";
    const NEEDS: &'static str = "rtnetlink, which every Linux has";
    const OPEN_WORLD: bool = false;
    type Input = Input;
    type Sample = Sample;
    type Output = Output;

    fn load(_: &mut Loader) -> Result<Self, Error> {
        Ok(T)
    }

    fn sample(&self, input: &Input, _: &Host, window: &Window) -> Result<Sample, Error> {
        if let Some(name) = &input.interface {
            netlink::interface_named(name)?;
        }
        let before = netlink::interfaces()?;
        let opened = window.opened();
        window.sleep_until(opened + input.duration_ms.duration())?;
        let (window_ns, mut after) = (opened.elapsed().as_nanos() as u64, netlink::interfaces()?);
        let default_routes = netlink::default_routes()?;
        let primary = netlink::primary(&after, &default_routes);
        let primary = after.iter().find(|i| Some(i.index) == primary).map(|i| i.name.clone());
        after.retain(|i| input.interface.as_ref().is_none_or(|name| *name == i.name));
        if let (Some(name), true) = (&input.interface, after.is_empty()) {
            return Err(Error::Gone(format!("{} disappeared during the measurement", untrusted::clean(name))));
        }
        let reading = |i: Interface| (before.iter().find(|b| b.index == i.index).unwrap_or(&i).clone(), i);
        Ok(Sample { interfaces: after.into_iter().map(reading).collect(), primary, default_routes, window_ns })
    }

    fn duration(input: &Input) -> Duration {
        input.duration_ms.duration()
    }

    fn report(input: Input, sample: Sample) -> Output {
        let window = Duration::from_nanos(sample.window_ns);
        let primary = sample.primary.as_deref().map(untrusted::clean);
        let links = sample.interfaces.iter().map(|(before, after)| link(before, after, &sample.default_routes, window));
        let weight = |link: &Link| link.weight(primary.as_deref());
        let (mut interfaces, rows_cut) = answer::largest(links.collect(), input.limit.rows(), weight);
        interfaces.sort_by_key(|link| link.index);
        Output { primary, interfaces, measured: Measured { rows_cut, ..Measured::window(window) } }
    }

    fn shorten(output: &mut Output) -> bool {
        let Output { primary, interfaces, measured } = output;
        let weight = |(_, link): &(usize, &Link)| link.weight(primary.as_deref());
        let least = interfaces.iter().enumerate().min_by(|a, b| weight(a).partial_cmp(&weight(b)).unwrap_or(Equal));
        let Some((least, _)) = least.filter(|_| interfaces.len() > 1) else { return false };
        interfaces.remove(least);
        measured.rows_cut += 1;
        true
    }

    fn text(output: &Output) -> String {
        let rows = output.interfaces.iter().map(|i| {
            let name = if output.primary.as_ref() == Some(&i.name) { format!("{} *", i.name) } else { i.name.clone() };
            let trouble = i.rx.errors + i.rx.dropped + i.tx.errors + i.tx.dropped;
            [
                name,
                i.kind.clone(),
                i.state.clone(),
                answer::bit_rate(i.rx.bits_per_second),
                answer::bit_rate(i.tx.bits_per_second),
                format!("{}/s", answer::si(i.rx.packets_per_second)),
                format!("{}/s", answer::si(i.tx.packets_per_second)),
                trouble.to_string(),
                i.addresses.first().cloned().unwrap_or_else(|| "-".into()),
            ]
        });
        let table = answer::table(["interface", "kind", "state", ">received", ">sent", ">packets in", ">out", ">errors+drops", "address"], rows);
        let primary = output.primary.as_ref().map_or_else(String::new, |p| format!("\n* {p} is the primary interface.\n"));
        table + &primary + &output.measured.text()
    }
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
        rx: traffic((b.rx_packets, a.rx_packets), (b.rx_bytes, a.rx_bytes), (b.rx_errors, a.rx_errors), (b.rx_dropped, a.rx_dropped)),
        tx: traffic((b.tx_packets, a.tx_packets), (b.tx_bytes, a.tx_bytes), (b.tx_errors, a.tx_errors), (b.tx_dropped, a.tx_dropped)),
        qdisc: after.qdisc.as_ref().map(|q| Qdisc {
            kind: q.kind.clone(),
            backlog_bytes: q.backlog_bytes,
            dropped: q.dropped,
            dropped_in_window: grown((before.qdisc.as_ref().map_or(q.dropped, |b| b.dropped), q.dropped)),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Counters;

    #[test]
    fn totals_are_of_all_time_and_rates_of_the_window() {
        let before = Interface { name: "eth0".into(), index: 2, counters: Counters { rx_bytes: 1_000, rx_packets: 10, ..Counters::default() }, ..Interface::default() };
        let mut after = before.clone();
        (after.counters.rx_bytes, after.counters.rx_packets, after.counters.tx_errors) = (2_000, 30, 1);
        let sample = Sample { interfaces: vec![(before, after)], primary: Some("eth0".into()), default_routes: vec![2], window_ns: 2_000_000_000 };
        let output = T::report(Input { interface: None, duration_ms: one_second(), limit: Limit::default() }, sample);
        let link = &output.interfaces[0];
        assert_eq!((link.rx.bytes, link.rx.bits_per_second, link.rx.packets_per_second), (2_000, 4_000.0, 10.0));
        assert!(link.default_route && link.qdisc.is_none());
        assert!(T::text(&output).contains("eth0 *"), "{}", T::text(&output));
    }

    /// A node of a cluster has hundreds of them.
    #[test]
    fn of_many_interfaces_those_that_matter_are_shown() {
        let interface = |i: u32| {
            let counters = Counters { rx_bytes: u64::from(i), ..Counters::default() };
            Interface { name: format!("veth{i}"), index: i, kind: "veth".into(), counters, ..Interface::default() }
        };
        let mut interfaces: Vec<_> = (1..=300).map(|i| (Interface { index: i, ..Interface::default() }, interface(i))).collect();
        interfaces[4].1.counters.rx_dropped = 1;
        let sample = Sample { interfaces, primary: Some("veth3".into()), default_routes: vec![7], window_ns: 1_000_000_000 };
        crate::tools::tests::is_short_unless_asked::<T>(&sample, &["interfaces"]);
        let limit = Limit::new(5);
        let output = T::report(Input { interface: None, duration_ms: one_second(), limit }, sample);
        let indexes: Vec<_> = output.interfaces.iter().map(|link| link.index).collect();
        assert_eq!((indexes, output.measured.rows_cut), (vec![3, 5, 7, 299, 300], 295));
    }
}
