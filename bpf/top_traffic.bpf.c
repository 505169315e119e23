/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Bytes by socket.
 *
 * TCP counts its own bytes, so nothing runs for a packet: iterators read the
 * counters at both ends of a window, and a state change hands in those of a
 * connection that closes in between. UDP has no such counters. It is counted
 * where a process sends or receives, once a datagram that it asked for, in an
 * array slot that outlives the socket.
 */
#include "slots.h"
#include "sockets.h"

enum { FLOWS = 65536 };

/* A TCP socket as it is, or a UDP socket that is counted. */
struct socket_bytes {
	__u64 cookie;
	__u64 cgroup;
	struct traffic traffic;
	__u32 pid;
	__u32 netns;
	char comm[16];
	struct endpoints endpoints;
	__u8 protocol;
	__u8 inherited; /* its process' parent has it still */
	__u8 pad[2];
};

/* What must be known of a socket that may be gone when the window ends. */
struct flow {
	struct socket_bytes socket;
	__u64 closed_ns; /* TCP: CLOCK_MONOTONIC */
	__u64 slot;      /* UDP: where its bytes are counted */
	__u32 window;    /* TCP: the newest when it was opened; 0 = opened before we watched */
	__u32 pad;
};

/* Of a TCP socket: its owner, as far as seen. Of a UDP socket: its slot too. */
struct mark {
	__u32 slot; /* 0 = none */
	__u32 pid;
	char comm[16];
	__u32 window; /* as of a flow; of a listener any but 0 */
};

/* A listener's mark is copied to the connections that it accepts. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct mark);
} marks SEC(".maps");

/* By socket cookie. Both grow with what is in them: idle, they are a table of empty buckets. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, FLOWS);
	__type(key, __u64);
	__type(value, struct flow);
} udp_flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, FLOWS);
	__type(key, __u64);
	__type(value, struct flow);
} tcp_closed SEC(".maps");

static __always_inline bool current_mark(struct mark *mark)
{
	struct task_struct *task = bpf_get_current_task_btf();

	if (task->flags & PF_KTHREAD)
		return false;
	load_holder(task, &mark->pid, mark->comm);
	return true;
}

/* The slot of a UDP socket, unless it was idle for so long that another one has it now. */
static __always_inline struct slot *slot_of(struct sock *sk)
{
	struct mark *mark = bpf_sk_storage_get(&marks, sk, 0, 0);
	__u32 newest = windows.newest;
	struct slot *slot;

	if (!mark || !mark->slot)
		return 0;
	slot = bpf_map_lookup_elem(&slots, &mark->slot);
	if (!slot || slot->cookie != (__u64)sk->__sk_common.skc_cookie.counter)
		return 0;
	if (slot->seen != newest)
		slot->seen = newest;
	return slot;
}

/* Gives a UDP socket its slot, in the process that sends or receives: null if no free one was found. */
static __always_inline struct slot *admit(struct sock *sk)
{
	struct flow flow = {};
	struct slot *slot;
	struct mark *mark;
	__u32 index;

	slot = free_slot(&index);
	if (!slot)
		return 0;
	mark = sk_storage_of(&marks, sk);
	if (!mark)
		return 0;
	if (slot->cookie)
		bpf_map_delete_elem(&udp_flows, &slot->cookie);
	current_mark(mark);
	flow.slot = index;
	flow.socket.cookie = bpf_get_socket_cookie(sk);
	flow.socket.cgroup = load_cgroup(sk);
	flow.socket.netns = load_netns(&sk->__sk_common);
	flow.socket.pid = mark->pid;
	__builtin_memcpy(flow.socket.comm, mark->comm, sizeof(mark->comm));
	load_endpoints(&sk->__sk_common, &flow.socket.endpoints);
	flow.socket.protocol = IPPROTO_UDP;
	if (bpf_map_update_elem(&udp_flows, &flow.socket.cookie, &flow, BPF_NOEXIST)) {
		slot->cookie = 0; /* another CPU was first */
		return slot_of(sk);
	}
	slot->cookie = flow.socket.cookie;
	slot->seen = windows.newest;
	mark->slot = index;
	return slot;
}

