/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Which process has a socket open, for packets outside of that process' context.
 *
 * This reads the files of every process. iter/tcp covers only one network namespace and knows no process.
 */
#pragma once
#include "ring_files.h"

enum { WANTED = 4096 };

/* Sockets that a window requests, by cookie or address. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, WANTED);
	__type(key, __u64);
	__type(value, __u32);
} wanted SEC(".maps");

/* A socket that a process has open: a requested one, or a TCP listener. */
struct open_socket {
	__u64 cookie;
	__u64 address;
	struct owner owner;
	struct endpoints endpoints;
	__u32 dropped;
	__u32 accept_queue;
	__u32 accept_queue_max;
	__u32 task_netns; /* of the process, which may hold a socket of another network namespace */
	__u8 listener;
	__u8 managed; /* a service manager's, unless another process has it */
	__u8 pad[2];
};
const struct open_socket *open_socket_type __attribute__((unused));

static __always_inline void load_open(struct task_struct *task, struct sock *sk, struct open_socket *s)
{
	load_holder(task, &s->owner.pid, s->owner.comm);
	s->owner.cgroup = load_cgroup(sk);
	s->owner.netns = load_netns(&sk->__sk_common);
	s->task_netns = task->nsproxy->net_ns->ns.inum;
	s->managed = is_manager(task);
}

static __always_inline bool is_wanted(const struct open_socket *s)
{
	return bpf_map_lookup_elem(&wanted, &s->cookie) || bpf_map_lookup_elem(&wanted, &s->address);
}

static __always_inline void load_queue(const struct sock *sk, struct open_socket *s)
{
	s->dropped = sk->sk_drops.counter;
	s->accept_queue = sk->sk_ack_backlog;
	s->accept_queue_max = sk->sk_max_ack_backlog;
}

/* A copied socket, if it is requested or a listener. False if it is neither. */
static __noinline bool write_below(struct seq_file *seq, struct task_struct *task, const struct below *below)
{
	const struct sock *sk = below_sock(below);
	struct open_socket s = {};

	s.listener = sk->sk_protocol == IPPROTO_TCP && sk->__sk_common.skc_state == TCP_LISTEN;
	s.cookie = below_identity(below);
	s.address = below->address;
	if (!s.listener && !is_wanted(&s))
		return false;
	load_holder(task, &s.owner.pid, s.owner.comm);
	s.owner.cgroup = BPF_CORE_READ(sk, sk_cgrp_data.cgroup, kn, id);
	s.owner.netns = sock_netns(sk);
	s.task_netns = task->nsproxy->net_ns->ns.inum;
	s.managed = is_manager(task);
	load_endpoints(&sk->__sk_common, &s.endpoints);
	if (s.listener)
		load_queue(sk, &s);
	bpf_seq_write(seq, &s, sizeof(s));
	return true;
}

/* An MPTCP socket: each of its paths. */
static __always_inline int open_subflows(struct bpf_iter__task_file *ctx, struct task_struct *task, struct sock *above)
{
	struct subflows walk;
	struct below below;
	struct room *room;
	__u32 key;

	room = take_room(&key);
	if (!room)
		return 0;
	begin_subflows(above, &walk);
	for (int i = 0; i < SUBFLOWS && next_subflow(&walk, room, &below); i++)
		write_below(ctx->meta->seq, task, &below);
	leave_room(room);
	return 0;
}

static long open_ring_file(__u32 slot, struct ring *ring)
{
	struct below below;
	enum ring_file kind = copy_from_ring(ring, slot, &below);

	if ((kind == RING_TCP || kind == RING_UDP) && ring->listed < RING_SOCKETS)
		ring->listed += write_below(ring->seq, ring->task, &below);
	return 0;
}

static __noinline int open_ring(struct bpf_iter__task_file *ctx, struct task_struct *task, struct file *file)
{
	struct ring ring = {};

	if (is_ring(file) && walk_ring(ctx, task, file, &ring, open_ring_file))
		leave_room(ring.room);
	return 0;
}

SEC("iter/task_file")
int open_sockets(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct open_socket s = {};
	struct socket *socket;
	struct sock *sk;

	if (!file || !task)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return open_ring(ctx, task, file);
	sk = socket->sk;
	if (!sk || is_inherited(task, ctx->fd, file))
		return 0;
	if (is_mptcp(sk) && is_inet(sk))
		return open_subflows(ctx, task, sk);
	s.listener = is_inet(sk) && sk->sk_protocol == IPPROTO_TCP && sk->__sk_common.skc_state == TCP_LISTEN;
	s.cookie = s.listener ? name_of(sk) : sk->__sk_common.skc_cookie.counter;
	s.address = (__u64)BPF_CORE_READ(socket, sk);
	if (!s.listener && !is_wanted(&s))
		return 0;
	load_open(task, sk, &s);
	load_endpoints(&sk->__sk_common, &s.endpoints);
	if (s.listener)
		load_queue(sk, &s);
	bpf_seq_write(ctx->meta->seq, &s, sizeof(s));
	return 0;
}

/*
 * Identifies the socket of a packet: its cookie, or its address if it has no cookie yet. The helper that assigns a
 * cookie requires a reference, which `skb` has and this program has not. The address is read as a number, since the
 * verifier does not let pointers into a hash.
 */
static __always_inline __u64 socket_of(struct sk_buff *skb)
{
	const struct sock *sk = untrusted(sk_buff, skb)->sk;

	if (!sk)
		return 0;
	return sk->__sk_common.skc_cookie.counter ?: (__u64)BPF_CORE_READ(skb, sk);
}
