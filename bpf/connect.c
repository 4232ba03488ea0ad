//go:build ignore
// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
// cgroup/connect4 and connect6 at the node's cgroup root: marks the sockets with
// which an enrolled pod's apps connect, so that policy routing in the pod turns
// them to loopback, where steer.c finds them. Costs a map lookup per connect of
// any process on the node.
#include "pod_ips.h"

// Enrolled pods by the cookie of their netns.
struct {
	UINT(type, MAP_TYPE_HASH);
	UINT(map_flags, MAP_NO_PREALLOC);
	UINT(max_entries, 4096);
	TYPE(key, __u64);
	TYPE(value, __u32);
} enrolled SEC(".maps");

enum { REFUSE, ALLOW };

INLINE int capture(struct bpf_sock_addr *ctx, const struct addr *dst)
{
	__u64 cookie = bpf_get_netns_cookie(ctx);
	if (!bpf_map_lookup_elem(&enrolled, &cookie))
		return ALLOW;
	if (is_loopback(dst))
		return ALLOW;
	__u64 *owner = bpf_map_lookup_elem(&pod_ips, dst);
	if (owner && *owner == cookie)
		return ALLOW;
	struct bpf_sock *sk = ctx->sk;
	__u32 mark = sk ? sk->mark : 0;
	if ((mark & MARK_MASK) == MARK_PROXY || (mark & MARK_MASK) == MARK_APP)
		return ALLOW;
	mark = (mark & ~MARK_MASK) | MARK_CAPTURE; // an app's own mark does not get it past the mesh
	if (bpf_setsockopt(ctx, SOL_SOCKET, SO_MARK, &mark, sizeof(mark)))
		return REFUSE;
	return ALLOW;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	if (ctx->protocol != PROTO_TCP)
		return ALLOW;
	struct addr dst = from4(ctx->user_ip4);
	return capture(ctx, &dst);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	if (ctx->protocol != PROTO_TCP)
		return ALLOW;
	struct addr dst = destination6(ctx);
	return capture(ctx, &dst);
}

char program_license[] SEC("license") = "Dual BSD/GPL";
