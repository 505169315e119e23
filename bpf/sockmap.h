/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* TCP sockets in a sockmap, whose data BPF programs may redirect. */
#pragma once
#include "sockets.h"

/* Of a TCP socket in a sockmap: programs handle its sent data; its received data as well. */
enum { REDIRECTS_SENT = 1, REDIRECTS_RECEIVED = 2 };
enum { POINTER_FLAGS = 7 };

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct bpf_prog;

struct sk_psock_progs {
	struct bpf_prog *stream_parser;
	struct bpf_prog *skb_parser; /* until Linux 5.12 */
	struct bpf_prog *stream_verdict;
	struct bpf_prog *skb_verdict;
};

/* The sockmap storage of a TCP socket. */
struct sk_psock {
	struct sock *sk;
	struct sk_psock_progs progs;
	__u32 msg_tot_len; /* redirected to it and unread */
};

#pragma clang attribute pop

/* `user_data` is that of the socket with this address. */
static __always_inline const struct sk_psock *psock_at(const void *user_data, __u64 address)
{
	const struct sk_psock *psock = (const void *)((__u64)user_data & ~(__u64)POINTER_FLAGS);

	return psock && (__u64)BPF_CORE_READ(psock, sk) == address ? psock : 0;
}

static __always_inline const struct sk_psock *psock_of(struct sock *sk)
{
	return psock_at(sk->sk_user_data, (__u64)sk);
}

static __always_inline __u8 redirects_at(const void *user_data, __u64 address)
{
	const struct sk_psock *psock = user_data ? psock_at(user_data, address) : 0;

	if (!psock)
		return 0;
	if (BPF_CORE_READ(psock, progs.stream_verdict) ||
	    (bpf_core_field_exists(psock->progs.skb_verdict) && BPF_CORE_READ(psock, progs.skb_verdict)))
		return REDIRECTS_RECEIVED;
	return REDIRECTS_SENT;
}

static __always_inline __u8 redirects(struct sock *sk)
{
	return redirects_at(sk->sk_user_data, (__u64)sk);
}
