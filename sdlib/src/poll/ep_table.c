/* SPDX-License-Identifier: Apache-2.0
 *
 * ep_table.c - where registrations and epolls live, and how they come and go (epoll.h, [E4]).
 */
#include "poll/epoll.h"
#include "ring/dates.h"

static struct reg *free_regs;
static struct ep *all_eps, *free_eps;

static void reg_free(struct reg *r)
{
    r->next = free_regs;
    free_regs = r;
}

/* The live one or the ghost of it. */
struct reg *reg_find(const struct sock *s, const struct ep *ep, int fd)
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

struct reg *reg_new(struct ep *ep)
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
    r->gen = reg_next_gen();
    r->ep = ep;
    ep->used++;
    return r;
}

/* Structure held, signals blocked. */
void reg_drop(struct reg *r, struct sd_tcb *t, bool tell_kernel)
{
    struct ep *ep = r->ep;
    for (struct reg **p = &r->s->regs; *p; p = &(*p)->next)
        if (*p == r) {
            *p = r->next;
            break;
        }
    if (!r->s->regs && sd_attached(r->s))
        sd_rx_want_dates(&r->s->e, false);
    if (tell_kernel && sd_epoll_of((u64)ep->fd) == ep)
        SYS4(__NR_epoll_ctl, ep->fd, EPOLL_CTL_DEL, r->fd, NULL);
    r->dead = true;
    ep->tab[r->index] = NULL;
    ep->used--;
    ep->tagged -= r->tagged;
    if (!ep_lock(ep, t)) { /* who has it may be arming r, or looking at its socket, which stays until he has seen the note. Costs one struct */
        atomic_fetch_add(&r->s->held, 1);
        ep_settle(r, PEND_DROP, t);
        return;
    }
    hot_del(ep, r);
    reg_disarm(r);
    ep_drain(ep);
    ep_leave(ep, t);
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

struct ep *ep_new(int epfd, struct sd_tcb *t)
{
    sweep(t);
    struct ep *ep = free_eps;
    if (ep)
        free_eps = ep->next;
    else if (!(ep = sd_alloc(sizeof(*ep))))
        return NULL;
    ep->tagged = 0;
    ep->inherited = false;
    ep->registers = false;
    ep->name = 0;
    ep->given = false;
    ep->watched = false;
    ep->fd = epfd;
    ep->pid = g.pid;
    if (!sd_epoll_set((u64)epfd, ep, &ep->number)) {
        ep->next = free_eps;
        free_eps = ep;
        return NULL;
    }
    ep->next = all_eps;
    all_eps = ep;
    return ep;
}

/* Structure held. If it is still a ghost: whoever wakes it up has the lock of its epoll, and looks whether it is dead. */
static void ghost_drop(struct reg *r, struct sd_tcb *t)
{
    bool locked = ep_lock(r->ep, t), ends = r->ghost && !r->dead;
    if (ends)
        r->dead = true;
    if (locked)
        ep_leave(r->ep, t);
    if (ends)
        reg_drop(r, t, true);
}

void reg_end(struct reg *r, struct sd_tcb *t)
{
    u64 old;
    ep_structure_lock(&old);
    ghost_drop(r, t);
    ep_structure_unlock(&old);
}

/* Structure held. */
static void ghosts_drop(struct ep *ep, struct sd_tcb *t)
{
    for (u32 i = 0; i < ep->cap; i++)
        if (ep->tab[i] && ep->tab[i]->ghost)
            ghost_drop(ep->tab[i], t);
}

void ep_end_ghosts(struct ep *ep, struct sd_tcb *t)
{
    u64 old;
    ep_structure_lock(&old);
    ghosts_drop(ep, t);
    ep_structure_unlock(&old);
}

/* A child will share the kernel's half of what is there: no ghosts. */
void sd_ep_before_fork(void)
{
    u64 old;
    if (!all_eps)
        return;
    ep_structure_lock(&old);
    for (struct ep *ep = all_eps; ep; ep = ep->next) {
        ep->inherited = true;
        ep_name(ep);
        if (ep->pid == g.pid)
            ghosts_drop(ep, sd_self());
    }
    ep_structure_unlock(&old);
}

void sd_ep_before_exec(void)
{
    u64 old;
    ep_structure_lock(&old);
    for (struct ep *ep = all_eps; ep; ep = ep->next) {
        if (ep->pid != g.pid || sd_epoll_of((u64)ep->fd) != ep)
            continue;
        for (u32 i = 0; i < ep->cap; i++) {
            struct reg *r = ep->tab[i];
            if (r && r->ghost)
                ghost_drop(r, sd_self());
            else if (r && r->tagged && reg_hand_back(r))
                push_pending(r, PEND_TOUCH | PEND_SYNC);
        }
    }
    ep_structure_unlock(&old);
}
