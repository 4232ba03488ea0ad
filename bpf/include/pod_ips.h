// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
// The addresses of the node's enrolled pods, each with the cookie of its netns.
#pragma once
#include "ambit.h"

struct {
	UINT(type, MAP_TYPE_HASH);
	UINT(map_flags, MAP_NO_PREALLOC);
	UINT(max_entries, 16384);
	TYPE(key, struct addr);
	TYPE(value, __u64);
} pod_ips SEC(".maps");
