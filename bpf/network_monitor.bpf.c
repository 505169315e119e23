/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Packets of chosen interfaces, and TCP connections that this host opens.
 *
 * Packets are counted at tcx (or clsact). Unlike XDP it changes nothing on the interface. Unlike the device's own
 * counters it knows the number of wire packets in a GRO or TSO super-packet.
 */
#include "owner.h"
#include "ring.h"
#include "super_packets.h"

/* The verifier's context of an XDP program. */
struct xdp_md {
	__u32 data;
	__u32 data_end;
	__u32 data_meta;
	__u32 ingress_ifindex;
};

enum { TCX_NEXT = -1 }; /* = TC_ACT_UNSPEC: the next program decides */
enum { SLOTS = 64, PROBES = 8, EXTENSION_HEADERS = 6 };

enum protocol { TCP, UDP, ICMP, ARP, OTHER, PROTOCOLS };

struct count {
	__u64 bytes;              /* as on the wire, link-layer header included */
	__u64 packets[PROTOCOLS]; /* as on the wire */
};

/*
 * The counters of an interface's slot. Receive counters share a cache line with the interface number that they are
 * compared with.
 */
struct counters {
	__u32 ifindex;           /* 0 = the slot is free */
	__u32 link_header_bytes; /* 14 with an Ethernet header, 0 without (tun, WireGuard) */
	struct count rx;
	struct count tx;
	struct count xdp;
};

/*
 * Per CPU, so packets do not wait for each other. User space puts an interface within PROBES of ifindex % SLOTS; its
 * counters then only grow. An array slot costs 1-3 ns per packet; a hash look-up costs 35.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SLOTS);
	__type(key, __u32);
	__type(value, struct counters);
} counts SEC(".maps");

static __always_inline struct counters *counters_of(__u32 ifindex)
{
	for (int i = 0; i < PROBES; i++) {
		__u32 slot = (ifindex + i) % SLOTS;
		struct counters *counters = bpf_map_lookup_elem(&counts, &slot);

		if (counters && counters->ifindex == ifindex)
			return counters;
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

/* Hop-by-hop, routing and destination options: each has the next header and its own length in units of 8 bytes. */
static __always_inline bool is_extension(__u8 number)
{
	return number == 0 || number == 43 || number == 60;
}

/* A packet at an interface: its network header in linear data, and the end of that data. */
struct frame {
	struct __sk_buff *skb;
	__u8 *network, *end;
};

/*
 * One byte of the packet, at an offset from its network header: directly, or through the helper, since headers may lie
 * outside linear data.
 */
static __always_inline int byte_at(const struct frame *frame, __u32 offset, __u8 *byte)
{
	__u8 *at = frame->network + offset;

	if (at + 1 <= frame->end) {
		*byte = *at;
		return 0;
	}
	return bpf_skb_load_bytes_relative(frame->skb, offset, byte, 1, BPF_HDR_START_NET);
}

/* The transport protocol of a packet, and the offset of its header from the network header. */
static __always_inline int parse(const struct frame *frame, __u32 *offset)
{
	__u32 type = frame->skb->protocol;
	__u8 byte, length;

	*offset = 0;
	if (type == bpf_htons(ETH_P_IP)) {
		if (byte_at(frame, 0, &length) || byte_at(frame, 9, &byte))
			return OTHER;
		*offset = (length & 15) * 4;
		return l4(byte);
	}
	if (type == bpf_htons(ETH_P_IPV6)) {
		if (byte_at(frame, 6, &byte))
			return OTHER;
		*offset = 40;
		for (int i = 0; i < EXTENSION_HEADERS && is_extension(byte); i++) {
			if (byte_at(frame, *offset, &byte) || byte_at(frame, *offset + 1, &length))
				return OTHER;
			*offset += (length + 1) * 8;
		}
		return l4(byte);
	}
	return type == bpf_htons(ETH_P_ARP) ? ARP : OTHER;
}

