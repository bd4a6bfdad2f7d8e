/* SPDX-License-Identifier: Apache-2.0
 *
 * ep_ctl.c - epoll_create and epoll_ctl (epoll.h).
 */
#include "poll/epoll.h"
#include "sock/sock.h"

/* The kernel may still have the ghost of an earlier registration, of which we have not: another thread is ending it, and holds `structure` until it has. */
static long kernel_add(int epfd, int fd, const struct epoll_event *ev)
{
    u64 old;
    long ret = SYS4(__NR_epoll_ctl, epfd, EPOLL_CTL_ADD, fd, ev);
    if (likely(ret != -EEXIST))
        return ret;
    ep_structure_lock(&old);
    ret = SYS4(__NR_epoll_ctl, epfd, EPOLL_CTL_ADD, fd, ev);
    ep_structure_unlock(&old);
    return ret;
}

static void waits_exclusively(struct sock *s)
{
    s->b->exclusive = 1;
    sd_fence(); /* [B4] another thread is about to attach: it sees that, or we see that it has */
    if (s->seg)
        store_rlx(&s->e.rx->exclusive, 1);
}

/* Structure held. */
static struct reg *enlist(struct ep *ep, int epfd, int fd, struct sock *s, const struct epoll_event *ev)
{
    struct reg *r = reg_new(ep);
    if (!r)
        return NULL;
    ep->fd = epfd;
    ep_used(ep);
    r->s = s;
    r->fd = r->live = fd;
    r->want = r->kmask = ev->events;
    r->data = ev->data;
    r->fresh = true;
    r->since = sd_tsc();
    if (r->want & EPOLLEXCLUSIVE)
        waits_exclusively(s);
    ep->tab[r->index] = r;
    r->next = s->regs;
    s->regs = r;
    if (ep->used == 2)
        ep_ask_dates(ep);
    if (unlikely(ep->watched && !s->watched)) {
        s->watched = true;
        sd_fast_off();
    }
    ep_mixes(ep);
    return r;
}

/* The kernel is told our tag at once: another thread may wait already, so the registration has to be there before. Signals stay blocked from the first
 * look at the tables to the last: each time costs two system calls, which every connection of a server pays. */
static long add_tagged(struct ep *ep, int epfd, int fd, struct sock *s, const struct epoll_event *ev, struct sd_tcb *t)
{
    struct epoll_event ours;
    u64 old;
    long ret = -ENOMEM;
    ep_structure_lock(&old);
    struct reg *r = enlist(ep, epfd, fd, s, ev);
    if (r) {
        r->kmask = reg_mask(r);
        r->tagged = true;
        ep->tagged++;
        ours = (struct epoll_event){r->kmask, reg_tag(r)};
        ep_structure_open();
        ret = SYS4(__NR_epoll_ctl, epfd, EPOLL_CTL_ADD, fd, &ours);
        ep_structure_close();
        if (unlikely(ret == -EEXIST))
            ret = SYS4(__NR_epoll_ctl, epfd, EPOLL_CTL_ADD, fd, &ours); /* kernel_add() */
        if (ret < 0)
            reg_drop(r, t, false);
        else if (sd_attached(s))
            ep_settle(r, PEND_TOUCH | PEND_SYNC, t);
    }
    ep_structure_unlock(&old);
    return ret;
}

/* Whoever waits in a set of which we cannot know (its descriptor is beyond our table, or there is no memory) is told by the kernel alone: of TCP. */
static NOINLINE void to_kernel(int fd)
{
    struct sock *s = sd_sock_enter((u64)fd);

    if (s && load_rlx(&s->b->state) != SD_BLOCK_PINNED)
        sd_out_of_reach(s, fd);
    if (s)
        sd_sock_put(s);
}

static long ctl_add(int epfd, int fd, struct sock *s, const struct epoll_event *ev, struct sd_tcb *t)
{
    u64 old;
    struct ep *ep = sd_epoll_of((u64)epfd);
    if (unlikely(ep && ep->given)) {
        to_kernel(fd);
        return kernel_add(epfd, fd, ev);
    }
    long ret = ep && reg_tags_early(ep, ev->events) ? add_tagged(ep, epfd, fd, s, ev, t) : -ENOMEM;
    if (ret != -ENOMEM)
        return ret;
    ret = kernel_add(epfd, fd, ev);
    if (ret < 0)
        return ret;
    ep_structure_lock(&old);
    ep = sd_epoll_of((u64)epfd);
    if (!ep)
        ep = ep_new(epfd, t);
    struct reg *r = ep ? enlist(ep, epfd, fd, s, ev) : NULL;
    if (r && (sd_attached(s) || reg_tags_early(ep, r->want)))
        ep_settle(r, PEND_TOUCH | PEND_SYNC, t);
    ep_structure_unlock(&old);
    if (!r)
        to_kernel(fd);
    return 0;
}

