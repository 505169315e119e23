/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Latency by stage: where a message waits between the wire and the program, and back.
 *
 * The kernel stamps what arrives (user space asks for it), and TCP stamps what it sends. So one program per message
 * that arrives, one per call of the process and one per segment at the device are enough, and none looks at a payload.
 */
#include "run_queue.h"
#include "stamps.h"
#include "talks.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct tcp_sock___rack {
	struct {
		__u32 rtt_us;
	} rack;
};

struct udp_sock___queue {
	struct sk_buff_head reader_queue;
};

#pragma clang attribute pop

/* Null if the socket begins to rest with this event. */
static __always_inline struct talk *talk_of(struct sock *sk)
{
	struct talk *talk = sk_storage_of(&talks, sk);
	__u32 first = windows.first;

	if (!talk)
		return 0;
	if (talk->first != first) {
		__builtin_memset(talk, 0, sizeof(*talk));
		talk->first = first;
	}
	return is_in_burst(sk, talk) ? talk : 0;
}

/* For a call of the process: the socket is its own. */
static __always_inline struct talk *own_talk(struct sock *sk)
{
	struct talk *talk = talk_of(sk);
	struct task_struct *task;
	__u32 newest = windows.newest;
	struct tcp_sock *tp;

	if (!talk)
		return 0;
	task = bpf_get_current_task_btf();
	if (talk->window != newest || talk->pid != task->tgid) {
		if (sk->sk_protocol == IPPROTO_TCP && !talk->window) {
			tp = bpf_skc_to_tcp_sock(sk);
			talk->exchange.side = tp && is_inbound(tp) ? SIDE_SERVER : SIDE_CLIENT;
			if (talk->exchange.side == SIDE_SERVER)
				talk->exchange.phase = QUIET; /* until now it was taken for a client */
		}
		talk->group = group_of(sk);
		talk->window = newest;
		talk->pid = task->tgid;
		talk->thread = talk->bursts = 0;
	}
	if (!talk->group)
		return 0;
	if (talk->thread != task->pid) {
		talk->thread = task->pid;
		note_runner(talk->group);
	}
	if (talk->early_ns)
		add_time(talk, ARRIVAL_TO_SOCKET, talk->early_ns - 1);
	if (talk->early_wire_ns)
		add_time(talk, WRITE_TO_WIRE, talk->early_wire_ns - 1);
	talk->early_ns = talk->early_wire_ns = 0;
	return talk;
}

/* Of the message that just came to the end of a socket's queue. */
static __always_inline void add_arrival(struct sock *sk, struct talk *talk, __u64 now)
{
	const struct sk_buff *last = sk->sk_receive_queue.prev;
	__u64 at;

	if (!last || (const void *)last == (const void *)&sk->sk_receive_queue)
		return;
	at = arrival_ns(last, now);
	if (at && talk->group)
		add_time(talk, ARRIVAL_TO_SOCKET, now - at);
	else if (at)
		talk->early_ns = now - at + 1;
}

static __always_inline void tcp_arrives(struct sock *sk)
{
	struct tcp_sock *tp = sk->__sk_common.skc_state == TCP_LISTEN ? 0 : bpf_skc_to_tcp_sock(sk);
	__u32 received = tp ? received_bytes(tp) : 0, bytes, fin;
	struct talk *talk = received ? talk_of(sk) : 0;
	__u64 now;

	if (!talk || talk->received == received) /* only a FIN */
		return;
	bytes = received - talk->received;
	talk->received = received;
	if (talk->arrived_ns && talk->exchange.phase == OMITTED)
		return;
	now = bpf_ktime_get_ns();
	if (!talk->arrived_ns) {
		fin = sk->__sk_common.skc_flags & 1 << SOCK_DONE ? 1 : 0;
		add_arrival(sk, talk, now);
		talk->arrived_seq = tp->rcv_nxt - fin;
		talk->arrived_ns = now;
	}
	if (!talk->window)
		return;
	if (talk->exchange.side == SIDE_SERVER)
		request_arrives(tp, &talk->exchange, tp->snd_una, bytes, now);
	else
		count_outcome(tp, talk, reply_arrives(tp, &talk->exchange, now), now);
}

static __always_inline void udp_arrives(struct sock *sk)
{
	struct talk *talk = talk_of(sk);
	__u64 now;

	if (!talk || talk->arrived_ns)
		return;
	now = bpf_ktime_get_ns();
	talk->arrived_ns = now;
	add_arrival(sk, talk, now);
}

