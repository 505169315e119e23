//! What arrives at an interface, and who opens the next connection: the two questions to begin with.
//!
//! `incoming` counts packets as they are on the wire, at tcx: the counters are per CPU and only grow, a
//! window is the difference of two readings, so any number of windows share one link. `outgoing`
//! waits for the next TCP connect of any process in any network namespace, and for its outcome.

use std::{fmt::Write, io, time::Duration};

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Host, Tool};
use crate::{
    answer::{self, Endpoint, Family, Limit, Measured, Owner, WindowSeconds},
    attribution::Process,
    bpf::{self, Loader},
    limits, untrusted,
    window::Window,
    wire::Error,
};

mod incoming;
mod outgoing;

pub use outgoing::of_record;

#[allow(clippy::all, dead_code, non_camel_case_types, non_snake_case)]
mod skel {
    include!(concat!(env!("OUT_DIR"), "/network_monitor.rs"));
}

/// The daemon's side: what was loaded.
pub struct T {
    incoming: incoming::Incoming,
    /// Or why this kernel cannot.
    outgoing: Result<outgoing::Outgoing, String>,
}

// Which of the two questions.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Operation {
    Incoming,
    Outgoing,
}

/// Where `incoming` counts.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Default)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Mode {
    #[default]
    Tcx,
    Xdp,
    XdpNative,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct Input {
    pub operation: Operation,
    /// incoming: default that of the default route, else the busiest. outgoing: only connections over it.
    #[serde(default)]
    pub interface: Option<String>,
    /// Seconds. Default 5; outgoing 60, or until there is a connection.
    #[serde(default)]
    pub duration: Option<WindowSeconds>,
    /// incoming: tcx changes nothing; xdp: generic; xdp_native: in the driver, may reset the link.
    #[serde(default)]
    pub mode: Mode,
    /// outgoing: `next` of the last answer, within a second, to miss none.
    #[serde(default)]
    pub after: Option<String>,
    // outgoing: connections in the answer.
    #[serde(default = "connects_shown")]
    pub limit: Limit,
}

const fn connects_shown() -> Limit {
    Limit::new(limits::CONNECTS_SHOWN)
}

/// What was counted, by direction.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq)]
pub struct Count {
    packets: u64,
    bytes: u64,
    tcp: u64,
    udp: u64,
    icmp: u64,
    arp: u64,
    other: u64,
}

#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "snake_case")]
pub enum Sample {
    Incoming {
        interface: String,
        rx: Count,
        tx: Option<Count>,
        window_ns: u64,
        /// Whether packets that arrived still had the headers that a tunnel takes off.
        #[serde(default)]
        outer: bool,
    },
    Outgoing { connects: Vec<Connect>, cut: u64, lost: u64, connecting: u64, next: String, continued: bool, window_ns: u64 },
}

/// A connect whose outcome is known.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Connect {
    process: Process,
    local: Endpoint,
    remote: Endpoint,
    established: bool,
    errno: i32,
    latency_ns: u64,
    interface: Option<String>,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug)]
pub struct Output {
    pub operation: Operation,
    // incoming: the interface that was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", flatten)]
    pub received: Option<Rates>,
    // incoming: packets received, by protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by_protocol: Option<ByProtocol>,
    /// incoming: what left (not with xdp).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transmitted: Option<Rates>,
    /// outgoing: the oldest first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<Vec<Connection>>,
    // outgoing: pass as `after` within a second to miss none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    pub measured: Measured,
}

/// As on the wire: GRO and TSO packets count as their segments, with the link-layer header.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
pub struct Rates {
    pub packets_per_second: f64,
    pub bits_per_second: f64,
    pub packets: u64,
    pub bytes: u64,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
pub struct ByProtocol {
    pub tcp: u64,
    pub udp: u64,
    pub icmp: u64,
    pub arp: u64,
    pub other: u64,
}

#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug)]
pub struct Connection {
    pub owner: Owner,
    pub local: Endpoint,
    pub remote: Endpoint,
    pub family: Family,
    // Whether the handshake completed.
    pub established: bool,
    // Why it did not, as an errno name.
    pub error: Option<String>,
    // From connect() to its outcome.
    pub connect_latency_us: u64,
    // The interface of its route, in this network namespace.
    pub interface: Option<String>,
}

impl Tool for T {
    const NAME: &'static str = "network-monitor";
    const TITLE: &'static str = "Watch one interface, or the next connection";
    const DESCRIPTION: &'static str = "operation=incoming: packets and bits a second on an interface, by protocol, \
        counted as on the wire. operation=outgoing: waits for the next TCP connection \
        that any process opens: who, where to, whether it was established, how long that took.";
    const CONTINUES: bool = true;
    type Input = Input;
    type Sample = Sample;
    type Output = Output;

