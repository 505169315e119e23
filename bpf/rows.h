/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * A row for each TCP socket of the host, with the counters of its life.
 *
 * Include this after `#define ROW`, the type of a row, and six functions: `load_counters()` reads the socket, or a
 * copy, and its mark if it has one; `load_past()` and `load_past_below()` add what TCP does not count;
 * `load_listener()` says whether a listener needs more than `unread`; `load_direction()` adds which end opened a socket
 * if its mark lacks that; and `forget()` removes the tool's part of the socket's storage.
 */
#pragma once
#include "accept_queue.h"
#include "below.h"
#include "forget.h"
#include "marks.h"
#include "ring_files.h"

static __always_inline void load_mark(const struct mark *mark, ROW *row)
{
	row->pid = mark->pid;
	row->window = is_new(mark) ? mark->window : 0;
	__builtin_memcpy(row->comm, mark->comm, sizeof(row->comm));
}

/* A socket and its mark. */
static __always_inline bool load_row(struct sock *sk, ROW *row)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct mark *mark;

	if (!tp)
		return false;
	mark = known_mark(sk);
	load_counters(tp, mark, row);
	if (!mark || !mark->direction)
		load_direction(tp, row);
	load_past(sk, tp, row);
	row->cookie = identity(sk, tp);
	row->address = (__u64)sk;
	row->cgroup = load_cgroup(sk);
	row->netns = load_netns(&sk->__sk_common);
	if (mark)
		load_mark(mark, row);
	return true;
}

/*
 * The same for a lower socket with a copy in this room; its row also goes there. A global function: the verifier checks
 * it once.
 */
__noinline int load_row_below(__u64 address, __u32 key)
{
	struct room *room = room_of(key);
	const struct mark *mark;
	const struct sock *sk;
	ROW *row;

	if (!room)
		return 0;
	sk = &copy_in(room)->inet_conn.icsk_inet.sk;
	mark = (const void *)room->carried;
	if (!carried_mark(storage_in(room), (void *)room->carried) || !mark->is_known)
		mark = 0;
	row = (void *)room->row;
	__builtin_memset(row, 0, sizeof(*row));
	load_counters(copy_in(room), mark, row);
	if (!mark || !mark->direction)
		load_direction(copy_in(room), row);
	load_past_below(room, address, row);
	row->cookie = sk->__sk_common.skc_cookie.counter ?: address;
	row->address = address;
	row->cgroup = copied_cgroup(copy_in(room));
	row->netns = sock_netns(sk);
	if (mark)
		load_mark(mark, row);
	return 1;
}

/* Until accept(), a connection belongs to its listener. */
static long list_waiting(__u32 i, struct accept_queue *queue)
{
	struct sock *sk = next_waiting(queue);
	const struct mark *owner = queue->owner;
	ROW *row = queue->row;

	if (!sk)
		return 1;
	__builtin_memset(row, 0, sizeof(*row));
	if (!load_row(sk, row))
		return 1;
	if (owner) {
		row->pid = owner->pid;
		__builtin_memcpy(row->comm, owner->comm, sizeof(row->comm));
	}
	bpf_seq_write(queue->seq, row, sizeof(*row));
	return 0;
}

/* Marks the listeners from before monitoring, and lists the connections that wait at those of other namespaces. */
static __always_inline int list_listener(struct bpf_iter__task_file *ctx, struct task_struct *task, struct sock *sk,
					 ROW *row)
{
	struct mark *mark = mark_of(sk);
	struct accept_queue queue = { .seq = ctx->meta->seq, .owner = mark, .row = row };
	__u8 claim = row->claim;
	__u32 unread;
	bool more;

	if (mark)
		mark_listener(mark, task, claim);
	unread = walk_accept_queue(sk, list_waiting, &queue, WAITING);
	__builtin_memset(row, 0, sizeof(*row));
	row->claim = claim;
	row->unread = unread;
	row->cookie = bpf_get_socket_cookie(sk);
	more = load_listener(sk, is_elsewhere(sk), row);
	if (row->unread || more)
		bpf_seq_write(ctx->meta->seq, row, sizeof(*row));
	return 0;
}

