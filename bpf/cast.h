/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Pointers to types of the kernel. */
#pragma once
#include "kernel.h"

/* Linux 6.2 and newer. Not a call but a marker: the verifier then lets the program load there. */
extern void *bpf_rdonly_cast(const void *object, __u32 btf_id) __ksym __weak;

#define cast_to(type, address)                                                                                         \
	((const struct type *)bpf_rdonly_cast((void *)(address), bpf_core_type_id_kernel(struct type)))

/*
 * The same pointer, which the verifier then does not trust. For each pointer that is loaded through a trusted one,
 * Linux 6.4 and newer search all types of the kernel by name, up to four times (btf_nested_type_is_trusted()). That
 * took most of the time to load (docs/costs.md).
 */
#define untrusted(type, pointer) (bpf_ksym_exists(bpf_rdonly_cast) ? cast_to(type, pointer) : (pointer))

/* An address that is only a number to the verifier. It checks a global function by itself, so that takes no pointer. */
static __always_inline __u64 number_of(__u64 address)
{
	__u64 number = 0;

	bpf_probe_read_kernel(&number, sizeof(number), &address);
	return number;
}
