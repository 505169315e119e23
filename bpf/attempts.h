/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Attempts to connect that end before a packet exists and before any state changes.
 *
 * Where fexit programs load, they read the result of connect() and cost nothing else. Elsewhere the route look-up shows
 * an attempt without a route. Its tracepoint sees every look-up of the host, so the program returns at once if a route
 * was found.
 */
#pragma once
#include "tracks.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

/* A route look-up: its key and its result. */
struct flowi_common {
	__u8 flowic_proto;
};

struct flow_ports {
	__be16 dport;
	__be16 sport;
};

union flowi_uli {
	struct flow_ports ports;
};

struct flowi4 {
	struct flowi_common __fl_common;
	__be32 saddr;
	__be32 daddr;
	union flowi_uli uli;
};

struct flowi6 {
	struct flowi_common __fl_common;
	struct in6_addr daddr;
	struct in6_addr saddr;
	union flowi_uli uli;
};

struct fib6_result {
	struct fib6_info *f6i;
	__u32 fib6_flags;
	__u8 fib6_type;
};

struct fib6_table {
	__u32 tb6_id;
};

#pragma clang attribute pop

enum { RTN_BLACKHOLE = 6, RTN_UNREACHABLE = 7, RTN_PROHIBIT = 8, RTN_THROW = 9 };
enum { RTF_REJECT = 0x200, RT6_TABLE_MAIN = 254 };
enum { CONNECT_X86_64 = 42, CONNECT_ARM64 = 203 };
enum { UNDECIDED = 4096 };
enum { AGAIN = 1 << 30 }; /* replaces a table's number: one attempt looked into the same table again */

/* A look-up without a result in one table, on a host whose rules may name another table. */
struct undecided {
	struct connection connection;
	__u32 table; /* the attempt's first table: seeing it again means a new attempt */
	__u32 pad;
};
const struct undecided *undecided_type __attribute__((unused));

/* By thread. Entries that remain at the end of a window are failed attempts. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, UNDECIDED);
	__type(key, __u32);
	__type(value, struct undecided);
} undecided SEC(".maps");

/*
 * Approximate number of entries. It is alone in .data, which user space overwrites with it while nothing is attached.
 */
__u64 undecided_entries SEC(".data") = 0;

struct sockaddr_start {
	__u16 family;
	__be16 port;
	__be32 address;
};

/*
 * Whether the running process is in connect() to this destination. The look-up may belong to another packet, handled by
 * an interrupt in this process.
 */
static __always_inline bool connects_to(struct task_struct *task, const __u8 address[16], __be16 port)
{
	struct pt_regs *regs = (void *)bpf_task_pt_regs(task);
	const void *pointer;
	struct sockaddr_start start;
	struct in6_addr ipv6;
	const __u32 *word = (const void *)address;

	if (bpf_core_field_exists(regs->orig_ax)) {
		if (regs->orig_ax != CONNECT_X86_64)
			return false;
		pointer = (void *)regs->si;
	} else {
		if (regs->syscallno != CONNECT_ARM64)
			return false;
		pointer = (void *)regs->regs[1];
	}
	if (bpf_probe_read_user(&start, sizeof(start), pointer) || start.port != port)
		return false;
	if (start.family == AF_INET)
		return start.address == word[3];
	if (bpf_probe_read_user(&ipv6, sizeof(ipv6), pointer + sizeof(start)))
		return false;
	return ipv6.in6_u.u6_addr32[3] == word[3];
}

/* Fills in the process; the caller has set the destination. */
static __always_inline void load_attempt(struct connection *c, __u32 netns, int error)
{
	current_owner(&c->owner);
	c->owner.netns = netns;
	c->start_ns = c->end_ns = bpf_ktime_get_ns();
	c->direction = OUTBOUND;
	c->end = FAILED;
	c->error = error;
}

/* No route in this table, but there may be another table. The next action of the thread decides. */
static __always_inline void not_in(__u32 table, const struct connection *c)
{
	__u32 thread = bpf_get_current_pid_tgid();
	struct undecided *earlier = bpf_map_lookup_elem(&undecided, &thread),
			 now = { .connection = *c, .table = table };

	if (earlier && earlier->table != table)
		return; /* the same attempt, in its next table */
	if (earlier)
		emit(&earlier->connection);
	else
		__sync_fetch_and_add(&undecided_entries, 1);
	if (bpf_map_update_elem(&undecided, &thread, &now, BPF_ANY)) {
		__sync_fetch_and_add(&undecided_entries, -1);
		__sync_fetch_and_add(&figures.lost, 1);
	}
}

/* The thread's attempt found a route. */
static __always_inline void decided(void)
{
	__u32 thread = bpf_get_current_pid_tgid();

	if (!bpf_map_delete_elem(&undecided, &thread))
		__sync_fetch_and_add(&undecided_entries, -1);
}

