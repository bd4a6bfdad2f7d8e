/* SPDX-License-Identifier: Apache-2.0
 *
 * ep_hooks.c - what fd/ and sock/ tell of sockets that lie in epoll sets, and what poll and other sets ask of one (poll.h).
 */
#include "poll/epoll.h"
#include "sock/sock.h"

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
            ep_leave(ep, t);
    }
}

void sd_ep_attaches(struct sock *s)
{
    u32 left = REGS_SEEN;
    for (struct reg *r = s->regs; r && left; r = r->next, left--) {
        r->seen_tail = load_rlx(&s->e.rx->tail);
        r->told_end = 0;
    }
}

static bool moved_back(const struct sock *s)
{
    return s->seg && s->regs && (load_rlx(&s->b->rx_mode) == SD_MODE_BACK || load_rlx(&s->b->tx_mode) == SD_MODE_BACK);
}

void sd_ep_follow(void)
{
    u32 moved = 0;
    for (u32 i = 0; i < SD_MAX_AREAS && g.area[i]; i++)
        moved += load_acq(&g.area[i]->moved);
    if (likely(moved == load_rlx(&g.moved)))
        return;
    store_rlx(&g.moved, moved);
    for (u32 fd = 0; fd < sd_fd_top(); fd++) {
        struct sock *s = sd_sock_of(fd);
        if (s && moved_back(s))
            sd_ep_changed(s);
    }
}

static void touch(struct reg *r)
{
    struct ep *ep = r->ep;
    if (r->ghost)
        return;
    push_pending(r, PEND_TOUCH);
    if (ep_slept_on(ep)) { /* [E1] whoever sleeps there has lost the bell that would wake it */
        struct sd_tcb *t = sd_self();
        if (load_rlx(&ep->owner) != t->tid && ep_enter(ep, t))
            ep_leave(ep, t);
    }
}

void sd_ep_touched(struct sock *s)
{
    u32 left = REGS_SEEN;
    for (struct reg *r = s->regs; r && left; r = r->next, left--)
        if (!r->hot || load_rlx(&r->armed) || load_rlx(&r->ep->named)) /* hot, too, while it is being cooled */
            touch(r);
}

void sd_ep_joined(struct sock *s)
{
    u32 left = REGS_SEEN;
    for (struct reg *r = s->regs; r && left; r = r->next, left--)
        if (load_rlx(&r->ep->named)) /* [E5] */
            touch(r);
}

/* A send has found no room. An edge is owed from now on, also to a registration that is just being cooled by a thread which has seen, and taken
 * back, what that send had armed: so it is looked at again in any case. */
void sd_ep_full(struct sock *s)
{
    u32 left = REGS_SEEN;
    for (struct reg *r = s->regs; r && left; r = r->next, left--) {
        r->tx_full = true;
        touch(r);
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
    ep_structure_lock(&old);
    for (r = s->regs; r; r = next) {
        next = r->next;
        if (other < 0) /* the kernel keeps it while another process holds the socket: nobody could translate it */
            reg_drop(r, sd_self(), r->tagged && r->fd == fd && r->ep->pid == g.pid && load_rlx(&s->b->users) > 1);
        else if (r->ghost && r->fd == fd)
            reg_drop(r, sd_self(), r->ep->pid == g.pid); /* the last moment at which it has a name */
        else if (r->live == fd)
            r->live = other; /* registered under a number that is gone, and still reported: as Linux does it */
    }
    ep_structure_unlock(&old);
}

/* ------------------------------------------------- an epoll in another's set */

/* No bytes are left, so nothing may say to those who look at the set that there are: neither the doorbell nor what was asked of the kernel in its place (a kick). */
void sd_ep_emptied(struct sock *s, int fd)
{
    u32 left = REGS_SEEN;
    if (load_rlx(&s->b->rx_mode) != SD_MODE_RING || sd_rx_news(&s->e, 0))
        return;
    if (sd_bell_due(&s->e))
        sd_look_at_kernel(s, fd);
    for (struct reg *r = s->regs; r && left; r = r->next, left--)
        if (r->kicked && r->ep->watched)
            touch(r);
}

void ep_watch(struct ep *ep)
{
    bool was = ep->watched;
    ep->watched = true;
    for (u32 i = 0; i < ep->cap && !was; i++)
        if (ep->tab[i])
            ep->tab[i]->s->watched = true;
    if (!was)
        sd_fast_off(); /* knows nothing of it */
}

static void watched(struct ep *ep, struct sd_tcb *t)
{
    ep_end_ghosts(ep, t); /* of those the kernel would tell, too */
    if (!ep_enter(ep, t))
        return;
    for (u32 i = 0; i < ep->cap; i++) {
        struct reg *r = ep->tab[i];
        if (r && !r->dead && translated(r->s))
            sd_ep_emptied(r->s, r->live);
    }
    ep_chill_all(ep); /* [E1] */
    ep_leave(ep, t);
}

void sd_ep_watch(void *p)
{
    struct ep *ep = p;
    u64 old;
    ep_used(ep);
    if (likely(ep->watched))
        return;
    ep_structure_lock(&old);
    ep_watch(ep);
    ep_structure_unlock(&old);
    watched(ep, sd_self());
}

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
