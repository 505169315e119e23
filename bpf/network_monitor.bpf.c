/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Packets of chosen interfaces, and TCP connections that this host opens.
 *
 * Packets are counted at tcx (or clsact): unlike XDP it changes nothing on the
 * interface, and unlike the device's own counters it knows how many packets on
 * the wire a GRO or TSO super-packet stands for.
 */
#include "owner.h"

enum { TCX_NEXT = -1 }; /* = TC_ACT_UNSPEC: the next program decides */
enum { SLOTS = 64, PROBES = 8, EXTENSION_HEADERS = 6 };

enum protocol { TCP, UDP, ICMP, ARP, OTHER, PROTOCOLS };

struct count {
	__u64 packets; /* as on the wire */
	__u64 bytes;   /* as on the wire, link-layer header included */
	__u64 by_protocol[PROTOCOLS];
};

struct counters {
	struct count rx;
	struct count tx;
	struct count xdp;
};

struct interface {
	__u32 ifindex;           /* 0 = the slot is free */
	__u32 link_header_bytes; /* 14 with an Ethernet header, 0 without (tun, WireGuard) */
};

/* Which interface a slot counts. User space puts an interface within PROBES of ifindex % SLOTS. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SLOTS);
	__type(key, __u32);
	__type(value, struct interface);
} interfaces SEC(".maps");

/* Per CPU, so that no packet waits for another. A slot's counters only grow. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SLOTS);
	__type(key, __u32);
	__type(value, struct counters);
} counts SEC(".maps");

/* An array slot costs 1-3 ns a packet where a hash look-up costs 35. */
static __always_inline struct counters *counters_of(__u32 ifindex, __u32 *link_header_bytes)
{
	for (int i = 0; i < PROBES; i++) {
		__u32 slot = (ifindex + i) % SLOTS;
		struct interface *interface = bpf_map_lookup_elem(&interfaces, &slot);

		if (interface && interface->ifindex == ifindex) {
			*link_header_bytes = interface->link_header_bytes;
			return bpf_map_lookup_elem(&counts, &slot);
		}
	}
	return 0;
}

static __always_inline int l4(__u8 number)
{
	switch (number) {
	case IPPROTO_TCP:
		return TCP;
	case IPPROTO_UDP:
		return UDP;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return ICMP;
	}
	return OTHER;
}

/* Hop-by-hop, routing, destination options: each gives the next header and its own length in 8 bytes. */
static __always_inline bool is_extension(__u8 number)
{
	return number == 0 || number == 43 || number == 60;
}

/*
 * The transport protocol of a packet, and where its header starts, counted from
 * the network header. IPv4 is read where it lies; the rest through the helper,
 * since headers need not be in linear data.
 */
static __always_inline int parse(struct __sk_buff *skb, __u32 link_header_bytes, __u32 *offset)
{
	__u8 ip[10];

	*offset = 0;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		__u8 *linear = (void *)(long)skb->data + (link_header_bytes ? 14 : 0);

		if (linear + 20 <= (__u8 *)(long)skb->data_end) {
			*offset = (linear[0] & 15) * 4;
			return l4(linear[9]);
		}
		if (bpf_skb_load_bytes_relative(skb, 0, ip, sizeof(ip), BPF_HDR_START_NET))
			return OTHER;
		*offset = (ip[0] & 15) * 4;
		return l4(ip[9]);
	}
	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		__u8 next[2];

		if (bpf_skb_load_bytes_relative(skb, 6, next, 1, BPF_HDR_START_NET))
			return OTHER;
		*offset = 40;
		for (int i = 0; i < EXTENSION_HEADERS && is_extension(next[0]); i++) {
			if (bpf_skb_load_bytes_relative(skb, *offset, next, 2, BPF_HDR_START_NET))
				return OTHER;
			*offset += (next[1] + 1) * 8;
		}
		return l4(next[0]);
	}
	return skb->protocol == bpf_htons(ETH_P_ARP) ? ARP : OTHER;
}

static __always_inline void count(struct __sk_buff *skb, struct count *c, __u32 link_header_bytes)
{
	__u32 offset, segments = 1, bytes = skb->len;
	int protocol = parse(skb, link_header_bytes, &offset);

	if (skb->gso_size && (protocol == TCP || protocol == UDP)) {
		/* Each packet on the wire repeats the headers in front of its part of the payload. */
		__u32 headers = 8;
		__u8 data_offset;

		if (protocol == TCP) {
			if (bpf_skb_load_bytes_relative(skb, offset + 12, &data_offset, 1, BPF_HDR_START_NET))
				data_offset = 5 << 4;
			headers = (data_offset >> 4) * 4;
		}
		headers += offset + link_header_bytes;
		segments = skb->gso_segs;
		/* Packets of guests can have a gso_size and no gso_segs. */
		if (!segments && skb->len > headers)
			segments = (skb->len - headers + skb->gso_size - 1) / skb->gso_size;
		if (!segments)
			segments = 1;
		bytes += (segments - 1) * headers;
	}
	c->packets += segments;
	c->bytes += bytes;
	c->by_protocol[protocol] += segments;
}

