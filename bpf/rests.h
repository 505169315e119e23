/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Rests of busy sockets. A busy socket is looked at in bursts, and a burst counts for the rest before it too. Bursts
 * are measured in events and not in time, so a long time is as likely to be in one as a short one.
 *
 * Rests are in an array: the kernel reads it in place, while the storage of a socket needs a helper.
 */
#pragma once
#include "windows.h"

enum {
	BURST = 64,        /* events in a burst */
	BUSY_NS = 4000000, /* a socket is busy if a burst takes less time */
	REST = 960,        /* the most events in a rest */
	REST_JIFFIES = 4,  /* the longest rest */
	FIRST_BURSTS = 16, /* bursts of a socket before its first rest in a window */
	RESTS = 4096,      /* sockets that rest at once */
};

struct rest {
	__u64 sk;     /* 0 = free */
	__u32 since;  /* jiffies */
	__s32 left;   /* events */
	__u32 window; /* the newest when it began: a new one ends it */
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, RESTS);
	__type(key, __u32);
	__type(value, struct rest);
} rests SEC(".maps");

/* The place of a socket, which another one may have taken. */
static __always_inline struct rest *rest_of(const struct sock *sk)
{
	__u32 slot = sk->__sk_common.skc_hash * 0x9e3779b1 % RESTS;

	return bpf_map_lookup_elem(&rests, &slot);
}

static __always_inline bool is_over(const struct rest *rest)
{
	return rest->left <= 0 || rest->window != windows.newest || (__u32)bpf_jiffies64() - rest->since > REST_JIFFIES;
}

/* Whether an event of a socket is not looked at. */
static __always_inline bool rests_now(const struct sock *sk)
{
	struct rest *rest = rest_of(sk);

	if (!rest || rest->sk != (__u64)sk || is_over(rest))
		return false;
	rest->left--;
	return true;
}

/* False if another socket has its place. */
static __always_inline bool begin_rest(const struct sock *sk)
{
	struct rest *rest = rest_of(sk);

	if (!rest || (rest->sk && !is_over(rest)))
		return false;
	rest->left = REST;
	rest->since = bpf_jiffies64();
	rest->window = windows.newest;
	rest->sk = (__u64)sk;
	return true;
}

/* The weight of the burst after a rest that is over; 0 if there was none. */
static __always_inline __u32 end_rest(const struct sock *sk)
{
	struct rest *rest = rest_of(sk);
	__s32 left;

	if (!rest || rest->sk != (__u64)sk)
		return 0;
	left = rest->left;
	rest->sk = 0;
	return 1 + (__u32)(REST - (left > 0 ? left : 0)) / BURST;
}
