/* SPDX-License-Identifier: Apache-2.0
 *
 * ep_wait.c - epoll_wait and its kin: rings first, the kernel every so often, and to sleep with everything armed (epoll.h).
 */
#include "poll/epoll.h"
#include "sock/sock.h"

#define ASK_EVERY 16
#define LOOK_AT 8
#define TURNS 32              /* of the kernel and of rings together, that are told in the order in which they came */
#define COLD 32               /* registrations that may have to be heated for a nap anyhow */
#define GHOSTS 16             /* dealt with after one report */
#define MAX_EVENTS (0x7fffffff / (int)sizeof(struct epoll_event))

struct epwait {
    struct ep *ep;
    struct sd_tcb *t;
    struct epoll_event *e;
    int max, epfd;
    u64 round;
    u64 began, rung; /* tsc: of spinning and sleeping; of the doorbell that has ended it */
    struct sd_deadline d;
    struct sd_mask m;
    bool precise; /* epoll_pwait2: nanoseconds */
    bool called;
    bool spinning;
    bool owed;    /* the kernel is to be asked, unless we come to sleep there */
    bool parked;  /* counted in ep->parked */
    struct sd_turn *turn; /* TURNS of them: of the kernel's events */
};

/* --------------------------------------------------- what the kernel reports */

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

/* k events of the kernel -> what the program is told, in place. */
static int translate(struct epwait *w, struct epoll_event *e, int k)
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

/* ------------------------------------------------- an epoll in another's set */

bool sd_ep_peek(void *p)
{
    struct ep *ep = p;
    struct sd_tcb *t = sd_self();
    struct reg *r;
    bool ready = false;
    ep_rise(ep, t);
    if (!ep_enter(ep, t))
        return false;
    r = ep->hot;
    for (u32 i = 0; i < ep->nhot && !ready; i++, r = r->hot_next)
        ready = reg_due(r);
    ep_leave(ep, t);
    return ready;
}

bool sd_ep_park(void *p)
{
    struct ep *ep = p;
    struct sd_tcb *t = sd_self();
    bool timer, ready;
    ep_used(ep);
    if (!ep_enter(ep, t))
        return false;
    ep->watched = true; /* from now on: the kernel's readiness has to be the truth while nobody is in here */
    ready = ep_cool(ep, COOL_ALL, &timer);
    ep_leave(ep, t);
    return ready;
}

/* ----------------------------------------------------------------- waiting */

/* Returns what the kernel has, translated; *raw its own count or -errno. */
static int ask_kernel(struct epwait *w, int have, u64 ns, long *raw)
{
    struct epoll_event *e = w->e + have;
    const void *set = ns ? w->m.set : NULL;
    struct timespec64 ts;
    w->called = true;
    sd_ep_follow();
    w->t->wakeable = ns ? SD_WAKE_AS(0) : 0;
    if (w->precise && ns) {
        *raw = SYS6(__NR_epoll_pwait2, w->epfd, e, w->max - have, sd_ns_ts(ns, &ts), set, 8);
    } else {
        u64 ms = min_u64(ns / 1000000 + (ns % 1000000 != 0), 0x7fffffff);
        *raw = SYS6(__NR_epoll_pwait, w->epfd, e, w->max - have, ns == SD_FOREVER ? -1 : (long)ms, set, 8);
    }
    w->t->wakeable = 0;
    if (w->parked)
        atomic_fetch_sub(&w->ep->parked, 1); /* awake: what it finds is looked at by itself */
    w->parked = false;
    w->ep->checked_tsc = sd_tsc();
    return *raw > 0 ? translate(w, e, (int)*raw) : 0;
}

/* Without the lock: all registrations are looked at and nothing but their own state changes. */
static int scan_all(struct epwait *w)
{
    struct ep *ep = w->ep;
    int n = 0;
    for (u32 i = 0; i < ep->cap && n < w->max; i++) {
        struct reg *r = ep->tab[i];
        if (!r || r->dead || !translated(r->s))
            continue;
        if (!ep_has_room(w->e, n)) {
            if (reg_due(r))
                return n ? n : -EFAULT;
            continue;
        }
        u32 out = reg_report(r, 0);
        if (out)
            ep_put(&w->e[n++], out, r->data);
    }
    return n;
}

