/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The nftables chain that dropped a packet.
 *
 * kfree_skb shows that a rule dropped a packet, but not the rule. This is a separate object, since few can load it: in
 * most kernels nf_tables is a module, and reading the types of modules requires CAP_SYS_ADMIN.
 */
#include "verdicts.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

/* From the module nf_tables. */
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

/* The return value of a chain that has freed the packet. */
enum { EPERM = 1, NF_STOLEN = 2, DROPPED = EPERM << 16 | NF_STOLEN };

/* Names are read once for consecutive drops by a chain. */
static __always_inline void load_chain(struct chain *to, const struct nft_chain *chain)
{
	const struct nft_table *table = BPF_CORE_READ(chain, table);
	/* The kernel may reuse a chain's memory, but not its handle. */
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

/* Runs for every packet of a chain, so other verdicts return at once. */
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
	/* The rules were reloaded; or several chains drop this flow, and then none is named. */
	if (!is_named_alike(flow, &verdict->chain))
		__builtin_memset(flow, 0, sizeof(*flow));
	flow->id = verdict->chain.id;
	return 0;
}
