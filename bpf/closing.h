/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The process that closes a socket. */
#pragma once
#include "owner.h"

enum { EXECVE_X86_64 = 59, EXECVEAT_X86_64 = 322, EXECVE_ARM64 = 221, EXECVEAT_ARM64 = 281 };

/* Linux 5.15 and newer. */
enum bpf_func_id___regs { BPF_FUNC_task_pt_regs___regs = 175 };

/* fork() makes both numbers equal, and each execve() adds one to the first. */
struct task_struct___exec {
	__u64 self_exec_id;
	__u64 parent_exec_id;
} __attribute__((preserve_access_index));

static __always_inline bool leaves_execve(struct task_struct *task)
{
	struct pt_regs *regs;

	if (!bpf_core_enum_value_exists(enum bpf_func_id___regs, BPF_FUNC_task_pt_regs___regs))
		return false;
	regs = (void *)bpf_task_pt_regs(task);
	if (bpf_core_field_exists(regs->orig_ax))
		return regs->orig_ax == EXECVE_X86_64 || regs->orig_ax == EXECVEAT_X86_64;
	return regs->syscallno == EXECVE_ARM64 || regs->syscallno == EXECVEAT_ARM64;
}

/*
 * Whether a child leaves its first execve(). It then closes copies of its parent's files that have the flag
 * close-on-exec. A copy is the last one if the parent closed the file after fork().
 */
static __always_inline bool closes_copies(struct task_struct *task)
{
	const struct task_struct___exec *exec = (const void *)task;

	return leaves_execve(task) && exec->self_exec_id == exec->parent_exec_id + 1;
}

/*
 * The current process, or the parent whose copy it closes. `owner` is the known owner (0 = unknown): if it executes
 * itself, it stays the owner. A worker without a known socket that executes itself cannot be told from such a child.
 */
static __always_inline const struct task_struct *closing_task(__u32 owner)
{
	struct task_struct *current = bpf_get_current_task_btf();
	const struct task_struct *task = untrusted(task_struct, current), *parent = task->real_parent;

	if (!closes_copies(current) || task->tgid == owner || parent->flags & PF_KTHREAD || is_manager(parent))
		return task;
	return parent;
}
