/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* What a walk through the network namespaces finds, and its position. */
#pragma once
#include "networks.h"

enum { NAMESPACES = 1024, DEVICES = 1024, ADDRESSES = 256, NEIGHBORS = 1024, NODES = 65536, SAME_PREFIX = 64 };
/* Records of each kind at most. */
enum { FOUND_MAX = 2048 };
enum { LINK = 0, ADDRESS = 1, NEIGHBOR = 2, ROUTE = 3, KINDS = 4 };
/* The maximal depth of the tree of IPv4 routes: a level takes at least one bit. */
enum { LEVELS = 36 };

/* One result. The kind decides which fields are used. */
struct found {
	__u32 kind;
	__u32 netns;
	__u32 ifindex;
	__u32 flags;  /* IFF_*, IFA_F_*, NUD_* */
	__u32 state;  /* of a link: bits of enum netdev_state_t */
	__u32 master; /* of a link: the device that it is part of */
	__u32 peer_netns;
	__u32 peer; /* of a veth: the other end's index */
	__u32 ups;
	__u32 downs; /* of a link: how often its carrier came and went */
	__u32 metric;
	__u8 family;
	__u8 prefix;
	__u8 rtn;    /* RTN_* */
	__u8 detail; /* of a link: operstate; of a route: the protocol that made it; of an address: its scope */
	__u8 address[16];
	__u8 gateway[16];
	__u8 hardware[8]; /* the link-layer address, and its length in the last byte */
	char name[16];
	char driver[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, KINDS *FOUND_MAX);
	__type(key, __u32);
	__type(value, struct found);
} all_found SEC(".maps");

/* The number of each kind, including those that did not fit. */
__u32 counts[KINDS];
/* Whether this kernel has a list of neighbors per device: Linux 6.13 and newer. */
__u32 neighbors_unread;

/* The position of the only walk that runs at a time. These are kernel addresses: every read of them is checked. */
static struct {
	__u64 net;
	__u64 first_net;
	__u64 device;
	__u64 at;
	__u64 end;
	__u32 netns;
	__u32 ifindex;
	__u32 level;
	__u32 key;
	__u8 family;
	struct {
		__u64 node;
		__u32 next;
	} stack[LEVELS];
	struct found record;
} walk;

/* For both kinds of kernel lists. */
static __always_inline __u64 next_of(__u64 entry)
{
	__u64 next = 0;

	bpf_probe_read_kernel(&next, sizeof(next), (void *)entry);
	return next;
}

static __always_inline void begin(__u32 kind, __u32 ifindex)
{
	__builtin_memset(&walk.record, 0, sizeof(walk.record));
	walk.record.kind = kind;
	walk.record.netns = walk.netns;
	walk.record.ifindex = ifindex;
}

static __always_inline void add(__u32 kind)
{
	__u32 number = counts[kind]++, key = kind << 16 | number;

	if (number < FOUND_MAX)
		bpf_map_update_elem(&all_found, &key, &walk.record, BPF_ANY);
}

static __always_inline void load_hardware(const void *from, __u32 length)
{
	if (length == 6 && !bpf_probe_read_kernel(walk.record.hardware, 6, from))
		walk.record.hardware[7] = 6;
}
