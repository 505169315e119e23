//! What the kernel's drop reasons mean, by name: numbers differ from one kernel to the next.

use super::Path;

/// A reason, for a person.
#[derive(Clone, Copy)]
pub struct Meaning {
    pub explanation: &'static str,
    /// What to look at next.
    pub check: &'static str,
    /// Part of ordinary operation: nothing that anyone waits for was lost.
    pub benign: bool,
}

const fn fault(explanation: &'static str, check: &'static str) -> Meaning {
    Meaning { explanation, check, benign: false }
}

const fn benign(explanation: &'static str) -> Meaning {
    Meaning { explanation, check: "Nothing to do.", benign: true }
}

/// Names of reasons that mean the same, and what that is.
#[rustfmt::skip]
const REASONS: &[(&[&str], Meaning)] = &[
    (&["NETFILTER_DROP"], fault("A firewall rule dropped it.", "`nft list ruleset`; `nft monitor trace` shows the rule.")),
    (&["NO_SOCKET"], fault("Nothing listens on the destination port.", "Does the service run, on this address and port?")),
    (&["SOCKET_RCVBUFF"],
        fault("The receive buffer was full: the process reads too slowly.", "The process's load; SO_RCVBUF, \
            net.core.rmem_max.")),
    (&["SOCKET_BACKLOG"], fault("The socket backlog was full while the process used the socket.", "The process's \
        load; net.ipv4.tcp_rmem.")),
    // The programs of its cgroup and the security modules are asked in the same place.
    (&["SOCKET_FILTER"],
        fault("A BPF filter of the socket or of its cgroup, or a security module, dropped it.", "`ss -b`; the unit's IPAddressDeny=; `bpftool cgroup tree`.")),
    (&["PROTO_MEM"], fault("The protocol's memory limit for all sockets was reached.", "net.ipv4.tcp_mem or udp_mem.")),
    (&["QDISC_DROP", "QDISC_OVERLIMIT", "QDISC_CONGESTED", "CAKE_FLOOD", "FQ_BAND_LIMIT", "FQ_FLOW_LIMIT", "FQ_HORIZON_LIMIT", "DUALPI2_STEP_DROP"],
        fault("The interface's queue was full: the link or its shaper is slower than the senders.",
        "`tc -s qdisc show`; top_traffic shows the senders.")),
    (&["TC_EGRESS"], fault("A tc filter or eBPF program on egress dropped it.", "`tc filter show dev … egress`, `bpftool net`.")),
    (&["TC_INGRESS"], fault("A tc filter or eBPF program on ingress dropped it.", "`tc filter show dev … ingress`, `bpftool net`.")),
    (&["XDP"], fault("An XDP program dropped it.", "`ip link` shows the program, `bpftool net` its owner.")),
    (&["BPF_CGROUP_EGRESS"], fault("An eBPF program of a cgroup denied it.", "The unit's IPAddressDeny=; `bpftool cgroup tree`.")),
    (&["SECURITY_HOOK"], fault("A security module (SELinux, AppArmor) denied it.", "The audit log.")),
    (&["XFRM_POLICY"], fault("An IPsec policy refused it.", "`ip xfrm policy`.")),
    (&["PKT_TOO_BIG"],
        fault("It exceeds the next hop's MTU and must not be fragmented.", "The MTUs on the path (`ip link`); are \
            ICMP errors filtered?")),
    (&["PKT_TOO_SMALL", "HDR_TRUNC"], fault("It is truncated: shorter than the length in its headers.", "The sender, \
        or a tunnel on the path.")),
    (&["NEIGH_FAILED", "NEIGH_DEAD", "NEIGH_HH_FILLFAIL"],
        fault("The next hop does not answer ARP or neighbor discovery.", "`ip neigh`; is the host up, on this link?")),
    (&["NEIGH_QUEUEFULL"], fault("Too many packets waited for the link-layer address of the next hop.", "`ip neigh`: the next hop does not answer.")),
    (&["NEIGH_CREATEFAIL"],
        fault("The neighbor table is full, or the interface is being removed.", "net.ipv4.neigh.default.gc_thresh3; `ip link`.")),
    (&["IP_OUTNOROUTES", "IP_INNOROUTES"], fault("There is no route to the destination.", "`ip route get ADDRESS`.")),
    (&["IP_RPFILTER"],
        fault("Reverse-path filter: the route back to the source uses another interface.", "Routes; net.ipv4.conf.*.rp_filter.")),
    (&["IP_INADDRERRORS", "IP_INVALID_DEST"], fault("The destination address is invalid on this host.", "Routes, ip_forward.")),
    (&["IP_INVALID_SOURCE", "IP_LOCAL_SOURCE", "IP_LOCALNET", "MAC_INVALID_SOURCE"],
        fault("The source address is invalid on this interface.", "Spoofing, or a duplicate address.")),
    (&["IP_CSUM", "TCP_CSUM", "UDP_CSUM", "ICMP_CSUM", "SKB_CSUM"],
        fault("Its checksum is wrong.", "Cabling, NIC offloads (`ethtool -K`), a broken middlebox.")),
    (&["IP_INHDR", "TCP_FLAGS", "IPV6_BAD_EXTHDR", "INVALID_PROTO", "DEV_HDR", "VXLAN_INVALID_HDR"],
        fault("Invalid headers.", "The sender; a port scan looks like this.")),
    (&["TCP_INVALID_SYN"],
        fault("A SYN for an open connection.", "The peer restarted, or NAT reused its port.")),
    (&["TCP_MINTTL"], fault("Its TTL is below the socket's minimum (IP_MINTTL).", "The peer is farther away than expected.")),
    (&["CPU_BACKLOG"], fault("The packet backlog of a CPU was full.", "net.core.netdev_max_backlog; spread the load (RSS, RPS).")),
    (&["FULL_RING"], fault("The ring of the interface was full.", "`ethtool -g`; the guest or process behind it is slow.")),
    (&["DEV_READY"], fault("The interface was not ready to send.", "`ip link`: is it up, with a carrier?")),
    (&["NO_TX_TARGET"],
        fault("The interface has no target: a bond without ports, or a tunnel without a remote.", "`ip -d link`, `bridge fdb`.")),
    (&["IP_TUNNEL_ECN"], fault("A tunnel's ECN marks contradict each other.", "Find what rewrites DSCP or ECN on the \
        path.")),
    (&["LOCAL_MAC"], fault("Its source link-layer address belongs to this host.", "A loop between bridges, or a duplicate address.")),
    (&["NOMEM", "PFMEMALLOC"], fault("The kernel was out of memory.", "Free memory; vm.min_free_kbytes.")),
    (&["FRAG_REASM_TIMEOUT", "FRAG_TOO_FAR"],
        fault("Not all fragments arrived in time.", "A lossy path, or a filter that drops fragments.")),
    (&["TCP_MD5NOTFOUND", "TCP_MD5UNEXPECTED", "TCP_MD5FAILURE", "TCP_AUTH_HDR", "TCP_AONOTFOUND", "TCP_AOUNEXPECTED", "TCP_AOKEYNOTFOUND", "TCP_AOFAILURE"],
        fault("TCP authentication (MD5, TCP-AO) failed.",
        "The keys of both ends, of BGP for example.")),
    (&["TCP_LISTEN_OVERFLOW"], fault("The listener's accept queue was full.", "`listeners`; its process accepts too slowly.")),
    (&["TCP_ZEROWINDOW", "TCP_OVERWINDOW"],
        fault("It does not fit the receive window: the process reads too slowly.", "profile_tcp; the owner's load.")),
    (&["TCP_OFO_QUEUE_PRUNE", "TCP_OFO_DROP"],
        fault("Out-of-order data was dropped: memory limit reached.", "net.ipv4.tcp_rmem; losses on the path.")),
    (&["IPV6DISABLED"], fault("IPv6 is disabled on the interface.", "net.ipv6.conf.*.disable_ipv6.")),
    (&["IP_NOPROTO"], fault("Nothing on this host handles this IP protocol.", "Does the tunnel or daemon run?")),
    (&["VXLAN_VNI_NOT_FOUND"], fault("No VXLAN interface has this VNI.", "`ip -d link show type vxlan`.")),
    (&["RECURSION_LIMIT"], fault("It looped between interfaces.", "Does a tunnel route through itself?")),
    (&["UNHANDLED_PROTO"], benign("Nothing on this host handles this type of frame (LLDP, STP and similar).")),
    (&["OTHERHOST"], benign("For another host, or of an unknown VLAN: the interface is promiscuous or bridged.")),
    (&["UNICAST_IN_L2_MULTICAST"], benign("A unicast packet in a broadcast frame.")),
    (&["SOCKET_CLOSE", "UNIX_DISCONNECT", "UNIX_SKIP_OOB"], benign("Its socket was closed with unread data.")),
    (&["QUEUE_PURGE"], benign("A queue was purged because its socket or interface was closed.")),
    (&["TCP_OLD_DATA", "TCP_OLD_SEQUENCE", "TCP_OLD_ACK", "TCP_TOO_OLD_ACK", "TCP_OFOMERGE", "TCP_RFC7323_PAWS_ACK"],
        benign("A duplicate of data that TCP already has, usually a retransmission.")),
    (&["TCP_RESET", "TCP_CLOSE", "TCP_ABORT_ON_DATA", "TCP_FASTOPEN"], benign("It belongs to a closed connection.")),
    (&["TCP_RFC7323_PAWS", "TCP_RFC7323_TW_PAWS", "TCP_RFC7323_TSECR", "TCP_INVALID_SEQUENCE", "TCP_INVALID_END_SEQUENCE", "TCP_INVALID_ACK_SEQUENCE", "TCP_ACK_UNSENT_DATA"],
        fault("Its sequence numbers do not match the connection.",
        "NAT with reused ports; a restarted peer.")),
    (&["DUP_FRAG"], benign("A duplicate fragment.")),
    (&["IPV6_NDISC_NS_OTHERHOST", "ARP_PVLAN_DISABLE"], benign("A request for another host's address.")),
    (&["BRIDGE_INGRESS_STP_STATE", "MAC_IEEE_MAC_CONTROL"],
        benign("A bridge does not forward it: spanning tree blocks the port, or it is link-local.")),
    (&["PACKET_SOCK_ERROR"], benign("A capture (AF_PACKET) lost its copy; the packet itself was not dropped.")),
];

