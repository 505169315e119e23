/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Every TCP connection: how it opened or why not, and what it had carried when it closed.
 *
 * A connection is one event, at its end; what is open when a window ends is read
 * by an iterator. In between its socket carries who it belongs to, since most of
 * its states change in softirq, where `current` is whoever was interrupted.
 */
#include "attempts.h"

enum ended { NOT_ENDED, REPORTED, RETURNED /* connect() has returned the error that was reported */ };

/* What a socket carries. A listener's is copied to each connection that it accepts. */
struct track {
	__u64 start_ns;       /* connect(), or the handshake of an inbound connection; 0 = before anyone watched */
	__u64 established_ns; /* 0 = not established, or before anyone watched */
	struct owner owner;
	__u32 round; /* of a listener: in which search its owner was found */
	__u8 direction;
	__u8 ended; /* enum ended */
	__u8 pad[2];
	__s32 error; /* of an attempt: what its process was told before it ended */
	__u32 pad2;
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct track);
} tracks SEC(".maps");

/* What the reader of an iterator asks for. */
struct request {
	__u64 since_ns; /* of connections: only what began or was established since then */
	__u32 round;    /* of listeners: counts the searches */
	__u8 pad[4];
};
const struct request *request_type __attribute__((unused));

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct request);
} requests SEC(".maps");

static __always_inline const struct request *request(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&requests, &zero);
}

static __always_inline struct track *track_of(struct sock *sk)
{
	struct track *track = sk_storage_of(&tracks, sk);

	if (!track)
		__sync_fetch_and_add(&figures.lost, 1);
	return track;
}

/* What the socket counted. The FIN of the peer is in bytes_received, and is no byte of anybody's. */
static __always_inline void load_counts(const struct tcp_sock *tp, struct connection *c)
{
	const struct sock *sk = &tp->inet_conn.icsk_inet.sk;

	c->rx_bytes = tp->bytes_received;
	if (c->rx_bytes && sk->__sk_common.skc_flags & 1 << SOCK_DONE)
		c->rx_bytes--;
	c->tx_bytes = tp->bytes_sent - tp->bytes_retrans;
	c->rtt_us = tp->srtt_us >> 3;
	c->retransmits = tp->total_retrans;
	load_endpoints(&sk->__sk_common, &c->endpoints);
	/* skc_num is already 0 at the change to CLOSE; inet_sport is not. */
	if (!c->endpoints.local_port)
		c->endpoints.local_port = bpf_ntohs(tp->inet_conn.icsk_inet.inet_sport);
}

static __always_inline void load_track(const struct track *track, struct connection *c)
{
	c->start_ns = track->start_ns;
	c->established_ns = track->established_ns;
	c->owner = track->owner;
	c->direction = track->direction;
}

/* A connection that accept() returned has the limit of its listener's queue, which no other has. */
static __always_inline int guess_direction(const struct sock *sk)
{
	return sk->sk_max_ack_backlog ? INBOUND : OUTBOUND;
}

/* listen(): the connections that it will accept inherit the owner. */
static __always_inline void listens(struct sock *sk)
{
	struct track *track = track_of(sk);

	if (!track)
		return;
	__builtin_memset(track, 0, sizeof(*track));
	current_owner(&track->owner);
	track->owner.netns = load_netns(&sk->__sk_common);
	track->direction = INBOUND;
}

/* connect(): the change to SYN_SENT is made by the process that called it. */
static __always_inline void connects(struct sock *sk)
{
	struct track *track = track_of(sk);

	if (!track)
		return;
	track->start_ns = bpf_ktime_get_ns();
	track->established_ns = 0;
	current_owner(&track->owner);
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
	track->established_ns = now;
	track->ended = NOT_ENDED;
	if (oldstate == TCP_SYN_SENT)
		track->direction = OUTBOUND;
	if (track->direction == OUTBOUND) /* or both sides called connect() */
		return;
	track->start_ns = now;
	track->direction = INBOUND;
	track->owner.netns = load_netns(&sk->__sk_common);
}

/*
 * close() or shutdown(), in the process that calls it. Of an inbound connection
 * that is who served it: often a worker, while the listener is its parent's.
 */
static __always_inline void closes(struct sock *sk)
{
	struct track *track;

	if (current_is_kernel())
		return;
	track = track_of(sk);
	if (!track || (track->direction == OUTBOUND && track->owner.pid))
		return;
	current_owner(&track->owner);
	track->owner.netns = load_netns(&sk->__sk_common);
	if (!track->direction)
		track->direction = guess_direction(sk);
}

static __always_inline __u8 end_of(int oldstate, const struct tcp_sock *tp, struct connection *c)
{
	c->error = tp->inet_conn.icsk_inet.sk.sk_err;
	if (oldstate == TCP_SYN_SENT) {
		/* Without an error and without a SYN no local port was free: connect() returns it, the socket does not
		 * say so. */
		if (!c->error && !tp->segs_out)
			c->error = EADDRNOTAVAIL;
		return FAILED;
	}
	if (c->error)
		return BROKEN;
	/* Nobody said goodbye: this side threw the connection away, and its peer gets a reset. */
	return oldstate == TCP_ESTABLISHED || oldstate == TCP_CLOSE_WAIT ? ABORTED : CLOSED;
}

static __always_inline void is_closed(struct sock *sk, int oldstate)
{
	struct track *track = bpf_sk_storage_get(&tracks, sk, 0, 0);
	struct connection c = {};
	struct tcp_sock *tp;

	if (oldstate == TCP_CLOSE || oldstate == TCP_LISTEN || (track && track->ended))
		return;
	/* The handshake of an inbound connection failed at its last step: nobody was to get it. */
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
	c.end_ns = bpf_ktime_get_ns();
	emit(&c);
}

