/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Why TCP is slow: round trips, what is sent again, what senders wait for, who resets.
 *
 * TCP counts its segments, its retransmits and what it waits for by itself: iterators read that at both ends of a
 * window, and a state change hands in the figures of a connection that closes in between. Of round trips TCP keeps
 * an average only, so a program runs for each segment that arrives, and finds the sample that moved the average.
 */
#include "resets.h"
#include "round_trips.h"

enum {
	CLOSED = 65536, /* connections that closed and are kept for the end of a window */
	CLOSED_RTTS = 16384,
};

/* A TCP socket and what it has counted in its life. Waits are in jiffies. */
struct tcp_row {
	__u64 cookie;
	__u64 cgroup;
	__u64 closed_ns; /* CLOCK_MONOTONIC; 0 = open */
	__u32 pid;
	__u32 netns;
	char comm[16];
	struct endpoints endpoints;
	__u32 segments_out;
	__u32 retransmits;
	__u32 spurious; /* of these, what the receiver had already and said so (DSACK) */
	__u32 busy;
	__u32 receiver_limited;
	__u32 send_buffer_limited;
	__u32 srtt_us;   /* times 8, as the kernel holds it */
	__u32 delivered; /* segments that were acknowledged */
	__u8 state;
	__u8 is_new; /* opened since we watch: all that it has counted is of that time */
	__u8 inbound;
	__u8 inherited; /* its process' parent has it still */
};
const struct tcp_row *tcp_row_type __attribute__((unused));

/* What `list_rtts` writes. */
struct tcp_row_with_rtt {
	struct tcp_row row;
	struct rtt rtt;
};
const struct tcp_row_with_rtt *tcp_row_with_rtt_type __attribute__((unused));

/* By socket cookie. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, CLOSED);
	__type(key, __u64);
	__type(value, struct tcp_row);
} closed SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, CLOSED_RTTS);
	__type(key, __u64);
	__type(value, struct rtt);
} closed_rtts SEC(".maps");

/*
 * Not sockops, whose RTT callback wants a cgroup and a capability, and not fentry on tcp_rtt_estimator, which is
 * inlined: this is called for every segment of an established connection, before TCP looks at it.
 */
SEC("tp_btf/tcp_probe")
int BPF_PROG(segment_arrives, struct sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct rtt *rtt;

	if (!tp)
		return 0;
	rtt = take_sample(sk, tp);
	if (!rtt || !tp->packets_out)
		return 0;
	if (tp->write_seq != tp->snd_nxt)
		rtt->waiting++;
	else
		rtt->drained++;
	return 0;
}

static __always_inline void load_waits(const struct tcp_sock *tp, struct tcp_row *row)
{
	__u32 waited[] = { tp->chrono_stat[0], tp->chrono_stat[1], tp->chrono_stat[2] };
	__s32 running = (__u32)bpf_jiffies64() - tp->chrono_start;
	__u32 type = BPF_CORE_READ_BITFIELD(tp, chrono_type);

	if (running < 0)
		running = 0; /* it began while we looked */
	row->busy = waited[0] + (type == TCP_CHRONO_BUSY ? running : 0);
	row->receiver_limited = waited[1] + (type == TCP_CHRONO_RWND_LIMITED ? running : 0);
	row->send_buffer_limited = waited[2] + (type == TCP_CHRONO_SNDBUF_LIMITED ? running : 0);
}

static __always_inline void load_row(struct tcp_sock *tp, struct tcp_row *row)
{
	struct sock *sk = &tp->inet_conn.icsk_inet.sk;

	row->cookie = bpf_get_socket_cookie(sk);
	row->cgroup = load_cgroup(sk);
	row->netns = load_netns(&sk->__sk_common);
	load_endpoints(&sk->__sk_common, &row->endpoints);
	/* skc_num is already 0 at the change to CLOSE; inet_sport is not. */
	if (!row->endpoints.local_port)
		row->endpoints.local_port = bpf_ntohs(tp->inet_conn.icsk_inet.inet_sport);
	row->segments_out = tp->segs_out;
	row->retransmits = tp->total_retrans;
	row->spurious = tp->dsack_dups;
	row->srtt_us = tp->srtt_us;
	row->delivered = tp->delivered;
	row->inbound = is_inbound(sk);
	row->state = sk->__sk_common.skc_state;
	load_waits(tp, row);
}

static __always_inline void load_mark(const struct mark *mark, struct tcp_row *row)
{
	row->pid = mark->pid;
	row->is_new = mark->is_new;
	__builtin_memcpy(row->comm, mark->comm, sizeof(row->comm));
}

static __always_inline void hand_in(struct sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct tcp_row row = {};
	struct mark *mark;
	struct rtt *rtt;

	if (!tp)
		return;
	load_row(tp, &row);
	row.closed_ns = bpf_ktime_get_ns();
	mark = bpf_sk_storage_get(&marks, sk, 0, 0);
	if (mark)
		load_mark(mark, &row);
	if (bpf_map_update_elem(&closed, &row.cookie, &row, BPF_ANY)) {
		__sync_fetch_and_add(&figures.closed_untracked, 1);
		if (row.is_new) {
			__sync_fetch_and_add(&figures.closed_segments, row.segments_out);
			__sync_fetch_and_add(&figures.closed_retransmits, row.retransmits);
		}
	}
	rtt = bpf_sk_storage_get(&rtts, sk, 0, 0);
	if (!rtt)
		return;
	if (bpf_map_update_elem(&closed_rtts, &row.cookie, rtt, BPF_ANY))
		__sync_fetch_and_add(&figures.closed_rtts_untracked, 1);
	/* The socket may connect again, and is another connection then. */
	bpf_sk_storage_delete(&rtts, sk);
	__sync_fetch_and_add(&figures.rtts, -1);
}

