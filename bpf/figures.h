/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Counters of `profile_tcp` besides sockets. */
#pragma once
#include "marks.h"

/* Counters only grow until the last window closes. */
struct figures {
	__u64 rtts;               /* sockets with RTT storage */
	__u64 rtts_untracked;     /* segments of sockets beyond the limit */
	__u64 closed_untracked;   /* connections that closed without a free entry */
	__u64 closed_segments;    /* segments sent by those of them that opened since monitoring began */
	__u64 closed_retransmits; /* … and retransmitted */
	__u64 closed_rtts_untracked;
	__u64 reset_kinds;
	__u64 resets_untracked;
	__u64 replies_untracked;
	__u64 since_ns; /* the first reading */
	__u64 jiffies;  /* at the last reading … */
	__u64 ns;       /* … and the time */
};
struct figures figures;
