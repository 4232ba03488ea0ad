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

INLINE __u32 mark_of(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	return sk ? sk->mark : 0;
}

// Sockets of other namespaces, and the proxy's own.
INLINE int exempt(struct bpf_sock_addr *ctx)
{
	__u64 cookie = bpf_get_netns_cookie(ctx);
	if (!bpf_map_lookup_elem(&enrolled, &cookie))
		return 1;
	__u32 mark = mark_of(ctx) & MARK_MASK;
	return mark == MARK_PROXY || mark == MARK_APP;
}

INLINE int capture(struct bpf_sock_addr *ctx, const struct addr *dst)
{
	if (exempt(ctx) || is_loopback(dst))
		return ALLOW;
	__u64 cookie = bpf_get_netns_cookie(ctx);
	__u64 *owner = bpf_map_lookup_elem(&pod_ips, dst);
	if (owner && *owner == cookie)
		return ALLOW;
	__u32 mark = mark_of(ctx);
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
	// fe80::/10 is bound to an interface and cannot be routed to loopback: the guard would swallow it.
	// Refusing tells the app at once.
	if ((dst.w[0] & HTONL(0xffc00000)) == HTONL(0xfe800000) && !exempt(ctx))
		return REFUSE;
	return capture(ctx, &dst);
}

char program_license[] SEC("license") = "Dual BSD/GPL";
