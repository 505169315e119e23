/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Numbers of windows, in the order of opening: the newest, the oldest open one, and the first of the current period of
 * open windows. Entries last used before the oldest open window are free. Entries from before the first window belong
 * to an earlier period and are stale. The numbers wrap.
 */
#pragma once
#include "kernel.h"

struct windows {
	__u32 newest;
	__u32 oldest;
	__u32 first;
};
volatile struct windows windows = { 1, 1, 1 }; /* alone in .data, which user space overwrites */
const struct windows *windows_type __attribute__((unused));
