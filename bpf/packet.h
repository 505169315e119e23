/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* What tracing programs read of a packet. Names and ports are for user space to parse; here is only what tells flows
 * apart. */
#pragma once
#include "kernel.h"

/* The first bytes from the network header on: IPv6, an extension header or two, and the ports. */
enum { HEADER = 64 };

/* Direct loads: the verifier knows `skb`, and a load that faults reads 0. No helper, so 1 ns each. */
static __always_inline __u64 network_header(struct sk_buff *skb)
{
	/* Not set yet where a packet dies before the stack has looked at it. */
	if (!skb->network_header)
		return (__u64)skb->data;
	return (__u64)skb->head + skb->network_header;
}

/* Copies what the linear part holds from `from` on; `to` was zeroed. Returns the number of bytes. */
static __always_inline __u32 copy_from(struct sk_buff *skb, __u8 to[HEADER], __u64 from)
{
	__u64 end = (__u64)skb->head + skb->tail, length = end - from;

	if (end <= from)
		return 0;
	if (length > HEADER)
		length = HEADER;
	return bpf_probe_read_kernel(to, length & (2 * HEADER - 1), (void *)from) ? 0 : length;
}

/* Unix and netlink sockets send packets of no protocol and without headers. */
static __always_inline __u32 copy_header(struct sk_buff *skb, __u8 to[HEADER])
{
	return skb->protocol ? copy_from(skb, to, network_header(skb)) : 0;
}

/* Bytes at an offset that the packet names. The barrier keeps the mask, by which the verifier knows the bound. */
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

static __always_inline __u64 mix_transport(__u64 hash, const __u8 *header, __u32 offset, __u8 protocol)
{
	__u32 word;

	hash = mix(hash, protocol);
	if (offset > HEADER - 4)
		return hash;
	word = word_at(header, offset);
	if (protocol == IPPROTO_TCP || protocol == IPPROTO_UDP)
		return mix(hash, word);
	if (protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6)
		return mix(hash, word & bpf_htonl(0xffff0000)); /* type and code, not the checksum */
	return hash;
}

/* What makes packets belong together: addresses, protocol, ports. `header` is aligned to 8 bytes. */
static __always_inline __u64 mix_flow(__u64 hash, const __u8 *header, __be16 protocol)
{
	const __u32 *words = (const void *)header;
	__u32 offset;
	__u8 next;

	hash = mix(hash, protocol);
	if (protocol == bpf_htons(ETH_P_IP)) {
		hash = mix(hash, (__u64)words[3] << 32 | words[4]);
		if (words[1] & bpf_htonl(0x1fff)) /* a fragment but the first has no ports */
			return mix(hash, header[9]);
		return mix_transport(hash, header, (header[0] & 15) * 4, header[9]);
	}
	if (protocol == bpf_htons(ETH_P_IPV6)) {
		for (int i = 2; i < 10; i += 2)
			hash = mix(hash, (__u64)words[i] << 32 | words[i + 1]);
		next = header[6];
		offset = 40;
		/* Hop-by-hop, routing, destination options: next header, and the length in units of 8 bytes. */
		for (int i = 0; i < 2 && (next == 0 || next == 43 || next == 60) && offset <= HEADER - 8; i++) {
			__u32 at = offset;

			next = byte_at(header, at);
			offset += (byte_at(header, at + 1) + 1) * 8;
		}
		return mix_transport(hash, header, offset, next);
	}
	if (protocol == bpf_htons(ETH_P_ARP)) /* who asks for whom */
		return mix(mix(hash, (__u64)words[3] << 32 | words[4]), words[6]);
	return hash;
}