/* The kernel's half will do as it is: nothing but our own state changes. False: it was a ghost, which another thread has just ended. */
static bool rearm(struct reg *r, const struct epoll_event *ev, struct sd_tcb *t)
{
    struct ep *ep = r->ep;
    bool locked = ep_enter(ep, t);
    if (unlikely(r->dead)) {
        if (locked)
            ep_leave(ep, t);
        return false;
    }
    if (locked)
        reg_renewed(r);
    r->want = ev->events;
    r->data = ev->data;
    r->off = r->ghost = false;
    r->fresh = true;
    if (!locked) {
        ep_settle(r, PEND_TOUCH, t);
        return true;
    }
    reg_heat(ep, r);
    ep_leave(ep, t);
    return true;
}

/* Would the kernel's half of r, live or a ghost, do for this? */
static bool may_rearm(const struct reg *r, const struct epoll_event *ev)
{
    return !((r->want | ev->events) & EPOLLEXCLUSIVE) && r->ep->pid == g.pid && reg_covered(r, ev->events);
}

static long ctl_mod(struct reg *r, const struct epoll_event *ev, struct sd_tcb *t)
{
    struct ep *ep = r->ep;
    struct sock *s = r->s;
    if ((r->want | ev->events) & EPOLLEXCLUSIVE)
        return -EINVAL;
    bool locked = ep_enter(ep, t);
    struct reg was = *r;
    if (locked)
        reg_renewed(r);
    r->want = ev->events;
    r->data = ev->data;
    r->off = false;
    r->fresh = true;
    r->useless = 0;
    /* A MOD also re-arms, and where TCP is still in use only the kernel knows of what. */
    bool force = !translated(s) || (!fully_on_ring(s) && ((ev->events | was.kmask) & (EPOLLET | EPOLLONESHOT)));
    long ret = reg_sync(r, force);
    r->renewed = false; /* by the program: all of it is told */
    if (ret < 0) {
        r->want = was.want;
        r->data = was.data;
        r->off = was.off;
        r->fresh = was.fresh;
    }
    if (!locked) {
        ep_settle(r, PEND_TOUCH, t);
        return ret;
    }
    if (translated(s) && on_ring(s))
        reg_heat(ep, r);
    ep_leave(ep, t);
    return ret;
}

/* The program's half goes; the kernel's may stay as a ghost, if nobody else can see it. */
static long ctl_del(int epfd, int fd, struct reg *r, struct sd_tcb *t)
{
    struct ep *ep = r->ep;
    u64 old;
    if (r->tagged && !r->kicked && fully_on_ring(r->s) && translated(r->s) && !(r->want & EPOLLEXCLUSIVE) && ep->pid == g.pid &&
        !ep->watched && load_rlx(&r->s->b->users) == 1 && ep_enter(ep, t)) {
        r->ghost = true;
        reg_disarm(r);
        hot_del(ep, r);
        ep_leave(ep, t);
        return 0;
    }
    long ret = SYS4(__NR_epoll_ctl, epfd, EPOLL_CTL_DEL, fd, NULL);
    if (ret == 0) {
        ep_structure_lock(&old);
        reg_drop(r, t, false);
        ep_structure_unlock(&old);
    }
    return ret;
}

/* An epoll goes into the set of another: from now on the kernel's readiness of it has to be the truth while nobody is in it. */
static long ctl_add_other(int epfd, int fd, const struct epoll_event *ev, struct sd_tcb *t)
{
    u64 old;
    long ret = SYS4(__NR_epoll_ctl, epfd, EPOLL_CTL_ADD, fd, ev);
    if (ret < 0 || !ep_is_one(fd))
        return ret;
    ep_structure_lock(&old);
    struct ep *inner = sd_epoll_of((u64)(u32)fd);
    if (!inner)
        inner = ep_new(fd, t);
    ep_structure_unlock(&old);
    if (inner)
        sd_ep_watch(inner);
    return ret;
}

