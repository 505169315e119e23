/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Data that bypasses TCP: a program of a sockmap redirects data from a process directly to another socket of the host,
 * and TCP counts nothing. The calls of processes show what they send and receive (Linux 6.3), and TCP shows its own
 * part. The difference bypassed it.
 */
#pragma once
#include "sockmap.h"
#include "traffic.h"

enum { AF_PACKET = 17, AF_XDP = 44 };
/* Replaces a protocol: sockets whose packets bypass TCP and UDP, and are not counted. */
enum { PAST_XDP = 254, PAST_PACKET = 255 };

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct packet_ring_buffer {
	void *pg_vec;
};

struct packet_sock {
	struct packet_ring_buffer tx_ring;
	unsigned long flags;
	__be16 num;
};

#pragma clang attribute pop

/* Linux 6.4 and newer; a function before that. */
enum packet_sock_flags___past { PACKET_SOCK_QDISC_BYPASS = 6 };

/* Bytes that bypassed TCP since monitoring began, and the inputs of that sum. */
struct past {
	struct traffic moved;
	__u32 first; /* first window of its period */
	__u32 pad;
	__s64 received; /* by calls, minus TCP's part: never more than the bypassed bytes */
	__s64 sent;
	__u32 copied_seq; /* at the last call */
	__u32 write_seq;
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct past);
} past SEC(".maps");

/* Not 0 if any socket has such counters. Programs skip them otherwise. */
__u64 past_sockets;

/* Of this period. */
static __always_inline struct past *known_past(struct sock *sk)
{
	struct past *known = bpf_sk_storage_get(&past, sk, 0, 0);

	return known && known->first == windows.first ? known : 0;
}

/* The numbers of a socket that is in a sockmap and has no storage yet, when it was read last. By address. */
struct unmoved {
	__u32 copied_seq;
	__u32 write_seq;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct unmoved);
} unmoved SEC(".maps");

/* Starts counting. If every call was seen since the socket opened, TCP's counts so far belong to the calls so far. */
static __always_inline struct past *begin_past(struct sock *sk, const struct tcp_sock *tp)
{
	struct mark *mark = known_mark(sk);
	struct past *now = sk_storage_of(&past, sk);
	const struct unmoved *earlier;
	__u64 address = (__u64)sk;

	if (!now)
		return 0;
	past_sockets = 1;
	now->moved.rx_bytes = now->moved.tx_bytes = 0; /* it may be of an earlier period */
	now->received = now->sent = 0;
	earlier = bpf_map_lookup_elem(&unmoved, &address);
	now->copied_seq = earlier ? earlier->copied_seq : tp->copied_seq;
	now->write_seq = earlier ? earlier->write_seq : tp->write_seq;
	if (earlier)
		bpf_map_delete_elem(&unmoved, &address);
	if (mark && is_new(mark)) {
		now->copied_seq = tp->copied_seq;
		now->write_seq = tp->write_seq;
		now->received = -(__s64)(tp->bytes_received - (__u32)(tp->rcv_nxt - tp->copied_seq));
		now->sent = -(__s64)(tp->bytes_acked + (__u32)(tp->write_seq - tp->snd_una) - 1);
	}
	barrier();
	now->first = windows.first; /* last: another CPU may use it from here on */
	return now;
}

/* Adds a call's bytes, minus what TCP counted since the previous call. */
static __always_inline void count_call(__u64 *moved, __s64 *sum, __u32 *seq, __u32 now, __u32 length)
{
	__s32 by_tcp = now - __sync_lock_test_and_set(seq, now);
	__s64 more = (__s64)length - by_tcp, all = __sync_fetch_and_add(sum, more) + more;

	if (all > (__s64)*moved)
		*moved = all;
}

/* At the end of a process' call on a TCP socket. */
static __always_inline void count_past(struct sock *sk, __u32 length, bool is_sent)
{
	struct tcp_sock *tp;
	struct past *known;

	if (!sk->sk_user_data || sk->sk_protocol != IPPROTO_TCP || !psock_of(sk))
		return;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return;
	known = known_past(sk) ?: begin_past(sk, tp);
	if (!known)
		return;
	if (is_sent)
		count_call(&known->moved.tx_bytes, &known->sent, &known->write_seq, tp->write_seq, length);
	else
		count_call(&known->moved.rx_bytes, &known->received, &known->copied_seq, tp->copied_seq, length);
}

/* Adds the bypassed bytes to the row of a socket. */
static __always_inline void load_past(struct sock *sk, const struct tcp_sock *tp, struct socket_bytes *row)
{
	const struct past *known;

	row->past = redirects(sk);
	if (!row->past && !past_sockets)
		return;
	known = known_past(sk);
	if (!known && row->past)
		known = begin_past(sk, tp);
	if (!known)
		return;
	row->traffic.rx_bytes += known->moved.rx_bytes;
	row->traffic.tx_bytes += known->moved.tx_bytes;
}

CARRIED(past, past, struct past, 0)

/* The same for a copied socket: the next call begins the count. */
static __always_inline void load_past_below(const struct room *room, __u64 address, struct socket_bytes *row)
{
	const struct tcp_sock *tp = copy_in(room);
	struct unmoved now = { tp->copied_seq, tp->write_seq };
	struct past known = {};

	row->past = redirects_at(tp->inet_conn.icsk_inet.sk.sk_user_data, address);
	if (!row->past && !past_sockets)
		return;
	if (!carried_past(storage_in(room), &known) || known.first != windows.first) {
		if (row->past)
			bpf_map_update_elem(&unmoved, &address, &now, BPF_ANY);
		return;
	}
	row->traffic.rx_bytes += known.moved.rx_bytes;
	row->traffic.tx_bytes += known.moved.tx_bytes;
}

/* A packet socket that bypasses the queueing discipline, sends from a ring, or is send-only. */
static __always_inline bool sends_packets(const struct sock *sk)
{
	const struct packet_sock *packet = (const void *)sk;

	if (!bpf_core_type_exists(struct packet_sock))
		return true;
	if (!BPF_CORE_READ(packet, num) || BPF_CORE_READ(packet, tx_ring.pg_vec))
		return true;
	return bpf_core_enum_value_exists(enum packet_sock_flags___past, PACKET_SOCK_QDISC_BYPASS) &&
	       BPF_CORE_READ(packet, flags) &
		   1ul << bpf_core_enum_value(enum packet_sock_flags___past, PACKET_SOCK_QDISC_BYPASS);
}

/* A socket whose packets bypass TCP and UDP. They are not counted, and the answer says so. */
static __always_inline int list_past(struct bpf_iter__task_file *ctx, struct sock *sk)
{
	struct socket_bytes row = {};
	struct task_struct *task = ctx->task;

	if (sk->__sk_common.skc_family == AF_XDP)
		row.protocol = PAST_XDP;
	else if (sk->__sk_common.skc_family == AF_PACKET && sends_packets(sk))
		row.protocol = PAST_PACKET;
	else
		return 0;
	if (!task)
		return 0;
	row.cookie = name_of(sk);
	load_holder(task, &row.pid, row.comm);
	bpf_seq_write(ctx->meta->seq, &row, sizeof(row));
	return 0;
}
