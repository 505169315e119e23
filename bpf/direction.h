/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Which end opened a connection from before the first window. */
#pragma once
#include "sockets.h"

enum direction { UNKNOWN, OUTBOUND, INBOUND };

/* Bits of sk_userlocks: bind() was given a port. */
enum { SOCK_BINDPORT_LOCK = 8 };

/* For a socket that its process has closed: whether its FIN was sent and took a sequence number. */
static __always_inline bool has_sent_fin(const struct tcp_sock *tp)
{
	int state = tp->inet_conn.icsk_inet.sk.__sk_common.skc_state;

	return state == TCP_FIN_WAIT2 || ((state == TCP_FIN_WAIT1 || state == TCP_CLOSING || state == TCP_LAST_ACK) &&
					  tp->snd_nxt == tp->write_seq);
}

/*
 * TCP counts acknowledged bytes. For a client this includes its SYN, which is not payload. A server's SYN is
 * acknowledged at the request, before the socket exists.
 */
static __always_inline bool has_sent_syn(const struct tcp_sock *tp)
{
	__u64 sequence = tp->bytes_acked + (tp->snd_nxt - tp->snd_una);
	__u64 payload = tp->bytes_sent - tp->bytes_retrans;

	return sequence - payload != has_sent_fin(tp);
}

/*
 * A socket from accept() has its port from a listener: bind() was never called for it, and connect() did not choose the
 * port. For a socket with bind() and then connect(), the SYN decides. Only listeners and accepted sockets have a
 * backlog, but it may be 0.
 */
static __always_inline bool is_inbound(const struct tcp_sock *tp)
{
	const struct sock *sk = &tp->inet_conn.icsk_inet.sk;
	/* In a copy of a socket this is a number, not a pointer for the verifier. */
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
