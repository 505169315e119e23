/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* What a socket carries while it is watched: who it belongs to, and when it was opened. */
#pragma once
#include "connections.h"

enum ended { NOT_ENDED, REPORTED, RETURNED /* connect() has returned the error that was reported */ };

/* What a socket carries. A listener's is copied to each connection that it accepts. */
struct track {
	__u64 start_ns;       /* connect(), or the handshake of an inbound connection; 0 = before anyone watched */
	__u64 established_ns; /* 0 = not established, or before anyone watched */
	struct owner owner;
	__u32 round; /* the last search that found it, or reading that listed it */
	__u8 direction;
	__u8 ended;   /* enum ended */
	__u8 managed; /* it is a manager's, as long as nobody else is known to have it */
	__u8 pad;
	__s32 error; /* of an attempt: what its process was told before it ended */
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