/* Its owner is the holder of the upper socket. */
static __always_inline void write_below(struct seq_file *seq, struct task_struct *task, struct room *room, __u8 claim)
{
	ROW *row = (void *)room->row;

	row->claim = claim;
	load_holder(task, &row->pid, row->comm);
	bpf_seq_write(seq, row, sizeof(*row));
}

static long list_waiting_below(__u32 i, struct queue_below *queue)
{
	struct below below;

	if (!next_waiting_below(queue, &below))
		return 1;
	if (load_row_below(below.address, queue->key))
		write_below(queue->seq, queue->task, queue->room, queue->claim);
	return 0;
}

/* The connections that wait at a listener below an MPTCP socket, and the number not reached. */
static __always_inline void list_queue_below(struct bpf_iter__task_file *ctx, struct task_struct *task,
					     const struct below *listener, struct room *room, __u32 key, __u8 claim)
{
	struct queue_below queue = { .listener = listener->address, .task = task, .room = room, .key = key };
	const struct sock *sk = below_sock(listener);
	ROW *row = (void *)room->listener;
	__u32 waiting = sk->sk_ack_backlog;
	bool more;
	long walked;

	__builtin_memset(row, 0, sizeof(*row));
	row->cookie = sk->__sk_common.skc_cookie.counter ?: listener->address;
	more = load_listener(sk, sock_netns(sk) != own_netns, row);
	queue.seq = ctx->meta->seq;
	queue.claim = claim;
	queue.next = (__u64)listener->tcp->inet_conn.icsk_accept_queue.rskq_accept_head;
	if (waiting && !bpf_core_enum_value_exists(enum bpf_func_id___loop, BPF_FUNC_loop___loop)) {
		row->unread = waiting;
	} else if (waiting) {
		walked = bpf_loop(WAITING, list_waiting_below, &queue, 0);
		row->unread = walked == WAITING && queue.next && waiting > WAITING ? waiting - WAITING : 0;
	}
	if (sock_netns(sk) == own_netns)
		row->unread = 0; /* iter/tcp lists them */
	if (row->unread || more)
		bpf_seq_write(ctx->meta->seq, row, sizeof(*row));
}

/* An MPTCP socket that a process holds: one row per path, and per connection that waits at it. */
static __noinline int list_held_mptcp(struct bpf_iter__task_file *ctx, struct sock *above)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct subflows walk;
	struct below below;
	struct mark *mark;
	struct room *room;
	__u8 claim;
	__u32 key;

	if (!task || !file || above->__sk_common.skc_state == TCP_CLOSE)
		return 0;
	claim = claim_of(task, ctx->fd, file);
	mark = claim == CLAIM_INHERITED || files_are_untrusted ? 0 : mark_of(above);
	if (mark)
		mark_listener(mark, task, claim);
	room = take_room(&key);
	if (!room)
		return 0;
	begin_subflows(above, &walk);
	if (files_are_untrusted && above->__sk_common.skc_state == TCP_LISTEN && claim != CLAIM_INHERITED)
		note_old_listener(above, task, claim, windows.newest);
	if (above->__sk_common.skc_state == TCP_LISTEN) {
		if (claim != CLAIM_INHERITED && next_subflow(&walk, room, &below))
			list_queue_below(ctx, task, &below, room, key, claim);
	} else {
		for (int i = 0; i < SUBFLOWS && next_subflow(&walk, room, &below); i++)
			if (load_row_below(below.address, key))
				write_below(ctx->meta->seq, task, room, claim);
	}
	leave_room(room);
	return 0;
}

/* Connections that wait at such a listener are unread until accept(). */
static long list_ring_file(__u32 slot, struct ring *ring)
{
	enum ring_file kind;
	struct below below;
	const struct sock *sk;
	__u8 state;

	kind = copy_from_ring(ring, slot, &below);
	if (kind == RING_UNREAD)
		ring->unread++;
	if (kind != RING_TCP)
		return 0;
	sk = below_sock(&below);
	state = sk->__sk_common.skc_state;
	if (state == TCP_LISTEN)
		ring->unread += sock_netns(sk) == own_netns ? 0 : sk->sk_ack_backlog;
	if (state == TCP_LISTEN || state == TCP_CLOSE)
		return 0;
	if (ring->listed == RING_SOCKETS) {
		ring->unread++;
	} else if (load_row_below(below.address, ring->key)) {
		write_below(ring->seq, ring->task, ring->room, ring->claim);
		ring->listed++;
	}
	return 0;
}

