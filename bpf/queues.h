/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Queues before the devices of every network namespace; netlink shows only our own. The program walks the list of
 * namespaces and each list of devices by address, without a lock. Freed memory ends the walk.
 */
#pragma once
#include "accept_queue.h"

/* Rows per call: an iterator may write 32 KiB. */
enum { QUEUES = 400, NAMESPACES = 8192, DEVICES = 8192 };

/* A flag of struct Qdisc: counters are per CPU, and only a netlink request sums them. */
enum { TCQ_F_CPUSTATS = 0x20 };

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct proc_ns_operations;

struct ns_common___queues {
	const struct proc_ns_operations *ops;
	unsigned int inum;
};

struct net___queues {
	struct ns_common___queues ns;
	struct list_head list;
	struct list_head dev_base_head;
};

struct Qdisc_ops {
	char id[16];
};

struct gnet_stats_basic_sync {
	__u64 bytes;
};

struct gnet_stats_queue {
	__u32 backlog;
	__u32 drops;
};

struct Qdisc {
	unsigned int flags;
	const struct Qdisc_ops *ops;
	struct gnet_stats_basic_sync bstats;
	struct gnet_stats_queue qstats;
};

struct net_device___queues {
	struct list_head dev_list;
	struct Qdisc *qdisc;
	possible_net_t nd_net;
	int ifindex;
	char name[16];
};

#pragma clang attribute pop

/* The root queueing discipline of a device, if it exists and has one set of counters. */
struct queue_row {
	__u64 bytes;   /* sent */
	__u32 backlog; /* bytes */
	__u32 drops;
	__u32 netns;
	__u32 ifindex;
	char interface[16];
	char kind[16];
};
const struct queue_row *queue_row_type __attribute__((unused));

struct queue_walk {
	struct seq_file *seq;
	__u64 first; /* our own namespace, first and last of the walk */
	__u64 ops;   /* common to all network namespaces; the head of the list differs */
	__u64 net;
	__u64 device; /* its entry in the list */
	__u32 netns;
	__u32 rows;
	struct queue_row row;
};

static __always_inline void load_queue(struct queue_walk *walk, const struct net_device___queues *device)
{
	struct queue_row *row = &walk->row;
	struct Qdisc *qdisc = BPF_CORE_READ(device, qdisc);

	__builtin_memset(row, 0, sizeof(*row));
	BPF_CORE_READ_INTO(&row->kind, qdisc, ops, id);
	/* noqueue, noop */
	if (!row->kind[0] || (row->kind[0] == 'n' && row->kind[1] == 'o'))
		return;
	if (BPF_CORE_READ(qdisc, flags) & TCQ_F_CPUSTATS)
		return;
	BPF_CORE_READ_INTO(&row->interface, device, name);
	bpf_core_read(&row->bytes, sizeof(row->bytes), &qdisc->bstats);
	row->backlog = BPF_CORE_READ(qdisc, qstats.backlog);
	row->drops = BPF_CORE_READ(qdisc, qstats.drops);
	row->netns = walk->netns;
	row->ifindex = BPF_CORE_READ(device, ifindex);
	if (!bpf_seq_write(walk->seq, row, sizeof(*row)))
		walk->rows++;
}

static long list_device(__u32 i, struct queue_walk *walk)
{
	const struct net___queues *net = (void *)walk->net;
	const struct net_device___queues *device;
	__u64 head = (__u64)&net->dev_base_head;

	if (!walk->device || walk->device == head || walk->rows >= QUEUES)
		return 1;
	device = (void *)(walk->device - bpf_core_field_offset(struct net_device___queues, dev_list));
	if ((__u64)BPF_CORE_READ(device, nd_net.net) != walk->net)
		return 1;
	load_queue(walk, device);
	walk->device = (__u64)BPF_CORE_READ(device, dev_list.next);
	return 0;
}

static long list_namespace(__u32 i, struct queue_walk *walk)
{
	const struct net___queues *net = (void *)walk->net;

	if ((__u64)BPF_CORE_READ(net, ns.ops) == walk->ops) {
		walk->netns = BPF_CORE_READ(net, ns.inum);
		walk->device = (__u64)BPF_CORE_READ(net, dev_base_head.next);
		bpf_loop(DEVICES, list_device, walk, 0);
	}
	walk->net = (__u64)BPF_CORE_READ(net, list.next) - bpf_core_field_offset(struct net___queues, list);
	return walk->net == walk->first || walk->rows >= QUEUES;
}

/* Once, after the last socket. */
SEC("iter/udp")
int list_queues(struct bpf_iter__udp *ctx)
{
	struct queue_walk walk = { .seq = ctx->meta->seq };
	struct task_struct *task;
	const struct net___queues *own;

	if (ctx->udp_sk || !bpf_core_enum_value_exists(enum bpf_func_id___loop, BPF_FUNC_loop___loop))
		return 0;
	task = bpf_get_current_task_btf();
	own = (void *)BPF_CORE_READ(task, nsproxy, net_ns);
	walk.first = walk.net = (__u64)own;
	walk.ops = (__u64)BPF_CORE_READ(own, ns.ops);
	if (walk.ops)
		bpf_loop(NAMESPACES, list_namespace, &walk, 0);
	return 0;
}
