/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* Records of a ring buffer that user space reads every 50 ms. */
#pragma once
#include "kernel.h"

/*
 * Waking the reader for each record costs more than the record. So the program wakes it once per this number of bytes,
 * even while it is busy.
 */
enum { WAKE_BYTES = 64 * 1024 };

/* Returns whether the record fit. */
static __always_inline bool put(void *ring, const void *record, __u64 size)
{
	__u64 unread = bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA), flags = BPF_RB_NO_WAKEUP;

	if (unread >= WAKE_BYTES && unread % WAKE_BYTES < 2 * size)
		flags = BPF_RB_FORCE_WAKEUP;
	return !bpf_ringbuf_output(ring, (void *)record, size, flags);
}
