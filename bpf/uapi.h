/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Integers and constants of the kernel's UAPI, which is stable except where noted. */
#pragma once

typedef signed char __s8;
typedef unsigned char __u8;
typedef signed short __s16;
typedef unsigned short __u16;
typedef signed int __s32;
typedef unsigned int __u32;
typedef signed long long __s64;
typedef unsigned long long __u64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u64 __be64;
typedef __u16 __sum16;
typedef __u32 __wsum;
typedef _Bool bool;
enum { false, true };

enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PROG_ARRAY = 3,
	BPF_MAP_TYPE_PERCPU_HASH = 5,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_SK_STORAGE = 24,
	BPF_MAP_TYPE_RINGBUF = 27,
	BPF_MAP_TYPE_TASK_STORAGE = 29,
};

enum { BPF_ANY = 0, BPF_NOEXIST = 1, BPF_EXIST = 2 };
enum { BPF_F_NO_PREALLOC = 1, BPF_F_CLONE = 1 << 9 };
enum { BPF_SK_STORAGE_GET_F_CREATE = 1 };
enum { BPF_HDR_START_MAC = 0, BPF_HDR_START_NET = 1 };
enum { BPF_RB_NO_WAKEUP = 1, BPF_RB_FORCE_WAKEUP = 2, BPF_RB_AVAIL_DATA = 0 };
enum { XDP_PASS = 2 };
/* The context of programs at a cgroup's sendmsg and recvmsg. */
struct bpf_sock_addr {
	__u32 user_family;
	__u32 user_ip4;    /* as on the wire */
	__u32 user_ip6[4]; /* as on the wire */
	__u32 user_port;   /* as on the wire */
};

enum { PF_FORKNOEXEC = 0x00000040, PF_KTHREAD = 0x00200000, MSG_PEEK = 2, MSG_ERRQUEUE = 0x2000 };
/* enum sock_flags, bits of skc_flags: no process has the socket; the peer has sent its FIN. */
enum { SOCK_DEAD = 0, SOCK_DONE = 1 };
enum { AF_INET = 2, AF_INET6 = 10, RTF_GATEWAY = 2 };
enum { ETH_P_IP = 0x0800, ETH_P_ARP = 0x0806, ETH_P_8021Q = 0x8100, ETH_P_IPV6 = 0x86dd, ETH_P_8021AD = 0x88a8 };
enum { IPPROTO_ICMP = 1, IPPROTO_TCP = 6, IPPROTO_UDP = 17, IPPROTO_ICMPV6 = 58, IPPROTO_MPTCP = 262 };

/* include/net/tcp_states.h; part of the UAPI through bpf.h (BPF_TCP_*). */
enum {
	TCP_ESTABLISHED = 1,
	TCP_SYN_SENT = 2,
	TCP_SYN_RECV = 3,
	TCP_FIN_WAIT1 = 4,
	TCP_FIN_WAIT2 = 5,
	TCP_TIME_WAIT = 6,
	TCP_CLOSE = 7,
	TCP_CLOSE_WAIT = 8,
	TCP_LAST_ACK = 9,
	TCP_LISTEN = 10,
	TCP_CLOSING = 11,
	TCP_NEW_SYN_RECV = 12,
};
