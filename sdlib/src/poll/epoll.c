/* SPDX-License-Identifier: Apache-2.0
 *
 * epoll.c - epoll descriptors that watch sockets of ours.
 *
 * Until a socket is attached its registration is the program's, in the kernel, unchanged. From then on the kernel is
 * told a tag instead of the program's data and the mask that sd_kernel_want() asks for; edge triggers, one-shots and
 * the program's mask are applied here. A registration is *hot* while its ring is looked at with each wait, and *cold*
 * when it is armed, so that a doorbell makes the kernel report it. Cost follows the hot ones.
 *
 * Locks. ep->owner guards the hot list and the edge-trigger state; it is never held while parked, and whoever finds it
 * taken by a frame below itself (a signal handler) makes do without. `structure` guards s->regs and the tables; it is
 * held with all signals blocked, so nothing can interrupt it on its own thread. Other parts only push to ep->pending,
 * which takes no lock.
 */
#include "poll/poll.h"

#define TAG_HIGH 0x5d5dull
#define PRIVATE_BITS (EPOLLET | EPOLLONESHOT | EPOLLEXCLUSIVE | EPOLLWAKEUP)
#define ALWAYS ((u32)(POLLERR | POLLHUP))
#define IDLE_ROUNDS 64
#define ASK_EVERY 16
#define TIMER_NS 1000000ull
#define LOCK_US 2000          /* a holder is never away for longer, unless it has left by siglongjmp */
#define LOCK_SEIZE 500        /* so many vain tries at the same holder: it has left */
#define LOOK_AT 8
#define MAX_EVENTS (0x7fffffff / (int)sizeof(struct epoll_event))
#define WARM 128              /* so many stay hot over a park, if they had an event in the last NAPS of them */
#define NAPS 4
#define REGS_SEEN 256         /* bound of a walk over s->regs that runs without the lock */

enum { PEND_TOUCH = 1, PEND_SYNC = 2 };

/* Memory of a struct reg is only ever used for another struct reg, so a stale pointer is harmless. */
struct reg {
    struct ep *ep;
    struct sock *s;
    struct reg *next;           /* in s->regs, or in the free list */
    struct reg *hot_next, *hot_prev;
    struct reg *pend_next;
    _Atomic u32 pending;        /* PEND_*: in ep->pending */
    _Atomic u32 armed;          /* as sd_arm gave it */
    u64 data;                   /* the program's */
    u64 seen_tail, stamp;
    u32 want;                   /* the program's, flags included */
    u32 kmask;                  /* the kernel's */
    int fd, live;               /* key in the kernel; a descriptor that still leads to the socket */
    u32 index, gen;
    u32 latched;                /* of the block, at the last report */
    u32 idle, useless;
    u32 naps;                   /* parks since the last report */
    bool tagged, hot, fresh, off, tx_full, dead;
};

struct ep {
    _Atomic u32 owner, waits; /* waits: calls that are in there */
    u32 owner_level, vain, vain_seq, seq;
    int fd;                     /* the descriptor that was used last */
    struct reg **tab;
    u32 cap, used, tagged;
    u32 pid;                    /* who used it last: a forked child shares the kernel half and must not change it */
    _Atomic(struct reg *) pending;
    struct reg *hot;            /* circular */
    u32 nhot, nidle, calls;
    struct reg *slept[WARM];    /* cooled by the last park: a busy set wakes up as one, without a doorbell each */
    u32 nslept;
    _Atomic u64 round;
    u64 checked_tsc;
    struct sd_learn learn;
    struct ep *next;
};

static _Atomic u32 structure;
static struct reg *free_regs;
static struct ep *all_eps, *free_eps;
static u32 next_gen;

/* ------------------------------------------------------------------- locks */

static u64 block_signals(void)
{
    u64 all = ~0ull, old = 0;
    SYS4(__NR_rt_sigprocmask, SIG_SETMASK, &all, &old, 8);
    return old;
}

static void structure_lock(u64 *old)
{
    *old = block_signals();
    for (;;) {
        u32 holder = load_rlx(&structure);
        if (holder == g.pid)
            SYS0(__NR_sched_yield);
        else if (cas_u32(&structure, holder, g.pid)) /* free, or held by a thread that was left behind by fork */
            return;
    }
}

static void structure_unlock(const u64 *old)
{
    store_rel(&structure, 0);
    SYS4(__NR_rt_sigprocmask, SIG_SETMASK, old, NULL, 8);
}

static void owned(struct ep *ep, struct sd_tcb *t)
{
    ep->owner_level = t->level;
    ep->seq++;
    ep->vain = 0;
}

