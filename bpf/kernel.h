/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The kernel types and constants that our programs use, and no others.
 *
 * libbpf relocates every field access (CO-RE) against the BTF of the running kernel, so a struct here lists only the
 * fields that the programs read, in any order.
 */
#pragma once

#include "uapi.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct sk_buff;

struct in6_addr {
	union {
		__u8 u6_addr8[16];
		__be32 u6_addr32[4];
	} in6_u;
};

struct ns_common {
	unsigned int inum;
};

struct fib_table;
struct fib6_info;

struct netns_ipv4 {
	struct fib_table *fib_default;
	bool fib_has_custom_rules;
};

struct netns_ipv6 {
	struct fib6_info *fib6_null_entry;
	bool fib6_has_custom_rules;
};

struct net {
	struct ns_common ns;
	struct netns_ipv4 ipv4;
	struct netns_ipv6 ipv6;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct net_device {
	int ifindex;
	char name[16];
	possible_net_t nd_net;
};

struct dst_ops {
	unsigned short family;
};

struct dst_entry {
	struct net_device *dev;
	struct dst_ops *ops;
	int (*input)(struct sk_buff *);
};

typedef unsigned int sk_buff_data_t;

struct sk_buff {
	struct net_device *dev;
	struct sock *sk;
	unsigned long _skb_refdst;
	int skb_iif;
	unsigned int len;
	__be16 protocol;
	__u16 transport_header;
	__u16 network_header;
	sk_buff_data_t tail;
	unsigned char *head;
	unsigned char *data;
	char cb[48];
};

typedef struct {
	__s64 counter;
} atomic64_t;

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__u32 skc_hash; /* of its ends */
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	unsigned long skc_flags;
	struct sock *skc_listener; /* for a request, instead of skc_flags */
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
	atomic64_t skc_cookie;
};

typedef struct {
	int counter;
} atomic_t;

typedef struct {
	atomic_t refs;
} refcount_t;

struct file;

struct socket {
	unsigned long flags;
	struct file *file;
	struct sock *sk;
};

struct kernfs_node {
	__u64 id;
};

struct cgroup {
	struct kernfs_node *kn;
};

struct sock_cgroup_data {
	struct cgroup *cgroup;
};

/* Linux 6.18 and newer, for UDP: two counters instead of sk_drops. */
struct numa_drop_counters {
	atomic_t drops0;
	atomic_t drops1;
};

struct sk_buff_head {
	struct sk_buff *next;
	struct sk_buff *prev;
};

struct sock_extended_err {
	__u32 ee_errno;
};

/* The part of `cb` for a packet in an error queue. */
struct sock_exterr_skb {
	struct sock_extended_err ee;
};

struct sock {
	struct sock_common __sk_common;
	struct {
		atomic_t rmem_alloc;
	} sk_backlog;
	atomic_t sk_drops;
	struct numa_drop_counters *sk_drop_counters;
	refcount_t sk_wmem_alloc;
	struct socket *sk_socket;
	struct sock_cgroup_data sk_cgrp_data;
	unsigned long sk_pacing_rate;
	unsigned long sk_max_pacing_rate;
	__u32 sk_ack_backlog;
	__u32 sk_max_ack_backlog;
	__u16 sk_protocol;
	__u8 sk_userlocks : 4;
	int sk_err;
	int sk_err_soft;
	struct sk_buff_head sk_error_queue;
	struct sk_buff_head sk_receive_queue;
	struct dst_entry *sk_dst_cache;
	struct bpf_local_storage *sk_bpf_storage;
	void *sk_user_data;
};

struct inet_sock {
	struct sock sk;
	__be16 inet_sport;
};

struct udp_sock {
	struct inet_sock inet;
	int forward_deficit;
};

struct hlist_node {
	struct hlist_node *next;
};

struct hlist_head {
	struct hlist_node *first;
};

struct bpf_local_storage;

struct tcp_congestion_ops {
	char name[16];
};

/* A connection in a listener's queue. */
struct request_sock {
	struct sock_common __req_common;
	struct request_sock *dl_next;
	struct sock *sk;
};

/* For a listener: the number of incomplete handshakes, and the first connection that waits to be accepted. */
struct request_sock_queue {
	atomic_t qlen;
	struct request_sock *rskq_accept_head;
};

