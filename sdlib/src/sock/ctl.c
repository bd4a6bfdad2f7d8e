/* SPDX-License-Identifier: Apache-2.0
 *
 * ctl.c - death, names and options of a socket.
 */
#include "poll/poll.h"
#include "ring/cork.h"
#include "ring/dates.h"
#include "sock/far.h"
#include "sock/rx.h"
#include "sock/sock.h"


i32 sd_sockopt_int(int fd, int name)
{
    i32 v = -1;
    u32 len = 4;

    return SYS5(__NR_getsockopt, fd, SOL_SOCKET, name, &v, &len) < 0 ? -1 : v;
}

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

/* [F4] The connection ends when the last call on it does. */
static NOINLINE void close_beside_threads(struct sock *s, int fd)
{
    sd_fd_forget((u64)fd);
    bool inside = sd_others_inside(s);
    if (!inside || load_rlx(&s->refs) > 1 || !sd_fd_keep(s, fd))
        farewell(s, fd);
    sd_sock_unref(s);
}

void sd_last_call_over(struct sock *s)
{
    farewell(s, (int)load_rlx(&s->kept) - 1);
    sd_fd_kept_end(s);
}

static void forget(u64 fd)
{
    struct sock *s = sd_sock_of(fd);

    if (s) {
        if (unlikely(load_acq(&s->napping)))
            sd_nap_await(s);
        sd_ep_fd_closed(s, (int)fd);
        if (unlikely(g.mt)) {
            close_beside_threads(s, (int)fd);
            return;
        }
        farewell(s, (int)fd);
        sd_fd_remove(fd);
    } else if (sd_epoll_of(fd)) {
        sd_epoll_forget(fd);
    }
}

SD_CALL(sd_close)
{
    if (!t->foreign)
        forget(f->rdi);
    return SYS1(__NR_close, f->rdi);
}

SD_CALL(sd_close_range)
{
    u64 hi = min_u64((u32)f->rsi, sd_fd_top());

    if (!t->foreign && !((u32)f->rdx & ~2u) && (u32)f->rdi <= (u32)f->rsi) /* CLOSE_RANGE_UNSHARE is 2, CLOEXEC 4 */
        for (u64 fd = (u32)f->rdi; fd <= hi && fd < 65536; fd++)
            forget(fd);
    return SD_PASS;
}

static long dup_of(struct sd_tcb *t, u64 old, long fd)
{
    struct sock *s = sd_sock_of(old);
    void *ep = sd_epoll_of(old);

    if (t->foreign)
        sd_foreign_dup(t, old, fd);
    if (fd < 0 || t->foreign)
        return fd;
    if ((u32)fd != (u32)old) {
        if (sd_sock_of((u64)fd))
            sd_fd_remove((u64)fd);
        if (s && (u32)fd >= ARRAY_LEN(sd_fdent))
            sd_out_of_reach(s, (int)old);
        else if (s)
            sd_fd_install((int)fd, s);
        else if (ep)
            sd_epoll_dup(old, (u64)fd);
    }
    return fd;
}

SD_CALL(sd_dup)
{
    return dup_of(t, f->rdi, SYS1(__NR_dup, f->rdi));
}

static bool dup_matters(const struct sd_tcb *t, const struct sd_frame *f)
{
    return sd_sock_of(f->rdi) || sd_sock_of(f->rsi) || sd_epoll_of(f->rdi) || sd_epoll_of(f->rsi) || t->foreign_dups;
}

SD_CALL(sd_dup2)
{
    if ((u32)f->rdi == (u32)f->rsi || !dup_matters(t, f))
        return SD_PASS;
    if (!t->foreign && SYS2(__NR_fcntl, f->rdi, F_GETFD) >= 0)
        forget(f->rsi);
    return dup_of(t, f->rdi, SYS2(__NR_dup2, f->rdi, f->rsi));
}

