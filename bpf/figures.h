/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* What `profile_tcp` counts beside sockets. */
#pragma once
#include "marks.h"

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
	__u64 since;   /* jiffies at the first reading */
	__u64 jiffies; /* at the last reading … */
	__u64 ns;      /* … and the time */
};
struct figures figures;
