// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
// What Ambit's programs share: addresses, marks, and maps that more than one
// program uses. Values are those of api/ports.
#pragma once
#include "kernel.h"

// Packet marks; only the low bits are ours.
enum {
	MARK_MASK = 0xfff,
	MARK_PROXY = 0x539,
	MARK_APP = 0x53a,
	MARK_CAPTURE = 0x111,
};

enum { HBONE_PORT = 15008 };

// An address of either family, v4 as v4-mapped v6, network order.
struct addr {
	__u32 w[4];
};

INLINE struct addr from4(__u32 ip)
{
	struct addr a = {};
	a.w[2] = HTONL(0xffff);
	a.w[3] = ip;
	return a;
}

INLINE int equal(const struct addr *a, const struct addr *b)
{
	return a->w[0] == b->w[0] && a->w[1] == b->w[1] && a->w[2] == b->w[2] && a->w[3] == b->w[3];
}

INLINE int is_mapped(const struct addr *a)
{
	return !a->w[0] && !a->w[1] && a->w[2] == HTONL(0xffff);
}

// 127.0.0.0/8 and ::1; also the unspecified addresses, which connect() takes to mean loopback.
INLINE int is_loopback(const struct addr *a)
{
	if (is_mapped(a))
		return (a->w[3] & HTONL(0xff000000)) == HTONL(0x7f000000) || !a->w[3];
	return !a->w[0] && !a->w[1] && !a->w[2] && (!a->w[3] || a->w[3] == HTONL(1));
}

INLINE struct addr destination6(struct bpf_sock_addr *ctx)
{
	struct addr a = {};
	a.w[0] = ctx->user_ip6[0];
	a.w[1] = ctx->user_ip6[1];
	a.w[2] = ctx->user_ip6[2];
	a.w[3] = ctx->user_ip6[3];
	return a;
}