static bool ep_lock_slow(struct ep *ep, struct sd_tcb *t)
{
    u64 end = sd_tsc() + LOCK_US * g.tsc_per_us;
    do {
        for (u32 i = 0; i < 100; i++) {
            if (load_rlx(&ep->owner) == 0 && cas_u32(&ep->owner, 0, t->tid)) {
                owned(ep, t);
                return true;
            }
            cpu_relax();
        }
        SYS0(__NR_sched_yield);
    } while (sd_tsc() < end);
    if (ep->vain_seq != ep->seq)
        ep->vain = 0;
    ep->vain_seq = ep->seq;
    if (++ep->vain < LOCK_SEIZE)
        return false;
    store_rel(&ep->owner, t->tid);
    owned(ep, t);
    return true;
}

/* False: a frame below us on this thread, or a thread that is gone, is in there. */
static bool ep_lock(struct ep *ep, struct sd_tcb *t)
{
    if (load_rlx(&ep->owner) == t->tid) {
        if (t->level > ep->owner_level)
            return false;
        owned(ep, t); /* left by siglongjmp */
        return true;
    }
    if (!g.mt)
        store_rlx(&ep->owner, t->tid);
    else if (!cas_u32(&ep->owner, 0, t->tid))
        return ep_lock_slow(ep, t);
    owned(ep, t);
    return true;
}

/* ------------------------------------------- hot list; ep->owner is held */

static void hot_add(struct ep *ep, struct reg *r)
{
    r->idle = 0;
    if (r->hot)
        return;
    r->hot = true;
    ep->nhot++;
    if (!ep->hot) {
        r->hot_next = r->hot_prev = r;
    } else {
        r->hot_next = ep->hot;
        r->hot_prev = ep->hot->hot_prev;
        r->hot_prev->hot_next = r;
        r->hot_next->hot_prev = r;
    }
    ep->hot = r; /* the newest is looked at first */
}

static void hot_del(struct ep *ep, struct reg *r)
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

static void disarm(struct reg *r)
{
    u32 armed = atomic_exchange(&r->armed, 0);
    if (armed)
        sd_disarm(r->s, armed);
}

static void push_pending(struct reg *r, u32 why)
{
    struct ep *ep = r->ep;
    if (atomic_fetch_or(&r->pending, why) || !ep)
        return; /* is in the list */
    struct reg *head = load_rlx(&ep->pending);
    do
        r->pend_next = head;
    while (!atomic_compare_exchange_weak(&ep->pending, &head, r));
}

/* -------------------------------------------------- the kernel's half of it */

static u64 tag_of(const struct reg *r)
{
    return TAG_HIGH << 48 | (u64)(r->gen & 0xffff) << 32 | r->index;
}

static struct reg *reg_of_tag(const struct ep *ep, u64 data)
{
    u32 index = (u32)data;
    if (data >> 48 != TAG_HIGH || index >= ep->cap)
        return NULL;
    struct reg *r = ep->tab[index];
    return r && (r->gen & 0xffff) == (data >> 32 & 0xffff) ? r : NULL;
}

/* One that was given out, perhaps for a registration that is gone; not just any number of the program's. */
static bool is_tag(const struct ep *ep, u64 data)
{
    return data >> 48 == TAG_HIGH && (u32)data < ep->cap && ((u32)(data >> 32) & 0xffff) <= next_gen;
}

static bool on_ring(const struct sock *s)
{
    return load_rlx(&s->b->rx_mode) == SD_MODE_RING || load_rlx(&s->b->tx_mode) == SD_MODE_RING;
}

/* Ring and kernel decide together, and not yet for the last time. */
static bool translated(const struct sock *s)
{
    return sd_attached(s)
        && !(load_rlx(&s->b->rx_mode) == SD_MODE_BACK && load_rlx(&s->b->tx_mode) == SD_MODE_BACK);
}

static u32 wanted(const struct reg *r)
{
    return r->off ? 0 : sd_bits_fold(r->want & ~PRIVATE_BITS);
}

static u32 kernel_mask(const struct reg *r, bool ring)
{
    if (!ring)
        return r->off ? r->want & PRIVATE_BITS : r->want;
    if (r->off)
        return EPOLLET; /* ERR and HUP are always reported: once, not for ever */
    u32 edge = (r->want & EPOLLET) | (r->useless > 1 ? EPOLLET : 0);
    return sd_kernel_want(r->s, wanted(r)) | edge | (r->want & EPOLLWAKEUP);
}

