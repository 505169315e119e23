/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* TCP's counters of a socket. */
#pragma once
#include "marks.h"
#include "round_trips.h"

/* A TCP socket and the counters of its life. Waits are in jiffies. */
struct tcp_row {
	__u64 cookie;
	__u64 address;
	__u64 cgroup;
	__u64 closed_ns; /* CLOCK_MONOTONIC; 0 = open */
	__u32 pid;
	__u32 netns;
	char comm[16];
	struct endpoints endpoints;
	__u32 segments_out;
	__u32 retransmits;
	__u32 spurious; /* of these, data that the receiver already had (DSACK) */
	__u32 busy;
	__u32 receiver_limited;
	__u32 send_buffer_limited;
	struct average average;
	__u32 handshake_us; /* the first sample, if monitored, times 8 */
	__u32 window;       /* the newest window when it was opened; 0 = before monitoring */
	__u32 unread;       /* for a listener or a ring: the number of connections without a row … */
	__u32 unread_rtts;  /* … and without a row of round trips */
	__u32 jiffies;      /* now */
	__u16 running;      /* the unfinished part of `busy`, capped to the type */
	__u8 state;
	__u8 inbound;
	__u8 claim; /* enum claim */
	__u8 orphan;
	__u8 busy_with; /* enum limited_by */
	__u8 pad;
};
const struct tcp_row *tcp_row_type __attribute__((unused));

static __always_inline void load_waits(const struct tcp_sock *tp, struct tcp_row *row)
{
	__u32 waited[] = { tp->chrono_stat[0], tp->chrono_stat[1], tp->chrono_stat[2] };
	__u32 type = BPF_CORE_READ_BITFIELD(tp, chrono_type);
	__s32 running;

	row->jiffies = bpf_jiffies64();
	running = row->jiffies - tp->chrono_start;
	if (running < 0)
		running = 0; /* it began during the read */
	row->busy = waited[0] + (type == TCP_CHRONO_BUSY ? running : 0);
	row->running = type == TCP_CHRONO_BUSY ? (running < 0xffff ? running : 0xffff) : 0;
	row->busy_with = busy_with(tp);
	row->receiver_limited = waited[1] + (type == TCP_CHRONO_RWND_LIMITED ? running : 0);
	row->send_buffer_limited = waited[2] + (type == TCP_CHRONO_SNDBUF_LIMITED ? running : 0);
}

static __always_inline void load_counters(const struct tcp_sock *tp, const struct mark *mark, struct tcp_row *row)
{
	const struct sock *sk = &tp->inet_conn.icsk_inet.sk;

	load_tcp_endpoints(tp, &row->endpoints);
	row->segments_out = tp->segs_out;
	row->retransmits = tp->total_retrans;
	row->spurious = tp->dsack_dups;
	row->average = average_of(tp);
	row->handshake_us = mark && is_new(mark) ? mark->handshake_us : 0;
	row->inbound = mark && mark->direction == INBOUND;
	row->state = sk->__sk_common.skc_state;
	row->orphan = is_orphan(sk);
	load_waits(tp, row);
}

static __always_inline void load_direction(const struct tcp_sock *tp, struct tcp_row *row)
{
	row->inbound = is_inbound(tp);
}
