/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The time to the first byte of a reply, for each listener of this host and for each server that it asks.
 *
 * TCP notes when a socket sent or received last, and when it sent the first segment of a flight. So a look at a segment
 * that arrives shows when the socket sent what it has sent since the segment before: no program runs for what leaves.
 */
#pragma once
#include "round_trips.h"
#include "times.h"

enum {
	REPLIERS = 4096,
	ALL_OF = 64, /* times of a connection in a window that are all counted */
	ONE_OF = 8,  /* of the others, if they are short */
	SHORT_NS = 1000000,
};

/* A flag of a segment. */
enum { TCP_FIN = 1 };

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct tcp_skb_cb {
	__u32 seq;
	__u32 end_seq;
	__u8 tcp_flags;
	__u32 ack_seq;
};

struct tcp_sock___flight {
	__u64 first_tx_mstamp; /* µs: when its first segment was sent, until one of them is acknowledged */
	__u32 tlp_high_seq;
};

#pragma clang attribute pop

/* Server: our end of its connections. Client: the other end. */
struct replier {
	__u8 address[16]; /* IPv4 as ::ffff:a.b.c.d */
	__u32 netns;
	__u16 port;
	__u8 side;
	__u8 pad;
};

struct replies {
	__u64 begun_ns; /* another time after the entry was removed */
	__u64 seen_ns;
	__u64 exchanges_left_out;
	__u64 connections_left_out;
	struct times times;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, REPLIERS);
	__type(key, struct replier);
	__type(value, struct replies);
} repliers SEC(".maps");

static const struct replies no_replies;

static __always_inline void load_replier(const struct sock *sk, __u8 side, struct replier *replier)
{
	struct endpoints ends = {};

	load_endpoints(&sk->__sk_common, &ends);
	replier->netns = load_netns(&sk->__sk_common);
	replier->side = side;
	replier->port = side == SIDE_SERVER ? ends.local_port : ends.remote_port;
	__builtin_memcpy(replier->address, side == SIDE_SERVER ? ends.local : ends.remote, sizeof(replier->address));
}

static __always_inline struct replies *replies_of(const struct sock *sk, __u8 side, __u64 now)
{
	struct replier replier = {};
	struct replies *replies;

	load_replier(sk, side, &replier);
	replies = bpf_map_lookup_elem(&repliers, &replier);
	if (replies)
		return replies;
	bpf_map_update_elem(&repliers, &replier, &no_replies, BPF_NOEXIST);
	replies = bpf_map_lookup_elem(&repliers, &replier);
	if (replies && !replies->begun_ns)
		replies->begun_ns = now;
	return replies;
}

static __noinline int add_outcome(struct sock *sk, const struct exchange *exchange, __u32 outcome, __u64 now,
				  __u32 weight)
{
	struct replies *replies = replies_of(sk, exchange->side, now);

	if (!replies) {
		__sync_fetch_and_add(&figures.replies_untracked, 1);
		return 0;
	}
	replies->seen_ns = now;
	if (outcome == EXCHANGE) {
		count_time(&replies->times, capped_us(now - exchange->asked_ns), weight);
		return 0;
	}
	__sync_fetch_and_add(&replies->exchanges_left_out, 1);
	if (outcome == UNCLEAR_CONNECTION)
		__sync_fetch_and_add(&replies->connections_left_out, 1);
	return 0;
}

/*
 * How often the nth time of a connection in a window counts. A look-up of a histogram costs more than the rest. So long
 * times count one by one, and of many short ones one of ONE_OF counts for all. Which one does not depend on the time,
 * and follows no period.
 */
static __always_inline __u32 weight_of(__u32 n, __u64 ns)
{
	if (ns >= SHORT_NS || n < ALL_OF)
		return 1;
	return n * 0x9e3779b1 < ~0u / ONE_OF ? ONE_OF : 0;
}

/* At `now`, an event ended an exchange, or nothing. */
static __always_inline void count_outcome(struct sock *sk, struct rtt *rtt, __u32 outcome, __u64 now)
{
	__u32 newest = windows.newest, weight = 1;

	if (outcome == NOTHING)
		return;
	if (rtt->window != newest) {
		rtt->window = newest;
		rtt->replies = 0;
	}
	if (outcome == EXCHANGE)
		weight = weight_of(rtt->replies++, now - rtt->exchange.asked_ns);
	if (weight)
		add_outcome(sk, &rtt->exchange, outcome, now, weight);
}

/* The payload that the socket does not have yet. */
static __always_inline __u32 new_bytes(const struct sk_buff *skb, const struct tcp_sock *tp)
{
	const struct tcp_skb_cb *segment = (const void *)skb->cb;
	__u32 end = segment->end_seq, bytes = end - segment->seq;

	if (!bytes || (__s32)(end - tp->rcv_nxt) <= 0)
		return 0;
	return segment->tcp_flags & TCP_FIN ? bytes - 1 : bytes;
}

/* Then the newest time of sending is not that of the first byte. */
static __always_inline bool is_sent_again(const struct tcp_sock *tp)
{
	return tp->inet_conn.icsk_retransmits || ((const struct tcp_sock___flight *)tp)->tlp_high_seq ||
	       BPF_CORE_READ_BITFIELD(&tp->inet_conn, icsk_ca_state) >= TCP_CA_RECOVERY;
}

/* What the socket sent since the last segment came. With older data in flight, its first time is unknown. */
static __always_inline void note_sent(struct sock *sk, const struct tcp_sock *tp, struct rtt *rtt)
{
	struct exchange *exchange = &rtt->exchange;
	const struct tcp_sock___flight *flight = (const void *)tp;
	__u32 earlier = exchange->sent_seq, outcome;
	__u64 first_ns, last_ns = tp->tcp_mstamp * 1000;

	if (tp->snd_nxt == earlier || is_omitted(exchange, last_ns))
		return;
	exchange->sent_seq = tp->snd_nxt;
	if (is_sent_again(tp)) {
		if (exchange->phase == ASKED)
			exchange->phase = QUIET;
		return;
	}
	first_ns = tp->snd_una == earlier ? flight->first_tx_mstamp * 1000 : last_ns;
	if (exchange->side != SIDE_SERVER) {
		request_is_sent(tp, exchange, earlier, first_ns);
		request_is_sent(tp, exchange, tp->snd_nxt, last_ns);
		return;
	}
	outcome = reply_is_written(exchange, first_ns);
	exchange->sent_ns = last_ns;
	count_outcome(sk, rtt, outcome, first_ns);
}

/* A program that reads late is late with its reply: a request is there when it arrives. */
static __always_inline void note_arrived(struct sock *sk, const struct tcp_sock *tp, struct rtt *rtt,
					 const struct sk_buff *skb, __u32 bytes)
{
	struct exchange *exchange = &rtt->exchange;
	const struct tcp_skb_cb *segment = (const void *)skb->cb;
	__u64 now;

	if (is_omitted(exchange, tp->tcp_mstamp * 1000) || (exchange->side != SIDE_SERVER && exchange->phase == QUIET))
		return;
	now = bpf_ktime_get_ns();
	if (exchange->side == SIDE_SERVER) {
		request_arrives(tp, exchange, segment->ack_seq, bytes, now);
		request_is_read(exchange, now);
		return;
	}
	count_outcome(sk, rtt, reply_arrives(tp, exchange, now), now);
}
