/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* What a sender waits for, from the state of its socket. */
#pragma once
#include "sockets.h"

enum limited_by {
	LIMITED_BY_NOTHING,
	LIMITED_BY_RECEIVER,
	LIMITED_BY_SEND_BUFFER,
	LIMITED_BY_NETWORK,
	LIMITED_BY_APPLICATION
};

/* While it probes, congestion control uses a fraction of the requested pace: BBR uses a third. */
enum { PACE_PARTS = 4 };

/* From this state on, lost segments are retransmitted (enum tcp_ca_state). */
enum { TCP_CA_RECOVERY = 3 };

/*
 * For the chronometer's state "busy". Unsent data does not prove a full congestion window. Less than a segment waits
 * for Nagle's acknowledgement, for a cork, or for more data: the application limits. A whole segment that both windows
 * permit waits for pacing. The application requested that pace (SO_MAX_PACING_RATE), or the network set it, through
 * congestion control or a full device queue.
 */
static __always_inline __u8 busy_with(const struct tcp_sock *tp)
{
	const struct sock *sk = &tp->inet_conn.icsk_inet.sk;
	__u32 in_flight = tp->packets_out - tp->sacked_out - tp->lost_out + tp->retrans_out;
	__u32 unsent = tp->write_seq - tp->snd_nxt, room = tp->snd_una + tp->snd_wnd - tp->snd_nxt;

	if (BPF_CORE_READ_BITFIELD(&tp->inet_conn, icsk_ca_state) >= TCP_CA_RECOVERY)
		return LIMITED_BY_NETWORK;
	if (!unsent)
		return LIMITED_BY_APPLICATION;
	if (in_flight >= tp->snd_cwnd)
		return LIMITED_BY_NETWORK;
	if (unsent < tp->mss_cache)
		return LIMITED_BY_APPLICATION;
	if ((__s32)room < (__s32)tp->mss_cache)
		return LIMITED_BY_RECEIVER;
	if (sk->sk_max_pacing_rate != ~0ul && sk->sk_pacing_rate >= sk->sk_max_pacing_rate / PACE_PARTS)
		return LIMITED_BY_APPLICATION;
	return LIMITED_BY_NETWORK;
}
