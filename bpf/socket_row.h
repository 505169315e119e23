/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The row of a socket in snapshot_sockets, and how it is read from a socket or a copy. */
#pragma once
#include "direction.h"
#include "limited.h"

/* The fields of a socket. Zero if a protocol or a state lacks the field. */
struct socket_row {
	__u64 cookie;
	__u64 address; /* if the cookie may be new (`files.h`); otherwise 0 */
	__u64 cgroup;
	__u64 rx_bytes;
	__u64 tx_bytes; /* including retransmissions */
	__u64 retransmitted_bytes;
	__u64 pacing_bytes_per_second;
	struct endpoints endpoints;
	__u32 netns;
	__u32 pid;
	char comm[16];
	char congestion_control[16];
	__u32 send_queue;    /* bytes; for a listener, the maximal number of waiting connections */
	__u32 receive_queue; /* bytes; for a listener, the number of waiting connections */
	__u32 drops;
	__u32 half_open; /* for a listener, incomplete handshakes */
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
	__u32 silent;    /* since the last received segment */
	__u32 delivered; /* acknowledged segments */
	__u8 protocol;
	__u8 state;
	__u8 limited_by;
	__u8 retransmits; /* of the oldest packet, in a row */
	__u8 probes;      /* unanswered keepalive and window probes */
	__u8 inbound;
	__u8 claim;      /* enum claim */
	__u8 redirected; /* it is in a sockmap: REDIRECTS_SENT or REDIRECTS_RECEIVED */
	__u32 unread;    /* CLAIM_UNREAD: the number of sockets of this ring without a row */
	__u8 kernel;     /* the kernel created it for itself: no process can have it */
	__u8 below;      /* it is below another socket, or in a ring */
	__u8 pad[2];
};
const struct socket_row *socket_row_type __attribute__((unused));

/*
 * What the sender waits for. The chronometer checks for a process without buffer space only when it sends, before it
 * wakes that process. Here all data is sent, and a process still waits for buffer space.
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

/* Like tcp_get_info(): the recorded times, and the running measurement. */
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
static __always_inline void load_udp(const struct sock *sk, struct socket_row *row)
{
	__s32 unread = sk->sk_backlog.rmem_alloc.counter;
	__s32 unsent = sk->sk_wmem_alloc.refs.counter - 1; /* one is for the socket itself */

	unread -= BPF_CORE_READ((const struct udp_sock *)sk, forward_deficit);
	row->receive_queue = unread > 0 ? unread : 0;
	row->send_queue = unsent > 0 ? unsent : 0;
	row->drops = sk->sk_drops.counter;
	if (bpf_core_field_exists(sk->sk_drop_counters) && sk->sk_drop_counters)
		row->drops = BPF_CORE_READ(sk, sk_drop_counters, drops0.counter) +
			     BPF_CORE_READ(sk, sk_drop_counters, drops1.counter);
}
