/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The routes of the main tables of a network namespace. */
#pragma once
#include "found.h"

static __always_inline void load_hop(struct fib_nh_common *hop)
{
	walk.record.ifindex = BPF_CORE_READ(hop, nhc_oif);
	if (BPF_CORE_READ(hop, nhc_gw_family))
		BPF_CORE_READ_INTO(&walk.record.gateway, hop, nhc_gw.ipv6);
	if (BPF_CORE_READ(hop, nhc_gw_family) == AF_INET)
		__builtin_memset(walk.record.gateway + 4, 0, 12);
}

static __always_inline bool is_told(__u32 type)
{
	return type == RTN_UNICAST || (type >= RTN_BLACKHOLE && type <= RTN_THROW);
}

static long each_alias(__u32 index, void *context)
{
	struct fib_alias *alias = containing(walk.at, fib_alias, fa_list);
	struct fib_info *info;
	__be32 network;
	__u32 type;

	if (!walk.at)
		return 1;
	type = BPF_CORE_READ(alias, fa_type);
	if (BPF_CORE_READ(alias, tb_id) != RT_TABLE_LOCAL && is_told(type)) {
		info = BPF_CORE_READ(alias, fa_info);
		begin(ROUTE, 0);
		walk.record.family = AF_INET;
		walk.record.rtn = type;
		walk.record.prefix = 32 - BPF_CORE_READ(alias, fa_slen);
		walk.record.detail = BPF_CORE_READ(info, fib_protocol);
		walk.record.metric = BPF_CORE_READ(info, fib_priority);
		network = bpf_htonl(walk.key);
		__builtin_memcpy(walk.record.address, &network, 4);
		if (!BPF_CORE_READ(info, nh) && BPF_CORE_READ(info, fib_nhs) > 0)
			load_hop(__builtin_preserve_access_index(&info->fib_nh[0].nh_common));
		add(ROUTE);
	}
	walk.at = next_of(walk.at);
	return 0;
}

/* One step down the tree, or back up. */
static long each_node(__u32 index, void *context)
{
	__u32 level = walk.level, next, bits;
	struct key_vector *node, *child;

	if (level >= LEVELS)
		return 1;
	node = (void *)walk.stack[level].node;
	next = walk.stack[level].next++;
	bits = level ? BPF_CORE_READ(node, bits) : 0; /* the root has one child and no bits */
	if (next >= 1u << (bits & 31)) {
		walk.level--;
		return 0;
	}
	child = 0;
	bpf_probe_read_kernel(&child, sizeof(child),
			      (void *)((__u64)node + bpf_core_field_offset(struct key_vector, tnode) + next * 8ull));
	if (!child)
		return 0;
	if (!BPF_CORE_READ(child, bits)) {
		walk.key = BPF_CORE_READ(child, key);
		walk.at = (__u64)BPF_CORE_READ(child, leaf.first);
		bpf_loop(SAME_PREFIX, each_alias, 0, 0);
		return 0;
	}
	if (level + 1 >= LEVELS)
		return 0;
	walk.level = level + 1;
	walk.stack[level + 1].node = (__u64)child;
	walk.stack[level + 1].next = 0;
	return 0;
}

static long each_ipv6_route(__u32 index, void *context)
{
	struct fib6_info *route = (void *)walk.at;
	__u32 type;

	if (!route)
		return 1;
	type = BPF_CORE_READ(route, fib6_type);
	/* The kernel's own "no route" entry has the largest metric. */
	if (is_told(type) && BPF_CORE_READ(route, fib6_metric) != ~0u) {
		begin(ROUTE, 0);
		walk.record.family = AF_INET6;
		walk.record.rtn = type;
		walk.record.prefix = BPF_CORE_READ(route, fib6_dst.plen);
		walk.record.detail = BPF_CORE_READ(route, fib6_protocol);
		walk.record.metric = BPF_CORE_READ(route, fib6_metric);
		BPF_CORE_READ_INTO(&walk.record.address, route, fib6_dst.addr);
		if (!BPF_CORE_READ(route, nh))
			load_hop(__builtin_preserve_access_index(&route->fib6_nh[0].nh_common));
		add(ROUTE);
	}
	walk.at = (__u64)BPF_CORE_READ(route, fib6_next);
	return 0;
}

/* In order: a node, its left side, its right side. `end` is the node that the walk comes from. */
static long each_ipv6_node(__u32 index, void *context)
{
	struct fib6_node *node = (void *)walk.device, *left, *right, *parent;
	__u64 from = walk.end;

	if (!node)
		return 1;
	left = BPF_CORE_READ(node, left);
	right = BPF_CORE_READ(node, right);
	parent = BPF_CORE_READ(node, parent);
	walk.end = (__u64)node;
	if (from == (__u64)parent) {
		walk.at = (__u64)BPF_CORE_READ(node, leaf);
		bpf_loop(SAME_PREFIX, each_ipv6_route, 0, 0);
		if (left) {
			walk.device = (__u64)left;
			return 0;
		}
	}
	if (right && (from == (__u64)parent || from == (__u64)left) && from != (__u64)right) {
		walk.device = (__u64)right;
		return 0;
	}
	walk.device = (__u64)parent;
	return 0;
}

static __always_inline void add_routes(struct net___all *net)
{
	struct fib6_table *table = BPF_CORE_READ(net, ipv6.fib6_main_tbl);

	walk.level = 0;
	walk.stack[0].node = (__u64)BPF_CORE_READ(net, ipv4.fib_main, tb_data);
	walk.stack[0].next = 0;
	if (walk.stack[0].node)
		bpf_loop(NODES, each_node, 0, 0);
	if (!table)
		return;
	walk.device = (__u64)table + bpf_core_field_offset(struct fib6_table, tb6_root);
	walk.end = 0;
	bpf_loop(NODES, each_ipv6_node, 0, 0);
}
