/* SPDX-License-Identifier: Apache-2.0
 *
 * cork.c - TCP_CORK and MSG_MORE on the ring (ring/cork.h).
 */
#include "ring/cork.h"
#include "sock/far.h"
#include "sock/sock.h"

/* ------------------------------------------------------------------ producer */

bool sd_corked(const struct sock *s, u32 flags)
{
    return unlikely((s->b->opt_saved & SD_SAVED_CORK) || (flags & MSG_MORE)) && !(sd_is_far(s) && load_acq(&s->seg->lost));
}

/* Of TCP; but what is held must leave room. */
static u64 segment_bytes(struct sock *s, int fd)
{
    u32 len = 4;

    if (!s->mss && SYS5(__NR_getsockopt, fd, SOL_TCP, TCP_MAXSEG, &s->mss, &len) < 0)
        s->mss = 0;
    return min_u64(s->mss ? s->mss : 1, s->e.tx_bytes / 2);
}

void sd_cork_put(struct sock *s, int fd)
{
    u64 n = sd_cork_held(s->e.tx, s->e.bytes), segment = segment_bytes(s, fd);

    if (n >= segment)
        sd_cork_uncover(s->e.tx, s->e.bytes, n - n % segment);
}

void sd_cork_posted(struct sock *s, int fd, u64 tail)
{
    if (load_rlx(&s->e.tx->tail) != tail)
        sd_posted(s, fd);
    if (sd_cork_held(s->e.tx, s->e.bytes) && sd_data_wanted(&s->e)) /* [C3] */
        sd_ring_bell_late(s, fd);
}

/* Inside. True: our own doorbell may be one that the kernel still holds back, */
bool sd_uncover_all(struct sock *s)
{
    bool late = load_rlx(&s->e.tx->bell);

    sd_cork_uncover(s->e.tx, s->e.bytes, s->e.bytes);
    return late;
}

/* and this pushes it. */
void sd_uncork_late(struct sock *s, int fd)
{
    i32 on = 1;

    if (load_rlx(&s->b->tx_mode) == SD_MODE_RING)
        SYS5(__NR_setsockopt, fd, SOL_TCP, TCP_NODELAY, &on, 4);
}

void sd_uncork(struct sock *s, int fd)
{
    struct sd_hold h;
    bool late;

    if (load_rlx(&s->b->tx_mode) != SD_MODE_RING || !sd_cork_held(s->e.tx, s->e.bytes))
        return;
    sd_take(s, SD_DIR_TX, SD_MARK_OP, &h);
    late = sd_uncover_all(s);
    sd_leave(&h);
    sd_posted(s, fd);
    if (late)
        sd_uncork_late(s, fd);
}

/* ------------------------------------------------------------------ consumer */

/* From the inside of the token: whoever freezes the ring (recall.c) must not find us here. True: there are bytes now. */
bool sd_cork_over(struct sock *s)
{
    struct sd_hold h;
    u64 tail = load_rlx(&s->e.rx->tail);

    sd_take(s, SD_DIR_RX, SD_MARK_OP, &h);
    if (load_rlx(&s->b->rx_mode) == SD_MODE_RING)
        sd_cork_look(&s->e, g.tsc_per_us);
    sd_leave(&h);
    return load_rlx(&s->e.rx->tail) != tail;
}