SEC("tc")
int count_rx(struct __sk_buff *skb)
{
	__u32 link_header_bytes;
	struct counters *c = counters_of(skb->ifindex, &link_header_bytes);

	if (c)
		count(skb, &c->rx, link_header_bytes);
	return TCX_NEXT;
}

SEC("tc")
int count_tx(struct __sk_buff *skb)
{
	__u32 link_header_bytes;
	struct counters *c = counters_of(skb->ifindex, &link_header_bytes);

	if (c)
		count(skb, &c->tx, link_header_bytes);
	return TCX_NEXT;
}

/* The driver's view, for who asks for it: frames as they are handed over, before GRO. */
SEC("xdp")
int count_xdp(struct xdp_md *ctx)
{
	__u32 link_header_bytes;
	struct counters *c = counters_of(ctx->ingress_ifindex, &link_header_bytes);
	__u8 *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	int protocol = OTHER;

	if (!c)
		return XDP_PASS;
	if (link_header_bytes && data + 14 + 20 <= end) {
		__u16 type = *(__u16 *)(data + 12);

		if (type == bpf_htons(ETH_P_ARP))
			protocol = ARP;
		else if (type == bpf_htons(ETH_P_IP))
			protocol = l4(data[14 + 9]);
		else if (type == bpf_htons(ETH_P_IPV6))
			protocol = l4(data[14 + 6]);
	} else if (!link_header_bytes && data + 20 <= end) {
		protocol = l4(data[0] >> 4 == 4 ? data[9] : data[6]);
	}
	c->xdp.packets++;
	c->xdp.bytes += end - data;
	c->xdp.by_protocol[protocol]++;
	return XDP_PASS;
}

/* A TCP connect() of this host: once when it starts, and again when its outcome is known. */
struct connect {
	__u64 start_ns; /* CLOCK_MONOTONIC */
	__u64 end_ns;   /* 0 = still connecting */
	__u64 cookie;   /* of the socket */
	struct owner owner;
	struct endpoints endpoints;
	__u32 ifindex; /* where its route leads; 0 = not known */
	__s32 error;   /* errno of a connect that failed */
	__u8 established;
	__u8 pad[7];
};
const struct connect *connect_type __attribute__((unused));

/* Who called connect() on a socket, and when: its outcome arrives in softirq, where `current` is anyone. */
struct attempt {
	__u64 start_ns;
	struct owner owner;
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct attempt);
} attempts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 512 * 1024);
} connects SEC(".maps");

__u64 lost; /* connects that found the ring buffer full */

static __always_inline void emit(struct sock *sk, struct attempt *attempt, __u64 end_ns, bool established)
{
	struct connect *e = bpf_ringbuf_reserve(&connects, sizeof(*e), 0);

	if (!e) {
		__sync_fetch_and_add(&lost, 1);
		return;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->start_ns = attempt->start_ns;
	e->end_ns = end_ns;
	e->cookie = bpf_get_socket_cookie(sk);
	e->owner = attempt->owner;
	sock_endpoints(sk, &e->endpoints);
	e->ifindex = BPF_CORE_READ(sk, sk_dst_cache, dev, ifindex);
	e->established = established;
	if (end_ns && !established)
		e->error = BPF_CORE_READ(sk, sk_err);
	bpf_ringbuf_submit(e, 0);
}

/*
 * Not tcp_connect (a kprobe or fentry, and it sees an attempt, not an outcome):
 * the state change is a stable tracepoint, for IPv4 and IPv6 alike. The change
 * to SYN_SENT is made by the process that called connect().
 */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(connect_state, struct sock *sk, int oldstate, int newstate)
{
	struct attempt *attempt;

	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	if (newstate == TCP_SYN_SENT) {
		attempt = bpf_sk_storage_get(&attempts, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
		if (!attempt) {
			__sync_fetch_and_add(&lost, 1);
			return 0;
		}
		attempt->start_ns = bpf_ktime_get_ns();
		current_owner(&attempt->owner);
		attempt->owner.netns = sock_netns(sk);
		emit(sk, attempt, 0, false);
		return 0;
	}
	if (oldstate != TCP_SYN_SENT)
		return 0;
	attempt = bpf_sk_storage_get(&attempts, sk, 0, 0);
	if (attempt)
		emit(sk, attempt, bpf_ktime_get_ns(), newstate == TCP_ESTABLISHED || newstate == TCP_SYN_RECV);
	return 0;
}
