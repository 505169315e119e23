/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Which end opened a connection that was opened before anyone watched. */
#pragma once
#include "sockets.h"

enum direction { UNKNOWN, OUTBOUND, INBOUND };

/* Bits of sk_userlocks: bind() was given a port. */
enum { SOCK_BINDPORT_LOCK = 8 };

/* Of a socket whose process has closed it: whether its FIN has gone out, and has a place in the sequence. */
static __always_inline bool has_sent_fin(const struct tcp_sock *tp)
{
	int state = tp->inet_conn.icsk_inet.sk.__sk_common.skc_state;

	return state == TCP_FIN_WAIT2 || ((state == TCP_FIN_WAIT1 || state == TCP_CLOSING || state == TCP_LAST_ACK) &&
					  tp->snd_nxt == tp->write_seq);
}

/*
 * TCP counts what was acknowledged, and of a client that includes its SYN, which is no payload. A server's SYN is
 * acknowledged to the request, before there is a socket.
 */
static __always_inline bool has_sent_syn(const struct tcp_sock *tp)
{
	__u64 sequence = tp->bytes_acked + (tp->snd_nxt - tp->snd_una);
	__u64 payload = tp->bytes_sent - tp->bytes_retrans;

	return sequence - payload != has_sent_fin(tp);
}

/*
 * What accept() returns shares its port with a listener, and has it from there: bind() was never called for itself, and
 * connect() did not choose the port. What bind() gave any port and then connected is told by its SYN. A backlog only
 * listeners have, and what they accept; but it may be 0.
 */
static __always_inline bool is_inbound(const struct tcp_sock *tp)
{
	const struct sock *sk = &tp->inet_conn.icsk_inet.sk;
	/* Of a copy of a socket this is a number, and no pointer that the verifier knows. */
	const struct inet_bind_bucket *bucket = tp->inet_conn.icsk_bind_hash;

	if (BPF_CORE_READ_BITFIELD(sk, sk_userlocks) & SOCK_BINDPORT_LOCK)
		return false;
	if (sk->sk_max_ack_backlog)
		return true;
	if (bucket && BPF_CORE_READ(bucket, fastreuse) < 0)
		return false;
	return !has_sent_syn(tp);
}

static __always_inline __u8 guess_direction(struct sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);

	if (!tp)
		return UNKNOWN;
	return is_inbound(tp) ? INBOUND : OUTBOUND;
}
