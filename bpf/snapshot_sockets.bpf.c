/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Every TCP and UDP socket, once.
 *
 * iter/task_file goes through the files of all processes, in every network
 * namespace, and so knows the owner. iter/tcp and iter/udp see one namespace
 * (the reader's), but also what no process holds: TIME_WAIT, connections that
 * nobody has accepted yet, orphans that still send, the kernel's own sockets.
 */
#include "sockets.h"

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
	__u8 protocol;
	__u8 state;
	__u8 chrono_type;
	__u8 retransmits; /* of the oldest packet, in a row */
	__u8 inherited;   /* and its process' parent has it still */
	__u8 pad[7];
};
const struct socket_row *socket_row_type __attribute__((unused));

/*
 * What the sender waits for. The chronometer looks for a process without room only when something is sent,
 * which is before that process is told: here all is sent, and a process still waits for room.
 */
static __always_inline __u8 waits_for(const struct tcp_sock *tp, __u8 chrono)
{
	const struct sock *sk = &tp->inet_conn.icsk_inet.sk;

	if (chrono == TCP_CHRONO_BUSY && tp->write_seq == tp->snd_nxt &&
	    BPF_CORE_READ(sk, sk_socket, flags) & 1UL << SOCK_NOSPACE)
		return TCP_CHRONO_SNDBUF_LIMITED;
	return chrono;
}

/* As tcp_get_info() sums it up: what the chronometer has put down, and what it measures now. */
static __always_inline void load_waits(const struct tcp_sock *tp, struct socket_row *row)
{
	__s32 running;

	row->jiffies = bpf_jiffies64();
	running = row->jiffies - tp->chrono_start;
	for (int i = 0; i < 3; i++) {
		row->waited[i] = tp->chrono_stat[i];
		if (row->chrono_type == i + 1 && running > 0)
			row->waited[i] += running;
	}
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
	row->chrono_type = BPF_CORE_READ_BITFIELD(tp, chrono_type);
	load_waits(tp, row);
	row->chrono_type = waits_for(tp, row->chrono_type);
	row->retransmits = tp->inet_conn.icsk_retransmits;
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

static __always_inline void load_common(struct sock_common *c, struct socket_row *row)
{
	row->cookie = bpf_get_socket_cookie(c);
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
	row.protocol = sk->sk_protocol;
	if (sk->sk_protocol == IPPROTO_TCP) {
		load_common(&sk->__sk_common, &row);
		tp = bpf_skc_to_tcp_sock(sk);
		if (!tp)
			return 0;
		load_tcp(tp, &row);
	} else if (sk->sk_protocol == IPPROTO_UDP) {
		load_common(&sk->__sk_common, &row);
		load_udp(sk, &row);
	} else {
		return 0;
	}
	if (!row.endpoints.local_port)
		return 0; /* a socket without an address */
	row.cgroup = load_cgroup(sk);
	row.inherited = is_inherited(task, ctx->fd, file);
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
	if (tp) {
		load_tcp(tp, &row);
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
	load_udp(sk, &row);
	row.cgroup = load_cgroup(sk);
	bpf_seq_write(ctx->meta->seq, &row, sizeof(row));
	return 0;
}
