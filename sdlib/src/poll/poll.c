/* SPDX-License-Identifier: Apache-2.0
 *
 * poll.c - poll(2), ppoll(2) and the core that select.c uses too.
 *
 * Rings are looked at first, without a system call. When the program has to sleep it sleeps in the kernel, on its own
 * descriptors, after each ring was armed: set armed words, one membarrier, look again, ppoll. A doorbell makes the
 * kernel's POLLIN true; sd_ready() eats it and says what is true of the ring.
 */
#include "poll/poll.h"
#include "sock/sock.h"

#define ON_STACK 32           /* entries; 40 bytes each */
#define MAX_ENTRIES (1u << 20)
#define LOOK_AT 8             /* sockets asked whether spinning pays */
#define TIMER_NS 1000000ull   /* see sd_needs_timer */
#define SNOOZE_NS 10000000ull
#define HELD 0x20u            /* in `armed`, below SD_ARM_BARRIER: [F3] */
#define COUNTED 0x40u         /* in `armed`: other threads know that one sleeps on it [B2] */
_Static_assert((HELD | COUNTED) < SD_ARM_BARRIER && !((HELD | COUNTED) & (3 | SD_ARM_NAMED)), "sd_disarm() reads the rest");

/* sd_attached(), of one that another thread may be closing: neither it nor its block is ever unmapped. */
static inline bool is_attached(const struct sock *s)
{
    const struct sd_block *b = *(struct sd_block *const volatile *)&s->b;
    return s->seg && b && load_rlx(&b->state) == SD_BLOCK_ATTACHED;
}

bool sd_pollitem_find(struct sd_pollitem *it, int fd)
{
    it->s = NULL;
    it->ep = NULL;
    it->armed = 0;
    if (fd < 0)
        return false;
    struct sock *s = sd_sock_of((u64)fd);
    if (s)
        it->s = is_attached(s) ? s : NULL;
    else
        it->ep = sd_epoll_of((u64)fd);
    return it->s || it->ep;
}

/* Where there is no other thread, a handler may close it as well, but only while we sleep: arm_all(). */
static inline bool find_and_hold(struct sd_pollset *p, struct sd_pollitem *it, int fd)
{
    while (sd_pollitem_find(it, fd)) {
        struct sock *s = it->s;
        if (!s || !g.mt)
            return true;
        atomic_fetch_add(&s->held, 1); /* [F3] before the table is looked at again */
        it->armed = HELD;
        p->holds = true;
        if (likely(sd_is_still(s, fd)))
            return true;
        sd_sock_let_go(s);
    }
    return false;
}

bool sd_pollitem_hold(struct sd_pollset *p, struct sd_pollitem *it, int fd) { return find_and_hold(p, it, fd); }

void sd_pollset_count(const struct sd_pollset *p)
{
    if (p->called)
        COUNT(calls_kernel);
    else
        COUNT(calls_library);
}

static u32 item_ready(const struct sd_pollset *p, u32 i, u32 kev)
{
    struct sd_pollitem *it = &p->item[i];
    u32 ready = kev;
    if (kev & POLLNVAL)
        return POLLNVAL; /* closed by another thread meanwhile */
    if (it->s)
        ready = sd_bits_spread(sd_ready(it->s, p->k[i].fd, sd_bits_fold(kev)));
    else if (it->ep && sd_ep_peek(it->ep))
        ready |= POLLIN | POLLRDNORM;
    return ready & it->care;
}

/* Rings only, no system call unless a doorbell has to be eaten. */
static bool any_ready(const struct sd_pollset *p)
{
    for (u32 i = 0; i < p->n; i++)
        if ((p->item[i].s || p->item[i].ep) && item_ready(p, i, 0))
            return true;
    return false;
}

/* True: of some the kernel is not asked whether they can be read, so that somebody has to look. (What sd_needs_timer() has said may not be so any more.) */
static bool kernel_events(struct sd_pollset *p)
{
    bool blind = false;
    for (u32 i = 0; i < p->n; i++) {
        struct sd_pollitem *it = &p->item[i];
        u32 want = it->s ? sd_kernel_want(it->s, sd_bits_fold(it->want)) : it->want;
        p->k[i].events = (int16_t)want;
        p->k[i].revents = 0;
        blind |= it->s && (sd_bits_fold(it->want) & ~want & POLLIN);
    }
    return blind;
}

