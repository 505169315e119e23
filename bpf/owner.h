/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Who a socket belongs to and what it connects: what several programs record of a socket. */
#pragma once
#include "kernel.h"

/* A process, as it was when it did what is reported. */
struct owner {
	__u64 cgroup; /* cgroup v2 id: the inode of its folder in cgroupfs */
	__u32 pid;    /* thread group id in the initial PID namespace; 0 = not known */
	__u32 netns;  /* inode of the network namespace */
	char comm[16];
};

/* Both ends of a socket. IPv4 is held as ::ffff:a.b.c.d, so there is one form. Ports in host order. */
struct endpoints {
	__u8 local[16];
	__u8 remote[16];
	__u16 local_port;
	__u16 remote_port;
};

/* Only for hooks that run in the context of the process they speak of. */
static __always_inline void current_owner(struct owner *owner)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	owner->pid = bpf_get_current_pid_tgid() >> 32;
	owner->cgroup = bpf_get_current_cgroup_id();
	/* The name that ps shows is the group leader's; a thread's own may be "tokio-runtime-w". */
	BPF_CORE_READ_INTO(&owner->comm, task, group_leader, comm);
}

static __always_inline __u32 sock_netns(const struct sock *sk)
{
	return BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
}

/* Neither a time-wait nor a request socket, which end after the fields they share with all others. */
static __always_inline bool is_full(const struct sock *sk)
{
	__u8 state = BPF_CORE_READ(sk, __sk_common.skc_state);

	return state != TCP_TIME_WAIT && state != TCP_NEW_SYN_RECV;
}

enum { FILES_AT_ONCE = 16, FILES = 256 };

/*
 * Whether the running task has the socket among its first files. On a path where `current` may be
 * whoever was interrupted, this proves that it is the owner, or does not claim it.
 */
static __always_inline bool current_owns(const struct sock *sk)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct file *files[FILES_AT_ONCE], *file, **table;
	__u32 max;

	if (!is_full(sk))
		return false;
	file = BPF_CORE_READ(sk, sk_socket, file);
	table = BPF_CORE_READ(task, files, fdt, fd);
	max = BPF_CORE_READ(task, files, fdt, max_fds);
	if (!file || !table)
		return false;
	for (int i = 0; i < FILES && i < max; i += FILES_AT_ONCE) {
		if (bpf_probe_read_kernel(files, sizeof(files), table + i))
			return false;
		for (int j = 0; j < FILES_AT_ONCE; j++)
			if (files[j] == file)
				return true;
	}
	return false;
}

static __always_inline void mapped(__u8 address[16], __be32 ipv4)
{
	__u32 *word = (void *)address;

	word[0] = word[1] = 0;
	word[2] = bpf_htonl(0xffff);
	word[3] = ipv4;
}

static __always_inline void sock_endpoints(const struct sock *sk, struct endpoints *e)
{
	if (BPF_CORE_READ(sk, __sk_common.skc_family) == AF_INET) {
		mapped(e->local, BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr));
		mapped(e->remote, BPF_CORE_READ(sk, __sk_common.skc_daddr));
	} else {
		BPF_CORE_READ_INTO(&e->local, sk, __sk_common.skc_v6_rcv_saddr);
		BPF_CORE_READ_INTO(&e->remote, sk, __sk_common.skc_v6_daddr);
	}
	/* skc_num is already 0 at the transition to CLOSE; inet_sport is not. */
	e->local_port = bpf_ntohs(BPF_CORE_READ((const struct inet_sock *)sk, inet_sport));
	if (!e->local_port)
		e->local_port = BPF_CORE_READ(sk, __sk_common.skc_num);
	e->remote_port = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
}