    fn load(loader: &mut Loader) -> Result<Self, Error> {
        let (mut object, mut second) = (bpf::object(), bpf::object());
        let builder = skel::NetworkMonitorSkelBuilder::default;
        let refused = match builder().open(&mut object)?.load() {
            Ok(skel) => {
                let outgoing = Ok(outgoing::Outgoing::new(loader, &skel)?);
                return Ok(T { incoming: incoming::Incoming::new(loader, &skel)?, outgoing });
            }
            Err(e) => format!("{}; `outgoing` needs Linux 5.12 or newer, `incoming` works", Error::from(e)),
        };
        // Before 5.12 a tracing program has no storage of a socket's own and no socket cookies: packets are counted all the same.
        let mut open = builder().open(&mut second)?;
        open.progs.connect_state.set_autoload(false);
        let skel = open.load()?;
        Ok(T { incoming: incoming::Incoming::new(loader, &skel)?, outgoing: Err(refused) })
    }

    fn rehearse(&self) -> io::Result<()> {
        self.incoming.rehearse()?;
        self.outgoing.as_ref().map_or(Ok(()), outgoing::Outgoing::rehearse)
    }

    fn complete(input: &mut Input, interface: &str) -> bool {
        let open = input.operation == Operation::Incoming && input.interface.is_none();
        if open {
            input.interface = Some(interface.into());
        }
        open
    }

    fn sample(&self, input: &Input, _: &Host, window: &Window) -> Result<Sample, Error> {
        match input.operation {
            Operation::Incoming => self.incoming.sample(input.interface.as_deref(), input.mode, Self::duration(input), window),
            Operation::Outgoing => self
                .outgoing
                .as_ref()
                .map_err(|reason| Error::Unavailable { tool: Self::NAME.into(), reason: reason.clone() })?
                .sample(input, Self::duration(input), window),
        }
    }

    fn duration(input: &Input) -> Duration {
        let default = if input.operation == Operation::Incoming { 5.0 } else { 60.0 };
        input.duration.unwrap_or(WindowSeconds::new(default)).duration()
    }

    fn report(input: Input, sample: Sample) -> Output {
        match sample {
            Sample::Incoming { interface, rx, tx, window_ns, outer } => {
                let mut output = incoming_output(interface, rx, tx, Duration::from_nanos(window_ns));
                if outer {
                    let limit = "Before Linux 5.14, packets that come out of an IP tunnel are counted with its headers as well, as protocol `other`.";
                    output.measured.limits.push(limit.into());
                }
                output
            }
            Sample::Outgoing { connects, cut, lost, connecting, next, continued, window_ns } => {
                let mut measured = Measured::window(Duration::from_nanos(window_ns));
                (measured.rows_cut, measured.lost_events) = (cut, lost);
                if connecting > 0 {
                    measured.limits.push(format!("{connecting} attempts to connect had no answer yet when the window ended."));
                }
                if input.after.is_some() && !continued {
                    measured.limits.push("`after` is too old to be continued; what came between the calls is not known.".into());
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

    fn text(output: &Output) -> String {
        match (&output.connections, &output.received) {
            (Some(connections), _) => outgoing_text(connections, output),
            (None, Some(rx)) => incoming_text(output, rx),
            (None, None) => String::new(),
        }
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

fn incoming_text(output: &Output, rx: &Rates) -> String {
    let mut text = format!("{} in {:.1} s\n\n", output.interface.as_deref().unwrap_or_default(), output.measured.window_ms / 1e3);
    let row = |way: &str, r: &Rates| {
        [way.to_owned(), format!("{}/s", answer::si(r.packets_per_second)), answer::bit_rate(r.bits_per_second), r.packets.to_string(), answer::bytes(r.bytes)]
    };
    let rows = [Some(row("received", rx)), output.transmitted.as_ref().map(|tx| row("sent", tx))];
    text += &answer::table(["", ">packets", ">bits", ">packets in all", ">bytes in all"], rows.into_iter().flatten());
    if let Some(p) = &output.by_protocol {
        let _ = writeln!(text, "\nreceived packets: {} TCP, {} UDP, {} ICMP, {} ARP, {} other", p.tcp, p.udp, p.icmp, p.arp, p.other);
    }
    text + &output.measured.text()
}

fn outgoing_text(connections: &[Connection], output: &Output) -> String {
    let measured = &Measured { rows_cut: 0, ..output.measured.clone() };
    if connections.is_empty() {
        return format!("No process opened a TCP connection in {:.1} s.\n{}", measured.window_ms / 1e3, measured.text());
    }
    let rows = connections.iter().map(|c| {
        let outcome = c.error.clone().unwrap_or_else(|| "established".into());
        [c.owner.to_string(), c.local.to_string(), c.remote.to_string(), outcome, answer::micros(c.connect_latency_us), answer::or_dash(&c.owner.unit)]
    });
    let more = match (output.measured.rows_cut, &output.next) {
        (0, _) | (_, None) => String::new(),
        (cut, Some(next)) => format!("\n{cut} more, for a call within a second (after={next}), or for a higher limit.\n"),
    };
    answer::table(["process", "local", "remote", "outcome", ">after", "unit"], rows) + &more + &measured.text()
}

#[cfg(test)]
mod tests;
