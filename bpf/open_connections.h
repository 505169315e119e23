/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Open connections, read from the sockets themselves. */
#pragma once
#include "accept_queue.h"
#include "attempts.h"
#include "below.h"
#include "old_listeners.h"
#include "ring_files.h"

#define ORPHAN_OWNER struct track
#include "orphans.h"

/* The request of an iterator's reader. */
struct request {
	__u64 since_ns; /* for connections: only those that began or were established since then */
	__u32 round;    /* counts the searches for listeners and the readings of connections */
	__u8 pad[4];
};
const struct request *request_type __attribute__((unused));

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct request);
} requests SEC(".maps");

static __always_inline const struct request *request(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&requests, &zero);
}

/* Room for a row: the stack of old kernels is too small. User space lets one reader in at a time. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct connection);
} listed SEC(".maps");

static __always_inline struct connection *new_row(void)
{
	__u32 zero = 0;
	struct connection *c = bpf_map_lookup_elem(&listed, &zero);

	if (c)
		__builtin_memset(c, 0, sizeof(*c));
	return c;
}

/* The counters of the socket, or of a copy. */
static __always_inline void load_counts(const struct tcp_sock *tp, struct connection *c)
{
	c->rx_bytes = received_bytes(tp);
	c->tx_bytes = sent_bytes(tp);
	c->rtt_us = tp->srtt_us >> 3;
	c->retransmits = tp->total_retrans;
	load_tcp_endpoints(tp, &c->endpoints);
}

CARRIED(track, storages, struct track, __builtin_offsetof(struct storage, track))

/* An accepted connection without inherited storage has the owner of its listener. */
static __always_inline void own_as_listener(struct sock *sk, struct track *track)
{
	const struct old_listener *listener = old_listener_of(sk);

	if (!listener)
		return;
	track->owner = listener->owner;
	track->managed = listener->managed;
}

/* A path that the kernel itself opens for an MPTCP socket, or accepts for one, has the owner of that socket. */
static __always_inline void own_as_above(struct sock *sk, struct track *track)
{
	struct track other = {};

	if (is_known_above(track, sk, &other, owner.pid))
		track->owner = other.owner;
}

static __always_inline bool began_since(const struct track *track, __u64 since_ns)
{
	return track->start_ns >= since_ns || track->established_ns >= since_ns;
}

/* The holder of a socket without any other record of its owner. */
static __always_inline void own_as_held(struct task_struct *task, struct owner *owner)
{
	load_holder(task, &owner->pid, owner->comm);
	owner->cgroup = task_cgroup(task);
}

/* An open connection, once per reading; `holder` is null if it is unknown. */
static __always_inline int list_open(struct seq_file *seq, struct sock *sk, struct task_struct *holder)
{
	const struct request *asked = request();
	int state = sk->__sk_common.skc_state;
	struct connection *c;
	struct track *track;
	struct tcp_sock *tp;

	if (!asked || state == TCP_CLOSE || state == TCP_LISTEN)
		return 0;
	track = known_track(sk);
	if (!track || track->ended || track->round == asked->round || !began_since(track, asked->since_ns))
		return 0;
	tp = bpf_skc_to_tcp_sock(sk);
	c = new_row();
	if (!tp || !c)
		return 0;
	track->round = asked->round;
	if ((!track->owner.pid || track->managed) && holder)
		own_as_held(holder, &track->owner);
	else if (!track->owner.pid)
		own_as_above(sk, track);
	load_track(track, c);
	load_counts(tp, c);
	c->end = state == TCP_SYN_SENT || state == TCP_SYN_RECV ? CONNECTING : OPEN;
	if (wanted(c))
		bpf_seq_write(seq, c, sizeof(*c));
	return 0;
}

static long list_waiting(__u32 i, struct accept_queue *queue)
{
	struct sock *sk = next_waiting(queue);

	if (!sk)
		return 1;
	list_open(queue->seq, sk, 0);
	return 0;
}

static __always_inline void write_unread(struct seq_file *seq, __u64 listener, __u32 unread)
{
	struct connection *c = unread ? new_row() : 0;

	if (!c)
		return;
	c->start_ns = listener;
	c->unread = unread;
	bpf_seq_write(seq, c, sizeof(*c));
}

