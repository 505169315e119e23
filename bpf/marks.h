/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The process that opened a socket, and the window in which it did, if seen.
 *
 * Include this after `#define MARK`, the part of the storage that is the tool's.
 */
#pragma once
#include "below.h"
#include "closing.h"
#include "direction.h"
#include "old_listeners.h"
#include "storage.h"
#include "windows.h"

#define ORPHAN_OWNER struct mark
#include "orphans.h"

CARRIED(mark, storages, struct mark, __builtin_offsetof(struct storage, MARK))

static __always_inline struct mark *known_mark(struct sock *sk)
{
	return KNOWN_PART(sk, MARK);
}

/* The mark of a socket that a file leads to; of an untrusted one a copy. */
static __always_inline const struct mark *held_mark(struct sock *sk, struct mark *copy)
{
	if (!files_are_untrusted)
		return known_mark(sk);
	return carried_mark(number_of((__u64)BPF_CORE_READ(sk, sk_bpf_storage)), copy) && copy->is_known ? copy : 0;
}

static __always_inline struct mark *mark_of(struct sock *sk)
{
	return PART(sk, MARK);
}

static __always_inline void forget_mark(struct sock *sk)
{
	FORGET_PART(sk, MARK);
}

/* Opened in the current period of open windows. Some marks of an earlier period remain. */
static __always_inline bool is_new(const struct mark *mark)
{
	return mark->window && (__s32)(mark->window - windows.first) >= 0;
}

/* A kernel thread has no name. */
static __always_inline void mark_task(struct mark *mark, const struct task_struct *task)
{
	if (task->flags & PF_KTHREAD)
		return;
	load_holder(task, &mark->pid, mark->comm);
	mark->managed = is_manager(task);
}

/* A path that the kernel itself opens for an MPTCP socket, or accepts for one, has the owner of that socket. */
static __always_inline void mark_as_above(struct sock *sk, struct mark *mark)
{
	struct mark other = {};

	if (!is_known_above(mark, sk, &other, pid))
		return;
	mark->pid = other.pid;
	mark->managed = other.managed;
	__builtin_memcpy(mark->comm, other.comm, sizeof(mark->comm));
}

/*
 * connect() or listen(): a listener's connections are inbound. An MPTCP socket gets a mark only for its paths. The
 * paths get a cookie here, where it is possible.
 */
static __always_inline void mark_opened(struct sock *sk, int state)
{
	struct mark *mark = mark_of(sk);

	if (!mark)
		return;
	mark->window = windows.newest;
	mark->pid = mark->handshake_us = 0;
	mark->direction = state == TCP_LISTEN ? INBOUND : OUTBOUND;
	mark->comm[0] = 0;
	mark_task(mark, bpf_get_current_task_btf());
	if (!mark->pid)
		mark_as_above(sk, mark);
	bpf_get_socket_cookie(sk);
}

static __always_inline void mark_as_listener(struct sock *sk, struct mark *mark)
{
	const struct old_listener *listener = old_listener_of(sk);

	if (!listener)
		return;
	mark->pid = listener->owner.pid;
	mark->managed = listener->managed;
	__builtin_memcpy(mark->comm, listener->owner.comm, sizeof(mark->comm));
}

/* A mark inherited from a listener does not have the opening time. */
static __always_inline void mark_accepted(struct sock *sk)
{
	struct mark *mark = mark_of(sk);

	if (!mark)
		return;
	mark->window = windows.newest;
	if (!mark->direction) /* or both sides called connect() */
		mark->direction = guess_direction(sk);
	if (!mark->pid)
		mark_as_above(sk, mark);
	if (!mark->pid)
		mark_as_listener(sk, mark);
	bpf_get_socket_cookie(sk);
}

/* A connection keeps the process that made it. An accepted one belongs to the process that serves and closes it. */
static __always_inline void mark_closed(struct sock *sk)
{
	struct mark *mark = mark_of(sk);

	if (!mark)
		return;
	if (!mark->direction)
		mark->direction = guess_direction(sk);
	if (!mark->pid || mark->direction == INBOUND)
		mark_task(mark, closing_task(mark->pid));
	if (!mark->pid)
		mark_as_above(sk, mark);
	note_orphan(sk, mark);
}

/* The first of several holders of a listener wins; a manager holds the sockets that it activates for others. */
static __always_inline void mark_listener(struct mark *mark, struct task_struct *task, __u8 claim)
{
	if (mark->pid && is_new(mark) && (!mark->managed || claim == CLAIM_MANAGER))
		return;
	load_holder(task, &mark->pid, mark->comm);
	mark->managed = claim == CLAIM_MANAGER;
	mark->window = windows.newest;
	mark->direction = INBOUND;
}
