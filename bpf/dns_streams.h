/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * DNS over TCP. A length precedes each message. Several messages share a segment (more of them with GSO and GRO), and
 * one message spans several segments. So the program tracks, for each stream at each interface, where the next message
 * begins. It copies the beginning of each message as if it had its own segment. User space parses it.
 */
#pragma once

enum { STREAMS = 4096, MESSAGES_OF_SEGMENT = 256, PIECES_OF_SEGMENT = 3 };

struct stream {
	__u32 next;   /* sequence number of the next message, or of one with only one byte of its length */
	__u32 taken;  /* bytes up to here were copied, ... */
	__u32 wanted; /* ... and bytes up to here are wanted, of the message before `next` */
	__u32 gap;    /* sequence number of a message in a missing segment, after which others arrived */
	__u8 has_gap;
	__u8 is_cut;      /* only this byte of the length at `next` arrived: */
	__u8 high;        /* its first byte */
	__u8 is_whole;    /* tracked since its first segment */
	__u8 has_message; /* it had a message that can be DNS */
	__u8 is_other;    /* not DNS */
	__u8 pad[2];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, STREAMS);
	__type(key, __u64); /* a hash of the interface, the direction, addresses and ports */
	__type(value, struct stream);
} streams SEC(".maps");

/* A segment during the loop over its messages. */
struct segment {
	struct bounds bounds;
	__u32 transport;
	__u32 head; /* bytes of headers */
	__u32 sequence;
	__u32 length; /* of its data */
	struct stream stream;
	struct stream later; /* while a gap is filled */
	struct sight sight;
};

/* Not on the stack: the verifier would track every value through every path. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct segment);
} segments SEC(".maps");

/* The context of a loop over messages. */
struct walk {
	struct sk_buff *skb;
	struct segment *s;
};

/* Whether a sequence number is before another. They wrap. */
static __always_inline bool is_before(__u32 a, __u32 b)
{
	return (__s32)(a - b) < 0;
}

static __always_inline __u32 least(__u32 a, __u32 b)
{
	return a < b ? a : b;
}

static __always_inline void tell_part(struct sk_buff *skb, struct segment *s, struct bpf_dynptr *dynptr, __u32 at,
				      __u32 bytes, __u8 kind, const __u32 room)
{
	struct message *m = bpf_ringbuf_reserve(&messages, __builtin_offsetof(struct message, data) + HEADS + room, 0);
	__u32 head = s->head;

	if (!m) {
		__sync_fetch_and_add(&lost, 1);
		return;
	}
	barrier_var(head);
	if (head > HEADS || copy(skb, &s->bounds, dynptr, m->data, s->bounds.from, head, HEADS) != head) {
		bpf_ringbuf_discard(m, BPF_RB_NO_WAKEUP);
		return;
	}
	m->sight = s->sight;
	m->sight.segment = kind;
	*(__be32 *)(m->data + (s->transport & (HEADS - 4)) + 4) = bpf_htonl(s->sequence + at);
	m->sight.length = head + copy(skb, &s->bounds, dynptr, m->data + head, s->bounds.from + head + at, bytes, room);
	bpf_ringbuf_submit(m, wake_flags(sizeof(m->sight) + HEADS + room));
}

/* Copies `bytes` of the data at `at`, PIECE at most. */
static __noinline int take(struct sk_buff *skb, struct segment *s, __u32 at, __u32 bytes, __u8 kind)
{
	struct bpf_dynptr dynptr;

	if (bytes <= SHORT_PIECE)
		tell_part(skb, s, &dynptr, at, bytes, kind, SHORT_PIECE);
	else
		tell_part(skb, s, &dynptr, at, bytes, kind, PIECE);
	return 0;
}

/* The first bytes of a message of the segment, with its length; returns the number of available bytes. */
static __noinline __u32 read_start(struct sk_buff *skb, struct segment *s, __u32 at, __u8 *start)
{
	struct bpf_dynptr dynptr;

	return copy(skb, &s->bounds, &dynptr, start, s->bounds.from + s->head + at, s->length - at, 2 + DNS_HEADER);
}

/* The length of the message at `next`, with its length field. */
static __always_inline void expect(struct stream *stream, __u32 bytes, bool is_wanted)
{
	stream->wanted = is_wanted ? stream->next + least(bytes, PIECE) : stream->taken;
	stream->next += bytes;
}

static long take_message(__u32 i, struct walk *walk)
{
	struct segment *s = walk->s;
	struct stream *stream = &s->stream;
	__u8 start[2 + DNS_HEADER] = {};
	__u32 at = stream->next - s->sequence, left = s->length - at, got, bytes, length;
	bool is_dns;

	if (at >= s->length)
		return 1;
	got = read_start(walk->skb, s, at, start);
	if (!got) { /* in pages that cannot be read */
		stream->next = stream->taken = stream->wanted = s->sequence + s->length;
		return 1;
	}
	length = number_at(start, 0);
	bytes = least(left, least(2 + length, PIECE));
	if (got == 1) {
		stream->is_cut = 1;
		stream->high = start[0];
		stream->taken = stream->wanted = stream->next + 1;
		take(walk->skb, s, at, 1, BEGINS);
		return 1;
	}
	if (length < DNS_HEADER) {
		stream->is_other = 1;
		return 1;
	}
	is_dns = got < sizeof(start) || begins(start + 2, length);
	if (is_dns)
		take(walk->skb, s, at, bytes, BEGINS);
	stream->has_message |= is_dns && got == sizeof(start);
	stream->taken = stream->next + bytes;
	expect(stream, 2 + length, is_dns);
	return 0;
}

