/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Why TCP is slow: round trips, retransmits, what senders wait for, resets.
 *
 * TCP itself counts segments, retransmits and waits. Iterators read these counters at both ends of a window, and a
 * state change reports a connection that closes in between. TCP keeps only an average of round trips. So a program runs
 * for each arriving segment and computes the sample that changed the average.
 */
#define MARK profile
#include "next.h"
#include "replies.h"
#include "resets.h"
#include "ring.h"
#include "tcp_row.h"

enum { CLOSED_RTTS = 16384, WAITING_RTTS = 48 /* like WAITING, for longer rows */ };

/* `list_rtts_held` reaches fewer waiting connections than `list_held`. */
static __always_inline bool load_listener(const struct sock *sk, bool elsewhere, struct tcp_row *row)
{
	row->state = TCP_LISTEN;
	if (elsewhere && sk->sk_ack_backlog > WAITING_RTTS)
		row->unread_rtts = sk->sk_ack_backlog - WAITING_RTTS;
	return row->unread_rtts;
}

static __always_inline void load_past(struct sock *sk, const struct tcp_sock *tp, struct tcp_row *row)
{
}

static __always_inline void load_past_below(const struct room *room, __u64 address, struct tcp_row *row)
{
}

static __always_inline void forget(struct sock *sk)
{
	bpf_sk_storage_delete(&rtts, sk);
	forget_mark(sk);
}

#define ROW struct tcp_row
#include "rows.h"

/* The output of `list_rtts_held` and `list_rtts_tcp`. */
struct tcp_row_with_rtt {
	struct tcp_row row;
	struct rtt rtt;
	struct average again[2]; /* of both, read once more: a segment may have come meanwhile */
};
const struct tcp_row_with_rtt *tcp_row_with_rtt_type __attribute__((unused));

/* Closed connections. User space stores them: a hash entry would cost 800 ns. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 512 * 1024);
} closed SEC(".maps");

/* The round trips of connections that their process has closed. No further segment adds to them. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, CLOSED_RTTS);
	__type(key, __u64);
	__type(value, struct rtt);
} closed_rtts SEC(".maps");

/*
 * Not sockops, whose RTT callback requires a cgroup and a capability. Not fentry on tcp_rtt_estimator, which is
 * inlined. The kernel calls this tracepoint for every segment of an established connection, before TCP handles it.
 */
SEC("tp_btf/tcp_probe")
int BPF_PROG(segment_arrives, struct sock *sk, struct sk_buff *skb)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	__u32 bytes;
	struct rtt *rtt;

	if (!tp)
		return 0;
	bytes = new_bytes(skb, tp);
	rtt = take_sample(sk, tp, bytes);
	if (!rtt)
		return 0;
	note_sent(sk, tp, rtt);
	if (bytes)
		note_arrived(sk, tp, rtt, skb, bytes);
	if (!tp->packets_out)
		return 0;
	note_wait(rtt, tp);
	rtt->prompt_next = is_prompt(tp);
	return 0;
}

/* A new connection's average is one sample: the handshake. */
static __always_inline void mark_handshake(struct sock *sk)
{
	struct mark *mark = known_mark(sk);
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);

	if (!mark || !tp)
		return;
	mark->handshake_us = tp->srtt_us;
	mark->established_us = tp->tcp_mstamp;
}

/* Stop tracking a connection after ESTABLISHED: its later segments are not seen. */
static __always_inline void take_last_sample(struct sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);

	if (tp && rtt_of(sk))
		take_sample(sk, tp, false);
}

/* A server that replies and closes at once: the acknowledgement comes to a connection that is not established. */
static __always_inline void note_last_reply(struct sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct rtt *rtt = rtt_of(sk);

	if (!tp || !tp->packets_out)
		return;
	if (!rtt && tp->bytes_received) /* its request came with the end of the handshake */
		rtt = begin_rtt(sk, tp);
	if (rtt)
		note_sent(sk, tp, rtt);
}

static __always_inline void hand_in_rtt(struct sock *sk)
{
	struct rtt *rtt = rtt_of(sk);
	__u64 cookie;

	if (!rtt)
		return;
	cookie = name_of(sk);
	rtt->closed_ns = bpf_ktime_get_ns();
	if (bpf_map_update_elem(&closed_rtts, &cookie, rtt, BPF_ANY))
		__sync_fetch_and_add(&figures.closed_rtts_untracked, 1);
	/*
	 * The socket may connect again as another connection. Mark it as belonging to no period; deleting would cost
	 * more.
	 */
	rtt->first = 0;
	__sync_fetch_and_add(&figures.rtts, -1);
}