/* The connections that wait at a listener of another namespace, once per reading. */
static __always_inline int list_queue(struct seq_file *seq, struct sock *listener)
{
	struct track *track = known_track(listener);
	struct accept_queue queue = { .seq = seq };
	const struct request *asked = request();

	if (!asked || (track && track->round == asked->round))
		return 0;
	if (track)
		track->round = asked->round;
	write_unread(seq, (__u64)listener, walk_accept_queue(listener, list_waiting, &queue, WAITING));
	return 0;
}

/*
 * The row of a lower socket with a copy in this room, and its owner if it has one. A global function: the verifier
 * checks it once.
 */
__noinline int load_row_below(__u32 key)
{
	const struct request *asked = request();
	struct room *room = room_of(key);
	const struct track *track;
	struct connection *c;
	int state;

	if (!asked || !room || !carried_track(storage_in(room), (void *)room->carried))
		return 0;
	track = (const void *)room->carried;
	if (!track->is_known)
		return 0;
	state = copy_in(room)->inet_conn.icsk_inet.sk.__sk_common.skc_state;
	if (state == TCP_CLOSE || state == TCP_LISTEN || track->ended || !began_since(track, asked->since_ns))
		return 0;
	c = (void *)room->row;
	__builtin_memset(c, 0, sizeof(*c));
	load_track(track, c);
	load_counts(copy_in(room), c);
	c->end = state == TCP_SYN_SENT || state == TCP_SYN_RECV ? CONNECTING : OPEN;
	return 1;
}

/* Without another record, or with that of a manager, the owner is the holder of the file. */
static __always_inline void write_below(struct seq_file *seq, struct task_struct *task, struct room *room, __u8 claim)
{
	const struct track *track = (const void *)room->carried;
	struct connection *c = (void *)room->row;

	if (!c->owner.pid || track->managed) {
		own_as_held(task, &c->owner);
		c->claim = claim;
	}
	if (wanted(c))
		bpf_seq_write(seq, c, sizeof(*c));
}

static long list_waiting_below(__u32 i, struct queue_below *queue)
{
	struct below below;

	if (!next_waiting_below(queue, &below))
		return 1;
	if (load_row_below(queue->key))
		write_below(queue->seq, queue->task, queue->room, queue->claim);
	return 0;
}

/* The connections that wait at a copied listener; returns the number of those of another namespace not reached. */
static __always_inline __u32 list_queue_below(struct queue_below *queue, const struct below *listener)
{
	const struct sock *sk = below_sock(listener);
	__u32 waiting = sock_netns(sk) == own_netns ? 0 : sk->sk_ack_backlog;
	long walked;

	queue->next = (__u64)listener->tcp->inet_conn.icsk_accept_queue.rskq_accept_head;
	queue->listener = listener->address;
	if (!queue->next || !bpf_core_enum_value_exists(enum bpf_func_id___loop, BPF_FUNC_loop___loop))
		return waiting;
	walked = bpf_loop(WAITING, list_waiting_below, queue, 0);
	return walked == WAITING && queue->next && waiting > WAITING ? waiting - WAITING : 0;
}

static __always_inline void list_subflows(struct queue_below *queue, struct sock *above)
{
	struct room *room = queue->room;
	struct subflows walk;
	struct below below;

	begin_subflows(above, &walk);
	if (above->__sk_common.skc_state != TCP_LISTEN) {
		for (int i = 0; i < SUBFLOWS && next_subflow(&walk, room, &below); i++)
			if (load_row_below(queue->key))
				write_below(queue->seq, queue->task, room, queue->claim);
	} else if (next_subflow(&walk, room, &below)) {
		write_unread(queue->seq, below.address, list_queue_below(queue, &below));
	}
}

/*
 * A TCP or MPTCP socket that a process holds and the verifier does not trust. User space omits what iter/tcp or another
 * holder lists again.
 */
static __noinline int list_untrusted(struct bpf_iter__task_file *ctx, struct sock *sk)
{
	struct seq_file *seq = ctx->meta->seq;
	struct task_struct *task = ctx->task;
	struct queue_below queue = { .seq = seq, .task = task };
	struct file *file = ctx->file;
	struct below below;

	if (!task || !file)
		return 0;
	queue.claim = claim_of(task, ctx->fd, file);
	queue.room = queue.claim == CLAIM_INHERITED ? 0 : take_room(&queue.key);
	if (!queue.room)
		return 0;
	if (is_mptcp(sk)) {
		list_subflows(&queue, sk);
	} else if (copy_below(queue.room, number_of((__u64)sk), &below)) {
		if (below_sock(&below)->__sk_common.skc_state == TCP_LISTEN)
			write_unread(seq, below.address, list_queue_below(&queue, &below));
		else if (load_row_below(queue.key))
			write_below(seq, task, queue.room, queue.claim);
	}
	leave_room(queue.room);
	return 0;
}

