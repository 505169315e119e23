/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The record of a TCP connection, its filters, and attempts that end before a connection exists. */
#pragma once
#include "direction.h"
#include "ring.h"

enum { EAGAIN = 11, EACCES = 13, EINVAL = 22, EAFNOSUPPORT = 97, EADDRNOTAVAIL = 99, ENETUNREACH = 101 };
enum { EISCONN = 106, EHOSTUNREACH = 113, EALREADY = 114, EINPROGRESS = 115, ERESTARTSYS = 512 };

enum end {
	OPEN,
	CONNECTING,
	CLOSED,  /* by both sides, in order */
	ABORTED, /* by a reset that this side sent */
	BROKEN,  /* was established, and ended with an error */
	FAILED,  /* never established */
};

struct connection {
	__u64 start_ns;       /* CLOCK_MONOTONIC; 0 = before the first window. With `unread`: the listener or ring */
	__u64 established_ns; /* 0 = not established, or before the first window */
	__u64 end_ns;         /* 0 = still open */
	__u64 rx_bytes;       /* payload, each byte once */
	__u64 tx_bytes;
	struct owner owner;
	struct endpoints endpoints;
	__u32 rtt_us; /* smoothed */
	__u32 retransmits;
	__s32 error; /* errno */
	__u8 direction;
	__u8 end;
	__u8 closing; /* its process had closed it before it ended */
	__u8 claim;   /* enum claim of the holder that the row names; 0 if a record names the owner */
	__u32 unread; /* not 0: the number of connections of this listener, or ring (CLAIM_UNREAD), without a row */
};
const struct connection *connection_type __attribute__((unused));

/* The common filter of all open windows. A field is zero if the windows differ in it or do not set it. */
struct wanted {
	__u64 remote[2]; /* of a range: the part that `mask` covers */
	__u64 mask[2];
	__u32 pid;
	__u16 port; /* of either end */
	__u8 direction;
	__u8 failed; /* failed connections only */
	char comm[16];
};
const struct wanted *wanted_type __attribute__((unused));

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct wanted);
} filter SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 512 * 1024);
} connections SEC(".maps");

struct figures {
	__u64 lost; /* connections lost because the ring buffer or the memory for tracks was full */
} figures;

/* Up to the end of the name. Bytes after it may be left over from an older name. */
static __always_inline bool same_name(const char a[16], const char b[16])
{
	for (int i = 0; i < 16; i++) {
		if (a[i] != b[i])
			return false;
		if (!a[i])
			return true;
	}
	return true;
}

static __always_inline bool wanted(const struct connection *c)
{
	__u32 zero = 0;
	const struct wanted *w = bpf_map_lookup_elem(&filter, &zero);
	const __u64 *remote = (const void *)c->endpoints.remote;

	if (!w)
		return true;
	if (w->direction && w->direction != c->direction)
		return false;
	if (w->failed && c->end <= CLOSED)
		return false;
	if (w->port && w->port != c->endpoints.remote_port && w->port != c->endpoints.local_port)
		return false;
	if (w->pid && w->pid != c->owner.pid)
		return false;
	if (w->comm[0] && !same_name(w->comm, c->owner.comm))
		return false;
	return (remote[0] & w->mask[0]) == w->remote[0] && (remote[1] & w->mask[1]) == w->remote[1];
}

static __always_inline void emit(const struct connection *c)
{
	if (wanted(c) && !put(&connections, c, sizeof(*c)))
		__sync_fetch_and_add(&figures.lost, 1);
}

static __always_inline bool current_is_kernel(void)
{
	return bpf_get_current_task_btf()->flags & PF_KTHREAD;
}