static __always_inline void count_datagram(struct sock *sk, __u64 rx_bytes, __u64 tx_bytes)
{
	struct slot *slot = slot_of(sk) ?: admit(sk);

	if (slot) {
		add(slot, rx_bytes, tx_bytes);
		return;
	}
	__sync_fetch_and_add(&admission.udp_untracked, 1);
	add_untracked(UDP_UNTRACKED, rx_bytes, tx_bytes);
}

static __always_inline bool is_udp(struct sock *sk)
{
	return sk->sk_protocol == IPPROTO_UDP && is_inet(sk);
}

/*
 * Not at the packets: there the process is not known, and each costs a hash
 * look-up. These two run at the end of every sendmsg and recvmsg (Linux 6.3).
 */
SEC("tp_btf/sock_send_length")
int BPF_PROG(udp_sent, struct sock *sk, int length, int flags)
{
	if (is_udp(sk) && length > 0)
		count_datagram(sk, 0, length);
	return 0;
}

SEC("tp_btf/sock_recv_length")
int BPF_PROG(udp_received, struct sock *sk, int length, int flags)
{
	if (is_udp(sk) && length > 0 && !(flags & (MSG_PEEK | MSG_ERRQUEUE)))
		count_datagram(sk, length, 0);
	return 0;
}

static __always_inline void mark_current(struct sock *sk, bool is_new)
{
	struct mark *mark, now = {};

	if (!current_mark(&now))
		return;
	mark = sk_storage_of(&marks, sk);
	if (!mark)
		return;
	mark->pid = now.pid;
	__builtin_memcpy(mark->comm, now.comm, sizeof(now.comm));
	if (is_new)
		mark->window = windows.newest;
}

/* The mark that it has of its listener, if it has one, says nothing of when it was opened. */
static __always_inline void mark_accepted(struct sock *sk)
{
	struct mark *mark = sk_storage_of(&marks, sk);

	if (mark)
		mark->window = windows.newest;
}

/* Returns whether it has moved anything. One that has not is listed all the same: it is known to have been there. */
static __always_inline bool load_tcp(struct tcp_sock *tp, struct socket_bytes *socket)
{
	struct sock *sk = &tp->inet_conn.icsk_inet.sk;

	socket->traffic.rx_bytes = tp->bytes_received;
	/* Each byte once: what was sent again is not more of it. */
	socket->traffic.tx_bytes = tp->bytes_sent - tp->bytes_retrans;
	/* The end of the stream is no byte, but has a place in the sequence. */
	if (socket->traffic.rx_bytes && sk->__sk_common.skc_flags & (1 << SOCK_DONE))
		socket->traffic.rx_bytes--;
	socket->cookie = bpf_get_socket_cookie(sk);
	socket->cgroup = load_cgroup(sk);
	socket->netns = load_netns(&sk->__sk_common);
	load_endpoints(&sk->__sk_common, &socket->endpoints);
	if (!socket->endpoints.local_port)
		socket->endpoints.local_port = bpf_ntohs(tp->inet_conn.icsk_inet.inet_sport);
	socket->protocol = IPPROTO_TCP;
	return socket->traffic.rx_bytes || socket->traffic.tx_bytes;
}

static __always_inline void hand_in(struct sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct flow flow = {};
	struct mark *mark;

	if (!tp || !load_tcp(tp, &flow.socket))
		return;
	flow.closed_ns = bpf_ktime_get_ns();
	mark = bpf_sk_storage_get(&marks, sk, 0, 0);
	if (mark) {
		flow.window = mark->window;
		flow.socket.pid = mark->pid;
		__builtin_memcpy(flow.socket.comm, mark->comm, sizeof(mark->comm));
	}
	if (!bpf_map_update_elem(&tcp_closed, &flow.socket.cookie, &flow, BPF_ANY))
		return;
	__sync_fetch_and_add(&admission.tcp_untracked, 1);
	if (flow.window)
		add_untracked(TCP_UNTRACKED, flow.socket.traffic.rx_bytes, flow.socket.traffic.tx_bytes);
	else
		__sync_fetch_and_add(&admission.tcp_unknown, 1);
}