/* With the lock. Behind `have` events of the kernel. */
static inline int scan(struct epwait *w, int have)
{
    struct ep *ep = w->ep;
    bool both = have && have < TURNS && ep_in_company(ep), timer;
    int most = both ? (int)min_u64((u64)(w->max - have), (u64)(TURNS - have)) : w->max - have;
    int n = ep_scan(ep, w->e + have, most, w->round, !w->spinning, both ? w->turn + have : NULL);
    if (both && n > 0)
        ep_interleave(w->e, w->turn, (u32)have, (u32)(have + n));
    if (!w->spinning && ep->nidle && (ep->calls & (IDLE_ROUNDS - 1)) == 0) {
        ep->nidle = 0;
        ep_cool(ep, COOL_IDLE, &timer);
    }
    return n;
}

static int look(struct epwait *w, int have)
{
    struct ep *ep = w->ep;
    int told = 0;
    long raw;
    if (have >= w->max)
        return 0;
    if (!ep_enter(ep, w->t))
        return have ? 0 : scan_all(w);
    if (unlikely(!have && ep->mixed_until) && ep_is_mixed(ep) && ep_has_due(ep)) {
        ep_leave(ep, w->t);
        told = ask_kernel(w, 0, 0, &raw);
        if (told >= w->max || !ep_enter(ep, w->t))
            return told;
    }
    int n = scan(w, have + told);
    ep_leave(ep, w->t);
    return (have || told) && n < 0 ? told : told + n;
}

static bool worth_spinning(struct epwait *w, bool *here)
{
    struct ep *ep = w->ep;
    bool pays = false;
    *here = false;
    if (!ep->hot || !ep_enter(ep, w->t))
        return false;
    struct reg *r = ep->hot;
    for (u32 i = 0; i < ep->nhot && i < LOOK_AT && !(pays && *here); i++, r = r->hot_next) {
        if (unlikely(r->want & EPOLLEXCLUSIVE) && load_rlx(&r->s->e.rx->rx_armed))
            continue; /* another one sleeps on it, and would be woken though we see the bytes ourselves */
        pays |= sd_spin_pays(r->s);
        *here |= sd_peer_here(r->s);
    }
    ep_leave(ep, w->t);
    return pays;
}

static void spun_in_vain(struct epwait *w)
{
    struct ep *ep = w->ep;
    if (!ep->hot || !ep_enter(ep, w->t))
        return;
    struct reg *r = ep->hot;
    for (u32 i = 0; i < ep->nhot; i++, r = r->hot_next)
        sd_spun(r->s, false);
    ep_leave(ep, w->t);
}

/* May the set be napped on as far as r goes? */
static bool nap_allows(struct reg *r, bool across)
{
    return !r->dead && !(r->want & EPOLLEXCLUSIVE) && !(reg_awaited(r) & POLLOUT) && sd_nap_possible(r->s, across);
}

/* Those that are cold wait for doorbells, which a napper does not hear, so they are to be hot. Not where that are most: cost follows the hot ones. */
static bool nap_heats(struct ep *ep)
{
    struct reg *r = ep->hot;
    bool across = sd_rung_soon(&ep->learn, true);
    bool may = ep->nhot && ep->nhot <= SD_NAP_SET && ep->tagged <= 2 * ep->nhot + COLD;
    for (u32 i = 0; may && i < ep->nhot; i++, r = r->hot_next)
        may = nap_allows(r, across);
    for (u32 i = 0; may && i < ep->cap; i++) {
        r = ep->tab[i];
        if (!r || r->dead || r->ghost || r->off || r->hot || !translated(r->s))
            continue;
        may = on_ring(r->s);
        if (may) {
            reg_disarm(r);
            hot_add(ep, r);
            may = nap_allows(r, across);
        }
    }
    return may;
}

/* All connections on the ring that are in the set, if only data is waited for and every one of them may be napped on. They are hot then, and held. */
static u32 to_nap_on(struct epwait *w, struct sock **set)
{
    struct ep *ep = w->ep;
    bool may = ep->cap <= SD_NAP_SET && !ep_slept_on(ep) && load_rlx(&ep->waits) == 1 && nap_heats(ep);
    struct reg *r = ep->hot;
    u32 n = 0;
    for (; may && n < ep->nhot; r = r->hot_next)
        set[n++] = r->s;
    if (!may && !ep_has_due(ep))
        sd_nap_cannot();
    for (u32 i = 0; may && i < n; i++)
        atomic_fetch_add(&set[i]->held, 1);
    return may ? n : 0;
}