static __always_inline void hand_in(struct sock *sk)
{
	struct tcp_row row = {};

	if (!load_row(sk, &row))
		return;
	row.closed_ns = bpf_ktime_get_ns();
	if (!put(&closed, &row, sizeof(row))) {
		__sync_fetch_and_add(&figures.closed_untracked, 1);
		if (row.window) {
			__sync_fetch_and_add(&figures.closed_segments, row.segments_out);
			__sync_fetch_and_add(&figures.closed_retransmits, row.retransmits);
		}
	}
}

/* The process itself makes these changes: connect(), listen(), and the two states after close() and exit(). */
static __always_inline void follow_state(struct sock *sk, int oldstate, int newstate)
{
	if (oldstate == TCP_ESTABLISHED)
		take_last_sample(sk);
	if ((oldstate == TCP_ESTABLISHED && newstate == TCP_FIN_WAIT1) ||
	    (oldstate == TCP_CLOSE_WAIT && newstate == TCP_LAST_ACK))
		note_last_reply(sk);
	if (newstate == TCP_SYN_SENT || newstate == TCP_LISTEN) {
		mark_opened(sk, newstate);
	} else if (newstate == TCP_ESTABLISHED) {
		if (oldstate == TCP_SYN_RECV)
			mark_accepted(sk);
		mark_handshake(sk);
	} else if (begins_close(newstate)) {
		mark_closed(sk);
		hand_in_rtt(sk);
	} else if (newstate == TCP_CLOSE && oldstate == TCP_LISTEN) {
		forget_old_listener(sk);
	} else if (newstate == TCP_CLOSE) {
		hand_in(sk);
		if (is_closing(oldstate))
			forget_orphan(sk);
		else
			hand_in_rtt(sk);
	}
}

NEXT_OF(state_changes);

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(state_changes, struct sock *sk, int oldstate, int newstate)
{
	if (sk->sk_protocol == IPPROTO_TCP)
		follow_state(sk, oldstate, newstate);
	RUN_NEXT(state_changes);
	return 0;
}

/* Every connection that a process holds, in all network namespaces. */
SEC("iter/task_file")
int list_held(struct bpf_iter__task_file *ctx)
{
	struct sock *sk = inet_socket_of(ctx->file);

	if (!ctx->file) { /* the end */
		figures.jiffies = bpf_jiffies64();
		figures.ns = bpf_ktime_get_ns();
		if (!figures.since_ns)
			figures.since_ns = figures.ns;
	}
	if (!sk)
		return list_ring(ctx);
	if (is_mptcp(sk))
		return list_held_mptcp(ctx, sk);
	return sk->sk_protocol == IPPROTO_TCP && sk->__sk_common.skc_state != TCP_CLOSE ? list_held_tcp(ctx, sk) : 0;
}

/* After a socket's row and its round trips. The memory of the row takes what is read. */
static __always_inline void write_again(struct seq_file *seq, struct tcp_row *row, const struct rtt *rtt)
{
	const struct tcp_sock *tp = (const void *)row->address;

	row->average.srtt_us = BPF_CORE_READ(tp, srtt_us);
	row->average.delivered = BPF_CORE_READ(tp, delivered);
	bpf_seq_write(seq, &row->average, sizeof(row->average));
	bpf_seq_write(seq, (void *)&rtt->average, sizeof(rtt->average));
}

/* The round trips of a socket, after its counters, if it has any. */
static __always_inline void list_rtt(struct seq_file *seq, struct sock *sk, struct tcp_row *row)
{
	struct rtt *rtt = rtt_of(sk);

	__builtin_memset(row, 0, sizeof(*row));
	if (!rtt || sk->__sk_common.skc_state == TCP_CLOSE || !load_row(sk, row))
		return;
	bpf_seq_write(seq, row, sizeof(*row));
	bpf_seq_write(seq, rtt, sizeof(*rtt));
	write_again(seq, row, rtt);
}

static long list_waiting_rtt(__u32 i, struct accept_queue *queue)
{
	struct sock *sk = next_waiting(queue);

	if (!sk)
		return 1;
	list_rtt(queue->seq, sk, queue->row);
	return 0;
}

CARRIED(rtts, rtts, struct rtt, 0)

/* Of a lower socket with a copy in this room, if it has round trips. */
static __always_inline bool list_rtt_below(struct seq_file *seq, struct task_struct *task, __u64 address,
					   struct room *room, __u32 key)
{
	struct rtt *rtt = (void *)room->carried;

