/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Every TCP connection: how it opened or why it failed, and its counters at the close.
 *
 * A connection is one event, at its end. An iterator reads the connections that are open at the end of a window. In
 * between, the socket's storage keeps its owner, since most state changes happen in softirq, where `current` is
 * arbitrary.
 */
#include "closing.h"
#include "next.h"
#include "open_connections.h"

/* listen(): accepted connections inherit the owner. */
static __always_inline void listens(struct sock *sk)
{
	struct track *track = track_of(sk);

	if (!track)
		return;
	__builtin_memset(track, 0, sizeof(*track));
	track->is_known = true;
	current_owner(&track->owner);
	track->managed = is_manager(bpf_get_current_task_btf());
	track->owner.netns = load_netns(&sk->__sk_common);
	track->direction = INBOUND;
}

/* connect(): the calling process makes the change to SYN_SENT. */
static __always_inline void connects(struct sock *sk)
{
	struct track *track = track_of(sk);

	if (!track)
		return;
	if (files_are_untrusted)
		bpf_get_socket_cookie(sk); /* see name_of() */
	track->start_ns = bpf_ktime_get_ns();
	track->established_ns = 0;
	track->managed = false;
	current_owner(&track->owner);
	if (current_is_kernel())
		own_as_above(sk, track);
	track->owner.netns = load_netns(&sk->__sk_common);
	track->direction = OUTBOUND;
	track->error = 0;
	track->ended = NOT_ENDED;
}

static __always_inline void is_established(struct sock *sk, int oldstate)
{
	struct track *track = track_of(sk);
	__u64 now = bpf_ktime_get_ns();

	if (!track)
		return;
	if (files_are_untrusted && oldstate == TCP_SYN_RECV)
		bpf_get_socket_cookie(sk);
	track->established_ns = now;
	track->ended = NOT_ENDED;
	track->round = 0;
	if (oldstate == TCP_SYN_SENT)
		track->direction = OUTBOUND;
	else if (!track->direction)
		track->direction = guess_direction(sk);
	if (track->direction == OUTBOUND) /* or both sides called connect() */
		return;
	track->start_ns = now;
	track->direction = INBOUND;
	if (!track->owner.pid)
		own_as_above(sk, track);
	if (!track->owner.pid)
		own_as_listener(sk, track);
	track->owner.netns = load_netns(&sk->__sk_common);
}

/*
 * close() or shutdown(), in the calling process. For an inbound connection that process served it. It is often a
 * worker, while its parent owns the listener.
 */
static __always_inline void closes(struct sock *sk)
{
	struct track *track;

	if (current_is_kernel())
		return;
	track = track_of(sk);
	if (!track)
		return;
	if (track->direction != OUTBOUND || !track->owner.pid) {
		load_owner(closing_task(track->owner.pid), &track->owner);
		track->managed = false;
		track->owner.netns = load_netns(&sk->__sk_common);
		if (!track->direction)
			track->direction = guess_direction(sk);
	}
	note_orphan(sk, track);
}

static __always_inline __u8 end_of(int oldstate, const struct tcp_sock *tp, struct connection *c)
{
	c->error = tp->inet_conn.icsk_inet.sk.sk_err;
	if (oldstate == TCP_SYN_SENT || oldstate == TCP_SYN_RECV) {
		/*
		 * Without an error and without a SYN, no local port was free: connect() returns that error, but the
		 * socket does not keep it.
		 */
		if (!c->error && !tp->segs_out)
			c->error = EADDRNOTAVAIL;
		return FAILED;
	}
	if (c->error)
		return BROKEN;
	/* An abort: this side discarded the connection, and its peer gets a reset. */
	return oldstate == TCP_ESTABLISHED || oldstate == TCP_CLOSE_WAIT ? ABORTED : CLOSED;
}

