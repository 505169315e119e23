/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* What `trace_latency` keeps of a socket, and how it counts times. */
#pragma once
#include "rests.h"
#include "stages.h"

/* With this number in flight, no timer of the receiver delays the acknowledgement. */
enum { PROMPT_SEGMENTS = 4 };

/* What a socket waits for. Softirqs and its process write it without a lock: the worst result is a time less. */
struct talk {
	struct exchange exchange;
	__u64 arrived_ns;    /* unread data arrived then; 0 = none */
	__u64 written_ns;    /* data that TCP could not send was written then; 0 = none */
	__u64 wire_ns;       /* from TCP to the device, of the last segment */
	__u64 early_ns;      /* before the first use: of the first arrival … */
	__u64 early_wire_ns; /* … and of the first segment sent, plus 1 */
	__u32 arrived_seq;   /* its end */
	__u32 written_seq;
	__u32 received; /* bytes */
	__u32 reply_seq;
	__u32 delivered;
	__u32 group; /* 0 = not known yet */
	__u32 pid;
	__u32 thread; /* that used it last */
	__u32 window; /* the newest when the group was looked up */
	__u32 first;  /* first window of its period */
	__u8 prompt;  /* whether the next round trip is one of the network */
	__u8 has_sent;
	__u8 weight;    /* of the times of this burst */
	__u8 bursts;    /* in this window, up to FIRST_BURSTS */
	__u64 burst_ns; /* when it began; 0 = before the first one */
	__s32 left;     /* its events to come */
	__u32 pad2;
};

/* Sockets with data since measuring began. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct talk);
} talks SEC(".maps");

/* Forgets what began before the rest: it may have ended in the rest. */
static __always_inline void resume(struct talk *talk)
{
	if (talk->exchange.phase != OMITTED) {
		talk->exchange.phase = QUIET;
		talk->exchange.asked_ns = 0;
	}
	talk->exchange.sent_ns = 0;
	talk->arrived_ns = talk->written_ns = 0;
	talk->has_sent = talk->prompt = 0;
}

static __always_inline void begin_burst(struct talk *talk, __u32 weight)
{
	talk->weight = weight;
	talk->left = BURST;
	talk->burst_ns = bpf_ktime_get_ns();
}

/* A busy socket rests only after its process has used it in this window, and after the first bursts. */
static __always_inline bool may_rest(struct talk *talk)
{
	if (!talk->group || talk->window != windows.newest || bpf_ktime_get_ns() - talk->burst_ns >= BUSY_NS)
		return false;
	return talk->bursts == FIRST_BURSTS || ++talk->bursts == FIRST_BURSTS;
}

/* Whether an event of a socket that does not rest belongs to a burst. */
static __always_inline bool is_in_burst(const struct sock *sk, struct talk *talk)
{
	__u32 weight = end_rest(sk);

	if (weight && talk->burst_ns) {
		resume(talk);
		begin_burst(talk, weight);
	} else if (talk->left > 0) {
		talk->left--;
	} else if (may_rest(talk) && begin_rest(sk)) {
		return false;
	} else {
		begin_burst(talk, 1);
	}
	return true;
}

static __always_inline void add_time(struct talk *talk, __u32 stage, __u64 ns)
{
	add_ns(talk->group, stage, ns, talk->weight);
}

/* At `now`, an event ended an exchange, or nothing. */
static __always_inline void count_outcome(const struct tcp_sock *tp, struct talk *talk, __u32 outcome, __u64 now)
{
	__u64 least = least_rtt_us(tp);

	if (outcome == NOTHING || !talk->group)
		return;
	if (outcome == EXCHANGE) {
		add_time(talk, REQUEST_TO_REPLY, now - talk->exchange.asked_ns);
		if (least)
			add_time(talk, LEAST_RTT, least * 1000);
		return;
	}
	add_us(talk->group, LEFT_OUT, 0, talk->weight);
	if (outcome == UNCLEAR_CONNECTION)
		add_us(talk->group, LEFT_OUT, 1, 1);
}