/* The user of a local port: -1 if connect() chose it; bind() then cannot share it. */
struct inet_bind_bucket {
	signed char fastreuse;
};

struct inet_connection_sock {
	struct inet_sock icsk_inet;
	struct request_sock_queue icsk_accept_queue;
	struct inet_bind_bucket *icsk_bind_hash;
	const struct tcp_congestion_ops *icsk_ca_ops;
	__u8 icsk_ca_state : 5;
	void *icsk_ulp_data;
	__u8 icsk_retransmits;
	__u8 icsk_probes_out;
	struct {
		__u32 lrcvtime; /* jiffies */
	} icsk_ack;
};

struct minmax_sample {
	__u32 v;
};

struct minmax {
	struct minmax_sample s[3];
};

/* A flag of struct socket: a process waits for room in the send buffer. */
enum { SOCK_NOSPACE = 2 };

/* What a sender waited for last (tcp_sock.chrono_type). */
enum tcp_chrono { TCP_CHRONO_UNSPEC, TCP_CHRONO_BUSY, TCP_CHRONO_RWND_LIMITED, TCP_CHRONO_SNDBUF_LIMITED };

struct tcp_sock {
	struct inet_connection_sock inet_conn;
	__u64 bytes_sent;
	__u64 bytes_received;
	__u64 bytes_retrans;
	__u64 bytes_acked;
	__u32 write_seq;
	__u32 snd_nxt;
	__u32 snd_una;
	__u32 snd_wnd;
	__u32 snd_cwnd;
	__u32 snd_ssthresh;
	__u32 rcv_nxt;
	__u32 copied_seq;
	__u32 mss_cache;
	__u32 srtt_us;
	__u32 mdev_us;
	struct minmax rtt_min;
	__u32 packets_out;
	__u32 sacked_out;
	__u32 delivered;
	__u32 lost_out;
	__u32 retrans_out;
	__u32 total_retrans;
	__u32 dsack_dups;
	__u32 segs_in;
	__u32 segs_out;
	__u32 rate_delivered;
	__u32 rate_interval_us;
	__u32 rcv_tstamp; /* jiffies */
	__u64 tcp_mstamp; /* µs, CLOCK_MONOTONIC: when something was sent or arrived last */
	__u32 chrono_start;
	__u32 chrono_stat[3];
	__u8 chrono_type : 2;
	bool is_mptcp;
};

struct css_set {
	struct cgroup *dfl_cgrp;
};

struct nsproxy {
	struct net *net_ns;
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
	unsigned int next_fd;
};

struct signal_struct {
	unsigned int is_child_subreaper : 1;
};

struct upid {
	int nr;
};

/* A process' numbers, one for each PID namespace that contains it. */
struct pid {
	unsigned int level;
	struct upid numbers[1];
};

struct task_struct {
	struct signal_struct *signal;
	struct pid *thread_pid;
	struct task_struct *group_leader;
	struct task_struct *real_parent;
	struct nsproxy *nsproxy;
	struct css_set *cgroups;
	struct files_struct *files;
	unsigned int flags;
	int pid;
	int tgid;
	char comm[16];
};

/* A process' registers at kernel entry: the system call and its arguments. */
struct pt_regs {
	unsigned long orig_ax; /* x86_64 */
	unsigned long si;
	__s32 syscallno; /* arm64 */
	__u64 regs[31];
};

/* Headers of packets. */
struct iphdr {
	__u8 tos;
	__be16 tot_len, id, frag_off;
	__u8 protocol;
	__be32 saddr;
	__be32 daddr;
};

struct udphdr {
	__be16 source;
	__be16 dest;
};

/* Contexts of iterators. */
struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
	__u64 seq_num;
};

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	__u32 fd;
	struct file *file;
};

struct bpf_map;

struct bpf_iter__bpf_map {
	struct bpf_iter_meta *meta;
	struct bpf_map *map;
};

struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
};

struct bpf_iter__udp {
	struct bpf_iter_meta *meta;
	struct udp_sock *udp_sk;
};

/* Contexts of tc and XDP programs: UAPI, rewritten by the verifier. */
struct __sk_buff {
	__u32 len;
	__u32 protocol;
	__u32 ifindex;
	__u32 data;
	__u32 data_end;
	__u32 gso_segs;
	__u32 gso_size;
};

#pragma clang attribute pop

char LICENSE[] SEC("license") = "Dual MIT/GPL";
