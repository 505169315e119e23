/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * DNS messages at interfaces, of every network namespace.
 *
 * At the device instead of a socket: no socket tracepoint shows sent data. The program sees a message at each interface
 * that it passes; user space parses these and merges them.
 */
#include "holders.h"
#include "next.h"
#include "packet.h"
#include "ring.h"

enum { DNS = 53, MDNS = 5353 };

/*
 * An IPv6 header, a TCP header with options, and a message of the maximal UDP size without EDNS. Most packets are far
 * shorter, and use only their size in the ring buffer.
 */
enum { CAPTURE = 640, SHORT = 160 };

/* A part of a TCP segment: its headers, and a message as far as `limits::DNS_CAPTURE`, with its length. */
enum { HEADS = 128, PIECE = CAPTURE - HEADS, SHORT_PIECE = 128 };

/* The kind of a record: UDP; a segment of TCP, or a part of one; a part that begins with a message length. */
enum { DATAGRAM, SEGMENT, BEGINS };

/* RFC 1035: six numbers, then at least this number of bytes per question and per record. */
enum { DNS_HEADER = 12, QUESTION = 5, RECORD = 11 };
enum { QUESTIONS = 16, RESPONSE = 0x8000, OPCODE = 0x7800, TRUNCATED = 0x0200 };

/* A packet at an interface. */
struct sight {
	__u64 time_ns;
	__u64 socket; /* cookie of its socket, or its address without a cookie; 0 = not sent here */
	struct owner owner;
	__u32 ifindex;
	__u32 netns; /* of the interface */
	__u16 protocol;
	__u16 port;   /* of the socket */
	__u16 length; /* copied bytes */
	__u8 egress;
	__u8 segment; /* of TCP: SEGMENT or BEGINS */
};

struct message {
	struct sight sight;
	__u8 data[CAPTURE]; /* from the network header on */
};
const struct message *message_type __attribute__((unused));

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1024 * 1024); /* 4,500 short packets */
} messages SEC(".maps");

__u64 lost; /* messages lost to a full ring buffer */
/* Packets of sockets connected to port 53 that leave for another port: an address translation changed it. */
__u64 translated;

static __always_inline bool is_dns(__u16 port)
{
	return port == DNS || port == MDNS;
}

static __always_inline bool has_dns_ports(const struct ipv4 *ip)
{
	__u32 ports = bpf_ntohl(ip->word);

	return !ip->fragment && (ip->protocol == IPPROTO_UDP || ip->protocol == IPPROTO_TCP) &&
	       (is_dns(ports >> 16) || is_dns(ports & 0xffff));
}

/* An outgoing packet has its socket, which usually decides without reading the packet. */
static __always_inline bool is_of_other_ports(const struct sock *sk)
{
	__u8 state = sk->__sk_common.skc_state;
	__u16 remote = bpf_ntohs(sk->__sk_common.skc_dport);

	if (state == TCP_TIME_WAIT || state == TCP_NEW_SYN_RECV || !is_inet(sk))
		return false;
	return remote && !is_dns(remote) && !is_dns(sk->__sk_common.skc_num);
}

/* Whether an outgoing packet has its socket's source port, but another destination port than the socket's DNS port. */
static __always_inline bool is_translated(const struct sock *sk, __u32 ports)
{
	__u8 state = sk->__sk_common.skc_state;

	if (state == TCP_TIME_WAIT || state == TCP_NEW_SYN_RECV || !is_inet(sk))
		return false;
	return bpf_ntohs(sk->__sk_common.skc_dport) == DNS && ports >> 16 == sk->__sk_common.skc_num;
}

/* The possible position and length of a packet's DNS message. */
struct payload {
	__u32 transport;
	__u32 offset;
	__u32 length;
	__u32 sequence; /* of TCP: of the first byte */
	__u32 ports;    /* if these are not DNS ports */
	bool is_segment;
	bool is_first; /* of its stream */
};

enum { HOP_BY_HOP = 0, ROUTING = 43, FRAGMENT = 44, AUTHENTICATION = 51, OPTIONS = 60, MOBILITY = 135, EXTENSIONS = 8 };

#define IPV6_HEADER 40

static __always_inline bool is_extension(__u32 header)
{
	return header == HOP_BY_HOP || header == ROUTING || header == FRAGMENT || header == AUTHENTICATION ||
	       header == OPTIONS || header == MOBILITY;
}

/*
 * The header behind the IPv6 extension headers of a packet in the memory from `from` to `end`: its offset times 256,
 * and its protocol. 0 if it is not there, as in a fragment after the first. A global function: the verifier checks it
 * once.
 */
__noinline int behind_extensions(__u64 from, __u64 end, __u32 protocol)
{
	__u32 offset = IPV6_HEADER;
	__u8 header[4];

	for (int i = 0; i < EXTENSIONS && is_extension(protocol); i++) {
		if (from + offset + 8 > end || bpf_probe_read_kernel(header, sizeof(header), (void *)(from + offset)))
			return 0;
		if (protocol == FRAGMENT && (header[2] || header[3] & ~7))
			return 0;
		if (protocol == FRAGMENT)
			offset += 8;
		else if (protocol == AUTHENTICATION)
			offset += (header[1] + 2) * 4;
		else
			offset += (header[1] + 1) * 8;
		protocol = header[0];
	}
	return offset << 8 | (protocol & 0xff);
}

