/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Every TCP and UDP socket, once.
 *
 * iter/task_file goes through the files of all processes, in every network
 * namespace, and so knows the owner. iter/tcp and iter/udp see one namespace
 * (the reader's), but also what no process holds: TIME_WAIT, connections that
 * nobody has accepted yet, orphans that still send, the kernel's own sockets.
 */
#include "below.h"
#include "direction.h"
#include "limited.h"
#include "sockmap.h"

/* What is known of a socket. Zero where a protocol or a state has no such figure. */
struct socket_row {
	__u64 cookie;
	__u64 cgroup;
	__u64 rx_bytes;
	__u64 tx_bytes; /* retransmissions included */
	__u64 retransmitted_bytes;
	__u64 pacing_bytes_per_second;
	struct endpoints endpoints;
	__u32 netns;
	__u32 pid;
	char comm[16];
	char congestion_control[16];
	__u32 send_queue;    /* bytes; of a listener, how many connections may wait */
	__u32 receive_queue; /* bytes; of a listener, how many connections wait */
	__u32 drops;
	__u32 half_open; /* of a listener, handshakes that are not complete */
	__u32 srtt_us;   /* smoothed, times 8 as the kernel holds it */
	__u32 mdev_us;   /* mean deviation, times 4 */
	__u32 min_rtt_us;
	__u32 cwnd;
	__u32 ssthresh;
	__u32 mss;
	__u32 send_window;
	__u32 not_sent;
	__u32 packets_out;
	__u32 lost_out;
	__u32 total_retransmits;
	__u32 segments_in;
	__u32 segments_out;
	__u32 rate_delivered;
	__u32 rate_interval_us;
	__u32 waited[3]; /* jiffies since it opened, by enum tcp_chrono less one */
	__u32 jiffies;   /* now */
	__u32 silent;    /* for so many nothing has come */
	__u32 delivered; /* segments that were acknowledged */
	__u8 protocol;
	__u8 state;
	__u8 limited_by;
	__u8 retransmits; /* of the oldest packet, in a row */
	__u8 probes;      /* that are not answered: keepalives, and those of a window without room */
	__u8 inbound;
	__u8 claim;      /* enum claim */
	__u8 redirected; /* it is in a sockmap: REDIRECTS_SENT or REDIRECTS_RECEIVED */
	__u8 pad[4];
};
const struct socket_row *socket_row_type __attribute__((unused));

/*
 * What the sender waits for. The chronometer looks for a process without room only when something is sent,
 * which is before that process is told: here all is sent, and a process still waits for room.
 */
static __always_inline __u8 limited_by(const struct tcp_sock *tp, __u8 chrono)
{
	const struct sock *sk = &tp->inet_conn.icsk_inet.sk;

	if (chrono == TCP_CHRONO_RWND_LIMITED)
		return LIMITED_BY_RECEIVER;
	if (chrono == TCP_CHRONO_SNDBUF_LIMITED)
		return LIMITED_BY_SEND_BUFFER;
	if (chrono != TCP_CHRONO_BUSY)
		return LIMITED_BY_NOTHING;
	if (tp->write_seq == tp->snd_nxt && BPF_CORE_READ(sk, sk_socket, flags) & 1UL << SOCK_NOSPACE)
		return LIMITED_BY_SEND_BUFFER;
	return busy_with(tp);
}

/* As tcp_get_info() sums it up: what the chronometer has put down, and what it measures now. */
static __always_inline void load_waits(const struct tcp_sock *tp, struct socket_row *row)
{
	__u8 chrono = BPF_CORE_READ_BITFIELD(tp, chrono_type);
	__s32 running;

	row->jiffies = bpf_jiffies64();
	running = row->jiffies - tp->chrono_start;
	for (int i = 0; i < 3; i++) {
		row->waited[i] = tp->chrono_stat[i];
		if (chrono == i + 1 && running > 0)
			row->waited[i] += running;
	}
	row->limited_by = limited_by(tp, chrono);
}

/* Since the last acknowledgement, or the last data. */
static __always_inline __u32 silent_jiffies(const struct tcp_sock *tp, __u32 now)
{
	__s32 acknowledged = now - tp->rcv_tstamp, received = now - tp->inet_conn.icsk_ack.lrcvtime;
	__s32 silent = acknowledged < received ? acknowledged : received;

	return silent > 0 ? silent : 0;
}

static __always_inline void load_tcp(const struct tcp_sock *tp, struct socket_row *row)
{
	const struct sock *sk = &tp->inet_conn.icsk_inet.sk;
	__s32 unread = tp->rcv_nxt - tp->copied_seq;

	if (!row->endpoints.local_port) /* skc_num is 0 once the connection is closed */
		row->endpoints.local_port = bpf_ntohs(tp->inet_conn.icsk_inet.inet_sport);
	if (row->state == TCP_LISTEN) {
		row->receive_queue = sk->sk_ack_backlog;
		row->send_queue = sk->sk_max_ack_backlog;
		row->drops = sk->sk_drops.counter;
		row->half_open = tp->inet_conn.icsk_accept_queue.qlen.counter;
		return;
	}
	row->send_queue = tp->write_seq - tp->snd_una;
	row->receive_queue = unread > 0 ? unread : 0;
	row->not_sent = tp->write_seq - tp->snd_nxt;
	row->rx_bytes = tp->bytes_received;
	row->tx_bytes = tp->bytes_sent;
	row->retransmitted_bytes = tp->bytes_retrans;
	row->pacing_bytes_per_second = sk->sk_pacing_rate;
	row->srtt_us = tp->srtt_us;
	row->mdev_us = tp->mdev_us;
	row->min_rtt_us = tp->rtt_min.s[0].v;
	row->cwnd = tp->snd_cwnd;
	row->ssthresh = tp->snd_ssthresh;
	row->mss = tp->mss_cache;
	row->send_window = tp->snd_wnd;
	row->packets_out = tp->packets_out;
	row->lost_out = tp->lost_out;
	row->total_retransmits = tp->total_retrans;
	row->segments_in = tp->segs_in;
	row->segments_out = tp->segs_out;
	row->rate_delivered = tp->rate_delivered;
	row->rate_interval_us = tp->rate_interval_us;
	load_waits(tp, row);
	row->silent = silent_jiffies(tp, row->jiffies);
	row->delivered = tp->delivered;
	row->retransmits = tp->inet_conn.icsk_retransmits;
	row->probes = tp->inet_conn.icsk_probes_out;
	row->inbound = is_inbound(tp);
	bpf_probe_read_kernel(row->congestion_control, sizeof(row->congestion_control),
			      tp->inet_conn.icsk_ca_ops->name);
}

/* Queues as `ss` shows them: in bytes of memory, since UDP has no sequence numbers. */
static __always_inline void load_udp(struct sock *sk, struct socket_row *row)
{
	__s32 unread = sk->sk_backlog.rmem_alloc.counter;
	__s32 unsent = sk->sk_wmem_alloc.refs.counter - 1; /* one for the socket itself */

	unread -= BPF_CORE_READ((struct udp_sock *)sk, forward_deficit);
	row->receive_queue = unread > 0 ? unread : 0;
	row->send_queue = unsent > 0 ? unsent : 0;
	row->drops = sk->sk_drops.counter;
	if (bpf_core_field_exists(sk->sk_drop_counters) && sk->sk_drop_counters)
		row->drops = sk->sk_drop_counters->drops0.counter + sk->sk_drop_counters->drops1.counter;
}

/* What has come for an MPTCP socket and was not read: its paths have handed it up. */
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

/* What an MPTCP socket has to send, or has sent without an acknowledgment, on whichever path. */
static __always_inline __u32 unsent_above(const struct sock *above)
{
	const struct mptcp_sock *mptcp = (const void *)above;
	__s64 unsent = BPF_CORE_READ(mptcp, write_seq) - BPF_CORE_READ(mptcp, snd_una);

	return unsent > 0 ? unsent : 0;
}

/* The row of a socket below another one, of which there is a copy in this room. The verifier checks it once. */
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
	row->protocol = IPPROTO_TCP;
	row->cookie = sk->__sk_common.skc_cookie.counter ?: address;
	row->netns = sock_netns(sk);
	row->cgroup = BPF_CORE_READ(sk, sk_cgrp_data.cgroup, kn, id);
	row->state = sk->__sk_common.skc_state;
	load_endpoints(&sk->__sk_common, &row->endpoints);
	load_tcp(copy_in(room), row);
	return row->endpoints.local_port;
}