/// What `reason` means where it happened. An unknown name is explained as such.
pub fn meaning(reason: &str, location: &str) -> Meaning {
    if reason == "NOT_SPECIFIED" {
        return unspecified(location);
    }
    let known = REASONS.iter().find(|(names, _)| names.contains(&reason));
    let unknown = || {
        fault(
            "Unknown reason: newer than this version of netmon-mcp.",
            "See the kernel function in \
        `location`.",
        )
    };
    known.map_or_else(unknown, |(_, meaning)| *meaning)
}

/// The kernel gives no reason in places that it has not converted yet; some of them are known.
fn unspecified(location: &str) -> Meaning {
    if location.contains("xdp") {
        return fault("An XDP program dropped it.", "`ip link` shows the program, `bpftool net` its owner.");
    }
    let teardown = ["destruct", "release", "purge", "close", "kill_queues", "destroy", "flush", "shutdown", "free"];
    if teardown.iter().any(|word| location.contains(word)) {
        return benign("A queue was purged because its socket or interface was closed.");
    }
    // A queueing discipline that cuts a super-packet into segments, and has no room for any of them.
    if location.ends_with("_enqueue") {
        return meaning("QDISC_DROP", location);
    }
    match location {
        "dst_discard" | "dst_discard_out" | "dst_discard_sk" => {
            fault("A blackhole route dropped it, or its interface is being removed.", "`ip route get ADDRESS`.")
        }
        "ip_error" | "ip6_pkt_drop" => fault(
            "The route to its destination rejects it (unreachable, prohibit), or there is no route.",
            "`ip route get ADDRESS`.",
        ),
        "neigh_invalidate" | "ndisc_error_report" | "arp_error_report" => meaning("NEIGH_FAILED", location),
        "ip6_mc_input" | "ip_mr_input" => benign("Multicast without a receiver on this host."),
        "tcp_v4_do_rcv" | "tcp_v6_do_rcv" | "tcp_rcv_state_process" | "tcp_v4_conn_request" | "tcp_conn_request" => {
            fault(
                "TCP rejected it; this kernel gives no reason.",
                "`listeners` and `counters`: an accept queue may be full.",
            )
        }
        location
            if location.contains("netlink") || location.contains("unix") || location.contains("bpf_prog_test_run") =>
        {
            benign("Not a network packet.")
        }
        _ => fault("This kernel gives no reason.", "See the kernel function in `location`."),
    }
}

