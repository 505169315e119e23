//! The result of `diagnose`: findings, their codes, and their text form.

use std::{fmt, net::IpAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    answer::{Endpoint, Owner},
    untrusted,
};

// How bad it is. The order is the order of the answer: worst first.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Severity {
    // A service is unreachable, or refuses everyone, now.
    Critical,
    // Something fails or is slow.
    Warning,
    // Worth knowing; no harm.
    Info,
}

/// What can be found. Causes stand before the symptoms that they explain; among findings of one severity the
/// answer keeps this order.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    InterfaceRemoved,
    LinkDown,
    LinkFlap,
    LinkDegraded,
    DuplicateMac,
    ArpPoisoning,
    DuplicateAddress,
    DhcpUnanswered,
    DhcpNoPool,
    DhcpBadOption,
    AddressMissing,
    WrongNetmask,
    RoutingSessionDown,
    BlackholeRoute,
    RouteWithdrawn,
    ConntrackFull,
    NatPortsExhausted,
    NatMappingLost,
    FirewallDrop,
    GatewayUnreachable,
    NeighborUnreachable,
    ReversePathFilter,
    RoutingLoop,
    ChecksumErrors,
    KernelDrop,
    MtuBlackHole,
    SynFlood,
    ConnectionFlood,
    CloseWaitLeak,
    ListenQueueOverflow,
    PortExhaustion,
    CpuThrottled,
    SoftirqSaturated,
    Incast,
    LinkSaturated,
    InterfaceDrops,
    UdpReceiveBufferFull,
    NoRoute,
    Ipv6Broken,
    WrongResolver,
    ConnectionRefused,
    ConnectTimeout,
    PeerGone,
    DnsUnanswered,
    DnsFailure,
    DnsSlow,
    Resets,
    ReceiveWindowSmall,
    ReceiverLimited,
    SenderLimited,
    Retransmits,
    HighRtt,
    SlowApplication,
    ConnectionChurn,
    DscpRemarked,
    BandwidthHog,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        // The name is serde's to choose, so that there is one.
        f.write_str(serde_json::to_value(self).ok().as_ref().and_then(Value::as_str).unwrap_or("?"))
    }
}

/// One thing that is wrong, or worth knowing.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug)]
pub struct Finding {
    // A list of 40 names in the schema would cost every client more than it says.
    #[schemars(with = "String")]
    pub code: Code,
    pub severity: Severity,
    pub summary: String,
    /// Owner, place, figures.
    pub evidence: Map<String, Value>,
    /// Commands; `netmon-mcp call TOOL key=value` calls this server's tool.
    pub next_step: String,
    /// The places of the finding, to separate causes from symptoms.
    #[serde(skip)]
    pub places: Vec<HostPort>,
    /// The network namespaces with traffic that it harms; none if they are unknown.
    #[serde(skip)]
    pub harms: Vec<u32>,
}

/// A service, or all of a host.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    pub address: IpAddr,
    /// `None` is every port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

impl HostPort {
    /// Whether a socket bound to `local` gets what is sent here.
    pub fn is_taken_by(&self, local: &Endpoint) -> bool {
        Some(local.port) == self.port && (local.address == self.address || local.address.is_unspecified())
    }

    /// Whether what happens here can be the cause of what happens at `other`.
    pub fn covers(&self, other: &HostPort) -> bool {
        self.address == other.address && (self.port.is_none() || other.port.is_none() || self.port == other.port)
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.port {
            Some(port) => Endpoint { address: self.address, port }.fmt(f),
            None => self.address.fmt(f),
        }
    }
}

impl From<Endpoint> for HostPort {
    fn from(endpoint: Endpoint) -> Self {
        HostPort { address: endpoint.address, port: Some(endpoint.port) }
    }
}

impl From<IpAddr> for HostPort {
    fn from(address: IpAddr) -> Self {
        HostPort { address, port: None }
    }
}

impl Finding {
    pub fn new(code: Code, severity: Severity, summary: impl Into<String>) -> Self {
        Finding {
            code,
            severity,
            summary: summary.into(),
            evidence: Map::new(),
            next_step: String::new(),
            places: Vec::new(),
            harms: Vec::new(),
        }
    }

    /// Adds a figure or a name to the evidence. Unknown values are left out.
    pub fn with(mut self, key: &str, value: impl Serialize) -> Self {
        match serde_json::to_value(value) {
            Ok(Value::Null) | Err(_) => {}
            Ok(value) => drop(self.evidence.insert(key.into(), value)),
        }
        self
    }

    /// Adds the owner, if it is known.
    pub fn owner(self, owner: &Owner) -> Self {
        if *owner == Owner::default() { self } else { self.with("owner", owner) }
    }

