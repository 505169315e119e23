/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Windows are numbered as they open: the newest, and the oldest that is still open. What was last used before that one
 * opened is of no open window, and free. Both numbers wrap.
 */
#pragma once
#include "kernel.h"

struct windows {
	__u32 newest;
	__u32 oldest;
};
volatile struct windows windows = { 1, 1 }; /* alone in .data, which is written as this */
const struct windows *windows_type __attribute__((unused));
