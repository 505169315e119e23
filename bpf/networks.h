/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The kernel's types of network namespaces, devices, addresses, neighbors and routes: only the fields that the programs
 * read.
 */
#pragma once
#include "kernel.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct list_head {
	struct list_head *next;
};

/* A name with `___` is another view of the kernel's type whose name precedes it. */
struct net_device___all;
struct fib6_node;
struct fib6_info;

struct fib_table___main {
	unsigned long *tb_data; /* struct trie */
};

struct fib6_node {
	struct fib6_node *parent;
	struct fib6_node *left;
	struct fib6_node *right;
	struct fib6_info *leaf;
};

struct fib6_table {
	struct fib6_node tb6_root;
};

struct netns_ipv4___main {
	struct fib_table___main *fib_main;
};

struct netns_ipv6___main {
	struct fib6_table *fib6_main_tbl;
};

struct net___all {
	struct ns_common ns;
	struct list_head list;
	struct list_head dev_base_head;
	struct net_device___all *loopback_dev;
	struct netns_ipv4___main ipv4;
	struct netns_ipv6___main ipv6;
};

struct possible_net___all {
	struct net___all *net;
};

struct rtnl_link_ops {
	const char *kind;
};

struct in_ifaddr {
	struct in_ifaddr *ifa_next;
	__be32 ifa_local;
	unsigned char ifa_scope;
	unsigned char ifa_prefixlen;
	__u32 ifa_flags;
};

struct in_device {
	struct in_ifaddr *ifa_list;
};

struct inet6_ifaddr {
	struct in6_addr addr;
	__u32 prefix_len;
	__u32 flags;
	__u16 scope;
	struct list_head if_list;
};

struct inet6_dev {
	struct list_head addr_list;
};

/* Of a device that is part of another one. The kernel keeps a master first in the list. */
struct netdev_adjacent {
	struct net_device___all *dev;
	bool master;
	struct list_head list;
};

struct net_device___all {
	int ifindex;
	char name[16];
	struct {
		struct net___all *net;
	} nd_net;
	struct list_head dev_list;
	struct {
		struct list_head upper;
	} adj_list;
	unsigned long state;
	unsigned int flags;
	unsigned short type;
	unsigned char operstate;
	__u8 reg_state;
	const unsigned char *dev_addr;
	unsigned char addr_len;
	struct rtnl_link_ops *rtnl_link_ops;
	atomic_t carrier_up_count;
	atomic_t carrier_down_count;
	struct in_device *ip_ptr;
	struct inet6_dev *ip6_ptr;
	struct hlist_head neighbours[2]; /* ARP and neighbor discovery; Linux 6.13 and newer */
};

struct neigh_table {
	int family;
};

struct neighbour {
	struct hlist_node dev_list;
	struct neigh_table *tbl;
	struct net_device *dev;
	__u8 nud_state;
	unsigned char ha[32];
	__u8 primary_key[0];
};

/* A node of the tree of IPv4 routes (net/ipv4/fib_trie.c): a node without bits is a leaf. */
struct key_vector {
	__u32 key;
	unsigned char pos;
	unsigned char bits;
	union {
		struct hlist_head leaf;
		struct key_vector *tnode[0];
	};
};

struct trie {
	struct key_vector kv[1];
};

struct fib_nh_common {
	struct net_device___all *nhc_dev;
	int nhc_oif;
	__u8 nhc_gw_family;
	union {
		__be32 ipv4;
		struct in6_addr ipv6;
	} nhc_gw;
};

struct fib_nh {
	struct fib_nh_common nh_common;
};

struct nexthop;

struct fib_info {
	unsigned char fib_protocol;
	unsigned char fib_scope;
	__u32 fib_priority;
	int fib_nhs;
	struct nexthop *nh;
	struct fib_nh fib_nh[0];
};

struct fib_alias {
	struct hlist_node fa_list;
	struct fib_info *fa_info;
	__u8 fa_type;
	__u8 fa_slen;
	__u32 tb_id;
};

struct rt6key {
	struct in6_addr addr;
	int plen;
};

struct fib6_nh {
	struct fib_nh_common nh_common;
};

struct fib6_info {
	struct fib6_info *fib6_next;
	struct rt6key fib6_dst;
	__u32 fib6_metric;
	__u8 fib6_protocol;
	__u8 fib6_type;
	struct nexthop *nh;
	struct fib6_nh fib6_nh[0];
};

#pragma clang attribute pop

/* include/uapi/linux/rtnetlink.h */
enum { RTN_UNICAST = 1, RTN_BLACKHOLE = 6, RTN_THROW = 9, RT_TABLE_LOCAL = 255 };
/* include/uapi/linux/neighbour.h */
enum { NUD_NOARP = 0x40 };

#define containing(pointer, type, field) ((struct type *)((__u64)(pointer) - bpf_core_field_offset(struct type, field)))
