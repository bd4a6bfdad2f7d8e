/* SPDX-License-Identifier: Apache-2.0
 *
 * ep_hot.c - which registrations are looked at, and what they have to say (epoll.h).
 */
#include "poll/epoll.h"
#include "ring/cork.h"
#include "sock/sock.h"

/* ---------------------------------------------------------------- hot list */

void hot_add(struct ep *ep, struct reg *r)
{
    r->idle = 0;
    if (r->hot)
        return;
    r->hot = true;
    ep->nhot++;
    reg_ask_dates(r);
    if (!ep->hot) {
        ep->hot = r->hot_next = r->hot_prev = r;
        return;
    }
    r->hot_next = ep->hot; /* the newest is looked at last: of connections that do the same in turn, it is the last to be ready, too */
    r->hot_prev = ep->hot->hot_prev;
    r->hot_prev->hot_next = r;
    r->hot_next->hot_prev = r;
}

void hot_del(struct ep *ep, struct reg *r)
{
    if (!r->hot)
        return;
    r->hot = false;
    ep->nhot--;
    r->hot_prev->hot_next = r->hot_next;
    r->hot_next->hot_prev = r->hot_prev;
    if (ep->hot == r)
        ep->hot = r->hot_next == r ? NULL : r->hot_next;
}

void reg_disarm(struct reg *r)
{
    u32 armed = load_rlx(&r->armed) ? atomic_exchange(&r->armed, 0) : 0;
    if (armed && likely(r->ep->pid == g.pid)) /* else it was our parent who has counted itself, and may sleep on it */
        sd_disarm(r->s, armed);
}

void ep_inherit(struct ep *ep)
{
    for (u32 i = 0; i < ep->cap; i++) {
        struct reg *r = ep->tab[i];
        if (r && load_rlx(&r->armed) && atomic_exchange(&r->armed, 0))
            push_pending(r, PEND_TOUCH);
    }
    store_rlx(&ep->named, 0); /* nobody sleeps here yet */
    store_rlx(&ep->parked, 0);
    ep->pid = g.pid;
}

/* ---------------------------------------------------------- notes of others */

void push_pending(struct reg *r, u32 why)
{
    struct ep *ep = r->ep;
    if (atomic_fetch_or(&r->pending, why) || !ep)
        return; /* is in the list */
    struct reg *head = load_rlx(&ep->pending);
    do
        r->pend_next = head;
    while (!atomic_compare_exchange_weak(&ep->pending, &head, r));
}

void ep_settle(struct reg *r, u32 why, struct sd_tcb *t)
{
    push_pending(r, why);
    if (ep_enter(r->ep, t))
        ep_leave(r->ep, t);
}

void ep_drain(struct ep *ep)
{
    struct reg *r = atomic_exchange(&ep->pending, NULL), *next;
    if (ep_sleeps_by_name(ep))
        ep_anonymous(ep);
    for (; r; r = next) {
        next = r->pend_next;
        u32 why = atomic_exchange(&r->pending, 0);
        if (r->dead && !(why & PEND_DROP))
            continue; /* left to its killer: see reg_drop */
        if (r->dead || r->ghost) { /* [E2] */
            reg_disarm(r);
            hot_del(ep, r);
            if (why & PEND_DROP)
                sd_sock_let_go(r->s);
            continue;
        }
        if (why & PEND_SYNC) {
            reg_sync(r, false);
            ep_mixes(ep);
        }
        if (translated(r->s) && on_ring(r->s) && !r->off) {
            reg_disarm(r);
            hot_add(ep, r);
        } else {
            hot_del(ep, r);
        }
    }
    if (ep_slept_on(ep))
        ep_chill_all(ep); /* [E1] */
}

/* After a park has ended: what slept beside the one that was rung for is looked at again instead of waiting for its own bell. */
void ep_warm_up(struct ep *ep, u32 naps)
{
    for (u32 i = 0; i < ep->nslept; i++) {
        struct reg *r = ep->slept[i];
        if (r->ep != ep || r->dead || r->ghost || r->hot || r->off || !on_ring(r->s))
            continue;
        r->naps += naps;
        reg_disarm(r);
        hot_add(ep, r);
    }
    ep->nslept = 0;
    store_rlx(&ep->named, 0);
}

/* Somebody else sleeps on, or begins to: then it has no name any more, and what it was woken for has been looked at. */
void ep_rise(struct ep *ep, struct sd_tcb *t)
{
    if (likely(!load_rlx(&ep->named)) || !ep_enter(ep, t))
        return;
    if (load_rlx(&ep->named))
        ep_warm_up(ep, 1);
    ep_leave(ep, t);
}

