/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The links, addresses, neighbors and routes of every network namespace of the host, including namespaces without a
 * process, such as a router of `ip netns`.
 *
 * rtnetlink covers only the caller's own namespace, and entering another one takes CAP_SYS_ADMIN. An iterator reads the
 * kernel's lists under RCU, and a process without capabilities can run it.
 */
#include "claims.h"
#include "found_routes.h"

NEXT_OF(packet_leaves);

/* Packets that arrive are read with ARP. */
SEC("tp_btf/net_dev_queue")
int BPF_PROG(packet_leaves, struct sk_buff *skb)
{
	__u64 from = network_header(skb);

	note_control(skb, from, true);
	compare_mark(skb, from);
	RUN_NEXT(packet_leaves);
	return 0;
}

/* The other end of a veth pair: the first field of its driver's data. The peer must point back to this end. */
static __always_inline struct net_device___all *veth_peer(struct net_device___all *device)
{
	__u64 size = (bpf_core_type_size(struct net_device___all) + 31) & ~31ull;
	struct net_device___all *peer = 0, *back = 0;

	if (bpf_probe_read_kernel(&peer, sizeof(peer), (void *)((__u64)device + size)) || !peer)
		return 0;
	bpf_probe_read_kernel(&back, sizeof(back), (void *)((__u64)peer + size));
	return back == device ? peer : 0;
}

static __always_inline void add_link(struct net_device___all *device)
{
	static const char veth[5] = "veth";
	struct list_head *upper = BPF_CORE_READ(device, adj_list.upper.next);
	struct netdev_adjacent *adjacent = containing(upper, netdev_adjacent, list);
	struct net_device___all *peer;

	begin(LINK, walk.ifindex);
	walk.record.flags = BPF_CORE_READ(device, flags);
	walk.record.state = BPF_CORE_READ(device, state);
	walk.record.detail = BPF_CORE_READ(device, operstate);
	walk.record.ups = BPF_CORE_READ(device, carrier_up_count.counter);
	walk.record.downs = BPF_CORE_READ(device, carrier_down_count.counter);
	BPF_CORE_READ_INTO(&walk.record.name, device, name);
	bpf_probe_read_kernel_str(walk.record.driver, sizeof(walk.record.driver),
				  BPF_CORE_READ(device, rtnl_link_ops, kind));
	load_hardware(BPF_CORE_READ(device, dev_addr), BPF_CORE_READ(device, addr_len));
	if ((__u64)upper != (__u64)device + bpf_core_field_offset(struct net_device___all, adj_list.upper) &&
	    BPF_CORE_READ(adjacent, master))
		walk.record.master = BPF_CORE_READ(adjacent, dev, ifindex);
	if (walk.record.driver[0] == veth[0] && walk.record.driver[1] == veth[1] && walk.record.driver[2] == veth[2] &&
	    walk.record.driver[3] == veth[3]) {
		peer = veth_peer(device);
		walk.record.peer = BPF_CORE_READ(peer, ifindex);
		walk.record.peer_netns = BPF_CORE_READ(peer, nd_net.net, ns.inum);
	}
	add(LINK);
}

static long each_ipv4(__u32 index, void *context)
{
	struct in_ifaddr *address = (void *)walk.at;
	__be32 local;

	if (!address)
		return 1;
	begin(ADDRESS, walk.ifindex);
	walk.record.family = AF_INET;
	walk.record.prefix = BPF_CORE_READ(address, ifa_prefixlen);
	walk.record.detail = BPF_CORE_READ(address, ifa_scope);
	walk.record.flags = BPF_CORE_READ(address, ifa_flags);
	local = BPF_CORE_READ(address, ifa_local);
	__builtin_memcpy(walk.record.address, &local, 4);
	add(ADDRESS);
	walk.at = (__u64)BPF_CORE_READ(address, ifa_next);
	return 0;
}

