/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * DSCP marks that change while a packet is forwarded. The same CPU takes a packet from one device and queues it at the
 * next one without a pause, so one place for each CPU remembers the packet that came last, if it has a mark.
 */
#pragma once
#include "packet.h"

enum { REMARKS = 512 };

/* What tells a packet from what it is wrapped in: its length, and what names it. */
struct marked {
	__u64 skb; /* 0 = the last packet had no mark */
	__u64 name;
	__u32 ifindex;
	__u8 dscp;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct marked);
} last_marked SEC(".maps");

/* A change, by the ends of those that had it, as they leave. */
struct remark {
	__u32 netns;
	__u32 from; /* the devices that they come in and leave by */
	__u32 to;
	__u8 source[16];
	__u8 destination[16];
	__u8 family;
	__u8 protocol;
	__u8 before;
	__u8 after;
};

struct remark_times {
	__u64 last_ns; /* CLOCK_MONOTONIC */
	__u64 count;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, REMARKS);
	__type(key, struct remark);
	__type(value, struct remark_times);
} remarks SEC(".maps");

/* Changes that found no room. */
__u64 remarks_lost;

struct ipv6hdr {
	__u8 flow_lbl[3];
	__be16 payload_len;
	__u8 nexthdr;
} __attribute__((preserve_access_index));

static __always_inline bool has_ip_header(struct sk_buff *skb, __u64 from)
{
	if (skb->protocol != bpf_htons(ETH_P_IP) && skb->protocol != bpf_htons(ETH_P_IPV6))
		return false;
	return (__u64)skb->head + skb->tail >= from + 20;
}

/* Old kernels cannot read in place, so this copies the first bytes. */
static __always_inline bool copy_start(struct sk_buff *skb, __u64 from, __u8 header[12])
{
	return !bpf_probe_read_kernel(header, 12, (void *)from);
}

/* The DSCP mark. 0 = no mark, or not IP. */
static __always_inline __u8 dscp_of(struct sk_buff *skb, __u64 from)
{
	bool is_ipv4 = skb->protocol == bpf_htons(ETH_P_IP);
	const struct ipv6hdr *ipv6;
	__u8 header[12] = {};

	if (!has_ip_header(skb, from))
		return 0;
	if (bpf_ksym_exists(bpf_rdonly_cast)) {
		if (is_ipv4)
			return cast_to(iphdr, from)->tos >> 2;
		ipv6 = cast_to(ipv6hdr, from);
		return (*(const __u8 *)ipv6 & 15) << 2 | ipv6->flow_lbl[0] >> 6;
	}
	if (!copy_start(skb, from, header))
		return 0;
	return is_ipv4 ? header[1] >> 2 : (header[0] & 15) << 2 | header[1] >> 6;
}

/* Of a packet with an IP header. */
static __always_inline __u64 name_of(struct sk_buff *skb, __u64 from)
{
	bool is_ipv4 = skb->protocol == bpf_htons(ETH_P_IP);
	const struct ipv6hdr *ipv6;
	const struct iphdr *ip;
	__u8 header[12] = {};

	if (bpf_ksym_exists(bpf_rdonly_cast)) {
		ip = cast_to(iphdr, from);
		if (is_ipv4)
			return (__u64)ip->protocol << 32 | (__u32)ip->tot_len << 16 | ip->id;
		ipv6 = cast_to(ipv6hdr, from);
		return (__u32)ipv6->payload_len << 16 | ipv6->nexthdr;
	}
	if (!copy_start(skb, from, header))
		return 0;
	if (is_ipv4)
		return (__u64)header[9] << 32 | (__u32)(header[2] | header[3] << 8) << 16 | header[4] | header[5] << 8;
	return (__u32)(header[4] | header[5] << 8) << 16 | header[6];
}

static __always_inline struct marked *marked_here(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&last_marked, &zero);
}

/* A packet without a mark takes the place as well: the memory of the one before may be its own now. */
static __always_inline void note_mark(struct sk_buff *skb, __u64 from)
{
	struct marked *marked = marked_here();
	__u8 dscp = dscp_of(skb, from);

	if (!marked)
		return;
	marked->skb = 0;
	if (!dscp)
		return;
	marked->skb = (__u64)skb;
	marked->name = name_of(skb, from);
	marked->ifindex = skb->dev->ifindex;
	marked->dscp = dscp;
}

static __noinline int add_remark(struct sk_buff *skb, __u64 from, const struct marked *marked, __u8 dscp)
{
	__u8 header[HEADER] __attribute__((aligned(8))) = {};
	struct remark remark = { .from = marked->ifindex, .before = marked->dscp, .after = dscp };
	struct remark_times *known, new = { .count = 1 };

	if (copy_from(skb, header, from) < 20)
		return 0;
	remark.netns = BPF_CORE_READ(skb, dev, nd_net.net, ns.inum);
	remark.to = BPF_CORE_READ(skb, dev, ifindex);
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		remark.family = AF_INET;
		remark.protocol = header[9];
		__builtin_memcpy(remark.source, header + 12, 4);
		__builtin_memcpy(remark.destination, header + 16, 4);
	} else {
		remark.family = AF_INET6;
		remark.protocol = header[6];
		__builtin_memcpy(remark.source, header + 8, 16);
		__builtin_memcpy(remark.destination, header + 24, 16);
	}
	new.last_ns = bpf_ktime_get_ns();
	known = bpf_map_lookup_elem(&remarks, &remark);
	if (known) {
		known->last_ns = new.last_ns;
		__sync_fetch_and_add(&known->count, 1);
	} else if (bpf_map_update_elem(&remarks, &remark, &new, BPF_NOEXIST)) {
		__sync_fetch_and_add(&remarks_lost, 1);
	}
	return 0;
}

/* What is made here did not come by a device. */
static __always_inline void compare_mark(struct sk_buff *skb, __u64 from)
{
	struct marked *marked;
	__u8 dscp;

	if (!skb->skb_iif)
		return;
	marked = marked_here();
	if (!marked || marked->skb != (__u64)skb || !has_ip_header(skb, from))
		return;
	dscp = dscp_of(skb, from);
	if (dscp != marked->dscp && name_of(skb, from) == marked->name)
		add_remark(skb, from, marked, dscp);
}
