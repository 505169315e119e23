//! What an answer does not show, and why: the entries of `measured.limits`.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// One thing that an answer does not show.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[schemars(inline)]
pub struct Limitation {
    pub code: Code,
    /// For the reader: what is missing and why.
    pub text: String,
    /// How many are missing, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

/// The kinds of missing data. Clients rely on these names.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    // Sockets of other network namespaces than the daemon's.
    /// Connections that wait to be accepted, beyond those that are read of each listener.
    WaitingConnectionsUnread,
    /// The round trips of such connections.
    WaitingRoundTripsUnread,
    /// Connections that their process has closed and that still send.
    OrphansUnread,
    /// Everything that no process holds.
    OnlyHeldSockets,
    /// Sockets that a process uses through io_uring, beyond those that are read of each ring.
    RingSocketsUnread,

    // What this kernel refuses to show.
    /// Processes, units and containers, and other network namespaces than the daemon's.
    OwnersUnknown,
    /// Processes that opened their socket before the window.
    HoldersUnknown,
    /// All sockets of other network namespaces than the daemon's.
    OtherNamespacesNotSeen,
    /// TCP sockets that no process holds, in the daemon's network namespace.
    UnheldTcpNotSeen,
    /// The same of UDP.
    UnheldUdpNotSeen,
    ResetsNotSeen,
    /// The names of kernel functions.
    LocationsUnknown,

    // Connections that a tool cannot tell apart or compare.
    /// They were there before the window, and could not be read when it began.
    OlderConnections,
    /// They closed when the table of closed connections was full.
    ClosedConnectionsMerged,
    /// Of these, the ones with missing counters.
    ClosedConnectionsUncounted,
    /// Segments of connections without room for their round trips.
    RoundTripsUntracked,
    /// Connections that closed when the table of their round trips was full.
    ClosedRoundTripsUntracked,
    OwnersCut,
    /// Units and containers that only cgroup v1 knows.
    CgroupV1NotSeen,

    // Answers about the past.
    /// A recording keeps sums by remote, which a question about a process or a port cannot take apart.
    RecordedByRemote,
    /// Those that a recording counts without rows of their own.
    ConnectionsMerged,
    /// Queries that a recording counts without their names.
    QueryNamesNotKept,
    /// Of the stages of latency, a recording has the time from request to reply.
    OnlyRepliesRecorded,

    // Traffic that bypasses TCP and UDP.
    /// TCP connections with data that sockmap programs redirect.
    SockmapPartlyCounted,
    /// AF_XDP sockets.
    XdpSocketsNotCounted,
    /// AF_PACKET sockets that send.
    PacketSocketsNotCounted,

    // UDP.
    UdpNotCounted,
    /// Datagrams of sockets beyond those that are counted one by one.
    UdpSocketsMerged,
    /// Of unconnected sockets.
    UdpRemotesUnknown,
    /// Datagrams of remotes beyond those that are counted one by one of each socket.
    UdpRemotesMerged,

    // Connects.
    /// Those that a policy denies, and a few without a route.
    DeniedConnectsNotSeen,
    /// All that fail before their first packet.
    FailedConnectsNotSeen,
    /// They had no answer when the window ended.
    ConnectsPending,
    /// `after` is too old.
    ConnectsBetweenCalls,

    // Resets.
    ResetsMerged,
    ResetReasonsUnknown,

    // Latency.
    /// Times until a packet is in its socket.
    ArrivalsUnknown,
    /// Segments on their way to a device.
    SegmentsNotSeen,
    /// Threads that wait for a CPU.
    RunQueueNotSeen,
    /// Requests whose reply is uncertain.
    ExchangesLeftOut,
    RepliesUntracked,
    LatencySocketsUntracked,
    LatencyTimesUntracked,
    LatencyRemotesMerged,

    // Dropped packets.
    /// Packets that a filter cannot be applied to.
    DropsUnfiltered,
    /// Packets that are counted by reason and location only.
    DropsMerged,
    DropReceiversUnknown,
    FirewallRulesUnknown,
    /// The counters are those of one network namespace.
    CountersOfOneNamespace,
    /// Packets that XDP programs drop, send back or redirect.
    XdpVerdictsNotSeen,

    // Packets of an interface.
    TunnelHeadersCounted,
    /// Of a tunnel's super-packets: those of each packet inside.
    InnerHeadersNotCounted,

