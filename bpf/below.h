/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * TCP sockets below another socket. They have no file; the process holds the file of the upper socket.
 *
 * An MPTCP socket has one for each path, and these do all the work. Every listener of a Go program is one. The iterator
 * over files shows the upper socket. Pointers from there to a lower socket are plain numbers to the verifier. So a
 * lower socket is copied before it is read, and cannot get storage. A socket that a file leads to is read in the same
 * way if the verifier does not trust it (`files.h`).
 */
#pragma once
#include "files.h"
#include "namespaces.h"

enum {
	ROOMS = 8,     /* copies at once: user space runs this number of iterators at once */
	SUBFLOWS = 16, /* per MPTCP socket: the kernel opens at most 9, a path manager in user space may open more */
	STORAGES = 16, /* maps in which a socket has storage */
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct list_head {
	struct list_head *next;
};

struct mptcp_sock {
	struct inet_connection_sock sk;
	__u64 write_seq;
	__u64 snd_una;
	__u64 ack_seq;
	struct list_head conn_list;
	struct sock *first;
};

struct mptcp_subflow_context {
	struct list_head node;
	struct sock *tcp_sock;
	struct sock *conn;
};

/* The part of `cb` for data that an MPTCP socket has received. */
struct mptcp_skb_cb {
	__u64 map_seq; /* of the first unread byte */
};

struct bpf_local_storage_map;

struct bpf_local_storage {
	struct hlist_head list;
};

struct bpf_local_storage_data {
	struct bpf_local_storage_map *smap;
	__u8 data[0];
};

struct bpf_local_storage_elem {
	struct hlist_node snode;
	struct bpf_local_storage_data sdata;
};

#pragma clang attribute pop

/* Room for a copy of a socket, for its storage, and for its row. */
struct room {
	__u64 taken;
	__u8 bytes[4096];
	__u8 carried[512];
	__u8 row[512];
	__u8 listener[512]; /* the listener's row, filled before its queue is walked */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ROOMS);
	__type(key, __u32);
	__type(value, struct room);
} rooms SEC(".maps");

/* A TCP socket below another one. */
struct below {
	__u64 address;
	const struct tcp_sock *tcp; /* a copy: its pointers are numbers */
};

static __always_inline struct room *room_of(__u32 key)
{
	return bpf_map_lookup_elem(&rooms, &key);
}

static __always_inline struct room *take_room(__u32 *key)
{
	for (*key = 0; *key < ROOMS; ++*key) {
		struct room *room = room_of(*key);

		if (!room)
			return 0;
		if (!__sync_val_compare_and_swap(&room->taken, 0, 1))
			return room;
	}
	return 0;
}

static __always_inline void leave_room(struct room *room)
{
	__sync_lock_test_and_set(&room->taken, 0);
}

static __always_inline const struct tcp_sock *copy_in(const struct room *room)
{
	return (const void *)room->bytes;
}

/* False if its memory can no longer be read, or it has another protocol. */
static __always_inline bool copy_socket(struct room *room, __u64 address, __u32 size, __u16 protocol,
					struct below *below)
{
	if (size > sizeof(room->bytes))
		size = sizeof(room->bytes);
	below->address = address;
	below->tcp = copy_in(room);
	if (!address || bpf_probe_read_kernel(room->bytes, size, (void *)address))
		return false;
	return copy_in(room)->inet_conn.icsk_inet.sk.sk_protocol == protocol;
}

/* The kernel reuses the memory of a TCP socket only for TCP sockets while a program that reads it runs. */
static __always_inline bool copy_below(struct room *room, __u64 address, struct below *below)
{
	return copy_socket(room, address, bpf_core_type_size(struct tcp_sock), IPPROTO_TCP, below);
}

static __always_inline const struct sock *below_sock(const struct below *below)
{
	return &below->tcp->inet_conn.icsk_inet.sk;
}

/*
 * Defines `carried_NAME`, which reads a part of a socket's storage in a map without a pointer to the socket: it walks
 * the list of all storages of the socket. A global function, so the verifier checks it once for all calls.
 */
#define CARRIED(name, map, type, offset)                                                                               \
	__noinline int carried_##name(__u64 storage, type *to)                                                         \
	{                                                                                                              \
		const struct bpf_local_storage *all = (const void *)storage;                                           \
		const struct hlist_node *node = BPF_CORE_READ(all, list.first);                                        \
                                                                                                                       \
		for (int i = 0; to && node && i < STORAGES; i++) {                                                     \
			const struct bpf_local_storage_elem *one =                                                     \
			    (const void *)node - bpf_core_field_offset(struct bpf_local_storage_elem, snode);          \
                                                                                                                       \
			if ((__u64)BPF_CORE_READ(one, sdata.smap) == (__u64) & map)                                    \
				return !bpf_probe_read_kernel(to, sizeof(*to), one->sdata.data + (offset));            \
			node = BPF_CORE_READ(node, next);                                                              \
		}                                                                                                      \
		return 0;                                                                                              \
	}

