//! The setting of a scenario: its own network namespaces, a diagnosis, and the expected findings.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use netmon_mcp::recorder::time::{self, Period};
use serde_json::{Value, json};

use super::{
    past::Past,
    wire::{Loses, Wire},
};
use crate::harness::*;

/// The address family of a scenario.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Family {
    V4,
    V6,
}

pub use Family::{V4, V6};

/// Two namespaces, client and server, joined by a veth pair with addresses of this scenario only: the daemon sees the
/// whole host, and so every scenario that runs at the same time.
pub struct Net {
    pub client: Netns,
    pub server: Netns,
    /// The namespace of the bridge, if there is one.
    between: Option<Netns>,
    number: usize,
    wire: Option<Wire>,
}

impl Net {
    pub fn new(number: usize) -> Net {
        let net = Net { client: Netns::new(), server: Netns::new(), between: None, number, wire: None };
        let (name, client, server) = (net.interface(), net.client.name(), net.server.name());
        run(&format!("ip link add {name} netns {client} type veth peer name {name} netns {server}"));
        net.address(&net.client, 1);
        net.address(&net.server, 2);
        net
    }

    /// The same, joined by a wire with delay and loss.
    pub fn wired(number: usize, delay: Duration, loses: Loses) -> Net {
        let mut net = Net { client: Netns::new(), server: Netns::new(), between: None, number, wire: None };
        net.wire = Some(Wire::new(&net.interface(), &net.client, &net.server, delay, loses));
        net.address(&net.client, 1);
        net.address(&net.server, 2);
        net
    }

    /// The same, joined by a bridge in a third namespace.
    pub fn bridged(number: usize) -> Net {
        let between = Netns::new();
        let mut net = Net { client: Netns::new(), server: Netns::new(), between: None, number, wire: None };
        let (name, bridge) = (net.interface(), between.name());
        between.ip("link add br0 type bridge");
        between.ip("link set br0 up");
        for (end, port) in [(&net.client, "p1"), (&net.server, "p2")] {
            run(&format!("ip link add {name} netns {} type veth peer name {port} netns {bridge}", end.name()));
            between.ip(&format!("link set {port} master br0 up"));
        }
        net.address(&net.client, 1);
        net.address(&net.server, 2);
        net.between = Some(between);
        net
    }

    /// The namespace of the bridge.
    pub fn between(&self) -> &Netns {
        self.between.as_ref().unwrap()
    }

    fn address(&self, netns: &Netns, host: u8) {
        let name = self.interface();
        netns.ip(&format!("addr add {}/24 dev {name}", self.host(V4, host)));
        netns.ip(&format!("addr add {}/64 dev {name} nodad", self.host(V6, host)));
        netns.ip(&format!("link set {name} up"));
    }

    /// The interface's name, the same at both ends.
    pub fn interface(&self) -> String {
        format!("scene{}", self.number)
    }

    /// The first three numbers of its IPv4 addresses.
    fn subnet(&self) -> String {
        format!("10.{}.{}.", 220 + self.number / 250, self.number % 250)
    }

    /// A host of the scenario's subnet: 1 is the client, 2 the server; others do not exist.
    pub fn host(&self, family: Family, host: u8) -> IpAddr {
        let text = match family {
            V4 => format!("{}{host}", self.subnet()),
            V6 => format!("fd20:{}::{host:x}", self.number),
        };
        text.parse().unwrap()
    }

    /// The namespace of the bridge that joins them.
    pub fn bridge(&self) -> &Netns {
        self.between.as_ref().unwrap()
    }

    /// Another host on the bridge, with an address of the subnet.
    pub fn join(&self, host: u8) -> Netns {
        let (netns, name) = (Netns::new(), self.interface());
        let port = format!("p{host}");
        run(&format!(
            "ip link add {name} netns {} type veth peer name {port} netns {}",
            netns.name(),
            self.bridge().name()
        ));
        self.bridge().ip(&format!("link set {port} master br0 up"));
        self.address(&netns, host);
        netns
    }

    pub fn number(&self) -> usize {
        self.number
    }

    pub fn server_ip(&self, family: Family) -> IpAddr {
        self.host(family, 2)
    }

    /// Packet filter rules in a namespace, one per line.
    pub fn nft(&self, netns: &Netns, lines: &[&str]) {
        netns.run("nft add table inet t");
        for hook in ["input", "output", "forward"] {
            netns.run(&format!("nft add chain inet t {hook} {{ type filter hook {hook} priority 0 ; }}"));
        }
        for line in lines {
            netns.run(&format!("nft add rule inet t {line}"));
        }
    }

    /// The text in a finding that identifies this scenario.
    fn marks(&self) -> Vec<String> {
        let netns = |netns: &Netns| format!("\"netns\":{}", netns.inode());
        let addresses = [self.subnet(), format!("fd20:{}:", self.number)];
        let mut marks = addresses.to_vec();
        marks.extend([format!("\"{}\"", self.interface()), netns(&self.client), netns(&self.server)]);
        marks.extend(self.between.as_ref().map(netns));
        marks
    }
}

/// Continues until the diagnosis has its answer, or should long have had it.
pub struct Watch {
    begun: Instant,
    over: AtomicBool,
}

impl Watch {
    pub fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed) && self.begun.elapsed() < Duration::from_secs(120)
    }

    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Calls `f` every `pause` while the window is open.
    pub fn every(&self, pause: Duration, mut f: impl FnMut()) {
        while self.goes_on() {
            f();
            let next = Instant::now() + pause;
            while self.goes_on() && Instant::now() < next {
                thread::sleep(Duration::from_millis(5).min(pause));
            }
        }
    }
}

/// The required properties of a finding.
pub struct Expected {
    pub code: &'static str,
    checks: Vec<(String, Check)>,
}

