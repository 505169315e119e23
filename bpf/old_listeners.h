/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The owners of listeners from before the first window, by address and port. Only if the verifier does not trust the
 * sockets of files: such a listener gets no storage that its connections could inherit. User space empties the table
 * when a period of windows ends.
 */
#pragma once
#include "below.h"

enum {
	OLD_LISTENERS = 16384,
	TRANSPARENT = 15, /* the bit INET_FLAGS_TRANSPARENT of inet_flags (linux/inet_sock.h) */
};

/* Linux 6.6 and newer. */
struct inet_sock___flags {
	unsigned long inet_flags;
} __attribute__((preserve_access_index));

struct listening {
	__u8 address[16];
	__u32 netns;
	__u32 port;
};

struct old_listener {
	struct owner owner; /* unknown if several listeners have this address and port */
	__u64 listener;     /* its address in memory */
	__u32 round;
	__u32 managed; /* a service manager's, unless another holder is known */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, OLD_LISTENERS);
	__type(key, struct listening);
	__type(value, struct old_listener);
} old_listeners SEC(".maps");

static __always_inline void load_listening(const struct sock_common *c, struct listening *at)
{
	struct endpoints ends;

	load_endpoints(c, &ends);
	__builtin_memcpy(at->address, ends.local, sizeof(at->address));
	at->netns = load_netns(c);
	at->port = ends.local_port;
}

/*
 * Once per holder and round. The first of several holders of a listener wins; a manager holds the sockets that it
 * activates for others. A separate function, since old kernels have no room for its variables on the
 * stack of its callers.
 */
static __noinline void note_old_listener(struct sock *sk, struct task_struct *task, __u8 claim, __u32 round)
{
	const struct old_listener *known;
	struct old_listener holder = {};
	struct listening at = {};

	load_listening(&sk->__sk_common, &at);
	known = bpf_map_lookup_elem(&old_listeners, &at);
	if (known && known->round != round)
		known = 0;
	if (known && (!known->owner.pid || (!known->managed && known->owner.pid == task->tgid)))
		return;
	if (!known || known->listener == (__u64)sk) {
		if (known && (!known->managed || claim == CLAIM_MANAGER))
			return;
		load_holder(task, &holder.owner.pid, holder.owner.comm);
		holder.owner.cgroup = task_cgroup(task);
	}
	holder.owner.netns = at.netns;
	holder.listener = (__u64)sk;
	holder.round = round;
	holder.managed = claim == CLAIM_MANAGER;
	bpf_map_update_elem(&old_listeners, &at, &holder, BPF_ANY);
}

/* The address of the socket that the file leads to: with MPTCP, of the one above. */
static __always_inline __u64 listener_of_file(struct sock *sk)
{
	const struct mptcp_subflow_context *context;
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);

	if (!tp || !is_subflow(tp))
		return number_of((__u64)sk);
	context = (const void *)tp->inet_conn.icsk_ulp_data;
	return (__u64)BPF_CORE_READ(context, conn);
}

/* The entry stays if it is of another listener, or of several. */
static __always_inline void forget_old_listener(struct sock *sk)
{
	const struct old_listener *known;
	struct listening at = {};

	if (!files_are_untrusted)
		return;
	load_listening(&sk->__sk_common, &at);
	if (!at.port) /* at the end of a socket skc_num is 0 */
		at.port = bpf_ntohs(BPF_CORE_READ((const struct inet_sock *)sk, inet_sport));
	known = bpf_map_lookup_elem(&old_listeners, &at);
	if (known && known->owner.pid && known->listener == listener_of_file(sk))
		bpf_map_delete_elem(&old_listeners, &at);
}

/* A transparent proxy: its connections have addresses of other listeners, or of none here. */
static __always_inline bool is_transparent(struct sock *sk)
{
	const struct inet_sock___flags *inet = (const void *)sk;

	return bpf_core_field_exists(inet->inet_flags) && BPF_CORE_READ(inet, inet_flags) & 1ul << TRANSPARENT;
}

/* Of an accepted connection: at its address, or at any. */
static __always_inline const struct old_listener *old_listener_of(struct sock *sk)
{
	const struct old_listener *found;
	struct listening at = {};

	if (!files_are_untrusted || is_transparent(sk))
		return 0;
	load_listening(&sk->__sk_common, &at);
	found = bpf_map_lookup_elem(&old_listeners, &at);
	if (!found && sk->__sk_common.skc_family == AF_INET) {
		mapped(at.address, 0);
		found = bpf_map_lookup_elem(&old_listeners, &at);
	}
	if (!found) {
		__builtin_memset(at.address, 0, sizeof(at.address));
		found = bpf_map_lookup_elem(&old_listeners, &at);
	}
	return found && found->owner.pid ? found : 0;
}