SEC("tp_btf/sk_data_ready")
int BPF_PROG(data_arrives, struct sock *sk)
{
	if (!is_inet(sk) || rests_now(sk))
		return 0;
	if (sk->sk_protocol == IPPROTO_TCP)
		tcp_arrives(sk);
	else if (sk->sk_protocol == IPPROTO_UDP)
		udp_arrives(sk);
	return 0;
}

static __always_inline void tcp_is_read(struct sock *sk)
{
	struct talk *talk = own_talk(sk);
	struct tcp_sock *tp = talk ? bpf_skc_to_tcp_sock(sk) : 0;
	__u64 now;

	if (!talk || !tp)
		return;
	now = bpf_ktime_get_ns();
	if (talk->arrived_ns && (__s32)(tp->copied_seq - talk->arrived_seq) >= 0) {
		add_time(talk, SOCKET_TO_READ, now - talk->arrived_ns);
		talk->arrived_ns = 0;
	}
	if (talk->exchange.side != SIDE_SERVER)
		return;
	request_is_read(&talk->exchange, now);
	talk->reply_seq = tp->write_seq;
}

/* When the next datagram arrived; 0 if there is none. Its address is a number to the verifier. */
static __always_inline __u64 next_arrival_ns(const struct sock *sk, __u64 now)
{
	const struct udp_sock___queue *udp = (const void *)sk;
	const struct sk_buff *next = BPF_CORE_READ(udp, reader_queue.next);
	const struct sk_buff___stamped *stamped;

	if ((__u64)next == (__u64)&udp->reader_queue)
		next = sk->sk_receive_queue.next;
	if (!next || (__u64)next == (__u64)&sk->sk_receive_queue)
		return 0;
	stamped = (const void *)next;
	return since_stamp(BPF_CORE_READ(stamped, tstamp), now);
}

/* The next datagram came when its stamp says. A datagram that comes to an empty queue sets the time itself. */
static __always_inline void udp_is_read(struct sock *sk)
{
	struct talk *talk = own_talk(sk);
	__u64 now, at;

	if (!talk)
		return;
	now = bpf_ktime_get_ns();
	if (talk->arrived_ns)
		add_time(talk, SOCKET_TO_READ, now - talk->arrived_ns);
	talk->arrived_ns = 0;
	at = next_arrival_ns(sk, now);
	if (at)
		talk->arrived_ns = at;
}

SEC("tp_btf/sock_recv_length")
int BPF_PROG(data_is_read, struct sock *sk, int length, int flags)
{
	if (length < 0 || flags & (MSG_PEEK | MSG_ERRQUEUE) || !is_inet(sk) || rests_now(sk))
		return 0;
	if (sk->sk_protocol == IPPROTO_TCP && length)
		tcp_is_read(sk);
	else if (sk->sk_protocol == IPPROTO_UDP)
		udp_is_read(sk);
	return 0;
}

static __always_inline void note_reply(const struct tcp_sock *tp, struct talk *talk, __u64 now)
{
	count_outcome(tp, talk, reply_is_written(&talk->exchange, now), now);
}

/* It ends when sendmsg() returns: what was sent until then, `segment_leaves` has seen. */
SEC("tp_btf/sock_send_length")
int BPF_PROG(data_is_written, struct sock *sk, int length, int flags)
{
	struct tcp_sock *tp;
	struct talk *talk;

	if (length <= 0 || !is_inet(sk) || sk->sk_protocol != IPPROTO_TCP || rests_now(sk))
		return 0;
	talk = own_talk(sk);
	tp = talk ? bpf_skc_to_tcp_sock(sk) : 0;
	if (!talk || !tp)
		return 0;
	if (!talk->written_ns && tp->snd_nxt != tp->write_seq) {
		talk->written_seq = tp->snd_nxt;
		talk->written_ns = bpf_ktime_get_ns();
	}
	if (talk->exchange.side == SIDE_SERVER && talk->exchange.phase != QUIET)
		note_reply(tp, talk, bpf_ktime_get_ns());
	return 0;
}

/* The payload of a segment; 0 for an acknowledgement, and for a packet around the segment. */
static __always_inline __u32 load_segment(const struct sk_buff *skb, const struct tcp_sock *tp, __u32 *seq)
{
	const struct inet_sock *inet = &tp->inet_conn.icsk_inet;
	struct {
		__be16 source, dest;
		__be32 seq, ack;
		__u8 offset, flags;
	} header;
	__u64 at = (__u64)skb->head + skb->transport_header, from = (__u64)skb->data;
	__u32 headers;

	if (bpf_probe_read_kernel(&header, 14, (const void *)at) || header.source != inet->inet_sport ||
	    header.dest != inet->sk.__sk_common.skc_dport)
		return 0;
	*seq = bpf_ntohl(header.seq);
	headers = (__u32)(at - from) + (header.offset >> 4) * 4;
	return skb->len > headers ? skb->len - headers : 0;
}

