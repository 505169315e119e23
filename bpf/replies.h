/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * How long servers take to reply: from the last byte of a request to the first byte of what is sent next. TCP notes
 * both times, in jiffies, for itself; a look at them is due when the first segment comes after the reply has left, and
 * when the server closes at once.
 */
#pragma once
#include "round_trips.h"

enum { SERVICES = 1024 };

/* What clients connect to: our end of their connections. */
struct service {
	__u8 address[16]; /* IPv4 as ::ffff:a.b.c.d */
	__u32 netns;
	__u16 port;
	__u16 pad;
};

struct replies {
	__u32 buckets[BUCKETS]; /* as `bucket_of` has it, of jiffies */
};

/* The one that was not used for the longest time gives way. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, SERVICES);
	__type(key, struct service);
	__type(value, struct replies);
} services SEC(".maps");

static const struct replies no_replies;

static __always_inline bool is_served(struct sock *sk, const struct tcp_sock *tp)
{
	struct mark *mark = bpf_sk_storage_get(&marks, sk, 0, 0);

	return mark && mark->direction ? mark->direction == INBOUND : is_inbound(tp);
}

static __noinline int count_reply(struct sock *sk, __u32 jiffies)
{
	const struct sock_common *c = &sk->__sk_common;
	struct service service = {};
	struct replies *replies;
	__u32 bucket = bucket_of(jiffies);

	service.netns = load_netns(c);
	service.port = c->skc_num;
	if (c->skc_family == AF_INET)
		mapped(service.address, c->skc_rcv_saddr);
	else
		copy_address(service.address, &c->skc_v6_rcv_saddr);
	replies = bpf_map_lookup_elem(&services, &service);
	if (!replies) {
		bpf_map_update_elem(&services, &service, &no_replies, BPF_NOEXIST);
		replies = bpf_map_lookup_elem(&services, &service);
	}
	barrier_var(bucket);
	if (replies && bucket < BUCKETS)
		__sync_fetch_and_add(&replies->buckets[bucket], 1);
	return 0;
}

/*
 * With data on its way. A connection that has no storage yet may be in the middle of a reply, unless its request came
 * while we watched: then this is the first acknowledgement of what is on its way. What is sent again moves the time of
 * sending, and says nothing.
 */
static __always_inline void note_reply(struct sock *sk, const struct tcp_sock *tp, __u32 *noted)
{
	__u32 asked = tp->inet_conn.icsk_ack.lrcvtime, waited = tp->lsndtime - asked, since = figures.since;
	bool is_first = !noted || !*noted;

	if ((noted && *noted == asked) || (__s32)waited < 0)
		return;
	if (noted)
		*noted = asked;
	if (!since || (is_first && (__s32)(asked - since) < 0) || !tp->bytes_received ||
	    tp->inet_conn.icsk_retransmits ||
	    BPF_CORE_READ_BITFIELD(&tp->inet_conn, icsk_ca_state) >= TCP_CA_RECOVERY || !is_served(sk, tp))
		return;
	count_reply(sk, waited);
}
