/* SPDX-License-Identifier: Apache-2.0
 *
 * birth.c - how a socket of ours comes about: socket, connect, accept, and bind and listen, which are only of interest to policies.
 *
 * Calls that a policy may deny. Where that was so when the program started, the filter itself holds them, from the gate, too. A policy that begins to
 * deny something later cannot change the filter. From then on (sd_config.perform) these calls are sent to the supervisor from here; it makes them, or
 * answers SD_PERFORM_YOURSELF. If it is dead nobody is left to decide: they fail, as they do in the other case. A program that jumps into the gate
 * gets around this; docs/policy.md says so.
 */
#include "base/user.h"
#include "poll/poll.h"
#include "sock/sock.h"

/* The area has the word; a program that has made no socket by itself may not have asked for its area yet. */
static inline bool performs(const struct sd_tcb *t)
{
    if (unlikely(!g.area[0]) && !t->foreign)
        sd_area_get(0);
    return load_rlx(&g.cfg->perform) != 0;
}

/* True: *r is the call's result. */
static NOINLINE bool perform(u32 nr, struct sd_frame *f, long *r)
{
    *r = SYS5(SD_HC_NR, SD_HC_PERFORM | (u64)nr << 32, f->rdi, f->rsi, f->rdx, f->r10);
    if (*r == -ENOSYS)
        *r = -EACCES;
    return *r != SD_PERFORM_YOURSELF;
}

static void adopt(int fd, u32 role, bool nonblock, bool established)
{
    struct sock *s = (u32)fd < ARRAY_LEN(sd_fdent) ? sd_sock_new(role) : NULL;

    if (!s)
        return; /* plain kernel TCP; the counters of blocks say why, or nothing does where the table does not reach that far */
    store_rlx(&s->b->nonblock, nonblock);
    s->b->established = established;
    sd_fd_install(fd, s);
}

SD_CALL(sd_socket)
{
    u32 family = (u32)f->rdi, protocol = (u32)f->rdx;
    long fd = SYS3(__NR_socket, f->rdi, f->rsi, f->rdx);

    if (fd >= 0 && !t->foreign && (family == AF_INET || family == AF_INET6) && (f->rsi & SOCK_TYPE_MASK) == SOCK_STREAM &&
        (protocol == 0 || protocol == IPPROTO_TCP)) {
        if (sd_sock_of((u64)fd))
            sd_fd_remove((u64)fd); /* closed behind our back */
        adopt((int)fd, 0, f->rsi & SOCK_NONBLOCK, false);
    }
    return fd;
}

/* What doorbells need is set otherwise: the program's own values, which outlive the connection. */
static void own_options(const struct sock *s, int fd)
{
    const struct sd_block *b = s->b;

    if (!sd_attached(s))
        return;
    if (load_rlx(&b->tx_mode) == SD_MODE_RING) {
        sd_set_int(fd, SOL_TCP, TCP_NODELAY, b->opt_saved & SD_SAVED_NODELAY ? 1 : 0);
        sd_set_int(fd, SOL_TCP, TCP_CORK, b->opt_saved & SD_SAVED_CORK ? 1 : 0);
    }
    if (b->rcvlowat && load_rlx(&b->rx_mode) != SD_MODE_BACK)
        sd_set_int(fd, SOL_SOCKET, SO_RCVLOWAT, (i32)b->rcvlowat);
}

static void set_mode(struct sock *s, u32 dir, _Atomic u32 *mode)
{
    struct sd_hold h;

    sd_take(s, dir, SD_MARK_OP, &h);
    store_rel(mode, SD_MODE_BACK);
    sd_leave(&h);
}

/* Another thread or process may be inside, or asleep: the rings stay where they are, nobody uses them any more, and what follows is the kernel's alone. */
static void stay_on_tcp(struct sock *s, int fd)
{
    struct sd_block *b = s->b;
    u32 state = load_acq(&b->state);

    if (state == SD_BLOCK_OFFERED || state == SD_BLOCK_PAIRED)
        sd_go_back(s, fd, SD_REASON_call);
    b->established = 0;
    b->tx_shut = 0;
    store_rlx(&b->rx_shut, 0);
    store_rlx(&b->latched, 0);
    store_rlx(&b->rx_err, 0);
    if (!sd_attached(s))
        return;
    set_mode(s, SD_DIR_RX, &b->rx_mode);
    set_mode(s, SD_DIR_TX, &b->tx_mode);
    if (!b->reason)
        b->reason = SD_REASON_call;
    sd_fast_off();
    sd_ep_changed(s);
}