/* Known from birth: a thread may sleep on it before the first socket of ours comes in, and has to understand our tags then. */
static long created(long epfd, struct sd_tcb *t)
{
    u64 old;
    if (epfd < 0 || t->foreign)
        return epfd;
    ep_structure_lock(&old);
    sd_epoll_forget((u64)epfd); /* if it was closed behind our back */
    ep_new((int)epfd, t);
    ep_structure_unlock(&old);
    return epfd;
}

/* All that is in it goes to TCP, and is registered there as the program has said, before somebody can wait who knows of neither. */
void sd_ep_give(u64 epfd)
{
    struct ep *ep = sd_epoll_of(epfd);
    struct sd_tcb *t = sd_self();
    u64 old;
    if (!ep || ep->given)
        return;
    ep_used(ep);
    ep->given = true;
    ep_end_ghosts(ep, t);
    for (u32 i = 0; i < ep->cap; i++) {
        struct reg *r = ep->tab[i];
        if (!r)
            continue;
        to_kernel(r->live);
        ep_structure_lock(&old);
        if (ep->tab[i] == r)
            ep_settle(r, PEND_TOUCH | PEND_SYNC, t);
        ep_structure_unlock(&old);
    }
}

/* No thread is in an operation. What is in it has been moved already, and if something is not, nothing is done: in here nobody can be asked. */
long sd_ep_taken(u64 epfd)
{
    struct ep *ep = sd_epoll_of(epfd);
    struct sd_tcb *t = sd_self();

    if (!ep || ep->given)
        return 0;
    for (u32 i = 0; i < ep->cap; i++)
        if (ep->tab[i] && !ep->tab[i]->ghost && translated(ep->tab[i]->s))
            return -EAGAIN;
    ep_used(ep);
    ep->given = true;
    ep_end_ghosts(ep, t);
    for (u32 i = 0; i < ep->cap; i++)
        if (ep->tab[i])
            ep_settle(ep->tab[i], PEND_TOUCH | PEND_SYNC, t);
    for (u32 i = 0; i < ep->cap; i++)
        if (ep->tab[i] && ep->tab[i]->tagged) { /* a thread has left by siglongjmp, with the lock */
            ep->given = false;
            return -EAGAIN;
        }
    return 0;
}

/* A set that somebody else has, or has made. */
void sd_ep_came(int epfd)
{
    u64 old;
    sd_epoll_forget((u64)epfd); /* closed behind our back */
    if (!ep_is_one(epfd))
        return;
    ep_structure_lock(&old);
    struct ep *ep = ep_new(epfd, sd_self());
    if (ep)
        ep->given = true;
    ep_structure_unlock(&old);
}

SD_CALL(sd_epoll_create)
{
    return created(SYS1(__NR_epoll_create, f->rdi), t);
}

SD_CALL(sd_epoll_create1)
{
    return created(SYS1(__NR_epoll_create1, f->rdi), t);
}

SD_CALL(sd_epoll_ctl)
{
    int epfd = (int)f->rdi, op = (int)f->rsi, fd = (int)f->rdx;
    const struct epoll_event *p = (const struct epoll_event *)f->r10;
    struct sock *s = sd_sock_look((u64)(u32)fd);
    if (t->foreign || (op != EPOLL_CTL_DEL && sd_bad_ptr(p)))
        return SD_PASS;
    if (!s)
        return op == EPOLL_CTL_ADD ? ctl_add_other(epfd, fd, p, t) : SD_PASS;
    struct ep *ep = sd_epoll_of((u64)(u32)epfd);
    if (ep)
        ep_use(ep, epfd, true);
    struct reg *r = ep ? reg_find(s, ep, fd) : NULL;
    if (op == EPOLL_CTL_DEL)
        return !r ? SD_PASS : r->ghost ? -ENOENT : ctl_del(epfd, fd, r, t);
    struct epoll_event ev = *p;
    if (r)
        ep->fd = epfd;
    if (op == EPOLL_CTL_ADD) {
        if (r && !r->ghost)
            return -EEXIST;
        if (r && may_rearm(r, &ev) && rearm(r, &ev, t))
            return 0;
        if (r)
            reg_end(r, t);
        return ctl_add(epfd, fd, s, &ev, t);
    }
    if (op != EPOLL_CTL_MOD || !r)
        return SD_PASS;
    if (r->ghost)
        return -ENOENT;
    if (may_rearm(r, &ev))
        return rearm(r, &ev, t) ? 0 : -ENOENT; /* taken out by another thread meanwhile */
    ep_used(ep);
    return ctl_mod(r, &ev, t);
}
