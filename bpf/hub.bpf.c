/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* At the tracepoints that several tools use: runs their programs one after the other. */
#include "next.h"

NEXT_OF(state_hub);
NEXT_OF(departure_hub);
NEXT_OF(arrival_hub);

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(state_hub, struct sock *sk, int oldstate, int newstate)
{
	RUN_NEXT(state_hub);
	return 0;
}

SEC("tp_btf/net_dev_queue")
int BPF_PROG(departure_hub, struct sk_buff *skb)
{
	RUN_NEXT(departure_hub);
	return 0;
}

SEC("tp_btf/netif_receive_skb")
int BPF_PROG(arrival_hub, struct sk_buff *skb)
{
	RUN_NEXT(arrival_hub);
	return 0;
}
