/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * UDP has no byte counters, so these programs count where a process sends or receives. They also see data that bypasses
 * TCP.
 */
#pragma once
#include "past_tcp.h"
#include "remotes.h"
#include "slots.h"

/* Set before loading. A secret, so that nobody can choose remotes with equal ids. */
const volatile __u64 seed = 0;

/* By id. It grows with its content: idle, it is a table of empty buckets. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, FLOWS);
	__type(key, __u64);
	__type(value, struct flow);
} udp_flows SEC(".maps");

static __always_inline __u64 id_of(__u64 cookie, const struct remote *remote)
{
	return mix(mix(mix(seed ^ cookie, remote->address[0]), remote->address[1]), remote->port) | 1;
}

static __always_inline struct slot *slot_at(__u32 index, __u64 id)
{
	struct slot *slot = bpf_map_lookup_elem(&slots, &index);
	__u32 newest = windows.newest;

	if (!slot || slot->id != id)
		return 0;
	if (slot->seen != newest)
		slot->seen = newest;
	return slot;
}

/* The slot of a UDP socket and its remote, unless another pair has taken it over after idle time. */
static __always_inline struct slot *slot_of(struct mark *mark, __u64 id)
{
	struct slot *slot = mark->slot ? slot_at(mark->slot, id) : 0;
	struct flow *flow;

	if (slot)
		return slot;
	/* The remote changed. */
	flow = bpf_map_lookup_elem(&udp_flows, &id);
	slot = flow ? slot_at(flow->slot, id) : 0;
	if (slot)
		mark->slot = flow->slot;
	return slot;
}

/* Assigns a slot, in the process that sends or receives; null if no slot is free. */
static __always_inline struct slot *admit(struct sock *sk, struct mark *mark, __u64 id, __u64 cookie,
					  const struct remote *remote)
{
	struct flow flow = {};
	struct slot *slot;
	__u32 index;

	slot = free_slot(&index);
	if (!slot)
		return 0;
	if (slot->id)
		bpf_map_delete_elem(&udp_flows, &slot->id);
	mark_task(mark, bpf_get_current_task_btf());
	flow.slot = index;
	flow.socket.cookie = cookie;
	flow.socket.cgroup = load_cgroup(sk);
	flow.socket.netns = load_netns(&sk->__sk_common);
	flow.socket.pid = mark->pid;
	__builtin_memcpy(flow.socket.comm, mark->comm, sizeof(mark->comm));
	load_endpoints(&sk->__sk_common, &flow.socket.endpoints);
	__builtin_memcpy(flow.socket.endpoints.remote, remote->address, sizeof(remote->address));
	flow.socket.endpoints.remote_port = remote->port;
	flow.socket.protocol = IPPROTO_UDP;
	if (bpf_map_update_elem(&udp_flows, &id, &flow, BPF_NOEXIST)) {
		slot->id = 0; /* another CPU was first */
		return slot_of(mark, id);
	}
	slot->id = id;
	slot->seen = windows.newest;
	mark->slot = index;
	return slot;
}

/* Whether a socket may have one more remote. Remotes from finished windows do not count. */
static __always_inline bool has_room(struct mark *mark)
{
	__u32 oldest = windows.oldest;

	if (mark->oldest != oldest) {
		mark->oldest = oldest;
		mark->remotes = 0;
	}
	return mark->remotes++ < REMOTES;
}

static __always_inline struct slot *slot_for(struct sock *sk, __u64 cookie, struct remote *remote)
{
	struct mark *mark = mark_of(sk);
	__u64 id = id_of(cookie, remote);
	struct slot *slot;

	if (!mark)
		return 0;
	slot = slot_of(mark, id);
	if (slot)
		return slot;
	if (!has_room(mark)) {
		__sync_fetch_and_add(&admission.udp_merged, 1);
		__builtin_memset(remote, 0, sizeof(*remote));
		id = id_of(cookie, remote);
		slot = slot_of(mark, id);
	}
	return slot ?: admit(sk, mark, id, cookie, remote);
}

static __always_inline void count_datagram(struct sock *sk, __u64 cookie, struct remote *remote, __u64 rx_bytes,
					   __u64 tx_bytes)
{
	struct slot *slot = slot_for(sk, cookie, remote);

	if (slot) {
		add(slot, rx_bytes, tx_bytes);
		return;
	}
	__sync_fetch_and_add(&admission.udp_untracked, 1);
	add_untracked(UDP_UNTRACKED, rx_bytes, tx_bytes);
}

static __always_inline __u64 cookie_of(struct sock *sk)
{
	return (__u64)sk->__sk_common.skc_cookie.counter ?: bpf_get_socket_cookie(sk);
}

static __always_inline bool is_udp(struct sock *sk)
{
	return sk->sk_protocol == IPPROTO_UDP && is_inet(sk);
}

/*
 * These hooks are not on the packets: there the process is unknown, and each packet costs a hash look-up. These two run
 * at the end of every sendmsg and recvmsg (Linux 6.3).
 */
SEC("tp_btf/sock_send_length")
int BPF_PROG(udp_sent, struct sock *sk, int length, int flags)
{
	struct remote remote;
	__u64 cookie;

	if (is_udp(sk)) {
		cookie = cookie_of(sk);
		take_remote(sk, cookie, &remote); /* also for a failed call */
		if (length > 0)
			count_datagram(sk, cookie, &remote, 0, length);
	} else if (length > 0) {
		count_past(sk, length, true);
	}
	return 0;
}

SEC("tp_btf/sock_recv_length")
int BPF_PROG(udp_received, struct sock *sk, int length, int flags)
{
	bool is_taken = length > 0 && !(flags & (MSG_PEEK | MSG_ERRQUEUE));
	struct remote remote;
	__u64 cookie;

	if (is_udp(sk)) {
		cookie = cookie_of(sk);
		take_remote(sk, cookie, &remote);
		if (is_taken)
			count_datagram(sk, cookie, &remote, length, 0);
	} else if (is_taken) {
		count_past(sk, length, false);
	}
	return 0;
}
