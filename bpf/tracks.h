/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The storage of a monitored socket: its owner and opening time. */
#pragma once
#include "connections.h"

enum ended { NOT_ENDED, REPORTED, RETURNED /* connect() has returned the error that was reported */ };

/* The storage of a socket. Each accepted connection gets a copy of its listener's. */
struct track {
	__u64 start_ns;       /* connect(), or the handshake of an inbound connection; 0 = before the first window */
	__u64 established_ns; /* 0 = not established, or before the first window */
	struct owner owner;
	__u32 round; /* the last search that found it, or the last reading that listed it */
	__u8 direction;
	__u8 ended;   /* enum ended */
	__u8 managed; /* a service manager's, unless another holder is known */
	__u8 pad;
	__s32 error; /* of an attempt: the error that its process got before it ended */
	__u32 pad2;
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct track);
} tracks SEC(".maps");

static __always_inline struct track *track_of(struct sock *sk)
{
	struct track *track = sk_storage_of(&tracks, sk);

	if (!track)
		__sync_fetch_and_add(&figures.lost, 1);
	return track;
}

static __always_inline void load_track(const struct track *track, struct connection *c)
{
	c->start_ns = track->start_ns;
	c->established_ns = track->established_ns;
	c->owner = track->owner;
	c->direction = track->direction;
}
