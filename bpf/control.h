/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Packets by which a network is set up: DHCP and OSPF over IPv4, where they leave a device and where they arrive. */
#pragma once
#include "packet.h"

enum { CONTROL = 1024, CONTROL_DATA = 400 };
/* The longest that a router waits before it says Hello again, on the networks where that is common. */
#define STALE_NS 60000000000ull

enum { DHCP_SERVER = 67, DHCP_CLIENT = 68, OSPF = 89 };

/* Packets that are alike: the same transaction, or the same router's. */
struct control_key {
	__u32 netns;
	__u32 ifindex;
	__be32 source;
	__u32 id; /* DHCP: the transaction */
	__u8 egress;
	__u8 protocol; /* UDP or OSPF */
	__u8 kind;     /* what the message is, where it stands where it mostly does */
	__u8 pad;
};

struct control {
	__u64 first_ns; /* CLOCK_MONOTONIC */
	__u64 last_ns;
	__u64 count;
	__be32 destination;
	__u32 length;
	__u8 data[CONTROL_DATA]; /* of the last one, behind the header of UDP or IP */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, CONTROL);
	__type(key, struct control_key);
	__type(value, struct control);
} controls SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct control);
} control_room SEC(".maps");

/* Packets that found no room. */
__u64 controls_lost;

static __always_inline bool is_dhcp(__u32 ports)
{
	__u16 from = bpf_ntohs(ports & 0xffff), to = bpf_ntohs(ports >> 16);

	return (to == DHCP_SERVER || to == DHCP_CLIENT) && (from == DHCP_SERVER || from == DHCP_CLIENT);
}

/* The kind of a DHCP message is its first option, or is not looked for. */
static __always_inline void load_control_key(struct control_key *key, const struct control *room)
{
	const __u8 *data = room->data;

	if (key->protocol == OSPF) {
		key->kind = data[1];
		return;
	}
	key->id = *(const __u32 *)(data + 4);
	if (data[240] == 53)
		key->kind = data[242];
}

/* Copies what is behind a header. */
static __always_inline bool load_control(struct sk_buff *skb, __u64 at, struct control *room)
{
	__u64 end = (__u64)skb->head + skb->tail, length = end - at;

	__builtin_memset(room, 0, sizeof(*room));
	if (end <= at)
		return false;
	if (length > CONTROL_DATA)
		length = CONTROL_DATA;
	barrier_var(length);
	if (length > CONTROL_DATA || bpf_probe_read_kernel(room->data, length, (void *)at))
		return false;
	room->length = length;
	room->first_ns = room->last_ns = bpf_ktime_get_ns();
	room->count = 1;
	return true;
}

/* Where `read_ipv4` cannot. */
static __always_inline bool copy_ipv4(struct sk_buff *skb, __u64 from, struct ipv4 *ip)
{
	__u8 header[HEADER] __attribute__((aligned(8))) = {};

	if (copy_from(skb, header, from) < 28)
		return false;
	ip->offset = (header[0] & 15) * 4;
	ip->protocol = header[9];
	ip->fragment = word_at(header, 4) >> 16 & bpf_htons(0x1fff);
	ip->source = word_at(header, 12);
	ip->destination = word_at(header, 16);
	ip->word = word_at(header, ip->offset);
	return true;
}

static __noinline int add_control(struct sk_buff *skb, __u64 from, __u8 egress)
{
	struct control_key key = { .egress = egress };
	struct control *room, *known;
	struct ipv4 ip = {};
	__u32 zero = 0;

	if (!read_ipv4(skb, from, &ip) && (bpf_ksym_exists(bpf_rdonly_cast) || !copy_ipv4(skb, from, &ip)))
		return 0;
	if (ip.fragment || !(ip.protocol == OSPF || (ip.protocol == IPPROTO_UDP && is_dhcp(ip.word))))
		return 0;
	room = bpf_map_lookup_elem(&control_room, &zero);
	if (!room || !load_control(skb, from + ip.offset + (ip.protocol == OSPF ? 0 : 8), room))
		return 0;
	key.protocol = ip.protocol;
	key.source = ip.source;
	load_control_key(&key, room);
	key.netns = BPF_CORE_READ(skb, dev, nd_net.net, ns.inum);
	key.ifindex = BPF_CORE_READ(skb, dev, ifindex);
	room->destination = ip.destination;
	known = bpf_map_lookup_elem(&controls, &key);
	/* An old entry belongs to an earlier transaction. */
	if (known && room->last_ns - known->last_ns < STALE_NS) {
		room->first_ns = known->first_ns;
		room->count = known->count + 1;
	}
	if (bpf_map_update_elem(&controls, &key, room, BPF_ANY))
		__sync_fetch_and_add(&controls_lost, 1);
	return 0;
}

/*
 * Every packet passes here. Most are neither DHCP nor OSPF, and end at the protocol or, behind a header without
 * options, at the ports of UDP.
 */
static __always_inline void note_control(struct sk_buff *skb, __u64 from, bool egress)
{
	const struct udphdr *udp;
	const struct iphdr *ip;

	if (skb->protocol != bpf_htons(ETH_P_IP))
		return;
	if (bpf_ksym_exists(bpf_rdonly_cast)) {
		ip = cast_to(iphdr, from);
		if (ip->protocol != OSPF && ip->protocol != IPPROTO_UDP)
			return;
		udp = cast_to(udphdr, from + 20);
		if (ip->protocol == IPPROTO_UDP && *(const __u8 *)ip == 0x45 &&
		    !is_dhcp(udp->source | (__u32)udp->dest << 16))
			return;
	}
	add_control(skb, from, egress);
}
