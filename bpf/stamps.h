/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The times that the kernel writes in packets: when one arrived, and when TCP sent it. */
#pragma once
#include "kernel.h"

/* enum skb_tstamp_type */
enum { STAMP_REAL, STAMP_MONOTONIC };

enum { SECOND_NS = 1000000000, STAMP_MAX_S = 60 };

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct sk_buff___stamped {
	__s64 tstamp;
	__u8 tstamp_type : 2;
};

/* Before Linux 6.11. */
struct sk_buff___mono {
	__u8 mono_delivery_time : 1;
};

#pragma clang attribute pop

/* By how much CLOCK_REALTIME is ahead of CLOCK_MONOTONIC. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} clock SEC(".maps");

static __always_inline bool is_stamped(const struct sk_buff *skb, int clock)
{
	const struct sk_buff___stamped *stamped = (const void *)skb;
	const struct sk_buff___mono *mono = (const void *)skb;
	int type = STAMP_REAL;

	if (bpf_core_field_exists(stamped->tstamp_type))
		type = BPF_CORE_READ_BITFIELD(stamped, tstamp_type);
	else if (bpf_core_field_exists(mono->mono_delivery_time))
		type = BPF_CORE_READ_BITFIELD(mono, mono_delivery_time);
	return stamped->tstamp && type == clock;
}

/* A stamp on the clock of bpf_ktime_get_ns(); 0 if it cannot be of an arrival. */
static __always_inline __u64 since_stamp(__u64 stamp, __u64 now)
{
	__u32 zero = 0;
	__u64 *ahead = bpf_map_lookup_elem(&clock, &zero);

	if (!ahead || !stamp)
		return 0;
	stamp -= *ahead;
	return (__s64)(now - stamp) < 0 || now - stamp > (__u64)STAMP_MAX_S * SECOND_NS ? 0 : stamp;
}

/* When a packet arrived; 0 if the kernel did not stamp it. */
static __always_inline __u64 arrival_ns(const struct sk_buff *skb, __u64 now)
{
	return is_stamped(skb, STAMP_REAL) ? since_stamp(((const struct sk_buff___stamped *)skb)->tstamp, now) : 0;
}
