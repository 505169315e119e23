/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Sockets that a process uses through io_uring by a number within the ring: registered files and direct descriptors. No
 * process' file table has them. The iterator over files shows the ring. The ring's table is read by address, like lower
 * sockets.
 */
#pragma once
#include "accept_queue.h"
#include "below.h"

enum {
	RING_SOCKETS = 64,  /* sockets read per ring: an iterator may write 32 KiB for one file */
	RING_SLOTS = 32768, /* table slots searched per ring: the maximal table size until Linux 5.18 */
	FILE_FLAGS = 7,     /* the lowest bits of a file's address in the table */
	ANON_INODES = 0x09041934,
	SOCKETS = 0x534f434b, /* file systems by their magic, of linux/magic.h */
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct super_block {
	unsigned long s_magic;
};

struct inode {
	struct super_block *i_sb;
};

struct qstr {
	const unsigned char *name;
};

struct dentry {
	struct qstr d_name;
};

struct path {
	struct dentry *dentry;
};

struct file {
	struct inode *f_inode;
	struct path f_path;
	void *private_data;
};

/* Of a table since Linux 6.13 … */
struct io_rsrc_node {
	unsigned long file_ptr;
};

struct io_rsrc_data {
	unsigned int nr;
	struct io_rsrc_node **nodes;
};

/* … and before. */
struct io_fixed_file {
	unsigned long file_ptr;
};

struct io_file_table {
	struct io_rsrc_data data;
	struct io_fixed_file *files;
};

struct io_ring_ctx {
	struct io_file_table file_table;
	unsigned int nr_user_files;
};

#pragma clang attribute pop

/* A ring, and the requester of its sockets. */
struct ring {
	__u64 address;
	__u64 table;
	struct seq_file *seq;
	struct task_struct *task;
	struct room *room;
	__u32 key; /* of the room */
	__u32 slots;
	__u32 listed;
	__u32 unread; /* files without a row that are sockets, or may be */
	__u8 claim;
};

/* Whether a file is a ring: by the name of its anonymous inode. */
static __always_inline bool is_ring(struct file *file)
{
	static const char ring[] = "[io_uring]";
	char name[sizeof(ring)];

	if (file->f_inode->i_sb->s_magic != ANON_INODES)
		return false;
	if (bpf_probe_read_kernel(name, sizeof(name), file->f_path.dentry->d_name.name))
		return false;
	for (int i = 0; i < sizeof(ring); i++)
		if (name[i] != ring[i])
			return false;
	return true;
}

static __always_inline bool has_nodes(void)
{
	return bpf_core_field_exists(((struct io_file_table *)0)->data);
}

/* A ring with registered files. */
static __always_inline bool begin_ring(struct file *file, struct ring *ring)
{
	const struct io_ring_ctx *context = file->private_data;

	ring->address = (__u64)context;
	if (has_nodes()) {
		ring->slots = BPF_CORE_READ(context, file_table.data.nr);
		ring->table = (__u64)BPF_CORE_READ(context, file_table.data.nodes);
	} else if (bpf_core_field_exists(context->nr_user_files)) {
		ring->slots = BPF_CORE_READ(context, nr_user_files);
		ring->table = (__u64)BPF_CORE_READ(context, file_table.files);
	}
	return ring->slots && ring->table;
}

/* The file in a slot; 0 if there is none. */
static __always_inline __u64 file_in(const struct ring *ring, __u32 slot)
{
	__u64 entry = 0;

	/* A pointer to a node, or a struct of the same size. */
	if (bpf_probe_read_kernel(&entry, sizeof(entry), (void *)(ring->table + slot * sizeof(entry))))
		return 0;
	if (entry && has_nodes())
		entry = BPF_CORE_READ((const struct io_rsrc_node *)entry, file_ptr);
	return entry & ~(__u64)FILE_FLAGS;
}

enum ring_file { RING_OTHER, RING_TCP, RING_UDP, RING_UNREAD };

/*
 * Copies the socket in a slot, and returns its kind: a TCP or UDP socket, another file, or one that cannot be read
 * here. A file that closes meanwhile is skipped: its socket no longer points to it.
 */
static __always_inline enum ring_file copy_from_ring(const struct ring *ring, __u32 slot, struct below *below)
{
	__u64 file = file_in(ring, slot);
	const struct socket *socket;
	const struct sock *sk;
	__u16 family, protocol;

	if (!file || BPF_CORE_READ((const struct file *)file, f_inode, i_sb, s_magic) != SOCKETS)
		return RING_OTHER;
	socket = BPF_CORE_READ((const struct file *)file, private_data);
	if ((__u64)BPF_CORE_READ(socket, file) != file)
		return RING_OTHER;
	sk = BPF_CORE_READ(socket, sk);
	family = BPF_CORE_READ(sk, __sk_common.skc_family);
	if (family != AF_INET && family != AF_INET6)
		return RING_OTHER;
	protocol = BPF_CORE_READ(sk, sk_protocol);
	if (protocol == IPPROTO_MPTCP)
		return RING_UNREAD;
	if (protocol == IPPROTO_TCP)
		return copy_below(ring->room, (__u64)sk, below) ? RING_TCP : RING_OTHER;
	if (protocol != IPPROTO_UDP)
		return RING_OTHER;
	return copy_socket(ring->room, (__u64)sk, bpf_core_type_size(struct udp_sock), IPPROTO_UDP, below) ? RING_UDP
													   : RING_OTHER;
}

/*
 * Runs `each` for every slot of a process' ring, unless its parent also has the ring. True if it ran: then the caller
 * must release the room.
 */
static __always_inline bool walk_ring(struct bpf_iter__task_file *ctx, struct task_struct *task, struct file *file,
				      struct ring *ring, long (*each)(__u32, struct ring *))
{
	ring->claim = claim_of(task, ctx->fd, file);
	if (ring->claim == CLAIM_INHERITED || !begin_ring(file, ring))
		return false;
	ring->room = take_room(&ring->key);
	if (!ring->room)
		return false;
	ring->seq = ctx->meta->seq;
	ring->task = task;
	if (!bpf_core_enum_value_exists(enum bpf_func_id___loop, BPF_FUNC_loop___loop)) {
		ring->unread = ring->slots;
		return true;
	}
	if (ring->slots > RING_SLOTS)
		ring->unread = ring->slots - RING_SLOTS;
	bpf_loop(ring->slots < RING_SLOTS ? ring->slots : RING_SLOTS, each, ring, 0);
	return true;
}
