/* SPDX-License-Identifier: Apache-2.0
 *
 * cork.h - bytes in the ring that are held back: TCP_CORK, MSG_MORE.
 *
 * They lie behind the tail, and `held` says where they end. The producer uncovers them by moving the tail: when it is uncorked, when a segment of TCP
 * would be full, when there is no room, on the way back. Nobody of the producer's may be running when they have been held for as long as TCP
 * holds them; so the consumer may do it then, or at the end of the stream, which nothing is held behind. Between hosts that is the producer's monitor
 * (verbs/held.c).
 *
 *   [C1] held: the producer stores bytes, then releases held; the consumer acquires held, then moves the tail, which carries [R1] from there.
 *   [C2] tail: as long as held is ahead of it, both move it by a locked compare-and-swap only, and to where held has been: whoever is late finds
 *        another tail than he has seen, and does nothing. With nothing held the tail is the producer's alone, as ever.
 *   [C3] held, too, is looked at after arming [W1]: the producer stores held, then loads rx_armed. It rings so that the kernel holds the byte back, too; a
 *        consumer that has seen held bytes sleeps no longer than they may be held.
 */
#ifndef SD_CORK_H
#define SD_CORK_H

#include "ring/ring.h"

#define SD_CORK_US 200000 /* as TCP: tcp(7) */

/* How many bytes are held behind the tail of a direction; 0 also if no honest end has written that. */
static inline u64 sd_cork_held(const struct sd_dir *d, u64 ring_bytes)
{
    u64 n = load_acq(&d->held) - load_rlx(&d->tail); /* [C1] */

    return likely(n - 1 >= ring_bytes) ? 0 : n;
}

/* The first n held bytes are held no more. */
static inline void sd_cork_uncover(struct sd_dir *d, u64 ring_bytes, u64 n)
{
    u64 held = load_acq(&d->held), tail = load_rlx(&d->tail), all = held - tail;

    if (all - 1 < ring_bytes) /* [C2] */
        atomic_compare_exchange_strong(&d->tail, &tail, tail + min_u64(n, all));
}

/* ---- the consumer */

static inline bool sd_cork_pending(const struct sd_end *e)
{
    return unlikely(sd_cork_held(e->rx, e->bytes));
}

/* Looked at nothing but held bytes: uncovers them when their time is over. */
static inline void sd_cork_look(struct sd_end *e, u64 tsc_per_us)
{
    if (sd_cork_pending(e) && sd_tsc() - load_rlx(&e->rx->held_since) >= SD_CORK_US * tsc_per_us)
        sd_cork_uncover(e->rx, e->bytes, e->bytes);
}

/* ---- the producer, holding the direction's token. Where the next held byte goes, counted from the tail. */
static inline u64 sd_cork_begin(struct sd_end *e)
{
    u64 n = sd_cork_held(e->tx, e->bytes);

    sd_tx_unplan(e);
    if (n) {
        e->tx_base = load_rlx(&e->tx->base);
        return n;
    }
    sd_tx_begin(e);
    store_rlx(&e->tx->held, load_rlx(&e->tx->tail));
    store_rlx(&e->tx->held_since, sd_tsc());
    return 0;
}

#endif
