//go:build ignore
// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
// tcx egress of every interface that leads out of an enrolled pod: what is marked
// to stay inside does not leave, however it was routed (SO_BINDTODEVICE, a lost
// rule). Everything else goes on to the next program.
#include "ambit.h"

SEC("tcx/egress")
int guard(struct __sk_buff *skb)
{
	__u32 mark = skb->mark & MARK_MASK;
	return mark == MARK_CAPTURE || mark == MARK_APP ? TCX_DROP : TCX_NEXT;
}

char program_license[] SEC("license") = "Dual BSD/GPL";
