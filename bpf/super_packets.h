/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The headers that each wire packet of a tunnel's super-packet repeats: the outer ones and, behind them, those of the
 * inner packet, for any tunnel protocol.
 *
 * The context of a program at tc lacks the position of the inner headers. The kernel keeps it in struct sk_buff, to
 * which such a context points. Each field takes a helper, but only for super-packets that are not plain TCP.
 */
#pragma once
#include "kernel.h"

enum { GSO_TCPV4 = 1 << 0, GSO_TCPV6 = 1 << 4, GSO_UDP_L4 = 1 << 17 };

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct sk_buff___tunnel {
	__u8 encapsulation : 1;
	__u16 inner_transport_header;
	sk_buff_data_t end;
	unsigned char *head;
	unsigned char *data;
};

struct skb_shared_info {
	unsigned int gso_type;
};

#pragma clang attribute pop

/* Set before loading: whether the kernel allows us to read its memory. */
const volatile bool reads_kernel = false;

/* Their bytes, including the link-layer header; 0 = not a tunnel, or unknown. */
static __always_inline __u32 tunnel_headers(struct __sk_buff *ctx)
{
	const struct sk_buff___tunnel *skb = (const void *)ctx;
	const struct skb_shared_info *shared;
	__u32 type, headers;
	__u8 *head, length;

	if (!reads_kernel || !BPF_CORE_READ_BITFIELD_PROBED(skb, encapsulation))
		return 0;
	head = BPF_CORE_READ(skb, head);
	headers = head + BPF_CORE_READ(skb, inner_transport_header) - BPF_CORE_READ(skb, data);
	shared = (const void *)(head + BPF_CORE_READ(skb, end));
	type = BPF_CORE_READ(shared, gso_type);
	if (type & GSO_UDP_L4)
		return headers + 8;
	if (!(type & (GSO_TCPV4 | GSO_TCPV6)) || bpf_skb_load_bytes(ctx, headers + 12, &length, 1))
		return 0;
	return headers + (length >> 4) * 4;
}
