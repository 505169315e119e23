/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The part of trace_connections in a socket's storage. */
#pragma once
#include "connections.h"
#include "storage.h"

enum ended { NOT_ENDED, REPORTED, RETURNED /* connect() has returned the error that was reported */ };

static __always_inline struct track *known_track(struct sock *sk)
{
	return KNOWN_PART(sk, track);
}

static __always_inline struct track *track_of(struct sock *sk)
{
	struct track *track = PART(sk, track);

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
