/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Claims of IP addresses: by senders of ARP, and by hosts that answer neighbor discovery. */
#pragma once
#include "control.h"
#include "dscp.h"
#include "networks.h"
#include "next.h"

enum { CLAIMS = 2048 };

/* The receiving device, and the claim. */
struct claim {
	__u32 netns;
	__u32 ifindex;
	__u8 address[16];
	__u8 hardware[6];
	__u8 family;
	__u8 pad;
};

/* CLOCK_MONOTONIC. */
struct times {
	__u64 first_ns;
	__u64 last_ns;
	__u64 count;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, CLAIMS);
	__type(key, struct claim);
	__type(value, struct times);
} claims SEC(".maps");

/* Claims that did not fit into the map. */
__u64 claims_lost;

/* RFC 826, for Ethernet and IPv4. */
struct arp {
	__be16 hardware_type;
	__be16 protocol_type;
	__u8 hardware_length;
	__u8 protocol_length;
	__be16 operation;
	__u8 sender_hardware[6];
	__u8 sender[4];
} __attribute__((packed));

static __always_inline void note_claim(const struct claim *claim)
{
	struct times *known = bpf_map_lookup_elem(&claims, claim), new = {};

	if (known) {
		known->last_ns = bpf_ktime_get_ns();
		__sync_fetch_and_add(&known->count, 1);
		return;
	}
	new.first_ns = new.last_ns = bpf_ktime_get_ns();
	new.count = 1;
	if (bpf_map_update_elem(&claims, claim, &new, BPF_NOEXIST))
		__sync_fetch_and_add(&claims_lost, 1);
}

static __always_inline void arp_arrives(struct sk_buff *skb)
{
	struct claim claim = {};
	struct arp arp;

	if (bpf_probe_read_kernel(&arp, sizeof(arp), skb->data) || arp.hardware_length != 6 || arp.protocol_length != 4)
		return;
	/* An address probe has no sender address. */
	if (!arp.sender[0])
		return;
	claim.netns = BPF_CORE_READ(skb, dev, nd_net.net, ns.inum);
	claim.ifindex = BPF_CORE_READ(skb, dev, ifindex);
	claim.family = AF_INET;
	__builtin_memcpy(claim.address, arp.sender, 4);
	__builtin_memcpy(claim.hardware, arp.sender_hardware, 6);
	note_claim(&claim);
}

NEXT_OF(packet_arrives);

/* Every arriving packet passes here. */
SEC("tp_btf/netif_receive_skb")
int BPF_PROG(packet_arrives, struct sk_buff *skb)
{
	if (skb->protocol == bpf_htons(ETH_P_ARP)) {
		arp_arrives(skb);
	} else {
		note_control(skb, (__u64)skb->data, false);
		note_mark(skb, (__u64)skb->data);
	}
	RUN_NEXT(packet_arrives);
	return 0;
}

/* What IPv6 learns about its neighbors; `new` is the new state. Entries of an administrator are not claims. */
SEC("tp_btf/neigh_update")
int BPF_PROG(neighbor_learned, struct neighbour *neighbor, const __u8 *hardware, __u8 new, __u32 flags)
{
	const __u32 by_admin = 0x80000000; /* NEIGH_UPDATE_F_ADMIN */
	struct claim claim = {};

	if (!hardware || flags & by_admin || BPF_CORE_READ(neighbor, tbl, family) != AF_INET6)
		return 0;
	claim.netns = BPF_CORE_READ(neighbor, dev, nd_net.net, ns.inum);
	claim.ifindex = BPF_CORE_READ(neighbor, dev, ifindex);
	claim.family = AF_INET6;
	bpf_probe_read_kernel(claim.address, 16, __builtin_preserve_access_index(&neighbor->primary_key));
	bpf_probe_read_kernel(claim.hardware, 6, hardware);
	note_claim(&claim);
	return 0;
}
