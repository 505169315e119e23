/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The round trips of each TCP connection, from TCP's average; and its owner. */
#pragma once
#include "exchanges.h"
#include "figures.h"
#include "limited.h"

enum {
	BUCKETS = 96,
	RTTS = 65536, /* sockets with separate round trips at once */
	SLOW_US = 80000,
	VERY_SLOW_US = 200000,
	/*
	 * The receiver's timer may delay the acknowledgement of a single segment up to 500 ms, and of the first of two
	 * segments until the second arrives. With this number of full segments in flight, the path takes the time.
	 */
	PROMPT_SEGMENTS = 4,
	JIFFY_WEIGHT = 1024, /* of a segment that came within the jiffy of the one before it: 1 */
};

/* TCP's average of round trips, and with it the number of acknowledged segments. */
struct average {
	__u32 srtt_us; /* times 8, as the kernel holds it */
	__u32 delivered;
};

static __always_inline struct average average_of(const struct tcp_sock *tp)
{
	return (struct average){ tp->srtt_us, tp->delivered };
}

/* The round trips of a socket. Only the holder of the socket lock writes it. */
struct rtt {
	__u64 closed_ns;        /* CLOCK_MONOTONIC; 0 = the connection is open */
	struct average average; /* as it was at the last segment */
	__u32 min_us;
	__u32 max_us;
	__u64 network;     /* weight of the time in which data waited for the network … */
	__u64 application; /* … and for the application */
	__u32 seen;        /* jiffies of the last segment */
	__u32 first;       /* first window of its period */
	__u32 prompt;      /* samples that a delayed-acknowledgement timer cannot have prolonged … */
	__u32 prompt_slow; /* … of these, samples of SLOW_US or more … */
	__u32 prompt_very_slow;
	__u32 prompt_next; /* whether the next sample is prompt */
	struct exchange exchange;
	__u32 replies; /* in this window … */
	__u32 window;  /* … which was the newest then */
	__u32 buckets[BUCKETS];
};

/* Sockets that received a segment since monitoring began. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct rtt);
} rtts SEC(".maps");

/* The round trips of this period. */
static __always_inline struct rtt *rtt_of(struct sock *sk)
{
	struct rtt *rtt = bpf_sk_storage_get(&rtts, sk, 0, 0);

	return rtt && rtt->first == windows.first ? rtt : 0;
}

/* Four buckets per octave, so a bound is at most a quarter off. Below 4 µs each value has its own. */
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

static __always_inline void add_sample(struct rtt *rtt, __u32 us, bool is_prompt)
{
	__u32 bucket = bucket_of(us);

	if ((__s32)us < 0)
		return; /* the average restarted */
	barrier_var(bucket);
	if (bucket < BUCKETS)
		rtt->buckets[bucket]++;
	if (us < rtt->min_us)
		rtt->min_us = us;
	if (us > rtt->max_us)
		rtt->max_us = us;
	if (!is_prompt)
		return;
	rtt->prompt++;
	rtt->prompt_slow += us >= SLOW_US;
	rtt->prompt_very_slow += us >= VERY_SLOW_US;
}

/* Before TCP handles the acknowledgement. */
static __always_inline bool is_prompt(const struct tcp_sock *tp)
{
	return tp->snd_nxt - tp->snd_una >= PROMPT_SEGMENTS * tp->mss_cache;
}

/* Since the previous segment, or since data became available, the sender has waited as it does now. */
static __always_inline void note_wait(struct rtt *rtt, const struct tcp_sock *tp)
{
	__u32 now = bpf_jiffies64(), since = rtt->seen;
	__u64 weight;

	rtt->seen = now;
	if (BPF_CORE_READ_BITFIELD(tp, chrono_type) != TCP_CHRONO_BUSY)
		return;
	if ((__s32)(tp->chrono_start - since) > 0)
		since = tp->chrono_start;
	weight = 1;
	if ((__s32)(now - since) > 0)
		weight += (__u64)(now - since) * JIFFY_WEIGHT;
	if (busy_with(tp) == LIMITED_BY_APPLICATION)
		rtt->application += weight;
	else
		rtt->network += weight;
}

static __always_inline bool is_served(const struct mark *mark, const struct tcp_sock *tp)
{
	return mark && mark->direction ? mark->direction == INBOUND : is_inbound(tp);
}

/*
 * What an older connection has on its way is of now if its last event was: a segment that came would have begun this
 * before. A first request may end the handshake.
 */
static __always_inline void begin_exchange(struct exchange *exchange, const struct tcp_sock *tp,
					   const struct mark *mark)
{
	__u64 now_us = tp->tcp_mstamp, since_ns = figures.since_ns;
	bool is_opened = mark && is_new(mark);

	exchange->side = is_served(mark, tp) ? SIDE_SERVER : SIDE_CLIENT;
	exchange->sent_seq = is_opened || (since_ns && now_us * 1000 > since_ns) ? tp->snd_una : tp->snd_nxt;
	if (exchange->side != SIDE_SERVER || !is_opened || !mark->established_us || !tp->bytes_received)
		return;
	exchange->asked_ns = (now_us - (__u32)((__u32)now_us - mark->established_us)) * 1000;
	exchange->phase = ASKED;
}

static __always_inline struct rtt *begin_rtt(struct sock *sk, const struct tcp_sock *tp)
{
	struct mark *mark;
	struct rtt *rtt;

	rtt = figures.rtts < RTTS ? sk_storage_of(&rtts, sk) : 0;
	if (!rtt) {
		__sync_fetch_and_add(&figures.rtts_untracked, 1);
		return 0;
	}
	__sync_fetch_and_add(&figures.rtts, 1);
	__builtin_memset(rtt, 0, sizeof(*rtt)); /* it may be of an earlier period */
	rtt->first = windows.first;
	rtt->average = average_of(tp);
	rtt->seen = bpf_jiffies64();
	rtt->min_us = ~0u;
	mark = known_mark(sk);
	begin_exchange(&rtt->exchange, tp, mark);
	if (mark && is_new(mark) && mark->handshake_us)
		add_sample(rtt, mark->handshake_us >> 3, true);
	return rtt;
}

/*
 * TCP moves the average by an eighth of its difference from a sample: `srtt += m - srtt / 8`, where srtt is 8 times the
 * average, at most once per segment. So two averages give the sample between them, to the microsecond. If an
 * acknowledgement leaves the average unchanged, the sample was the average.
 */
static __always_inline struct rtt *take_sample(struct sock *sk, const struct tcp_sock *tp, bool brings_data)
{
	struct average now = average_of(tp), before;
	struct rtt *rtt = rtt_of(sk);

	/* With nothing in flight, no acknowledgement and no sample follows. Data may be a request. */
	if (!rtt)
		return tp->packets_out || brings_data ? begin_rtt(sk, tp) : 0;
	before = rtt->average;
	/* Before the sample: a reading in between then lacks it, and the next one has it. */
	rtt->average = now;
	barrier();
	if (now.srtt_us != before.srtt_us)
		add_sample(rtt,
			   before.srtt_us ? now.srtt_us - before.srtt_us + (before.srtt_us >> 3) : now.srtt_us >> 3,
			   rtt->prompt_next);
	else if (now.delivered != before.delivered)
		add_sample(rtt, now.srtt_us >> 3, rtt->prompt_next);
	return rtt;
}