static long each_ipv6(__u32 index, void *context)
{
	struct inet6_ifaddr *address = containing(walk.at, inet6_ifaddr, if_list);

	if (!walk.at || walk.at == walk.end)
		return 1;
	begin(ADDRESS, walk.ifindex);
	walk.record.family = AF_INET6;
	walk.record.prefix = BPF_CORE_READ(address, prefix_len);
	walk.record.detail = BPF_CORE_READ(address, scope) >> 4;
	walk.record.flags = BPF_CORE_READ(address, flags);
	BPF_CORE_READ_INTO(&walk.record.address, address, addr);
	add(ADDRESS);
	walk.at = next_of(walk.at);
	return 0;
}

static long each_neighbor(__u32 index, void *context)
{
	struct neighbour *neighbor = containing(walk.at, neighbour, dev_list);
	__u32 state, length = walk.family == AF_INET ? 4 : 16;

	if (!walk.at)
		return 1;
	state = BPF_CORE_READ(neighbor, nud_state);
	if (!(state & NUD_NOARP)) {
		begin(NEIGHBOR, walk.ifindex);
		walk.record.family = walk.family;
		walk.record.flags = state;
		if (length == 4)
			bpf_probe_read_kernel(walk.record.address, 4,
					      __builtin_preserve_access_index(&neighbor->primary_key));
		else
			bpf_probe_read_kernel(walk.record.address, 16,
					      __builtin_preserve_access_index(&neighbor->primary_key));
		load_hardware(__builtin_preserve_access_index(&neighbor->ha), 6);
		add(NEIGHBOR);
	}
	walk.at = next_of(walk.at);
	return 0;
}

static long each_device(__u32 index, void *context)
{
	struct net___all *net = (void *)walk.net;
	__u64 head = (__u64)net + bpf_core_field_offset(struct net___all, dev_base_head);
	struct net_device___all *device;
	struct inet6_dev *ipv6;

	/* The first one follows the head. */
	walk.device = next_of(index ? walk.device + bpf_core_field_offset(struct net_device___all, dev_list) : head);
	if (!walk.device || walk.device == head)
		return 1;
	device = containing(walk.device, net_device___all, dev_list);
	walk.device = (__u64)device;
	walk.ifindex = BPF_CORE_READ(device, ifindex);
	add_link(device);
	walk.at = (__u64)BPF_CORE_READ(device, ip_ptr, ifa_list);
	bpf_loop(ADDRESSES, each_ipv4, 0, 0);
	ipv6 = BPF_CORE_READ(device, ip6_ptr);
	if (ipv6) {
		walk.end = (__u64)ipv6 + bpf_core_field_offset(struct inet6_dev, addr_list);
		walk.at = (__u64)BPF_CORE_READ(ipv6, addr_list.next);
		bpf_loop(ADDRESSES, each_ipv6, 0, 0);
	}
	if (bpf_core_field_exists(device->neighbours)) {
		walk.family = AF_INET;
		walk.at = (__u64)BPF_CORE_READ(device, neighbours[0].first);
		bpf_loop(NEIGHBORS, each_neighbor, 0, 0);
		walk.family = AF_INET6;
		walk.at = (__u64)BPF_CORE_READ(device, neighbours[1].first);
		bpf_loop(NEIGHBORS, each_neighbor, 0, 0);
	} else {
		neighbors_unread = 1;
	}
	return 0;
}

static long each_net(__u32 index, void *context)
{
	struct net___all *net = (void *)walk.net;
	struct list_head *next = BPF_CORE_READ(net, list.next);

	/* The head of the list is not a namespace, and a namespace under construction is skipped. */
	if ((__u64)BPF_CORE_READ(net, loopback_dev, nd_net.net) == walk.net) {
		walk.netns = BPF_CORE_READ(net, ns.inum);
		bpf_loop(DEVICES, each_device, 0, 0);
		add_routes(net);
	}
	walk.net = (__u64)containing(next, net___all, list);
	return !next || walk.net == walk.first_net;
}

/* Runs once for all maps. At least one exists: ours. */
SEC("iter/bpf_map")
int networks(struct bpf_iter__bpf_map *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	if (!ctx->map || ctx->meta->seq_num)
		return 0;
	__builtin_memset(counts, 0, sizeof(counts));
	walk.net = walk.first_net = (__u64)BPF_CORE_READ(task, nsproxy, net_ns);
	bpf_loop(NAMESPACES, each_net, 0, 0);
	return 0;
}
