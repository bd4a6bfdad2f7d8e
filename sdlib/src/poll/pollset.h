/* SPDX-License-Identifier: Apache-2.0
 *
 * pollset.h - inside of poll.c, which looks at what is polled, and pollsleep.c, which waits for it.
 */
#ifndef SD_POLLSET_H
#define SD_POLLSET_H

#include "poll/poll.h"
#include "sock/sock.h"

#define HELD 0x20u            /* in `armed`, below SD_ARM_BARRIER: [F3] */
#define COUNTED 0x40u         /* in `armed`: other threads know that one sleeps on it [B2] */
_Static_assert((HELD | COUNTED) < SD_ARM_BARRIER && !((HELD | COUNTED) & (3 | SD_ARM_NAMED)), "sd_disarm() reads the rest");

/* poll.c */
extern u64 sd_poll_others; /* tsc: sd_nap_pays() */
/* Rings only, no system call unless a doorbell has to be eaten. */
bool sd_pollset_ready(const struct sd_pollset *p);
/* True: of some the kernel is not asked whether they can be read, so that somebody has to look. (What sd_needs_timer() has said may not be so any more.) */
bool sd_pollset_events(struct sd_pollset *p);
/* revents of the kernel (asked) or 0 -> what the program is told. Returns the number of entries. */
long sd_pollset_tell(struct sd_pollset *p, bool asked);
/* Every entry is a socket of which the directions that are asked for are on the ring, and whose kernel side was looked at a moment ago. */
bool sd_pollset_skips(const struct sd_pollset *p);
long sd_pollset_ask(struct sd_pollset *p); /* the kernel, and tells */

/* pollsleep.c. > 0: entries ready, 0: nothing (of the park: bells only, or time over, look again), < 0: -errno */
long sd_pollset_spin(struct sd_pollset *p, u64 left, bool masked);
long sd_pollset_park(struct sd_pollset *p, u64 left, const struct sd_mask *m, bool *idle);
void sd_pollset_nap_over(struct sd_pollset *p, u32 sleeper);

#endif
