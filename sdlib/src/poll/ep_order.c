/* SPDX-License-Identifier: Apache-2.0
 *
 * ep_order.c - which of several registrations is reported first.
 *
 * As in the kernel, which has a list: a socket is put at its end when its bytes arrive, when it is registered or modified and ready already, and, level
 * triggered, after it was reported; it leaves the list when it is reported, or found to have nothing to say. Here a registration that is *queued*
 * carries the time at which it was put there, and those that are found due together are reported in that order. Bytes have the date of their
 * sender (ring/dates.h), who is asked for it only where there is more than one in the set.
 *
 * In one case the kernel does otherwise: who was reported, has been read empty, and gets new bytes before the next wait is still on its list, in front of
 * all that has come since. A peer needs microseconds for an answer there, and the wait has mostly begun by then. Here it does not, and who answers
 * on one connection after another relies on being heard in that order; so a turn is as new as its bytes.
 *
 * The owner word is held, as for the hot list ([E3]).
 */
#include "poll/epoll.h"
#include "ring/dates.h"

void reg_ask_dates(const struct reg *r)
{
    struct sock *s = r->s;
    bool want = ep_in_company(r->ep), alone = s->regs == r && !r->next;

    if (s->seg && (want || alone)) /* other sets may want them */
        sd_rx_want_dates(&s->e, want);
}

void ep_ask_dates(const struct ep *ep)
{
    for (u32 i = 0; i < ep->cap; i++)
        if (ep->tab[i])
            reg_ask_dates(ep->tab[i]);
}

/* When what r has to say came about, 0: not known. The first bytes on a ring have no date, but there was a doorbell for them. */
static u64 came(const struct reg *r, u64 now)
{
    const struct sd_end *e = &r->s->e;
    bool edge = (r->want & EPOLLET) && !r->fresh;
    u64 at = 0;

    load_acq(&e->rx->tail); /* [O1] */
    if (load_rlx(&r->s->b->rx_mode) == SD_MODE_RING)
        at = sd_rx_came(e, edge ? r->seen_tail : load_rlx(&e->rx->head), now);
    return !at && sd_bell_due(e) ? load_rlx(&e->rx->rung_at) : at;
}

/* All that it was reported for is read, and there is more. */
static bool anew(const struct reg *r)
{
    const struct sd_dir *d = r->s->e.rx;
    u64 head = load_rlx(&d->head);

    return r->again && (i64)(head - r->seen_tail) >= 0 && load_rlx(&d->tail) != head && !(reg_wanted(r) & POLLOUT);
}

/* Of what the kernel says, and nothing is known, it has been there for longer than what is only found by looking. */
u64 reg_queue(struct reg *r, bool by_kernel, u64 *now)
{
    u64 at;

    if (!r->queued || anew(r)) {
        *now = *now ? *now : sd_tsc();
        at = came(r, *now);
        if (!at)
            at = r->queued ? r->place : by_kernel ? 0 : *now;
        r->queued = true;
        r->again = false;
        r->place = at > r->since ? at : r->since;
    }
    return r->place;
}

/* It was queued already if what it is due for came before. */
void reg_renewed(struct reg *r)
{
    const struct sd_end *e = &r->s->e;
    u64 tail, now = sd_tsc();

    if (!ep_in_company(r->ep))
        return;
    if (r->ghost || r->off) {
        r->queued = false;
    } else if (translated(r->s) && (reg_wanted(r) & POLLIN)) {
        tail = load_acq(&e->rx->tail);
        if (tail != load_rlx(&e->rx->head) && (!(r->want & EPOLLET) || r->fresh || tail != r->seen_tail))
            reg_queue(r, false, &now);
    }
    r->since = now;
}

void reg_reported(struct reg *r, u64 now)
{
    r->queued = r->again = !(r->want & (EPOLLET | EPOLLONESHOT));
    r->place = now;
}

/* ------------------------------------------------------------------ sorting */

static struct reg *merge(struct reg *a, struct reg *b)
{
    struct reg *first, **last = &first;

    while (a && b) {
        struct reg **least = b->place < a->place ? &b : &a;
        *last = *least;
        last = &(*last)->due_next;
        *least = *last;
    }
    *last = a ? a : b;
    return first;
}

#define RUNS 20 /* of 2^i, so for a million */

static struct reg *sort(struct reg *list)
{
    struct reg *run[RUNS] = {NULL}, *r, *next;
    u32 i;

    for (r = list; r; r = next) {
        next = r->due_next;
        r->due_next = NULL;
        for (i = 0; i < RUNS - 1 && run[i]; i++) {
            r = merge(run[i], r);
            run[i] = NULL;
        }
        run[i] = merge(run[i], r);
    }
    for (list = NULL, i = 0; i < RUNS; i++)
        list = merge(run[i], list);
    return list;
}

struct reg *ep_in_order(struct reg *due)
{
    bool sorted = true;
    u64 last = 0, now = 0;

    for (struct reg *r = due; r; r = r->due_next) {
        u64 place = reg_queue(r, false, &now);
        sorted &= place >= last;
        last = place;
    }
    return sorted ? due : sort(due);
}

/* ------------------------------------- what the kernel has said beside the rings */

#define MOVING_US 100000

/* Somebody may have sent on one by TCP and then on another one by its ring, though we look at rings more often than the kernel is asked. While
 * connections move that happens; so as long as they may, who has found a ring due asks the kernel, too, before he says so. */
void ep_mixes(struct ep *ep) { ep->mixed_until = sd_tsc() + MOVING_US * g.tsc_per_us; }

bool ep_is_mixed(struct ep *ep)
{
    if (likely(!ep->mixed_until))
        return false;
    if (sd_tsc() >= ep->mixed_until)
        ep->mixed_until = 0;
    return ep->mixed_until && ep_in_company(ep);
}

bool ep_has_due(struct ep *ep)
{
    struct reg *r = ep->hot;

    for (u32 i = 0; i < ep->nhot; i++, r = r->hot_next)
        if (reg_due(r))
            return true;
    return false;
}

/* The events of a wait: those of the kernel, in its order, and behind them those of rings in theirs, become one list. */
void ep_interleave(struct epoll_event *e, struct sd_turn *turn, u32 kernel, u32 n)
{
    u64 now = sd_tsc();

    for (u32 i = kernel; i < n; i++) {
        struct epoll_event event = e[i];
        struct sd_turn t = turn[i];
        u32 k = i;
        for (; k && turn[k - 1].place > t.place; k--) {
            e[k] = e[k - 1];
            turn[k] = turn[k - 1];
        }
        e[k] = event;
        turn[k] = t;
    }
    for (u32 i = 0; i < n; i++)
        if (turn[i].r && turn[i].r->queued)
            turn[i].r->place = now + i;
}