/*
 * Not kprobes or fentry on tcp_v4_connect and its like: the state change is a
 * stable tracepoint, for IPv4 and IPv6 and both directions alike.
 */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(connection_state, struct sock *sk, int oldstate, int newstate)
{
	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	if (newstate == TCP_CLOSE)
		is_closed(sk, oldstate);
	else if (newstate == TCP_ESTABLISHED)
		is_established(sk, oldstate);
	else if (newstate == TCP_SYN_SENT)
		connects(sk);
	else if (newstate == TCP_FIN_WAIT1 || newstate == TCP_LAST_ACK)
		closes(sk);
	else if (newstate == TCP_LISTEN)
		listens(sk);
	return 0;
}

/* The error that a socket was told of last, by an ICMP message. */
static __always_inline int queued_error(struct sock *sk)
{
	struct sk_buff *last = sk->sk_error_queue.prev;
	struct sock_exterr_skb *told = (void *)last->cb;

	if ((void *)last == (void *)&sk->sk_error_queue)
		return 0;
	return BPF_CORE_READ(told, ee.ee_errno);
}

/*
 * An ICMP error that comes while the process is still inside connect(), as it does
 * over a veth, changes no state: the process hears of it and closes the socket.
 */
SEC("tp_btf/inet_sk_error_report")
int BPF_PROG(attempt_error, struct sock *sk)
{
	struct track *track;

	if (sk->sk_protocol != IPPROTO_TCP || sk->__sk_common.skc_state != TCP_SYN_SENT)
		return 0;
	track = bpf_sk_storage_get(&tracks, sk, 0, 0);
	if (track)
		track->error = sk->sk_err ? sk->sk_err : queued_error(sk);
	return 0;
}

/* An attempt that connect() says has failed, and of which no state change told. */
static __always_inline int attempt_failed(struct socket *socket, const void *address, int error)
{
	struct sockaddr_start start;
	struct sock *sk = socket->sk;
	struct connection c = {};
	struct track *track;

	if (!sk || !is_inet(sk) || sk->sk_protocol != IPPROTO_TCP || sk->__sk_common.skc_state != TCP_CLOSE)
		return 0;
	track = bpf_sk_storage_get(&tracks, sk, 0, 0);
	if (track && track->ended == REPORTED) {
		track->ended = RETURNED;
		return 0;
	}
	if (bpf_probe_read_kernel(&start, sizeof(start), address))
		return 0;
	if (start.family == AF_INET)
		mapped(c.endpoints.remote, start.address);
	else if (bpf_probe_read_kernel(c.endpoints.remote, sizeof(c.endpoints.remote), address + sizeof(start)))
		return 0;
	c.endpoints.remote_port = bpf_ntohs(start.port);
	load_attempt(&c, load_netns(&sk->__sk_common), error);
	emit(&c);
	return 0;
}

/* The end of connect() for TCP, after policies of cgroups, the route and the choice of a port. */
SEC("fexit/inet_stream_connect")
int BPF_PROG(connect_returns, struct socket *socket, const void *address, int length, int flags, int result)
{
	if (!result || result == -EINPROGRESS || result == -EALREADY || result == -EISCONN || result == -ERESTARTSYS ||
	    result == -EAFNOSUPPORT)
		return 0;
	return attempt_failed(socket, address, -result);
}

/* Security modules are asked before that. */
SEC("fexit/security_socket_connect")
int BPF_PROG(connect_checked, struct socket *socket, const void *address, int length, int result)
{
	return result ? attempt_failed(socket, address, -result) : 0;
}

/* The connections that are open. */
SEC("iter/bpf_sk_storage_map")
int list_open(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	const struct request *asked = request();
	struct track *track = ctx->value;
	struct connection c = {};
	struct sock *sk = ctx->sk;
	struct tcp_sock *tp;
	int state;

	if (!sk || !track || !asked || track->ended)
		return 0;
	if (track->start_ns < asked->since_ns && track->established_ns < asked->since_ns)
		return 0;
	state = sk->__sk_common.skc_state;
	if (state == TCP_CLOSE || state == TCP_LISTEN)
		return 0;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return 0;
	load_track(track, &c);
	load_counts(tp, &c);
	c.end = state == TCP_SYN_SENT || state == TCP_SYN_RECV ? CONNECTING : OPEN;
	if (wanted(&c))
		bpf_seq_write(ctx->meta->seq, &c, sizeof(c));
	return 0;
}

/* Who holds the listeners that were there before anyone watched. */
SEC("iter/task_file")
int find_listeners(struct bpf_iter__task_file *ctx)
{
	const struct request *asked = request();
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct socket *socket;
	struct track *track;
	struct sock *sk;

	if (!task || !file || !asked)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sk = socket->sk;
	if (!sk || !is_inet(sk) || sk->sk_protocol != IPPROTO_TCP || sk->__sk_common.skc_state != TCP_LISTEN)
		return 0;
	if (is_inherited(task, ctx->fd, file))
		return 0;
	track = sk_storage_of(&tracks, sk);
	/* Of several the lowest number; process 1 holds what it activates for others. */
	if (!track || (track->round == asked->round && track->owner.pid != 1))
		return 0;
	load_holder(task, &track->owner.pid, track->owner.comm);
	track->owner.cgroup = task_cgroup(task);
	track->owner.netns = load_netns(&sk->__sk_common);
	track->direction = INBOUND;
	track->round = asked->round;
	return 0;
}
