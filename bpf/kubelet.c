//go:build ignore
// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
// cgroup/connect4 and connect6 at the kubelet's own cgroup: gives its connections
// to enrolled pods a source address by which steer.c knows them. A failing bind
// leaves the connection as it was: captured like any other.
#include "pod_ips.h"

// Set by the loader, network order.
const volatile __u32 source4 = 0;
const volatile struct addr source6 = {};

INLINE void bind6(struct bpf_sock_addr *ctx, const struct addr *src)
{
	struct sockaddr_in6 sa = {
		.family = AF_INET6,
		.addr = {src->w[0], src->w[1], src->w[2], src->w[3]},
	};
	bpf_bind(ctx, &sa, sizeof(sa));
}

SEC("cgroup/connect4")
int kubelet4(struct bpf_sock_addr *ctx)
{
	struct addr dst = from4(ctx->user_ip4);
	if (ctx->protocol != PROTO_TCP || !bpf_map_lookup_elem(&pod_ips, &dst))
		return 1;
	struct sockaddr_in sa = {
		.family = AF_INET,
		.addr = source4,
	};
	bpf_bind(ctx, &sa, sizeof(sa));
	return 1;
}

SEC("cgroup/connect6")
int kubelet6(struct bpf_sock_addr *ctx)
{
	struct addr dst = destination6(ctx);
	if (ctx->protocol != PROTO_TCP || !bpf_map_lookup_elem(&pod_ips, &dst))
		return 1;
	struct addr src = is_mapped(&dst) ? from4(source4) : (struct addr){{source6.w[0], source6.w[1], source6.w[2], source6.w[3]}};
	bind6(ctx, &src);
	return 1;
}

char program_license[] SEC("license") = "Dual BSD/GPL";
