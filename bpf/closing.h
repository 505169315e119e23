/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The process that closes a socket. */
#pragma once
#include "owner.h"

enum { EXECVE_X86_64 = 59, EXECVEAT_X86_64 = 322, EXECVE_ARM64 = 221, EXECVEAT_ARM64 = 281 };

/* Linux 5.15 and newer. */
enum bpf_func_id___regs { BPF_FUNC_task_pt_regs___regs = 175 };

/*
 * Whether a process is on its way out of execve(). What it closes then are copies of its parent's files, by the flag
 * close-on-exec. Its copy is the last one if the parent closed the file between fork() and execve().
 */
static __always_inline bool leaves_exec(struct task_struct *task)
{
	struct pt_regs *regs;

	if (!bpf_core_enum_value_exists(enum bpf_func_id___regs, BPF_FUNC_task_pt_regs___regs))
		return false;
	regs = (void *)bpf_task_pt_regs(task);
	if (bpf_core_field_exists(regs->orig_ax))
		return regs->orig_ax == EXECVE_X86_64 || regs->orig_ax == EXECVEAT_X86_64;
	return regs->syscallno == EXECVE_ARM64 || regs->syscallno == EXECVEAT_ARM64;
}

/* The current process, or the parent whose copy it closes. `owner` is the known owner, which may replace itself. */
static __always_inline const struct task_struct *closing_task(__u32 owner)
{
	struct task_struct *current = bpf_get_current_task_btf();
	const struct task_struct *task = untrusted(task_struct, current), *parent = task->real_parent;

	return leaves_exec(current) && task->tgid != owner && !is_manager(parent) ? parent : task;
}
