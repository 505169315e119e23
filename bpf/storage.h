/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The storage of a TCP or UDP socket, with a part for each tool that follows sockets. The objects of these tools share
 * one map: the kernel allocates the storage of a map when a socket gets one, copies it at each accept, and frees it at
 * the end.
 *
 * `is_known` says that a part exists. trace_connections never removes its part: such a storage lives as long as its
 * socket.
 */
#pragma once
#include "owner.h"

/* Of trace_connections: a connection's owner and times. */
struct track {
	__u64 start_ns;       /* connect(), or the handshake of an inbound connection; 0 = before the first window */
	__u64 established_ns; /* 0 = not established, or before the first window */
	struct owner owner;
	__u32 round; /* the last search that found it, or the last reading that listed it */
	__u8 direction;
	__u8 ended;   /* enum ended */
	__u8 managed; /* a service manager's, unless another holder is known */
	__u8 is_known;
	__s32 error; /* of an attempt: the error that its process got before it ended */
	__u32 pad;
};

/* The process that opened a socket, and the window in which it did, if seen. */
struct mark {
	__u32 pid; /* 0 = unknown */
	char comm[16];
	__u32 window;         /* the newest when the socket was opened; 0 = before monitoring; for a listener not 0 */
	__u32 slot;           /* UDP: the slot of its last transfer; 0 = none */
	__u32 handshake_us;   /* TCP: the round trip of its handshake, times 8; 0 = unknown */
	__u32 established_us; /* TCP: when its handshake ended, of tcp_mstamp */
	__u32 direction;      /* TCP: enum direction, from its state changes */
	__u16 managed;        /* a service manager's, unless another holder is known */
	__u16 is_known;
	__u32 oldest;  /* UDP: window since which … */
	__u32 remotes; /* … this number of its remotes got a slot */
};

struct storage {
	struct track track;
	struct mark traffic; /* of top_traffic */
	struct mark profile; /* of profile_tcp */
};

/* Each accepted connection gets a copy of its listener's. netmond finds the map by its name. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct storage);
} storages SEC(".maps");

/* A part of a socket's storage, or null. */
#define KNOWN_PART(sk, part)                                                                                           \
	({                                                                                                             \
		struct storage *all = bpf_sk_storage_get(&storages, sk, 0, 0);                                         \
                                                                                                                       \
		all && all->part.is_known ? &all->part : 0;                                                            \
	})

/* The same, created if absent. */
#define PART(sk, part)                                                                                                 \
	({                                                                                                             \
		struct storage *all = sk_storage_of(&storages, sk);                                                    \
                                                                                                                       \
		if (all)                                                                                               \
			all->part.is_known = true;                                                                     \
		all ? &all->part : 0;                                                                                  \
	})

/* Removes a part, and the storage with the last part. */
#define FORGET_PART(sk, part)                                                                                          \
	do {                                                                                                           \
		struct storage *all = bpf_sk_storage_get(&storages, sk, 0, 0);                                         \
                                                                                                                       \
		if (!all)                                                                                              \
			break;                                                                                         \
		__builtin_memset(&all->part, 0, sizeof(all->part));                                                    \
		if (!all->track.is_known && !all->traffic.is_known && !all->profile.is_known)                          \
			bpf_sk_storage_delete(&storages, sk);                                                          \
	} while (0)