/* A connection that a process made stays its own; one that was accepted belongs to who serves it, and closes it. */
static __always_inline void mark_current(struct sock *sk, bool is_new)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct mark *mark;

	if (task->flags & PF_KTHREAD)
		return;
	mark = sk_storage_of(&marks, sk);
	if (!mark || (!is_new && mark->pid && !is_inbound(sk)))
		return;
	load_holder(task, &mark->pid, mark->comm);
	mark->is_new |= is_new;
}

/*
 * connect(), listen() and the two states that close() and exit() lead to are entered by the process itself. The
 * averages of a connection that is no longer established are not followed: segments come to it unseen.
 */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(state_changes, struct sock *sk, int oldstate, int newstate)
{
	struct tcp_sock *tp;

	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	if (oldstate == TCP_ESTABLISHED) {
		tp = bpf_skc_to_tcp_sock(sk);
		if (tp)
			take_sample(sk, tp);
	}
	if (newstate == TCP_SYN_SENT || newstate == TCP_LISTEN)
		mark_current(sk, true);
	else if (newstate == TCP_FIN_WAIT1 || newstate == TCP_LAST_ACK)
		mark_current(sk, false);
	else if (newstate == TCP_CLOSE && oldstate != TCP_LISTEN)
		hand_in(sk);
	return 0;
}

/* Every connection that a process holds, in all network namespaces. Marks the listeners that were there before us. */
SEC("iter/task_file")
int list_held(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct tcp_row row = {};
	struct socket *socket;
	struct tcp_sock *tp;
	struct mark *mark;
	struct sock *sk;

	if (!task || !file) { /* the end */
		figures.jiffies = bpf_jiffies64();
		figures.ns = bpf_ktime_get_ns();
		return 0;
	}
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sk = socket->sk;
	if (!sk || !is_inet(sk) || sk->sk_protocol != IPPROTO_TCP || sk->__sk_common.skc_state == TCP_CLOSE)
		return 0;
	row.inherited = is_inherited(task, ctx->fd, file);
	if (sk->__sk_common.skc_state == TCP_LISTEN) {
		if (row.inherited)
			return 0;
		mark = sk_storage_of(&marks, sk);
		/* Of several the lowest number; process 1 holds what it activates for others. */
		if (mark && mark->pid <= 1) {
			load_holder(task, &mark->pid, mark->comm);
			mark->is_new = true;
		}
		return 0;
	}
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return 0;
	load_row(tp, &row);
	load_holder(task, &row.pid, row.comm);
	bpf_seq_write(ctx->meta->seq, &row, sizeof(row));
	return 0;
}

/* Of our own network namespace also what no process holds. */
SEC("iter/tcp")
int list_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *c = ctx->sk_common;
	struct tcp_row row = {};
	struct tcp_sock *tp;

	if (!c || c->skc_state == TCP_LISTEN)
		return 0;
	tp = bpf_skc_to_tcp_sock(c);
	if (!tp)
		return 0;
	load_row(tp, &row);
	bpf_seq_write(ctx->meta->seq, &row, sizeof(row));
	return 0;
}

static __always_inline struct tcp_sock *unheld(struct sock *sk)
{
	if (sk->sk_protocol != IPPROTO_TCP || (sk->sk_socket && sk->sk_socket->file))
		return 0;
	if (sk->__sk_common.skc_state == TCP_LISTEN || sk->__sk_common.skc_state == TCP_CLOSE)
		return 0;
	return bpf_skc_to_tcp_sock(sk);
}

/* Of every network namespace what no process holds but has a mark: not accepted yet, or closed and still sending. */
SEC("iter/bpf_sk_storage_map")
int list_marked(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct mark *mark = ctx->value;
	struct sock *sk = ctx->sk;
	struct tcp_row row = {};
	struct tcp_sock *tp;

	if (!sk || !mark)
		return 0;
	tp = unheld(sk);
	if (!tp)
		return 0;
	load_row(tp, &row);
	load_mark(mark, &row);
	bpf_seq_write(ctx->meta->seq, &row, sizeof(row));
	return 0;
}

/* The round trips of every socket that is open, behind what the socket has counted. */
SEC("iter/bpf_sk_storage_map")
int list_rtts(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct rtt *rtt = ctx->value;
	struct sock *sk = ctx->sk;
	struct tcp_row row = {};
	struct tcp_sock *tp;

	if (!sk || !rtt || sk->__sk_common.skc_state == TCP_CLOSE)
		return 0;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return 0;
	load_row(tp, &row);
	bpf_seq_write(ctx->meta->seq, &row, sizeof(row));
	bpf_seq_write(ctx->meta->seq, rtt, sizeof(*rtt));
	return 0;
}

/* When nobody watches any more. */
SEC("iter/bpf_sk_storage_map")
int forget(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct sock *sk = ctx->sk;

	if (!sk)
		return 0;
	bpf_sk_storage_delete(&rtts, sk);
	bpf_sk_storage_delete(&marks, sk);
	return 0;
}
