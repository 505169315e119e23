/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Records of a ring buffer that user space reads every 50 ms. */
#pragma once
#include "kernel.h"

/*
 * A reader that is woken for each record costs its sender more than the record. So it is woken once in so many bytes,
 * also while it is too busy to read them.
 */
enum { WAKE_BYTES = 64 * 1024 };

/* Returns whether there was room. */
static __always_inline bool put(void *ring, const void *record, __u64 size)
{
	__u64 unread = bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA), flags = BPF_RB_NO_WAKEUP;

	if (unread >= WAKE_BYTES && unread % WAKE_BYTES < 2 * size)
		flags = BPF_RB_FORCE_WAKEUP;
	return !bpf_ringbuf_output(ring, (void *)record, size, flags);
}