/* Whether the headers are of UDP, or of TCP with data or of its first segment, from or to a port of DNS. */
static __always_inline bool find_payload(struct sk_buff *skb, __u64 from, const __u8 *header, __u32 bytes,
					 struct payload *payload)
{
	__u32 offset = (header[0] & 15) * 4, at, ports, behind;
	__u8 far[HEADER] __attribute__((aligned(8))) = {}, protocol = header[9];

	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		protocol = header[6];
		offset = IPV6_HEADER;
		if (is_extension(protocol)) {
			behind = behind_extensions(number_of(from), number_of((__u64)skb->head + skb->tail), protocol);
			if (!behind)
				return false;
			protocol = behind;
			offset = behind >> 8;
		}
	} else if (word_at(header, 4) & bpf_htonl(0x1fff)) {
		return false; /* only a first fragment has ports */
	}
	if (protocol != IPPROTO_UDP && protocol != IPPROTO_TCP)
		return false;
	payload->transport = at = offset;
	if (offset > HEADER - 16) { /* behind options or extensions */
		at = 0;
		header = far;
		if (!copy_from(skb, far, from + offset))
			return false;
	}
	ports = bpf_ntohl(word_at(header, at));
	if (!is_dns(ports >> 16) && !is_dns(ports & 0xffff)) {
		payload->ports = ports;
		return false;
	}
	payload->is_segment = protocol == IPPROTO_TCP;
	payload->is_first = false;
	if (payload->is_segment) {
		payload->offset = offset + (byte_at(header, at + 12) >> 4) * 4;
		payload->length = bytes - payload->offset;
		payload->is_first = byte_at(header, at + 13) & 2; /* SYN */
		payload->sequence = bpf_ntohl(word_at(header, at + 4)) + payload->is_first;
	} else {
		/* The UDP length, since this may be the first of several fragments. */
		payload->offset = offset + 8;
		payload->length = (bpf_ntohl(word_at(header, at + 4)) >> 16) - 8;
	}
	return bytes > payload->offset || (payload->is_first && bytes == payload->offset);
}

/*
 * Addresses in a packet. The verifier treats a value from a map as a number. On some builds of Linux 6.18 it treats an
 * address from a packet as a pointer, and refuses some arithmetic with it.
 */
struct bounds {
	__u64 from; /* network header */
	__u64 data;
	__u64 end; /* of the linear part */
};

struct bpf_dynptr {
	__u64 opaque[2];
} __attribute__((aligned(8)));

/* Linux 6.12 and newer; the only access to data in pages, which TCP uses for sent data. */
extern int bpf_dynptr_from_skb(struct __sk_buff *skb, __u64 flags, struct bpf_dynptr *dynptr) __ksym __weak;

/*
 * Copies at most `max` bytes, a constant; returns the number. The caller's dynptr must live as long as the program:
 * nothing else may reuse its stack slot.
 */
static __always_inline __u32 copy(struct sk_buff *skb, const struct bounds *bounds, struct bpf_dynptr *dynptr, __u8 *to,
				  __u64 from, __u32 bytes, const __u32 max)
{
	__u64 end = bounds->end, linear = end > from ? end - from : 0;
	__u32 length = bytes < max ? bytes : max;

	if (linear < length && bpf_ksym_exists(bpf_dynptr_from_skb)) {
		if (bpf_dynptr_from_skb((void *)skb, 0, dynptr))
			return 0;
		barrier_var(length);
		if (length > max)
			return 0;
		return bpf_dynptr_read(to, length, dynptr, from - bounds->data, 0) ? 0 : length;
	}
	if (linear < length)
		length = linear;
	barrier_var(length);
	if (length > max)
		return 0;
	return bpf_probe_read_kernel(to, length, (void *)from) ? 0 : length;
}

static __always_inline __u32 number_at(const __u8 *bytes, int offset)
{
	return bytes[offset] << 8 | bytes[offset + 1];
}

/* Whether a query or answer of `length` bytes can begin like this. A truncated one may count omitted records. */
static __always_inline bool begins(const __u8 *header, __u32 length)
{
	__u32 flags = number_at(header, 2), questions = number_at(header, 4), least = DNS_HEADER + QUESTION * questions;

	if (!(flags & TRUNCATED))
		least += RECORD * (number_at(header, 6) + number_at(header, 8) + number_at(header, 10));
	if (flags & OPCODE || least > length)
		return false;
	return flags & RESPONSE ? questions <= QUESTIONS : questions > 0;
}

/* Other traffic of these ports (tunnels, scans, floods) must not use the slots of queries. */
static __always_inline bool is_message(struct sk_buff *skb, const struct bounds *bounds, struct bpf_dynptr *dynptr,
				       const struct payload *payload)
{
	__u8 start[DNS_HEADER] = {};

	if (payload->length < DNS_HEADER)
		return false;
	if (copy(skb, bounds, dynptr, start, bounds->from + payload->offset, payload->length, sizeof(start)) <
	    DNS_HEADER)
		return true; /* unreadable data passes */
	return begins(start, payload->length);
}

