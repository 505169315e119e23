/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The round trips of each TCP connection, from the average that TCP keeps; and who opened it. */
#pragma once
#include "marks.h"

enum {
	BUCKETS = 96,
	RTTS = 65536, /* sockets whose round trips are told apart at once */
};

/* The round trips of a socket. Only the context that holds the socket's lock writes it. */
struct rtt {
	__u32 srtt_us; /* as it was at the last segment */
	__u32 delivered;
	__u32 min_us;
	__u32 max_us;
	__u32 waiting; /* segments that arrived when data waited to be sent */
	__u32 drained; /* … when all data was on its way */
	__u32 buckets[BUCKETS];
};

/* Of sockets to which a segment came since we watch. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct rtt);
} rtts SEC(".maps");

/* Four buckets an octave, so that a bound is at most a quarter off; below 4 µs each has its own. */
static __always_inline __u32 bucket_of(__u32 us)
{
	__u32 octave = 0, bucket;

	if (us < 4)
		return us;
	for (int step = 16; step; step /= 2)
		if (us >> (octave + step))
			octave += step;
	bucket = (octave - 1) * 4 + (us >> (octave - 2) & 3);
	return bucket < BUCKETS ? bucket : BUCKETS - 1;
}

static __always_inline void add_sample(struct rtt *rtt, __u32 us)
{
	__u32 bucket = bucket_of(us);

	if ((__s32)us < 0)
		return; /* the average began anew */
	barrier_var(bucket);
	if (bucket < BUCKETS)
		rtt->buckets[bucket]++;
	if (us < rtt->min_us)
		rtt->min_us = us;
	if (us > rtt->max_us)
		rtt->max_us = us;
}

static __always_inline struct rtt *begin_rtt(struct sock *sk, __u32 srtt_us, __u32 delivered)
{
	struct mark *mark;
	struct rtt *rtt;

	rtt = figures.rtts < RTTS ? sk_storage_of(&rtts, sk) : 0;
	if (!rtt) {
		__sync_fetch_and_add(&figures.rtts_untracked, 1);
		return 0;
	}
	__sync_fetch_and_add(&figures.rtts, 1);
	rtt->srtt_us = srtt_us;
	rtt->delivered = delivered;
	rtt->min_us = ~0u;
	/* A new connection's average is one sample: that of its handshake. */
	mark = bpf_sk_storage_get(&marks, sk, 0, 0);
	if (mark && mark->is_new && srtt_us)
		add_sample(rtt, srtt_us >> 3);
	return rtt;
}

/*
 * TCP moves the average by the eighth part of what a sample differs from it: `srtt += m - srtt / 8`, where srtt is 8
 * times the average, at most once a segment. So two averages tell the sample between them, to the microsecond. If
 * something was acknowledged and the average stays, the sample was the average.
 */
static __always_inline struct rtt *take_sample(struct sock *sk, const struct tcp_sock *tp)
{
	__u32 srtt_us = tp->srtt_us, delivered = tp->delivered;
	struct rtt *rtt = bpf_sk_storage_get(&rtts, sk, 0, 0);

	if (!rtt)
		return begin_rtt(sk, srtt_us, delivered);
	if (srtt_us != rtt->srtt_us)
		add_sample(rtt, rtt->srtt_us ? srtt_us - rtt->srtt_us + (rtt->srtt_us >> 3) : srtt_us >> 3);
	else if (delivered != rtt->delivered)
		add_sample(rtt, srtt_us >> 3);
	rtt->srtt_us = srtt_us;
	rtt->delivered = delivered;
	return rtt;
}