SD_CALL(sd_dup3)
{
    if ((u32)f->rdi == (u32)f->rsi || !dup_matters(t, f))
        return SD_PASS;
    if (!t->foreign && SYS2(__NR_fcntl, f->rdi, F_GETFD) >= 0)
        forget(f->rsi);
    return dup_of(t, f->rdi, SYS3(__NR_dup3, f->rdi, f->rsi, f->rdx));
}

SD_CALL(sd_fcntl)
{
    struct sock *s;
    u32 command = (u32)f->rsi;
    long r;

    if (command == F_DUPFD || command == F_DUPFD_CLOEXEC)
        return dup_of(t, f->rdi, SYS3(__NR_fcntl, f->rdi, f->rsi, f->rdx));
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

/* The program's next byte comes by TCP. Another host says so there, behind its doorbells. */
static bool is_behind_ring(struct sock *s, int fd)
{
    s->kcheck |= sd_is_far(s);
    for (u32 i = 0; i < 2 && (s->kcheck & 1) && sd_is_far(s) && !sd_rx_news(&s->e, 0); i++)
        sd_look_at_kernel(s, fd);
    return sd_back_reached(&s->e);
}

SD_CALL(sd_ioctl)
{
    struct sock *s = sd_sock_enter(f->rdi);
    u32 request = (u32)f->rsi;
    long r = SD_PASS;

    (void)t;
    if (!s)
        return SD_PASS;
    if (sd_bad_ptr((void *)f->rdx)) {
        /* the kernel knows which requests have a pointer there */
    } else if (request == FIOASYNC) {
        if (sd_is_far(s))
            sd_async_soon(s, (int)f->rdi, *(i32 *)f->rdx);
        r = SYS3(__NR_ioctl, f->rdi, f->rsi, f->rdx);
        if (r == 0)
            sd_async_set(s, (int)f->rdi, *(i32 *)f->rdx);
    } else if (request == FIONBIO) {
        r = SYS3(__NR_ioctl, f->rdi, f->rsi, f->rdx);
        if (r == 0)
            store_rlx(&s->b->nonblock, *(i32 *)f->rdx ? 1 : 0);
    } else if (request == FIONREAD && sd_attached(s)) {
        i64 n = sd_rx_bytes(s, (int)f->rdi);
        if (n >= 0) {
            *(i32 *)f->rdx = (i32)n;
            r = 0;
        }
    } else if (request == SIOCATMARK && sd_attached(s) && load_rlx(&s->b->rx_mode) == SD_MODE_RING) {
        if (is_behind_ring(s, (int)f->rdi)) {
            sd_rx_back(s, (int)f->rdi); /* the kernel's answer counts again */
        } else {
            *(i32 *)f->rdx = 0; /* urgent data is never in the ring */
            r = 0;
        }
    } else if (request == TIOCOUTQ && sd_attached(s) && load_rlx(&s->b->tx_mode) == SD_MODE_RING) {
        u64 n = load_rlx(&s->e.tx->tail) - load_acq(&s->e.tx->head) + sd_cork_held(s->e.tx, s->e.bytes);
        *(i32 *)f->rdx = n <= s->e.bytes ? (i32)n : 0;
        r = 0;
    } else if (request == SIOCOUTQNSD && sd_attached(s) && load_rlx(&s->b->tx_mode) == SD_MODE_RING) {
        *(i32 *)f->rdx = (i32)min_u64(sd_cork_held(s->e.tx, s->e.bytes), s->e.bytes);
        r = 0;
    }
    sd_sock_put(s);
    return r;
}

/* Two calls, maybe of two threads, say together what SHUT_RDWR says: each notes its own side before it looks at the other. */
static void say_shut(const struct sock *s)
{
    sd_fence();
    if (!s->b->tx_shut)
        return;
    if (sd_is_far(s) && load_rlx(&s->b->rx_shut))
        sd_far_deafen(s);
    sd_hint_shut(&s->e, load_rlx(&s->b->rx_shut));
}

SD_CALL(sd_shutdown)
{
    struct sock *s = sd_sock_enter(f->rdi);
    u32 how = (u32)f->rsi;
    long r;

    (void)t;
    if (!s)
        return SD_PASS;
    if (sd_attached(s) && (load_rlx(&s->b->latched) & POLLHUP)) {
        sd_sock_put(s);
        return how <= SHUT_RDWR ? -ENOTCONN : -EINVAL; /* reset: the kernel's socket may not know of it */
    }
    if (how == SHUT_RD || how == SHUT_RDWR)
        store_rel(&s->b->rx_shut, 1); /* before the kernel says so to another thread */
    if (sd_attached(s) && (how == SHUT_WR || how == SHUT_RDWR)) {
        struct sd_hold h;
        sd_take(s, SD_DIR_TX, SD_MARK_OP, &h); /* no other thread is in the middle of a send */
        if (load_rlx(&s->b->tx_mode) == SD_MODE_RING)
            sd_cork_uncover(s->e.tx, s->e.bytes, s->e.bytes);
        s->b->tx_shut = 1;
        say_shut(s);
        sd_tx_dated(&s->e, load_rlx(&s->e.tx->tail));
        if (likely(!sd_is_far(s)) || !sd_far_shut(s))
            r = SYS2(__NR_shutdown, f->rdi, f->rsi);
        else
            r = how == SHUT_RDWR ? SYS2(__NR_shutdown, f->rdi, SHUT_RD) : 0;
        sd_leave(&h);
        sd_nap_end(s);
    } else {
        r = SYS2(__NR_shutdown, f->rdi, f->rsi);
        if (r == 0 && how != SHUT_RD) {
            s->b->tx_shut = 1;
            sd_fence(); /* another thread is about to attach: it sees tx_shut, or we see that it has */
            if (sd_attached(s))
                say_shut(s);
        } else if (r == 0 && sd_attached(s)) {
            say_shut(s);
        }
    }
    if (sd_attached(s) && sd_is_far(s))
        sd_far_nudge(s); /* or our monitor does not know of it before it is asked */
    s->kcheck |= 1;
    if (r == 0) { /* an edge for whoever waits for edges */
        atomic_fetch_or(&s->b->latched, how == SHUT_RD ? LATCH_OWN_RD : how == SHUT_WR ? LATCH_OWN_WR : LATCH_OWN_RD | LATCH_OWN_WR);
        if (s->regs)
            sd_ep_touched(s);
        if (unlikely(load_acq(&s->napping)) && s->seg)
            sd_nap_disturb(s); /* another thread, in a receive or poll that is over now */
    }
    sd_sock_put(s);
    return r;
}

/* Whoever waits for room on the ring is woken, as the kernel wakes who waits in there. */
static void set_tx_limit(struct sock *s, int fd)
{
    u64 before = s->e.tx_bytes;

    sd_tx_limit(s, fd);
    if (s->e.tx_bytes <= before || !load_rlx(&s->e.tx->tx_armed)) /* [W2], with the limit in the place of head */
        return;
    if (s->regs)
        sd_ep_touched(s);
    if (g.mt)
        sd_rouse();
}

/* The options that we have changed for the doorbells' sake while tx is on the ring: the program keeps its own values. */
static u32 saved_bit(u32 level, u32 name)
{
    return level != SOL_TCP ? 0 : name == TCP_NODELAY ? 1 : name == TCP_CORK ? 2 : 0;
}

/* Doorbells are single bytes, so the kernel's low-water mark stays at 1; it says what the program's would be there. */
static long set_lowat(struct sock *s, const struct sd_frame *f)
{
    long r = SYS5(__NR_setsockopt, f->rdi, f->rsi, f->rdx, f->r10, f->r8);
    i32 one = 1;

    if (r == 0) {
        s->b->rcvlowat = (u32)sd_sockopt_int((int)f->rdi, SO_RCVLOWAT);
        SYS5(__NR_setsockopt, f->rdi, SOL_SOCKET, SO_RCVLOWAT, &one, 4);
        sd_fast_off(); /* knows nothing of it */
        sd_ep_touched(s);
    }
    return r;
}

SD_CALL(sd_setsockopt)
{
    struct sock *s = sd_sock_enter(f->rdi);
    u32 level = (u32)f->rsi, name = (u32)f->rdx, bit = saved_bit(level, name);
    long r = SD_PASS;

    (void)t;
    if (!s)
        return SD_PASS;
    if (level == SOL_SOCKET)
        s->timed = 0; /* is asked for anew */
    if (bit && load_rlx(&s->b->tx_mode) == SD_MODE_RING && (u32)f->r8 >= 4 && f->r10) {
        bool on = *(i32 *)f->r10;
        s->b->opt_saved = on ? s->b->opt_saved | bit : s->b->opt_saved & ~bit;
        if (bit == SD_SAVED_CORK)
            sd_tx_unplan(&s->e); /* the short way knows nothing of it */
        if (on == (bit == SD_SAVED_NODELAY))
            sd_uncork(s, (int)f->rdi); /* TCP_NODELAY pushes once, also what is corked */
        r = 0;
    } else if (sd_attached(s) && level == SOL_SOCKET && name == SO_RCVLOWAT && load_rlx(&s->b->rx_mode) != SD_MODE_BACK) {
        r = set_lowat(s, f);
    } else if (sd_attached(s) && ((level == SOL_SOCKET && (name == SO_SNDBUF || name == SO_SNDBUFFORCE)) ||
                                  (level == SOL_TCP && name == TCP_NOTSENT_LOWAT))) {
        r = SYS5(__NR_setsockopt, f->rdi, f->rsi, f->rdx, f->r10, f->r8);
        if (r == 0)
            set_tx_limit(s, (int)f->rdi);
    } else if (level == SOL_TCP && name == TCP_ULP) {
        r = SYS5(__NR_setsockopt, f->rdi, f->rsi, f->rdx, f->r10, f->r8);
        if (r == 0)
            sd_go_back(s, (int)f->rdi, SD_REASON_option); /* the kernel's TLS sees the kernel's bytes, once it has its keys */
    } else {
        r = SYS5(__NR_setsockopt, f->rdi, f->rsi, f->rdx, f->r10, f->r8);
        if (r == 0 && level == SOL_TCP && name == TCP_INQ)
            sd_inq_set(s, (int)f->rdi);
        else if (r == 0)
            sd_option_set(s, (int)f->rdi, level, name);
    }
    sd_sock_put(s);
    return r;
}

/* TCP_ZEROCOPY_RECEIVE: what the kernel says of bytes that it cannot map: none are mapped, so many are to be read in the ordinary way. */
static long map_nothing(struct sock *s, const struct sd_frame *f)
{
    struct { u64 address; u32 length, skip, inq; i32 err; } *z = (void *)f->r10;
    i32 *len = (i32 *)f->r8;
    i64 n = sd_rx_bytes(s, (int)f->rdi);

    if (n < 0 || sd_bad_ptr(len) || sd_bad_ptr(z) || *len < (i32)sizeof *z || (z->address & 4095))
        return SD_PASS;
    z->length = 0;
    z->skip = z->inq = (u32)n;
    z->err = 0;
    return 0;
}

SD_CALL(sd_getsockopt)
{
    struct sock *s = sd_sock_enter(f->rdi);
    u32 level = (u32)f->rsi, name = (u32)f->rdx, bit = saved_bit(level, name);
    long r = SD_PASS;

    (void)t;
    if (!s)
        return SD_PASS;
    if (bit && load_rlx(&s->b->tx_mode) == SD_MODE_RING) {
        r = SYS5(__NR_getsockopt, f->rdi, f->rsi, f->rdx, f->r10, f->r8); /* lengths and pointers are the kernel's business */
        if (r == 0 && *(i32 *)f->r8 > 0) /* little-endian: the first byte, however many were asked for */
            *(u8 *)f->r10 = s->b->opt_saved & bit ? 1 : 0;
    } else if (s->b->rcvlowat && level == SOL_SOCKET && name == SO_RCVLOWAT && load_rlx(&s->b->rx_mode) != SD_MODE_BACK) {
        r = SYS5(__NR_getsockopt, f->rdi, f->rsi, f->rdx, f->r10, f->r8);
        if (r == 0 && *(i32 *)f->r8 >= 4)
            *(i32 *)f->r10 = (i32)s->b->rcvlowat;
    } else if (unlikely(level == SOL_TCP && name == TCP_ZEROCOPY_RECEIVE) && sd_attached(s) && load_rlx(&s->b->rx_mode) == SD_MODE_RING) {
        r = map_nothing(s, f);
    } else if (level == SOL_SOCKET && name == SO_ERROR) {
        r = SYS5(__NR_getsockopt, f->rdi, f->rsi, f->rdx, f->r10, f->r8);
        if (r == 0 && *(i32 *)f->r10 == 0 && s->b->role) { /* how a non-blocking connect learns that it is done */
            s->b->established = 1;
            if (g.cfg->upgrade == SD_UPGRADE_EAGER)
                sd_tick(s, (int)f->rdi);
        }
        if (r == 0 && (*(i32 *)f->r10 == ECONNRESET || *(i32 *)f->r10 == ETIMEDOUT) && sd_attached(s) &&
            load_rlx(&s->b->rx_mode) == SD_MODE_RING && !(load_rlx(&s->b->latched) & LATCH_FIN) && !load_rlx(&s->b->rx_shut)) {
            sd_latch_end(s, (int)f->rdi, (u32)*(i32 *)f->r10); /* the kernel says it once */
            *(i32 *)f->r10 = 0;
        }
        if (r == 0 && *(i32 *)f->r10 == 0 && sd_attached(s) && load_rlx(&s->b->rx_mode) == SD_MODE_RING) {
            if (!(load_rlx(&s->b->latched) & LATCH_FIN) || sd_is_far(s))
                sd_look_at_kernel(s, (int)f->rdi);
            *(i32 *)f->r10 = (i32)sd_kept_error(s); /* what we have taken from the kernel */
        } else if (r == 0 && *(i32 *)f->r10 == 0 && load_rlx(&s->b->rx_err)) {
            *(i32 *)f->r10 = (i32)sd_kept_error(s); /* recvmmsg has */
        }
    }
    sd_sock_put(s);
    return r;
}

static bool carried_over(const struct sd_area *a, u32 index)
{
    u32 state = index < SD_AREA_BLOCKS ? load_acq(&a->block[index].state) : SD_BLOCK_FREE;

    return state != SD_BLOCK_FREE && state != SD_BLOCK_PINNED;
}

void sd_socks_carried(const struct sd_carry *c, u32 n)
{
    sd_area_get(0);
    sd_parts_after_exec();
    for (u32 i = 0; i < n; i++) {
        struct sd_area *a = sd_area_get(c[i].block >> 16);
        u32 index = c[i].block & 0xffff;
        struct sock *s = NULL;

        if (c[i].block == SD_CARRY_EPOLL && sd_epoll_of((u64)c[i].fd))
            continue; /* sd_ep_find() has been there */
        if (c[i].block == SD_CARRY_AREAS)
            continue;
        sd_fdkind[c[i].fd & 0xffff] = 0;
        if (c[i].block == SD_CARRY_EPOLL)
            continue;
        if (a && carried_over(a, index))
            for (u32 k = 0; k < i && !s; k++) /* a duplicate of one that is there already */
                if (c[k].block == c[i].block)
                    s = sd_sock_of((u64)c[k].fd);
        if (a && !s && carried_over(a, index)) {
            s = sd_sock_carried(c[i].block, &a->block[index]);
            if (s && load_rlx(&s->b->state) == SD_BLOCK_ATTACHED) {
                if (!sd_map_segment(s, c[i].fd))
                    s = NULL;
            } else if (s && load_rlx(&s->b->users) <= 1) { /* threads that the exec has ended in a receive or send are in no other's way */
                store_rlx(&s->b->rx_plain, 0);
                store_rlx(&s->b->tx_plain, 0);
            }
        }
        if (s)
            sd_fd_install(c[i].fd, s);
    }
    for (u32 i = 0; i < n; i++)
        if (c[i].block == SD_CARRY_EPOLL)
            sd_ep_carried(c[i].fd);
}