static long kernel_mod(const struct reg *r, u32 mask, u64 data)
{
    struct epoll_event ev = {mask, data};
    if (!(r->want & EPOLLEXCLUSIVE))
        return SYS4(__NR_epoll_ctl, r->ep->fd, EPOLL_CTL_MOD, r->fd, &ev);
    /* The kernel does not modify exclusive registrations. While we translate it is an ordinary one. */
    SYS4(__NR_epoll_ctl, r->ep->fd, EPOLL_CTL_DEL, r->fd, NULL);
    return SYS4(__NR_epoll_ctl, r->ep->fd, EPOLL_CTL_ADD, r->fd, &ev);
}

/* Makes the kernel's registration what it has to be. A one-shot carries our tag from the start: we must know whether
 * it has fired when the socket attaches later. */
static long reg_sync(struct reg *r, bool force)
{
    bool ring = translated(r->s), tag = ring || (r->want & EPOLLONESHOT);
    u32 mask = kernel_mask(r, ring);
    if (tag == r->tagged && mask == r->kmask && !force)
        return 0;
    if (!tag && !r->tagged && !force)
        return 0;
    long ret = kernel_mod(r, mask, tag ? tag_of(r) : r->data);
    if (ret < 0)
        return ret;
    r->ep->tagged += (u32)tag - (u32)r->tagged;
    r->tagged = tag;
    r->kmask = mask;
    return 0;
}

static void reg_free(struct reg *r)
{
    r->next = free_regs;
    free_regs = r;
}

/* Owner held. Takes over what other parts have noted. */
static void drain(struct ep *ep)
{
    struct reg *r = atomic_exchange(&ep->pending, NULL), *next;
    for (; r; r = next) {
        next = r->pend_next;
        u32 why = atomic_exchange(&r->pending, 0);
        if (r->dead)
            continue; /* left to its killer: see reg_drop */
        if (why & PEND_SYNC)
            reg_sync(r, false);
        if (translated(r->s) && on_ring(r->s) && !r->off) {
            disarm(r);
            hot_add(ep, r);
        } else if (r->hot) {
            hot_del(ep, r);
        }
    }
}

static bool ep_enter(struct ep *ep, struct sd_tcb *t)
{
    if (!ep_lock(ep, t))
        return false;
    if (unlikely(load_rlx(&ep->pending) != NULL))
        drain(ep);
    return true;
}

static void ep_leave(struct ep *ep)
{
    store_rel(&ep->owner, 0);
}

/* --------------------------------------------------------------- reporting */

/* Has anything happened that an edge-triggered registration has not reported? */
static bool is_news(const struct reg *r, u32 out, u64 tail, u32 latched)
{
    return r->fresh || latched != r->latched || (tail != r->seen_tail && (out & POLLIN))
        || (r->tx_full && (out & POLLOUT));
}

/* Would reg_report have something to say? Changes nothing. */
static bool reg_due(struct reg *r)
{
    u64 tail = load_acq(&r->s->e.rx->tail);
    u32 out = sd_ready(r->s, r->live, 0) & (wanted(r) | ALWAYS);
    return !r->off && out && (!(r->want & EPOLLET) || is_news(r, out, tail, load_rlx(&r->s->b->latched)));
}

/* What to tell the program of r now, 0: nothing. `kev` as in sd_ready. Applies edge triggers and one-shots. */
static u32 reg_report(struct reg *r, u32 kev)
{
    struct sock *s = r->s;
    bool edge = r->want & EPOLLET;
    if (load_rlx(&s->b->tx_wait))
        r->tx_full = true; /* read before sd_ready, which may clear it */
    u64 tail = load_acq(&s->e.rx->tail); /* before sd_ready: bytes that come later are news again */
    u32 ready = sd_ready(s, r->live, kev), want = wanted(r);
    u32 latched = load_rlx(&s->b->latched);
    if (r->off)
        return 0;
    u32 out = ready & (want | ALWAYS);
    if (!(ready & POLLOUT))
        r->tx_full = true;
    if (edge && out) {
        bool news = is_news(r, out, tail, latched) || (kev & (POLLERR | POLLPRI));
        news |= load_rlx(&s->b->rx_mode) != SD_MODE_RING && (kev & (POLLIN | POLLRDHUP));
        news |= load_rlx(&s->b->tx_mode) != SD_MODE_RING && (kev & POLLOUT);
        if (!news)
            return 0;
    }
    if (!out)
        return 0;
    r->seen_tail = tail;
    r->latched = latched;
    r->fresh = false;
    if (ready & POLLOUT)
        r->tx_full = false;
    if (r->want & EPOLLONESHOT)
        r->off = true; /* the kernel is told only if it reports this again */
    return sd_bits_spread(out) & ((r->want & ~PRIVATE_BITS) | ALWAYS);
}