    /// Says where it happens.
    pub fn at(mut self, place: impl Into<HostPort>) -> Self {
        self.places.push(place.into());
        self
    }

    /// The tool that looks closer. The line is meant to be pasted into a shell: an argument that a shell could read
    /// as anything but itself is left out, and the question is wider.
    pub fn look(self, tool: &str, arguments: &[(&str, String)]) -> Self {
        let arguments = arguments
            .iter()
            .filter(|(_, value)| untrusted::is_plain(value))
            .map(|(key, value)| format!(" {key}={value}"));
        let command = format!("netmon-mcp call {tool}{}", arguments.collect::<String>());
        self.step(&command)
    }

    /// The tool that looks closer at one end of conversations, if the end is known.
    pub fn look_at(self, tool: &str, end: Option<impl Into<HostPort>>) -> Self {
        let end = end.map(Into::into);
        let port = end.and_then(|end| Some(("port", end.port?.to_string())));
        let remote = end.map(|end| ("remote", end.address.to_string()));
        self.look(tool, &remote.into_iter().chain(port).collect::<Vec<_>>())
    }

    /// The tool that looks closer at a program, if its name is known.
    pub fn look_for(self, tool: &str, owner: &Owner) -> Self {
        let process = owner.process.iter().map(|process| ("process", process.clone()));
        self.look(tool, &process.collect::<Vec<_>>())
    }

    /// Another command, or what to check, as a line of its own.
    pub fn step(mut self, line: &str) -> Self {
        if !self.next_step.is_empty() {
            self.next_step.push('\n');
        }
        self.next_step.push_str(line);
        self
    }
}

/// An owner as prose names it: cleaned already, and quoted, since it is not our text.
pub fn quoted(owner: &Owner) -> String {
    match (&owner.process, owner.pid) {
        (Some(process), Some(pid)) => format!("\"{process}\" (pid {pid})"),
        (Some(process), None) => format!("\"{process}\""),
        (None, Some(pid)) => format!("pid {pid}"),
        (None, None) => "an unknown process".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_snake_case() {
        assert_eq!(Code::Ipv6Broken.to_string(), "ipv6_broken");
        assert_eq!(Code::UdpReceiveBufferFull.to_string(), "udp_receive_buffer_full");
        assert_eq!(serde_json::to_value(Code::SynFlood).unwrap(), "syn_flood");
    }

    #[test]
    fn finding_omits_unknown_fields() {
        let finding = Finding::new(Code::HighRtt, Severity::Info, "x")
            .owner(&Owner::default())
            .with("count", 3)
            .with("interface", None::<String>)
            .look("profile_tcp", &[("remote", "10.0.0.1".into())])
            .step("ip route get 10.0.0.1");
        assert_eq!(serde_json::to_value(&finding.evidence).unwrap(), serde_json::json!({"count": 3}));
        assert_eq!(finding.next_step, "netmon-mcp call profile_tcp remote=10.0.0.1\nip route get 10.0.0.1");
    }

    #[test]
    fn next_call_has_what_is_known() {
        let finding = || Finding::new(Code::HighRtt, Severity::Info, "x");
        let end = |port| Some(HostPort { address: "10.0.0.1".parse().unwrap(), port });
        let at = |end: Option<HostPort>| finding().look_at("trace_drops", end).next_step;
        assert_eq!(at(end(Some(80))), "netmon-mcp call trace_drops remote=10.0.0.1 port=80");
        assert_eq!(at(end(None)), "netmon-mcp call trace_drops remote=10.0.0.1");
        assert_eq!(at(None), "netmon-mcp call trace_drops");
        let owner = Owner { process: Some("api".into()), ..Owner::default() };
        assert_eq!(finding().look_for("trace_dns", &owner).next_step, "netmon-mcp call trace_dns process=api");
    }

    #[test]
    fn commands_omit_values_unsafe_in_a_shell() {
        for evil in ["$(id)", "`id`", "x;reboot", "x\nreboot", "--config=/evil", "a b"] {
            let finding = Finding::new(Code::HighRtt, Severity::Info, "x");
            let arguments = [("process", evil.to_owned()), ("port", "80".to_owned())];
            assert_eq!(finding.look("profile_tcp", &arguments).next_step, "netmon-mcp call profile_tcp port=80");
        }
    }

    #[test]
    fn address_covers_all_its_ports() {
        let place = |text: &str, port| HostPort { address: text.parse().unwrap(), port };
        assert!(place("10.0.0.1", None).covers(&place("10.0.0.1", Some(80))));
        assert!(place("10.0.0.1", Some(80)).covers(&place("10.0.0.1", Some(80))));
        assert!(!place("10.0.0.1", Some(80)).covers(&place("10.0.0.1", Some(81))));
        assert!(!place("10.0.0.1", None).covers(&place("10.0.0.2", Some(80))));
    }
}