	if (!load_row_below(address, key) || !carried_rtts(storage_in(room), rtt) || rtt->first != windows.first)
		return false;
	write_below(seq, task, room, CLAIM_OWN);
	bpf_seq_write(seq, rtt, sizeof(*rtt));
	carried_rtts(storage_in(room), rtt);
	write_again(seq, (void *)room->row, rtt);
	return true;
}

static long list_waiting_rtt_below(__u32 i, struct queue_below *queue)
{
	struct below below;

	if (!next_waiting_below(queue, &below))
		return 1;
	list_rtt_below(queue->seq, queue->task, below.address, queue->room, queue->key);
	return 0;
}

/* The connections that wait at a copied listener of another network namespace. */
static __always_inline void list_rtts_waiting(struct bpf_iter__task_file *ctx, struct task_struct *task,
					      const struct below *listener, struct room *room, __u32 key)
{
	struct queue_below queue = { .listener = listener->address, .task = task, .room = room, .key = key };

	if (sock_netns(below_sock(listener)) == own_netns ||
	    !bpf_core_enum_value_exists(enum bpf_func_id___loop, BPF_FUNC_loop___loop))
		return;
	queue.seq = ctx->meta->seq;
	queue.next = (__u64)listener->tcp->inet_conn.icsk_accept_queue.rskq_accept_head;
	bpf_loop(WAITING_RTTS, list_waiting_rtt_below, &queue, 0);
}

/* A socket that the verifier does not trust. A separate function has its own stack. */
static __noinline int list_rtts_untrusted(struct bpf_iter__task_file *ctx, struct sock *sk)
{
	struct task_struct *task = ctx->task;
	struct below below;
	struct room *room;
	__u32 key;

	room = task ? take_room(&key) : 0;
	if (!room)
		return 0;
	if (copy_below(room, number_of((__u64)sk), &below)) {
		if (below_sock(&below)->__sk_common.skc_state == TCP_LISTEN)
			list_rtts_waiting(ctx, task, &below, room, key);
		else
			list_rtt_below(ctx->meta->seq, task, below.address, room, key);
	}
	leave_room(room);
	return 0;
}

/* A separate function: its caller must leave stack space for `list_rtts_held_tcp` on old kernels. */
static __noinline int list_rtts_mptcp(struct bpf_iter__task_file *ctx, struct sock *above)
{
	struct task_struct *task = ctx->task;
	struct subflows walk;
	struct below below;
	struct room *room;
	__u32 key;

	room = task ? take_room(&key) : 0;
	if (!room)
		return 0;
	begin_subflows(above, &walk);
	for (int i = 0; i < SUBFLOWS && next_subflow(&walk, room, &below); i++)
		list_rtt_below(ctx->meta->seq, task, below.address, room, key);
	leave_room(room);
	return 0;
}

static long list_ring_rtt(__u32 slot, struct ring *ring)
{
	struct below below;

	if (copy_from_ring(ring, slot, &below) != RING_TCP || ring->listed == RING_SOCKETS)
		return 0;
	ring->listed += list_rtt_below(ring->seq, ring->task, below.address, ring->room, ring->key);
	return 0;
}

static __noinline int list_rtts_ring(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct ring ring = {};

	if (task && file && is_ring(file) && walk_ring(ctx, task, file, &ring, list_ring_rtt))
		leave_room(ring.room);
	return 0;
}

static __noinline int list_rtts_held_tcp(struct bpf_iter__task_file *ctx, struct sock *sk)
{
	struct tcp_row row = {};
	struct accept_queue queue = { .seq = ctx->meta->seq, .row = &row };

	if (sk->__sk_common.skc_state == TCP_LISTEN)
		walk_accept_queue(sk, list_waiting_rtt, &queue, WAITING_RTTS);
	else
		list_rtt(ctx->meta->seq, sk, &row);
	return 0;
}

/* Sockets that processes hold, in every network namespace. */
SEC("iter/task_file")
int list_rtts_held(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct sock *sk = inet_socket_of(file);

	if (!sk)
		return list_rtts_ring(ctx);
	if (!task || is_inherited(task, ctx->fd, file))
		return 0;
	if (is_mptcp(sk))
		return list_rtts_mptcp(ctx, sk);
	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	return files_are_untrusted ? list_rtts_untrusted(ctx, sk) : list_rtts_held_tcp(ctx, sk);
}

/* Sockets that no process holds, in our own network namespace. */
SEC("iter/tcp")
int list_rtts_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock *sk = shown_connection(ctx);
	struct tcp_row row;

	if (sk && !(sk->sk_socket && sk->sk_socket->file))
		list_rtt(ctx->meta->seq, sk, &row);
	return 0;
}