static void put(struct epoll_event *e, u32 events, u64 data)
{
    e->events = events;
    e->data = data;
}

/* Owner held. Looks at the hot registrations; returns how many events were stored. `age`: count idle rounds. */
static int scan(struct ep *ep, struct epoll_event *e, int max, u64 round, bool age)
{
    struct reg *r = ep->hot;
    int n = 0;
    for (u32 left = ep->nhot; left && r && n < max; left--) {
        struct reg *next = r->hot_next;
        u32 out = r->stamp == round ? 0 : reg_report(r, 0);
        if (out) {
            r->stamp = round;
            r->idle = r->naps = 0;
            put(&e[n++], out, r->data);
        } else if (age && ++r->idle == IDLE_ROUNDS) {
            ep->nidle++;
        }
        if (r->off)
            hot_del(ep, r);
        r = next;
    }
    if (n == max && ep->hot && r && r->hot)
        ep->hot = r; /* the next scan goes on behind the last that was reported */
    return n;
}

/* A kernel event of an entry that is not translated: a one-shot of a socket on TCP. */
static u32 plain_report(struct reg *r, u32 kev)
{
    if (r->want & EPOLLONESHOT) {
        r->off = true;
        r->kmask = r->want & PRIVATE_BITS; /* what the kernel has made of it by itself */
    }
    return kev;
}

/* Owner held, after a park has ended: what slept beside the one that was rung for is looked at again instead of waiting for its own bell. */
static void warm_up(struct ep *ep)
{
    for (u32 i = 0; i < ep->nslept; i++) {
        struct reg *r = ep->slept[i];
        if (r->ep != ep || r->dead || r->hot || r->off || !on_ring(r->s))
            continue;
        r->naps++;
        disarm(r);
        hot_add(ep, r);
    }
    ep->nslept = 0;
}

/* k events of the kernel -> what the program is told, in place. */
static int translate(struct ep *ep, struct sd_tcb *t, struct epoll_event *e, int k, u64 round)
{
    bool locked = ep_enter(ep, t);
    int n = 0;
    for (int i = 0; i < k; i++) {
        u32 kev = e[i].events, out;
        u64 data = e[i].data;
        struct reg *r = reg_of_tag(ep, data);
        if (!r) {
            if (!is_tag(ep, data))
                put(&e[n++], kev, data);
            continue; /* a tag without registration: deleted by another thread meanwhile */
        }
        if (!translated(r->s)) {
            out = plain_report(r, kev);
        } else {
            if (locked && !r->off && on_ring(r->s)) {
                disarm(r);
                hot_add(ep, r);
            }
            out = reg_report(r, sd_bits_fold(kev));
            r->useless = out ? 0 : r->useless + 1;
            if (!out && (r->off || r->useless == 2) && locked)
                reg_sync(r, false); /* or a level that nobody wants would keep us busy for ever */
        }
        if (out) {
            r->stamp = round;
            r->naps = 0;
            put(&e[n++], out, r->data);
        }
    }
    if (locked && k > 0)
        warm_up(ep);
    if (locked)
        ep_leave(ep);
    return n;
}

/* ------------------------------------------------------------------ parking */

/* Owner held. Arms the hot registrations (idle_only: those that were idle for long) and looks again.
 * True: one is ready, nothing was changed. False: they are cold now, apart from those that need a timer. */
static bool cool(struct ep *ep, bool idle_only, bool *timer)
{
    struct reg *r = ep->hot, *next;
    u32 count = ep->nhot;
    *timer = false;
    if (!idle_only)
        ep->nslept = 0;
    if (!count)
        return false;
    for (u32 i = 0; i < count; i++, r = r->hot_next) {
        if (idle_only && r->idle < IDLE_ROUNDS)
            continue;
        disarm(r);
        if (load_rlx(&r->s->b->tx_wait))
            r->tx_full = true; /* a send found no room; below it is we who wait */
        store_rlx(&r->armed, sd_arm(r->s, wanted(r)));
        reg_sync(r, false); /* what is waited for decides what the kernel is asked */
    }
    sd_membarrier();
    r = ep->hot;
    for (u32 i = 0; i < count; i++, r = next) {
        next = r->hot_next;
        if (idle_only && r->idle < IDLE_ROUNDS)
            continue;
        if (reg_due(r)) {
            disarm(r);
            if (!idle_only)
                return true; /* the caller scans; the others stay hot, what is armed costs one bell */
            r->idle = 0;
        } else if (sd_needs_timer(r->s, wanted(r))) {
            *timer = true;
        } else {
            hot_del(ep, r);
            if (!idle_only && ep->nslept < WARM && r->naps < NAPS)
                ep->slept[ep->nslept++] = r;
        }
    }
    return false;
}

