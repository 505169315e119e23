/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* A ring buffer of records. Its reader sleeps until much is unread, or for half a second. */
#pragma once
#include "kernel.h"

/*
 * Waking the reader costs more than a record: it interrupts this CPU, which is slow in a virtual machine. So a program
 * wakes it once in this many bytes.
 */
enum { WAKE_BYTES = 128 * 1024 };

/*
 * Bytes since the last read or wake-up. It is not atomic: concurrent writes may be lost, so a wake-up may come late.
 * The half second limits that. User space sets it to 0, so it is alone in its section.
 */
volatile __u32 unread SEC(".data.unread") = 0;

/* The flags of a record's output or submission. */
static __always_inline __u64 wake_flags(__u32 bytes)
{
	__u32 now = unread + bytes;
	bool is_much = now >= WAKE_BYTES;

	unread = is_much ? 0 : now;
	return is_much ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP;
}

/* Returns whether the record fit. */
static __always_inline bool put(void *ring, const void *record, __u64 size)
{
	if (!bpf_ringbuf_output(ring, (void *)record, size, wake_flags(size)))
		return true;
	unread = WAKE_BYTES; /* the next record that fits wakes the reader */
	return false;
}
