/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Packets that the kernel dropped: number, place, reason, owner.
 *
 * The program counts every drop by place (reason and kernel function), exactly. A bounded table also distinguishes
 * flows. Both are per CPU and searched by hash within a few neighboring slots. They need no lock and no allocation, so
 * a packet of a flood costs the same as any other.
 */
#include "holders.h"
#include "packet.h"
#include "routes.h"
#include "verdicts.h"
#include "windows.h"

enum { PLACES = 256, FLOWS = 2048, PROBES = 8 };

/* Set before loading: the number of flow slots less one (a power of two less one), and a secret for the hash. */
const volatile __u32 flow_mask = 255;
const volatile __u64 seed = 0;
/* The reason of a packet that a firewall rule dropped, if nftables chains are visible; otherwise 0. */
const volatile __u32 judged = 0;

/* The last bits of a flow's id have the window of its last drop. */
enum { SEEN_BITS = 24 };

/* A reason and a location in the kernel. Never freed: their number is limited to the callers of kfree_skb. */
struct place {
	__u64 location;
	__u64 packets;
	__u32 reason;
	__u32 oldest; /* window since which … */
	__u32 flows;  /* … this number of slots was taken */
	__u32 pad;
};

/* The owner of a slot: a hash, and the window of its last drop. Separate from the flows and compact, for the cache. */
struct ids {
	__u64 of[FLOWS];
};

/* Packets of one flow that were dropped at one place. The first one is described. */
struct flow {
	__u64 id;
	__u64 born_ns; /* CLOCK_MONOTONIC: distinguishes a new flow in the same slot */
	__u64 location;
	__u64 packets;
	__u64 socket; /* cookie of its socket, or its address without a cookie; 0 = none */
	__u64 input;  /* dst->input: the input function of its route */
	struct owner owner;
	char interface[16];
	__u8 gateway[16]; /* the router of its route; zeros = none */
	char output[16];  /* the output device of its route, if it differs */
	__u32 reason;
	__u32 ifindex;
	__u32 iif;   /* input interface; 0 = created on this host */
	__u32 netns; /* of the interface, or else of the socket; 0 = unknown */
	__u16 protocol;
	__u16 family; /* of the socket */
	__u16 port;   /* of the socket */
	__u8 length;
	__u8 receiver; /* the socket is the packet's receiver */
	__u8 returns;  /* its route leads back to its input device */
	__u8 pad[7];
	__u8 header[HEADER];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, PLACES);
	__type(key, __u32);
	__type(value, struct place);
} places SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ids);
} ids SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, struct flow);
} flows SEC(".maps");

/* Drops without a slot for their place. */
__u64 unplaced;

static __always_inline struct place *place_of(__u64 location, __u32 reason)
{
	__u32 hash = mix(location, reason) >> 32;

	for (int i = 0; i < PROBES; i++) {
		__u32 slot = (hash + i) % PLACES;
		struct place *place = bpf_map_lookup_elem(&places, &slot);

		if (!place)
			return 0;
		if (!place->location) {
			place->location = location;
			place->reason = reason;
		}
		if (place->location == location && place->reason == reason)
			return place;
	}
	return 0;
}

static __always_inline bool is_same(__u64 a, __u64 b)
{
	return !((a ^ b) >> SEEN_BITS);
}

/* After 8 million windows, an unseen slot would look new. */
static __always_inline bool is_free(__u64 id, __u32 oldest)
{
	return (__s32)(((__u32)id - oldest) << (32 - SEEN_BITS)) < 0;
}

/* The flow's entry in the table of ids, or none. */
static __always_inline __u64 *slot_of(struct ids *table, __u64 id, __u32 *slot)
{
	for (int i = 0; i < PROBES; i++) {
		*slot = ((__u32)(id >> 32) + i) & flow_mask & (FLOWS - 1);
		if (is_same(table->of[*slot], id))
			return &table->of[*slot];
	}
	return 0;
}