bool sd_ep_peek(void *p)
{
    struct ep *ep = p;
    struct reg *r;
    bool ready = false;
    if (!ep_enter(ep, sd_self()))
        return false;
    r = ep->hot;
    for (u32 i = 0; i < ep->nhot && !ready; i++, r = r->hot_next)
        ready = reg_due(r);
    ep_leave(ep);
    return ready;
}

bool sd_ep_park(void *p)
{
    struct ep *ep = p;
    bool timer, ready;
    if (!ep_enter(ep, sd_self()))
        return false;
    ready = cool(ep, false, &timer);
    ep_leave(ep);
    return ready;
}

/* ----------------------------------------------------------------- waiting */

struct epwait {
    struct ep *ep;
    struct sd_tcb *t;
    struct epoll_event *e;
    int max, epfd;
    u64 round;
    struct sd_deadline d;
    struct sd_mask m;
    bool precise; /* epoll_pwait2: nanoseconds */
    bool called;
    bool spinning;
};

/* Returns what the kernel has, translated; *raw its own count or -errno. */
static int ask_kernel(struct epwait *w, int have, u64 ns, long *raw)
{
    struct epoll_event *e = w->e + have;
    const void *set = ns ? w->m.set : NULL;
    struct timespec64 ts;
    w->called = true;
    if (w->precise && ns) {
        *raw = SYS6(__NR_epoll_pwait2, w->epfd, e, w->max - have, sd_ns_ts(ns, &ts), set, 8);
    } else {
        u64 ms = min_u64(ns / 1000000 + (ns % 1000000 != 0), 0x7fffffff);
        *raw = SYS6(__NR_epoll_pwait, w->epfd, e, w->max - have, ns == SD_FOREVER ? -1 : (long)ms, set, 8);
    }
    w->ep->checked_tsc = sd_tsc();
    return *raw > 0 ? translate(w->ep, w->t, e, (int)*raw, w->round) : 0;
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
        u32 out = reg_report(r, 0);
        if (out)
            put(&w->e[n++], out, r->data);
    }
    return n;
}

static int look(struct epwait *w, int have)
{
    struct ep *ep = w->ep;
    bool timer;
    if (have >= w->max)
        return 0;
    if (!ep_enter(ep, w->t))
        return have ? 0 : scan_all(w);
    int n = scan(ep, w->e + have, w->max - have, w->round, !w->spinning);
    if (!w->spinning && ep->nidle && (ep->calls & (IDLE_ROUNDS - 1)) == 0) {
        ep->nidle = 0;
        cool(ep, true, &timer);
    }
    ep_leave(ep);
    if (unlikely(load_rlx(&ep->pending) != NULL) && ep_enter(ep, w->t))
        ep_leave(ep); /* noted by sd_ready during the scan: the kernel must follow before we sleep */
    return n;
}

static bool worth_spinning(struct epwait *w, bool *here)
{
    struct ep *ep = w->ep;
    bool pays = false;
    *here = false;
    if (!ep->hot || !ep_enter(ep, w->t))
        return false;
    struct reg *r = ep->hot;
    for (u32 i = 0; i < ep->nhot && i < LOOK_AT && !pays; i++, r = r->hot_next) {
        pays = sd_spin_pays(r->s);
        *here |= sd_peer_here(r->s);
    }
    ep_leave(ep);
    return pays;
}

static long spin(struct epwait *w, u64 left)
{
    struct sd_spin sp;
    bool here;
    long raw = 0, n = 0;
    if (!worth_spinning(w, &here)) {
        if (!here)
            return 0;
        w->called = true;
        SYS0(__NR_sched_yield);
        return look(w, 0);
    }
    if (!sd_spin_begin(&sp, &w->ep->learn, left))
        return 0;
    w->spinning = true; /* looks follow each other too fast to say who is idle */
    while (n == 0 && raw >= 0 && sd_spin_more(&sp)) {
        n = look(w, 0);
        if (n == 0 && sd_spin_ask_kernel(&sp))
            n = ask_kernel(w, 0, 0, &raw);
    }
    w->spinning = false;
    sd_spin_end(&sp, n > 0);
    return n ? n : raw < 0 ? raw : 0;
}

