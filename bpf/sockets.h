/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Reading sockets through pointers whose type the verifier knows.
 *
 * These are plain loads, where BPF_CORE_READ calls a helper (20 ns each on a
 * kernel with mitigations) for every step: it matters when there are 100,000.
 */
#pragma once
#include "owner.h"

static __always_inline bool is_inet(const struct sock *sk)
{
	return sk->__sk_common.skc_family == AF_INET || sk->__sk_common.skc_family == AF_INET6;
}

static __always_inline void copy_address(__u8 to[16], const struct in6_addr *from)
{
	__u32 *word = (void *)to;

	word[0] = from->in6_u.u6_addr32[0];
	word[1] = from->in6_u.u6_addr32[1];
	word[2] = from->in6_u.u6_addr32[2];
	word[3] = from->in6_u.u6_addr32[3];
}

/* Of a socket that is not closed: at the end of a connection skc_num is 0. */
static __always_inline void load_endpoints(const struct sock_common *c, struct endpoints *e)
{
	if (c->skc_family == AF_INET) {
		mapped(e->local, c->skc_rcv_saddr);
		mapped(e->remote, c->skc_daddr);
	} else {
		copy_address(e->local, &c->skc_v6_rcv_saddr);
		copy_address(e->remote, &c->skc_v6_daddr);
	}
	e->local_port = c->skc_num;
	e->remote_port = bpf_ntohs(c->skc_dport);
}

static __always_inline __u32 load_netns(const struct sock_common *c)
{
	return c->skc_net.net->ns.inum;
}

/* The cgroup in which the socket was made: known even when its process is gone. */
static __always_inline __u64 load_cgroup(const struct sock *sk)
{
	return sk->sk_cgrp_data.cgroup->kn->id;
}
