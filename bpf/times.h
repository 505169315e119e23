/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Histograms of times. */
#pragma once
#include "kernel.h"

enum {
	TIME_BUCKETS = 208, /* eight per octave, up to 2^28 µs */
	SUBDIVISION = 3,    /* log2 of the buckets per octave */
};

struct times {
	__u64 sum_us;
	__u32 max_us;
	__u32 pad;
	__u32 buckets[TIME_BUCKETS];
};

/* Below 8 µs each value has its own. A bound is at most an eighth off. */
static __always_inline __u32 time_bucket(__u32 us)
{
	__u32 octave = 0, bucket;

	if (us < 1 << SUBDIVISION)
		return us;
	for (int step = 16; step; step /= 2)
		if (us >> (octave + step))
			octave += step;
	bucket =
	    ((octave - SUBDIVISION + 1) << SUBDIVISION) + (us >> (octave - SUBDIVISION) & ((1 << SUBDIVISION) - 1));
	return bucket < TIME_BUCKETS ? bucket : TIME_BUCKETS - 1;
}

static __always_inline void count_time(struct times *times, __u32 us, __u32 weight)
{
	__u32 bucket = time_bucket(us);

	barrier_var(bucket);
	if (bucket < TIME_BUCKETS)
		__sync_fetch_and_add(&times->buckets[bucket], weight);
	__sync_fetch_and_add(&times->sum_us, (__u64)us * weight);
	if (us > times->max_us)
		times->max_us = us;
}

static __always_inline __u32 capped_us(__u64 ns)
{
	__u64 us = ns / 1000;

	return us > ~0u ? ~0u : us;
}
