/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Fields that tracing programs read from a packet. User space parses names and ports; these fields only distinguish
 * flows.
 */
#pragma once
#include "cast.h"

/* The first bytes from the network header on: IPv6, an extension header or two, and the ports. */
enum { HEADER = 64 };

/* Direct loads: the verifier knows `skb`, and a faulting load reads 0. Without a helper each costs 1 ns. */
static __always_inline __u64 network_header(struct sk_buff *skb)
{
	/* Unset if a packet is dropped before the stack parses it. */
	if (!skb->network_header)
		return (__u64)skb->data;
	return (__u64)skb->head + skb->network_header;
}

/* Copies the linear part from `from` on; `to` was zeroed. Returns the number of bytes. */
static __always_inline __u32 copy_from(struct sk_buff *skb, __u8 to[HEADER], __u64 from)
{
	__u64 end = (__u64)skb->head + skb->tail, length = end - from;

	if (end <= from)
		return 0;
	if (length > HEADER)
		length = HEADER;
	return bpf_probe_read_kernel(to, length & (2 * HEADER - 1), (void *)from) ? 0 : length;
}

/* Unix and netlink sockets send packets without protocol and headers. */
static __always_inline __u32 copy_header(struct sk_buff *skb, __u8 to[HEADER])
{
	return skb->protocol ? copy_from(skb, to, network_header(skb)) : 0;
}

/* The fields that distinguish IPv4 flows. */
struct ipv4 {
	__be32 source;
	__be32 destination;
	__u32 word; /* the first word behind the IP header: ports, or type and code */
	__be16 fragment;
	__u8 protocol;
	__u8 offset; /* its offset */
};

/*
 * Reads the flow in place with a few loads; `copy_from` needs a helper of 25 ns. False if the packet has another
 * protocol or lies in pages, or if the kernel is too old: then it must be copied.
 */
static __always_inline bool read_ipv4(struct sk_buff *skb, __u64 from, struct ipv4 *ip)
{
	__u64 end = (__u64)skb->head + skb->tail;
	const struct udphdr *transport;
	const struct iphdr *header;

	if (skb->protocol != bpf_htons(ETH_P_IP) || !bpf_ksym_exists(bpf_rdonly_cast) || end < from + 24)
		return false;
	header = cast_to(iphdr, from);
	ip->offset = (*(const __u8 *)header & 15) * 4;
	if (end < from + ip->offset + sizeof(ip->word))
		return false;
	ip->source = header->saddr;
	ip->destination = header->daddr;
	ip->fragment = header->frag_off & bpf_htons(0x1fff);
	ip->protocol = header->protocol;
	transport = cast_to(udphdr, from + ip->offset);
	ip->word = transport->source | (__u32)transport->dest << 16;
	return true;
}

/* Bytes at an offset from the packet. The barrier keeps the mask, from which the verifier knows the bound. */
static __always_inline __u8 byte_at(const __u8 *header, __u32 offset)
{
	barrier_var(offset);
	return header[offset & (HEADER - 1)];
}

static __always_inline __u32 word_at(const __u8 *header, __u32 offset)
{
	barrier_var(offset);
	return *(const __u32 *)(header + (offset & (HEADER - 4)));
}

static __always_inline __u64 mix(__u64 hash, __u64 word)
{
	hash = (hash ^ word) * 0x9e3779b97f4a7c15ull;
	return hash ^ (hash >> 29);
}

static __always_inline __u64 mix_word(__u64 hash, __u32 word, __u8 protocol)
{
	if (protocol == IPPROTO_TCP || protocol == IPPROTO_UDP)
		return mix(hash, word);
	if (protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6)
		return mix(hash, word & bpf_htonl(0xffff0000)); /* type and code, not the checksum */
	return hash;
}

static __always_inline __u64 mix_transport(__u64 hash, const __u8 *header, __u32 offset, __u8 protocol)
{
	hash = mix(hash, protocol);
	return offset > HEADER - 4 ? hash : mix_word(hash, word_at(header, offset), protocol);
}

/* Like `mix_flow`. */
static __always_inline __u64 mix_ipv4(__u64 hash, const struct ipv4 *ip)
{
	hash = mix(hash, bpf_htons(ETH_P_IP));
	hash = mix(mix(hash, (__u64)ip->source << 32 | ip->destination), ip->protocol);
	return ip->fragment ? hash : mix_word(hash, ip->word, ip->protocol);
}

/* The fields that identify a flow: addresses, protocol, ports. `header` is aligned to 8 bytes. */
static __always_inline __u64 mix_flow(__u64 hash, const __u8 *header, __be16 protocol)
{
	const __u32 *words = (const void *)header;
	__u32 offset;
	__u8 next;

	hash = mix(hash, protocol);
	if (protocol == bpf_htons(ETH_P_IP)) {
		hash = mix(hash, (__u64)words[3] << 32 | words[4]);
		if (words[1] & bpf_htonl(0x1fff)) /* only a first fragment has ports */
			return mix(hash, header[9]);
		return mix_transport(hash, header, (header[0] & 15) * 4, header[9]);
	}
	if (protocol == bpf_htons(ETH_P_IPV6)) {
		for (int i = 2; i < 10; i += 2)
			hash = mix(hash, (__u64)words[i] << 32 | words[i + 1]);
		next = header[6];
		offset = 40;
		/* Hop-by-hop, routing and destination options: next header, and the length in units of 8 bytes. */
		for (int i = 0; i < 2 && (next == 0 || next == 43 || next == 60) && offset <= HEADER - 8; i++) {
			__u32 at = offset;

			next = byte_at(header, at);
			offset += (byte_at(header, at + 1) + 1) * 8;
		}
		return mix_transport(hash, header, offset, next);
	}
	if (protocol == bpf_htons(ETH_P_ARP)) /* sender and target */
		return mix(mix(hash, (__u64)words[3] << 32 | words[4]), words[6]);
	return hash;
}