static __always_inline void is_closed(struct sock *sk, int oldstate)
{
	struct track *track = known_track(sk);
	struct connection c = {};
	struct tcp_sock *tp;

	if (oldstate == TCP_CLOSE || oldstate == TCP_LISTEN || (track && track->ended))
		return;
	/* The handshake of an inbound connection failed at its last step, so no process gets it. */
	if (oldstate == TCP_SYN_RECV && (!track || track->direction == INBOUND))
		return;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return;
	if (track) {
		track->ended = REPORTED;
		load_track(track, &c);
	} else {
		c.direction = oldstate == TCP_SYN_SENT ? OUTBOUND : guess_direction(sk);
	}
	c.owner.netns = load_netns(&sk->__sk_common);
	load_counts(tp, &c);
	c.end = end_of(oldstate, tp, &c);
	if (c.end == FAILED && !c.error && track)
		c.error = track->error;
	c.closing = is_closing(oldstate);
	c.end_ns = bpf_ktime_get_ns();
	emit(&c);
}

/*
 * Not kprobes or fentry on functions such as tcp_v4_connect: the state change is a stable tracepoint for IPv4, IPv6 and
 * both directions.
 */
static __always_inline void follow_state(struct sock *sk, int oldstate, int newstate)
{
	if (newstate == TCP_CLOSE) {
		is_closed(sk, oldstate);
		if (oldstate == TCP_LISTEN)
			forget_old_listener(sk);
		if (is_closing(oldstate))
			forget_orphan(sk);
	} else if (newstate == TCP_ESTABLISHED) {
		is_established(sk, oldstate);
	} else if (newstate == TCP_SYN_SENT) {
		connects(sk);
	} else if (begins_close(newstate)) {
		closes(sk);
	} else if (newstate == TCP_LISTEN) {
		listens(sk);
	}
}

NEXT_OF(connection_state);

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(connection_state, struct sock *sk, int oldstate, int newstate)
{
	if (sk->sk_protocol == IPPROTO_TCP)
		follow_state(sk, oldstate, newstate);
	RUN_NEXT(connection_state);
	return 0;
}

/* The last error that an ICMP message reported to a socket. */
static __always_inline int queued_error(struct sock *sk)
{
	struct sk_buff *last = sk->sk_error_queue.prev;
	struct sock_exterr_skb *told = (void *)last->cb;

	if ((void *)last == (void *)&sk->sk_error_queue)
		return 0;
	return BPF_CORE_READ(told, ee.ee_errno);
}

/*
 * An ICMP error during connect(), as over a veth, changes no state: the process gets the error and closes the socket.
 */
SEC("tp_btf/inet_sk_error_report")
int BPF_PROG(attempt_error, struct sock *sk)
{
	struct track *track;

	if (sk->sk_protocol != IPPROTO_TCP || sk->__sk_common.skc_state != TCP_SYN_SENT)
		return 0;
	track = known_track(sk);
	if (track)
		track->error = sk->sk_err ? sk->sk_err : queued_error(sk);
	return 0;
}

/* The holders of listeners from before the first window. */
SEC("iter/task_file")
int find_listeners(struct bpf_iter__task_file *ctx)
{
	const struct request *asked = request();
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct track *track;
	struct sock *sk;
	__u8 claim;

	if (!task || !file || !asked)
		return 0;
	sk = inet_socket_of(file);
	if (!sk || (sk->sk_protocol != IPPROTO_TCP && !is_mptcp(sk)))
		return 0;
	if (sk->__sk_common.skc_state != TCP_LISTEN && !is_mptcp(sk))
		return 0;
	claim = claim_of(task, ctx->fd, file);
	if (claim == CLAIM_INHERITED)
		return 0;
	if (files_are_untrusted) {
		if (sk->__sk_common.skc_state == TCP_LISTEN)
			note_old_listener(sk, task, claim, asked->round);
		return 0;
	}
	track = PART(sk, track);
	/* The lowest number of several; a manager holds the sockets that it activates for others. */
	if (!track || (track->round == asked->round && (!track->managed || claim == CLAIM_MANAGER)))
		return 0;
	track->managed = claim == CLAIM_MANAGER;
	load_holder(task, &track->owner.pid, track->owner.comm);
	track->owner.cgroup = task_cgroup(task);
	track->owner.netns = load_netns(&sk->__sk_common);
	track->direction = INBOUND;
	track->round = asked->round;
	return 0;
}
