/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Every TCP and UDP socket, once.
 *
 * iter/task_file walks the files of all processes in every network namespace, so it knows the owner. iter/tcp and
 * iter/udp cover one namespace (the reader's), but include sockets that no process holds: TIME_WAIT, connections not
 * yet accepted, orphans that still send, the kernel's own sockets.
 */
#include "below.h"
#include "queues.h"
#include "ring_files.h"
#include "socket_row.h"
#include "sockmap.h"

/* Data that an MPTCP socket has received from its paths and the process has not read. */
static __always_inline __u32 unread_above(const struct sock *above)
{
	const struct sk_buff *first = BPF_CORE_READ(above, sk_receive_queue.next);
	const struct mptcp_skb_cb *data = (const void *)first->cb;
	__s64 unread;

	if (!first || (const void *)first == (const void *)&above->sk_receive_queue)
		return 0;
	unread = BPF_CORE_READ((const struct mptcp_sock *)above, ack_seq) - BPF_CORE_READ(data, map_seq);
	return unread > 0 ? unread : 0;
}

/* Data that an MPTCP socket has to send, or has sent without acknowledgement, on any path. */
static __always_inline __u32 unsent_above(const struct sock *above)
{
	const struct mptcp_sock *mptcp = (const void *)above;
	__s64 unsent = BPF_CORE_READ(mptcp, write_seq) - BPF_CORE_READ(mptcp, snd_una);

	return unsent > 0 ? unsent : 0;
}

/* The row of a lower socket with a copy in this room. The verifier checks it once. */
__noinline int load_row_below(__u64 address, __u32 key)
{
	struct room *room = room_of(key);
	struct socket_row *row;
	const struct sock *sk;

	if (!room)
		return 0;
	sk = &copy_in(room)->inet_conn.icsk_inet.sk;
	row = (void *)room->row;
	__builtin_memset(row, 0, sizeof(*row));
	row->below = true;
	row->protocol = sk->sk_protocol;
	row->cookie = sk->__sk_common.skc_cookie.counter ?: address;
	row->address = files_are_untrusted ? address : 0;
	row->netns = sock_netns(sk);
	row->cgroup = BPF_CORE_READ(sk, sk_cgrp_data.cgroup, kn, id);
	row->state = sk->__sk_common.skc_state;
	load_endpoints(&sk->__sk_common, &row->endpoints);
	if (sk->sk_protocol == IPPROTO_TCP)
		load_tcp(copy_in(room), row);
	else
		load_udp(sk, row);
	return row->endpoints.local_port;
}

static __always_inline void write_below(struct seq_file *seq, struct task_struct *task, struct room *room, __u8 claim)
{
	struct socket_row *row = (void *)room->row;

	row->claim = claim;
	load_holder(task, &row->pid, row->comm);
	bpf_seq_write(seq, row, sizeof(*row));
}

/* An MPTCP socket: one row per path. The first has the queues of all. */
static __always_inline int list_mptcp(struct bpf_iter__task_file *ctx, struct task_struct *task, struct file *file,
				      struct sock *above)
{
	struct subflows walk;
	struct below below;
	struct room *room;
	__u32 key;

	room = take_room(&key);
	if (!room)
		return 0;
	begin_subflows(above, &walk);
	for (int i = 0; i < SUBFLOWS && next_subflow(&walk, room, &below); i++) {
		struct socket_row *row = (void *)room->row;

		if (!load_row_below(below.address, key))
			continue;
		if (!i && row->state != TCP_LISTEN) {
			row->receive_queue += unread_above(above);
			row->send_queue = unsent_above(above);
		}
		write_below(ctx->meta->seq, task, room, claim_of(task, ctx->fd, file));
	}
	leave_room(room);
	return 0;
}

static long list_ring_file(__u32 slot, struct ring *ring)
{
	struct below below;
	enum ring_file kind = copy_from_ring(ring, slot, &below);

	if (kind == RING_UNREAD || (kind != RING_OTHER && ring->listed == RING_SOCKETS)) {
		ring->unread++;
	} else if (kind != RING_OTHER && load_row_below(below.address, ring->key)) {
		write_below(ring->seq, ring->task, ring->room, ring->claim);
		ring->listed++;
	}
	return 0;
}

/* Sockets that a process uses through a ring. */
static __noinline int list_ring(struct bpf_iter__task_file *ctx, struct task_struct *task, struct file *file)
{
	struct ring ring = {};
	struct socket_row *row;

	if (!is_ring(file) || !walk_ring(ctx, task, file, &ring, list_ring_file))
		return 0;
	if (ring.unread) {
		row = (void *)ring.room->row;
		__builtin_memset(row, 0, sizeof(*row));
		row->cookie = ring.address;
		row->unread = ring.unread;
		row->claim = CLAIM_UNREAD;
		load_holder(task, &row->pid, row->comm);
		bpf_seq_write(ctx->meta->seq, row, sizeof(*row));
	}
	leave_room(ring.room);
	return 0;
}

/* TCP does not count data that a sockmap program redirected to a socket. */
static __always_inline void load_redirected(struct sock *sk, struct socket_row *row)
{
	const struct sk_psock *psock;

	row->redirected = redirects(sk);
	psock = row->redirected ? psock_of(sk) : 0;
	if (psock && bpf_core_field_exists(psock->msg_tot_len))
		row->receive_queue += BPF_CORE_READ(psock, msg_tot_len);
}

static __always_inline void load_common(struct sock_common *c, struct socket_row *row)
{
	row->netns = load_netns(c);
	row->state = c->skc_state;
	load_endpoints(c, &row->endpoints);
}

/* A socket that the verifier does not trust. */
static __noinline int list_untrusted(struct bpf_iter__task_file *ctx, struct task_struct *task, struct file *file,
				     struct sock *sk)
{
	struct socket_row *row;
	struct below below;
	struct room *room;
	bool is_copied;
	__u32 key;

	room = take_room(&key);
	if (!room)
		return 0;
	if (sk->sk_protocol == IPPROTO_TCP)
		is_copied = copy_below(room, number_of((__u64)sk), &below);
	else
		is_copied =
		    copy_socket(room, number_of((__u64)sk), bpf_core_type_size(struct udp_sock), IPPROTO_UDP, &below);
	if (is_copied && load_row_below(below.address, key)) {
		row = (void *)room->row;
		row->below = false;
		if (row->protocol == IPPROTO_TCP)
			load_redirected(sk, row);
		write_below(ctx->meta->seq, task, room, claim_of(task, ctx->fd, file));
	}
	leave_room(room);
	return 0;
}

static __noinline int list_socket(struct bpf_iter__task_file *ctx, struct task_struct *task, struct file *file,
				  struct sock *sk)
{
	struct socket_row row = {};
	struct tcp_sock *tp;

	row.protocol = sk->sk_protocol;
	if (sk->sk_protocol == IPPROTO_TCP) {
		load_common(&sk->__sk_common, &row);
		row.cookie = bpf_get_socket_cookie(sk);
		tp = bpf_skc_to_tcp_sock(sk);
		if (!tp)
			return 0;
		load_tcp(tp, &row);
		load_redirected(sk, &row);
	} else if (sk->sk_protocol == IPPROTO_UDP) {
		load_common(&sk->__sk_common, &row);
		row.cookie = bpf_get_socket_cookie(sk);
		load_udp(sk, &row);
	} else {
		return 0;
	}
	if (!row.endpoints.local_port)
		return 0; /* a socket without an address */
	row.cgroup = load_cgroup(sk);
	row.claim = claim_of(task, ctx->fd, file);
	load_holder(task, &row.pid, row.comm);
	bpf_seq_write(ctx->meta->seq, &row, sizeof(row));
	return 0;
}

/* Its parts are separate functions, since old kernels give a program 512 bytes of stack in total. */
SEC("iter/task_file")
int list_files(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct socket *socket;
	struct sock *sk;

	if (!task || !file)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return list_ring(ctx, task, file);
	sk = socket->sk;
	if (!sk || !is_inet(sk))
		return 0;
	if (is_mptcp(sk))
		return list_mptcp(ctx, task, file, sk);
	return files_are_untrusted ? list_untrusted(ctx, task, file, sk) : list_socket(ctx, task, file, sk);
}

/*
 * A socket that a process holds has a cookie by now, or is untrusted. A socket in a ring may have none. Those are read
 * by address; both rows need the same identifier.
 */
static __always_inline __u64 named(struct sock *sk)
{
	return sk->__sk_common.skc_cookie.counter ?: (__u64)sk;
}

/* A kernel socket: it has no file and is not an orphan. Tunnels, NFS, iSCSI and SMC have such sockets. */
static __always_inline bool is_kernels(const struct sock *sk)
{
	return sk->sk_socket && !sk->sk_socket->file;
}

SEC("iter/tcp")
int list_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *c = ctx->sk_common;
	struct socket_row row = { .protocol = IPPROTO_TCP };
	struct tcp_sock *tp;

	if (!c)
		return 0;
	load_common(c, &row);
	if (row.state == TCP_NEW_SYN_RECV)
		row.state = TCP_SYN_RECV; /* a single state, except for the kernel's own look-up */
	/* Sockets in TIME_WAIT and requests have no further fields. */
	tp = bpf_skc_to_tcp_sock(c);
	if (!tp)
		row.cookie = bpf_get_socket_cookie(c);
	if (tp) {
		row.cookie = named(&tp->inet_conn.icsk_inet.sk);
		row.address = files_are_untrusted ? (__u64)tp : 0;
		load_tcp(tp, &row);
		load_redirected(&tp->inet_conn.icsk_inet.sk, &row);
		row.cgroup = load_cgroup(&tp->inet_conn.icsk_inet.sk);
		row.kernel = !is_subflow(tp) && is_kernels(&tp->inet_conn.icsk_inet.sk);
	}
	bpf_seq_write(ctx->meta->seq, &row, sizeof(row));
	return 0;
}

SEC("iter/udp")
int list_udp(struct bpf_iter__udp *ctx)
{
	struct socket_row row = { .protocol = IPPROTO_UDP };
	struct udp_sock *udp = ctx->udp_sk;
	struct sock *sk;

	if (!udp)
		return 0;
	sk = &udp->inet.sk;
	load_common(&sk->__sk_common, &row);
	row.cookie = named(sk);
	row.address = files_are_untrusted ? (__u64)sk : 0;
	load_udp(sk, &row);
	row.cgroup = load_cgroup(sk);
	row.kernel = is_kernels(sk);
	bpf_seq_write(ctx->meta->seq, &row, sizeof(row));
	return 0;
}