static u64 others; /* tsc: sd_nap_pays() */

/* revents of the kernel (asked) or 0 -> what the program is told. Returns the number of entries. */
static long translate(struct sd_pollset *p, bool asked)
{
    long count = 0;
    u64 now = asked ? sd_tsc() : 0;
    for (u32 i = 0; i < p->n; i++) {
        struct sd_pollitem *it = &p->item[i];
        u32 kev = asked ? (u16)p->k[i].revents : 0;
        if (asked && it->s)
            it->s->checked_tsc = now;
        u32 out = p->k[i].fd < 0 ? 0 : it->s || it->ep ? item_ready(p, i, kev) : kev & (it->care | POLLNVAL);
        p->k[i].revents = (int16_t)out;
        count += out != 0;
        if (kev && !it->s)
            others = now;
    }
    return count;
}

/* Every entry is a socket of which the directions that are asked for are on the ring, and whose kernel side was looked at a moment ago. */
static bool may_skip_kernel(const struct sd_pollset *p)
{
    u64 now = sd_tsc();
    if (p->ours != p->n)
        return false;
    for (u32 i = 0; i < p->n; i++) {
        const struct sock *s = p->item[i].s;
        bool out = p->item[i].want & (POLLOUT | POLLWRNORM | POLLWRBAND);
        if (!s || s->kcheck || now - s->checked_tsc > SD_KERNEL_US * g.tsc_per_us)
            return false;
        if (load_rlx(&s->b->rx_mode) != SD_MODE_RING || (out && load_rlx(&s->b->tx_mode) != SD_MODE_RING))
            return false;
        if (load_rlx(&s->b->latched))
            return false; /* after the end, what the socket is in is known to the kernel */
    }
    return true;
}

static long ask_now(struct sd_pollset *p)
{
    struct timespec64 zero = {0, 0};
    kernel_events(p);
    p->called = true;
    long r = SYS5(__NR_ppoll, p->k, p->n, &zero, NULL, 8);
    if (r == -EINTR)
        return 0; /* cannot be with no time-out; should it, nothing was ready */
    return r < 0 ? r : translate(p, true);
}

static bool worth_spinning(const struct sd_pollset *p, bool *here)
{
    u32 left = LOOK_AT;
    bool pays = false;
    *here = false;
    for (u32 i = 0; i < p->n && left && !(pays && *here); i++) {
        const struct sock *s = p->item[i].s;
        if (!s)
            continue;
        pays |= sd_spin_pays(s);
        *here |= sd_peer_here(s);
        left--;
    }
    return pays;
}

/* Entries attach, move back and are closed by other threads while we sleep. */
static void find_again(struct sd_pollset *p)
{
    p->ours = 0;
    for (u32 i = 0; i < p->n; i++)
        p->ours += sd_pollitem_hold(p, &p->item[i], p->k[i].fd);
}

/* Closed meanwhile, or another file has the number: what the kernel has said is of that one. */
static bool is_stale(const struct sd_pollset *p)
{
    for (u32 i = 0; i < p->n; i++)
        if (p->item[i].s && sd_sock_of((u32)p->k[i].fd) != p->item[i].s)
            return true;
    return false;
}

/* There are others to be heard beside the connections of ours. */
static bool deaf(const struct sd_pollset *p) { return p->ours != p->n; }

/* All of the program's sockets, if no room is waited for and each may be napped on. */
static u32 to_nap_on(const struct sd_pollset *p, struct sock **set)
{
    u32 n = 0;
    for (u32 i = 0; i < p->n; i++) {
        const struct sd_pollitem *it = &p->item[i];
        if (!it->s && !it->ep)
            continue;
        if (it->ep || n == SD_NAP_SET || (sd_bits_fold(it->want) & POLLOUT) || !sd_nap_possible(it->s, sd_rung_soon(&sd_learn_process, deaf(p))))
            return 0;
        set[n++] = it->s;
    }
    return n;
}

