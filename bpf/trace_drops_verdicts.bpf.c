/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Packets that a chain of nftables drops: which chain it was.
 *
 * kfree_skb tells that a rule dropped a packet, and not whose. An object of its own, since few may load it: nf_tables
 * is a module of most kernels, and the types of modules are for who has CAP_SYS_ADMIN.
 */
#include "verdicts.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

/* Of the module nf_tables. */
struct nft_pktinfo {
	struct sk_buff *skb;
};

struct nft_table {
	__u64 handle;
	__u16 family : 6;
	char *name;
};

struct nft_chain {
	struct nft_table *table;
	__u64 handle;
	char *name;
};

#pragma clang attribute pop

/* What a chain that has freed the packet returns. */
enum { EPERM = 1, NF_STOLEN = 2, DROPPED = EPERM << 16 | NF_STOLEN };

/* Names are read for the first of the packets that a chain drops in a row. */
static __always_inline void load_chain(struct chain *to, const struct nft_chain *chain)
{
	const struct nft_table *table = BPF_CORE_READ(chain, table);
	/* Memory of a chain that is gone is used again; handles are not. */
	__u64 id = mix(mix((__u64)chain, BPF_CORE_READ(chain, handle)), BPF_CORE_READ(table, handle)) | 1;

	if (to->id == id)
		return;
	__builtin_memset(to, 0, sizeof(*to));
	to->id = id;
	to->family = BPF_CORE_READ_BITFIELD_PROBED(table, family);
	bpf_probe_read_kernel_str(to->table, sizeof(to->table), BPF_CORE_READ(table, name));
	bpf_probe_read_kernel_str(to->name, sizeof(to->name), BPF_CORE_READ(chain, name));
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

/* It runs for every packet that a chain sees, so what is no drop ends at once. */
SEC("fexit/nft_do_chain")
int BPF_PROG(chain_ends, const struct nft_pktinfo *packet, const struct nft_chain *chain, __u32 code)
{
	struct verdict *verdict;
	struct chain *flow;

	if (code != DROPPED)
		return 0;
	verdict = verdict_here();
	if (!verdict || verdict->skb != (__u64)BPF_CORE_READ(packet, skb))
		return 0;
	verdict->skb = 0;
	load_chain(&verdict->chain, chain);
	flow = bpf_map_lookup_elem(&chains, &verdict->slot);
	if (!flow || flow->id == verdict->chain.id)
		return 0;
	if (!flow->id) {
		*flow = verdict->chain;
		return 0;
	}
	/* The rules were loaded anew; or more than one chain drops this flow, and then none is named. */
	if (!is_named_alike(flow, &verdict->chain))
		__builtin_memset(flow, 0, sizeof(*flow));
	flow->id = verdict->chain.id;
	return 0;
}
