/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Who opened a socket, and in which window, as far as it was seen. */
#pragma once
#include "below.h"
#include "direction.h"
#include "windows.h"

struct mark {
	__u32 pid; /* 0 = not known */
	char comm[16];
	__u32 window;       /* the newest when the socket was opened; 0 = before we watched; of a listener any but 0 */
	__u32 slot;         /* UDP: where what it moved last is counted; 0 = nowhere */
	__u32 handshake_us; /* TCP: the round trip of its handshake, times 8; 0 = not known */
	__u32 direction;    /* TCP: enum direction, of its state changes */
	__u32 managed;      /* it is a manager's, as long as nobody else is known to have it */
	__u32 oldest;       /* UDP: window since which … */
	__u32 remotes;      /* … so many of its remotes have got a slot */
};

#define ORPHAN_OWNER struct mark
#include "orphans.h"

/* A listener's mark is copied to the connections that it accepts. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct mark);
} marks SEC(".maps");

CARRIED(marks, struct mark)

/* Opened while windows have been open without a break. Not every mark is reached when such a period ends. */
static __always_inline bool is_new(const struct mark *mark)
{
	return mark->window && (__s32)(mark->window - windows.first) >= 0;
}

/* A kernel thread has no name. */
static __always_inline void mark_current(struct mark *mark)
{
	struct task_struct *task = bpf_get_current_task_btf();

	if (task->flags & PF_KTHREAD)
		return;
	load_holder(task, &mark->pid, mark->comm);
	mark->managed = is_manager(task);
}

/* A path that the kernel itself opens for an MPTCP socket, or has accepted for one, is whose that is. */
static __always_inline void mark_as_above(struct sock *sk, struct mark *mark)
{
	struct mark other = {};

	if (!is_known_above(marks, sk, &other, pid))
		return;
	mark->pid = other.pid;
	mark->managed = other.managed;
	__builtin_memcpy(mark->comm, other.comm, sizeof(mark->comm));
}

/*
 * connect() or listen(): a listener's connections are inbound. An MPTCP socket is marked for its paths, and nothing
 * else is said of it; its paths get a cookie while that is easy.
 */
static __always_inline void mark_opened(struct sock *sk, int state)
{
	struct mark *mark = sk_storage_of(&marks, sk);

	if (!mark)
		return;
	mark->window = windows.newest;
	mark->pid = mark->handshake_us = 0;
	mark->direction = state == TCP_LISTEN ? INBOUND : OUTBOUND;
	mark->comm[0] = 0;
	mark_current(mark);
	if (!mark->pid)
		mark_as_above(sk, mark);
	bpf_get_socket_cookie(sk);
}

/* The mark that it has of its listener, if it has one, does not say when it was opened. */
static __always_inline void mark_accepted(struct sock *sk)
{
	struct mark *mark = sk_storage_of(&marks, sk);

	if (!mark)
		return;
	mark->window = windows.newest;
	if (!mark->direction) /* or both sides called connect() */
		mark->direction = guess_direction(sk);
	if (!mark->pid)
		mark_as_above(sk, mark);
	bpf_get_socket_cookie(sk);
}

/* A connection that a process made stays its own; one that was accepted belongs to who serves it, and closes it. */
static __always_inline void mark_closed(struct sock *sk)
{
	struct mark *mark = sk_storage_of(&marks, sk);

	if (!mark)
		return;
	if (!mark->direction)
		mark->direction = guess_direction(sk);
	if (!mark->pid || mark->direction == INBOUND)
		mark_current(mark);
	if (!mark->pid)
		mark_as_above(sk, mark);
	note_orphan(sk, mark);
}

/* Of several holders of a listener the first one's; a manager holds what it activates for others. */
static __always_inline void mark_listener(struct mark *mark, struct task_struct *task, __u8 claim)
{
	if (mark->pid && is_new(mark) && (!mark->managed || claim == CLAIM_MANAGER))
		return;
	load_holder(task, &mark->pid, mark->comm);
	mark->managed = claim == CLAIM_MANAGER;
	mark->window = windows.newest;
	mark->direction = INBOUND;
}
