//! The findings that are only symptoms of others.

use crate::tools::diagnose::finding::Code;

/// The symptoms that a fault of links, addresses or routes causes for its users.
const OF_THE_NETWORK: &[Code] = {
    use Code::*;
    &[
        GatewayUnreachable,
        NeighborUnreachable,
        KernelDrop,
        LinkSaturated,
        InterfaceDrops,
        NoRoute,
        Ipv6Broken,
        WrongResolver,
        ConnectionRefused,
        ConnectTimeout,
        PeerGone,
        DnsUnanswered,
        DnsSlow,
        Resets,
        Retransmits,
        HighRtt,
    ]
};

/// The findings that are only symptoms of another one at the same place: they appear in the cause's evidence and are
/// not reported again.
pub(super) const EXPLAINS: &[(Code, &[Code])] = {
    use Code::*;
    &[
        (InterfaceRemoved, OF_THE_NETWORK),
        (InterfaceRemoved, &[LinkDown, LinkFlap, AddressMissing, WrongNetmask, RouteWithdrawn]),
        (LinkDown, OF_THE_NETWORK),
        (LinkDown, &[LinkFlap, AddressMissing, WrongNetmask, RouteWithdrawn]),
        (LinkFlap, OF_THE_NETWORK),
        (LinkFlap, &[AddressMissing, WrongNetmask, RouteWithdrawn]),
        (AddressMissing, &[RouteWithdrawn]),
        (LinkDown, &[RoutingSessionDown]),
        (LinkFlap, &[RoutingSessionDown]),
        (InterfaceRemoved, &[RoutingSessionDown]),
        (ArpPoisoning, &[RoutingSessionDown]),
        (DuplicateAddress, &[RoutingSessionDown]),
        (AddressMissing, &[RoutingSessionDown]),
        (WrongNetmask, &[RoutingSessionDown]),
        (FirewallDrop, &[RoutingSessionDown]),
        (GatewayUnreachable, &[RoutingSessionDown]),
        (NeighborUnreachable, &[RoutingSessionDown]),
        (ReversePathFilter, &[RoutingSessionDown]),
        (KernelDrop, &[RoutingSessionDown]),
        (ChecksumErrors, &[RoutingSessionDown]),
        (MtuBlackHole, &[RoutingSessionDown]),
        (
            RoutingSessionDown,
            &[
                RouteWithdrawn,
                NoRoute,
                ConnectionRefused,
                ConnectTimeout,
                PeerGone,
                Resets,
                Retransmits,
                ConnectionChurn,
            ],
        ),
        (DhcpUnanswered, OF_THE_NETWORK),
        (DhcpUnanswered, &[AddressMissing]),
        (DhcpNoPool, OF_THE_NETWORK),
        (DhcpNoPool, &[AddressMissing]),
        (DhcpBadOption, OF_THE_NETWORK),
        (DhcpBadOption, &[WrongNetmask, WrongResolver]),
        (DuplicateMac, OF_THE_NETWORK),
        (ArpPoisoning, OF_THE_NETWORK),
        (DuplicateAddress, OF_THE_NETWORK),
        (AddressMissing, OF_THE_NETWORK),
        (WrongNetmask, OF_THE_NETWORK),
        (BlackholeRoute, OF_THE_NETWORK),
        (RouteWithdrawn, OF_THE_NETWORK),
        (ConntrackFull, &[FirewallDrop, ConnectTimeout, PeerGone, DnsUnanswered, Retransmits, Ipv6Broken]),
        (NatPortsExhausted, &[FirewallDrop, ConnectTimeout, PeerGone, DnsUnanswered, Retransmits]),
        (NatMappingLost, &[PeerGone, ConnectionRefused, Resets, Retransmits, DnsUnanswered]),
        // Retransmits only if nothing gets through: a rule that lets most packets pass is reported in addition to the
        // losses.
        (
            FirewallDrop,
            &[ConnectTimeout, PeerGone, ConnectionRefused, NoRoute, Ipv6Broken, WrongResolver, DnsUnanswered, Resets],
        ),
        (
            GatewayUnreachable,
            &[
                NeighborUnreachable,
                ConnectTimeout,
                PeerGone,
                NoRoute,
                WrongResolver,
                DnsUnanswered,
                Retransmits,
                Ipv6Broken,
            ],
        ),
        (ReversePathFilter, &[ConnectTimeout, PeerGone, DnsUnanswered, Retransmits]),
        (RoutingLoop, &[ConnectTimeout, PeerGone, NoRoute, DnsUnanswered, Retransmits, Ipv6Broken]),
        (ChecksumErrors, &[KernelDrop, ConnectTimeout, PeerGone, DnsUnanswered, Retransmits, Resets]),
        (KernelDrop, &[ConnectTimeout, PeerGone, NoRoute, Ipv6Broken, DnsUnanswered, Retransmits, Resets]),
        (NeighborUnreachable, &[ConnectTimeout, PeerGone, NoRoute, DnsUnanswered, Retransmits, Ipv6Broken]),
        (MtuBlackHole, &[PeerGone, Retransmits, HighRtt, InterfaceDrops]),
        (SynFlood, &[ListenQueueOverflow, ConnectTimeout, Retransmits, ConnectionChurn]),
        (ConnectionFlood, &[ListenQueueOverflow, ConnectTimeout, ConnectionRefused, SlowApplication, ConnectionChurn]),
        (ListenQueueOverflow, &[ConnectTimeout, ConnectionRefused, Retransmits, Resets, HighRtt, SlowApplication]),
        (
            LinkSaturated,
            &[Retransmits, HighRtt, ConnectTimeout, DnsUnanswered, DnsSlow, SenderLimited, InterfaceDrops, KernelDrop],
        ),
        (
            CpuThrottled,
            &[
                ListenQueueOverflow,
                ConnectTimeout,
                UdpReceiveBufferFull,
                DnsUnanswered,
                DnsSlow,
                ReceiverLimited,
                Retransmits,
                HighRtt,
                Resets,
                SlowApplication,
            ],
        ),
        (
            SoftirqSaturated,
            &[InterfaceDrops, KernelDrop, Retransmits, ConnectTimeout, DnsUnanswered, UdpReceiveBufferFull],
        ),
        (Incast, &[LinkSaturated]),
        (
            Incast,
            &[Retransmits, HighRtt, ConnectTimeout, DnsUnanswered, DnsSlow, SenderLimited, InterfaceDrops, KernelDrop],
        ),
        (InterfaceDrops, &[ConnectTimeout, PeerGone, DnsUnanswered, NeighborUnreachable]),
        (NoRoute, &[ConnectTimeout, PeerGone, DnsUnanswered]),
        (PeerGone, &[Retransmits, ReceiverLimited, SenderLimited]),
        (Ipv6Broken, &[ConnectTimeout, NoRoute, ConnectionRefused]),
        // A resolver without a process: the kernel rejects its clients.
        (ConnectionRefused, &[DnsUnanswered]),
        (WrongResolver, &[ConnectionRefused, DnsUnanswered, NeighborUnreachable, NoRoute, RoutingLoop]),
        // What was lost stays in the send buffer until it has arrived, and fills it.
        (Retransmits, &[SenderLimited]),
        (ReceiveWindowSmall, &[SenderLimited]),
        (ReceiverLimited, &[SenderLimited, Retransmits]),
    ]
};
