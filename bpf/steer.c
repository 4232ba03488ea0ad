//go:build ignore
// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
// sk_lookup in a pod's netns: chooses the listener of a new connection. One copy
// per pod. It does not see established connections, so attaching and detaching
// it leaves them alone.
#include "ambit.h"

enum role {
	OUTBOUND,
	INBOUND_PLAINTEXT,
	INBOUND_HBONE,
	ROLES,
};

// The proxy's sockets by role. A socket that closes leaves the map by itself.
struct {
	UINT(type, MAP_TYPE_SOCKMAP);
	UINT(max_entries, ROLES);
	TYPE(key, enum role);
	TYPE(value, __u64);
} listeners SEC(".maps");

enum mode {
	CAPTURING = 1,
	// Un-enrolled. Connections that were marked before, and peers that do not know yet and still use the
	// tunnel, are served as long as the listeners live; all else is left alone.
	DRAINING = 2,
};

enum { MAX_POD_ADDRS = 16 };

struct pod {
	__u64 netns_cookie; // for the agent: names the pod in the other maps when the netns is gone
	enum mode mode;
	__u32 addrs_len;
	struct addr addrs[MAX_POD_ADDRS]; // the pod's own
};

struct {
	UINT(type, MAP_TYPE_ARRAY);
	UINT(max_entries, 1);
	TYPE(key, __u32);
	TYPE(value, struct pod);
} pod_state SEC(".maps");

// Sources that reach the app directly: what the kubelet's probes are bound to.
struct {
	UINT(type, MAP_TYPE_HASH);
	UINT(map_flags, MAP_NO_PREALLOC);
	UINT(max_entries, 256);
	TYPE(key, struct addr);
	TYPE(value, __u32);
} probe_sources SEC(".maps");

INLINE int owns(const struct pod *p, const struct addr *a)
{
	for (__u32 i = 0; i < MAX_POD_ADDRS; i++) {
		if (i >= p->addrs_len)
			break;
		if (equal(&p->addrs[i], a))
			return 1;
	}
	return 0;
}

INLINE int hand_to(struct bpf_sk_lookup *ctx, enum role role, int otherwise)
{
	void *sk = bpf_map_lookup_elem(&listeners, &role);
	if (!sk)
		return otherwise;
	long err = bpf_sk_assign(ctx, sk, 0);
	bpf_sk_release(sk);
	return err ? SK_DROP : SK_PASS;
}

SEC("sk_lookup")
int steer(struct bpf_sk_lookup *ctx)
{
	struct addr local, remote;
	__u32 zero = 0;

	if (ctx->protocol != PROTO_TCP)
		return SK_PASS;
	if (ctx->family == AF_INET) {
		local = from4(ctx->local_ip4);
		remote = from4(ctx->remote_ip4);
	} else {
		local = (struct addr){{ctx->local_ip6[0], ctx->local_ip6[1], ctx->local_ip6[2], ctx->local_ip6[3]}};
		remote = (struct addr){{ctx->remote_ip6[0], ctx->remote_ip6[1], ctx->remote_ip6[2], ctx->remote_ip6[3]}};
	}
	// A v4 connection to the pod's own address carries the index of the interface that has the address, so
	// that the interface alone does not tell it from one that came from outside.
	if (is_loopback(&local) || is_loopback(&remote) || equal(&local, &remote))
		return SK_PASS;
	struct pod *p = bpf_map_lookup_elem(&pod_state, &zero);
	if (!p)
		return SK_DROP;
	if (ctx->ingress_ifindex == LOOPBACK_IFINDEX) {
		if (owns(p, &local))
			return SK_PASS; // the pod's own call to itself, or the proxy's connection to the app
		return hand_to(ctx, OUTBOUND, SK_DROP);
	}
	if (owns(p, &remote) && owns(p, &local))
		return SK_PASS;
	if (ctx->local_port == HBONE_PORT)
		return hand_to(ctx, INBOUND_HBONE, p->mode == DRAINING ? SK_PASS : SK_DROP);
	if (p->mode == DRAINING || bpf_map_lookup_elem(&probe_sources, &remote))
		return SK_PASS;
	return hand_to(ctx, INBOUND_PLAINTEXT, SK_DROP);
}

char program_license[] SEC("license") = "Dual BSD/GPL";