/* An MPTCP socket: a row for each of its paths. The first one carries the queues of all. */
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
		row->claim = claim_of(task, ctx->fd, file);
		load_holder(task, &row->pid, row->comm);
		bpf_seq_write(ctx->meta->seq, row, sizeof(*row));
	}
	leave_room(room);
	return 0;
}

/* What a program of a sockmap gave to a socket, TCP counts nowhere. */
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

SEC("iter/task_file")
int list_files(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct socket_row row = {};
	struct socket *socket;
	struct tcp_sock *tp;
	struct sock *sk;

	if (!task || !file)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sk = socket->sk;
	if (!sk || !is_inet(sk))
		return 0;
	if (is_mptcp(sk))
		return list_mptcp(ctx, task, file, sk);
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
		row.state = TCP_SYN_RECV; /* one state to everybody but the kernel's own look-up */
	/* Sockets in TIME_WAIT, and requests that are no socket yet, have nothing more. */
	tp = bpf_skc_to_tcp_sock(c);
	if (!tp)
		row.cookie = bpf_get_socket_cookie(c);
	if (tp) {
		row.cookie = identity(&tp->inet_conn.icsk_inet.sk, tp);
		load_tcp(tp, &row);
		load_redirected(&tp->inet_conn.icsk_inet.sk, &row);
		row.cgroup = load_cgroup(&tp->inet_conn.icsk_inet.sk);
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
	row.cookie = bpf_get_socket_cookie(sk);
	load_udp(sk, &row);
	row.cgroup = load_cgroup(sk);
	bpf_seq_write(ctx->meta->seq, &row, sizeof(row));
	return 0;
}