/* Of the copied socket. */
static __always_inline __u64 storage_in(const struct room *room)
{
	return (__u64)copy_in(room)->inet_conn.icsk_inet.sk.sk_bpf_storage;
}

static __always_inline bool is_mptcp(const struct sock *sk)
{
	return sk->sk_protocol == IPPROTO_MPTCP && bpf_core_type_exists(struct mptcp_sock);
}

/* Whether a TCP socket is below an MPTCP one. */
static __always_inline bool is_subflow(const struct tcp_sock *tp)
{
	return bpf_core_field_exists(tp->is_mptcp) && tp->is_mptcp;
}

/*
 * Identifies a socket during its life. A lower socket has a cookie only if somebody requested one, and a program that
 * reads it by address cannot request one.
 */
static __always_inline __u64 identity(struct sock *sk, const struct tcp_sock *tp)
{
	if (!is_subflow(tp))
		return name_of(sk);
	return sk->__sk_common.skc_cookie.counter ?: (__u64)sk;
}

static __always_inline __u64 below_identity(const struct below *below)
{
	return below_sock(below)->__sk_common.skc_cookie.counter ?: below->address;
}

/* The storage of the MPTCP socket above a TCP socket, and of its first path; 0 if there is none. */
struct storages {
	__u64 above;
	__u64 first;
};

static __always_inline bool storages_above(struct sock *sk, struct storages *storages)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	const struct mptcp_subflow_context *context;
	const struct sock *above, *first;

	if (!tp || !is_subflow(tp))
		return false;
	context = (const void *)tp->inet_conn.icsk_ulp_data;
	above = BPF_CORE_READ(context, conn);
	first = BPF_CORE_READ((const struct mptcp_sock *)above, first);
	storages->above = (__u64)BPF_CORE_READ(above, sk_bpf_storage);
	storages->first = first == &tp->inet_conn.icsk_inet.sk ? 0 : (__u64)BPF_CORE_READ(first, sk_bpf_storage);
	return true;
}

/*
 * Whether storage of the upper MPTCP socket, or of its first path, names the owner of a path that the kernel itself
 * opens, or has accepted. `pid` is the field of the type that holds the owner. The storage of the upper socket has no
 * other use.
 */
#define is_known_above(name, sk, other, pid)                                                                           \
	({                                                                                                             \
		struct storages storages;                                                                              \
                                                                                                                       \
		storages_above(sk, &storages) && ((carried_##name(storages.above, other) && (other)->pid) ||           \
						  (carried_##name(storages.first, other) && (other)->is_known));       \
	})

/* The paths of an MPTCP socket, in order. */
struct subflows {
	__u64 above;
	const struct list_head *head;
	const struct list_head *next;
};

static __always_inline void begin_subflows(const struct sock *above, struct subflows *walk)
{
	const struct list_head *head = (const void *)above + bpf_core_field_offset(struct mptcp_sock, conn_list);

	walk->above = (__u64)above;
	walk->head = head;
	walk->next = BPF_CORE_READ(head, next);
}

/* Copies the next one; false at the end. The walk ends at a path that closes meanwhile. */
static __always_inline bool next_subflow(struct subflows *walk, struct room *room, struct below *below)
{
	const struct mptcp_subflow_context *context = (const void *)walk->next;

	if (!context || walk->next == walk->head || (__u64)BPF_CORE_READ(context, conn) != walk->above)
		return false;
	walk->next = BPF_CORE_READ(context, node.next);
	return copy_below(room, (__u64)BPF_CORE_READ(context, tcp_sock), below);
}

/* Connections that wait to be accepted at a listener below an MPTCP socket. */
struct queue_below {
	__u64 next;
	__u64 listener;
	struct seq_file *seq;
	struct task_struct *task;
	struct room *room;
	__u32 key;
	__u8 claim; /* of the task, on the listener */
};

/* Copies the next one; false at the end. */
static __always_inline bool next_waiting_below(struct queue_below *queue, struct below *below)
{
	const struct request_sock *request = (const void *)queue->next;

	if (!request || (__u64)BPF_CORE_READ(request, __req_common.skc_listener) != queue->listener)
		return false;
	queue->next = (__u64)BPF_CORE_READ(request, dl_next);
	return copy_below(queue->room, (__u64)BPF_CORE_READ(request, sk), below);
}