/* What sleeps goes by its own bells from now on, and what has come while it did not is told. */
void ep_anonymous(struct ep *ep)
{
    store_rlx(&ep->named, 0);
    ep->anonymous = ANONYMOUS;
    for (u32 i = 0; i < ep->nslept; i++) {
        struct reg *r = ep->slept[i];
        if (r->ep == ep && !r->dead && (atomic_fetch_and(&r->armed, ~SD_ARM_NAMED) & SD_ARM_NAMED))
            sd_rx_awake(&r->s->e); /* [W4] */
    }
    sd_membarrier();
    for (u32 i = 0; i < ep->nslept; i++) {
        struct reg *r = ep->slept[i];
        if (r->ep == ep && !r->dead && !r->ghost && !r->hot && !r->off && on_ring(r->s) && reg_due(r))
            reg_kick(r);
    }
}

/* --------------------------------------------------------------- reporting */

/* [E7] Behind the last report of TCP's bytes others have come by TCP, and what is left of all of them is on the ring. */
static bool is_late(const struct reg *r, u32 out)
{
    return unlikely(r->told_tcp) && (out & POLLIN) && (r->want & BYTES_COME) && load_rlx(&r->s->b->rx_mode) == SD_MODE_RING
        && r->told_tcp < load_acq(&r->s->e.rx->sw_ring);
}

/* Has anything happened that an edge-triggered registration has not reported? */
static bool is_news(const struct reg *r, u32 out, u64 tail, u32 latched)
{
    return r->fresh || ((latched ^ r->latched) & ~(LATCH_KEPT | r->told_end)) || (tail != r->seen_tail && (r->want & BYTES_COME)) /* also if they have been read: it tells what is true beside, as Linux does */
        || (r->tx_full && (out & POLLOUT)) || is_late(r, out);
}

/* Nothing to say, as a few words tell that are in the cache if nothing has changed. False: look closely. */
static inline bool quiet(const struct reg *r)
{
    const struct sock *s = r->s;
    const struct sd_block *b = s->b;
    if (load_rlx(&b->rx_mode) != SD_MODE_RING || load_rlx(&b->tx_mode) != SD_MODE_RING)
        return false;
    if (load_rlx(&s->e.rx->tail) != load_rlx(&s->e.rx->head) || s->kcheck || load_rlx(&b->latched) || load_rlx(&s->e.rx->sw_back) || sd_end_comes(s) ||
        sd_cork_pending(&s->e))
        return false;
    return !(r->want & (POLLOUT | POLLWRNORM)) || ((r->want & EPOLLET) && !r->fresh && !r->tx_full && !load_rlx(&b->tx_wait) && load_rlx(&s->e.rx->tail) == r->seen_tail);
}

bool reg_due(struct reg *r)
{
    if (r->off || quiet(r))
        return false;
    u64 tail = load_acq(&r->s->e.rx->tail);
    u32 out = sd_ready(r->s, r->live, 0) & (reg_wanted(r) | ALWAYS);
    return out && (!(r->want & EPOLLET) || is_news(r, out, tail, load_rlx(&r->s->b->latched)));
}

static u64 tcp_received(const struct reg *r)
{
    struct tcp_info_head ti = {0};
    u32 len = sizeof ti;
    SYS5(__NR_getsockopt, r->live, SOL_TCP, TCP_INFO, &ti, &len);
    return ti.bytes_received + 1;
}

/* [E6] Is the kernel's event one of bytes that are the program's? */
static bool has_bytes(const struct reg *r, u32 kev)
{
    const struct sock *s = r->s;
    u64 back = load_acq(&s->e.rx->sw_back), n;
    if (!(kev & POLLIN) || !(reg_wanted(r) & BYTES_COME))
        return false;
    if (load_rlx(&s->b->rx_mode) == SD_MODE_RING && !back)
        return false;
    if (likely(!r->seen_tcp && load_rlx(&s->b->rx_mode) != SD_MODE_RING))
        return true;
    n = tcp_received(r);
    return n != r->seen_tcp && (load_rlx(&s->b->rx_mode) != SD_MODE_RING || n > back);
}

/* An edge that the kernel tells. In a direction that is on the ring doorbells tell nothing by themselves. */
static bool kernel_news(const struct reg *r, u32 kev)
{
    const struct sd_block *b = r->s->b;
    bool bytes = has_bytes(r, kev);
    if ((kev & (POLLERR | POLLPRI)) || bytes)
        return true;
    if (load_rlx(&b->rx_mode) != SD_MODE_RING && (kev & POLLRDHUP))
        return true;
    if (load_rlx(&b->tx_mode) == SD_MODE_RING || !(kev & POLLOUT))
        return false;
    return r->fresh || r->tx_full || load_rlx(&b->users) > 1 || !(r->renewed || (kev & POLLIN));
}

