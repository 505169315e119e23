/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Common records of several programs: the owner of a socket, and its two ends. */
#pragma once
#include "cast.h"

/* A process, as it was at the time of the event. */
struct owner {
	__u64 cgroup; /* cgroup v2 id: the inode of its folder in cgroupfs */
	__u32 pid;    /* thread group id in the initial PID namespace; 0 = unknown */
	__u32 netns;  /* inode of the network namespace */
	char comm[16];
};

/* Both ends of a socket. IPv4 is stored as ::ffff:a.b.c.d, so all addresses have one form. Ports are in host order. */
struct endpoints {
	__u8 local[16];
	__u8 remote[16];
	__u16 local_port;
	__u16 remote_port;
};

/*
 * A process: its number, and its name as in ps, which is the group leader's; a thread may have another name, such as
 * "tokio-runtime-w". Plain loads: a helper for each would cost 20 ns on a kernel with mitigations.
 */
static __always_inline void load_holder(const struct task_struct *task, __u32 *pid, char comm[16])
{
	const __u32 *name = (const void *)untrusted(task_struct, task)->group_leader->comm;
	__u32 *word = (void *)comm;

	*pid = task->tgid;
	word[0] = name[0];
	word[1] = name[1];
	word[2] = name[2];
	word[3] = name[3];
}

static __always_inline __u64 task_cgroup(const struct task_struct *task)
{
	return untrusted(task_struct, task)->cgroups->dfl_cgrp->kn->id;
}

/* Process 1 of a PID namespace, of a container for example. */
static __always_inline bool is_init(const struct task_struct *task)
{
	const struct task_struct *leader = untrusted(task_struct, task)->group_leader;
	__u32 level = leader->thread_pid->level;
	const struct upid *innermost;
	struct pid *pid;

	if (task->tgid == 1)
		return true;
	if (!level)
		return false;
	/* As a number: old verifiers allow addition to it. */
	if (bpf_core_read(&pid, sizeof(pid), &leader->thread_pid))
		return false;
	innermost =
	    (const void *)pid + bpf_core_field_offset(struct pid, numbers) + level * bpf_core_type_size(struct upid);
	return BPF_CORE_READ(innermost, nr) == 1;
}

/*
 * Whether a process creates sockets for the services that it starts, and keeps them, as systemd does. This is process 1
 * of the host or of a container, or a child subreaper, such as the manager of a user's services.
 */
static __always_inline bool is_manager(const struct task_struct *task)
{
	return is_init(task) || BPF_CORE_READ_BITFIELD(task->signal, is_child_subreaper);
}

/*
 * Whether a file that a process and its parent both have belongs to the parent. Every child is in this state from
 * fork() until exec(). Process numbers do not show the older one, since they wrap. A socket that a manager creates for
 * a service belongs to the service.
 */
static __always_inline bool is_of_parent(const struct task_struct *task, const struct task_struct *parent)
{
	if (parent->tgid <= 1)
		return false;
	return untrusted(task_struct, task)->group_leader->flags & PF_FORKNOEXEC || !is_manager(parent);
}

/* Whether a process inherited the file from its parent, which still has it, and to which it belongs. */
static __always_inline bool is_inherited(struct task_struct *task, __u32 fd, const struct file *file)
{
	struct task_struct *parent = task->real_parent;
	struct file *same = 0;

	if (fd >= parent->files->fdt->max_fds)
		return false;
	if (bpf_probe_read_kernel(&same, sizeof(same), parent->files->fdt->fd + fd) || same != file)
		return false;
	return is_of_parent(task, parent);
}

/* The owner of a shared file: the lowest process number. UNREAD has a count instead of a row. */
enum claim { CLAIM_OWN, CLAIM_MANAGER, CLAIM_INHERITED, CLAIM_UNREAD };

