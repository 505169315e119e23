/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The record of a socket in top_traffic. */
#pragma once
#include "marks.h"

enum { FLOWS = 65536 };

struct traffic {
	__u64 rx_bytes;
	__u64 tx_bytes;
};

/* A TCP socket as it is, or a counted UDP socket. */
struct socket_bytes {
	__u64 cookie;
	__u64 address; /* TCP */
	__u64 cgroup;
	struct traffic traffic;
	__u32 pid;
	__u32 netns;
	char comm[16];
	struct endpoints endpoints;
	__u32 window; /* TCP: the newest window when it was opened; 0 = before monitoring */
	__u32 unread; /* not 0: connections of this listener, or sockets of this ring, without a row */
	__u8 protocol;
	__u8 claim; /* enum claim */
	__u8 orphan;
	__u8 past; /* in a sockmap: REDIRECTS_SENT or REDIRECTS_RECEIVED of past_tcp.h */
};

/* The stored data of a socket that may be gone at the end of the window. */
struct flow {
	struct socket_bytes socket;
	__u64 closed_ns; /* TCP: CLOCK_MONOTONIC */
	__u64 slot;      /* UDP: its counters */
};
