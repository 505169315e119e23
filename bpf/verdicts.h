/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The nftables chain that dropped a packet, passed from the program at packet drops to the program at chain ends.
 *
 * A chain frees the packet before it ends (in Linux 6.7, and in stable kernels since 6.1). So the first program writes
 * a note on this CPU, and the second reads it. If an interrupt overwrites the note, no chain is named instead of a
 * wrong one.
 */
#pragma once
#include "packet.h"

enum { CHAIN_NAME = 32 };

/* A base chain, which received the packet. Its rules may have jumped to others. */
struct chain {
	__u64 id; /* unique, also if a later chain reuses the address; 0 = none */
	__u8 family;
	__u8 pad[7];
	char table[CHAIN_NAME]; /* both names are empty for a flow that several chains dropped */
	char name[CHAIN_NAME];
};

struct verdict {
	__u64 skb;  /* the last packet that a firewall dropped; 0 = its flow has no slot */
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

/* The chain that dropped a flow, by the flow's slot. One element if chains are not visible. */
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