static long nap(struct sd_pollset *p, u64 left, bool masked)
{
    struct sock *set[SD_NAP_SET];
    u32 n = !masked && p->ours <= SD_NAP_SET && sd_nap_pays(left, &others) ? to_nap_on(p, set) : 0;
    p->napped = n && sd_nap_enter(set, n); /* [N3] until all of them sleep in the kernel, or the wait is over */
    long r = n && !(p->napped && is_stale(p)) ? sd_nap(set, n, false, deaf(p), &sd_learn_process, p->began) : 0;
    return r <= 0 ? r : any_ready(p) ? ask_now(p) : 0;
}

static void nap_over(struct sd_pollset *p, u32 sleeper)
{
    for (u32 i = 0; i < p->n && unlikely(p->napped); i++)
        if (p->item[i].s)
            sd_nap_leave(&p->item[i].s, 1, sleeper);
    p->napped = false;
}

/* > 0: entries ready, 0: nothing, < 0: -errno. To peers that can only run on this CPU. */
static long give_way(struct sd_pollset *p, u64 left, bool masked)
{
    bool again = sd_yields_pay(), ready = false;
    u32 tries = 0;
    p->called = true;
    while (!ready && again) {
        again = sd_yield(&tries);
        ready = any_ready(p);
    }
    return sd_yield_won(ready) ? ask_now(p) : nap(p, left, masked);
}

/* As give_way(). */
static long spin(struct sd_pollset *p, u64 left, bool masked)
{
    struct sd_spin sp;
    bool here;
    bool pays = worth_spinning(p, &here), held = pays && sd_spin_held(&sd_learn_process);
    if (!pays || held)
        return here || held ? give_way(p, left, masked) : 0;
    if (!sd_spin_begin(&sp, &sd_learn_process, left, here))
        return 0;
    long r = 0;
    while (r == 0 && sd_spin_more(&sp)) {
        if (any_ready(p))
            r = may_skip_kernel(p) ? translate(p, false) : ask_now(p);
        else if (sd_spin_ask_kernel(&sp))
            r = ask_now(p);
    }
    sd_spin_end(&sp, r > 0);
    for (u32 i = 0; r >= 0 && i < p->n; i++)
        if (p->item[i].s && (!r || p->k[i].revents))
            sd_spun(p->item[i].s, r);
    return !r && sd_rung_soon(&sd_learn_process, deaf(p)) ? nap(p, left, masked) : r;
}

/* [W4] Nobody else may eat its doorbell. (In a program with threads nobody could tell a sleeper in poll that it was eaten.) */
static bool may_name(const struct sock *s, u32 armed)
{
    return (armed & 1) && !g.mt && load_rlx(&s->b->users) <= 1 && !s->b->far;
}

static bool arm_all(struct sd_pollset *p, bool *timer)
{
    u64 sleep = !g.mt && p->ours > 1 ? sd_sleep_name() : 0;
    bool ready = false, barrier = false;
    *timer = false;
    for (u32 i = 0; i < p->n; i++) {
        struct sd_pollitem *it = &p->item[i];
        if (it->s) {
            u32 want = sd_bits_fold(it->want);
            if (!(it->armed & HELD))
                atomic_fetch_add(&it->s->held, 1);
            p->holds = true;
            it->armed = sd_arm(it->s, want) | HELD;
            if (sleep && may_name(it->s, it->armed)) {
                it->armed |= SD_ARM_NAMED;
                sd_rx_asleep(&it->s->e, sleep);
            }
            if (g.mt) {
                atomic_fetch_add(&it->s->parked, 1);
                it->armed |= COUNTED;
            }
            *timer |= sd_needs_timer(it->s, want);
            barrier |= it->armed & SD_ARM_BARRIER;
        } else if (it->ep) {
            ready |= sd_ep_park(it->ep) && (it->care & POLLIN);
        }
    }
    if (barrier)
        sd_membarrier();
    return ready || any_ready(p);
}

/* `pid`: who has armed them. A handler may have forked meanwhile: what its parent has counted is not the child's to take back, and to sleep on it does not
 * go, since poll is never restarted. */
static void disarm_all(struct sd_pollset *p, u32 pid)
{
    for (u32 i = 0; i < p->n; i++) {
        struct sd_pollitem *it = &p->item[i];
        if (it->armed & COUNTED)
            atomic_fetch_sub(&it->s->parked, 1);
        if (it->armed && likely(pid == g.pid))
            sd_disarm(it->s, it->armed);
        it->armed &= HELD;
    }
}

