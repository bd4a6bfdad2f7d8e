/* SPDX-License-Identifier: Apache-2.0
 *
 * poll.c - poll(2), ppoll(2) and the core that select.c uses too.
 *
 * Rings are looked at first, without a system call. When the program has to sleep it sleeps in the kernel, on its own
 * descriptors, after each ring was armed: set armed words, one membarrier, look again, ppoll (pollsleep.c). A doorbell makes the
 * kernel's POLLIN true; sd_ready() eats it and says what is true of the ring.
 */
#include "poll/pollset.h"

#define ON_STACK 32           /* entries; 40 bytes each */
#define MAX_ENTRIES (1u << 20)

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
    struct sock *s = sd_sock_look((u64)fd);
    if (s)
        it->s = is_attached(s) ? s : NULL;
    else
        it->ep = sd_epoll_of((u64)fd);
    return it->s || it->ep;
}

/* Where there is no other thread, a handler may close it as well, but only while we sleep: arm_all() of pollsleep.c. */
static inline bool find_and_hold(struct sd_pollset *p, struct sd_pollitem *it, int fd)
{
    while (sd_pollitem_find(it, fd)) {
        struct sock *s = it->s;
        if (unlikely(!s))
            sd_ep_watch(it->ep);
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

bool sd_pollset_ready(const struct sd_pollset *p)
{
    for (u32 i = 0; i < p->n; i++)
        if ((p->item[i].s || p->item[i].ep) && item_ready(p, i, 0))
            return true;
    return false;
}

bool sd_pollset_events(struct sd_pollset *p)
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

u64 sd_poll_others;

long sd_pollset_tell(struct sd_pollset *p, bool asked)
{
    long count = 0;
    u64 now = asked ? sd_tsc() : 0;
    for (u32 i = 0; i < p->n; i++) {
        struct sd_pollitem *it = &p->item[i];
        u32 kev = asked ? (u16)p->k[i].revents : 0;
        if (asked && it->s && (p->k[i].events & (POLLIN | POLLRDHUP))) /* else it says nothing of an end */
            it->s->checked_tsc = now;
        u32 out = p->k[i].fd < 0 ? 0 : it->s || it->ep ? item_ready(p, i, kev) : kev & (it->care | POLLNVAL);
        p->k[i].revents = (int16_t)out;
        count += out != 0;
        if (kev && !it->s)
            sd_poll_others = now;
    }
    return count;
}

bool sd_pollset_skips(const struct sd_pollset *p)
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

long sd_pollset_ask(struct sd_pollset *p)
{
    struct timespec64 zero = {0, 0};
    sd_pollset_events(p);
    p->called = true;
    long r = SYS5(__NR_ppoll, p->k, p->n, &zero, NULL, 8);
    if (r == -EINTR)
        return 0; /* cannot be with no time-out; should it, nothing was ready */
    return r < 0 ? r : sd_pollset_tell(p, true);
}

/* Entries attach, move back and are closed by other threads while we sleep. */
static void find_again(struct sd_pollset *p)
{
    p->ours = 0;
    for (u32 i = 0; i < p->n; i++)
        p->ours += sd_pollitem_hold(p, &p->item[i], p->k[i].fd);
}

/* What other threads have closed is freed now. The items are looked for anew, or of no use any more. */
static inline __attribute__((always_inline)) void let_go(struct sd_pollset *p)
{
    if (likely(!p->holds))
        return;
    const struct sd_pollitem *it = p->item, *end = it + p->n; /* one at least */
    p->holds = false;
    do
        if (it->armed & HELD)
            sd_sock_let_go(it->s);
    while (++it != end);
}

static inline __attribute__((always_inline)) long wait_loop(struct sd_pollset *p, struct sd_deadline *d, const struct sd_mask *m)
{
    bool idle = false;
    for (;;) {
        long r = 0;
        if (sd_pollset_ready(p))
            r = sd_pollset_skips(p) ? sd_pollset_tell(p, false) : sd_pollset_ask(p);
        else if (d->ns == 0)
            return sd_pollset_skips(p) ? sd_pollset_tell(p, false) : sd_pollset_ask(p);
        if (r)
            return r;
        u64 left = sd_deadline_left(d);
        if (left == 0)
            return sd_pollset_ask(p); /* a last look, as the kernel does */
        p->began = sd_tsc();
        r = sd_pollset_spin(p, left, m->set);
        if (r == 0) {
            left = sd_deadline_left(d);
            r = left ? sd_pollset_park(p, left, m, &idle) : 0;
        }
        sd_pollset_nap_over(p, 0);
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
