/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Bytes by socket.
 *
 * TCP counts its own bytes, so nothing runs per packet: iterators read the counters at both ends of a window, and a
 * state change reports a connection that closes in between. UDP has no such counters. It is counted where a process
 * sends or receives, once per datagram, in an array slot that outlives the socket.
 */
#define MARK traffic
#include "datagrams.h"
#include "next.h"
#include "ring.h"

/* Closed connections. User space stores them: a hash entry would cost 800 ns. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 512 * 1024);
} tcp_closed SEC(".maps");

static __always_inline void load_counters(const struct tcp_sock *tp, const struct mark *mark, struct socket_bytes *row)
{
	row->traffic.rx_bytes = received_bytes(tp);
	row->traffic.tx_bytes = sent_bytes(tp);
	row->orphan = is_orphan(&tp->inet_conn.icsk_inet.sk);
	row->protocol = IPPROTO_TCP;
	load_tcp_endpoints(tp, &row->endpoints);
}

static __always_inline void load_direction(const struct tcp_sock *tp, struct socket_bytes *row)
{
}

static __always_inline bool load_listener(const struct sock *sk, bool elsewhere, struct socket_bytes *row)
{
	row->protocol = IPPROTO_TCP;
	return false;
}

static __always_inline void forget(struct sock *sk)
{
	bpf_sk_storage_delete(&past, sk);
	forget_mark(sk);
}

#define ROW struct socket_bytes
#include "rows.h"

static __always_inline void hand_in(struct sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct flow flow = {};
	struct traffic *moved = &flow.socket.traffic;

	if (!tp || !(received_bytes(tp) || sent_bytes(tp) || past_sockets) || !load_row(sk, &flow.socket))
		return;
	flow.closed_ns = bpf_ktime_get_ns();
	if (put(&tcp_closed, &flow, sizeof(flow)))
		return;
	__sync_fetch_and_add(&admission.tcp_untracked, 1);
	if (flow.socket.window)
		add_untracked(TCP_UNTRACKED, moved->rx_bytes, moved->tx_bytes);
	else
		__sync_fetch_and_add(&admission.tcp_unknown, 1);
}

/*
 * Not tcp_destroy_sock: the owner is gone by then. The process itself makes the changes of connect() and listen(), and
 * to the two states after close() and exit(). A reset by the peer closes a connection in an arbitrary context.
 */
static __always_inline void follow_state(struct sock *sk, int oldstate, int newstate)
{
	if (newstate == TCP_SYN_SENT || newstate == TCP_LISTEN) {
		mark_opened(sk, newstate);
	} else if (newstate == TCP_ESTABLISHED && oldstate == TCP_SYN_RECV) {
		mark_accepted(sk);
	} else if (begins_close(newstate)) {
		mark_closed(sk);
	} else if (newstate == TCP_CLOSE) {
		if (oldstate == TCP_LISTEN)
			forget_old_listener(sk);
		hand_in(sk);
		if (is_closing(oldstate))
			forget_orphan(sk);
	}
}

NEXT_OF(tcp_state);

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(tcp_state, struct sock *sk, int oldstate, int newstate)
{
	if (sk->sk_protocol == IPPROTO_TCP)
		follow_state(sk, oldstate, newstate);
	RUN_NEXT(tcp_state);
	return 0;
}

/* A counted UDP socket. */
static __noinline int list_udp(struct bpf_iter__task_file *ctx, struct sock *sk)
{
	struct mark copy = {};
	const struct mark *mark = held_mark(sk, &copy);
	struct socket_bytes row = { .protocol = IPPROTO_UDP };
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;

	if (!task || !file || !mark || !mark->slot)
		return 0;
	row.claim = claim_of(task, ctx->fd, file);
	row.cookie = name_of(sk);
	load_endpoints(&sk->__sk_common, &row.endpoints);
	load_holder(task, &row.pid, row.comm);
	bpf_seq_write(ctx->meta->seq, &row, sizeof(row));
	return 0;
}

/* Every socket that a process holds, in all network namespaces. */
SEC("iter/task_file")
int list_held(struct bpf_iter__task_file *ctx)
{
	struct file *file = ctx->file;
	struct socket *socket = file ? bpf_sock_from_file(file) : 0;
	struct sock *sk = socket ? socket->sk : 0;

	if (!sk)
		return list_ring(ctx);
	if (!is_inet(sk))
		return list_past(ctx, sk);
	if (sk->sk_protocol == IPPROTO_UDP)
		return list_udp(ctx, sk);
	if (is_mptcp(sk))
		return list_held_mptcp(ctx, sk);
	return sk->sk_protocol == IPPROTO_TCP ? list_held_tcp(ctx, sk) : 0;
}