/// What it means that a packet's hops are used up, and what to look at next.
pub const EXPIRED: (&str, &str) = (
    "Its TTL (hop limit) expired: a routing loop, or a traceroute.",
    "Find the loop: `ip route get ADDRESS` at each router.",
);

/// Whether a packet was dropped because its hop limit expired. The kernel has no reason for that: it gives that of
/// invalid headers, or none. But invalid headers are detected before the route lookup, and a router checks the hop
/// limit after it.
pub fn is_expired(reason: &str, path: Option<Path>, hops: Option<u8>) -> bool {
    let silent = matches!(reason, "IP_INHDR" | "NOT_SPECIFIED");
    silent && path == Some(Path::Forward) && hops.is_some_and(|hops| hops <= 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expired_hops_need_a_forwarding_path() {
        let expired = |reason, path, hops| is_expired(reason, Some(path), Some(hops));
        assert!(expired("IP_INHDR", Path::Forward, 1) && expired("NOT_SPECIFIED", Path::Forward, 0));
        assert!(!expired("IP_INHDR", Path::Input, 1), "a bad header of a packet with few hops left");
        assert!(!expired("IP_INHDR", Path::Forward, 2) && !expired("NETFILTER_DROP", Path::Forward, 1));
        assert!(!is_expired("IP_INHDR", Some(Path::Forward), None));
    }

    #[test]
    fn rejecting_routes_are_known_by_drop_location() {
        assert!(meaning("NOT_SPECIFIED", "dst_discard").explanation.contains("blackhole"));
        assert!(meaning("NOT_SPECIFIED", "tbf_enqueue").explanation.contains("queue was full"));
        assert!(meaning("NOT_SPECIFIED", "ip_error").explanation.contains("unreachable"));
    }

    #[test]
    fn unknown_reason_points_at_its_location() {
        let unknown = meaning("SOMETHING_NEW", "tcp_v4_rcv");
        assert!(!unknown.benign && unknown.check.contains("location"));
    }

    #[test]
    fn location_decides_without_a_reason() {
        assert!(meaning("NOT_SPECIFIED", "udp_destruct_common").benign);
        assert!(meaning("NOT_SPECIFIED", "veth_xdp_rcv_skb").explanation.contains("XDP"));
        assert!(!meaning("NOT_SPECIFIED", "ip_forward").benign);
    }

    #[test]
    fn explanations_stay_short() {
        for (names, Meaning { explanation, check, .. }) in REASONS {
            assert!(explanation.len() + check.len() < 170, "{names:?}");
        }
    }
}