/* Sockets that a process uses through a ring. A separate function has its own stack. */
static __noinline int list_ring(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct ring ring = {};
	ROW *row;

	if (!task || !file || !is_ring(file) || !walk_ring(ctx, task, file, &ring, list_ring_file))
		return 0;
	if (ring.unread) {
		row = (void *)ring.room->row;
		__builtin_memset(row, 0, sizeof(*row));
		row->cookie = ring.address;
		row->unread = ring.unread;
		row->claim = CLAIM_UNREAD;
		bpf_seq_write(ctx->meta->seq, row, sizeof(*row));
	}
	leave_room(ring.room);
	return 0;
}

/* A TCP socket that a process holds and the verifier does not trust. */
static __noinline int list_untrusted(struct bpf_iter__task_file *ctx, struct sock *sk)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct below below;
	struct room *room;
	__u8 claim;
	__u32 key;

	room = task && file ? take_room(&key) : 0;
	if (!room)
		return 0;
	claim = claim_of(task, ctx->fd, file);
	if (!copy_below(room, number_of((__u64)sk), &below)) {
		leave_room(room);
		return 0;
	}
	if (below_sock(&below)->__sk_common.skc_state != TCP_LISTEN) {
		if (load_row_below(below.address, key))
			write_below(ctx->meta->seq, task, room, claim);
	} else if (claim != CLAIM_INHERITED) {
		note_old_listener(sk, task, claim, windows.newest);
		list_queue_below(ctx, task, &below, room, key, claim);
	}
	leave_room(room);
	return 0;
}

static __noinline int list_trusted(struct bpf_iter__task_file *ctx, struct sock *sk)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	ROW row = {};

	if (!task || !file)
		return 0;
	row.claim = claim_of(task, ctx->fd, file);
	if (sk->__sk_common.skc_state == TCP_LISTEN)
		return row.claim == CLAIM_INHERITED ? 0 : list_listener(ctx, task, sk, &row);
	if (!load_row(sk, &row))
		return 0;
	load_holder(task, &row.pid, row.comm);
	bpf_seq_write(ctx->meta->seq, &row, sizeof(row));
	return 0;
}

/* A TCP socket that a process holds, in any network namespace. */
static __always_inline int list_held_tcp(struct bpf_iter__task_file *ctx, struct sock *sk)
{
	return files_are_untrusted ? list_untrusted(ctx, sk) : list_trusted(ctx, sk);
}

/* The socket from iter/tcp, unless it is a listener or only a remnant of a socket. */
static __always_inline struct sock *shown_connection(struct bpf_iter__tcp *ctx)
{
	struct sock_common *c = ctx->sk_common;
	struct tcp_sock *tp;

	if (!c || c->skc_state == TCP_LISTEN)
		return 0;
	tp = bpf_skc_to_tcp_sock(c);
	return tp ? &tp->inet_conn.icsk_inet.sk : 0;
}

/* In our own network namespace also sockets that no process holds. The mark has the owner. */
SEC("iter/tcp")
int list_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock *sk = shown_connection(ctx);
	ROW row = {};

	if (sk && load_row(sk, &row))
		bpf_seq_write(ctx->meta->seq, &row, sizeof(row));
	return 0;
}

static long list_orphan(struct bpf_map *map, const __u32 *slot, struct orphan *orphan, struct orphan_walk *walk)
{
	const struct tcp_sock *tp = next_orphan(*slot, orphan, walk);
	ROW row = {};

	if (!tp)
		return 0;
	load_counters(tp, &orphan->owner, &row);
	load_mark(&orphan->owner, &row);
	row.cookie = orphan->cookie;
	row.address = orphan->address;
	row.cgroup = copied_cgroup(tp);
	row.netns = copied_netns(tp);
	bpf_seq_write(walk->seq, &row, sizeof(row));
	return 0;
}

SEC("iter/bpf_map")
int list_orphans(struct bpf_iter__bpf_map *ctx)
{
	return walk_orphans(ctx, list_orphan);
}
