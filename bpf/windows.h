/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Windows are numbered as they open: the newest, the oldest that is still open, and the first of the period in which
 * there was always one open. What was last used before the oldest one opened is of no open window, and free; what was
 * seen before the first one is of another period, and stale. The numbers wrap.
 */
#pragma once
#include "kernel.h"

struct windows {
	__u32 newest;
	__u32 oldest;
	__u32 first;
};
volatile struct windows windows = { 1, 1, 1 }; /* alone in .data, which is written as this */
const struct windows *windows_type __attribute__((unused));
