/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Packets of chosen interfaces, and TCP connections that this host opens.
 *
 * Packets are counted at tcx (or clsact): unlike XDP it changes nothing on the
 * interface, and unlike the device's own counters it knows how many packets on
 * the wire a GRO or TSO super-packet stands for.
 */
#include "owner.h"
#include "super_packets.h"

/* As the verifier shows a packet to a program at XDP. */
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

/* What the slot of an interface counts: what arrives shares a cache line with the interface that it is compared with.
 */
struct counters {
	__u32 ifindex;           /* 0 = the slot is free */
	__u32 link_header_bytes; /* 14 with an Ethernet header, 0 without (tun, WireGuard) */
	struct count rx;
	struct count tx;
	struct count xdp;
};

/*
 * Per CPU, so that no packet waits for another. User space puts an interface
 * within PROBES of ifindex % SLOTS; its counters then only grow. An array slot
 * costs 1-3 ns a packet where a hash look-up costs 35.
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

/* Hop-by-hop, routing, destination options: each gives the next header and its own length in 8 bytes. */
static __always_inline bool is_extension(__u8 number)
{
	return number == 0 || number == 43 || number == 60;
}

/* A packet of an interface: its network header, as far as it is in linear data, and the end of that. */
struct frame {
	struct __sk_buff *skb;
	__u8 *network, *end;
};

/*
 * A byte of the packet, counted from its network header: where it lies, or
 * through the helper, since headers need not be in linear data.
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

/* The transport protocol of a packet, and where its header starts, counted from the network header. */
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
		/* Each packet on the wire repeats the headers in front of its part of the payload. */
		__u32 headers = protocol == TCP ? 0 : tunnel_headers(skb);

		if (!headers && (protocol == TCP || protocol == UDP))
			headers = offset + link_header_bytes + transport_header(&frame, protocol, offset);
		segments = skb->gso_segs;
		/* Packets of guests can have a gso_size and no gso_segs. */
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

/* The driver's view, for who asks for it: frames as they are handed over, before GRO. */
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