/* What the kernel has told of has moved to its ring since. */
static bool has_moved(const struct ep *ep)
{
    const struct reg *r = ep->other;
    return r && r->ep == ep && r->hot;
}

/* ... that the kernel was asked. */
static bool is_long_ago(const struct ep *ep)
{
    return sd_tsc() - ep->checked_tsc > SD_KERNEL_US * g.tsc_per_us;
}

static long nap(struct epwait *w, u64 left)
{
    struct sock *set[SD_NAP_SET];
    struct ep *ep = w->ep;
    if (w->m.set || !ep_enter(ep, w->t))
        return 0;
    if (has_moved(ep))
        ep->others = 0;
    u32 n = sd_nap_pays(left, &ep->others) ? to_nap_on(w, set) : 0;
    ep_leave(ep, w->t);
    if (!n)
        return 0;
    long raw = 0, told = is_long_ago(ep) ? ask_kernel(w, 0, 0, &raw) : 0;
    long r = raw ? 0 : sd_nap(set, n, false, true, &ep->learn, w->began);
    for (u32 i = 0; i < n; i++)
        sd_sock_let_go(set[i]);
    return raw < 0 ? raw : told ? told : r > 0 ? look(w, 0) : r;
}

/* To peers that can only run on this CPU. */
static long give_way(struct epwait *w, u64 left)
{
    long n = 0;
    bool again = sd_yields_pay();
    u32 tries = 0;
    w->called = true;
    while (n == 0 && again) {
        again = sd_yield(&tries);
        n = look(w, 0);
    }
    return sd_yield_won(n != 0) ? n : nap(w, left);
}

static long spin(struct epwait *w, u64 left)
{
    struct sd_spin sp;
    bool here;
    long raw = 0, n = 0;
    bool pays = worth_spinning(w, &here), held = pays && sd_spin_held(&w->ep->learn);
    if (!(here || held) && !pays)
        return 0; /* the kernel is asked by sleeping there */
    if (w->owed)
        n = ask_kernel(w, 0, 0, &raw);
    if (n || raw < 0)
        return n ? n : raw;
    if (!pays || held)
        return give_way(w, left);
    if (!sd_spin_begin(&sp, &w->ep->learn, left, here))
        return 0;
    w->spinning = true; /* looks follow each other too fast to say who is idle */
    while (n == 0 && raw >= 0 && sd_spin_more(&sp)) {
        n = look(w, 0);
        if (n == 0 && sd_spin_ask_kernel(&sp))
            n = ask_kernel(w, 0, 0, &raw);
    }
    w->spinning = false;
    sd_spin_end(&sp, n > 0);
    if (n || raw < 0)
        return n ? n : raw;
    spun_in_vain(w);
    return sd_rung_soon(&w->ep->learn, true) ? nap(w, left) : 0;
}

/* Sleeps once. 0: look again. */
static long park(struct epwait *w, u64 left)
{
    struct ep *ep = w->ep;
    bool timer = true; /* without the lock: come back soon */
    long raw;
    if (ep_enter(ep, w->t)) {
        bool ready = ep_cool(ep, COOL_SLEEP, &timer);
        w->parked = !ready;
        if (w->parked)
            atomic_fetch_add(&ep->parked, 1); /* [E1] before the lock is free */
        ep_leave(ep, w->t);
        if (ready)
            return 0;
    }
    COUNT(parks);
    u64 from = sd_tsc();
    w->rung = 0;
    long n = ask_kernel(w, 0, timer ? min_u64(left, TIMER_NS) : left, &raw);
    ep_rise(ep, w->t);
    if (raw > 0 && ep->hot)
        sd_spin_parked(&ep->learn, w->began, from, w->rung);
    return n ? n : raw < 0 ? raw : 0;
}

static bool something_due(struct epwait *w)
{
    bool due = true;
    if (ep_enter(w->ep, w->t)) {
        due = ep_has_due(w->ep);
        ep_leave(w->ep, w->t);
    }
    return due;
}

