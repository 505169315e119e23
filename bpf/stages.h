/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Times by stage, summed in the kernel: a histogram per owner, end and stage. A socket and a thread remember the number
 * of their group, so an event costs one look-up.
 */
#pragma once
#include "exchanges.h"
#include "times.h"
#include "windows.h"

enum {
	GROUPS = 4096,
	TIMES = 16384,
	REMOTES_APART = 2048, /* beyond this number of groups, a server's remotes share one */
	STAGE_BITS = 3,
};

/* LEAST_RTT and LEFT_OUT are not shown as stages. LEFT_OUT counts exchanges in bucket 0, and connections in bucket 1.
 */
enum stage {
	ARRIVAL_TO_SOCKET,
	SOCKET_TO_READ,
	REQUEST_TO_REPLY,
	WRITE_TO_WIRE,
	WIRE_TO_ACK,
	RUNNABLE_TO_RUNNING,
	LEAST_RTT,
	LEFT_OUT,
};

/* An owner with one end of its connections: the own end of a server, the other end of a client. */
struct party {
	__u8 local[16];
	__u8 remote[16]; /* IPv4 as ::ffff:a.b.c.d */
	__u32 netns;
	__u32 pid;
	__u16 local_port;
	__u16 remote_port;
	__u8 protocol;
	__u8 side;
	__u16 pad;
};

struct group {
	__u64 seen_ns; /* when a socket of it was used in the newest window */
	__u64 cgroup;
	__u32 id; /* never used again */
	__u32 pad;
	char comm[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, GROUPS);
	__type(key, struct party);
	__type(value, struct group);
} groups SEC(".maps");

/* By the number of the group and the stage. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, TIMES);
	__type(key, __u32);
	__type(value, struct times);
} times SEC(".maps");

/* Counters only grow until the last window closes. */
struct counted {
	__u64 groups;
	__u64 sockets_untracked; /* uses of sockets without a free group */
	__u64 times_untracked;   /* times without a free histogram */
	__u64 remotes_merged;    /* groups of servers without a remote */
};
struct counted counted;

static const struct times no_times;

static __noinline int add_us(__u32 group, __u32 stage, __u32 us, __u32 weight)
{
	__u32 key = group << STAGE_BITS | stage;
	struct times *found = bpf_map_lookup_elem(&times, &key);

	if (!found) {
		bpf_map_update_elem(&times, &key, &no_times, BPF_NOEXIST);
		found = bpf_map_lookup_elem(&times, &key);
	}
	if (!found) {
		__sync_fetch_and_add(&counted.times_untracked, 1);
		return 0;
	}
	count_time(found, us, weight);
	return 0;
}

static __always_inline void add_ns(__u32 group, __u32 stage, __u64 ns, __u32 weight)
{
	add_us(group, stage, capped_us(ns), weight);
}

/* A port that connect() or the first datagram chose says nothing. */
static __always_inline void load_udp_party(const struct sock *sk, struct party *party)
{
	bool is_bound = BPF_CORE_READ_BITFIELD(sk, sk_userlocks) & SOCK_BINDPORT_LOCK;
	bool is_connected = sk->__sk_common.skc_dport;

	party->side = is_bound && !is_connected ? SIDE_SERVER : SIDE_CLIENT;
}

static __always_inline void load_party(struct sock *sk, struct party *party)
{
	struct endpoints ends = {};
	struct tcp_sock *tp = 0;

	if (sk->sk_protocol == IPPROTO_TCP)
		tp = bpf_skc_to_tcp_sock(sk);
	if (tp)
		party->side = is_inbound(tp) ? SIDE_SERVER : SIDE_CLIENT;
	else
		load_udp_party(sk, party);
	party->protocol = sk->sk_protocol;
	party->netns = load_netns(&sk->__sk_common);
	load_endpoints(&sk->__sk_common, &ends);
	if (party->side == SIDE_SERVER) {
		__builtin_memcpy(party->local, ends.local, sizeof(ends.local));
		party->local_port = ends.local_port;
	} else {
		party->remote_port = ends.remote_port;
	}
	if (party->side == SIDE_CLIENT || counted.groups < REMOTES_APART)
		__builtin_memcpy(party->remote, ends.remote, sizeof(ends.remote));
	else
		__sync_fetch_and_add(&counted.remotes_merged, 1);
}

/* The number of the group of a socket that the current task uses; 0 if there is no room. */
static __noinline __u32 group_of(struct sock *sk)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct party party = {};
	struct group fresh = {}, *group;

	load_party(sk, &party);
	if (!(task->flags & PF_KTHREAD))
		load_holder(task, &party.pid, fresh.comm);
	group = bpf_map_lookup_elem(&groups, &party);
	if (!group) {
		fresh.cgroup = load_cgroup(sk);
		fresh.id = __sync_fetch_and_add(&counted.groups, 1) + 1;
		bpf_map_update_elem(&groups, &party, &fresh, BPF_NOEXIST);
		group = bpf_map_lookup_elem(&groups, &party);
	}
	if (!group) {
		__sync_fetch_and_add(&counted.sockets_untracked, 1);
		return 0;
	}
	group->seen_ns = bpf_ktime_get_ns();
	return group->id;
}