enum Check {
    Is(Value),
    AtLeast(f64),
    Known,
    /// This process. A child before exec, with the name of the thread that forked it, also holds our sockets. Its
    /// number is the lower one if numbers wrapped.
    Ours,
}

/// Whether [`Check::Ours`] means this owner.
fn is_ours(owner: &Value) -> bool {
    let thread = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
    owner["pid"] == std::process::id() || owner["process"] == thread.trim_end()
}

impl Expected {
    /// The field of the evidence (a JSON pointer) has this value.
    pub fn is(&mut self, field: &str, value: impl Into<Value>) -> &mut Self {
        self.checks.push((field.into(), Check::Is(value.into())));
        self
    }

    pub fn at_least(&mut self, field: &str, value: f64) -> &mut Self {
        self.checks.push((field.into(), Check::AtLeast(value)));
        self
    }

    pub fn known(&mut self, field: &str) -> &mut Self {
        self.checks.push((field.into(), Check::Known));
        self
    }

    /// The owner is a process of this test, in this namespace.
    pub fn owned_in(&mut self, netns: &Netns) -> &mut Self {
        self.checks.push(("/owner".into(), Check::Ours));
        self.is("/owner/netns", netns.inode())
    }

    /// The faults in a finding's evidence; empty if it is right.
    pub fn faults(&self, finding: &Value) -> Vec<String> {
        let evidence = &finding["evidence"];
        let mut faults = Vec::new();
        for (field, check) in &self.checks {
            let value = evidence.pointer(field);
            let right = match (check, value) {
                (Check::Is(expected), Some(value)) => value == expected,
                (Check::AtLeast(least), Some(value)) => value.as_f64().is_some_and(|value| value >= *least),
                (Check::Ours, Some(value)) => is_ours(value),
                (Check::Known, value) => value.is_some_and(|value| !value.is_null()),
                _ => false,
            };
            if !right {
                faults.push(format!("{field} is {}", value.unwrap_or(&Value::Null)));
            }
        }
        if finding["next_step"].as_str().is_none_or(str::is_empty) {
            faults.push("no next step".into());
        }
        faults
    }
}

/// A scenario's stage: its nets, its daemon, its answer, its expectations.
pub struct Stage<'a> {
    daemon: &'a Daemon,
    past: Option<&'a Past>,
    number: usize,
    nets: usize,
    marks: Vec<String>,
    /// No other scenario runs, so findings without a place belong to this one.
    pub alone: bool,
    pub window_ms: u64,
    /// The time of the window.
    pub period: Period,
    /// What matters is the end of the window, which a recording does not have.
    pub is_live_only: bool,
    pub answer: Value,
    pub expected: Vec<Expected>,
    /// Codes that are also allowed: other correct descriptions of the same fault.
    pub tolerated: Vec<&'static str>,
}

impl<'a> Stage<'a> {
    pub fn new(daemon: &'a Daemon, past: Option<&'a Past>, number: usize, alone: bool) -> Self {
        let (marks, expected, tolerated) = (Vec::new(), Vec::new(), Vec::new());
        let period = Period { begin_us: 0, end_us: 0 };
        let (nets, window_ms, answer) = (0, 6_000, Value::Null);
        Stage {
            daemon,
            past,
            number,
            nets,
            marks,
            alone,
            window_ms,
            period,
            is_live_only: false,
            answer,
            expected,
            tolerated,
        }
    }

    /// Two namespaces for this scenario; at most two pairs.
    pub fn net(&mut self) -> Net {
        self.with(Net::new)
    }

    /// The same, joined by a wire with delay and loss.
    pub fn wired(&mut self, delay: Duration, loses: Loses) -> Net {
        self.with(|number| Net::wired(number, delay, loses))
    }

    /// The same, joined by a bridge.
    pub fn bridged(&mut self) -> Net {
        self.with(Net::bridged)
    }

    fn with(&mut self, make: impl FnOnce(usize) -> Net) -> Net {
        let net = make(self.number * 2 + self.nets);
        self.nets += 1;
        self.marks.extend(net.marks());
        net
    }

    /// Assigns findings with this mark to this scenario.
    pub fn mark(&mut self, text: String) {
        self.marks.push(text);
    }

    /// Diagnoses during `fault`, which begins when the kernel counts. In a recording, the windows of the fault have
    /// nothing of what is before and after it.
    pub fn watch(&mut self, fault: impl FnOnce(&Watch) + Send) {
        self.past.inspect(|past| past.pass());
        let watching = self.daemon.watch("diagnose", json!({"duration_ms": self.window_ms, "limit": 1_000}));
        let watch = Watch { begun: Instant::now(), over: AtomicBool::new(false) };
        let begin_us = time::now();
        self.answer = thread::scope(|scope| {
            scope.spawn(|| fault(&watch));
            let answer = watching.answer();
            self.period = Period { begin_us, end_us: time::now() };
            self.past.inspect(|past| past.pass());
            watch.over.store(true, Ordering::Relaxed);
            answer
        });
    }

    /// Requires a finding.
    pub fn expect(&mut self, code: &'static str) -> &mut Expected {
        self.expected.push(Expected { code, checks: Vec::new() });
        self.expected.last_mut().unwrap()
    }

    /// The findings of this scenario.
    pub fn findings(&self) -> Vec<&Value> {
        let about = |finding: &&Value| {
            let text = finding["evidence"].to_string();
            let placed = text.contains("\"netns\"") || text.contains("\"address") || text.contains("\"interface");
            self.marks.iter().any(|mark| text.contains(mark)) || (self.alone && !placed)
        };
        self.answer["findings"].as_array().map(|all| all.iter().filter(about).collect()).unwrap_or_default()
    }
}