static long wait_loop(struct epwait *w)
{
    struct ep *ep = w->ep;
    long raw = 0;
    u64 now = sd_tsc();
    int n = 0;
    bool asked = ++ep->calls % ASK_EVERY == 0 || now - ep->checked_tsc > SD_KERNEL_US * g.tsc_per_us;
    if (asked && ep->nhot) {
        w->owed = !something_due(w);
        bool first = !w->owed && !ep->sated; /* the kernel, or ready rings would starve its descriptors; but not each time, or these would starve them */
        n = first ? (int)ask_kernel(w, 0, 0, &raw) : 0;
        if (raw < 0)
            return raw;
        ep->sated = first && n >= w->max;
    }
    for (;;) {
        n += look(w, n);
        if (n)
            return n;
        u64 left = sd_deadline_left(&w->d);
        if (!left) {
            n = ask_kernel(w, 0, 0, &raw);
            return n ? n : raw < 0 ? raw : 0;
        }
        w->began = sd_tsc();
        long r = spin(w, left);
        if (r == 0) /* where there was nothing to look at, no time has passed, and reading the clock is a system call */
            r = park(w, ep->hot ? sd_deadline_left(&w->d) : left);
        if (r)
            return r;
    }
}

static bool arguments_ok(const struct sd_frame *f)
{
    i32 max = (i32)f->rdx;
    return max > 0 && max <= MAX_EVENTS && !sd_bad_ptr((void *)f->rsi);
}

static long wait_on(struct epwait *w, const struct sd_frame *f, struct ep *ep)
{
    struct sd_turn turn[TURNS];
    w->turn = turn;
    w->ep = ep;
    w->e = (struct epoll_event *)f->rsi;
    w->max = (i32)f->rdx;
    w->epfd = ep->fd = (int)f->rdi;
    w->round = atomic_fetch_add(&ep->round, 1) + 1;
    ep_used(ep);
    atomic_fetch_add(&ep->waits, 1); /* another thread may close it meanwhile */
    if (!g.mt)
        store_rlx(&ep->parked, 0); /* one that was left by siglongjmp */
    ep_rise(ep, w->t);
    long r = wait_loop(w);
    if (ep_slept_on(ep) && ep_enter(ep, w->t)) {
        ep_chill_all(ep); /* [E1] others sleep on, and rely on bells */
        ep_leave(ep, w->t);
    }
    if (w->called)
        COUNT(calls_kernel);
    else
        COUNT(calls_library);
    atomic_fetch_sub(&ep->waits, 1);
    return r;
}

/* The struct ep if this wait is ours. With one thread and nothing to translate the kernel's answer is right as it is; with more of them a
 * socket could come in, or attach, while we sleep, and the kernel would hand out tags. */
static struct ep *our_wait(const struct sd_frame *f, const struct sd_tcb *t)
{
    struct ep *ep = t->foreign ? NULL : sd_epoll_of(f->rdi);
    if (!ep || !arguments_ok(f))
        return NULL;
    return ep->tagged || load_rlx(&ep->pending) || g.mt ? ep : NULL;
}

SD_CALL(sd_epoll_wait)
{
    struct ep *ep = our_wait(f, t);
    i32 ms = (i32)f->r10;
    if (!ep)
        return SD_PASS;
    struct epwait w = {.t = t, .d = {.ns = ms < 0 ? SD_FOREVER : (u64)ms * 1000000}};
    return wait_on(&w, f, ep);
}

static bool mask_ok(const struct sd_frame *f)
{
    return !f->r8 || (f->r9 == 8 && !sd_bad_ptr((void *)f->r8));
}

SD_CALL(sd_epoll_pwait)
{
    i32 ms = (i32)f->r10;
    if (!mask_ok(f))
        return SD_PASS; /* EINVAL, EFAULT */
    struct epwait w = {.t = t, .d = {.ns = ms < 0 ? SD_FOREVER : (u64)ms * 1000000}};
    sd_mask_init(&w.m, (const void *)f->r8, f->r9);
    struct ep *ep = our_wait(f, t);
    if (!ep)
        return w.m.copied ? SYS6(__NR_epoll_pwait, f->rdi, f->rsi, f->rdx, f->r10, w.m.set, 8) : SD_PASS;
    return wait_on(&w, f, ep);
}

SD_CALL(sd_epoll_pwait2)
{
    const struct timespec64 *ts = (const struct timespec64 *)f->r10;
    if (!mask_ok(f) || (ts && sd_bad_ptr(ts)))
        return SD_PASS;
    struct epwait w = {.t = t, .precise = true};
    sd_mask_init(&w.m, (const void *)f->r8, f->r9);
    struct ep *ep = our_wait(f, t);
    if (!ep || !sd_deadline_ts(&w.d, ts))
        return w.m.copied ? SYS6(__NR_epoll_pwait2, f->rdi, f->rsi, f->rdx, ts, w.m.set, 8) : SD_PASS;
    return wait_on(&w, f, ep);
}

