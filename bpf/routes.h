/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The target of a packet's route. */
#pragma once
#include "owner.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

/* A route of IPv4, whose gateway may be of either family, and one of IPv6. */
struct rtable {
	struct dst_entry dst;
	__u8 rt_gw_family; /* 0 = the destination is on the link */
	__be32 rt_gw4;
	struct in6_addr rt_gw6;
};

struct rt6_info {
	struct dst_entry dst;
	struct in6_addr rt6i_gateway;
	__u32 rt6i_flags;
};

#pragma clang attribute pop

/* The router of a route; zeros if the destination is on-link, or without a route. */
static __always_inline void load_gateway(__u8 gateway[16], const struct dst_entry *dst)
{
	const struct rtable *rt = (const void *)dst;
	const struct rt6_info *rt6 = (const void *)dst;
	__u16 family = BPF_CORE_READ(dst, ops, family);

	__builtin_memset(gateway, 0, 16);
	if (family == AF_INET6) {
		if (BPF_CORE_READ(rt6, rt6i_flags) & RTF_GATEWAY)
			bpf_core_read(gateway, 16, &rt6->rt6i_gateway);
		return;
	}
	if (family != AF_INET)
		return;
	switch (BPF_CORE_READ(rt, rt_gw_family)) {
	case AF_INET:
		mapped(gateway, BPF_CORE_READ(rt, rt_gw4));
		break;
	case AF_INET6:
		bpf_core_read(gateway, 16, &rt->rt_gw6);
		break;
	}
}
