/* SPDX-License-Identifier: Apache-2.0
 *
 * ep_wait.c - epoll_wait and its kin: rings first, the kernel every so often, and to sleep with everything armed (epoll.h).
 */
#include "poll/epoll.h"
#include "sock/sock.h"

#define ASK_EVERY 16
#define LOOK_AT 8
#define MAX_EVENTS (0x7fffffff / (int)sizeof(struct epoll_event))

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
    return *raw > 0 ? ep_told(w, e, (int)*raw) : 0;
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
    u32 n = sd_nap_pays(left, &ep->others) ? ep_to_nap_on(ep, set) : 0;
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
    ep_use(ep, (int)f->rdi, false);
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

