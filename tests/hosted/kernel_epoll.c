/* SPDX-License-Identifier: Apache-2.0
 *
 * kernel_epoll.c - the kernel's epoll sets: what is registered, and the line of what may be ready.
 *
 * As fs/eventpoll.c does it. A socket that something happens to goes into the line of each set that asks for it; whoever waits takes the line apart, asks each
 * socket what it is ready for, and reports that. Level triggered, what was reported goes to the line's end again. Edge triggered it does not, so only the next
 * happening brings it back. What has come first is woken first, but which of several sleepers runs first is up to the explorer.
 */
#include "kernel.h"
#include "poll/epoll.h"

#define ALWAYS_TOLD ((u32)(POLLERR | POLLHUP))

static struct set *set_of(long fd)
{
    return fd >= SET_FD(0) && fd < SET_FD(SETS) ? &w.set[fd - SET_FD(0)] : NULL;
}

void *sd_epoll_of(u64 fd)
{
    struct set *set = set_of((long)fd);

    return set ? set->ep : NULL;
}

bool sd_epoll_set(u64 fd, void *ep, u32 *number)
{
    (void)number;
    set_of((long)fd)->ep = ep;
    return true;
}

void sd_epoll_forget(u64 fd) { set_of((long)fd)->ep = NULL; }
void sd_epoll_dup(u64 from, u64 to) { set_of((long)to)->ep = set_of((long)from)->ep; }
void sd_out_of_reach(struct sock *s, int fd) { (void)s, (void)fd, host_fail("a set of the kernel alone"); }

/* ----------------------------------------------------------------- memory */

/* For the library's own side of them. Part of the state, as far as it is used. */
u8 hosted_pool[HOSTED_POOL] __attribute__((aligned(64)));

void *sd_alloc(u64 bytes)
{
    u64 at = w.pool_used;

    bytes = (bytes + 63) & ~63ull;
    if (at + bytes > HOSTED_POOL)
        return NULL;
    w.pool_used = at + bytes;
    __builtin_memset(hosted_pool + at, 0, bytes); /* what other executions have left there */
    return hosted_pool + at;
}

void sd_free(void *p, u64 bytes) { (void)p, (void)bytes; }

/* Counters that only ever grow would make every state new; `calls` is what the scenario wants it to be. */
void sets_forget_counts(void)
{
    for (u32 i = 0; i < SETS; i++) {
        struct ep *ep = w.set[i].ep;
        if (!ep)
            continue;
        ep->seq = ep->vain = ep->vain_seq = 0;
        ep->calls = w.epoll_calls;
        for (u32 k = 0; k < ep->cap; k++)
            if (ep->tab[k])
                ep->tab[k]->idle = (u32)min_u64(ep->tab[k]->idle, w.epoll_calls ? 0 : IDLE_ROUNDS);
    }
}

u32 sets_armed(u32 side)
{
    u32 n = 0;

    for (const struct reg *r = w.sock[side].regs; r; r = r->next)
        n += *(const u32 *)&r->armed & 1;
    return n;
}

/* --------------------------------------------------------------- the line */

static u32 told_of(const struct watch *of, u32 side)
{
    u32 asked = of->mask & ~PRIVATE_BITS;

    return asked ? net_ready(side) & (asked | ALWAYS_TOLD) : 0;
}

static void leave_line(struct set *set, u32 side)
{
    u32 n = 0;

    for (u32 i = 0; i < set->n; i++)
        if (set->line[i] != side)
            set->line[n++] = set->line[i];
    for (u32 i = n; i < set->n; i++)
        set->line[i] = 0;
    set->n = n;
}

static void join_line(struct set *set, u32 side)
{
    for (u32 i = 0; i < set->n; i++)
        if (set->line[i] == side)
            return;
    set->line[set->n++] = side;
}

void sets_hear(u32 side, u32 what)
{
    for (u32 i = 0; i < SETS; i++) {
        struct watch *of = &w.set[i].of[side];
        if (of->used && (of->mask & ~PRIVATE_BITS & what))
            join_line(&w.set[i], side);
    }
}

bool set_ready(long fd)
{
    const struct set *set = set_of(fd);

    for (u32 i = 0; i < set->n; i++)
        if (told_of(&set->of[set->line[i]], set->line[i]))
            return true;
    return false;
}

static long collect(struct set *set, struct epoll_event *e, long max)
{
    struct set was = *set;
    long n = 0;

    for (u32 i = 0; i < was.n && n < max; i++) {
        u32 side = was.line[i];
        struct watch *of = &set->of[side];
        u32 out = told_of(of, side);
        leave_line(set, side);
        if (!out)
            continue;
        e[n++] = (struct epoll_event){out, of->data};
        if (of->mask & EPOLLONESHOT)
            of->mask &= PRIVATE_BITS;
        else if (!(of->mask & EPOLLET))
            join_line(set, side);
    }
    return n;
}

/* ------------------------------------------------------------ system calls */

long sys_epoll_ctl(long fd, long op, u32 side, const struct epoll_event *ev)
{
    struct set *set = set_of(fd);
    struct watch *of = &set->of[side];

    if (side >= SIDES)
        host_fail("a descriptor that this kernel does not know");
    if (op == EPOLL_CTL_ADD ? of->used : !of->used)
        return op == EPOLL_CTL_ADD ? -EEXIST : -ENOENT;
    if (op == EPOLL_CTL_DEL) {
        *of = (struct watch){0};
        leave_line(set, side);
    } else {
        *of = (struct watch){.used = 1, .mask = ev->events, .data = ev->data};
        if (told_of(of, side))
            join_line(set, side);
    }
    host_changed();
    return 0;
}

void sets_forget(u32 side)
{
    for (u32 i = 0; i < SETS; i++) {
        w.set[i].of[side] = (struct watch){0};
        leave_line(&w.set[i], side);
    }
    host_changed();
}

long sys_epoll_wait(long fd, struct epoll_event *e, long max, bool sleeps, bool timed)
{
    struct set *set = set_of(fd);

    if (sleeps) {
        host_wait(set_ready, fd, timed);
        host_changed(); /* another one that sleeps there may be woken by what is left */
    }
    return collect(set, e, max);
}
