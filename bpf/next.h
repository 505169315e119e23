/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Programs of several tools at one tracepoint. To enter an attached program costs more than a tail call, and often more
 * than the program does (docs/costs.md). So only `hub.bpf.c` is attached there, and each program ends with a tail call
 * to the next one.
 */
#pragma once
#include "kernel.h"

/* The place of the program after `name`: empty, or filled by user space. */
#define NEXT_OF(name)                                                                                                  \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_PROG_ARRAY);                                                                 \
		__uint(max_entries, 1);                                                                                \
		__type(key, __u32);                                                                                    \
		__type(value, __u32);                                                                                  \
	} after_##name SEC(".maps")

/*
 * The last statement but `return 0`: it does not come back if there is a next program. Not bpf_tail_call_static(),
 * which is a function of libbpf with line numbers: the object would have the path of its temporary folder.
 */
#define RUN_NEXT(name) bpf_tail_call(ctx, &after_##name, 0)
