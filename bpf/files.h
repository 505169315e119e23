/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Sockets that a program reaches through a file. */
#pragma once
#include "sockets.h"

/*
 * Whether the verifier does not trust such a socket, as in some builds of Linux 6.18. Then no helper takes it: it gets
 * neither a cookie nor storage. It is copied, like a TCP socket below another socket. Alone in its section, and set
 * before loading.
 */
const volatile __u8 files_are_untrusted SEC(".rodata.files") = 0;

/* As a number. A separate function, since old kernels have no room for its variable on the stack of its callers. */
static __noinline __u64 address_of(struct sock *sk)
{
	return number_of((__u64)sk);
}

/*
 * Identifies a socket during its life. An untrusted one has a cookie only if somebody requested one, so no program of
 * ours requests one later, except for a new socket.
 */
static __always_inline __u64 name_of(struct sock *sk)
{
	if (!files_are_untrusted)
		return bpf_get_socket_cookie(sk);
	return sk->__sk_common.skc_cookie.counter ?: address_of(sk);
}