static __always_inline __u8 claim_of(struct task_struct *task, __u32 fd, const struct file *file)
{
	if (is_inherited(task, fd, file))
		return CLAIM_INHERITED;
	return is_manager(task) ? CLAIM_MANAGER : CLAIM_OWN;
}

static __always_inline void load_owner(const struct task_struct *task, struct owner *owner)
{
	load_holder(task, &owner->pid, owner->comm);
	owner->cgroup = task_cgroup(task);
}

/* Only for hooks that run in the context of the reported process. */
static __always_inline void current_owner(struct owner *owner)
{
	load_owner(bpf_get_current_task_btf(), owner);
}

static __always_inline __u32 sock_netns(const struct sock *sk)
{
	return BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
}

/* Not a time-wait or request socket: those have only the fields common to all sockets. */
static __always_inline bool is_full(const struct sock *sk)
{
	__u8 state = BPF_CORE_READ(sk, __sk_common.skc_state);

	return state != TCP_TIME_WAIT && state != TCP_NEW_SYN_RECV;
}

/*
 * The storage of a socket in a map, created if absent. It tries twice: bpf_local_storage_alloc() fails with EAGAIN when
 * two callers create the first storage of a socket at once, as the readings of two tools do.
 */
#define sk_storage_of(map, sk)                                                                                         \
	(bpf_sk_storage_get(map, sk, 0, BPF_SK_STORAGE_GET_F_CREATE)                                                   \
	     ?: bpf_sk_storage_get(map, sk, 0, BPF_SK_STORAGE_GET_F_CREATE))

enum { FILES_AT_ONCE = 16, FILES = 1024 };

/* Whether a file is in a table from this index on. A global function: the verifier checks it once. */
__noinline int is_among(__u64 files, __u64 file)
{
	__u64 some[FILES_AT_ONCE];

	if (bpf_probe_read_kernel(some, sizeof(some), (void *)files))
		return false;
	for (int i = 0; i < FILES_AT_ONCE; i++)
		if (some[i] == file)
			return true;
	return false;
}

/*
 * The first number of the part of the running task's files that has the socket with this address: among its first files
 * or its latest ones, which have the numbers before the next free one. -1 if none has. Inlined, the verifier took
 * seconds for it.
 */
__noinline int part_of_current(__u64 address)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	const struct sock *sk = (const void *)address;
	__u64 file, table;
	__u32 max, next;

	if (!is_full(sk))
		return -1;
	file = (__u64)BPF_CORE_READ(sk, sk_socket, file);
	table = (__u64)BPF_CORE_READ(task, files, fdt, fd);
	max = BPF_CORE_READ(task, files, fdt, max_fds);
	next = BPF_CORE_READ(task, files, next_fd);
	if (!file || !table)
		return -1;
	if (next > FILES && next <= max && is_among(table + (next - FILES_AT_ONCE) * sizeof(file), file))
		return next - FILES_AT_ONCE;
	for (int i = 0; i < FILES && i < max; i += FILES_AT_ONCE)
		if (is_among(table + i * sizeof(file), file))
			return i;
	return -1;
}

/* Whether that part of the parent's files has it, too, and it belongs to the parent. */
__noinline int is_parents_of_current(__u64 address, __u32 part)
{
	struct task_struct *task = bpf_get_current_task_btf(), *parent = task->real_parent;
	const struct sock *sk = (const void *)address;
	__u64 table;

	if (!is_of_parent(task, parent) || part + FILES_AT_ONCE > BPF_CORE_READ(parent, files, fdt, max_fds))
		return false;
	table = (__u64)BPF_CORE_READ(parent, files, fdt, fd);
	return table && is_among(table + part * sizeof(table), (__u64)BPF_CORE_READ(sk, sk_socket, file));
}

/* On a path with an arbitrary `current`, a hit proves ownership and a miss claims nothing. */
static __always_inline bool current_owns(const struct sock *sk)
{
	int part = part_of_current(number_of((__u64)sk));

	return part >= 0 && !is_parents_of_current(number_of((__u64)sk), part);
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
