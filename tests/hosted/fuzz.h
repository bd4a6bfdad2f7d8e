/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz.h - what the parts of the fuzzer share: the calls (fuzz.c), the hostile peer (fuzz_peer.c) and the kernel (fuzz_kernel.c).
 */
#ifndef HOSTED_FUZZ_H
#define HOSTED_FUZZ_H

#include "kernel.h"

#define FD 10
#define RING 64

/* The kernel's side of the connection. */
struct net { u64 written, arrived, read; bool fin, reset, shut; };

extern struct sd_seg *seg;
extern u8 *ring[2];
extern struct sock sk;
extern struct net net;
extern u64 step;    /* accesses to shared words in this call */
extern bool inside; /* of a call */

u64 rnd(void);
bool one_in(u64 n);
void come_in(void); /* the peer, before an access */

#endif
