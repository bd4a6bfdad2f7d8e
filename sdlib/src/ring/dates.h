/* SPDX-License-Identifier: Apache-2.0
 *
 * dates.h - when messages came, so that who waits for several connections is told of them in that order.
 *
 * The kernel queues a socket when its first bytes arrive. A ring has no queue; its consumer finds out by looking, and from two rings that both have
 * bytes nobody could tell which had them first. So a consumer that stands beside others in an epoll set asks for dates, and the producer then
 * notes by the TSC when messages came: of SD_DATES of them at a time, no others before the first of these is read, for it is the first that counts.
 * Who is alone in its set, or in none, does not ask, and its producer sees no more than a bit in a word that it reads anyway.
 *
 *   [O1] date: the producer stores it before the tail of its message; the consumer acquires the tail, then loads dates.
 *
 * One word: the place of the message in the stream, and the time, both cut off; so it can be read without a lock, and an old one is not taken for a new
 * one within a turn of the clock (minutes). Nothing but the order of events depends on any of this: who overwrites another one's date, be it another process
 * that sends, or a peer that lies, is reported in another turn.
 */
#ifndef SD_DATES_H
#define SD_DATES_H

#include "ring/ring.h"

#define SD_DATE_PLACE 28 /* bits */
#define SD_DATE_TICKS 5  /* of the TSC: 2^5 of them, some 10 ns */
_Static_assert(SD_RING_MAX < 1u << SD_DATE_PLACE, "all places in a ring differ");

/* ---- the producer */

/* A message is about to begin at counter `at`, or the stream to end there. */
void sd_tx_date(struct sd_end *e, u64 at);

static inline void sd_tx_dated(struct sd_end *e, u64 at)
{
    if (unlikely(load_rlx(&e->tx->dated)))
        sd_tx_date(e, at);
}

/* ---- the consumer */

static inline void sd_rx_want_dates(const struct sd_end *e, bool want)
{
    if (load_rlx(&e->rx->dated) != want)
        store_rlx(&e->rx->dated, want);
}

/* The TSC when the message came that begins at counter `at`, or the end there. 0: not known. */
u64 sd_rx_came(const struct sd_end *e, u64 at, u64 now);

#endif