    // DNS.
    /// Messages after the window's table was full.
    DnsMessagesUnread,
    /// Messages that the ring buffer had no room for.
    DnsMessagesLost,
    /// Queries that are too young to be called unanswered.
    DnsQueriesPending,
    DnsOverTcpIncomplete,
    /// Messages with a header that a fragmentation splits.
    DnsMessagesCut,
    /// Packets to a port that a translation has put in place of 53.
    DnsTranslated,

    // The state of the network.
    /// Links, addresses, neighbors and routes, of every network namespace.
    NetworksUnread,
    /// Entries of the tables of neighbors.
    NeighborsUnread,
    /// Who says that an address is his.
    ClaimsNotSeen,
}

impl Code {
    /// Whether an answer with this limit may lack whole kinds of sockets or failures, so that no check can rely on it.
    pub fn blinds(self) -> bool {
        use Code::{FailedConnectsNotSeen, NetworksUnread, OtherNamespacesNotSeen, OwnersUnknown};
        matches!(self, FailedConnectsNotSeen | NetworksUnread | OtherNamespacesNotSeen | OwnersUnknown)
    }

    /// Whether it is about what happened in the window. Every other limit is about the host, and holds until something
    /// on it changes.
    pub fn is_of_a_window(self) -> bool {
        use Code::*;
        matches!(
            self,
            OlderConnections
                | ClosedConnectionsMerged
                | ClosedConnectionsUncounted
                | RoundTripsUntracked
                | ClosedRoundTripsUntracked
                | OwnersCut
                | RecordedByRemote
                | ConnectionsMerged
                | QueryNamesNotKept
                | UdpSocketsMerged
                | UdpRemotesMerged
                | ConnectsPending
                | ConnectsBetweenCalls
                | ResetsMerged
                | ArrivalsUnknown
                | ExchangesLeftOut
                | RepliesUntracked
                | LatencySocketsUntracked
                | LatencyTimesUntracked
                | LatencyRemotesMerged
                | DropsUnfiltered
                | DropsMerged
                | InnerHeadersNotCounted
                | DnsMessagesUnread
                | DnsMessagesLost
                | DnsQueriesPending
                | DnsMessagesCut
        )
    }
}

impl Limitation {
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        Limitation { code, text: text.into(), count: None }
    }

    /// `None` if nothing is missing. The text is the count, the thing (in the singular) and why: `3 connections: not read.`
    pub fn counted(code: Code, count: u64, thing: &str, why: &str) -> Option<Self> {
        let text = format!("{}: {why}", count_of(count, thing));
        (count > 0).then_some(Limitation { code, text, count: Some(count) })
    }
}

/// Exchanges whose reply has no certain request, and the connections that have too many of them.
pub fn exchanges_left_out(of: &str, exchanges: u64, connections: u64) -> Option<Limitation> {
    let mut why = format!("left out of {of}. Both ends sent at the same time, or one of them sent in parts");
    if connections > 0 {
        why += &format!("; {} left out", super::count(connections, "connection is", "connections are"));
    }
    Limitation::counted(Code::ExchangesLeftOut, exchanges, "exchange", &format!("{why}."))
}

/// `1 connection`, `3 connections`; the first word is the noun.
fn count_of(count: u64, thing: &str) -> String {
    let (noun, rest) = thing.split_at(thing.find(' ').unwrap_or(thing.len()));
    let plural = match (count, noun.strip_suffix('y')) {
        (1, _) => noun.to_owned(),
        (_, Some(stem)) => format!("{stem}ies"),
        (_, None) => format!("{noun}s"),
    };
    format!("{count} {plural}{rest}")
}

impl fmt::Display for Limitation {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.text)
    }
}

// A list of 30 names in the schema of every tool costs each client more than it helps.
impl JsonSchema for Code {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Code".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limitation_serializes_code_text_and_known_count() {
        let json = |limit| serde_json::to_string(&limit).unwrap();
        let limit = Limitation::new(Code::UdpNotCounted, "UDP is not counted.");
        assert_eq!(json(limit), r#"{"code":"udp_not_counted","text":"UDP is not counted."}"#);
        let limit = Limitation::counted(Code::OrphansUnread, 2, "connection", "not read.").unwrap();
        assert_eq!(json(limit), r#"{"code":"orphans_unread","text":"2 connections: not read.","count":2}"#);
        assert_eq!(Limitation::counted(Code::OrphansUnread, 0, "connection", "not read."), None);
    }

    #[test]
    fn count_of_pluralizes_the_first_noun() {
        assert_eq!(count_of(1, "query"), "1 query");
        assert_eq!(count_of(3, "query without an answer"), "3 queries without an answer");
        assert_eq!(count_of(2, "segment of connections"), "2 segments of connections");
    }
}