/* What other threads have closed is freed now. The items are looked for anew, or of no use any more. */
static inline __attribute__((always_inline)) void let_go(struct sd_pollset *p)
{
    if (likely(!p->holds))
        return;
    const struct sd_pollitem *it = p->item, *end = it + p->n; /* one at least */
    p->holds = false;
    do
        if ((it->armed & HELD) && atomic_fetch_sub(&it->s->held, 1) == 1 && unlikely(load_acq(&it->s->dead) == 1))
            sd_sock_reap(it->s);
    while (++it != end);
}

/* A descriptor is hung up, which poll always reports but select did not ask for: sleep without it for a while. */
static bool snooze(struct sd_pollset *p)
{
    bool any = false;
    for (u32 i = 0; i < p->n; i++) {
        struct sd_pollitem *it = &p->item[i];
        if (p->k[i].fd >= 0 && !it->s && !it->ep && !(it->care & POLLHUP)) {
            p->k[i].fd = ~p->k[i].fd;
            any = true;
        }
    }
    return any;
}

static void unsnooze(struct sd_pollset *p)
{
    for (u32 i = 0; i < p->n; i++)
        if (p->k[i].fd < 0 && !(p->item[i].care & POLLHUP))
            p->k[i].fd = ~p->k[i].fd;
}

/* Of what the kernel has reported. */
static u64 rung_at(const struct sd_pollset *p)
{
    for (u32 i = 0; i < p->n; i++)
        if (p->item[i].s && p->k[i].revents && sd_sock_of((u32)p->k[i].fd) == p->item[i].s)
            return load_rlx(&p->item[i].s->e.rx->rung_at);
    return 0;
}

/* Sleeps once. > 0: ready; 0: look again (bells only, or time over); < 0: -errno. */
static long park(struct sd_pollset *p, u64 left, const struct sd_mask *m, bool *idle)
{
    struct timespec64 ts;
    bool timer;
    u32 pid = g.pid;
    struct sd_rouse rouse = sd_rouse_begin(p->k);
    if (arm_all(p, &timer)) {
        sd_rouse_end(&rouse);
        disarm_all(p, pid);
        return is_stale(p) ? 0 : ask_now(p);
    }
    for (u32 i = 0; i < p->n; i++)
        if (p->item[i].s)
            p->item[i].s->b->parks++;
    timer |= kernel_events(p); /* after arming: what is waited for decides what the kernel is asked */
    bool dozing = *idle && snooze(p);
    left = min_u64(left, timer ? TIMER_NS : SD_FOREVER);
    left = min_u64(left, dozing ? SNOOZE_NS : SD_FOREVER);
    COUNT(parks);
    p->called = true;
    u64 from = sd_tsc();
    sd_ep_follow();
    sd_self()->wakeable = SD_WAKE_AS(0);
    nap_over(p, sd_self()->tid);
    long r = SYS5(__NR_ppoll, p->k, p->n, sd_ns_ts(left, &ts), m->set, 8);
    sd_self()->wakeable = 0;
    sd_rouse_end(&rouse);
    disarm_all(p, pid);
    if (dozing)
        unsnooze(p);
    if (r > 0)
        sd_spin_parked(&sd_learn_process, p->began, from, rung_at(p));
    long n = r < 0 ? r : is_stale(p) ? 0 : translate(p, true);
    *idle = r > 0 && n == 0 && !dozing;
    return n;
}

static inline __attribute__((always_inline)) long wait_loop(struct sd_pollset *p, struct sd_deadline *d, const struct sd_mask *m)
{
    bool idle = false;
    for (;;) {
        long r = 0;
        if (any_ready(p))
            r = may_skip_kernel(p) ? translate(p, false) : ask_now(p);
        else if (d->ns == 0)
            return may_skip_kernel(p) ? translate(p, false) : ask_now(p);
        if (r)
            return r;
        u64 left = sd_deadline_left(d);
        if (left == 0)
            return ask_now(p); /* a last look, as the kernel does */
        p->began = sd_tsc();
        r = spin(p, left, m->set);
        if (r == 0) {
            left = sd_deadline_left(d);
            r = left ? park(p, left, m, &idle) : 0;
        }
        nap_over(p, 0);
        if (r)
            return r;
        let_go(p);
        find_again(p);
    }
}

