/* SPDX-License-Identifier: Apache-2.0
 *
 * feed.h - what sendfile and splice share on their way into the ring. file.c.
 */
#ifndef SD_FEED_H
#define SD_FEED_H

#include "poll/poll.h"
#include "sock/sock.h"

/* Why no more can go into the ring now: 0: go on; -ERANGE: it is no longer on the ring. */
long sd_feed_open(struct sock *s, int fd);
/* There is no room: 0 when there may be some, or what the program is told. */
long sd_feed_no_room(struct sock *s, int fd, bool nb, u64 *deadline);
/* The kernel's own call, where both ends are on TCP. */
long sd_feed_plain(struct sock *s, const struct sd_frame *f);
/* Is the next byte to go into the ring? */
bool sd_feed_switch(struct sock *s, int fd);

/* pipe.c: of a sendfile whose target is not ours. */
long sd_sendfile_in(const struct sd_frame *f, struct sd_tcb *t);

#endif
