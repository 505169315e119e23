/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* How long the threads that use sockets wait for a CPU: also those that a quota of their control group stops. */
#pragma once
#include "stages.h"

enum { TASK_RUNNING = 0, BPF_LOCAL_STORAGE_GET_F_CREATE = 1 };

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct task_struct___stored {
	void *bpf_storage;
};

#pragma clang attribute pop

struct runner {
	__u64 runnable_ns; /* 0 = it runs, or sleeps */
	__u32 group;       /* of a socket that it uses */
	__u32 first;       /* first window of its period */
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct runner);
} runners SEC(".maps");

static __always_inline void note_runner(__u32 group)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct runner *runner = bpf_task_storage_get(&runners, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (!runner)
		return;
	if (runner->first != windows.first) {
		runner->first = windows.first;
		runner->runnable_ns = 0;
	}
	runner->group = group;
}

/* Most tasks have no storage, and a look at the pointer is cheap. */
static __always_inline struct runner *runner_of(struct task_struct *task)
{
	struct runner *runner;

	if (!((struct task_struct___stored *)task)->bpf_storage)
		return 0;
	runner = bpf_task_storage_get(&runners, task, 0, 0);
	return runner && runner->first == windows.first ? runner : 0;
}

SEC("tp_btf/sched_wakeup")
int BPF_PROG(task_wakes, struct task_struct *task)
{
	struct runner *runner = runner_of(task);

	if (runner && !runner->runnable_ns)
		runner->runnable_ns = bpf_ktime_get_ns();
	return 0;
}

SEC("tp_btf/sched_switch")
int BPF_PROG(task_switches, bool preempt, struct task_struct *prev, struct task_struct *next, unsigned int state)
{
	struct runner *runner = runner_of(next);
	__u64 now = 0;

	if (runner && runner->runnable_ns) {
		now = bpf_ktime_get_ns();
		add_ns(runner->group, RUNNABLE_TO_RUNNING, now - runner->runnable_ns, 1);
		runner->runnable_ns = 0;
	}
	if (state != TASK_RUNNING)
		return 0;
	runner = runner_of(prev);
	if (runner)
		runner->runnable_ns = now ?: bpf_ktime_get_ns();
	return 0;
}
