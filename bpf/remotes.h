/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The remote end of a datagram. A connected socket stores it. On an unconnected socket, each sendmsg gives it, and
 * recvmsg returns it on request; the socket stores nothing. Two programs at the root cgroup see it, in the process that
 * sends or receives. They store it per CPU for the tracepoint at the end of the call.
 */
#pragma once
#include "marks.h"
#include "packet.h"

struct remote {
	__u64 address[2]; /* IPv4 as ::ffff:a.b.c.d; zeros = unknown */
	__u64 port;
};

struct note {
	__u64 task; /* of the call; 0 = the note was read */
	__u64 cookie;
	struct remote remote;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct note);
} notes SEC(".maps");

static __always_inline struct note *note_here(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&notes, &zero);
}

static __always_inline int leave_remote(struct bpf_sock_addr *ctx, __u32 a, __u32 b, __u32 c, __u32 d)
{
	struct note *note = note_here();

	if (!note)
		return 1;
	note->cookie = bpf_get_socket_cookie(ctx);
	note->remote.address[0] = a | (__u64)b << 32;
	note->remote.address[1] = c | (__u64)d << 32;
	note->remote.port = bpf_ntohs(ctx->user_port);
	note->task = bpf_get_current_task();
	return 1; /* allow the call */
}

static __always_inline int leave_remote4(struct bpf_sock_addr *ctx)
{
	return leave_remote(ctx, 0, 0, bpf_htonl(0xffff), ctx->user_ip4);
}

static __always_inline int leave_remote6(struct bpf_sock_addr *ctx)
{
	return leave_remote(ctx, ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]);
}

SEC("cgroup/sendmsg4")
int remote_sent4(struct bpf_sock_addr *ctx)
{
	return leave_remote4(ctx);
}

SEC("cgroup/sendmsg6")
int remote_sent6(struct bpf_sock_addr *ctx)
{
	return leave_remote6(ctx);
}

SEC("cgroup/recvmsg4")
int remote_received4(struct bpf_sock_addr *ctx)
{
	return leave_remote4(ctx);
}

SEC("cgroup/recvmsg6")
int remote_received6(struct bpf_sock_addr *ctx)
{
	return leave_remote6(ctx);
}

static __always_inline void remote_of_socket(const struct sock_common *c, struct remote *remote)
{
	const __u32 *word = c->skc_v6_daddr.in6_u.u6_addr32;

	remote->port = bpf_ntohs(c->skc_dport);
	if (c->skc_family == AF_INET) {
		remote->address[0] = 0;
		remote->address[1] = c->skc_daddr ? (__u64)c->skc_daddr << 32 | bpf_htonl(0xffff) : 0;
		return;
	}
	remote->address[0] = word[0] | (__u64)word[1] << 32;
	remote->address[1] = word[2] | (__u64)word[3] << 32;
}

/* For the call that ends now. */
static __always_inline void take_remote(struct sock *sk, __u64 cookie, struct remote *remote)
{
	struct note *note = note_here();

	if (note && note->task && note->task == bpf_get_current_task() && note->cookie == cookie) {
		note->task = 0;
		*remote = note->remote;
		return;
	}
	remote_of_socket(&sk->__sk_common, remote);
}
