/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * After the last window: otherwise a marked listener would continue to copy its mark. The file that includes this
 * defines `forget()` first, which removes the tool's part of a socket's storage. A socket of another network namespace
 * that no process holds, or that the verifier does not trust, keeps its part, which has the number of its window.
 */
#pragma once
#include "files.h"

SEC("iter/task_file")
int forget_held(struct bpf_iter__task_file *ctx)
{
	struct sock *sk = inet_socket_of(ctx->file);

	if (sk && !files_are_untrusted)
		forget(sk);
	return 0;
}

SEC("iter/tcp")
int forget_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *c = ctx->sk_common;
	struct tcp_sock *tp = c ? bpf_skc_to_tcp_sock(c) : 0;

	if (tp)
		forget(&tp->inet_conn.icsk_inet.sk);
	return 0;
}
