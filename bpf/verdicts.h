/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Which chain of nftables decided that a packet dies: what the program that sees chains end and the one that sees
 * packets die tell each other.
 *
 * Until Linux 6.6 a packet dies when its chain has ended, since 6.7 while it runs. So who comes first leaves a note on
 * this CPU, and the other one takes it. A note that an interrupt wrote over names nothing, and nothing wrong.
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
	__u64 condemned; /* a packet whose chain has ended, and which is still to die; 0 = none */
	__u64 dead;      /* a packet that has died, and whose chain is still to end; 0 = none */
	__u32 slot;      /* of its flow */
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

static __always_inline bool is_named_alike(const struct chain *a, const struct chain *b)
{
	const __u64 *x = (const void *)&a->family, *y = (const void *)&b->family;

	for (int i = 0; i < (8 + 2 * CHAIN_NAME) / 8; i++) {
		if (x[i] != y[i])
			return false;
	}
	return true;
}

/* A packet of the flow was dropped by this chain. One by another is not told apart; the names are none then. */
static __always_inline void dropped_by(struct chain *flow, const struct chain *chain)
{
	if (flow->id == chain->id)
		return;
	if (!flow->id) {
		*flow = *chain;
		return;
	}
	if (!is_named_alike(flow, chain))
		__builtin_memset(flow, 0, sizeof(*flow));
	flow->id = chain->id;
}
