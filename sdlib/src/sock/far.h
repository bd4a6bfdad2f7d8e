/* SPDX-License-Identifier: Apache-2.0
 *
 * far.h - connections whose other end is on another host.
 *
 * Each host has its own copy of the segment, and its monitor is the other party in it: it carries our bytes to the other copy and brings theirs, late.
 * The TCP connection goes its own way between the hosts meanwhile. Where one host's memory keeps the two in order, three things have to be asked for:
 *
 *   [H1] end:   a FIN or reset can be here before bytes that were written before it. Who hears of it says so in settle_ask and waits until the
 *        monitor has asked the other host what had been written and read, which is final by then, and has put it here: settled. Is that host
 *        out of reach for good (`lost`), bytes may be missing, so the end is a reset whatever the kernel said.
 *   [H2] bells: the library rings none on TCP. It nudges its monitor, if that sleeps (armed, as any reader); doorbells for a sleeper over there are sent by
 *        the monitor here, on a duplicate of our socket. It says `ringing`, by a locked instruction, before it looks for SD_HINT_LEAVING; who
 *        goes back says LEAVING before it looks at `ringing`. So no byte follows the position that the way back publishes but the program's.
 *   [H3] the way back: the program's bytes may be there before sw_back is. A byte that was not announced by the bell word is
 *        left alone. One that was announced comes: whom the monitor has refused to ring for gets the byte that every way back begins with.
 */
#ifndef SD_FAR_H
#define SD_FAR_H

#include "sock/sock.h"

static inline bool sd_is_far(const struct sock *s) { return unlikely(s->b->far); }

void sd_far_nudge(struct sock *s);
bool sd_far_settle(struct sock *s); /* false: what is missing never comes */
void sd_far_bells_out(struct sock *s);
void sd_far_nap(void);

#endif