/* TCP's newest sample, without the time to the device, which it includes. */
static __always_inline __u32 round_trip_us(const struct tcp_sock *tp, const struct talk *talk)
{
	const struct tcp_sock___rack *rack = (const void *)tp;
	__u32 us = rack->rack.rtt_us, least = least_rtt_us(tp);
	__u64 wire_us = talk->wire_ns / 1000;

	if (wire_us >= us)
		return us < least ? us : least;
	return us - wire_us;
}

/* Only if its acknowledgement waited neither for a timer of the receiver nor for its program. */
static __always_inline void note_round_trip(const struct tcp_sock *tp, struct talk *talk)
{
	__u32 delivered = tp->delivered, us;

	if (delivered != talk->delivered) {
		us = round_trip_us(tp, talk);
		if (talk->prompt && talk->group && us)
			add_time(talk, WIRE_TO_ACK, (__u64)us * 1000);
		talk->delivered = delivered;
	}
	talk->prompt = tp->snd_nxt - tp->snd_una >= PROMPT_SEGMENTS * tp->mss_cache;
}

/* The time that TCP stamped is when it sent the segment, or will be when the pace allows it. */
static __always_inline void note_segment(const struct sk_buff *skb, const struct tcp_sock *tp, struct talk *talk,
					 __u32 seq, __u32 end)
{
	__u64 now = bpf_ktime_get_ns(), sent = now, from;
	__u32 earlier = talk->exchange.sent_seq;

	if (is_stamped(skb, STAMP_MONOTONIC))
		sent = ((const struct sk_buff___stamped *)skb)->tstamp;
	if (sent > now)
		sent = now;
	from = sent;
	talk->wire_ns = now - sent;
	if (talk->written_ns && (__s32)(end - talk->written_seq) > 0) {
		if (talk->written_ns < from)
			from = talk->written_ns;
		talk->written_ns = 0;
	}
	if (talk->group)
		add_time(talk, WRITE_TO_WIRE, now - from);
	else
		talk->early_wire_ns = now - from + 1;
	if (talk->has_sent && (__s32)(end - earlier) <= 0)
		return;
	talk->exchange.sent_seq = end;
	if (!talk->has_sent)
		earlier = seq;
	talk->has_sent = 1;
	if (talk->exchange.side != SIDE_SERVER)
		request_is_sent(tp, &talk->exchange, earlier, sent);
	else if ((__s32)(end - talk->reply_seq) > 0)
		note_reply(tp, talk, sent);
}

static __always_inline struct sock *sender_of(const struct sk_buff *skb)
{
	struct sock *sk = skb->sk;

	if (!sk || sk->__sk_common.skc_state == TCP_TIME_WAIT || sk->__sk_common.skc_state == TCP_NEW_SYN_RECV)
		return 0;
	return sk;
}

/* Storage takes the pointer in a packet, which RCU protects. The helper that casts sockets refuses it (Linux 6.18). */
static __always_inline const struct tcp_sock *sending_tcp(struct sock *sk)
{
	return bpf_ksym_exists(bpf_rdonly_cast) ? cast_to(tcp_sock, sk) : bpf_skc_to_tcp_sock(sk);
}

SEC("tp_btf/net_dev_start_xmit")
int BPF_PROG(segment_leaves, struct sk_buff *skb)
{
	struct sock *sk = sender_of(skb);
	__u32 seq = 0, payload;
	const struct tcp_sock *tp;
	struct talk *talk;

	if (!sk || !is_inet(sk) || sk->sk_protocol != IPPROTO_TCP || rests_now(sk))
		return 0;
	tp = sending_tcp(sk);
	payload = tp && tp->bytes_sent ? load_segment(skb, tp, &seq) : 0;
	talk = payload ? talk_of(sk) : 0;
	if (!talk)
		return 0;
	note_round_trip(tp, talk);
	note_segment(skb, tp, talk, seq, seq + payload);
	return 0;
}

static __always_inline void forget(struct sock *sk)
{
	bpf_sk_storage_delete(&talks, sk);
}

#include "forget.h"
