/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Connections that wait to be accepted. No process holds them yet. iter/tcp lists those of our own network namespace.
 * In other namespaces the listener leads to them, since a process holds it.
 */
#pragma once
#include "namespaces.h"

/* For one listener: an iterator may write 32 KiB for one file. */
enum { WAITING = 128 };

/* Added in Linux 5.17. The verifier checks the body of such a loop once. */
enum bpf_func_id___loop { BPF_FUNC_loop___loop = 181 };

struct accept_queue {
	struct request_sock *next;
	const struct sock *listener;
	struct seq_file *seq;
	const void *owner; /* the listener's mark, if it has one */
	void *row;         /* of the caller: old verifiers have no stack space for a row in both */
};

/*
 * The next connection of the queue; null at its end. Another listener may reuse a request that is accepted meanwhile;
 * then the walk ends.
 */
static __always_inline struct sock *next_waiting(struct accept_queue *queue)
{
	struct request_sock *request = queue->next;

	if (!request || request->__req_common.skc_listener != queue->listener)
		return 0;
	queue->next = request->dl_next;
	return request->sk;
}

/*
 * Runs `list` for each connection that waits at a listener of another network namespace, at most `most` times. Returns
 * the number of connections that it did not reach.
 */
static __always_inline __u32 walk_accept_queue(struct sock *listener, long (*list)(__u32, struct accept_queue *),
					       struct accept_queue *queue, __u32 most)
{
	__u32 waiting = listener->sk_ack_backlog;
	struct tcp_sock *tp;
	long walked;

	if (!waiting || !is_elsewhere(listener))
		return 0;
	if (!bpf_core_enum_value_exists(enum bpf_func_id___loop, BPF_FUNC_loop___loop))
		return waiting;
	tp = bpf_skc_to_tcp_sock(listener);
	if (!tp)
		return waiting;
	queue->listener = listener;
	queue->next = tp->inet_conn.icsk_accept_queue.rskq_accept_head;
	walked = bpf_loop(most, list, queue, 0);
	return walked == most && queue->next && waiting > most ? waiting - most : 0;
}
