/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Resets of TCP connections: sender, receiver, reason. */
#pragma once
#include "figures.h"
#include "packet.h"

enum { RESETS = 4096 };

/* Equal resets: same owner, endpoints and reason. */
struct reset_key {
	struct endpoints endpoints; /* the client's port is 0 */
	__u32 netns;
	__u32 pid;
	__u32 reason;   /* enum sk_rst_reason, which differs by kernel; ~0 = unknown */
	__u8 by_remote; /* sent by the remote */
	__u8 state;     /* of the socket; 0 = there was no socket */
	__u8 pad[2];
};
const struct reset_key *reset_key_type __attribute__((unused));

struct reset {
	__u64 count;
	__u64 cookie; /* of the last one's socket; 0 = none */
	__u64 cgroup;
	char comm[16];
	__u32 port; /* the last one's client port */
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, RESETS);
	__type(key, struct reset_key);
	__type(value, struct reset);
} resets SEC(".maps");

static __always_inline void count_reset(struct reset_key *key, struct reset *first, bool inbound)
{
	struct endpoints *e = &key->endpoints;
	struct reset *known;

	if (inbound) {
		first->port = e->remote_port;
		e->remote_port = 0;
	} else {
		first->port = e->local_port;
		e->local_port = 0;
	}
	known = bpf_map_lookup_elem(&resets, key);
	if (known) {
		__sync_fetch_and_add(&known->count, 1);
		known->cookie = first->cookie;
		known->port = first->port;
		return;
	}
	/* A port scan creates one kind per port. Beyond the limit it costs only a look-up. */
	if (figures.reset_kinds >= RESETS || bpf_map_update_elem(&resets, key, first, BPF_NOEXIST))
		__sync_fetch_and_add(&figures.resets_untracked, 1);
	else
		__sync_fetch_and_add(&figures.reset_kinds, 1);
}

/* Not a TIME_WAIT or request socket: those have only the common fields. */
static __always_inline bool has_owner(const struct sock *sk)
{
	return sk->__sk_common.skc_state != TCP_TIME_WAIT && sk->__sk_common.skc_state != TCP_NEW_SYN_RECV;
}

/*
 * Returns whether our client received or sent the reset. A reset without a connection answers a segment from outside.
 */
static __always_inline bool load_reset_owner(struct sock *sk, struct reset_key *key, struct reset *reset)
{
	struct mark *mark;
	bool outbound;

	key->state = sk->__sk_common.skc_state;
	key->netns = load_netns(&sk->__sk_common);
	if (!has_owner(sk) || key->state == TCP_LISTEN)
		return false;
	reset->cookie = files_are_untrusted ? name_of(sk) : sk->__sk_common.skc_cookie.counter;
	reset->cgroup = load_cgroup(sk);
	mark = known_mark(sk);
	outbound = (mark && mark->direction ? mark->direction : guess_direction(sk)) == OUTBOUND;
	if (!mark)
		return outbound;
	key->pid = mark->pid;
	__builtin_memcpy(reset->comm, mark->comm, sizeof(reset->comm));
	return outbound;
}

/* From the answered segment; its sender is the remote. One read, since a scan may take this path. */
static __always_inline void load_segment(struct sk_buff *skb, struct endpoints *e)
{
	__u8 header[HEADER] __attribute__((aligned(8))) = {};
	const struct in6_addr *ipv6 = (const void *)(header + 8);
	__u32 offset = skb->transport_header - skb->network_header, ports;
	struct ipv4 ip;

	if (read_ipv4(skb, (__u64)skb->head + skb->network_header, &ip)) {
		mapped(e->remote, ip.source);
		mapped(e->local, ip.destination);
		ports = bpf_ntohl(ip.word);
		e->remote_port = ports >> 16;
		e->local_port = ports;
		return;
	}
	copy_from(skb, header, (__u64)skb->head + skb->network_header);
	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		copy_address(e->remote, ipv6);
		copy_address(e->local, ipv6 + 1);
	} else {
		mapped(e->remote, word_at(header, 12));
		mapped(e->local, word_at(header, 16));
	}
	if (offset > HEADER - sizeof(ports))
		return;
	ports = bpf_ntohl(word_at(header, offset));
	e->remote_port = ports >> 16;
	e->local_port = ports;
}

static __always_inline void load_ends(struct sock *sk, struct endpoints *e)
{
	load_endpoints(&sk->__sk_common, e);
	if (!e->local_port)
		e->local_port = bpf_ntohs(BPF_CORE_READ((struct inet_sock *)sk, inet_sport));
}

/*
 * Either pointer may be null: a reset from close() answers no segment, and a reset of a closed port has no socket. Some
 * kernels' verifiers assume both are valid; a null one then reads as zeros.
 */
static __always_inline int sends_reset(struct sock *sk, struct sk_buff *skb, __u32 reason)
{
	struct reset_key key = { .reason = reason };
	struct reset first = { .count = 1 };
	bool outbound = false;

	if (sk)
		outbound = load_reset_owner(sk, &key, &first);
	if (skb && skb->head) {
		load_segment(skb, &key.endpoints);
		if (!key.netns)
			key.netns = skb->dev->nd_net.net->ns.inum;
	} else if (sk) {
		load_ends(sk, &key.endpoints);
	}
	count_reset(&key, &first, !outbound);
	return 0;
}

SEC("tp_btf/tcp_send_reset")
int BPF_PROG(reset_sent, struct sock *sk, struct sk_buff *skb)
{
	return sends_reset(sk, skb, ~0u);
}

/* Linux 6.12 and newer give the reason. */
SEC("tp_btf/tcp_send_reset")
int BPF_PROG(reset_sent_with_reason, struct sock *sk, struct sk_buff *skb, __u32 reason)
{
	return sends_reset(sk, skb, reason);
}

SEC("tp_btf/tcp_receive_reset")
int BPF_PROG(reset_received, struct sock *sk)
{
	struct reset_key key = { .reason = ~0u, .by_remote = 1 };
	struct reset first = { .count = 1 };
	bool outbound = load_reset_owner(sk, &key, &first);

	load_ends(sk, &key.endpoints);
	count_reset(&key, &first, !outbound);
	return 0;
}