static long take_part(__u32 i, struct walk *walk)
{
	struct segment *s = walk->s;
	__u32 at = i * PIECE;

	if (at >= s->length)
		return 1;
	take(walk->skb, s, at, least(s->length - at, PIECE), SEGMENT);
	return 0;
}

/* The wanted rest of a message that began in an earlier segment. */
static __always_inline void take_rest(struct walk *walk)
{
	struct segment *s = walk->s;
	struct stream *stream = &s->stream;
	__u32 from, to, low = stream->next + 1 - s->sequence;
	__u8 start[2 + DNS_HEADER] = {};

	if (stream->is_cut && low < s->length && read_start(walk->skb, s, low, start)) {
		stream->is_cut = 0;
		expect(stream, 2 + (stream->high << 8 | start[0]), true);
	}
	if (!is_before(s->sequence, stream->wanted))
		return;
	from = is_before(stream->taken, s->sequence) ? 0 : stream->taken - s->sequence;
	to = least(stream->wanted - s->sequence, s->length);
	if (from >= to)
		return;
	take(walk->skb, s, from, to - from, SEGMENT);
	if (!is_before(stream->taken, s->sequence)) /* otherwise an earlier segment is missing, and may still arrive */
		stream->taken = s->sequence + to;
}

/* The missing segment arrived: handle its messages. */
static __always_inline void fill_gap(struct walk *walk)
{
	struct segment *s = walk->s;
	s->later = s->stream;
	s->later.has_gap = 0;
	s->stream.next = s->stream.taken = s->stream.wanted = s->stream.gap;
	s->stream.is_cut = 0;
	bpf_loop(MESSAGES_OF_SEGMENT, take_message, walk, 0);
	s->stream = s->later;
}

/*
 * For a segment whose position in its stream is unknown, since the stream began before the window or a segment is
 * missing: whether a message begins with it. Otherwise the segment is copied where a message may continue: it is short,
 * or it comes without the length, which some servers send separately, or the stream has carried DNS so far.
 */
static __always_inline bool is_beginning(struct walk *walk)
{
	struct segment *s = walk->s;
	struct stream *stream = &s->stream;
	__u8 start[2 + DNS_HEADER] = {};
	__u32 got = read_start(walk->skb, s, 0, start);

	if (got == sizeof(start) && begins(start + 2, number_at(start, 0))) {
		if ((stream->is_whole || stream->has_message) && !stream->has_gap) {
			stream->gap = stream->next;
			stream->has_gap = 1;
		}
		stream->next = stream->taken = stream->wanted = s->sequence;
		stream->is_cut = 0;
		return true;
	}
	if ((stream->is_whole || stream->has_message) && s->length <= PIECES_OF_SEGMENT * PIECE)
		bpf_loop(PIECES_OF_SEGMENT, take_part, walk, 0);
	else if (s->length <= PIECE || got < DNS_HEADER || begins(start, s->length))
		take(walk->skb, s, 0, least(s->length, PIECE), SEGMENT);
	return false;
}

/* A segment; `s` has everything except the state of its stream. */
static __always_inline int see_segment(struct sk_buff *skb, struct segment *s, __u64 key, bool is_first)
{
	struct stream *known = is_first ? 0 : bpf_map_lookup_elem(&streams, &key), *stream = &s->stream;
	struct walk walk = { skb, s };
	bool is_known = known;

	__builtin_memset(stream, 0, sizeof(*stream));
	if (known) {
		*stream = *known;
		if (stream->is_other)
			return 0;
		take_rest(&walk);
		if (stream->has_gap && stream->gap - s->sequence < s->length)
			fill_gap(&walk);
	} else if (is_first) {
		stream->next = stream->taken = stream->wanted = s->sequence;
		stream->is_whole = 1;
	}
	if (!is_first && (!is_known || is_before(stream->next, s->sequence)) && !is_beginning(&walk))
		return 0;
	if (bpf_loop(MESSAGES_OF_SEGMENT, take_message, &walk, 0) == MESSAGES_OF_SEGMENT && stream->has_message &&
	    is_before(stream->next, s->sequence + s->length))
		__sync_fetch_and_add(&lost, 1);
	if (stream->is_other && !stream->is_whole)
		bpf_map_delete_elem(&streams, &key);
	else
		bpf_map_update_elem(&streams, &key, stream, BPF_ANY);
	return 0;
}