/*
 * Not tcp_destroy_sock: by then the owner is gone. connect(), listen() and the
 * two states that close() and exit() lead to are entered by the process itself;
 * a connection that the peer resets is closed by whoever was interrupted.
 */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(tcp_state, struct sock *sk, int oldstate, int newstate)
{
	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	if (newstate == TCP_SYN_SENT || newstate == TCP_LISTEN)
		mark_current(sk, true);
	else if (newstate == TCP_ESTABLISHED && oldstate == TCP_SYN_RECV)
		mark_accepted(sk);
	else if (newstate == TCP_FIN_WAIT1 || newstate == TCP_LAST_ACK)
		mark_current(sk, false);
	else if (newstate == TCP_CLOSE)
		hand_in(sk);
	return 0;
}

/* Every socket that a process holds, in all network namespaces. Marks the listeners that were there before us. */
SEC("iter/task_file")
int list_held(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct socket_bytes row = {};
	struct socket *socket;
	struct tcp_sock *tp;
	struct mark *mark;
	struct sock *sk;

	if (!task || !file)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sk = socket->sk;
	if (!sk || !is_inet(sk))
		return 0;
	row.inherited = is_inherited(task, ctx->fd, file);
	if (sk->sk_protocol == IPPROTO_TCP && sk->__sk_common.skc_state == TCP_LISTEN) {
		if (row.inherited)
			return 0;
		mark = sk_storage_of(&marks, sk);
		/* Of several the lowest number; process 1 holds what it activates for others. */
		if (mark && mark->pid <= 1) {
			load_holder(task, &mark->pid, mark->comm);
			mark->window = windows.newest;
		}
		return 0;
	}
	if (sk->sk_protocol == IPPROTO_TCP) {
		tp = bpf_skc_to_tcp_sock(sk);
		if (!tp)
			return 0;
		load_tcp(tp, &row);
	} else if (sk->sk_protocol == IPPROTO_UDP) {
		mark = bpf_sk_storage_get(&marks, sk, 0, 0);
		if (!mark || !mark->slot)
			return 0;
		row.cookie = bpf_get_socket_cookie(sk);
		row.protocol = IPPROTO_UDP;
		load_endpoints(&sk->__sk_common, &row.endpoints);
	} else {
		return 0;
	}
	load_holder(task, &row.pid, row.comm);
	bpf_seq_write(ctx->meta->seq, &row, sizeof(row));
	return 0;
}

/* Of our own network namespace also what no process holds. */
SEC("iter/tcp")
int list_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *c = ctx->sk_common;
	struct socket_bytes row = {};
	struct tcp_sock *tp;

	if (!c)
		return 0;
	tp = bpf_skc_to_tcp_sock(c);
	if (!tp)
		return 0;
	load_tcp(tp, &row);
	bpf_seq_write(ctx->meta->seq, &row, sizeof(row));
	return 0;
}

/*
 * Of every network namespace what no process holds but has a mark: connections
 * that wait to be accepted, and those whose process has closed them and that
 * still send.
 */
SEC("iter/bpf_sk_storage_map")
int list_marked(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct sock *sk = ctx->sk;
	struct mark *mark = ctx->value;
	struct socket_bytes row = {};
	struct tcp_sock *tp;

	if (!sk || !mark || sk->sk_protocol != IPPROTO_TCP || (sk->sk_socket && sk->sk_socket->file))
		return 0;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return 0;
	load_tcp(tp, &row);
	row.pid = mark->pid;
	__builtin_memcpy(row.comm, mark->comm, sizeof(row.comm));
	bpf_seq_write(ctx->meta->seq, &row, sizeof(row));
	return 0;
}

/* When nobody watches any more: a marked listener would go on copying its mark. */
SEC("iter/bpf_sk_storage_map")
int forget_marks(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct sock *sk = ctx->sk; /* read once: the check is of this pointer, not of the field */

	if (sk)
		bpf_sk_storage_delete(&marks, sk);
	return 0;
}