/* A free slot for a new flow, or none. */
static __always_inline __u64 *free_slot(struct ids *table, __u64 id, __u32 *slot)
{
	__u32 oldest = windows.oldest;

	for (int i = 0; i < PROBES; i++) {
		*slot = ((__u32)(id >> 32) + i) & flow_mask & (FLOWS - 1);
		if (is_free(table->of[*slot], oldest))
			return &table->of[*slot];
	}
	return 0;
}

/* IP first stores the input device in the control block; skb_iif may be its VRF. */
static __always_inline void describe_route(struct flow *flow, struct sk_buff *skb, const struct dst_entry *dst)
{
	__u32 output = BPF_CORE_READ(dst, dev, ifindex), input = *(__u32 *)skb->cb;

	__builtin_memset(flow->output, 0, sizeof(flow->output));
	load_gateway(flow->gateway, dst);
	flow->returns = output && output == input;
	if (output && output != flow->ifindex)
		BPF_CORE_READ_INTO(&flow->output, dst, dev, name);
}

/* Work only for the first packet of a flow. */
static __always_inline void describe(struct flow *flow, struct sk_buff *skb, const struct sock *sk, __u64 receiver)
{
	struct dst_entry *dst = (void *)(skb->_skb_refdst & ~1ul);
	struct net_device *dev = untrusted(sk_buff, skb)->dev;

	__builtin_memset(&flow->owner, 0, sizeof(flow->owner));
	__builtin_memset(flow->interface, 0, sizeof(flow->interface));
	flow->netns = flow->family = flow->port = 0;
	flow->receiver = receiver != 0;
	flow->socket = receiver ?: socket_of(skb);
	flow->protocol = bpf_ntohs(skb->protocol);
	flow->input = (__u64)BPF_CORE_READ(dst, input);
	/* An outgoing packet gets its device late, but has a route. */
	if (!dev)
		dev = BPF_CORE_READ(dst, dev);
	flow->ifindex = BPF_CORE_READ(dev, ifindex);
	if (flow->ifindex) {
		BPF_CORE_READ_INTO(&flow->interface, dev, name);
		flow->netns = BPF_CORE_READ(dev, nd_net.net, ns.inum);
	}
	flow->iif = skb->skb_iif;
	describe_route(flow, skb, dst);
	if (!sk)
		return;
	flow->family = BPF_CORE_READ(sk, __sk_common.skc_family);
	flow->port = BPF_CORE_READ(sk, __sk_common.skc_num);
	flow->owner.netns = sock_netns(sk);
	if (!flow->netns)
		flow->netns = flow->owner.netns;
	if (current_owns(sk))
		current_owner(&flow->owner);
}

/* This CPU's note, cleared, if a chain may have dropped the packet. */
static __always_inline struct verdict *verdict_on(__u32 reason)
{
	struct verdict *verdict = judged && reason == judged ? verdict_here() : 0;

	if (verdict)
		verdict->skb = 0;
	return verdict;
}

/* An earlier flow may have owned the slot. */
static __always_inline void forget_chain(__u32 slot)
{
	struct chain *chain = bpf_map_lookup_elem(&chains, &slot);

	if (chain)
		__builtin_memset(chain, 0, sizeof(*chain));
}

/* For the chain that ends next. */
static __always_inline void leave_note(struct verdict *verdict, struct sk_buff *skb, __u32 slot)
{
	if (!verdict)
		return;
	verdict->skb = (__u64)skb;
	verdict->slot = slot;
}

/* The flow of a packet at its place. */
static __always_inline __u64 mix_packet(__u64 id, struct sk_buff *skb)
{
	__u8 header[HEADER] __attribute__((aligned(8))) = {};

	copy_header(skb, header);
	return mix_flow(id, header, skb->protocol);
}

