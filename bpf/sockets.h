/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Reads sockets through pointers with a type known to the verifier.
 *
 * These are plain loads. BPF_CORE_READ calls a helper for every step (20 ns each on a kernel with mitigations), which
 * matters with 100,000 sockets.
 */
#pragma once
#include "owner.h"

static __always_inline bool is_inet(const struct sock *sk)
{
	return sk->__sk_common.skc_family == AF_INET || sk->__sk_common.skc_family == AF_INET6;
}

/* The IPv4 or IPv6 socket that a file is, or null. */
static __always_inline struct sock *inet_socket_of(struct file *file)
{
	struct socket *socket = file ? bpf_sock_from_file(file) : 0;
	struct sock *sk = socket ? socket->sk : 0;

	return sk && is_inet(sk) ? sk : 0;
}

static __always_inline struct sock *tcp_socket_of(struct file *file)
{
	struct sock *sk = inet_socket_of(file);

	return sk && sk->sk_protocol == IPPROTO_TCP ? sk : 0;
}

/* Its process has closed it. */
static __always_inline bool is_orphan(const struct sock *sk)
{
	return sk->__sk_common.skc_flags & 1 << SOCK_DEAD;
}

static __always_inline void copy_address(__u8 to[16], const struct in6_addr *from)
{
	__u32 *word = (void *)to;

	word[0] = from->in6_u.u6_addr32[0];
	word[1] = from->in6_u.u6_addr32[1];
	word[2] = from->in6_u.u6_addr32[2];
	word[3] = from->in6_u.u6_addr32[3];
}

/* For an open socket: at the end of a connection skc_num is 0. */
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
	return untrusted(sock_common, c)->skc_net.net->ns.inum;
}

/* The cgroup that created the socket. It stays known after the process ends. */
static __always_inline __u64 load_cgroup(const struct sock *sk)
{
	return untrusted(sock, sk)->sk_cgrp_data.cgroup->kn->id;
}

/* Payload, each byte once. The peer's FIN takes a sequence number without a byte. */
static __always_inline __u64 received_bytes(const struct tcp_sock *tp)
{
	__u64 bytes = tp->bytes_received;

	return bytes && tp->inet_conn.icsk_inet.sk.__sk_common.skc_flags & 1 << SOCK_DONE ? bytes - 1 : bytes;
}

static __always_inline __u64 sent_bytes(const struct tcp_sock *tp)
{
	return tp->bytes_sent - tp->bytes_retrans;
}

/* Both ends of a TCP socket in any state: at the change to CLOSE skc_num is 0, but inet_sport is not. */
static __always_inline void load_tcp_endpoints(const struct tcp_sock *tp, struct endpoints *e)
{
	load_endpoints(&tp->inet_conn.icsk_inet.sk.__sk_common, e);
	if (!e->local_port)
		e->local_port = bpf_ntohs(tp->inet_conn.icsk_inet.inet_sport);
}
