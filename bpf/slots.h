/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The byte counters of top_traffic: an array of slots. While a window is open, each slot belongs to one UDP socket and
 * one remote.
 */
#pragma once
#include "traffic.h"

enum {
	SLOTS = 65536,
	/* Untracked bytes, spread by CPU so that a flood does not contend for a cache line. */
	SPREAD = 64,
	UDP_UNTRACKED = 0,
	TCP_UNTRACKED = SPREAD,
	FIRST_SLOT = 2 * SPREAD,
	/* Slots searched for a free one. This bounds the cost of a datagram when all slots are taken. */
	PROBES = 8,
	/* Per socket. A busy server leaves slots for others. */
	REMOTES = 4096,
};

/*
 * A group of counters. The bytes only grow, under any owner, until the last window closes. The previous owner of a slot
 * moved nothing in an open window, so the growth within a window belongs to the current owner.
 */
struct slot {
	struct traffic traffic;
	__u64 id;   /* of the UDP socket and remote that own it; 0 = free */
	__u32 seen; /* window of its last transfer */
	__u32 pad;
};

/* An array look-up is inlined. A hash would take a third of the time spent on a datagram. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SLOTS);
	__type(key, __u32);
	__type(value, struct slot);
} slots SEC(".maps");

/* They only grow until the last window closes. */
struct admission {
	__u64 slots;         /* searched for UDP sockets, cyclically */
	__u64 udp_untracked; /* datagrams of sockets without a slot */
	__u64 udp_merged;    /* datagrams of remotes beyond the limit per socket */
	__u64 tcp_untracked; /* connections that closed without a free entry */
	__u64 tcp_unknown;   /* of these, opened before monitoring: their bytes are unknown */
};
struct admission admission;

static __always_inline void add(struct slot *slot, __u64 rx_bytes, __u64 tx_bytes)
{
	if (rx_bytes)
		__sync_fetch_and_add(&slot->traffic.rx_bytes, rx_bytes);
	if (tx_bytes)
		__sync_fetch_and_add(&slot->traffic.tx_bytes, tx_bytes);
}

static __always_inline void add_untracked(__u32 first, __u64 rx_bytes, __u64 tx_bytes)
{
	__u32 index = first + bpf_get_smp_processor_id() % SPREAD;
	struct slot *slot = bpf_map_lookup_elem(&slots, &index);

	if (slot)
		add(slot, rx_bytes, tx_bytes);
}

/*
 * A slot without an open window: unused, or its socket closed or idle since before they opened. No two callers examine
 * the same slot at once, so this needs no lock.
 */
static __always_inline struct slot *free_slot(__u32 *index)
{
	for (int i = 0; i < PROBES; i++) {
		struct slot *slot;

		*index = FIRST_SLOT + __sync_fetch_and_add(&admission.slots, 1) % (SLOTS - FIRST_SLOT);
		slot = bpf_map_lookup_elem(&slots, index);
		if (slot && (__s32)(slot->seen - windows.oldest) < 0)
			return slot;
	}
	return 0;
}
