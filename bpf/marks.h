/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Who opened a TCP socket, as far as it was seen; and what `profile_tcp` counts beside sockets. */
#pragma once
#include "sockets.h"

struct mark {
	__u32 pid;
	char comm[16];
	__u8 is_new;
	__u8 pad[3];
};

/* A listener's mark is copied to the connections that it accepts. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct mark);
} marks SEC(".maps");

/* Counts only grow until no window is open any more. */
struct figures {
	__u64 rtts;               /* sockets that have one */
	__u64 rtts_untracked;     /* segments of sockets beyond these */
	__u64 closed_untracked;   /* connections that closed when there was no room */
	__u64 closed_segments;    /* what those of them sent that were opened since we watch */
	__u64 closed_retransmits; /* … and sent again */
	__u64 closed_rtts_untracked;
	__u64 reset_kinds;
	__u64 resets_untracked;
	__u64 jiffies; /* at the last reading … */
	__u64 ns;      /* … and the time */
};
struct figures figures;

/* A connection that accept() returned has the limit of its listener's queue, which no other has. */
static __always_inline bool is_inbound(const struct sock *sk)
{
	return sk->sk_max_ack_backlog != 0;
}
