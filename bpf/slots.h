/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Where top_traffic counts bytes: an array of slots, each of one UDP socket and one remote while a window is open that
 * has seen them. */
#pragma once
#include "traffic.h"

enum {
	SLOTS = 65536,
	/* What is not tracked, spread by CPU so that a flood does not fight for a cache line. */
	SPREAD = 64,
	UDP_UNTRACKED = 0,
	TCP_UNTRACKED = SPREAD,
	FIRST_SLOT = 2 * SPREAD,
	/* Slots that are looked at for a free one: so much, at most, a datagram costs when all are taken. */
	PROBES = 8,
	/* Of one socket. A server that everybody asks leaves room for others. */
	REMOTES = 4096,
};

/*
 * What is counted together. The bytes only grow, whoever has the slot, until no window is open: nobody whom a slot was
 * taken from has moved anything in a window that is open, so what they grow by in one is of the socket that has it
 * then.
 */
struct slot {
	struct traffic traffic;
	__u64 id;   /* of the UDP socket and the remote that have it; 0 = nobody */
	__u32 seen; /* window in which it last moved something */
	__u32 pad;
};

/* A look-up in an array is inlined; a hash would cost a third of what is spent on a datagram. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SLOTS);
	__type(key, __u32);
	__type(value, struct slot);
} slots SEC(".maps");

/* Only grow, until no window is open any more. */
struct admission {
	__u64 slots;         /* looked at for UDP sockets, round after round */
	__u64 udp_untracked; /* datagrams of sockets for which there was no slot */
	__u64 udp_merged;    /* datagrams of remotes beyond those that one socket may have */
	__u64 tcp_untracked; /* connections that closed when there was no room */
	__u64 tcp_unknown;   /* of these, opened before we watched: their bytes are not known */
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
 * A slot that is of no open window: never used, or by a socket that has closed or been idle since before they opened.
 * Nobody else looks at the same one at the same time, so that it needs no lock.
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