/* What to tell the program of r now, 0: nothing. `kev` as in sd_ready. Applies edge triggers and one-shots. */
u32 reg_report(struct reg *r, u32 kev)
{
    struct sock *s = r->s;
    bool edge = r->want & EPOLLET;
    if (load_rlx(&s->b->tx_wait))
        r->tx_full = true; /* read before sd_ready, which may clear it */
    u64 tail = load_acq(&s->e.rx->tail); /* before sd_ready: bytes that come later are news again */
    u32 ready = sd_ready(s, r->live, kev), want = reg_wanted(r);
    u32 latched = load_rlx(&s->b->latched);
    if (r->off || r->ghost)
        return 0;
    u32 out = ready & (want | ALWAYS);
    if (edge && !(ready & POLLOUT) && (load_rlx(&s->b->tx_mode) == SD_MODE_RING || (kev && (r->kmask & POLLOUT))))
        r->tx_full = true;
    if (edge && out) {
        bool news = is_news(r, out, tail, latched) || (kev && kernel_news(r, kev));
        r->renewed &= !kev;
        if (load_rlx(&s->b->rx_mode) != SD_MODE_TCP)
            r->told_tcp = 0;
        if (!news)
            return 0;
        if (unlikely(!fully_on_ring(s))) {
            r->renewed |= !kev;
            u64 received = tcp_received(r);
            r->seen_tcp = kev && !sd_back_published(&s->e) ? 0 : received;
            r->told_tcp = load_rlx(&s->b->rx_mode) == SD_MODE_TCP ? received : 0;
            if ((kev & POLLRDHUP) && load_rlx(&s->b->rx_mode) == SD_MODE_TCP)
                r->told_end = LATCH_FIN | (kev & (POLLRDHUP | POLLHUP | POLLERR));
        }
    }
    if (!out)
        return 0;
    if (unlikely(!kev && (want & ~ready) && !fully_on_ring(s))) {
        ready |= reg_other_half(r, want & ~ready);
        out = ready & (want | ALWAYS);
    }
    r->seen_tail = tail;
    r->latched = latched;
    r->fresh = false;
    if (ready & POLLOUT)
        r->tx_full = false;
    if (r->want & EPOLLONESHOT)
        r->off = true; /* the kernel is told only if it reports this again */
    return sd_bits_spread(out) & ((r->want & ~PRIVATE_BITS) | ALWAYS);
}

/* Whose peers answer in turn are mostly due in the order in which they were told of, and then there is nothing to sort. */
static void hot_last(struct ep *ep, struct reg *r)
{
    if (ep->hot == r) {
        ep->hot = r->hot_next;
        return;
    }
    r->hot_prev->hot_next = r->hot_next;
    r->hot_next->hot_prev = r->hot_prev;
    r->hot_next = ep->hot;
    r->hot_prev = ep->hot->hot_prev;
    r->hot_prev->hot_next = r;
    r->hot_next->hot_prev = r;
}

static void idle(struct ep *ep, struct reg *r, bool age)
{
    if (age && ++r->idle == IDLE_ROUNDS)
        ep->nidle++;
}

/* The hot registrations that may have something to say, the first to be told of first. */
static struct reg *due(struct ep *ep, u64 round, bool age)
{
    struct reg *first = NULL, **last = &first, *r = ep->hot;
    for (u32 left = ep->nhot; left && r; left--, r = r->hot_next) {
        if (r->stamp == round) {
            idle(ep, r, age);
        } else if (quiet(r)) {
            r->queued = false;
            idle(ep, r, age);
        } else {
            *last = r;
            last = &r->due_next;
        }
    }
    *last = NULL;
    return first && first->due_next && ep_in_company(ep) ? ep_in_order(first) : first;
}

static void put(struct reg *r, struct epoll_event *e, u32 out, u64 round, bool spinning)
{
    r->stamp = round;
    r->idle = r->naps = 0;
    if (spinning)
        sd_spun(r->s, true);
    ep_put(e, out, r->data);
}

/* Looks at the hot registrations; returns how many events were stored, or -EFAULT. `age`: count idle rounds; not so in a spin. */
int ep_scan(struct ep *ep, struct epoll_event *e, int max, u64 round, bool age, struct sd_turn *turn)
{
    struct reg *r, *next;
    u64 now = 0, asked = 0;
    int n = 0;
    for (r = due(ep, round, age); r && n < max; r = next) {
        next = r->due_next;
        if (unlikely(!ep_has_room(e, n))) {
            if (reg_due(r))
                return n ? n : -EFAULT;
            continue;
        }
        u64 place = unlikely(turn) ? reg_queue(r, false, &asked) : 0;
        u32 out = reg_report(r, 0);
        if (!out) {
            r->queued = false;
            idle(ep, r, age);
        } else {
            if (unlikely(turn))
                turn[n] = (struct sd_turn){r, place};
            if (ep_in_company(ep)) {
                reg_reported(r, now = now ? now + 1 : sd_tsc());
                hot_last(ep, r);
            }
            put(r, &e[n++], out, round, !age);
        }
        if (r->off)
            hot_del(ep, r);
    }
    return n;
}