long sd_pollset_wait(struct sd_pollset *p, struct sd_deadline *d, const struct sd_mask *m)
{
    long r = wait_loop(p, d, m);
    let_go(p);
    return r;
}

/* ------------------------------------------------------------- poll, ppoll */

static bool has_ours(const struct pollfd *u, u64 n)
{
    struct sd_pollitem it;
    for (u64 i = 0; i < n; i++)
        if (sd_pollitem_find(&it, u[i].fd))
            return true;
    return false;
}

static long wait_and_tell(struct sd_pollset *p, struct pollfd *u, struct sd_deadline *d, const struct sd_mask *m)
{
    p->ours = 0;
    p->called = false;
    for (u32 i = 0; i < p->n; i++) {
        struct sd_pollitem *it = &p->item[i];
        p->k[i] = u[i];
        p->ours += find_and_hold(p, it, p->k[i].fd);
        it->want = (u16)u[i].events;
        it->care = it->want | POLLERR | POLLHUP;
        it->back = i;
    }
    long r = sd_pollset_wait(p, d, m);
    for (u32 i = 0; i < p->n && (r >= 0 || r == -EINTR); i++)
        u[i].revents = r < 0 ? 0 : p->k[i].revents; /* a handler ended the wait: the kernel writes zeros all the same */
    sd_pollset_count(p);
    return r;
}

static NOINLINE long poll_small(struct pollfd *u, u32 n, struct sd_deadline *d, const struct sd_mask *m)
{
    struct pollfd k[ON_STACK];
    struct sd_pollitem item[ON_STACK];
    struct sd_pollset p = {.k = k, .item = item, .n = n};
    return wait_and_tell(&p, u, d, m);
}

static NOINLINE long poll_big(struct pollfd *u, u32 n, struct sd_deadline *d, const struct sd_mask *m)
{
    u64 bytes = n * (sizeof(struct pollfd) + sizeof(struct sd_pollitem));
    u8 *mem = sd_alloc(bytes);
    if (!mem)
        return -ENOMEM;
    struct sd_pollset p = {.item = (void *)mem, .k = (void *)(mem + n * sizeof(struct sd_pollitem)), .n = n};
    long r = wait_and_tell(&p, u, d, m);
    sd_free(mem, bytes);
    return r;
}

static long poll_any(struct pollfd *u, u64 n, struct sd_deadline *d, const struct sd_mask *m)
{
    return n <= ON_STACK ? poll_small(u, (u32)n, d, m) : poll_big(u, (u32)n, d, m);
}

SD_CALL(sd_poll)
{
    struct pollfd *u = (struct pollfd *)f->rdi;
    u32 n = (u32)f->rsi;
    i32 ms = (i32)f->rdx;
    struct sd_mask m = {0};
    struct sd_deadline d = {.ns = ms < 0 ? SD_FOREVER : (u64)ms * 1000000};
    if (t->foreign || !n || n > MAX_ENTRIES || sd_bad_ptr(u) || !has_ours(u, n))
        return SD_PASS;
    return poll_any(u, n, &d, &m);
}

SD_CALL(sd_ppoll)
{
    struct pollfd *u = (struct pollfd *)f->rdi;
    u32 n = (u32)f->rsi;
    struct timespec64 *ts = (struct timespec64 *)f->rdx;
    struct sd_mask m;
    struct sd_deadline d;
    if (f->r10 && (f->r8 != 8 || sd_bad_ptr((void *)f->r10)))
        return SD_PASS; /* EINVAL, EFAULT */
    sd_mask_init(&m, (const void *)f->r10, f->r8);
    if (t->foreign || !n || n > MAX_ENTRIES || sd_bad_ptr(u) || (ts && sd_bad_ptr(ts)) || !has_ours(u, n)
        || !sd_deadline_ts(&d, ts))
        return m.copied ? SYS5(__NR_ppoll, u, n, ts, m.set, 8) : SD_PASS;
    long r = poll_any(u, n, &d, &m);
    if (ts && d.from_tsc) /* else no time has passed to speak of */
        sd_ns_ts(sd_deadline_left(&d), ts);
    return r;
}