/* A look-up for TCP, unless it found a route and nothing is undecided. */
static __always_inline void look_at_ipv4(__u32 table, const struct flowi4 *flow, int error)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct connection c = {};
	struct net *net;
	bool more = false;

	mapped(c.endpoints.local, flow->saddr);
	mapped(c.endpoints.remote, flow->daddr);
	if (!connects_to(task, c.endpoints.remote, flow->uli.ports.dport))
		return;
	if (!error) {
		decided();
		return;
	}
	c.endpoints.remote_port = bpf_ntohs(flow->uli.ports.dport);
	net = task->nsproxy->net_ns;
	if (bpf_core_field_exists(net->ipv4.fib_has_custom_rules))
		more = net->ipv4.fib_has_custom_rules || net->ipv4.fib_default;
	load_attempt(&c, net->ns.inum, error == -EAGAIN ? ENETUNREACH : -error);
	if (error == -EAGAIN && more)
		not_in(table, &c);
	else
		emit(&c);
}

SEC("tp_btf/fib_table_lookup")
int BPF_PROG(route_ipv4, __u32 table, const struct flowi4 *flow, const void *next_hop, int error)
{
	if ((error || undecided_entries) && flow->__fl_common.flowic_proto == IPPROTO_TCP)
		look_at_ipv4(table, flow, error);
	return 0;
}

/* The error that a rejecting route makes connect() return. The table's own null entry means that there is no route. */
static __always_inline int route_error(const struct net *net, const struct fib6_result *result)
{
	if (result->f6i == net->ipv6.fib6_null_entry)
		return ENETUNREACH;
	switch (result->fib6_type) {
	case RTN_BLACKHOLE:
		return EINVAL;
	case RTN_UNREACHABLE:
		return EHOSTUNREACH;
	case RTN_PROHIBIT:
		return EACCES;
	}
	return ENETUNREACH;
}

static __always_inline bool has_rules(const struct net *net)
{
	return !bpf_core_field_exists(net->ipv6.fib6_has_custom_rules) || net->ipv6.fib6_has_custom_rules;
}

static __always_inline bool no_address(const struct in6_addr *address)
{
	const __u32 *word = address->in6_u.u6_addr32;

	return !(word[0] | word[1] | word[2] | word[3]);
}

/* Without a source address, IPv6 looks the route up again, with the address that it chose. */
static __always_inline void look_at_ipv6(const struct net *net, const struct fib6_result *result, __u32 table,
					 const struct flowi6 *flow, bool found)
{
	struct connection c = {};
	bool last;
	int error;

	copy_address(c.endpoints.local, &flow->saddr);
	copy_address(c.endpoints.remote, &flow->daddr);
	if (!connects_to(bpf_get_current_task_btf(), c.endpoints.remote, flow->uli.ports.dport))
		return;
	if (found) {
		decided();
		return;
	}
	c.endpoints.remote_port = bpf_ntohs(flow->uli.ports.dport);
	error = route_error(net, result);
	load_attempt(&c, net->ns.inum, error);
	/* The local table comes before the main one, and no table comes after main; but rules can add more. */
	last = error != ENETUNREACH || (!has_rules(net) && table == RT6_TABLE_MAIN);
	if (no_address(&flow->saddr)) {
		not_in(table, &c);
	} else if (!last) {
		not_in(table | AGAIN, &c);
	} else {
		if (undecided_entries)
			decided();
		emit(&c);
	}
}

SEC("tp_btf/fib6_table_lookup")
int BPF_PROG(route_ipv6, const struct net *net, const struct fib6_result *result, struct fib6_table *table,
	     const struct flowi6 *flow)
{
	bool found = !(result->fib6_flags & RTF_REJECT);

	if ((!found || undecided_entries) && flow->__fl_common.flowic_proto == IPPROTO_TCP)
		look_at_ipv6(net, result, table->tb6_id, flow, found);
	return 0;
}

/* An attempt that failed in connect() without a state change. */
static __always_inline int attempt_failed(struct socket *socket, const void *address, int error)
{
	struct sockaddr_start start;
	struct sock *sk = socket->sk;
	struct connection c = {};
	struct track *track;

	if (!sk || !is_inet(sk) || sk->sk_protocol != IPPROTO_TCP || sk->__sk_common.skc_state != TCP_CLOSE)
		return 0;
	track = known_track(sk);
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

/* Security modules decide before that. */
SEC("fexit/security_socket_connect")
int BPF_PROG(connect_checked, struct socket *socket, const void *address, int length, int result)
{
	return result ? attempt_failed(socket, address, -result) : 0;
}