/*
 * An MPTCP socket that a process holds, once per reading: its paths, and the connections that wait at it. In our own
 * network namespace iter/tcp lists these, and finds the owner through the upper socket.
 */
static __always_inline int list_held_mptcp(struct bpf_iter__task_file *ctx, struct sock *above)
{
	struct track *track = track_of(above);
	const struct request *asked = request();
	struct task_struct *task = ctx->task;
	struct queue_below queue = { .seq = ctx->meta->seq, .task = task };
	struct file *file = ctx->file;

	if (!track || !asked || !task || !file || track->round == asked->round)
		return 0;
	queue.claim = claim_of(task, ctx->fd, file);
	if (queue.claim == CLAIM_INHERITED)
		return 0;
	track->round = asked->round;
	own_as_held(task, &track->owner);
	queue.room = is_elsewhere(above) ? take_room(&queue.key) : 0;
	if (!queue.room)
		return 0;
	list_subflows(&queue, above);
	leave_room(queue.room);
	return 0;
}

/* In our own network namespace iter/tcp also lists these. */
static long list_ring_file(__u32 slot, struct ring *ring)
{
	struct below below;
	enum ring_file kind = copy_from_ring(ring, slot, &below);

	if (kind == RING_UNREAD)
		ring->unread++;
	if (kind != RING_TCP || sock_netns(below_sock(&below)) == own_netns || !load_row_below(ring->key))
		return 0;
	if (ring->listed == RING_SOCKETS) {
		ring->unread++;
	} else {
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
	struct connection *c;

	if (!task || !file || !is_ring(file) || !walk_ring(ctx, task, file, &ring, list_ring_file))
		return 0;
	c = ring.unread ? new_row() : 0;
	if (c) {
		c->unread = ring.unread;
		c->start_ns = ring.address;
		c->claim = CLAIM_UNREAD;
		bpf_seq_write(ctx->meta->seq, c, sizeof(*c));
	}
	leave_room(ring.room);
	return 0;
}

static __noinline int list_held_tcp(struct bpf_iter__task_file *ctx, struct sock *sk)
{
	if (sk->__sk_common.skc_state == TCP_LISTEN)
		return list_queue(ctx->meta->seq, sk);
	return list_open(ctx->meta->seq, sk, ctx->task);
}

/* Sockets that processes hold, in every network namespace. */
SEC("iter/task_file")
int list_held(struct bpf_iter__task_file *ctx)
{
	struct sock *sk = inet_socket_of(ctx->file);

	if (!sk)
		return list_ring(ctx);
	if (sk->sk_protocol != IPPROTO_TCP && !is_mptcp(sk))
		return 0;
	if (files_are_untrusted)
		return list_untrusted(ctx, sk);
	return is_mptcp(sk) ? list_held_mptcp(ctx, sk) : list_held_tcp(ctx, sk);
}

/* In our own network namespace also sockets that no process holds. */
SEC("iter/tcp")
int list_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *c = ctx->sk_common;
	struct tcp_sock *tp = c ? bpf_skc_to_tcp_sock(c) : 0;

	return tp ? list_open(ctx->meta->seq, &tp->inet_conn.icsk_inet.sk, 0) : 0;
}

static long list_orphan(struct bpf_map *map, const __u32 *slot, struct orphan *orphan, struct orphan_walk *walk)
{
	const struct tcp_sock *tp = next_orphan(*slot, orphan, walk);
	const struct request *asked = request();
	struct connection c = { .end = OPEN };

	if (!tp || !asked || !began_since(&orphan->owner, asked->since_ns))
		return 0;
	load_track(&orphan->owner, &c);
	load_counts(tp, &c);
	if (wanted(&c))
		bpf_seq_write(walk->seq, &c, sizeof(c));
	return 0;
}

SEC("iter/bpf_map")
int list_orphans(struct bpf_iter__bpf_map *ctx)
{
	return walk_orphans(ctx, list_orphan);
}
