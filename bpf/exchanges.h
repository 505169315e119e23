/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Requests and replies of a connection, without a look into them: what arrives, then what is sent. Where more arrives
 * while a request waits for its reply, where both ends send at the same time, or where the server sends unasked, a
 * reply has no certain request: this exchange is left out, and after a few of them the connection.
 */
#pragma once
#include "direction.h"

enum side { SIDE_CLIENT, SIDE_SERVER };

enum phase { QUIET, ASKED, UNCLEAR, OMITTED };

/* What an event ends. */
enum outcome { NOTHING, EXCHANGE, UNCLEAR_EXCHANGE, UNCLEAR_CONNECTION };

enum {
	UNCLEAR_MAX = 3,         /* per connection */
	PART_NS = 1000000,       /* parts of one request arrive within this time and a round trip */
	OMITTED_NS = 1000000000, /* so long a connection is left out */
	UNASKED_NS = 1000000000, /* after this time, what a server sends is not the rest of a reply */
};

/* Softirqs and the process write it without a lock: the worst result is a time less. */
struct exchange {
	__u64 asked_ns; /* server: a request was there then; client: it was sent then; 0 = never; OMITTED: since then */
	__u64 sent_ns;  /* server: it sent data last then */
	__u32 sent_seq; /* end of what was sent */
	__u8 side;
	__u8 phase;
	__u8 unclear; /* exchanges that were left out */
	__u8 replied; /* since the phase is UNCLEAR */
};

static __always_inline __u64 least_rtt_us(const struct tcp_sock *tp)
{
	__u32 us = tp->rtt_min.s[0].v;

	return us == ~0u ? 0 : us;
}

static __always_inline void leave_out(struct exchange *exchange)
{
	exchange->phase = UNCLEAR;
	exchange->replied = 0;
}

/* Whether a connection with many unclear exchanges is not looked at: for a while, since pools change what it is for. */
static __always_inline bool is_omitted(struct exchange *exchange, __u64 now)
{
	if (exchange->phase != OMITTED)
		return false;
	if ((__s64)(now - exchange->asked_ns) < OMITTED_NS)
		return true;
	exchange->phase = UNCLEAR;
	exchange->replied = 1;
	exchange->unclear = 0;
	return false;
}

/* Unclear exchanges count in a row: one in a hundred tells nothing about a connection. */
static __always_inline __u32 complete(struct exchange *exchange)
{
	exchange->phase = QUIET;
	exchange->unclear = 0;
	return EXCHANGE;
}

/* Only an exchange with a reply counts: who only sends is not left out of anything. */
static __always_inline __u32 note_unclear_reply(struct exchange *exchange, __u64 now)
{
	if (exchange->phase != UNCLEAR || exchange->replied)
		return NOTHING;
	exchange->replied = 1;
	if (++exchange->unclear < UNCLEAR_MAX)
		return UNCLEAR_EXCHANGE;
	exchange->phase = OMITTED;
	exchange->asked_ns = now;
	return UNCLEAR_CONNECTION;
}

static __always_inline bool is_apart(const struct tcp_sock *tp, __u64 earlier, __u64 now)
{
	return (__s64)(now - earlier) > PART_NS + (__s64)(tp->srtt_us >> 3) * 1000;
}

/* Whether the process has not read all that has arrived. */
static __always_inline bool has_unread(const struct tcp_sock *tp)
{
	const struct sock *sk = &tp->inet_conn.icsk_inet.sk;
	__u32 fin = sk->__sk_common.skc_flags & 1 << SOCK_DONE ? 1 : 0;

	return (__s32)(tp->rcv_nxt - fin - tp->copied_seq) > 0;
}

/*
 * A server: what it sent before must be acknowledged, since its client reads a reply before it asks again. A full
 * segment is a part of a longer request.
 */
static __always_inline void request_arrives(const struct tcp_sock *tp, struct exchange *exchange, __u32 acknowledged,
					    __u32 bytes, __u64 now)
{
	bool is_crossing = acknowledged != tp->write_seq;
	bool is_more = exchange->phase == ASKED && bytes < tp->mss_cache && is_apart(tp, exchange->asked_ns, now);

	if (is_omitted(exchange, now))
		return;
	if (is_more || (exchange->phase == QUIET && is_crossing))
		leave_out(exchange);
	else if (exchange->phase == UNCLEAR && exchange->replied && !is_crossing)
		exchange->phase = QUIET;
}

static __always_inline void request_is_read(struct exchange *exchange, __u64 now)
{
	if (exchange->phase > ASKED)
		return;
	exchange->asked_ns = now;
	exchange->phase = ASKED;
}

static __always_inline __u32 reply_is_written(struct exchange *exchange, __u64 now)
{
	__u64 before = exchange->sent_ns;

	exchange->sent_ns = now;
	if (exchange->phase == ASKED && now >= exchange->asked_ns)
		return complete(exchange);
	if (exchange->phase == QUIET && exchange->asked_ns && before && (__s64)(now - before) > UNASKED_NS)
		leave_out(exchange);
	return note_unclear_reply(exchange, now);
}

/* A client. With a full segment in flight, this is a part of the same request. */
static __always_inline void request_is_sent(const struct tcp_sock *tp, struct exchange *exchange, __u32 earlier,
					    __u64 now)
{
	bool is_more = earlier - tp->snd_una < tp->mss_cache && is_apart(tp, exchange->asked_ns, now);

	if (is_omitted(exchange, now) || (exchange->phase == UNCLEAR && !exchange->replied))
		return;
	if (exchange->phase == ASKED ? is_more : has_unread(tp)) {
		leave_out(exchange);
		return;
	}
	exchange->asked_ns = now;
	exchange->phase = ASKED;
}

/* What comes sooner than a round trip replies to something earlier. */
static __always_inline __u32 reply_arrives(const struct tcp_sock *tp, struct exchange *exchange, __u64 now)
{
	if (exchange->phase != ASKED)
		return note_unclear_reply(exchange, now);
	if ((__s64)(now - exchange->asked_ns) < (__s64)least_rtt_us(tp) * 1000 / 2) {
		leave_out(exchange);
		return NOTHING;
	}
	return complete(exchange);
}
