/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * DNS messages as they pass interfaces, of every network namespace.
 *
 * At the device, not at a socket: no tracepoint of a socket shows what is sent. A message is seen at
 * each interface that it passes; user space, which parses it, makes one of these.
 */
#include "holders.h"
#include "packet.h"

enum { DNS = 53, MDNS = 5353 };

/* An IPv6 header, a TCP header with options, and a message as long as UDP without EDNS allows. */
enum { CAPTURE = 640 };

struct message {
	__u64 time_ns;
	__u64 socket; /* cookie of its socket, or address where it has none yet; 0 = not sent here */
	struct owner owner;
	__u32 ifindex;
	__u32 netns; /* of the interface */
	__u16 protocol;
	__u16 port;   /* of the socket */
	__u16 length; /* of `data` */
	__u8 egress;
	__u8 pad;
	__u8 data[CAPTURE]; /* from the network header on */
};
const struct message *message_type __attribute__((unused));

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 512 * 1024);
} messages SEC(".maps");

__u64 lost; /* messages that found the ring buffer full */

static __always_inline bool is_dns(__u16 port)
{
	return port == DNS || port == MDNS;
}

/* A packet that leaves has its socket, which mostly tells without a look at the packet. */
static __always_inline bool is_of_other_ports(const struct sock *sk)
{
	__u8 state = sk->__sk_common.skc_state;
	__u16 remote = bpf_ntohs(sk->__sk_common.skc_dport);

	if (state == TCP_TIME_WAIT || state == TCP_NEW_SYN_RECV || !is_inet(sk))
		return false;
	return remote && !is_dns(remote) && !is_dns(sk->__sk_common.skc_num);
}

/* Whether the headers are of UDP, or of TCP with data, from or to a port of DNS. */
static __always_inline bool is_message(struct sk_buff *skb, const __u8 *header, __u32 bytes)
{
	__u8 protocol = header[9];
	__u32 offset = (header[0] & 15) * 4, ports;

	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		protocol = header[6];
		offset = 40;
	}
	if ((protocol != IPPROTO_UDP && protocol != IPPROTO_TCP) || offset > HEADER - 16)
		return false;
	ports = bpf_ntohl(word_at(header, offset));
	if (!is_dns(ports >> 16) && !is_dns(ports & 0xffff))
		return false;
	if (protocol == IPPROTO_TCP)
		offset += (byte_at(header, offset + 12) >> 4) * 4;
	else
		offset += 8;
	return bytes > offset;
}

struct bpf_dynptr {
	__u64 opaque[2];
} __attribute__((aligned(8)));

/* Linux 6.12 and newer; the only way to data that is in pages, where TCP puts what it sends. */
extern int bpf_dynptr_from_skb(struct __sk_buff *skb, __u64 flags, struct bpf_dynptr *dynptr) __ksym __weak;

static __always_inline __u32 copy_message(struct sk_buff *skb, __u8 *to, __u64 from, __u32 bytes)
{
	__u64 linear = (__u64)skb->head + skb->tail - from;
	__u32 length = bytes < CAPTURE ? bytes : CAPTURE;
	struct bpf_dynptr dynptr;

	if (linear < length && bpf_ksym_exists(bpf_dynptr_from_skb)) {
		if (bpf_dynptr_from_skb((void *)skb, 0, &dynptr))
			return 0;
		barrier_var(length);
		if (length > CAPTURE)
			return 0;
		return bpf_dynptr_read(to, length, &dynptr, from - (__u64)skb->data, 0) ? 0 : length;
	}
	if (linear < length)
		length = linear;
	barrier_var(length);
	if (length > CAPTURE)
		return 0;
	return bpf_probe_read_kernel(to, length, (void *)from) ? 0 : length;
}

static __always_inline int see(struct sk_buff *skb, __u64 from, bool egress)
{
	__u8 header[HEADER] __attribute__((aligned(8))) = {};
	struct sock *sk = skb->sk;
	struct message *m;
	__u32 bytes;

	if (skb->protocol != bpf_htons(ETH_P_IP) && skb->protocol != bpf_htons(ETH_P_IPV6))
		return 0;
	if (sk && is_of_other_ports(sk))
		return 0;
	bytes = skb->len - (from - (__u64)skb->data);
	if (!copy_from(skb, header, from) || !is_message(skb, header, bytes))
		return 0;
	m = bpf_ringbuf_reserve(&messages, sizeof(*m), 0);
	if (!m) {
		__sync_fetch_and_add(&lost, 1);
		return 0;
	}
	m->time_ns = bpf_ktime_get_ns();
	m->socket = socket_of(skb);
	__builtin_memset(&m->owner, 0, sizeof(m->owner));
	m->ifindex = BPF_CORE_READ(skb, dev, ifindex);
	m->netns = BPF_CORE_READ(skb, dev, nd_net.net, ns.inum);
	m->protocol = bpf_ntohs(skb->protocol);
	m->port = 0;
	m->egress = egress;
	m->pad = 0;
	if (sk) {
		m->port = BPF_CORE_READ(sk, __sk_common.skc_num);
		m->owner.netns = sock_netns(sk);
		if (egress && current_owns(sk))
			current_owner(&m->owner);
	}
	m->length = copy_message(skb, m->data, from, bytes);
	bpf_ringbuf_submit(m, 0);
	return 0;
}

/* As it is queued: still in the context of who sent it, unless it had to wait for a neighbor. */
SEC("tp_btf/net_dev_queue")
int BPF_PROG(sent, struct sk_buff *skb)
{
	return see(skb, network_header(skb), true);
}

/* The stack's own entry, once for what GRO has put together; `data` is at the network header here. */
SEC("tp_btf/netif_receive_skb")
int BPF_PROG(received, struct sk_buff *skb)
{
	return see(skb, (__u64)skb->data, false);
}