/* connect(AF_UNSPEC) has ended the connection; the socket may make another one, which begins on TCP again. */
static void start_over(struct sock *s, int fd)
{
    struct sd_block *fresh, *old = s->b;
    struct sd_seg *seg = s->seg;
    u32 id;

    own_options(s, fd);
    if (g.mt || load_rlx(&old->users) > 1 || !(fresh = sd_block_new(&id))) {
        stay_on_tcp(s, fd);
        return;
    }
    store_rlx(&fresh->nonblock, load_rlx(&old->nonblock));
    sd_fast_off();
    sd_block_drop(s);
    s->b = fresh;
    s->id = id;
    s->seg = NULL;
    s->kcheck = 0;
    if (seg)
        SYS2(__NR_munmap, seg, SD_SEG_HDR_BYTES + 2 * s->e.bytes);
    sd_ep_changed(s);
}

/* The address may be nowhere, which the kernel has to say. */
static bool is_unspec(u64 addr, u64 len)
{
    u16 family;

    return len >= sizeof family && !sd_copy_user(&family, (const void *)addr, sizeof family) && family == 0;
}

static long connect_by(struct sd_frame *f, struct sd_tcb *t)
{
    long r;

    if (unlikely(performs(t)) && perform(__NR_connect, f, &r))
        return r;
    return SYS3(__NR_connect, f->rdi, f->rsi, f->rdx);
}

SD_CALL(sd_connect)
{
    struct sock *s = sd_sock_enter(f->rdi);
    long r;

    if (!s)
        return unlikely(performs(t)) && perform(__NR_connect, f, &r) ? r : SD_PASS;
    if (unlikely(is_unspec(f->rsi, f->rdx))) {
        if (sd_attached(s))
            sd_hint_say(&s->e, SD_HINT_ABORT);
        r = connect_by(f, t);
        if (r == 0)
            start_over(s, (int)f->rdi);
        sd_sock_put(s);
        return r;
    }
    r = connect_by(f, t);
    if (r == 0 || r == -EINPROGRESS || r == -EINTR) {
        s->b->role = 1;
        if (r == 0) {
            s->b->established = 1;
            if (g.cfg->upgrade == SD_UPGRADE_EAGER)
                sd_tick(s, (int)f->rdi);
        }
    }
    sd_sock_put(s);
    return r;
}

static long accepted(long fd, u32 flags, u64 listener, bool foreign)
{
    struct sock *s;

    if (fd < 0 || foreign)
        return fd;
    if (sd_sock_of((u64)fd))
        sd_fd_remove((u64)fd);
    if (!sd_sock_of(listener) && sd_sockopt_int((int)fd, SO_PROTOCOL) != IPPROTO_TCP) /* ours are TCP */
        return fd;
    adopt((int)fd, 2, flags & SOCK_NONBLOCK, true);
    s = sd_sock_of((u64)fd);
    if (s)
        sd_born(s, (int)fd);
    return fd;
}

/* A supervisor that is killed while it hands a connection over makes the kernel answer 0 and give none: 0 is what the program had there before. */
static bool handed_over(u64 listener, long fd)
{
    return likely(fd != 0) || (!sd_sock_of(0) && sd_sockopt_int(0, SO_ACCEPTCONN) == 0 &&
                               sd_sockopt_int(0, SO_PROTOCOL) == sd_sockopt_int((int)listener, SO_PROTOCOL) &&
                               sd_sockopt_int(0, SO_DOMAIN) == sd_sockopt_int((int)listener, SO_DOMAIN));
}

/* Who sleeps in accept when the policy changes gets one connection more from the kernel: it is judged when it is there. */
static long accept_by(u32 nr, struct sd_frame *f, struct sd_tcb *t, u32 flags)
{
    long fd;

    for (;;) {
        if (unlikely(performs(t)) && perform(nr, f, &fd))
            return fd;
        fd = SYS4(__NR_accept4, f->rdi, f->rsi, f->rdx, flags);
        if (unlikely(!handed_over(f->rdi, fd)))
            continue; /* the keeper answers now */
        if (likely(fd < 0 || !performs(t)) || sd_hypercall(SD_HC_ADMIT, (u64)fd, 0) == 0)
            return fd;
        SYS1(__NR_close, fd); /* the supervisor has made that a reset */
    }
}

SD_CALL(sd_accept)
{
    return accepted(accept_by(__NR_accept, f, t, 0), 0, f->rdi, t->foreign);
}

SD_CALL(sd_accept4)
{
    return accepted(accept_by(__NR_accept4, f, t, (u32)f->r10), (u32)f->r10, f->rdi, t->foreign);
}

SD_CALL(sd_bind)
{
    long r;

    return unlikely(performs(t)) && perform(__NR_bind, f, &r) ? r : SD_PASS;
}

SD_CALL(sd_listen)
{
    long r;

    return unlikely(performs(t)) && perform(__NR_listen, f, &r) ? r : SD_PASS;
}