/* Once for all messages of a packet. */
static __always_inline void describe(struct sk_buff *skb, struct sight *sight, bool egress)
{
	const struct sock *sk = untrusted(sk_buff, skb)->sk;

	sight->time_ns = bpf_ktime_get_ns();
	sight->socket = socket_of(skb);
	sight->ifindex = BPF_CORE_READ(skb, dev, ifindex);
	sight->netns = BPF_CORE_READ(skb, dev, nd_net.net, ns.inum);
	sight->protocol = bpf_ntohs(skb->protocol);
	sight->port = 0;
	sight->segment = DATAGRAM;
	__builtin_memset(&sight->owner, 0, sizeof(sight->owner));
	sight->egress = egress;
	if (sk) {
		sight->port = BPF_CORE_READ(sk, __sk_common.skc_num);
		sight->owner.netns = sock_netns(sk);
		if (egress && current_owns(sk))
			current_owner(&sight->owner);
	}
}

/* A record of the ring buffer, with room for `room` bytes of the packet: a constant. */
static __always_inline int tell(struct sk_buff *skb, const struct bounds *bounds, struct bpf_dynptr *dynptr,
				__u32 bytes, const struct sight *sight, const __u32 room)
{
	struct message *m = bpf_ringbuf_reserve(&messages, __builtin_offsetof(struct message, data) + room, 0);

	if (!m) {
		__sync_fetch_and_add(&lost, 1);
		return 0;
	}
	m->sight = *sight;
	m->sight.length = copy(skb, bounds, dynptr, m->data, bounds->from, bytes, room);
	bpf_ringbuf_submit(m, wake_flags(sizeof(m->sight) + room));
	return 0;
}

#include "dns_streams.h"

/* What the fast path could not rule out. */
static __always_inline void look_at(struct sk_buff *skb, __u64 from, bool egress)
{
	__u8 header[HEADER] __attribute__((aligned(8))) = {};
	struct sock *sk = skb->sk;
	struct bpf_dynptr dynptr;
	struct payload payload = {};
	struct segment *s;
	__u32 bytes = skb->len - (from - (__u64)skb->data), zero = 0;
	__u64 at;

	if (!copy_from(skb, header, from) || !find_payload(skb, from, header, bytes, &payload)) {
		if (egress && sk && payload.ports && is_translated(sk, payload.ports))
			__sync_fetch_and_add(&translated, 1);
		return;
	}
	s = bpf_map_lookup_elem(&segments, &zero);
	if (!s)
		return;
	s->bounds.from = from;
	s->bounds.data = (__u64)skb->data;
	s->bounds.end = (__u64)skb->head + skb->tail;
	barrier();
	if (!payload.is_segment && !is_message(skb, &s->bounds, &dynptr, &payload))
		return;
	describe(skb, &s->sight, egress);
	if (!payload.is_segment && bytes <= SHORT) {
		tell(skb, &s->bounds, &dynptr, bytes, &s->sight, SHORT);
	} else if (!payload.is_segment) {
		tell(skb, &s->bounds, &dynptr, bytes, &s->sight, CAPTURE);
	} else {
		s->transport = payload.transport;
		s->head = payload.offset;
		s->sequence = payload.sequence;
		s->length = payload.length;
		at = (__u64)s->sight.netns << 32 | s->sight.ifindex;
		see_segment(skb, s, mix_flow(mix(mix(0, at), egress), header, skb->protocol), payload.is_first);
	}
}

/* Every packet passes here. For most, the protocol, the socket's ports or the packet's own ports decide. */
static __always_inline void see(struct sk_buff *skb, __u64 from, bool egress)
{
	struct sock *sk = skb->sk;
	struct ipv4 ip;

	if (skb->protocol != bpf_htons(ETH_P_IP) && skb->protocol != bpf_htons(ETH_P_IPV6))
		return;
	if (sk && is_of_other_ports(sk))
		return;
	if (!read_ipv4(skb, from, &ip) || has_dns_ports(&ip))
		look_at(skb, from, egress);
	else if (egress && sk && !ip.fragment && is_translated(sk, bpf_ntohl(ip.word)))
		__sync_fetch_and_add(&translated, 1);
}

NEXT_OF(sent);
NEXT_OF(received);

/* At queueing: still in the sender's context, unless the packet waited for a neighbor. */
SEC("tp_btf/net_dev_queue")
int BPF_PROG(sent, struct sk_buff *skb)
{
	see(skb, network_header(skb), true);
	RUN_NEXT(sent);
	return 0;
}

/* The stack's entry point, once per GRO packet; here `data` is at the network header. */
SEC("tp_btf/netif_receive_skb")
int BPF_PROG(received, struct sk_buff *skb)
{
	see(skb, (__u64)skb->data, false);
	RUN_NEXT(received);
	return 0;
}
