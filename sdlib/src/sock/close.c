/* SPDX-License-Identifier: Apache-2.0
 *
 * close.c - calls that end a descriptor of a socket or give it another one, and what the last close leaves to the peer.
 */
#include "poll/poll.h"
#include "ring/dates.h"
#include "sock/far.h"
#include "sock/sock.h"

static NOINLINE void say_farewell(struct sock *s, int fd)
{
    i32 linger[2] = {0, 0};
    u32 len = sizeof linger;

    sd_recall_over(s);
    SYS5(__NR_getsockopt, fd, SOL_SOCKET, SO_LINGER, linger, &len);
    if (load_acq(&s->e.rx->tail) != load_rlx(&s->e.rx->head) && load_rlx(&s->b->rx_mode) == SD_MODE_RING) {
        linger[0] = 1; /* bytes that nobody will read: TCP answers a close with a reset, at once */
        linger[1] = 0;
        SYS5(__NR_setsockopt, fd, SOL_SOCKET, SO_LINGER, linger, sizeof linger);
    }
    sd_hint_say(&s->e, SD_HINT_CLOSED | (linger[0] && !linger[1] ? SD_HINT_ABORT : 0));
    sd_tx_dated(&s->e, load_rlx(&s->e.tx->tail));
    sd_nap_end(s); /* the end comes by the kernel, which a napper does not hear */
    if (sd_is_far(s))
        sd_far_nudge(s);
    sd_rx_poll_switch(s, fd); /* what is unread by TCP may be a doorbell only */
    if (load_rlx(&s->b->rx_mode) == SD_MODE_RING && sd_back_reached(&s->e))
        sd_rx_back(s, fd); /* which stands in front of the way back then */
    if (load_rlx(&s->b->rx_mode) != SD_MODE_RING)
        return;
    if (!(load_rlx(&s->b->latched) & LATCH_FIN))
        sd_look_at_kernel(s, fd);
    if (sd_rx_avail(&s->e) > 0) { /* unread bytes: TCP resets; the kernel does not see them and would say FIN */
        linger[0] = 1;
        linger[1] = 0;
        sd_hint_say(&s->e, SD_HINT_ABORT);
        SYS5(__NR_setsockopt, fd, SOL_SOCKET, SO_LINGER, linger, sizeof linger);
    }
}

/* What the last close leaves to the peer: hints, and no unread doorbell (the kernel would turn that into a reset). */
static inline void farewell(struct sock *s, int fd)
{
    if (sd_attached(s) && load_rlx(&s->refs) <= 1 && load_rlx(&s->b->users) <= 1)
        say_farewell(s, fd);
}

/* A descriptor that is about to be closed. */
struct closing {
    struct sock *s; /* NULL: there is nothing to do afterwards */
    u64 mask;
    u32 fd;
    bool marked;
    bool last; /* nobody is inside of the connection, which ends */
};

/* [F4] The connection ends when the last call on it does, and [F5] none that comes meanwhile is lost: what there is to say is said after the close, by a duplicate. */
static NOINLINE void close_beside_threads(struct sock *s, u32 fd, struct closing *c)
{
    u32 state = load_rlx(&s->b->state);

    c->s = s;
    c->fd = fd;
    c->marked = state != SD_BLOCK_TCP && state != SD_BLOCK_PINNED;
    if (c->marked)
        c->mask = sd_fd_closing(fd, s);
    else
        sd_fd_forget(fd); /* a call that comes meanwhile is the kernel's */
    bool inside = sd_others_inside(s), kept;
    c->last = false;
    if (load_rlx(&s->refs) > 1)
        return;
    kept = (inside || (sd_attached(s) && load_rlx(&s->b->users) <= 1)) && sd_fd_keep(s, (int)fd);
    c->last = kept && !inside;
    if (!kept)
        farewell(s, (int)fd);
}

void sd_last_call_over(struct sock *s)
{
    farewell(s, (int)load_rlx(&s->kept) - 1);
    sd_fd_kept_end(s);
}

/* Before the kernel closes it, or puts another file there. c: all zero. */
static inline __attribute__((always_inline)) void before_close(u64 fd, struct closing *c)
{
    struct sock *s = sd_sock_look(fd);

    if (s) {
        if (unlikely(load_acq(&s->napping)))
            sd_nap_await(s);
        sd_ep_fd_closed(s, (int)fd);
        if (unlikely(g.mt)) {
            close_beside_threads(s, (u32)fd, c);
            return;
        }
        farewell(s, (int)fd);
        sd_fd_remove(fd);
    } else if (sd_epoll_of(fd)) {
        sd_epoll_forget(fd);
    }
}

static NOINLINE void closed_beside_threads(const struct closing *c)
{
    if (c->marked)
        sd_fd_closed(c->fd, c->s, c->mask);
    if (c->last)
        sd_last_call_over(c->s);
    sd_sock_unref(c->s);
}

