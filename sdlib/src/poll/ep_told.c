/* SPDX-License-Identifier: Apache-2.0
 *
 * ep_told.c - what the kernel has reported in a set of ours, and what the program is told of it (epoll.h).
 */
#include "poll/epoll.h"
#include "sock/sock.h"

#define GHOSTS 16             /* dealt with after one report */

/* A kernel event of an entry that is not translated: a one-shot or an edge of a socket on TCP ([E6]). */
static u32 plain_report(struct reg *r, u32 kev)
{
    if (r->want & EPOLLONESHOT) {
        r->off = true;
        r->kmask = r->want & PRIVATE_BITS; /* what the kernel has made of it by itself */
    }
    u32 out = kev & ((r->want & ~PRIVATE_BITS) | ALWAYS);
    if (r->renewed && !r->fresh && !r->tx_full && !(kev & ~(u32)(POLLOUT | POLLWRNORM)))
        out = 0;
    if (out)
        r->fresh = false;
    r->renewed = false;
    r->tx_full = !(kev & (POLLOUT | POLLWRNORM));
    return out;
}

/* One event of the kernel on a registration that is translated. What the program is told, 0: nothing. */
static u32 translate_one(struct ep *ep, struct reg *r, u32 kev, bool locked)
{
    if (locked && !r->off && on_ring(r->s)) {
        reg_disarm(r);
        hot_add(ep, r);
    }
    if ((r->want & EPOLLEXCLUSIVE) && (kev & POLLIN) && load_rlx(&r->s->b->rx_mode) == SD_MODE_RING)
        kev |= POLLRDHUP; /* which could not be asked for: it may stand behind a doorbell */
    u32 out = reg_report(r, sd_bits_fold(kev));
    /* [E6] An edge does not come again by itself; nor is one of those that wait exclusively woken for what another one has taken since. */
    bool over = out || r->kicked || reg_edges(r->want) || ((r->want & EPOLLEXCLUSIVE) && !sd_bell_due(&r->s->e));
    r->useless = over ? 0 : r->useless + 1;
    if (locked && (r->kicked || (!out && (r->off || r->useless == 2))))
        reg_sync(r, false); /* or a level that nobody wants would keep us busy for ever */
    return out;
}

/* Event n of the kernel; r: ours, which is to be told of, before it is. Its list is in order: what is known of none goes with the one in front. */
static void note_turn(struct epwait *w, int n, struct reg *r)
{
    u64 now = 0, before = n ? w->turn[n - 1].place : 0, place = r ? reg_queue(r, true, &now) : 0;
    w->turn[n] = (struct sd_turn){r, place > before ? place : before};
}

/* The kernel has told of something that is not on a ring: sd_nap_pays(). Races between threads only cost accuracy. */
static void note_other(struct ep *ep, const struct reg *r)
{
    ep->others = sd_tsc();
    ep->other = r;
}

int ep_told(struct epwait *w, struct epoll_event *e, int k)
{
    struct ep *ep = w->ep;
    struct sd_tcb *t = w->t;
    struct reg *ghosts[GHOSTS];
    bool locked = ep_enter(ep, t);
    u64 now = 0;
    int n = 0, dead = 0;
    if (locked && k > 0)
        store_rlx(&ep->named, 0); /* what it was for is looked at below: ep_warm_up() */
    for (int i = 0; i < k; i++) {
        u32 kev = e[i].events, out;
        u64 data = e[i].data;
        struct reg *r = reg_of_tag(ep, data);
        if (!r) {
            if (!is_tag(ep, data)) {
                if (n < TURNS)
                    note_turn(w, n, NULL);
                ep_put(&e[n++], kev, data);
                note_other(ep, NULL);
            }
            continue; /* a tag without registration: deleted by another thread meanwhile */
        }
        if (r->ghost) {
            if (dead < GHOSTS)
                ghosts[dead++] = r; /* the others are reported again */
            continue;
        }
        if (unlikely(!locked))
            push_pending(r, PEND_TOUCH); /* [E5] its bell may be the one that somebody else sleeps for */
        if (!w->rung && translated(r->s))
            w->rung = load_rlx(&r->s->e.rx->rung_at);
        bool ordered = locked && translated(r->s) && ep_in_company(ep);
        if (n < TURNS)
            note_turn(w, n, ordered ? r : NULL); /* of each, since scan() puts those of rings in between */
        out = translated(r->s) ? translate_one(ep, r, kev, locked) : plain_report(r, kev);
        if (ordered && !out)
            r->queued = false;
        if (out) {
            if (!on_ring(r->s))
                note_other(ep, r);
            if (ordered)
                reg_reported(r, now = now ? now + 1 : sd_tsc());
            r->stamp = w->round;
            r->naps = 0;
            ep_put(&e[n++], out, r->data);
        }
    }
    if (locked && k > 0)
        ep_warm_up(ep, 1);
    if (locked || ep_enter(ep, t)) /* [E3] else we have left notes */
        ep_leave(ep, t);
    while (dead--)
        reg_end(ghosts[dead], t);
    return n;
}