/* Sleeps once. 0: look again. */
static long park(struct epwait *w, u64 left)
{
    struct ep *ep = w->ep;
    bool timer = true; /* without the lock: come back soon */
    long raw;
    if (ep_enter(ep, w->t)) {
        bool ready = cool(ep, false, &timer);
        ep_leave(ep);
        if (ready || load_rlx(&ep->pending))
            return 0;
    }
    COUNT(parks);
    u64 from = sd_tsc();
    long n = ask_kernel(w, 0, timer ? min_u64(left, TIMER_NS) : left, &raw);
    if (raw > 0 && ep->hot)
        sd_spin_parked(&ep->learn, from);
    return n ? n : raw < 0 ? raw : 0;
}

static long wait_loop(struct epwait *w)
{
    struct ep *ep = w->ep;
    long raw = 0;
    u64 now = sd_tsc();
    int n = 0;
    bool asked = ++ep->calls % ASK_EVERY == 0 || now - ep->checked_tsc > SD_KERNEL_US * g.tsc_per_us;
    if (asked && ep->nhot) {
        n = ask_kernel(w, 0, 0, &raw); /* the kernel first, or ready rings would starve its descriptors */
        if (raw < 0)
            return raw;
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
        long r = spin(w, left);
        if (r == 0)
            r = park(w, sd_deadline_left(&w->d));
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
    w->ep = ep;
    w->e = (struct epoll_event *)f->rsi;
    w->max = (i32)f->rdx;
    w->epfd = ep->fd = (int)f->rdi;
    w->round = atomic_fetch_add(&ep->round, 1) + 1;
    ep->pid = g.pid;
    atomic_fetch_add(&ep->waits, 1); /* another thread may close it meanwhile */
    long r = wait_loop(w);
    if (w->called)
        COUNT(calls_kernel);
    else
        COUNT(calls_library);
    atomic_fetch_sub(&ep->waits, 1);
    return r;
}

/* The struct ep if this wait is ours. With one thread and nothing to translate the kernel's answer is right as it is;
 * with more of them a socket could attach while we sleep, and the kernel would hand out tags. */
static struct ep *our_wait(const struct sd_frame *f, const struct sd_tcb *t)
{
    struct ep *ep = t->foreign ? NULL : sd_epoll_of(f->rdi);
    if (!ep || !arguments_ok(f))
        return NULL;
    return ep->tagged || load_rlx(&ep->pending) || (g.mt && ep->used) ? ep : NULL;
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

/* ------------------------------------------------------------ registrations */

static struct reg *reg_find(const struct sock *s, const struct ep *ep, int fd)
{
    u32 left = REGS_SEEN;
    for (struct reg *r = s->regs; r && left; r = r->next, left--)
        if (r->ep == ep && r->fd == fd && !r->dead)
            return r;
    return NULL;
}

/* Structure held. */
static bool table_grow(struct ep *ep)
{
    u32 cap = ep->cap ? ep->cap * 2 : 16;
    struct reg **tab = sd_alloc(cap * sizeof(*tab));
    if (!tab)
        return false;
    if (ep->cap)
        sd_copy(tab, ep->tab, ep->cap * sizeof(*tab));
    ep->tab = tab; /* the old one stays: somebody may be reading it, and all of them together are no larger than this */
    __asm__ volatile("" : : : "memory");
    ep->cap = cap;
    return true;
}

static struct reg *reg_new(struct ep *ep)
{
    struct reg *r = free_regs;
    if (ep->used == ep->cap && !table_grow(ep))
        return NULL;
    if (r && load_rlx(&r->pending) == 0) { /* else some ep->pending still leads through it */
        free_regs = r->next;
        sd_zero(r, sizeof(*r));
    } else {
        r = sd_alloc(sizeof(*r));
    }
    if (!r)
        return NULL;
    u32 i = ep->used; /* slots below are mostly taken: look from here, around */
    while (ep->tab[i % ep->cap])
        i++;
    r->index = i % ep->cap;
    r->gen = ++next_gen;
    r->ep = ep;
    ep->used++;
    return r;
}

/* Structure held, signals blocked. */
static void reg_drop(struct reg *r, struct sd_tcb *t, bool tell_kernel)
{
    struct ep *ep = r->ep;
    for (struct reg **p = &r->s->regs; *p; p = &(*p)->next)
        if (*p == r) {
            *p = r->next;
            break;
        }
    if (tell_kernel && sd_epoll_of((u64)ep->fd) == ep)
        SYS4(__NR_epoll_ctl, ep->fd, EPOLL_CTL_DEL, r->fd, NULL);
    r->dead = true;
    ep->tab[r->index] = NULL;
    ep->used--;
    ep->tagged -= r->tagged;
    disarm(r);
    if (!ep_lock(ep, t))
        return; /* a frame below is in the list: it stays there, off and never reported. Costs one struct */
    hot_del(ep, r);
    drain(ep);
    ep_leave(ep);
    reg_free(r);
}

static bool is_open(const struct ep *ep)
{
    if (sd_epoll_of((u64)ep->fd) == ep)
        return true;
    for (u32 fd = 0; fd < ARRAY_LEN(sd_fdkind); fd++)
        if (sd_fdkind[fd] && sd_epoll_of(fd) == ep)
            return true; /* a dup */
    return false;
}

/* Structure held. What was closed since: nobody tells us of the last close of an epoll descriptor. The struct is only
 * ever used for another epoll descriptor: sd_ep_changed of another thread may be looking at it. */
static void sweep(struct sd_tcb *t)
{
    struct ep **pp = &all_eps, *ep;
    while ((ep = *pp)) {
        if (load_rlx(&ep->waits) || is_open(ep)) {
            pp = &ep->next;
            continue;
        }
        for (u32 i = 0; i < ep->cap; i++)
            if (ep->tab[i])
                reg_drop(ep->tab[i], t, false);
        *pp = ep->next;
        ep->next = free_eps;
        free_eps = ep;
    }
}

static struct ep *ep_new(int epfd, struct sd_tcb *t)
{
    sweep(t);
    struct ep *ep = free_eps;
    if (ep)
        free_eps = ep->next;
    else if (!(ep = sd_alloc(sizeof(*ep))))
        return NULL;
    ep->tagged = 0;
    ep->fd = epfd;
    ep->pid = g.pid;
    sd_epoll_set((u64)epfd, ep);
    if (sd_epoll_of((u64)epfd) != ep) { /* its table is full */
        ep->next = free_eps;
        free_eps = ep;
        return NULL;
    }
    ep->next = all_eps;
    all_eps = ep;
    return ep;
}

static void settle(struct reg *r, struct sd_tcb *t)
{
    push_pending(r, PEND_TOUCH | PEND_SYNC);
    if (ep_enter(r->ep, t))
        ep_leave(r->ep);
}

static long ctl_add(int epfd, int fd, struct sock *s, const struct epoll_event *ev, struct sd_tcb *t)
{
    u64 old;
    long ret = SYS4(__NR_epoll_ctl, epfd, EPOLL_CTL_ADD, fd, ev);
    if (ret < 0)
        return ret;
    structure_lock(&old);
    struct ep *ep = sd_epoll_of((u64)epfd);
    if (!ep)
        ep = ep_new(epfd, t);
    struct reg *r = ep ? reg_new(ep) : NULL;
    if (r) {
        ep->fd = epfd;
        ep->pid = g.pid;
        r->s = s;
        r->fd = r->live = fd;
        r->want = r->kmask = ev->events;
        r->data = ev->data;
        r->fresh = true;
        ep->tab[r->index] = r;
        r->next = s->regs;
        s->regs = r;
        if (sd_attached(s) || (r->want & EPOLLONESHOT))
            settle(r, t);
    }
    structure_unlock(&old);
    if (!r) {
        SYS4(__NR_epoll_ctl, epfd, EPOLL_CTL_DEL, fd, NULL);
        return -ENOMEM;
    }
    return 0;
}

static long ctl_mod(struct reg *r, const struct epoll_event *ev, struct sd_tcb *t)
{
    struct ep *ep = r->ep;
    struct sock *s = r->s;
    if ((r->want | ev->events) & EPOLLEXCLUSIVE)
        return -EINVAL;
    bool locked = ep_enter(ep, t);
    struct reg was = *r;
    r->want = ev->events;
    r->data = ev->data;
    r->off = false;
    r->fresh = true;
    r->useless = 0;
    /* A MOD also re-arms, and where TCP is still in use only the kernel knows of what. */
    bool tcp = load_rlx(&s->b->rx_mode) != SD_MODE_RING || load_rlx(&s->b->tx_mode) != SD_MODE_RING;
    bool force = !translated(s) || (tcp && ((ev->events | was.kmask) & (EPOLLET | EPOLLONESHOT)));
    long ret = reg_sync(r, force);
    if (ret < 0) {
        r->want = was.want;
        r->data = was.data;
        r->off = was.off;
        r->fresh = was.fresh;
    }
    if (locked) {
        if (translated(s) && on_ring(s)) {
            disarm(r);
            hot_add(ep, r);
        }
        ep_leave(ep);
    } else {
        push_pending(r, PEND_TOUCH);
    }
    return ret;
}

static long ctl_del(int epfd, int fd, struct reg *r, struct sd_tcb *t)
{
    u64 old;
    long ret = SYS4(__NR_epoll_ctl, epfd, EPOLL_CTL_DEL, fd, NULL);
    if (ret == 0 && r) {
        structure_lock(&old);
        reg_drop(r, t, false);
        structure_unlock(&old);
    }
    return ret;
}

SD_CALL(sd_epoll_ctl)
{
    int epfd = (int)f->rdi, op = (int)f->rsi, fd = (int)f->rdx;
    const struct epoll_event *p = (const struct epoll_event *)f->r10;
    struct sock *s = sd_sock_of((u64)(u32)fd);
    if (!s || t->foreign || (op != EPOLL_CTL_DEL && sd_bad_ptr(p)))
        return SD_PASS;
    struct ep *ep = sd_epoll_of((u64)(u32)epfd);
    struct reg *r = ep ? reg_find(s, ep, fd) : NULL;
    if (op == EPOLL_CTL_DEL)
        return r ? ctl_del(epfd, fd, r, t) : SD_PASS;
    struct epoll_event ev = *p;
    if (op == EPOLL_CTL_ADD)
        return ctl_add(epfd, fd, s, &ev, t);
    if (op != EPOLL_CTL_MOD || !r)
        return SD_PASS;
    ep->fd = epfd;
    ep->pid = g.pid;
    return ctl_mod(r, &ev, t);
}

/* ------------------------------------------------------ called by fd/, sock/ */

void sd_ep_changed(struct sock *s)
{
    struct sd_tcb *t = sd_self();
    u32 left = REGS_SEEN;
    for (struct reg *r = s->regs; r && left; r = r->next, left--) {
        struct ep *ep = r->ep;
        r->useless = 0;
        push_pending(r, PEND_TOUCH | PEND_SYNC);
        /* Called from sd_ready inside a scan, too: then that scan's own end does it. */
        if (ep->pid == g.pid && load_rlx(&ep->owner) != t->tid && sd_epoll_of((u64)ep->fd) == ep && ep_enter(ep, t))
            ep_leave(ep);
    }
}

void sd_ep_touched(struct sock *s)
{
    u32 left = REGS_SEEN;
    for (struct reg *r = s->regs; r && left; r = r->next, left--)
        if (!r->hot)
            push_pending(r, PEND_TOUCH);
}

void sd_ep_full(struct sock *s)
{
    u32 left = REGS_SEEN;
    for (struct reg *r = s->regs; r && left; r = r->next, left--) {
        r->tx_full = true;
        if (!r->hot)
            push_pending(r, PEND_TOUCH);
    }
}

static int another_fd(const struct sock *s, int not)
{
    for (u32 fd = 0; fd < ARRAY_LEN(sd_fdkind); fd++)
        if (sd_fdkind[fd] && (int)fd != not && sd_sock_of(fd) == s)
            return (int)fd;
    return -1;
}

void sd_ep_fd_closed(struct sock *s, int fd)
{
    struct reg *r = s->regs, *next;
    u64 old;
    if (!r)
        return;
    int other = load_rlx(&s->refs) > 1 ? another_fd(s, fd) : -1;
    structure_lock(&old);
    for (r = s->regs; r; r = next) {
        next = r->next;
        if (other < 0) /* the kernel keeps it while another process holds the socket: nobody could translate it */
            reg_drop(r, sd_self(), r->tagged && r->fd == fd && r->ep->pid == g.pid && load_rlx(&s->b->users) > 1);
        else if (r->live == fd)
            r->live = other; /* registered under a number that is gone, and still reported: as Linux does it */
    }
    structure_unlock(&old);
}

void sd_ep_before_exec(void)
{
    u64 old;
    structure_lock(&old);
    for (struct ep *ep = all_eps; ep; ep = ep->next) {
        if (ep->pid != g.pid || sd_epoll_of((u64)ep->fd) != ep)
            continue;
        for (u32 i = 0; i < ep->cap; i++) {
            struct reg *r = ep->tab[i];
            if (!r || !r->tagged)
                continue;
            u32 mask = r->off ? r->want & PRIVATE_BITS : r->want;
            if (kernel_mod(r, mask, r->data) < 0)
                continue;
            r->tagged = false;
            r->kmask = mask;
            ep->tagged--;
            push_pending(r, PEND_TOUCH | PEND_SYNC);
        }
    }
    structure_unlock(&old);
}