/* The length of the transport header. */
static __always_inline __u32 transport_header(const struct frame *frame, int protocol, __u32 offset)
{
	__u8 data_offset;

	if (protocol != TCP)
		return 8;
	return byte_at(frame, offset + 12, &data_offset) ? 20 : (data_offset >> 4) * 4;
}

static __always_inline void count(struct __sk_buff *skb, struct count *c, __u32 link_header_bytes)
{
	struct frame frame = {
		.skb = skb,
		.network = (__u8 *)(long)skb->data + (link_header_bytes ? 14 : 0),
		.end = (__u8 *)(long)skb->data_end,
	};
	__u32 offset, segments = 1, bytes = skb->len;
	int protocol = parse(&frame, &offset);

	if (skb->gso_size) {
		/* Each wire packet repeats the headers before its part of the payload. */
		__u32 headers = protocol == TCP ? 0 : tunnel_headers(skb);

		if (!headers && (protocol == TCP || protocol == UDP))
			headers = offset + link_header_bytes + transport_header(&frame, protocol, offset);
		segments = skb->gso_segs;
		/* Packets of guests can have a gso_size without gso_segs. */
		if (!segments && skb->len > headers)
			segments = (skb->len - headers + skb->gso_size - 1) / skb->gso_size;
		if (!segments)
			segments = 1;
		bytes += (segments - 1) * headers;
	}
	c->bytes += bytes;
	c->packets[protocol] += segments;
}

SEC("tc")
int count_rx(struct __sk_buff *skb)
{
	struct counters *c = counters_of(skb->ifindex);

	if (c)
		count(skb, &c->rx, c->link_header_bytes);
	return TCX_NEXT;
}

SEC("tc")
int count_tx(struct __sk_buff *skb)
{
	struct counters *c = counters_of(skb->ifindex);

	if (c)
		count(skb, &c->tx, c->link_header_bytes);
	return TCX_NEXT;
}

/* The driver's view, on request: frames before GRO. */
SEC("xdp")
int count_xdp(struct xdp_md *ctx)
{
	struct counters *c = counters_of(ctx->ingress_ifindex);
	__u8 *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	int protocol = OTHER;

	if (!c)
		return XDP_PASS;
	if (c->link_header_bytes && data + 14 + 20 <= end) {
		__u16 type = *(__u16 *)(data + 12);

		if (type == bpf_htons(ETH_P_ARP))
			protocol = ARP;
		else if (type == bpf_htons(ETH_P_IP))
			protocol = l4(data[14 + 9]);
		else if (type == bpf_htons(ETH_P_IPV6))
			protocol = l4(data[14 + 6]);
	} else if (!c->link_header_bytes && data + 20 <= end) {
		protocol = l4(data[0] >> 4 == 4 ? data[9] : data[6]);
	}
	c->xdp.bytes += end - data;
	c->xdp.packets[protocol]++;
	return XDP_PASS;
}

/* A TCP connect() of this host: one record at its start, one with its outcome. */
struct connect {
	__u64 start_ns; /* CLOCK_MONOTONIC */
	__u64 end_ns;   /* 0 = still connecting */
	__u64 cookie;   /* of the socket */
	struct owner owner;
	struct endpoints endpoints;
	__u32 ifindex; /* of its route; 0 = unknown */
	__s32 error;   /* errno of a connect that failed */
	__u8 established;
	__u8 pad[7];
};
const struct connect *connect_type __attribute__((unused));

/* The caller of connect() on a socket, and the time. The outcome arrives in softirq, where `current` is arbitrary. */
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

__u64 lost; /* connects lost to a full ring buffer */

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
	bpf_ringbuf_submit(e, 0); /* wakes the reader at once, since a window may end with this connect */
}

/*
 * Not a kprobe or fentry on tcp_connect, which sees an attempt without its outcome. The state change is a stable
 * tracepoint for IPv4 and IPv6. The process that called connect() makes the change to SYN_SENT.
 */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(connect_state, struct sock *sk, int oldstate, int newstate)
{
	struct attempt *attempt;

	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	if (newstate == TCP_SYN_SENT) {
		attempt = sk_storage_of(&attempts, sk);
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
