/* SPDX-License-Identifier: Apache-2.0
 *
 * shutdown.c - shutdown: TCP tells the peer, a hint in the ring says which bytes stand in front of that.
 */
#include "poll/poll.h"
#include "ring/cork.h"
#include "ring/dates.h"
#include "sock/far.h"
#include "sock/sock.h"

/* Two calls, maybe of two threads, say together what SHUT_RDWR says: each notes its own side before it looks at the other. */
static void say_shut(const struct sock *s)
{
    sd_fence();
    if (!s->b->tx_shut)
        return;
    if (sd_is_far(s) && load_rlx(&s->b->rx_shut))
        sd_far_deafen(s);
    sd_hint_shut(&s->e, load_rlx(&s->b->rx_shut));
}

/* Our sending side is on the ring, or may be: nobody else is in the middle of a send meanwhile. */
static long shut_attached(struct sock *s, const struct sd_frame *f)
{
    struct sd_hold h;
    long r;

    sd_take(s, SD_DIR_TX, SD_MARK_OP, &h);
    if (load_rlx(&s->b->tx_mode) == SD_MODE_RING)
        sd_cork_uncover(s->e.tx, s->e.bytes, s->e.bytes);
    s->b->tx_shut = 1;
    say_shut(s);
    sd_tx_dated(&s->e, load_rlx(&s->e.tx->tail));
    if (likely(!sd_is_far(s)) || !sd_far_shut(s))
        r = SYS2(__NR_shutdown, f->rdi, f->rsi);
    else
        r = (u32)f->rsi == SHUT_RDWR ? SYS2(__NR_shutdown, f->rdi, SHUT_RD) : 0;
    sd_leave(&h);
    sd_nap_end(s);
    return r;
}

static long shut_plain(struct sock *s, const struct sd_frame *f)
{
    long r = SYS2(__NR_shutdown, f->rdi, f->rsi);

    if (r == 0 && (u32)f->rsi != SHUT_RD) {
        s->b->tx_shut = 1;
        sd_fence(); /* another thread is about to attach: it sees tx_shut, or we see that it has */
    }
    if (r == 0 && sd_attached(s))
        say_shut(s);
    return r;
}

/* An edge for whoever waits for edges, and the end of the sleep of another thread in a receive or poll. */
static void tell_own(struct sock *s, u32 how)
{
    atomic_fetch_or(&s->b->latched, how == SHUT_RD ? LATCH_OWN_RD : how == SHUT_WR ? LATCH_OWN_WR : LATCH_OWN_RD | LATCH_OWN_WR);
    if (s->regs)
        sd_ep_touched(s);
    if (unlikely(load_acq(&s->napping)) && s->seg)
        sd_nap_disturb(s);
}

SD_CALL(sd_shutdown)
{
    struct sock *s = sd_sock_enter(f->rdi);
    u32 how = (u32)f->rsi;
    long r;

    (void)t;
    if (!s)
        return SD_PASS;
    if (sd_attached(s) && (load_rlx(&s->b->latched) & POLLHUP)) {
        sd_sock_put(s);
        return how <= SHUT_RDWR ? -ENOTCONN : -EINVAL; /* reset: the kernel's socket may not know of it */
    }
    if (how == SHUT_RD || how == SHUT_RDWR)
        store_rel(&s->b->rx_shut, 1); /* before the kernel says so to another thread */
    r = sd_attached(s) && (how == SHUT_WR || how == SHUT_RDWR) ? shut_attached(s, f) : shut_plain(s, f);
    if (sd_attached(s) && sd_is_far(s))
        sd_far_nudge(s); /* or our monitor does not know of it before it is asked */
    s->kcheck |= 1;
    if (r == 0)
        tell_own(s, how);
    sd_sock_put(s);
    return r;
}
