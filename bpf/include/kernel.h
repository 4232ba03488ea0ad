// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
// The part of the kernel's BPF interface that Ambit's programs use: so that
// generating needs clang alone, no kernel or libbpf headers. Layouts and numbers
// are the kernel's stable user interface (include/uapi/linux/bpf.h there).
#pragma once

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))

// Map definitions, read from BTF.
#define UINT(name, val) int(*name)[val]
#define TYPE(name, val) typeof(val) *name

enum {
	MAP_TYPE_HASH = 1,
	MAP_TYPE_ARRAY = 2,
	MAP_TYPE_SOCKMAP = 15,
	MAP_NO_PREALLOC = 1, // BPF_F_NO_PREALLOC
};

enum {
	AF_INET = 2,
	AF_INET6 = 10,
	PROTO_TCP = 6,
	SOL_SOCKET = 1,
	SO_MARK = 36,
	SK_DROP = 0,
	SK_PASS = 1,
	TCX_NEXT = -1,
	TCX_DROP = 2,
	LOOPBACK_IFINDEX = 1, // in every network namespace
};

struct bpf_sock {
	__u32 bound_dev_if;
	__u32 family;
	__u32 type;
	__u32 protocol;
	__u32 mark;
};

// Context of cgroup/connect4 and connect6. Addresses and port in network order.
struct bpf_sock_addr {
	__u32 user_family;
	__u32 user_ip4;
	__u32 user_ip6[4];
	__u32 user_port;
	__u32 family;
	__u32 type;
	__u32 protocol;
	__u32 msg_src_ip4;
	__u32 msg_src_ip6[4];
	union {
		struct bpf_sock *sk;
		__u64 : 64;
	} __attribute__((aligned(8)));
};

// Context of sk_lookup. Addresses in network order, local_port in host order.
struct bpf_sk_lookup {
	__u64 cookie;
	__u32 family;
	__u32 protocol;
	__u32 remote_ip4;
	__u32 remote_ip6[4];
	__u32 remote_port;
	__u32 local_ip4;
	__u32 local_ip6[4];
	__u32 local_port;
	__u32 ingress_ifindex;
};

// Context of tcx; only its beginning.
struct __sk_buff {
	__u32 len;
	__u32 pkt_type;
	__u32 mark;
};

struct sockaddr_in {
	__u16 family;
	__u16 port;
	__u32 addr;
	__u64 zero;
};

struct sockaddr_in6 {
	__u16 family;
	__u16 port;
	__u32 flowinfo;
	__u32 addr[4];
	__u32 scope_id;
};

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*bpf_setsockopt)(void *ctx, int level, int name, void *val, int len) = (void *)49;
static long (*bpf_bind)(struct bpf_sock_addr *ctx, void *addr, int len) = (void *)64;
static long (*bpf_sk_release)(void *sk) = (void *)86;
static long (*bpf_sk_assign)(void *ctx, void *sk, __u64 flags) = (void *)124;
static __u64 (*bpf_get_netns_cookie)(void *ctx) = (void *)122;

#define HTONL(x) __builtin_bswap32(x) // only little-endian targets are built