static inline void after_close(const struct closing *c)
{
    if (unlikely(c->s))
        closed_beside_threads(c);
}

SD_CALL(sd_close)
{
    struct closing c = {0};
    long r;

    if (!t->foreign)
        before_close(f->rdi, &c);
    r = SYS1(__NR_close, f->rdi);
    after_close(&c);
    return r;
}

#define CLOSE_RANGE_UNSHARE 2u

/* Of those beside which there are threads one by one, as the kernel does. */
static void close_ours(u64 lo, u64 hi)
{
    for (u64 fd = lo; fd <= hi && fd < 65536; fd++) {
        struct closing c = {0};
        before_close(fd, &c);
        if (c.s)
            SYS1(__NR_close, fd);
        after_close(&c);
    }
}

SD_CALL(sd_close_range)
{
    u64 hi = min_u64((u32)f->rsi, sd_fd_top());

    if (((u32)f->rdx & CLOSE_RANGE_UNSHARE) && g.mt && !t->foreign)
        sd_stand_aside(); /* the other threads keep theirs */
    else if (!t->foreign && !((u32)f->rdx & ~CLOSE_RANGE_UNSHARE) && (u32)f->rdi <= (u32)f->rsi) /* CLOSE_RANGE_CLOEXEC is 4 */
        close_ours((u32)f->rdi, hi);
    return SD_PASS;
}

#define RLIMIT_NOFILE 7

/* Would the kernel give the old one that number? What is there ends before it is asked, since nobody could say farewell to the peer afterwards. */
static bool takes_place(u64 old, u64 fd, u64 flags)
{
    u64 limit[2];

    return !((u32)flags & ~(u32)O_CLOEXEC) && SYS2(__NR_fcntl, old, F_GETFD) >= 0 && SYS4(__NR_prlimit64, 0, RLIMIT_NOFILE, 0, limit) == 0 && (u32)fd < limit[0];
}

static void name_of_ours(struct sock *s, u64 old, u32 fd)
{
    if (sd_sock_of(fd))
        sd_fd_remove(fd);
    if (s && fd >= ARRAY_LEN(sd_fdent))
        sd_out_of_reach(s, (int)old);
    else if (s)
        sd_fd_install((int)fd, s);
    else if (sd_epoll_of(old))
        sd_epoll_dup(old, fd);
}

/* A call that makes another name for rdi. Entered: who closes that one waits until the new one leads to the socket, too. `c`: rsi is what it replaces. */
static long dup_ours(struct sd_frame *f, struct sd_tcb *t, u64 third, struct closing *c)
{
    struct sock *s = t->foreign ? NULL : sd_sock_enter(f->rdi);
    long fd;

    if (c && !t->foreign && takes_place(f->rdi, f->rsi, third))
        before_close(f->rsi, c);
    fd = SYS3((u32)f->rax, f->rdi, f->rsi, third);
    if (t->foreign)
        sd_foreign_dup(t, f->rdi, fd);
    else if (fd >= 0 && (u32)fd != (u32)f->rdi)
        name_of_ours(s, f->rdi, (u32)fd);
    if (s)
        sd_sock_put(s);
    return fd;
}

SD_CALL(sd_dup) { return dup_ours(f, t, 0, NULL); }

static bool dup_matters(const struct sd_tcb *t, const struct sd_frame *f)
{
    return sd_sock_look(f->rdi) || sd_sock_look(f->rsi) || sd_epoll_of(f->rdi) || sd_epoll_of(f->rsi) || t->foreign_dups;
}

static long dup_to(struct sd_frame *f, struct sd_tcb *t, u64 flags)
{
    struct closing c = {0};
    long r;

    if ((u32)f->rdi == (u32)f->rsi || !dup_matters(t, f))
        return SD_PASS;
    r = dup_ours(f, t, flags, &c);
    after_close(&c);
    return r;
}

SD_CALL(sd_dup2) { return dup_to(f, t, 0); }

SD_CALL(sd_dup3) { return dup_to(f, t, f->rdx); }

SD_CALL(sd_fcntl)
{
    struct sock *s;
    u32 command = (u32)f->rsi;
    long r;

    if (command == F_DUPFD || command == F_DUPFD_CLOEXEC)
        return dup_ours(f, t, f->rdx, NULL);
    if (command != F_SETFL || !(s = sd_sock_enter(f->rdi)))
        return SD_PASS;
    sd_async_soon(s, (int)f->rdi, f->rdx & O_ASYNC);
    r = SYS3(__NR_fcntl, f->rdi, f->rsi, f->rdx);
    if (r == 0) {
        store_rlx(&s->b->nonblock, f->rdx & O_NONBLOCK ? 1 : 0);
        sd_async_set(s, (int)f->rdi, f->rdx & O_ASYNC);
    }
    sd_sock_put(s);
    return r;
}
