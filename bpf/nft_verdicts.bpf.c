/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Packets that a chain of nftables drops: which chain it was.
 *
 * kfree_skb tells that a rule dropped a packet, and not whose. An object of its own, since few may load it: nf_tables
 * is a module of most kernels, and the types of modules are for who has CAP_SYS_ADMIN.
 */
#include "verdicts.h"

enum { NF_DROP = 0, NF_STOLEN = 2, NF_VERDICT_MASK = 0xff };
enum { EPERM = 1 };

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

/* It runs for every packet that a chain sees, so what is no drop ends at once. */
SEC("fexit/nft_do_chain")
int BPF_PROG(chain_ends, const struct nft_pktinfo *packet, const struct nft_chain *chain, __u32 code)
{
	bool dead = code == (EPERM << 16 | NF_STOLEN);
	struct verdict *verdict;
	struct chain *flow;
	__u64 skb;

	if (!dead && (code & NF_VERDICT_MASK) != NF_DROP)
		return 0;
	verdict = verdict_here();
	if (!verdict)
		return 0;
	load_chain(&verdict->chain, chain);
	skb = (__u64)BPF_CORE_READ(packet, skb);
	if (!dead) {
		verdict->condemned = skb;
		return 0;
	}
	if (verdict->dead == skb) {
		flow = bpf_map_lookup_elem(&chains, &verdict->slot);
		if (flow)
			dropped_by(flow, &verdict->chain);
	}
	verdict->dead = 0;
	return 0;
}
