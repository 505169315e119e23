/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Which chain of nftables dropped a packet: what the program that sees packets die tells the one that sees chains end.
 *
 * A chain frees the packet before it ends (in Linux 6.7, and in stable kernels as old as 6.1). So the first leaves a
 * note on this CPU, and the second takes it. Where an interrupt wrote over it no chain is named, and no wrong one.
 */
#pragma once
#include "packet.h"

enum { CHAIN_NAME = 32 };

/* A base chain. Its rules may have jumped elsewhere; it is where the packet came in. */
struct chain {
	__u64 id; /* of this chain and of no later one at the same address; 0 = none */
	__u8 family;
	__u8 pad[7];
	char table[CHAIN_NAME]; /* both names are empty for a flow that several chains dropped */
	char name[CHAIN_NAME];
};

struct verdict {
	__u64 skb;  /* the packet that a firewall dropped last; 0 = its flow has no slot */
	__u32 slot; /* of its flow */
	__u32 pad;
	struct chain chain; /* the last one that dropped a packet */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct verdict);
} verdicts SEC(".maps");

/* The chain that dropped a flow, by the flow's slot. One element where no chain is seen. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct chain);
} chains SEC(".maps");

static __always_inline struct verdict *verdict_here(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&verdicts, &zero);
}
