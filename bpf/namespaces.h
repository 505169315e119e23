/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Our own network namespace, which iter/tcp lists, and the others, which it omits. */
#pragma once
#include "sockets.h"

/* The inode of our own. Set before loading. */
const volatile __u32 own_netns = 0;

static __always_inline bool is_elsewhere(const struct sock *sk)
{
	return load_netns(&sk->__sk_common) != own_netns;
}
