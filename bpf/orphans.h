/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Orphans: TCP sockets that their process has closed and that still send. No process holds them. iter/tcp lists those
 * of our own network namespace. For other namespaces, a table records them when their process closes them. A later read
 * uses the recorded address.
 *
 * The table is an array searched by cookie: a hash would cost an allocation per connection.
 *
 * Include this after `#define ORPHAN_OWNER`, the type of the tool's data about an orphan's owner.
 */
#pragma once
#include "files.h"
#include "namespaces.h"

enum {
	ORPHANS = 8192,
	ORPHAN_PROBES = 8,     /* slots that are tried per socket */
	ORPHANS_AT_ONCE = 200, /* rows of one run of an iterator, which may write 32 KiB */
};

/* Instead of a cookie: the slot is free, or about to be filled. */
#define ORPHAN_NONE    0ull
#define ORPHAN_FILLING (~0ull)

struct orphan {
	__u64 cookie;
	__u64 address;
	ORPHAN_OWNER owner; /* at the time when its process closed the socket */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ORPHANS);
	__type(key, __u32);
	__type(value, struct orphan);
} orphans SEC(".maps");

/* Sockets without a free slot. */
__u64 orphans_untracked;
/* The slot at which the next run of the iterator continues; 0 = the table was read to its end. */
__u64 orphans_from;

/* close() and shutdown() lead to these two states, in the calling process. */
static __always_inline bool begins_close(int state)
{
	return state == TCP_FIN_WAIT1 || state == TCP_LAST_ACK;
}

/* The states after these two, until CLOSE. */
static __always_inline bool is_closing(int state)
{
	return begins_close(state) || state == TCP_FIN_WAIT2 || state == TCP_CLOSING;
}

static __always_inline struct orphan *orphan_slot(__u64 cookie, int probe)
{
	__u32 slot = (cookie + probe) % ORPHANS;

	return bpf_map_lookup_elem(&orphans, &slot);
}

static __always_inline void note_orphan(struct sock *sk, const ORPHAN_OWNER *owner)
{
	__u64 cookie;

	if (!is_elsewhere(sk))
		return;
	cookie = name_of(sk);
	for (int i = 0; i < ORPHAN_PROBES; i++) {
		struct orphan *orphan = orphan_slot(cookie, i);

		if (!orphan)
			return;
		if (__sync_val_compare_and_swap(&orphan->cookie, ORPHAN_NONE, ORPHAN_FILLING) != ORPHAN_NONE)
			continue;
		orphan->address = (__u64)sk;
		orphan->owner = *owner;
		__sync_lock_test_and_set(&orphan->cookie, cookie);
		return;
	}
	__sync_fetch_and_add(&orphans_untracked, 1);
}

/* For the change to CLOSE of a closing socket. */
static __always_inline void forget_orphan(struct sock *sk)
{
	__u64 cookie;

	if (!is_elsewhere(sk))
		return;
	cookie = name_of(sk);
	for (int i = 0; i < ORPHAN_PROBES; i++) {
		struct orphan *orphan = orphan_slot(cookie, i);

		if (!orphan || __sync_val_compare_and_swap(&orphan->cookie, cookie, ORPHAN_NONE) == cookie)
			return;
	}
}

/* Room for a copy of a socket. User space lets one reader in at a time. */
struct socket_copy {
	__u8 bytes[4096];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct socket_copy);
} socket_copies SEC(".maps");

struct orphan_walk {
	struct seq_file *seq;
	__u32 from;
	__u32 rows;
};

/*
 * A copy of the socket, or null. The kernel reuses the memory of a TCP socket only for TCP sockets while a program that
 * reads it runs (SLAB_TYPESAFE_BY_RCU), and never reuses a cookie. So a copy with the same cookie is the same socket.
 * An old socket may have none (`name_of()`), and every newer one has one. If the socket is gone, its slot is freed: no
 * program was attached at its end.
 */
static __always_inline const struct tcp_sock *copy_orphan(struct orphan *orphan, __u64 cookie)
{
	__u32 zero = 0, size = bpf_core_type_size(struct tcp_sock);
	struct socket_copy *copy = bpf_map_lookup_elem(&socket_copies, &zero);
	const struct sock *sk = (const void *)copy;

	if (!copy)
		return 0;
	if (size > sizeof(*copy))
		size = sizeof(*copy);
	if (!bpf_probe_read_kernel(copy, size, (void *)orphan->address) &&
	    (sk->__sk_common.skc_cookie.counter ?: orphan->address) == cookie && sk->__sk_common.skc_state != TCP_CLOSE)
		return (const void *)copy;
	__sync_val_compare_and_swap(&orphan->cookie, cookie, ORPHAN_NONE);
	return 0;
}

/* For each slot of the table: the socket for the next row, or null. Sets `orphans_from` when the buffer is full. */
static __always_inline const struct tcp_sock *next_orphan(__u32 slot, struct orphan *orphan, struct orphan_walk *walk)
{
	__u64 cookie = orphan->cookie;

	if (cookie == ORPHAN_NONE || cookie == ORPHAN_FILLING || slot < walk->from || orphans_from)
		return 0;
	if (walk->rows == ORPHANS_AT_ONCE) {
		orphans_from = slot;
		return 0;
	}
	walk->rows++;
	return copy_orphan(orphan, cookie);
}

/*
 * Runs `list` for each slot. An iterator runs without capabilities. It iterates over maps, since there are few, and at
 * least one: ours.
 */
static __always_inline int walk_orphans(struct bpf_iter__bpf_map *ctx,
					long (*list)(struct bpf_map *, const __u32 *, struct orphan *,
						     struct orphan_walk *))
{
	struct orphan_walk walk = { .seq = ctx->meta->seq, .from = orphans_from };

	if (!ctx->map || ctx->meta->seq_num)
		return 0;
	orphans_from = 0;
	bpf_for_each_map_elem(&orphans, list, &walk, 0);
	return 0;
}

/* The verifier does not know pointers inside a copy. */
static __always_inline __u64 copied_cgroup(const struct tcp_sock *tp)
{
	return BPF_CORE_READ(tp, inet_conn.icsk_inet.sk.sk_cgrp_data.cgroup, kn, id);
}

static __always_inline __u32 copied_netns(const struct tcp_sock *tp)
{
	return sock_netns(&tp->inet_conn.icsk_inet.sk);
}