/* `receiver` is the name of `sk` if that socket is the packet's receiver; otherwise `sk` is the sender, if any. */
static __always_inline int count(struct sk_buff *skb, __u64 location, __u32 reason, const struct sock *sk,
				 __u64 receiver)
{
	struct place *place = place_of(location, reason);
	struct verdict *verdict = verdict_on(reason);
	__u32 oldest = windows.oldest, slot = 0, zero = 0;
	struct flow *flow;
	struct ids *table;
	struct ipv4 ip;
	__u64 id, *known;

	if (!place) {
		__sync_fetch_and_add(&unplaced, 1);
		return 0;
	}
	place->packets++;
	if (place->oldest != oldest) {
		place->oldest = oldest;
		place->flows = 0;
	}
	id = mix(mix(seed, location), (__u64)reason << 32 | skb->skb_iif);
	if (sk)
		id = mix(mix(id, load_netns(&sk->__sk_common)), receiver);
	id = read_ipv4(skb, network_header(skb), &ip) ? mix_ipv4(id, &ip) : mix_packet(id, skb);
	id = (id & ~0ull << SEEN_BITS) | (windows.newest & ((1 << SEEN_BITS) - 1));
	table = bpf_map_lookup_elem(&ids, &zero);
	if (!table)
		return 0;
	known = slot_of(table, id, &slot);
	if (known) {
		*known = id;
		flow = bpf_map_lookup_elem(&flows, &slot);
		if (flow)
			flow->packets++;
		leave_note(verdict, skb, slot);
		return 0;
	}
	/* One place may fill a quarter of the table: a scan leaves slots for other faults. */
	known = place->flows > flow_mask / 4 ? 0 : free_slot(table, id, &slot);
	flow = known ? bpf_map_lookup_elem(&flows, &slot) : 0;
	if (!known || !flow)
		return 0;
	place->flows++;
	describe(flow, skb, sk, receiver);
	__builtin_memset(flow->header, 0, HEADER);
	flow->length = copy_header(skb, flow->header);
	flow->location = location;
	flow->reason = reason;
	flow->id = id >> SEEN_BITS;
	flow->born_ns = bpf_ktime_get_ns();
	flow->packets = 1;
	*known = id;
	if (verdict)
		forget_chain(slot);
	leave_note(verdict, skb, slot);
	return 0;
}

/*
 * kfree_skb instead of the hundreds of functions that drop: the kernel calls it for dropped packets, and consume_skb
 * for delivered ones.
 */
SEC("tp_btf/kfree_skb")
int BPF_PROG(drop, struct sk_buff *skb, void *location, __u32 reason)
{
	return count(skb, (__u64)location, reason, skb->sk, 0);
}

/* Linux 6.11 and newer name the intended receiving socket. */
SEC("tp_btf/kfree_skb")
int BPF_PROG(drop_with_receiver, struct sk_buff *skb, void *location, __u32 reason, struct sock *receiver)
{
	if (receiver)
		return count(skb, (__u64)location, reason, receiver, name_of(receiver));
	return count(skb, (__u64)location, reason, skb->sk, 0);
}

struct symbol {
	char name[64];
};

enum { SYMBOLS = 512 };

/* Kernel addresses whose symbols a window requests, and the symbols. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, SYMBOLS);
	__type(key, __u64);
	__type(value, struct symbol);
} addresses SEC(".maps");

/* /proc/kallsyms shows zeros without CAP_SYSLOG; %ps prints the symbol without it. */
static long name_symbol(struct bpf_map *map, const __u64 *address, struct symbol *symbol, void *context)
{
	BPF_SNPRINTF(symbol->name, sizeof(symbol->name), "%ps", *address);
	return 0;
}

/*
 * Runs once for all addresses. An iterator runs without capabilities. It iterates over maps, since there are few, and
 * at least one: ours.
 */
SEC("iter/bpf_map")
int symbols(struct bpf_iter__bpf_map *ctx)
{
	if (ctx->map && !ctx->meta->seq_num)
		bpf_for_each_map_elem(&addresses, name_symbol, 0, 0);
	return 0;
}
